//! How one manager is fronted.

use std::time::Duration;

use cellbus_bus::ids::ManagerName;

use super::circuit;
use super::hosts::OverCommit;
use crate::driver::Limits;

/// How one manager is fronted.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its configured name.
    pub name: ManagerName,
    /// How far its hosts are over-committed.
    pub over_commit: OverCommit,
    /// The networks that each new VM is put on: a host that is not on all of them takes none.
    pub networks: Vec<String>,
    /// Overrides what the driver says of its limits.
    pub limits: Option<Limits>,
    /// Calls that wait for a slot, all kinds together; beyond it callers are told to come again.
    pub line_max: usize,
    /// How long an operation may take before its outcome is taken as unknown.
    pub operation_timeout: Duration,
    /// How long reading the manager may take.
    pub read_timeout: Duration,
    /// When its circuit opens.
    pub circuit: circuit::Config,
    /// Destructive operations that may begin there in a minute; `None`: any number.
    pub removals_per_minute: Option<f64>,
    /// Whether it is [`cellbus_directory::ManagerMode::ReadOnly`] until an operator has said otherwise.
    pub starts_read_only: bool,
}
impl Config {
    /// The defaults for a manager of this name.
    #[must_use]
    pub fn new(name: ManagerName) -> Self {
        Self {
            name,
            over_commit: OverCommit::default(),
            networks: Vec::new(),
            limits: None,
            line_max: 2_048,
            operation_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(30),
            circuit: circuit::Config::default(),
            removals_per_minute: None,
            starts_read_only: false,
        }
    }
}
