//! The runtime of a cell: ownership, shard runners, manager fronts, HTTP.
pub mod config;
pub mod driver;
pub mod front;
pub mod gateway;
pub mod ownership;

pub use gateway::Gateway;
