//! The state of one shard, and its only ways in and out.

mod adopt;
mod apply;
mod carried;
mod effects;
mod failover;
mod fair;
mod hold;
mod jobs;
mod limit;
mod managers;
mod pause;
pub(crate) mod run;
mod scale;
mod state;
mod status;
mod timers;
mod work;

use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::codec;
use cellbus_bus::contract::Position;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, Seq, ShardCount, ShardId};
use cellbus_bus::job::Digest;
use cellbus_directory::fold::Fence;
use cellbus_directory::record::{DeadLetter, Entry};
use cellbus_directory::{Record, ShardSnapshot};
use serde::{Deserialize, Serialize};

use crate::input::{Batch, Context, Effect, Input, Released};
use crate::view::ManagerNames;
use state::{Durable, Machine, Map, Soft, VmEntry};

pub use carried::{Carried, KnownJobs, Way, generation};
pub use failover::{ON_HOST_FAILURE, RESTART, restarts_elsewhere};
pub use managers::Kept;
pub use pause::pauses_in;
pub use scale::{Scale, ScaleSet};
pub use status::{JobStatus, Stats, VmExplanation};

/// Dead letters kept a shard. The alert on them comes long before the oldest makes room.
const DEAD_LETTERS_MAX: usize = 10_000;
/// Operators' changes kept a shard.
const CHANGES_MAX: usize = 1_000;
/// Bytes of input after which an append is due: well below what one message may have, records
/// being about as large as the items that they come from.
const BATCH_BYTES: usize = 1 << 20;
/// Records after which an append is due.
const BATCH_RECORDS: usize = 8_192;
/// How much of an unreadable message is kept.
const ORIGINAL_BYTES_MAX: usize = 256 << 10;

/// What bounds a shard.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Jobs accepted and not started, of all tenants, above which the `jobs` queue is not read on.
    pub accepted_max: usize,
    /// Calls under way at one manager, above which the shard starts no more there.
    pub in_flight_per_manager_max: usize,
    /// How long ended jobs are listed.
    pub job_retention: Duration,
    /// How long keys and tombstones are remembered. Longer than any redelivery.
    pub remember: Duration,
    /// How long a provision waits for managers that are not known yet before it fails for want of room.
    pub placement_patience: Duration,
    /// How long a job waits for a predecessor that has not been seen yet.
    pub predecessor_patience: Duration,
    /// The first pause before a call is tried again; doubled each time.
    pub retry_first: Duration,
    /// The longest pause between two tries.
    pub retry_max: Duration,
}

impl Limits {
    /// The defaults for a cluster of this many shards.
    #[must_use]
    pub fn for_shards(count: ShardCount) -> Self {
        Self {
            accepted_max: 200_000,
            // A manager's own line holds some 2,000 calls; all shards together fill it about once.
            in_flight_per_manager_max: (2_048 / usize::from(count.get())).max(8),
            job_retention: Duration::from_secs(7 * 24 * 3600),
            remember: Duration::from_secs(14 * 24 * 3600),
            placement_patience: Duration::from_secs(60),
            predecessor_patience: Duration::from_secs(60),
            retry_first: Duration::from_millis(200),
            retry_max: Duration::from_secs(30),
        }
    }
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

/// One shard. Everything about it that matters is durable in its log; what is volatile (when a
/// call is tried again) may be lost without harm.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    count: ShardCount,
    limits: Limits,
    state: Durable,
    soft: Soft,
}

impl Shard {
    /// An empty shard, to which its log is then applied.
    #[must_use]
    pub fn new(id: ShardId, count: ShardCount, limits: Limits) -> Self {
        Self { id, count, limits, state: Durable::new(), soft: Soft::default() }
    }

    /// From a snapshot, to which the rest of its log is then applied.
    ///
    /// # Errors
    /// When its machine part is damaged or written by a newer build.
    pub fn restore(
        id: ShardId,
        count: ShardCount,
        limits: Limits,
        snapshot: ShardSnapshot,
    ) -> Result<Self, codec::Error> {
        let (machine, added) = Machine::decode(&snapshot.machine)?;
        let mut shard = Self::new(id, count, limits);
        let state = &mut shard.state;
        state.epoch = snapshot.epoch;
        state.jobs_read = snapshot.jobs_read;
        state.control_read = snapshot.control_read;
        state.vms = snapshot.vms.into_iter().map(|vm| (vm.id, VmEntry::new(vm))).collect();
        for (id, (run, line, history)) in machine.vms {
            if let Some(entry) = state.vms.get_mut(&id) {
                (entry.run, entry.line, entry.history) = (run, line, history);
            }
        }
        state.jobs = machine.jobs.into_iter().collect();
        state.intents = machine.intents;
        state.reports = machine.reports;
        state.cancel_answers = machine.cancel_answers;
        state.done = machine.done_order.iter().map(|(_, vm, job)| (*vm, *job)).collect();
        state.done_order = machine.done_order;
        state.awaited = machine.awaited;
        state.ended = machine.ended;
        state.keys = machine.keys.into_iter().map(|(id, digest, job)| (id, (digest, job))).collect();
        state.keys_order = machine.keys_order;
        state.tombstones = machine.tombstones;
        state.parked = machine.parked;
        state.cordons = machine.cordons;
        state.dead_letters = machine.dead_letters;
        state.changes = machine.changes;
        state.scale = added.scale;
        state.hold = added.hold;
        state.pauses = added.pauses;
        state.capacity = added.capacity;
        state.modes = added.modes;
        state.disk = added.disk;
        state.marks = added.marks;
        state.fenced = added.fenced;
        shard.soft.durable_seq = snapshot.seq;
        shard.recount();
        Ok(shard)
    }

