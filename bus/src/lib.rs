//! What every part of Cellbus shares: ids, jobs, [`Env`], and the contract of the message bus.
//!
//! Cellbus keeps nothing in its cells that cannot be rebuilt from a bus. This crate says what a
//! bus is ([`Bus`]), proves it of each transport with one `conformance` suite, and holds the
//! transports: `embedded` for one machine, NATS JetStream and Kafka for clusters.
//!
//! ```text
//!  producers ──jobs──▶ ingress ──▶ any cell ──▶ queue of shard(job id) ──▶ owner ──▶ log of the shard
//!                                                                                    │
//!                                            directory, job lists, audit: folds over the logs
//! ```
//!
//! Start with [`ids`] (who is who), [`job`] (what can be asked for), [`contract`] (what a bus
//! promises) and [`env`](mod@env) (the only door to time, randomness, tasks and files).

pub mod allocator;
pub mod backup;
pub mod cloudevent;
pub mod cluster;
pub mod codec;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod contract;
pub mod embedded;
pub mod env;
pub mod format;
pub mod ids;
pub mod job;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "nats")]
pub mod nats;
pub mod secret;
#[cfg(feature = "conformance")]
pub mod testing;

pub use contract::{Bus, Error, Result};
pub use embedded::Embedded;
pub use env::{Env, Mono, Task, WallMs};
