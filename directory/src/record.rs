//! The records of a shard's log: the only truth there is. All else is a fold over them.
//!
//! One [`Entry`] is one append: what was decided since the last, and how far the shard's queues
//! have been read for it. The format is versioned by [`cellbus_bus::codec`]; variants are only
//! ever added at the end, and `record/golden` pins the bytes of each.

use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::codec;
use cellbus_bus::contract::{Position, SnapshotId};
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{
    CellId, Epoch, ForeignKey, HostId, JobId, ManagerId, OpNumber, Seq, TenantId, Term, VmId, VmName,
};
use cellbus_bus::job::{Job, Operation, Power, Size};
use serde::{Deserialize, Serialize};

use crate::capacity::{Disk, Sample};
use crate::failure::{Failure, Refusal};
use crate::manager::ManagerMode;
use crate::pause::Scope;
use crate::scale::{Decision, Leader, Settings};
use crate::vm::{Place, Template, VmFacts, VmState};

/// One append to a shard's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Under which opening it was written. A reader voids entries older than the last `Opened`.
    pub epoch: Epoch,
    /// The sequence of the entry before it: a reader that sees a hole reloads the snapshot.
    pub prev: Seq,
    /// When it was decided.
    pub at: WallMs,
    /// How far the jobs queue has been read, where that has changed.
    pub jobs: Option<Position>,
    /// How far the control queue has been read, where that has changed.
    pub control: Option<Position>,
    /// What was decided, in order.
    pub records: Vec<Record>,
}

impl Entry {
    /// As every build reads it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(codec::encode(self))
    }
    /// As it is stored, in the format of the cluster record ([`cellbus_bus::format`]).
    #[must_use]
    pub fn encode_as(&self, format: u16) -> Bytes {
        Bytes::from(codec::encode_as(format, self))
    }
    /// From what is stored. Whether this build may read its format is asked before, of
    /// [`cellbus_bus::format::Formats::admit`].
    ///
    /// # Errors
    /// When it is damaged or written by a newer build.
    pub fn decode(bytes: &[u8]) -> Result<Self, codec::Error> {
        codec::decode_any(bytes)
    }
}

/// A call of a workflow on a VM's manager. Named for what is asked, not for who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Provision: make the VM, and power it on if asked.
    Create,
    /// Compensation of `Create`: remove what it may have left.
    UndoCreate,
    /// Power on.
    Start,
    /// Power off.
    Stop,
    /// Reboot.
    Restart,
    /// Suspend.
    Suspend,
    /// Resume.
    Resume,
    /// Change the shape.
    Resize,
    /// Take a snapshot.
    Snapshot,
    /// Go back to a snapshot.
    Revert,
    /// Drop a snapshot.
    SnapshotDelete,
    /// Move to another host of the same manager.
    Relocate,
    /// Migrate between managers, 1: stop the source.
    Quiesce,
    /// Migrate between managers, 2: make the copy on the target, powered off.
    Copy,
    /// Migrate between managers, 3 (after `Moved`): start the copy.
    StartCopy,
    /// Migrate between managers, 4: remove the source.
    DropSource,
    /// Compensation of `Copy`.
    UndoCopy,
    /// Compensation of `Quiesce`: start the source again.
    UndoQuiesce,
    /// Remove the VM.
    Delete,
    /// Read the VM again after an observation.
    Inspect,
    /// Migrate between managers, after `Moved`: whether the copy is there.
    CheckCopy,
    /// Migrate between managers, after `Moved`: whether the source is there, the copy being gone.
    CheckSource,
    /// After its host died: bring it to another host of the same manager, from where it is started again.
    Failover,
    /// Take in a VM that stands at its manager already.
    Adopt,
    /// Whether another manager has the VM than is known.
    CheckStray,
    /// Whether the manager that is known to have the VM still has it.
    CheckHome,
    /// Remove what another manager has of the VM beside its own.
    DropStray,
}
/// What a step may do to what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// Nothing.
    Reads,
    /// It makes something, or changes what can be changed back.
    Changes,
    /// It is destructive: what it removes is gone for good.
    Removes,
}

