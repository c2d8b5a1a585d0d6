//! The state of one shard and its only ways in and out.

use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::contract::Position;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, JobId, Seq, ShardCount, ShardId, TenantId, VmId};
use cellbus_directory::record::Entry;
use cellbus_directory::{JobRow, ShardSnapshot, Vm};
use serde::{Deserialize, Serialize};

use crate::input::{Batch, Context, Effect, Input, Released};
use crate::view::ManagerNames;

/// What bounds a shard.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Jobs accepted and not started, of all tenants, above which the `jobs` queue is not read on.
    pub accepted_max: usize,
    /// Workflows with a call under way at one manager, above which the shard starts no more there.
    pub in_flight_per_manager_max: usize,
    /// How long ended jobs are listed.
    pub job_retention: Duration,
    /// How long keys and tombstones are remembered. Longer than any redelivery.
    pub remember: Duration,
    /// How long a provision waits for a manager that is not known yet before it fails for want of room.
    pub placement_patience: Duration,
}
impl Default for Limits {
    fn default() -> Self {
        Self {
            accepted_max: 200_000,
            in_flight_per_manager_max: 256,
            job_retention: Duration::from_secs(7 * 24 * 3600),
            remember: Duration::from_secs(14 * 24 * 3600),
            placement_patience: Duration::from_secs(60),
        }
    }
}

/// One shard. Everything about it that matters is durable in its log; what is volatile (when a
/// call is tried again) may be lost without harm.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
}

impl Shard {
    /// An empty shard, to which a snapshot and a log are then applied.
    #[must_use]
    pub fn new(id: ShardId, count: ShardCount, limits: Limits) -> Self {
        let _ = (count, limits);
        Self { id }
    }

    /// From a snapshot.
    ///
    /// # Errors
    /// When its machine part is damaged or written by a newer build.
    pub fn restore(
        id: ShardId,
        count: ShardCount,
        limits: Limits,
        snapshot: ShardSnapshot,
    ) -> Result<Self, cellbus_bus::codec::Error> {
        let _ = snapshot;
        Ok(Self::new(id, count, limits))
    }

    /// The state now, to be stored as a snapshot for the log entry `seq`. Only while nothing is
    /// pending or in flight.
    #[must_use]
    pub fn snapshot(&self, seq: Seq) -> ShardSnapshot {
        let _ = seq;
        unimplemented!()
    }

    /// Replays one log entry. Entries older in epoch than the last `Opened` are void and skipped.
    pub fn apply(&mut self, seq: Seq, entry: &Entry) {
        let _ = (seq, entry);
        unimplemented!()
    }

    /// Which shard.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }
    /// The epoch of the last `Opened` record; the next owner claims the one after it.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        unimplemented!()
    }
    /// How far the queues have been read, by what has been handed to [`Shard::handle`] or replayed.
    #[must_use]
    pub fn positions(&self) -> (Position, Position) {
        unimplemented!()
    }

    /// Begins to act as the owner under `epoch`, after its `Opened` is durable: every open intent
    /// will be handed out again by the next [`Shard::take_batch`], and acting on behalf of older
    /// epochs ends.
    pub fn opened(&mut self, epoch: Epoch, ctx: &Context<'_>) {
        let _ = (epoch, ctx);
        unimplemented!()
    }

    /// Decides on one input. Records are applied to the state at once and wait, with their
    /// effects, for [`Shard::take_batch`].
    ///
    /// Whatever the input, it never panics on purpose; a message that cannot be read becomes a
    /// dead letter.
    pub fn handle(&mut self, ctx: &Context<'_>, input: Input) {
        let _ = (ctx, input);
        unimplemented!()
    }

    /// Puts a message aside that made `handle` panic: the caller reopens the shard by replay and
    /// hands the message in here instead.
    pub fn dead_letter(&mut self, ctx: &Context<'_>, at: Position, from_control: bool, body: Bytes, reason: &str) {
        let _ = (ctx, at, from_control, body, reason);
        unimplemented!()
    }

    /// Whether the `jobs` queue may be read on: fewer jobs are accepted and not started than the bound.
    #[must_use]
    pub fn wants_jobs(&self) -> bool {
        unimplemented!()
    }

    /// Whether enough is decided for one append: hand in no more before [`Shard::take_batch`].
    #[must_use]
    pub fn batch_full(&self) -> bool { unimplemented!() }

    /// All that has been decided since the last call and must be appended; `None` if nothing must.
    /// One batch may be in flight at a time.
    #[must_use]
    pub fn take_batch(&mut self, now: WallMs) -> Option<Batch> { let _ = now; unimplemented!() }

    /// The batch taken last is durable, as the log entry `seq`: gives what follows from it.
    pub fn appended(&mut self, seq: Seq, names: &ManagerNames) -> Released { let _ = (seq, names); unimplemented!() }

    /// Effects that wait for no append: calls and publications that are tried again. Ask after
    /// every [`Shard::handle`].
    pub fn take_retries(&mut self, names: &ManagerNames) -> Vec<Effect> { let _ = names; unimplemented!() }

    /// Adds a record of the runner's own (`Opened`, `Snapshot`) to what is pending.
    pub fn note(&mut self, ctx: &Context<'_>, record: cellbus_directory::Record) {
        let _ = (ctx, record);
        unimplemented!()
    }

    /// When [`Input::Tick`] is wanted next.
    #[must_use]
    pub fn next_wake(&self) -> Option<WallMs> {
        unimplemented!()
    }

    /// How many intents are open.
    #[must_use]
    pub fn open_intents(&self) -> usize { unimplemented!() }

    /// A VM whose home this is.
    #[must_use]
    pub fn vm(&self, id: &VmId) -> Option<&Vm> {
        let _ = id;
        unimplemented!()
    }
    /// A job whose home this is.
    #[must_use]
    pub fn job(&self, id: &JobId) -> Option<JobStatus> {
        let _ = id;
        unimplemented!()
    }
    /// What `GET /v1/explain` says of a VM: its workflow, what it waits for, its next retry, its history.
    #[must_use]
    pub fn explain_vm(&self, id: &VmId) -> Option<VmExplanation> {
        let _ = id;
        unimplemented!()
    }
    /// Counts for metrics, `queue` and autoscaling.
    #[must_use]
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
    /// Dead letters that are kept here, oldest first.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<std::sync::Arc<cellbus_directory::record::DeadLetter>> {
        unimplemented!()
    }
    /// Changes made by operators and kept here, oldest first.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        unimplemented!()
    }
    /// Cordons that are kept here: (manager, host or the whole manager).
    #[must_use]
    pub fn cordons(&self) -> Vec<(cellbus_bus::ids::ManagerId, Option<cellbus_bus::ids::HostId>)> {
        unimplemented!()
    }
}

