//! Calls between cells.
//!
//! Inside one process they are function calls ([`LocalPeers`]); between processes they travel over
//! the HTTP server that each process has ([`HttpPeers`]). Two ways to talk:
//! - [`Peers::call`] asks and waits for the answer;
//! - [`Peers::post`] sends and does not wait: calls to managers and their answers, of which there
//!   are many. A post may be lost without notice, or come twice; who sent a call asks again after a
//!   while, and the manager's owner joins it to the first by its op number. See [`Asked`].

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::ids::{CellId, Epoch, HostId, JobId, ManagerId, OpNumber, Seq, ShardId, VmId};
use cellbus_bus::job::{Digest, Job};
use cellbus_directory::capacity::Histories;
use cellbus_directory::record::{DeadLetter, Operator};
use cellbus_directory::{JobState, Vm};
use cellbus_workflows::autoscale::ShardReading;
use cellbus_workflows::{Answer, Call, Change, JobStatus, ManagerSummary, Scale, Stats, VmExplanation};
use serde::{Deserialize, Serialize};

use crate::directory;
use crate::driver::{ForeignVm, HeldVm, Inventory};
use crate::gateway::{HostRow, ManagerRow, ShardRow};

mod connect;
mod http;
mod outbox;
pub(crate) mod wire;

pub use http::HttpPeers;

pub use crate::spans::Context as TraceContext;

/// A cell, and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// Which incarnation.
    pub cell: CellId,
    /// As in its member record.
    pub address: String,
}

/// Why another cell gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It cannot be reached, or did not answer in time. What was asked may have been done.
    #[error("cell {cell} does not answer: {detail}")]
    Unreachable {
        /// Which.
        cell: CellId,
        /// Why.
        detail: String,
    },
    /// It was certainly not delivered.
    #[error("cell {cell} is not there: {detail}")]
    NotDelivered {
        /// Which.
        cell: CellId,
        /// Why.
        detail: String,
    },
}
impl CallError {
    /// Whether the same call may succeed later: always, there or at the cell's successor.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NotDelivered { .. } => true,
        }
    }
}

/// What is sent without waiting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Post {
    /// To the cell that fronts their managers.
    Calls {
        /// Who asks, and is to be answered.
        from: Arc<Peer>,
        /// What is asked.
        calls: Vec<Asked>,
    },
    /// To the cell that asked.
    Answers {
        /// Of which shard the calls were.
        shard: ShardId,
        /// The answers.
        answers: Vec<Answered>,
    },
    /// To the cell that asked: these calls are known and still under way.
    StillRunning {
        /// Of which shard the calls were.
        shard: ShardId,
        /// Which.
        calls: Vec<(VmId, OpNumber)>,
    },
}

/// A call, as it is asked of a manager's owner: once, or again when no answer has come.
///
/// Copies of it may be on their way for any time. One that comes late must not be carried out: what
/// was refused may have been done elsewhere by then, and what was made may have been deleted. So an
/// owner takes an ask only under its own epoch, and only if no newer ask of the same shard has come
/// before it; and a shard believes only the answer to its last ask of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// What is asked.
    pub call: Call,
    /// The epoch of the owner that it is meant for.
    pub slice_epoch: Epoch,
    /// Which ask of its shard it is.
    pub number: AskNumber,
}

/// Counts what the owner of a shard asks of managers' owners, over all calls; it starts anew with
/// each epoch of the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AskNumber(pub u64);

/// The answer to one ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// On which VM it was.
    pub vm: VmId,
    /// The number of the operation.
    pub op: OpNumber,
    /// The epoch of the shard that asked.
    pub shard_epoch: Epoch,
    /// Which ask it answers.
    pub ask: AskNumber,
    /// The answer.
    pub answer: Answer,
}
impl Asked {
    /// The answer to it.
    #[must_use]
    pub fn answered(&self, answer: Answer) -> Answered {
        let Call { vm, op, shard_epoch, .. } = self.call;
        Answered { vm, op, shard_epoch, ask: self.number, answer }
    }
}

/// What a job is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// Nothing: as it is now.
    Now,
    /// Its home knows it, and it is not `queued`.
    Decided,
    /// It has ended.
    Ended,
}