impl Step {
    /// What it may do to what is there.
    #[must_use]
    pub const fn kind(self) -> StepKind {
        match self {
            Self::Inspect | Self::CheckCopy | Self::CheckSource | Self::CheckStray | Self::CheckHome => StepKind::Reads,
            Self::Create
            | Self::Start
            | Self::Stop
            | Self::Restart
            | Self::Suspend
            | Self::Resume
            | Self::Resize
            | Self::Snapshot
            | Self::Relocate
            | Self::Quiesce
            | Self::Copy
            | Self::StartCopy
            | Self::UndoQuiesce
            | Self::Failover
            | Self::Adopt => StepKind::Changes,
            // A revert drops all that was written since the snapshot.
            Self::UndoCreate
            | Self::UndoCopy
            | Self::DropSource
            | Self::DropStray
            | Self::Delete
            | Self::Revert
            | Self::SnapshotDelete => StepKind::Removes,
        }
    }
    /// Every step.
    pub const ALL: &[Self] = &[
        Self::Create,
        Self::UndoCreate,
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Suspend,
        Self::Resume,
        Self::Resize,
        Self::Snapshot,
        Self::Revert,
        Self::SnapshotDelete,
        Self::Relocate,
        Self::Quiesce,
        Self::Copy,
        Self::StartCopy,
        Self::DropSource,
        Self::UndoCopy,
        Self::UndoQuiesce,
        Self::Delete,
        Self::Inspect,
        Self::CheckCopy,
        Self::CheckSource,
        Self::Failover,
        Self::Adopt,
        Self::CheckStray,
        Self::CheckHome,
        Self::DropStray,
    ];
    /// As in metrics and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::UndoCreate => "undo-create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Resize => "resize",
            Self::Snapshot => "snapshot",
            Self::Revert => "revert",
            Self::SnapshotDelete => "snapshot-delete",
            Self::Relocate => "relocate",
            Self::Quiesce => "quiesce",
            Self::Copy => "copy",
            Self::StartCopy => "start-copy",
            Self::DropSource => "drop-source",
            Self::UndoCopy => "undo-copy",
            Self::UndoQuiesce => "undo-quiesce",
            Self::Delete => "delete",
            Self::Inspect => "inspect",
            Self::CheckCopy => "check-copy",
            Self::CheckSource => "check-source",
            Self::Failover => "failover",
            Self::Adopt => "adopt",
            Self::CheckStray => "check-stray",
            Self::CheckHome => "check-home",
            Self::DropStray => "drop-stray",
        }
    }
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepResult {
    /// Done; the VM is there and is so.
    Present(VmFacts),
    /// Done; the VM is not there.
    Absent,
    /// It definitely never began. Placement may try elsewhere.
    Refused(Refusal),
    /// It will not succeed by trying again. Something may have been done.
    Failed(Failure),
}

/// Work for one VM, as it travels to the VM's home shard and waits there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// On which VM.
    pub vm: VmId,
    /// For which job.
    pub job: JobId,
    /// Which child of it; zero where it has one VM.
    pub index: u32,
    /// Whose.
    pub tenant: TenantId,
    /// When the job was accepted.
    pub accepted_at: WallMs,
    /// When it fails unless a call was made before.
    pub deadline_at: Option<WallMs>,
    /// What is to be done.
    pub task: Task,
}

impl Work {
    /// Whether a job waits for its end. Else its `job` only tells it from other work on its VM.
    #[must_use]
    pub fn for_a_job(&self) -> bool {
        match self.task {
            Task::Create { .. } | Task::Operate(_) => true,
            Task::Inspect | Task::Failover { .. } | Task::Adopt(_) | Task::Rehome { .. } | Task::DropStray { .. } => {
                false
            }
        }
    }
}

/// What is to be done to one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Make it.
    Create {
        /// Its name.
        name: VmName,
        /// Its shape.
        size: Size,
        /// What it shares with its siblings.
        template: Arc<Template>,
        /// Whether it is left running.
        power: Power,
        /// The only manager that may be chosen (affinity within one job).
        only: Option<ManagerId>,
        /// How many VMs its job makes, this one included.
        of: u32,
    },
    /// Do this to it.
    Operate(Operation),
    /// Read it again, because something was observed.
    Inspect,
    /// Start it again on another host: the one that it ran on is dead.
    Failover {
        /// The dead host.
        from: HostId,
        /// Where it goes, in the same manager.
        to: HostId,
    },
    /// Take it in: it stands at its manager already, and the directory does not know it.
    Adopt(Arc<Adoption>),
    /// Something of it was observed at another manager than is known: look which of them has it.
    Rehome {
        /// The other.
        manager: ManagerId,
    },
    /// Remove what another manager has of it, if the one that is known has it too.
    DropStray {
        /// The other.
        manager: ManagerId,
        /// The last operation that the other has done on it: the next is numbered above it.
        op: OpNumber,
    },
}

