//! What a VM's home shard asks of the cell that fronts a manager, and what that cell may answer.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::{
    Epoch, ForeignKey, HostId, JobId, ManagerId, OpNumber, ShardId, ShortName, TenantId, VmId, VmName,
};
use cellbus_bus::job::{Power, Size, StopMode};
use cellbus_directory::vm::{PowerState, Template};
use cellbus_directory::work::Step;
use cellbus_directory::{Failure, Refusal, VmFacts};
use serde::{Deserialize, Serialize};

/// A call on a manager. Idempotent by (`vm`, `op`): the same call again joins or finds the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Of which manager.
    pub manager: ManagerId,
    /// The shard that asks.
    pub shard: ShardId,
    /// The epoch under which it asks: an older one than the last seen is refused.
    pub shard_epoch: Epoch,
    /// On which VM.
    pub vm: VmId,
    /// For which job (nil: for none), for logs.
    pub job: JobId,
    /// The number of the operation: a lower one than the last seen for the VM is refused.
    pub op: OpNumber,
    /// Which step of the workflow it is.
    pub step: Step,
    /// What is to be done.
    pub action: Action,
    /// Whether it is not wanted any more (its deadline has passed, it was cancelled). If its owner
    /// is certain that it has not begun, it must never begin, and is refused with
    /// [`cellbus_directory::RefusalReason::NotBegun`], copies that are still on their way included.
    /// Else it goes on as if this were not set.
    pub withdraw: bool,
}

/// What is to be done. The manager's owner adds the host where one must be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Make the VM on a host of the owner's choice. Present already (with this id) is success.
    Create(Arc<CreateSpec>),
    /// Power on. Running already is success.
    Start,
    /// Power off. Off already is success.
    Stop(StopMode),
    /// Reboot once for this op number.
    Restart(StopMode),
    /// Suspend. Suspended already is success.
    Suspend,
    /// Resume. Running already is success.
    Resume,
    /// Take this shape.
    Resize(Size),
    /// Take a snapshot. One of that name taken by this op number is success.
    Snapshot(ShortName),
    /// Go back to a snapshot.
    Revert(ShortName),
    /// Drop a snapshot. Not there is success.
    SnapshotDelete(ShortName),
    /// Move to this host of the same manager. There already is success.
    Relocate(HostId),
    /// Remove. Not there is success.
    Delete,
    /// Change nothing; say what is there.
    Inspect,
    /// Take in a VM that stands there and is not Cellbus's: from here on it carries the id, and is as any
    /// other; nothing else of it changes. One that carries the id already gets the name. Never makes one.
    Adopt(Arc<AdoptSpec>),
}

/// The VM to be taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptSpec {
    /// Whose it is from here on.
    pub tenant: TenantId,
    /// Its name.
    pub name: VmName,
    /// What its manager knows it by; `None`: it carries the id already.
    pub foreign: Option<ForeignKey>,
}

/// The VM to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSpec {
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub name: VmName,
    /// Its shape.
    pub size: Size,
    /// Image, labels, requirements, policy.
    pub template: Arc<Template>,
    /// Whether it is powered on when made.
    pub power: Power,
    /// The host it must go on, where an operator names one.
    pub host: Option<HostId>,
    /// For the copy of a migrate: the snapshots that come with it.
    pub snapshots: Vec<ShortName>,
    /// For the copy of a migrate: the power that it ends with, were it not for the migrate.
    pub copy_of: Option<PowerState>,
}

/// What the cell that fronts the manager answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done; the VM is there and is so.
    Present(VmFacts),
    /// Done; the VM is not there.
    Absent,
    /// It definitely never began, and nothing of it is there. Only the manager's owner, after it
    /// has read the manager's inventory and running tasks, may say so; a copy of the call that comes
    /// later is not carried out either. A create that a failing manager is not even asked for is refused so,
    /// with [`cellbus_directory::RefusalReason::NotBegun`], and goes elsewhere.
    Refused(Refusal),
    /// It will not succeed by trying again.
    Failed(Failure),
    /// No answer yet, or none that says anything: ask the same manager again, with the same number.
    Later(Later),
}

/// Why a call must be made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// Why.
    pub reason: LaterReason,
    /// In words, for `explain`.
    pub detail: String,
    /// Not before this; the workflow's own backoff where it is `None`.
    pub after: Option<Duration>,
}

/// Why a call must be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaterReason {
    /// Nobody fronts the manager at the moment.
    NoOwner,
    /// The cell that fronts it did not answer.
    CellUnreachable,
    /// Its owner is still reading inventory and tasks.
    Opening,
    /// The manager did not answer, or failed in a way that passes.
    ManagerFailing,
    /// The circuit to the manager is open.
    CircuitOpen,
    /// The manager has as many operations under way as it may, and its line is full.
    Busy,
    /// Another operation on the same VM is still under way.
    VmBusy,
    /// The caller's view of who owns what is out of date.
    StaleOwner,
    /// An operator has paused it, or whether one has is not known.
    Paused,
    /// As many destructive operations have begun there as may in a time.
    Limited,
}
impl LaterReason {
    /// As in JSON, metrics and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoOwner => "no_owner",
            Self::CellUnreachable => "cell_unreachable",
            Self::Opening => "opening",
            Self::ManagerFailing => "manager_failing",
            Self::CircuitOpen => "circuit_open",
            Self::Busy => "busy",
            Self::VmBusy => "vm_busy",
            Self::StaleOwner => "stale_owner",
            Self::Paused => "paused",
            Self::Limited => "limited",
        }
    }
}