/// What is known of a job at its home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its row.
    pub row: JobRow,
    /// Of its body: the same key with another digest is a conflict.
    pub digest: cellbus_bus::job::Digest,
    /// Its VMs, the first 100, as far as they are known.
    pub vms: Vec<cellbus_directory::VmSummary>,
    /// Children that have ended.
    pub vms_ended: u32,
    /// What it waits for, in words; empty if for nothing.
    pub waits_for: String,
    /// The entry of this shard's log with which it ended. A job is shown as ended only once a
    /// directory has read so far; until the entry is durable the row says `running`.
    pub ended_seq: Option<Seq>,
    /// CloudEvents extensions of the job.
    pub extensions: std::collections::BTreeMap<String, String>,
}

/// What a shard knows of why a VM is as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmExplanation {
    /// Its record.
    pub vm: Vm,
    /// The job whose work is under way.
    pub job: Option<JobId>,
    /// Whether that work is parked.
    pub parked: Option<cellbus_directory::Failure>,
    /// Whether it is being undone.
    pub undoing: bool,
    /// Calls made for the present step, this one included.
    pub attempts: u32,
    /// What it waits for, in words.
    pub waits_for: String,
    /// When it is tried next.
    pub next_retry_at: Option<WallMs>,
    /// Jobs that wait behind it.
    pub behind: Vec<JobId>,
    /// What has happened to it, oldest first, the last 32: when, and what in words.
    pub history: Vec<(WallMs, String)>,
}

/// Counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// VMs that are not tombstones.
    pub vms: usize,
    /// Jobs not ended.
    pub jobs_open: usize,
    /// Work admitted and not started.
    pub waiting: usize,
    /// Work with a call under way.
    pub running: usize,
    /// Parked work.
    pub parked: usize,
    /// When the oldest work that has not started was accepted.
    pub oldest_waiting_at: Option<WallMs>,
    /// Work that waits because its manager is saturated, failing or not known.
    pub waiting_for_managers: usize,
    /// Open intents.
    pub intents: usize,
    /// Dead letters kept.
    pub dead_letters: usize,
    /// Jobs that have ended here since the shard was opened, by type and state.
    pub ended: std::collections::BTreeMap<(cellbus_bus::job::JobKind, cellbus_directory::JobState), u64>,
    /// Work of each tenant that is not started.
    pub waiting_by_tenant: std::collections::BTreeMap<TenantId, usize>,
}

/// Something that an operator changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When.
    pub at: WallMs,
    /// Who, and from where.
    pub by: cellbus_directory::record::Operator,
    /// What, as a sentence.
    pub what: String,
}