/// A VM that is taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// What it is to be called.
    pub name: VmName,
    /// Its shape, as last seen.
    pub size: Size,
    /// Its labels; the rest is empty.
    pub template: Arc<Template>,
    /// Where it stands.
    pub manager: ManagerId,
    /// What its manager knows it by; `None`: it carries its id already, an orphan.
    pub foreign: Option<ForeignKey>,
    /// The last operation that an orphan carries: the next is numbered above it.
    pub op: OpNumber,
}

/// How a job, or the work on one VM of it, ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As asked.
    Succeeded,
    /// Not, and why.
    Failed(Failure),
    /// Called off before it took effect.
    Cancelled,
}

impl Outcome {
    /// Whether it went as asked.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        matches!(self, Self::Succeeded)
    }
}

/// What an outcome says of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSummary {
    /// Which.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Where it is.
    pub home: Option<Place>,
    /// What it is.
    pub state: VmState,
    /// The entry of its home shard's log from which that follows: a directory that has read so far shows it.
    pub seq: Seq,
}

/// Who changed something by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// As authenticated; `anonymous` while authentication is off.
    pub who: String,
    /// The address that the call came from.
    pub from: String,
}

/// Something that could not be taken, kept for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Of its content, so that the same message is kept once.
    pub id: uuid::Uuid,
    /// When it was put aside.
    pub at: WallMs,
    /// Whose, if that could be told.
    pub tenant: Option<TenantId>,
    /// Stable code.
    pub code: String,
    /// Why, in words.
    pub reason: String,
    /// Where it came from: `ingress`, `jobs` or `control`.
    pub from: String,
    /// As it came (cut at 256 KiB).
    pub original: Bytes,
}

