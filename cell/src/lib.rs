//! The runtime of a cell: ownership, shard runners, manager fronts, HTTP.

mod board;
pub mod cell;
pub mod config;
pub mod driver;
mod effects;
pub mod front;
pub mod gateway;
mod gather;
pub mod http;
mod lease;
mod mailbox;
pub mod metrics;
pub mod ownership;
pub mod peers;
pub mod process;
pub mod runner;

pub use cell::Cell;
pub use gateway::Gateway;
pub use process::Process;
