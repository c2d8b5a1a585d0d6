//! The bodies that go over the wire, as JSON; that of operations as a line for each that has ended.

use cellbus_bus::ids::{Epoch, HostId, ManagerId, ManagerName, VmId};
use cellbus_cell::driver::{Change, Error, Limits, Op, RunningTask};
use cellbus_directory::VmFacts;
use serde::{Deserialize, Serialize};

/// Operations of one request. What a request may be in bytes follows from it.
pub(super) const PERFORM_MAX: usize = 256;

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
/// One operation of several that go in one request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PerformRequest {
    /// Tells its answer from the others of the request.
    pub(super) number: usize,
    pub(super) manager: ManagerId,
    pub(super) session: Option<Epoch>,
    pub(super) op: Op,
}
/// A line of the answer: one operation has ended.
#[derive(Serialize, Deserialize)]
pub(super) struct PerformAnswer {
    pub(super) number: usize,
    pub(super) result: Result<Option<VmFacts>, Error>,
}
#[derive(Serialize, Deserialize)]
pub(super) struct ReadRequest {
    pub(super) session: Option<Epoch>,
}
#[derive(Serialize, Deserialize)]
pub(super) struct MayBeFencedRequest {
    pub(super) host: HostId,
}
#[derive(Serialize, Deserialize)]
pub(super) struct FencedRequest {
    pub(super) session: Epoch,
    pub(super) hosts: Vec<HostId>,
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