/// One thing that was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The shard was opened by this cell, under the entry's epoch.
    Opened {
        /// Which cell.
        cell: CellId,
        /// Where it is reached.
        address: String,
    },

    // ── jobs, on shard(job id) ──
    /// The key is remembered and the job will reach one outcome. A provision of one VM is
    /// admitted with it.
    JobAccepted {
        /// The job.
        job: Arc<Job>,
    },
    /// What it had to wait for is there (its predecessor has succeeded): the job goes on.
    JobReady {
        /// Which.
        job: JobId,
        /// The one manager for all its VMs, where affinity within the job asks for one.
        only: Option<ManagerId>,
    },
    /// Another job waits for the end of this one.
    Watched {
        /// This one; it may not be known yet.
        job: JobId,
        /// The one that waits.
        waiting: JobId,
    },
    /// The job that another waits for has not turned up: the other is told so.
    WatchGivenUp {
        /// The one that did not turn up.
        job: JobId,
        /// The one that waits.
        waiting: JobId,
    },
    /// The name in its subject stands for this VM.
    JobResolved {
        /// Which job.
        job: JobId,
        /// Which VM.
        vm: VmId,
    },
    /// Its work is durable in the queues of the shards of its VMs: it is accepted in order.
    JobForwarded {
        /// Which.
        job: JobId,
    },
    /// One child has ended.
    ChildEnded {
        /// The parent.
        job: JobId,
        /// Which child.
        index: u32,
        /// How.
        outcome: Outcome,
        /// What became of its VM.
        vm: Option<VmSummary>,
    },
    /// Somebody wants it called off.
    JobCancelAsked {
        /// Which.
        job: JobId,
        /// The cancel job that asks, to be told how it went; or an operator.
        by: CancelledBy,
    },
    /// A cancel job is told at once: there is nothing to call off.
    CancelAnswered {
        /// The job that was to be called off.
        job: JobId,
        /// The cancel job.
        cancel: JobId,
        /// What it is told.
        outcome: Outcome,
    },
    /// It has reached its one outcome. The outcome event goes out from here.
    JobEnded {
        /// Which.
        job: JobId,
        /// How.
        outcome: Outcome,
        /// Its VMs, the first 100.
        vms: Vec<VmSummary>,
    },
    /// Ended jobs that are old enough are dropped from lists; their keys stay remembered.
    JobsRetired {
        /// Which.
        jobs: Vec<JobId>,
    },
    /// Their keys are forgotten too.
    JobsForgotten {
        /// Which.
        jobs: Vec<JobId>,
    },

    // ── VMs, on shard(vm id) ──
    /// Work waits for its turn on its VM.
    WorkAdmitted {
        /// The work.
        work: Arc<Work>,
    },
    /// A call is about to be made.
    StepBegun {
        /// On which VM.
        vm: VmId,
        /// With which number.
        op: OpNumber,
        /// What.
        step: Step,
        /// Of which manager.
        manager: ManagerId,
        /// Of which host, where the job names one.
        host: Option<HostId>,
    },
    /// A call has ended.
    StepEnded {
        /// On which VM.
        vm: VmId,
        /// Its number.
        op: OpNumber,
        /// How.
        result: StepResult,
    },
    /// The commit point of a migrate between managers.
    Moved {
        /// Which VM.
        vm: VmId,
    },
    /// From here on what was done is undone, newest first.
    Undoing {
        /// On which VM.
        vm: VmId,
        /// Why.
        cause: Outcome,
    },
    /// Its step fails for a lasting reason and cannot be undone either: an operator must decide.
    Parked {
        /// Which VM.
        vm: VmId,
        /// Why.
        failure: Failure,
    },
    /// An operator has decided.
    Unparked {
        /// Which VM.
        vm: VmId,
        /// Try again, or give up.
        decision: ParkedDecision,
        /// Who.
        by: Operator,
    },
    /// The work at the head of the VM's line has ended.
    WorkEnded {
        /// Which VM.
        vm: VmId,
        /// For which job.
        job: JobId,
        /// How.
        outcome: Outcome,
    },
    /// The work under way is to be called off as soon as that can be told.
    WorkCancelAsked {
        /// On which VM.
        vm: VmId,
        /// For which job.
        job: JobId,
    },
    /// Work that waits on this VM (or has not come yet) was called off before it began.
    WorkDropped {
        /// Which VM.
        vm: VmId,
        /// For which job.
        job: JobId,
        /// Which child of it.
        index: u32,
        /// Why.
        outcome: Outcome,
    },
    /// The job's home has been told.
    WorkReported {
        /// Which VM.
        vm: VmId,
        /// For which job.
        job: JobId,
    },
    /// Ended work that is old enough is forgotten.
    WorksForgotten {
        /// Which: the VM, and the job.
        works: Vec<(VmId, JobId)>,
    },
    /// Tombstones that are old enough are dropped.
    VmsForgotten {
        /// Which.
        vms: Vec<VmId>,
    },

    // ── managers, on shard(manager id) ──
    /// New VMs are kept off a manager, or let on again.
    ManagerCordoned {
        /// Which.
        manager: ManagerId,
        /// On or off.
        cordoned: bool,
        /// Who.
        by: Operator,
    },
    /// New VMs are kept off a host, or let on again.
    HostCordoned {
        /// Of which manager.
        manager: ManagerId,
        /// Which.
        host: HostId,
        /// On or off.
        cordoned: bool,
        /// Who.
        by: Operator,
    },

    // ── any shard ──
    /// An intent that opens nothing else was carried out.
    IntentClosed {
        /// Which.
        intent: IntentKey,
    },
    /// Put aside.
    DeadLettered {
        /// What.
        letter: Arc<DeadLetter>,
    },
    /// Taken out again, by hand.
    DeadLetterDropped {
        /// Which.
        id: uuid::Uuid,
        /// Whether it was sent round again.
        retried: bool,
        /// Who.
        by: Operator,
    },
    /// Somebody changed something by hand.
    Changed {
        /// Who.
        by: Operator,
        /// What, as a sentence.
        what: String,
    },
    /// A snapshot of the state before this record is valid from here on.
    Snapshot {
        /// Which.
        id: SnapshotId,
    },

    // ── added later ──
    /// The copy of a migrate was lost after `Moved`, and the source is still there: the source is the
    /// VM again, and the migrate is undone.
    MovedBack {
        /// Which VM.
        vm: VmId,
        /// What it was before the migrate.
        settled: VmState,
    },

    // ── the size of the cluster, on shard("cluster") ──
    /// An operator has set who says how many cells there are to be, and its bounds.
    ScaleSet {
        /// From here on.
        settings: Settings,
        /// Who.
        by: Operator,
    },
    /// Another controller decides from here on.
    ScaleLed {
        /// Which.
        leader: Leader,
    },
    /// How many cells there are to be.
    ScaleDecided {
        /// By the controller of this term.
        term: Term,
        /// How many, and why.
        decision: Arc<Decision>,
    },

    // ── after a restore ──
    /// A manager holds a VM that is not known there: it has moved, or is to be made nowhere else.
    VmFound {
        /// Which VM.
        vm: VmId,
        /// Where.
        manager: ManagerId,
    },
    /// Managers were audited since the restore: what was held back at them goes on.
    ManagersAudited {
        /// Those that were read.
        read: Vec<ManagerId>,
        /// Those at which something may be removed.
        cleared: Vec<ManagerId>,
        /// Whether every manager has been read.
        all_read: bool,
        /// Whether nothing waits for an audit any more.
        over: bool,
    },

    // ── the emergency stop, on shard("cluster") ──
    /// An operator has stopped work.
    Paused {
        /// Which.
        scope: Scope,
        /// Why, in the operator's words.
        reason: String,
        /// Who.
        by: Operator,
    },
    /// It goes on.
    Resumed {
        /// Which.
        scope: Scope,
        /// Who.
        by: Operator,
    },
    /// How much room there was, on shard("cluster") too.
    CapacitySampled {
        /// Then.
        sample: Arc<Sample>,
    },
    /// An operator has said whether a manager is used; on shard(manager id).
    ManagerModeSet {
        /// Which.
        manager: ManagerId,
        /// From here on.
        mode: ManagerMode,
        /// Who.
        by: Operator,
    },
    /// How much disk there was, at the same time.
    DiskSampled {
        /// Then.
        sample: Arc<Sample<Disk>>,
    },

    // ── managers again, on shard(manager id) ──
    /// A mark was left at a manager: one that comes back without it is older than it was.
    ManagerMarked {
        /// Which.
        manager: ManagerId,
        /// The mark. They only grow.
        mark: u64,
    },
}