/// What is asked of another cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Jobs whose homes the cell owns.
    Jobs {
        /// Which.
        ids: Vec<JobId>,
        /// What is waited for.
        until: Until,
        /// How long at the most.
        limit: Duration,
    },
    /// [`Request::Jobs`] until [`Until::Decided`], with short answers.
    Decided {
        /// Which.
        ids: Vec<JobId>,
        /// How long at the most.
        limit: Duration,
    },
    /// VMs whose homes the cell owns.
    Vms(Vec<VmId>),
    /// How far the work of jobs on VMs is whose homes the cell owns.
    Works(Vec<(VmId, JobId)>),
    /// Parked work that its shards keep.
    Parked,
    /// Why a VM is as it is.
    Explain(VmId),
    /// The shards that it has.
    Shards,
    /// The managers that it fronts.
    Managers,
    /// What it counts, a shard.
    Stats,
    /// What a process tells the others once a second.
    Summary,
    /// What the autoscaler goes by.
    Load,
    /// How many cells there are to be, and why, with so many decisions, of those numbered below
    /// `before`. Of the owner of the cluster's shard.
    Scale {
        /// How many decisions.
        limit: usize,
        /// `None`: the newest.
        before: Option<u64>,
    },
    /// How much room there was. Of the owner of the cluster's shard.
    Capacity,
    /// Hosts of one manager that it fronts.
    Hosts(ManagerId),
    /// A VM, from the manager itself.
    Live {
        /// Which manager.
        manager: ManagerId,
        /// Which VM.
        vm: VmId,
    },
    /// All that a manager holds, read now.
    Inventory(ManagerId),
    /// VMs that a manager has and that are not Cellbus's, read now.
    Foreign(ManagerId),
    /// Whether an operator may call a host dead.
    MayBeFenced {
        /// Of which manager.
        manager: ManagerId,
        /// Which.
        host: HostId,
    },
    /// Dead letters that its shards keep.
    DeadLetters,
    /// Operators' changes that its shards keep.
    Changes,
    /// Hand over everything and leave.
    Drain(Operator),
    /// Hand this shard over to the cell that asks.
    Release {
        /// Which shard.
        shard: ShardId,
        /// Who asks.
        to: CellId,
    },
    /// Of a process of the directory: what its replica knows.
    Directory(Box<directory::Ask>),
    /// Which traces jobs belong to whose home is there.
    Traces(Vec<JobId>),
    /// Jobs whose homes the cell owns, past their queues. Answered as [`Request::Decided`]: what is known
    /// is in the log of its home, if only as queued; of all else whoever asks takes care himself.
    HandIn {
        /// Which.
        jobs: Vec<Handed>,
        /// How long at the most.
        limit: Duration,
    },
}

impl Request {
    /// How long the cell may wait before it answers, by what is asked: it comes on top of any limit.
    #[must_use]
    pub fn waits(&self) -> Duration {
        match self {
            Self::Jobs { limit, .. } | Self::Decided { limit, .. } | Self::HandIn { limit, .. } => *limit,
            Self::Live { .. } | Self::Inventory(_) | Self::Foreign(_) | Self::MayBeFenced { .. } => {
                Duration::from_secs(60)
            }
            Self::Directory(ask) => ask.waits(),
            Self::Vms(_)
            | Self::Works(_)
            | Self::Parked
            | Self::Explain(_)
            | Self::Shards
            | Self::Managers
            | Self::Stats
            | Self::Summary
            | Self::Load
            | Self::Scale { .. }
            | Self::Capacity
            | Self::Hosts(_)
            | Self::DeadLetters
            | Self::Changes
            | Self::Drain(_)
            | Self::Release { .. }
            | Self::Traces(_) => Duration::ZERO,
        }
    }
}

/// What another cell answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Jobs`], in order.
    Jobs(Vec<JobAnswer>),
    /// To [`Request::Decided`] and [`Request::HandIn`], in order.
    Decided(Vec<Decision>),
    /// To [`Request::Vms`], in order.
    Vms(Vec<VmAnswer>),
    /// To [`Request::Works`], in order; `None`: nothing is known of it there.
    Works(Vec<Option<WorkAnswer>>),
    /// To [`Request::Parked`].
    Parked(Vec<(JobId, VmId)>),
    /// To [`Request::Explain`].
    Explained(Option<Box<VmExplanation>>),
    /// To [`Request::Shards`].
    Shards(Vec<ShardRow>),
    /// To [`Request::Managers`].
    Managers(Vec<ManagerRow>),
    /// To [`Request::Stats`].
    Stats(Vec<(ShardId, Stats)>),
    /// To [`Request::Summary`].
    Summary(Summary),
    /// To [`Request::Load`].
    Load(Load),
    /// To [`Request::Scale`].
    Scale(Box<Scale>),
    /// To [`Request::Capacity`].
    Capacity(Box<Histories>),
    /// To [`Request::Hosts`].
    Hosts(Vec<HostRow>),
    /// To [`Request::Live`].
    Live(Option<Box<HeldVm>>),
    /// To [`Request::Inventory`].
    Inventory(Box<Inventory>),
    /// To [`Request::Foreign`].
    Foreign(Vec<ForeignVm>),
    /// To [`Request::MayBeFenced`]: nothing, or why not.
    MayBeFenced(Result<(), String>),
    /// To [`Request::DeadLetters`], with the shard that keeps each.
    DeadLetters(Vec<(ShardId, Arc<DeadLetter>)>),
    /// To [`Request::Changes`].
    Changes(Vec<Change>),
    /// To [`Request::Drain`]: it has begun.
    Draining,
    /// To [`Request::Release`]: the cell does not act for the shard (any more).
    Released,
    /// To [`Request::Release`]: by its own view it should keep the shard. Ask again in a while.
    Keeps,
    /// The cell does not own the shard, or front the manager.
    NotMine,
    /// It does, but cannot answer now.
    Failed {
        /// Why.
        detail: String,
    },
    /// To [`Request::Directory`].
    Directory(Box<directory::Answer>),
    /// To [`Request::Traces`], in order: `None` if that is not known there, `Some(None)` if the job
    /// brought none along.
    Traces(Vec<Option<Option<TraceContext>>>),
    /// As [`Response::Released`], and nothing of ours is under way at the shard's managers.
    ReleasedIdle,
}