    /// The state now, to be stored as a snapshot for the log entry `seq`, the last appended. Only
    /// while nothing is decided and not yet appended.
    #[must_use]
    pub fn snapshot(&self, seq: Seq) -> ShardSnapshot {
        let machine = Machine::of(&self.state);
        let vms = machine.vms.iter().filter_map(|(id, ..)| self.state.vms.get(id).map(|e| e.vm.clone())).collect();
        ShardSnapshot {
            seq,
            epoch: self.state.epoch,
            jobs_read: self.state.jobs_read,
            control_read: self.state.control_read,
            vms,
            jobs: machine.jobs.iter().map(|(_, entry)| entry.row.clone()).collect(),
            cordons: machine.cordons.iter().cloned().collect(),
            machine: machine.encode(&self.state),
        }
    }

    fn recount(&mut self) {
        self.soft.admitted = apply::admitted(&self.state);
        self.soft.jobs_open = self.state.jobs.values().filter(|j| !j.row.state.ended()).count();
        self.soft.vms_live = self.state.vms.values().filter(|v| !v.vm.is_deleted()).count();
    }

    /// Replays one log entry. One that is older in epoch than the last `Opened` is void, and skipped.
    pub fn apply(&mut self, seq: Seq, entry: &Entry) {
        self.soft.durable_seq = seq;
        let mut fence = Fence::at(self.state.epoch);
        if !fence.admits(entry) {
            return;
        }
        self.state.epoch = fence.epoch();
        if let Some(at) = entry.jobs {
            self.state.jobs_read = at;
        }
        if let Some(at) = entry.control {
            self.state.control_read = at;
        }
        for record in &entry.records {
            self.apply_record(entry.at, record);
            if let Record::JobEnded { job, .. } = record
                && let Some(entry) = self.state.jobs.get_mut(job)
            {
                entry.ended_seq.get_or_insert(seq);
            }
        }
    }