/// Who calls a job off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CancelledBy {
    /// A cancel job, whose home waits for the answer.
    Job(JobId),
    /// A person.
    Operator(Operator),
    /// The parent job.
    Parent(JobId),
}

/// What an operator does with parked work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParkedDecision {
    /// Try the same step again.
    Retry,
    /// End the job as failed and leave things as they are.
    Abandon,
}

/// Names an open effect. Ordered, so that they are reissued in one order everywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IntentKey {
    /// Ask the predecessor's home to tell when it has ended.
    Watch(JobId),
    /// Find the VM that a name stands for.
    Resolve(JobId),
    /// Put the job's work on the queues of its VMs' shards.
    Forward(JobId),
    /// Pass a cancel on to the homes of the VMs (or to the target job's home).
    PassCancel(JobId),
    /// Tell the cancel job's home how the cancel of this job went.
    AnswerCancel(JobId, JobId),
    /// Tell a waiting job's home that this one has ended: (this, the waiting one).
    TellWaiting(JobId, JobId),
    /// Publish an event: the job's outcome.
    OutcomeEvent(JobId),
    /// Publish an event: the job was accepted.
    AcceptedEvent(JobId),
    /// Ask the manager's owner: the op on the VM.
    Call(VmId, OpNumber),
    /// Tell the job's home how its work on the VM ended.
    Report(VmId, JobId),
    /// Publish an event: the VM's state changed without a job; the number is the op that saw it.
    VmEvent(VmId, OpNumber),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_one_name_each() {
        for step in Step::ALL {
            assert_eq!(serde_json::to_value(step).unwrap(), step.as_str());
        }
    }
}
