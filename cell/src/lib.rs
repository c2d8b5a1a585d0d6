//! The runtime of a cell: ownership, shard runners, manager fronts, HTTP.

mod board;
pub mod config;
pub mod driver;
pub mod front;
pub mod gateway;
mod mailbox;
pub mod ownership;
pub mod peers;

pub use gateway::Gateway;
