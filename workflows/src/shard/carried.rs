//! The state of shards on its way to another bus: from a backup, to as many shards as that has.
//!
//! Everything durable is kept by job, VM or manager, and so is where it belongs among any number of
//! shards. What does not come along is what names a place on the old bus: how far its queues were
//! read, and the sequences of its logs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::contract::QueueKind;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, JobId, OpNumber, Seq, ShardCount, ShardId, VmId};
use cellbus_directory::record::{DeadLetter, IntentKey, Operator};
use cellbus_directory::{Step, VmSummary};

use super::failover::nobodys;
use super::hold::Hold;
use super::state::{Durable, Set};
use super::{CHANGES_MAX, Change, Limits, Shard};
use crate::item::{ControlItem, JobItem};
use crate::pack;

/// The first entry of every restored log. What a restored state names in place of a sequence of the
/// old bus: whoever has loaded the state has read so far.
const LOADED: Seq = Seq(1);

/// Openings of a shard, and operations on a VM, between two restores: so many are told apart from
/// those that came after the backup was taken, and from those of an earlier restore.
const PER_SECOND: u32 = 20;

/// What numbers of the restored cluster begin above: epochs of shards, and operations on VMs. Higher
/// than all that the old cluster may still come to, and than all after an earlier restore of the same
/// backup, as far as the clocks of those who restore agree to within the time between them.
///
/// Made of whole seconds, so that with what is added it stays below 2^53, which every reader of JSON takes.
#[must_use]
pub fn generation(now: WallMs, epochs_seen: Epoch) -> u64 {
    let by_clock = (now.0 / 1_000) << PER_SECOND;
    let above_all = ((epochs_seen.0 >> PER_SECOND) + 1) << PER_SECOND;
    by_clock.max(above_all)
}

/// Which jobs their homes know at the end of the logs that are in a backup.
///
/// Logs are cut at slightly different moments, so a VM's home may have done work for a job that its own
/// home had not accepted yet. That job is still in its home's queue and comes again; what was done for it
/// is forgotten here, so that it is done, and reported, then.
#[derive(Clone, Debug)]
pub struct KnownJobs {
    jobs: Set<JobId>,
    /// What is older than this was known by everybody who may have forgotten it since.
    recent: WallMs,
}

/// Longer than the logs of a backup are cut apart, and no longer than keys are remembered at the least.
const CUT_APART: Duration = Duration::from_secs(60);

impl KnownJobs {
    /// None, for a backup that was taken then.
    #[must_use]
    pub fn new(taken_at: WallMs) -> Self {
        let apart = u64::try_from(CUT_APART.as_millis()).unwrap_or(u64::MAX);
        Self { jobs: Set::default(), recent: WallMs(taken_at.0.saturating_sub(apart)) }
    }
    /// Those whose home is this shard.
    pub fn add(&mut self, shard: &Shard) {
        self.jobs.extend(shard.state.jobs.keys().chain(shard.state.keys.keys()));
    }
    /// Whether a job of which something was heard at this time is still to be accepted at its home.
    fn still_to_come(&self, job: &JobId, at: WallMs) -> bool {
        at >= self.recent && !nobodys(job) && !self.jobs.contains(job)
    }
}

/// What comes along to one shard of the new bus.
#[derive(Debug)]
pub struct Carried {
    state: Durable,
}

