//! The bodies that go over the wire, as JSON.

use cellbus_bus::ids::{Epoch, ManagerId, ManagerName, VmId};
use cellbus_cell::driver::{Change, Error, Limits, Op, RunningTask};
use serde::{Deserialize, Serialize};

/// A manager that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerInfo {
    /// Its id.
    pub id: ManagerId,
    /// Its configured name.
    pub name: ManagerName,
    /// How many hosts its inventory began with.
    pub hosts: usize,
    /// What it can do at once.
    pub limits: Limits,
}

#[derive(Serialize, Deserialize)]
pub(super) struct OpenRequest {
    pub(super) epoch: Epoch,
}
#[derive(Serialize, Deserialize)]
pub(super) struct OpenAnswer {
    pub(super) tasks: Vec<RunningTask>,
    pub(super) cursor: u64,
}
#[derive(Serialize, Deserialize)]
pub(super) struct PerformRequest {
    pub(super) session: Option<Epoch>,
    pub(super) op: Op,
}
#[derive(Serialize, Deserialize)]
pub(super) struct ReadRequest {
    pub(super) session: Option<Epoch>,
}
#[derive(Serialize, Deserialize)]
pub(super) struct InspectRequest {
    pub(super) session: Option<Epoch>,
    pub(super) vm: VmId,
}
#[derive(Serialize, Deserialize)]
pub(super) struct ChangesRequest {
    pub(super) session: Option<Epoch>,
    pub(super) cursor: u64,
}
#[derive(Serialize, Deserialize)]
pub(super) struct ChangesAnswer {
    pub(super) changes: Vec<Change>,
    pub(super) cursor: u64,
}
/// The body of every answer that is not a success.
#[derive(Serialize, Deserialize)]
pub(super) struct ErrorAnswer {
    pub(super) error: Error,
}
