//! What travels on the queues of a shard.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::codec;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{ControllerId, HostId, JobId, ManagerId, VmId};
use cellbus_bus::job::Job;
use cellbus_directory::capacity::{Disk, Sample};
use cellbus_directory::pause::Scope;
use cellbus_directory::record::{CancelledBy, DeadLetter, Operator, ParkedDecision};
use cellbus_directory::scale::{Decision, Leader, Settings};
use cellbus_directory::{ManagerMode, Outcome, VmSummary, Work};
use serde::{Deserialize, Serialize};

/// A message on a shard's `jobs` queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobItem {
    /// A job for `shard(job id)`, from ingress or HTTP.
    Job(Arc<Job>),
    /// Work for `shard(vm id)`, from the job's home. Sent again, it is admitted once.
    Work(Arc<Work>),
    /// Several of these, each as it would be alone: see [`crate::pack`]. None of them is a pack.
    Pack(Vec<Bytes>),
}

/// A message on a shard's `control` queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlItem {
    /// To the job's home: its work on a VM has ended.
    Report {
        /// The job.
        job: JobId,
        /// Which child.
        index: u32,
        /// How.
        outcome: Outcome,
        /// What became of the VM; `None` if there never was one.
        vm: Option<VmSummary>,
    },
    /// To the predecessor's home: tell `waiting` when `job` has ended.
    Watch {
        /// The predecessor.
        job: JobId,
        /// The job that waits.
        waiting: JobId,
    },
    /// To the waiting job's home: its predecessor has ended.
    PredecessorEnded {
        /// The job that waits.
        job: JobId,
        /// The predecessor.
        predecessor: JobId,
        /// Whether it went as asked; `None` if no such job is known.
        succeeded: Option<bool>,
    },
    /// To a job's home: call it off.
    Cancel {
        /// Which.
        job: JobId,
        /// Whose it must be; `None` for an operator.
        tenant: Option<cellbus_bus::ids::TenantId>,
        /// Who asks.
        by: CancelledBy,
    },
    /// To a VM's home: call its work for this job off.
    CancelWork {
        /// Which VM.
        vm: VmId,
        /// For which job.
        job: JobId,
        /// Which child of it.
        index: u32,
    },
    /// To a cancel job's home: how the cancel went.
    CancelAnswer {
        /// The cancel job.
        job: JobId,
        /// The job that was to be called off.
        target: JobId,
        /// `Succeeded` if it was; else why not.
        outcome: Outcome,
    },
    /// To a VM's home: something about it was observed at this manager; read it again.
    Observed {
        /// Which VM.
        vm: VmId,
        /// Where.
        manager: ManagerId,
    },
    /// To the home of a VM with parked work.
    Unpark {
        /// Which VM.
        vm: VmId,
        /// For which job.
        job: JobId,
        /// Try again, or give up.
        decision: ParkedDecision,
        /// Who.
        by: Operator,
    },
    /// To a manager's shard.
    CordonManager {
        /// Which.
        manager: ManagerId,
        /// On or off.
        cordoned: bool,
        /// Who.
        by: Operator,
    },
    /// To a manager's shard.
    CordonHost {
        /// Of which manager.
        manager: ManagerId,
        /// Which.
        host: HostId,
        /// On or off.
        cordoned: bool,
        /// Who.
        by: Operator,
    },
    /// To any shard: keep this for a person.
    DeadLetter(Arc<DeadLetter>),
    /// To the shard that keeps it.
    DropDeadLetter {
        /// Which.
        id: uuid::Uuid,
        /// When it was put aside: the same message may have been put aside again since.
        at: WallMs,
        /// Whether it was sent round again.
        retried: bool,
        /// Who.
        by: Operator,
    },
    /// To the cluster's shard: somebody changed something by hand.
    Changed {
        /// Who.
        by: Operator,
        /// What.
        what: String,
    },

    // ── added later; all three to the cluster's shard ──
    /// An operator sets who says how many cells there are to be.
    ScaleSet {
        /// From here on.
        settings: Settings,
        /// Who.
        by: Operator,
    },
    /// A controller would decide, or goes on deciding.
    ScaleLead {
        /// Which.
        controller: ControllerId,
        /// How long the one that decides may be silent before another takes over.
        lease: Duration,
    },
    /// A controller has decided. Void unless it is the one that may.
    ScaleDecided {
        /// Which, and in which term.
        leader: Leader,
        /// What.
        decision: Arc<Decision>,
    },

    // ── after a restore ──
    /// To a VM's home: an audit has found it at this manager, and the directory does not know it there.
    Found {
        /// Which VM.
        vm: VmId,
        /// Where.
        manager: ManagerId,
    },
    /// To every shard: what was held back since a restore may go on.
    Audited {
        /// At these managers, which an audit has read.
        read: Vec<ManagerId>,
        /// What removes something, too: their audit was clean, or a person has seen what it found.
        cleared: Vec<ManagerId>,
    },

    // ── the emergency stop; both to the cluster's shard ──
    /// An operator stops work.
    Pause {
        /// Which.
        scope: Scope,
        /// Why, in the operator's words.
        reason: String,
        /// Who.
        by: Operator,
    },
    /// An operator lets it go on.
    Resume {
        /// Which.
        scope: Scope,
        /// Who.
        by: Operator,
    },
    /// To the cluster's shard: how much room there is. Kept once an hour, whoever sends it.
    CapacitySampled {
        /// Now.
        sample: Arc<Sample>,
    },

    // ── managers in and out ──
    /// To a manager's shard: an operator says whether it is used.
    SetManagerMode {
        /// Which.
        manager: ManagerId,
        /// From here on.
        mode: ManagerMode,
        /// Who.
        by: Operator,
    },
    /// To a VM's home: forget it, and leave what its manager holds as it is. Not while work on it is under
    /// way or waits, nor if it is not at this manager.
    Release {
        /// Which VM.
        vm: VmId,
        /// Where it is.
        manager: ManagerId,
    },
    /// To a VM's home: the host that it is on is dead, says its manager for certain. Whether the VM is
    /// to be started again elsewhere is its home's to say.
    HostDied {
        /// Which VM.
        vm: VmId,
        /// Where.
        manager: ManagerId,
        /// The dead host.
        from: HostId,
        /// A host of the same manager that has room for it.
        to: HostId,
    },
    /// The same of disk.
    DiskSampled {
        /// Now.
        sample: Arc<Sample<Disk>>,
    },
    /// To a manager's shard: its owner has left a mark at the manager.
    ManagerMarked {
        /// Which.
        manager: ManagerId,
        /// The mark.
        mark: u64,
    },
    /// To a manager's shard: an operator calls a host dead, or takes that back.
    FenceHost {
        /// Of which manager.
        manager: ManagerId,
        /// Which.
        host: HostId,
        /// Whether it is dead.
        fenced: bool,
        /// Who.
        by: Operator,
    },
    /// Several of these, each as it would be alone: see [`crate::pack`]. None of them is a pack.
    Pack(Vec<Bytes>),
}

impl JobItem {
    /// As it is sent.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(codec::encode(self))
    }
    /// From what was sent.
    ///
    /// # Errors
    /// When it is damaged or written by a newer build.
    pub fn decode(bytes: &[u8]) -> Result<Self, codec::Error> {
        codec::decode(bytes)
    }
}

impl ControlItem {
    /// As it is sent.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(codec::encode(self))
    }
    /// From what was sent.
    ///
    /// # Errors
    /// When it is damaged or written by a newer build.
    pub fn decode(bytes: &[u8]) -> Result<Self, codec::Error> {
        codec::decode(bytes)
    }
}