impl Shard {
    /// Cuts the state up for a bus with `to` shards. `generation`: see [`generation`].
    #[must_use]
    pub fn carry(mut self, to: ShardCount, generation: u64, known: &KnownJobs) -> BTreeMap<ShardId, Carried> {
        self.forget_what_comes_again(known);
        let way = Way { from: self.id, of: self.count, to, known };
        let mut parts = Parts::default();
        let state = self.state;
        #[expect(clippy::iter_over_hash_type, reason = "what it fills is looked up by key")]
        for (id, mut entry) in state.vms {
            entry.vm.op = raised(entry.vm.op, generation);
            if let Some(doing) = &mut entry.vm.doing {
                doing.op = raised(doing.op, generation);
            }
            if let Some(run) = entry.run.as_deref_mut().filter(|run| !run.moved && run.undoing.is_none()) {
                // The source of a migrate may have been started again since; it must be quiet for the copy.
                run.done.retain(|step| *step != Step::Quiesce);
            }
            parts.of(id.shard(to)).vms.insert(id, entry);
        }
        #[expect(clippy::iter_over_hash_type, reason = "what it fills is looked up by key")]
        for (id, mut entry) in state.jobs {
            entry.ended_seq = entry.row.state.ended().then_some(Seq::ZERO);
            entry.vms.iter_mut().for_each(|(_, vm)| vm.seq = LOADED);
            parts.of(id.shard(to)).jobs.insert(id, entry);
        }
        for intent in state.intents {
            let shard = home_of(&intent, to);
            let intent = match intent {
                // An operation that was under way may have ended since, and others after it.
                IntentKey::Call(vm, op) => IntentKey::Call(vm, raised(op, generation)),
                other => other,
            };
            parts.of(shard).intents.insert(intent);
        }
        for ((vm, job), mut report) in state.reports {
            report.vm = report.vm.map(loaded);
            parts.of(vm.shard(to)).reports.insert((vm, job), report);
        }
        for ((target, cancel), outcome) in state.cancel_answers {
            parts.of(target.shard(to)).cancel_answers.insert((target, cancel), outcome);
        }
        for (at, vm, job) in state.done_order {
            let part = parts.of(vm.shard(to));
            part.done.insert((vm, job));
            part.done_order.push_back((at, vm, job));
        }
        for (job, waiting) in state.awaited {
            parts.of(job.shard(to)).awaited.insert(job, waiting);
        }
        for (at, job) in state.ended {
            parts.of(job.shard(to)).ended.push_back((at, job));
        }
        #[expect(clippy::iter_over_hash_type, reason = "what it fills is looked up by key")]
        for (job, known) in state.keys {
            parts.of(job.shard(to)).keys.insert(job, known);
        }
        for (at, job) in state.keys_order {
            parts.of(job.shard(to)).keys_order.push_back((at, job));
        }
        for (at, vm) in state.tombstones {
            parts.of(vm.shard(to)).tombstones.push_back((at, vm));
        }
        for vm in state.parked {
            parts.of(vm.shard(to)).parked.insert(vm);
        }
        for (manager, host) in state.cordons {
            parts.of(manager.shard(to)).cordons.insert((manager, host));
        }
        for (manager, mode) in state.modes {
            parts.of(manager.shard(to)).modes.insert(manager, mode);
        }
        for (manager, mark) in state.marks {
            parts.of(manager.shard(to)).marks.insert(manager, mark);
        }
        // `state.fenced` is left behind: a host that was dead at the backup may run VMs by now.
        for (id, letter) in state.dead_letters {
            parts.of(way.letter(&letter)).dead_letters.insert(id, letter);
        }
        parts.of(way.unkeyed()).changes.extend(state.changes);
        if self.id == ShardId::of_cluster(self.count) {
            let part = parts.of(ShardId::of_cluster(to));
            (part.scale, part.pauses) = (state.scale, state.pauses);
            (part.capacity, part.disk) = (state.capacity, state.disk);
        }
        for (vm, manager) in state.hold.found {
            parts.of(vm.shard(to)).hold.found.insert(vm, manager);
        }
        parts.0
    }

    fn forget_what_comes_again(&mut self, known: &KnownJobs) {
        let state = &mut self.state;
        let mut gone: Set<VmId> = Set::default();
        state.vms.retain(|id, entry| {
            let keep = !known.still_to_come(&entry.vm.job, entry.vm.created_at);
            if !keep {
                gone.insert(*id);
            }
            entry.line.retain(|work| !work.for_a_job() || !known.still_to_come(&work.job, work.accepted_at));
            keep
        });
        state.tombstones.retain(|(_, vm)| !gone.contains(vm));
        state.parked.retain(|vm| !gone.contains(vm));
        let mut again: Set<(VmId, JobId)> = Set::default();
        state.done_order.retain(|(at, vm, job)| {
            let keep = !known.still_to_come(job, *at);
            if !keep {
                again.insert((*vm, *job));
            }
            keep
        });
        state.done.retain(|work| !again.contains(work));
        state.reports.retain(|work, _| !again.contains(work));
        state.intents.retain(|intent| match intent {
            IntentKey::Report(vm, job) => !again.contains(&(*vm, *job)),
            IntentKey::Call(vm, _) | IntentKey::VmEvent(vm, _) => !gone.contains(vm),
            IntentKey::Watch(_)
            | IntentKey::Resolve(_)
            | IntentKey::Forward(_)
            | IntentKey::PassCancel(_)
            | IntentKey::AnswerCancel(..)
            | IntentKey::TellWaiting(..)
            | IntentKey::OutcomeEvent(_)
            | IntentKey::AcceptedEvent(_) => true,
        });
    }
}