    /// Which shard.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }
    /// The epoch of the last `Opened` record; the next owner claims the one after it.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.state.epoch
    }
    /// How far the `jobs` and `control` queues have been read, by what was handed in or replayed.
    #[must_use]
    pub fn positions(&self) -> (Position, Position) {
        (self.state.jobs_read, self.state.control_read)
    }

    /// Begins to act as the owner: every open intent is handed out by the next
    /// [`Shard::take_retries`]. Call it after replaying the `Opened` entry itself with [`Shard::apply`].
    pub fn opened(&mut self, ctx: &Context<'_>) {
        self.soft.owner = true;
        self.recount();
        self.rearm(ctx);
        self.pump(ctx);
    }

    /// Decides on one input. Records are applied to the state at once and wait for
    /// [`Shard::take_batch`]. A message that cannot be read becomes a dead letter.
    pub fn handle(&mut self, ctx: &Context<'_>, input: Input) {
        match input {
            Input::Jobs { at, body } => {
                self.state.jobs_read = at;
                self.soft.positions_moved.0 = true;
                self.soft.pending_at.get_or_insert(ctx.now);
                self.soft.pending_bytes += body.len();
                self.job_message(ctx, &body);
            }
            Input::Control { at, body } => {
                self.state.control_read = at;
                self.soft.positions_moved.1 = true;
                self.soft.pending_at.get_or_insert(ctx.now);
                self.soft.pending_bytes += body.len();
                self.control_message(ctx, &body);
            }
            Input::Handed { job, bytes } => self.handed(ctx, job, bytes),
            Input::Answered { intent, answer } => self.answered(ctx, intent, answer),
            Input::Tick => self.tick(ctx),
        }
        self.pump(ctx);
    }

    /// Puts a message aside that made [`Shard::handle`] panic: the caller reopens the shard by replay and
    /// hands the message in here instead.
    pub fn dead_letter(&mut self, ctx: &Context<'_>, at: Position, from_control: bool, body: Bytes, reason: &str) {
        if from_control {
            self.state.control_read = at;
            self.soft.positions_moved.1 = true;
        } else {
            self.state.jobs_read = at;
            self.soft.positions_moved.0 = true;
        }
        self.put_aside(ctx, if from_control { "control" } else { "jobs" }, "handler_failed", reason, &body);
    }

    fn put_aside(&mut self, ctx: &Context<'_>, from: &str, code: &str, reason: &str, body: &Bytes) {
        let letter = DeadLetter {
            id: uuid::Uuid::from_bytes(Digest::of(body).0),
            at: ctx.now,
            tenant: None,
            code: code.to_owned(),
            reason: reason.to_owned(),
            from: from.to_owned(),
            original: body.slice(..body.len().min(ORIGINAL_BYTES_MAX)),
        };
        self.record(ctx, Record::DeadLettered { letter: letter.into() });
    }

    /// Applies a record and puts it with those to be appended.
    fn record(&mut self, ctx: &Context<'_>, record: Record) {
        // One time for the whole entry, so that a replay sees what was seen here.
        let at = *self.soft.pending_at.get_or_insert(ctx.now);
        self.apply_record(at, &record);
        self.soft.pending.push(record);
    }

    /// Adds a record of the runner's own ([`Record::Snapshot`]) to what is to be appended.
    pub fn note(&mut self, ctx: &Context<'_>, record: Record) {
        self.record(ctx, record);
    }

    /// Whether the `jobs` queue may be read on: fewer jobs are accepted and not started than the bound.
    #[must_use]
    pub fn wants_jobs(&self) -> bool {
        self.soft.admitted.len().saturating_sub(self.soft.slots_total) < self.limits.accepted_max
    }

    /// Whether enough is decided for one append: hand in no more before [`Shard::take_batch`].
    #[must_use]
    pub fn batch_full(&self) -> bool {
        self.soft.pending_bytes >= BATCH_BYTES || self.soft.pending.len() >= BATCH_RECORDS
    }

    /// All that has been decided since the last call and must be appended; `None` if nothing must.
    /// One batch may be in flight at a time. The runner fills in [`Entry::prev`].
    #[must_use]
    pub fn take_batch(&mut self) -> Option<Batch> {
        let at = self.soft.pending_at.take()?;
        self.soft.pending_bytes = 0;
        let (jobs, control) = std::mem::take(&mut self.soft.positions_moved);
        self.soft.in_flight_opened = std::mem::take(&mut self.soft.opened);
        self.soft.in_flight_touched = std::mem::take(&mut self.soft.touched);
        Some(Batch {
            entry: Entry {
                epoch: self.state.epoch,
                prev: Seq::ZERO,
                at,
                jobs: jobs.then_some(self.state.jobs_read),
                control: control.then_some(self.state.control_read),
                records: std::mem::take(&mut self.soft.pending),
            },
        })
    }

    /// The batch taken last is durable, as the log entry `seq`: gives what follows from it.
    pub fn appended(&mut self, seq: Seq, names: &ManagerNames) -> Released {
        self.soft.durable_seq = seq;
        let touched = std::mem::take(&mut self.soft.in_flight_touched);
        for job in &touched {
            if let Some(entry) = self.state.jobs.get_mut(job)
                && entry.row.state.ended()
            {
                entry.ended_seq.get_or_insert(seq);
            }
        }
        let opened = std::mem::take(&mut self.soft.in_flight_opened);
        Released { effects: opened.iter().filter_map(|intent| self.effect(intent, names)).collect(), touched }
    }

    /// Effects that wait for no append: calls and publications that are tried again. Ask after
    /// every [`Shard::handle`].
    pub fn take_retries(&mut self, names: &ManagerNames) -> Vec<Effect> {
        if self.soft.retries.is_empty() {
            return Vec::new();
        }
        let retries = std::mem::take(&mut self.soft.retries);
        retries.iter().filter_map(|intent| self.effect(intent, names)).collect()
    }

    /// When [`Input::Tick`] is wanted next.
    #[must_use]
    pub fn next_wake(&self) -> Option<WallMs> {
        self.soft.timers.first().map(|(at, _)| *at)
    }

    /// Whether the durable state equals another's: what a replay must give. For tests and the simulator.
    #[must_use]
    pub fn same_state(&self, other: &Self) -> bool {
        let strip = |state: &Durable| {
            let mut jobs: Map<_, _> = state.jobs.clone();
            jobs.values_mut().for_each(|j| j.ended_seq = None);
            jobs
        };
        let (mine, theirs) = (strip(&self.state), strip(&other.state));
        let rest = |state: &Durable| Durable { jobs: Map::default(), ..state.clone() };
        mine == theirs && rest(&self.state) == rest(&other.state)
    }
}
