//! Simulated managers in a process of their own, for cells in others: `cellbus sim-managers`.
//!
//! [`Service`] serves a [`Fleet`](crate::Fleet) over HTTP, [`RemoteFleet`] connects to it, and its
//! drivers are [`Driver`](cellbus_cell::driver::Driver)s like those in one process: they pass the
//! same conformance suite. An error keeps its kind on the way; an answer that never arrives is
//! `Unreachable`.
//!
//! | call | for |
//! |---|---|
//! | `GET /sim/v1/managers` | ids, names, limits |
//! | `GET /sim/v1/status` | VMs, violations, VMs on more than one manager |
//! | `POST /sim/v1/managers/{id}/open` | a session |
//! | `POST /sim/v1/perform` | operations of any of them, each answered by a line when it has ended |
//! | `POST /sim/v1/managers/{id}/{inventory, tasks, inspect}` | readings |
//! | `POST /sim/v1/managers/{id}/changes` | what has changed; waits up to 25 s for something |
//!
//! A request names the session by its epoch, so that the server keeps nothing of its clients.

mod client;
mod operations;
mod server;
mod wire;

pub use client::{ConnectError, RemoteFleet};
pub use server::Service;
pub use wire::ManagerInfo;