/// What comes along, by where it goes.
#[derive(Default)]
struct Parts(BTreeMap<ShardId, Carried>);

impl Parts {
    fn of(&mut self, shard: ShardId) -> &mut Durable {
        &mut self.0.entry(shard).or_default().state
    }
}

impl Carried {
    fn new() -> Self {
        Self { state: Durable::new() }
    }

    /// Puts what comes from another of the old shards beside it.
    pub fn add(&mut self, other: Self) {
        let (mine, other) = (&mut self.state, other.state);
        mine.vms.extend(other.vms);
        mine.jobs.extend(other.jobs);
        mine.intents.extend(other.intents);
        mine.reports.extend(other.reports);
        mine.cancel_answers.extend(other.cancel_answers);
        mine.done.extend(other.done);
        mine.awaited.extend(other.awaited);
        mine.keys.extend(other.keys);
        mine.parked.extend(other.parked);
        mine.cordons.extend(other.cordons);
        mine.modes.extend(other.modes);
        mine.marks.extend(other.marks);
        mine.dead_letters.extend(other.dead_letters);
        mine.hold.found.extend(other.hold.found);
        // Oldest first, as retention takes them.
        merge(&mut mine.done_order, other.done_order, |(at, ..)| *at);
        merge(&mut mine.ended, other.ended, |(at, _)| *at);
        merge(&mut mine.keys_order, other.keys_order, |(at, _)| *at);
        merge(&mut mine.tombstones, other.tombstones, |(at, _)| *at);
        merge(&mut mine.changes, other.changes, |change| change.at);
        let extra = mine.changes.len().saturating_sub(CHANGES_MAX);
        mine.changes.drain(..extra);
        // Only the cluster's shard has any.
        if mine.scale == super::Scale::default() {
            mine.scale = other.scale;
        }
        mine.pauses.extend(other.pauses);
        if mine.capacity.is_empty() {
            mine.capacity = other.capacity;
        }
        if mine.disk.is_empty() {
            mine.disk = other.disk;
        }
    }

    /// Notes who has restored it.
    pub fn note(&mut self, at: WallMs, by: Operator, what: String) {
        if self.state.changes.len() == CHANGES_MAX {
            self.state.changes.pop_front();
        }
        self.state.changes.push_back(Change { at, by, what });
    }

    /// As a shard of the new bus, whose epochs and operations go on above `epoch`, the generation. It does nothing that cannot be
    /// undone before managers have been audited.
    #[must_use]
    pub fn into_shard(mut self, id: ShardId, count: ShardCount, limits: Limits, epoch: Epoch, at: WallMs) -> Shard {
        self.state.epoch = epoch;
        let ops_above = OpNumber(epoch.0);
        self.state.hold = Hold { since: Some(at), found: self.state.hold.found, ops_above, ..Hold::default() };
        let mut shard = Shard::new(id, count, limits);
        shard.state = self.state;
        shard.recount();
        shard
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state == Durable::new()
    }
}

impl Default for Carried {
    fn default() -> Self {
        Self::new()
    }
}

fn raised(op: OpNumber, generation: u64) -> OpNumber {
    OpNumber(generation.saturating_add(op.0 & ((1 << PER_SECOND) - 1)))
}

fn loaded(vm: VmSummary) -> VmSummary {
    VmSummary { seq: LOADED, ..vm }
}

/// Both in the order of time. What is equal keeps its order.
fn merge<T>(mine: &mut VecDeque<T>, other: VecDeque<T>, at: impl Fn(&T) -> WallMs) {
    if mine.is_empty() {
        *mine = other;
    } else if !other.is_empty() {
        mine.extend(other);
        mine.make_contiguous().sort_by_key(at);
    }
}

fn home_of(intent: &IntentKey, to: ShardCount) -> ShardId {
    match intent {
        IntentKey::Watch(job)
        | IntentKey::Resolve(job)
        | IntentKey::Forward(job)
        | IntentKey::PassCancel(job)
        | IntentKey::AnswerCancel(job, _)
        | IntentKey::TellWaiting(job, _)
        | IntentKey::OutcomeEvent(job)
        | IntentKey::AcceptedEvent(job) => job.shard(to),
        IntentKey::Call(vm, _) | IntentKey::Report(vm, _) | IntentKey::VmEvent(vm, _) => vm.shard(to),
    }
}

/// From a shard of the old bus to those of the new one.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The old shard.
    pub from: ShardId,
    /// Among how many.
    pub of: ShardCount,
    /// How many there are on the new bus.
    pub to: ShardCount,
    /// Jobs that their homes know.
    pub known: &'a KnownJobs,
}

