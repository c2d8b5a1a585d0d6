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
use cellbus_bus::ids::{CellId, Epoch, HostId, JobId, ManagerId, OpNumber, Seq, TenantId, Term, VmId, VmName};
use cellbus_bus::job::Job;
use serde::{Deserialize, Serialize};

use crate::capacity::{Disk, Sample};
use crate::failure::Failure;
use crate::manager::ManagerMode;
use crate::pause::Scope;
use crate::scale::{Decision, Leader, Settings};
use crate::vm::{Place, VmState};
use crate::work::{Outcome, Step, StepResult, Work};

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
    /// An operator has called a host dead, or has taken that back.
    HostFenced {
        /// Of which manager.
        manager: ManagerId,
        /// Which.
        host: HostId,
        /// Whether it is dead: it runs nothing, and will start nothing of what it ran.
        fenced: bool,
        /// Who.
        by: Operator,
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
