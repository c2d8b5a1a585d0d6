//! The runtime of a cell: ownership, shard runners, manager fronts, HTTP.

mod board;
pub mod config;
pub mod driver;
pub mod front;
pub mod gateway;
mod gather;
mod lease;
mod mailbox;
pub mod ownership;
pub mod peers;
pub mod process;

pub use gateway::Gateway;
