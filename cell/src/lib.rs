//! The runtime of a cell: ownership, shard runners, manager fronts, HTTP.
//!
//! A cell is one task group that holds nothing which cannot be rebuilt from the bus. It beats as a
//! member, computes with all others alike which shards it should own, and runs each in one task:
//!
//! ```text
//!  HTTP, command line ─▶ gateway ─▶ queues of the bus ─▶ runner of the shard (one task each)
//!                           │                             │ decide, append, carry out
//!                           │ asks                        ├─▶ effects: queue items, events, names
//!                           ▼                             ▼ calls, posted to whoever fronts the manager
//!                        any cell ◀──── peers ────▶ front of the manager (one task each) ─▶ driver
//!                                                         └─▶ board: room, for placement
//! ```
//!
//! Promises, each with a test:
//! - An owner that was overtaken can neither write (the append is fenced) nor act (managers refuse
//!   its epoch); one whose lease has run out stops by itself and goes on where it was.
//! - What can be seen of a shard is durable; effects follow their append.
//! - One owner chooses hosts for a manager, so races cannot overfill one; a manager that hangs holds
//!   up nobody else; a definite refusal is given only for what certainly never began.
//! - A planned move pauses a shard for less than a second; after a crash others take over when the
//!   lease has run out.
//!
//! Start with [`cell`], then [`runner`], [`front`] and [`gateway`]; [`controller`] says how many cells there are. [`ownership`] and what lies below
//! `front` are pure. Everything runs on `cellbus_bus::Env` alone, so that it runs in virtual time.

pub mod backup;
mod board;
mod capacity;
pub mod cell;
pub mod config;
pub mod controller;
pub mod directory;
pub mod driver;
mod effects;
pub mod front;
pub mod gateway;
mod gather;
pub mod http;
mod lease;
mod mailbox;
pub mod metrics;
pub mod node;
pub mod ownership;
mod pace;
pub mod pauses;
pub mod peers;
pub mod presence;
pub mod process;
mod roster;
pub mod runner;
pub mod security;
#[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "nobody takes the spans"))]
mod spans;

pub use cell::Cell;
pub use gateway::Gateway;
pub use node::Node;
pub use process::Process;