/// What is known of one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobAnswer {
    /// As it is.
    Known(Box<JobStatus>),
    /// Its home does not know it.
    Unknown {
        /// How far it had read its jobs queue when it said so.
        read: Seq,
    },
    /// Its home does not know it, and has not read its queue to the end.
    Unread,
    /// The cell does not own its home.
    NotMine,
}

/// A job that is handed to its home past the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handed {
    /// The job.
    pub job: Arc<Job>,
    /// About how large it is.
    pub bytes: u32,
}

/// What its home has made of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Decision {
    /// It is known.
    Known {
        /// Where it is on its way.
        state: JobState,
        /// Of what was submitted under its key.
        digest: Digest,
    },
    /// Its home does not know it (yet).
    Unknown,
    /// The cell does not own its home.
    NotMine,
}

/// What its home knows of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum VmAnswer {
    /// Its record.
    Known(Box<Vm>),
    /// There is no such VM.
    Unknown,
    /// The cell does not own its home.
    NotMine,
}

/// How far the work of a job on a VM is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkAnswer {
    /// As the job's, were it for this VM alone.
    pub state: JobState,
    /// What it waits for, in words; empty if for nothing.
    pub waits_for: String,
}

/// What a cell tells others of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Shards that are open here, their epochs, and the last durable entry of each.
    pub owned: Vec<(ShardId, Epoch, Seq)>,
    /// Managers that are fronted here.
    pub managers: Vec<(Epoch, ManagerSummary)>,
    /// Shards that could not be opened here.
    pub failed: Vec<ShardId>,
}

/// What the autoscaler goes by, of one cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// The shards that are open here, and could be read whole.
    pub shards: Vec<ShardReading>,
    /// Calls that stand in line at managers that are fronted here, as these have under way all that they may.
    pub in_line: u64,
    /// How much the cell may have under way; `None` if nothing limits it.
    pub in_flight_max: Option<u32>,
}

/// A way to the other cells.
#[async_trait]
pub trait Peers: Send + Sync {
    /// Asks and waits. The caller sets a limit. Cancel safe: what was asked may still be done.
    ///
    /// # Errors
    /// When no answer came.
    async fn call(&self, to: &Peer, request: Request) -> Result<Response, CallError>;
    /// Sends and does not wait.
    ///
    /// # Errors
    /// When it certainly was not sent. Success says nothing.
    fn post(&self, to: &Peer, post: Post) -> Result<(), CallError>;
}

/// The receiving side: a cell.
#[async_trait]
pub trait Serve: Send + Sync {
    /// Answers.
    async fn serve(&self, request: Request) -> Response;
    /// Takes what was posted. Does not block.
    fn take(&self, post: Post);
}

/// The cells of one process. A cell that was killed is not there any more.
#[derive(Clone, Default)]
pub struct LocalPeers {
    cells: Arc<RwLock<BTreeMap<CellId, Arc<dyn Serve>>>>,
}

impl LocalPeers {
    /// Makes a cell reachable.
    pub fn join(&self, cell: CellId, server: Arc<dyn Serve>) {
        self.cells.write().unwrap_or_else(PoisonError::into_inner).insert(cell, server);
    }
    /// Makes it unreachable.
    pub fn leave(&self, cell: &CellId) {
        self.cells.write().unwrap_or_else(PoisonError::into_inner).remove(cell);
    }
    /// Whether it is in this process.
    #[must_use]
    pub fn has(&self, cell: &CellId) -> bool {
        self.find(cell).is_some()
    }
    /// The cell itself, for whoever carries calls in from outside.
    #[must_use]
    pub fn find(&self, cell: &CellId) -> Option<Arc<dyn Serve>> {
        self.cells.read().unwrap_or_else(PoisonError::into_inner).get(cell).cloned()
    }
}

#[async_trait]
impl Peers for LocalPeers {
    async fn call(&self, to: &Peer, request: Request) -> Result<Response, CallError> {
        let (cell, not_here) = (|| to.cell.clone(), || "it is not in this process".to_owned());
        let Some(server) = self.find(&to.cell) else {
            return Err(CallError::NotDelivered { cell: cell(), detail: not_here() });
        };
        let response = server.serve(request).await;
        // One that was killed meanwhile does not answer.
        if self.has(&to.cell) {
            Ok(response)
        } else {
            Err(CallError::Unreachable { cell: cell(), detail: "it has stopped".to_owned() })
        }
    }
    fn post(&self, to: &Peer, post: Post) -> Result<(), CallError> {
        match self.find(&to.cell) {
            Some(server) => {
                server.take(post);
                Ok(())
            }
            None => {
                Err(CallError::NotDelivered { cell: to.cell.clone(), detail: "it is not in this process".to_owned() })
            }
        }
    }
}