impl Way<'_> {
    /// What belongs to no job, VM or manager stays together.
    fn unkeyed(self) -> ShardId {
        ShardId::new(self.from.index() % self.to.get(), self.to).unwrap_or(self.from)
    }

    /// A message that was put aside lies where it goes when it is tried again.
    fn letter(self, letter: &Arc<DeadLetter>) -> ShardId {
        if self.of == self.to {
            return self.from;
        }
        let kind = match letter.from.as_str() {
            "jobs" => QueueKind::Jobs,
            "control" => QueueKind::Control,
            _ => return ShardId::of(letter.id, self.to),
        };
        let (shards, _) = self.item(kind, &letter.original);
        shards.first().copied().unwrap_or_else(|| self.unkeyed())
    }

    /// On whose queues the items of an unread message go, and each as it goes there.
    pub fn message(self, kind: QueueKind, body: &Bytes) -> impl Iterator<Item = (ShardId, Bytes)> {
        pack::unpack(kind, body).into_iter().flat_map(move |item| {
            let (shards, item) = self.item(kind, &item);
            shards.into_iter().map(move |shard| (shard, item.clone()))
        })
    }

    fn item(self, kind: QueueKind, body: &Bytes) -> (Vec<ShardId>, Bytes) {
        let to = self.to;
        match kind {
            QueueKind::Jobs => match JobItem::decode(body) {
                Ok(JobItem::Job(job)) => (vec![job.id.shard(to)], body.clone()),
                // It is sent again when its job has been accepted.
                Ok(JobItem::Work(work)) if self.known.still_to_come(&work.job, work.accepted_at) => {
                    (Vec::new(), body.clone())
                }
                Ok(JobItem::Work(work)) => (vec![work.vm.shard(to)], body.clone()),
                // It will be put aside there.
                Ok(JobItem::Pack(_)) | Err(_) => (vec![self.unkeyed()], body.clone()),
            },
            QueueKind::Control => match ControlItem::decode(body) {
                Ok(item) => self.control(item, body),
                Err(_) => (vec![self.unkeyed()], body.clone()),
            },
        }
    }

    fn control(self, item: ControlItem, body: &Bytes) -> (Vec<ShardId>, Bytes) {
        let to = self.to;
        let shard = match item {
            // It will be put aside there.
            ControlItem::Pack(_) => self.unkeyed(),
            ControlItem::Report { job, index, outcome, vm } => {
                let item = ControlItem::Report { job, index, outcome, vm: vm.map(loaded) };
                return (vec![job.shard(to)], item.encode());
            }
            ControlItem::Watch { job, .. }
            | ControlItem::PredecessorEnded { job, .. }
            | ControlItem::Cancel { job, .. }
            | ControlItem::CancelAnswer { job, .. } => job.shard(to),
            ControlItem::CancelWork { vm, .. }
            | ControlItem::Observed { vm, .. }
            | ControlItem::Unpark { vm, .. }
            | ControlItem::Found { vm, .. }
            | ControlItem::Release { vm, .. } => vm.shard(to),
            // Of hosts as they were before the restore: who fronts the manager says it again.
            ControlItem::HostDied { .. } => return (Vec::new(), body.clone()),
            // It was said of a host as it was then: an operator says it again if it is still so.
            ControlItem::FenceHost { .. } => return (Vec::new(), body.clone()),
            ControlItem::CordonManager { manager, .. }
            | ControlItem::CordonHost { manager, .. }
            | ControlItem::SetManagerMode { manager, .. }
            | ControlItem::ManagerMarked { manager, .. } => manager.shard(to),
            ControlItem::DeadLetter(letter) => self.letter(&letter),
            // Whoever keeps the letter drops it; the others have none by that name.
            ControlItem::DropDeadLetter { .. } => return (to.shards().collect(), body.clone()),
            // Of the managers as they were before the restore.
            ControlItem::Audited { .. } => return (Vec::new(), body.clone()),
            ControlItem::Changed { .. }
            | ControlItem::ScaleSet { .. }
            | ControlItem::ScaleLead { .. }
            | ControlItem::ScaleDecided { .. }
            | ControlItem::Pause { .. }
            | ControlItem::Resume { .. }
            | ControlItem::CapacitySampled { .. }
            | ControlItem::DiskSampled { .. } => ShardId::of_cluster(to),
        };
        (vec![shard], body.clone())
    }
}
