//! What a shard holds: the durable part, which its log gives again, and the soft part, which may be lost.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::codec;
use cellbus_bus::contract::Position;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, HostId, JobId, ManagerId, Seq, VmId};
use cellbus_bus::job::{Digest, Job, JobKind};
use cellbus_directory::capacity::{Disk, History};
use cellbus_directory::record::{CancelledBy, DeadLetter, IntentKey};
use cellbus_directory::{JobRow, JobState, ManagerMode, Outcome, Pauses, Record, Step, Vm, VmSummary, Work};
use serde::{Deserialize, Serialize};

use super::Change;
use super::fair::FairQueue;
use super::hold::Hold;
use super::limit;
use super::run::Run;
use super::scale::Scale;
use crate::pack::PerMessage;

/// Hash maps are for look-up only; what is iterated is ordered.
pub(crate) type Map<K, V> = HashMap<K, V, foldhash::fast::FixedState>;
/// Likewise.
pub(crate) type Set<K> = HashSet<K, foldhash::fast::FixedState>;

/// What has happened to a VM, for `explain`: the last few, in a few bytes each.
pub(crate) const HISTORY_MAX: usize = 32;

/// A VM with its workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmEntry {
    pub(crate) vm: Vm,
    /// The work at the head of the line, once it has begun.
    pub(crate) run: Option<Box<Run>>,
    /// Work that waits, in the order accepted.
    pub(crate) line: VecDeque<Arc<Work>>,
    pub(crate) history: VecDeque<(WallMs, Happened)>,
}

impl VmEntry {
    pub(crate) fn new(vm: Vm) -> Self {
        Self { vm, run: None, line: VecDeque::new(), history: VecDeque::new() }
    }
    /// The work that is under way or next.
    pub(crate) fn head(&self) -> Option<&Arc<Work>> {
        self.run.as_ref().map(|r| &r.work).or_else(|| self.line.front())
    }
    pub(crate) fn happened(&mut self, at: WallMs, what: Happened) {
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back((at, what));
    }
}

/// One line of a VM's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Happened {
    Accepted(JobKind),
    Called(Step),
    Done(Step),
    Refused(Step),
    Failed(Step),
    Moved,
    Undoing,
    Parked,
    Unparked,
    Ended(JobState),
}

/// A job at its home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobEntry {
    pub(crate) row: JobRow,
    pub(crate) digest: Digest,
    /// Kept until its outcome event is out.
    pub(crate) body: Option<Arc<Job>>,
    /// The first of its VMs that have ended, by their index.
    pub(crate) vms: Vec<(u32, VmSummary)>,
    /// One bit a child; empty for jobs about one VM.
    pub(crate) children: Vec<u64>,
    pub(crate) children_ended: u32,
    pub(crate) children_failed: u32,
    pub(crate) children_cancelled: u32,
    pub(crate) first_failure: Option<cellbus_directory::Failure>,
    pub(crate) only: Option<ManagerId>,
    /// Its work is durable in the order of its VMs.
    pub(crate) forwarded: bool,
    /// It still waits for its predecessor.
    pub(crate) waiting: bool,
    pub(crate) cancel: Vec<CancelledBy>,
    pub(crate) watchers: Vec<JobId>,
    pub(crate) ended_seq: Option<Seq>,
}

/// A report to a job's home that is still to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) index: u32,
    pub(crate) outcome: Outcome,
    pub(crate) vm: Option<VmSummary>,
}

/// What the log gives again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Durable {
    pub(crate) epoch: Epoch,
    pub(crate) jobs_read: Position,
    pub(crate) control_read: Position,
    pub(crate) vms: Map<VmId, VmEntry>,
    pub(crate) jobs: Map<JobId, JobEntry>,
    /// Open effects.
    pub(crate) intents: BTreeSet<IntentKey>,
    pub(crate) reports: BTreeMap<(VmId, JobId), Report>,
    /// What cancel jobs are to be told at once: (the job to be called off, the cancel job).
    pub(crate) cancel_answers: BTreeMap<(JobId, JobId), Outcome>,
    /// Work on VMs that has ended here: sent again, it is not run again.
    pub(crate) done: Set<(VmId, JobId)>,
    pub(crate) done_order: VecDeque<(WallMs, VmId, JobId)>,
    /// Jobs that are waited for and have not come.
    pub(crate) awaited: BTreeMap<JobId, Vec<JobId>>,
    /// Ended jobs that are still listed, oldest first.
    pub(crate) ended: VecDeque<(WallMs, JobId)>,
    /// Keys of jobs that are no longer listed.
    pub(crate) keys: Map<JobId, (Digest, JobState)>,
    pub(crate) keys_order: VecDeque<(WallMs, JobId)>,
    /// Tombstones, oldest first.
    pub(crate) tombstones: VecDeque<(WallMs, VmId)>,
    pub(crate) parked: BTreeSet<VmId>,
    pub(crate) cordons: BTreeSet<(ManagerId, Option<HostId>)>,
    pub(crate) dead_letters: BTreeMap<uuid::Uuid, Arc<DeadLetter>>,
    pub(crate) changes: VecDeque<Change>,
    pub(crate) scale: Scale,
    /// What must not be done yet, after a restore.
    pub(crate) hold: Hold,
    /// What operators have paused; on the cluster's shard only.
    pub(crate) pauses: Pauses,
    /// How much room there was; on the cluster's shard only.
    pub(crate) capacity: History,
    /// What operators have said of managers; of the others it is as configured.
    pub(crate) modes: BTreeMap<ManagerId, ManagerMode>,
    /// How much disk; on the cluster's shard only.
    pub(crate) disk: History<Disk>,
    /// The newest mark that was left at each manager.
    pub(crate) marks: BTreeMap<ManagerId, u64>,
    /// Hosts that operators call dead.
    pub(crate) fenced: BTreeSet<(ManagerId, HostId)>,
}

impl Durable {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Epoch::ZERO,
            jobs_read: Position::default(),
            control_read: Position::default(),
            vms: Map::default(),
            jobs: Map::default(),
            intents: BTreeSet::new(),
            reports: BTreeMap::new(),
            cancel_answers: BTreeMap::new(),
            done: Set::default(),
            done_order: VecDeque::new(),
            awaited: BTreeMap::new(),
            ended: VecDeque::new(),
            keys: Map::default(),
            keys_order: VecDeque::new(),
            tombstones: VecDeque::new(),
            parked: BTreeSet::new(),
            cordons: BTreeSet::new(),
            dead_letters: BTreeMap::new(),
            changes: VecDeque::new(),
            scale: Scale::default(),
            hold: Hold::default(),
            pauses: Pauses::default(),
            capacity: History::default(),
            modes: BTreeMap::new(),
            disk: History::default(),
            marks: BTreeMap::new(),
            fenced: BTreeSet::new(),
        }
    }
}

/// A timer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Carry the effect out again.
    Retry(IntentKey),
    /// Look for a place again.
    Place(VmId),
    /// Choose a manager for the job again.
    Ready(JobId),
    /// The work's deadline.
    WorkDeadline(VmId, JobId),
    /// The waiting job's deadline.
    JobDeadline(JobId),
    /// The job that is waited for has not turned up.
    Patience(JobId, JobId),
    /// A full batch has left work that may start.
    Pump,
    /// Whether what is paused is still so.
    Pauses,
    /// Retention.
    Sweep,
}

/// How often an effect has been tried.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    pub(crate) count: u32,
    /// Of these, how many were answered with a pause that whoever answered named.
    pub(crate) named: u32,
    pub(crate) next_at: Option<WallMs>,
    /// Whether the last try asked for it not to be made at all.
    pub(crate) withdraw: bool,
    pub(crate) detail: String,
    /// Whether it is under way and holds a slot of its manager.
    pub(crate) holds_slot: bool,
}

/// What may be lost without harm.
#[derive(Debug, Default)]
pub(crate) struct Soft {
    /// Whether this is the owner: only then are effects wanted.
    pub(crate) owner: bool,
    pub(crate) pending: Vec<Record>,
    pub(crate) pending_at: Option<WallMs>,
    pub(crate) pending_bytes: usize,
    pub(crate) positions_moved: (bool, bool),
    /// Of the `jobs` queue, as it is read.
    pub(crate) jobs_per_message: PerMessage,
    /// Intents opened by pending records, and by those in flight.
    pub(crate) opened: Vec<IntentKey>,
    pub(crate) in_flight_opened: Vec<IntentKey>,
    pub(crate) touched: Vec<JobId>,
    pub(crate) in_flight_touched: Vec<JobId>,
    /// Intents whose effect is to be handed out again.
    pub(crate) retries: Vec<IntentKey>,
    pub(crate) timers: BTreeSet<(WallMs, Timer)>,
    pub(crate) attempts: BTreeMap<IntentKey, Attempt>,
    /// Why a VM's work waits for a place, and how often it was looked for.
    pub(crate) places: BTreeMap<VmId, (u32, String)>,
    /// VMs whose work waits for an audit after a restore, or for the end of a pause.
    pub(crate) held: BTreeSet<VmId>,
    /// VMs that another manager was seen to have beside their homes, and which.
    pub(crate) strays: BTreeMap<VmId, ManagerId>,
    /// What was paused when work was last held back.
    pub(crate) paused: Pauses,
    /// Whether [`Timer::Pauses`] is set.
    pub(crate) pauses_watched: bool,
    /// Work that may start.
    pub(crate) ready: FairQueue,
    /// Work that waits for any manager to have a slot.
    pub(crate) crowded: FairQueue,
    /// Work that waits for a slot of its own manager.
    pub(crate) behind: BTreeMap<ManagerId, FairQueue>,
    /// Destructive work that waits for the limit of its manager.
    pub(crate) limited: limit::Limits,
    /// Calls under way, by manager.
    pub(crate) slots: Map<ManagerId, usize>,
    pub(crate) slots_total: usize,
    /// How many of these there may be when more work is started; `None`: as many as fit.
    pub(crate) slots_max: Option<usize>,
    /// Work admitted and not ended: a line may be long, and is not searched for each that comes.
    pub(crate) admitted: Set<(VmId, JobId)>,
    pub(crate) jobs_open: usize,
    pub(crate) vms_live: usize,
    pub(crate) ended_counts: BTreeMap<(JobKind, JobState), u64>,
    /// Work that has ended since this owner opened the shard.
    pub(crate) work_ended: u64,
    /// When the controller that decides was last heard of; with a new owner, when that opened the shard.
    pub(crate) leader_heard: WallMs,
    pub(crate) durable_seq: Seq,
}

/// A VM's part of it: its workflow, its line, its history.
pub(crate) type MachineVm = (Option<Box<Run>>, VecDeque<Arc<Work>>, VecDeque<(WallMs, Happened)>);

/// The machine part of a snapshot: everything durable that a directory has no use for. Maps are
/// written in the order of their keys, so that equal states give equal bytes.
#[derive(Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) vms: Vec<(VmId, MachineVm)>,
    pub(crate) jobs: Vec<(JobId, JobEntry)>,
    pub(crate) intents: BTreeSet<IntentKey>,
    pub(crate) reports: BTreeMap<(VmId, JobId), Report>,
    pub(crate) cancel_answers: BTreeMap<(JobId, JobId), Outcome>,
    pub(crate) done_order: VecDeque<(WallMs, VmId, JobId)>,
    pub(crate) awaited: BTreeMap<JobId, Vec<JobId>>,
    pub(crate) ended: VecDeque<(WallMs, JobId)>,
    pub(crate) keys: Vec<(JobId, Digest, JobState)>,
    pub(crate) keys_order: VecDeque<(WallMs, JobId)>,
    pub(crate) tombstones: VecDeque<(WallMs, VmId)>,
    pub(crate) parked: BTreeSet<VmId>,
    pub(crate) cordons: BTreeSet<(ManagerId, Option<HostId>)>,
    pub(crate) dead_letters: BTreeMap<uuid::Uuid, Arc<DeadLetter>>,
    pub(crate) changes: VecDeque<Change>,
}

impl Machine {
    pub(crate) fn of(state: &Durable) -> Self {
        let mut vm_ids: Vec<VmId> = state.vms.keys().copied().collect();
        vm_ids.sort_unstable();
        let vms = vm_ids
            .iter()
            .filter_map(|id| state.vms.get(id).map(|e| (*id, (e.run.clone(), e.line.clone(), e.history.clone()))))
            .collect();
        let mut jobs: Vec<(JobId, JobEntry)> = state.jobs.iter().map(|(id, e)| (*id, e.clone())).collect();
        jobs.sort_unstable_by_key(|(id, _)| *id);
        let mut keys: Vec<(JobId, Digest, JobState)> = state.keys.iter().map(|(id, (d, s))| (*id, *d, *s)).collect();
        keys.sort_unstable_by_key(|(id, ..)| *id);
        Self {
            vms,
            jobs,
            intents: state.intents.clone(),
            reports: state.reports.clone(),
            cancel_answers: state.cancel_answers.clone(),
            done_order: state.done_order.clone(),
            awaited: state.awaited.clone(),
            ended: state.ended.clone(),
            keys,
            keys_order: state.keys_order.clone(),
            tombstones: state.tombstones.clone(),
            parked: state.parked.clone(),
            cordons: state.cordons.clone(),
            dead_letters: state.dead_letters.clone(),
            changes: state.changes.clone(),
        }
    }

    /// With what was added later behind it: a build that knows nothing of that wrote it without, and
    /// one that need not know of it can read it without.
    pub(crate) fn encode(&self, state: &Durable) -> Bytes {
        let Durable { scale, hold, pauses, capacity, modes, disk, marks, fenced, .. } = state;
        let mut bytes = codec::encode(&(self, scale));
        // Each has its place behind those before it.
        let last = if !fenced.is_empty() {
            7
        } else if !marks.is_empty() {
            6
        } else if !disk.is_empty() {
            5
        } else if !modes.is_empty() {
            4
        } else if !capacity.is_empty() {
            3
        } else if !pauses.is_empty() {
            2
        } else {
            usize::from(*hold != Hold::default())
        };
        if last >= 1 {
            codec::encode_behind(hold, &mut bytes);
        }
        if last >= 2 {
            codec::encode_behind(pauses, &mut bytes);
        }
        if last >= 3 {
            codec::encode_behind(capacity, &mut bytes);
        }
        if last >= 4 {
            codec::encode_behind(modes, &mut bytes);
        }
        if last >= 5 {
            codec::encode_behind(disk, &mut bytes);
        }
        if last >= 6 {
            codec::encode_behind(marks, &mut bytes);
        }
        if last >= 7 {
            codec::encode_behind(fenced, &mut bytes);
        }
        Bytes::from(bytes)
    }

    /// # Errors
    /// When it is damaged or written by a newer build.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, Added), codec::Error> {
        let mut parts = codec::Parts::of(bytes)?;
        let machine = parts.next()?;
        let added = Added {
            scale: next(&mut parts)?,
            hold: next(&mut parts)?,
            pauses: next(&mut parts)?,
            capacity: next(&mut parts)?,
            modes: next(&mut parts)?,
            disk: next(&mut parts)?,
            marks: next(&mut parts)?,
            fenced: next(&mut parts)?,
        };
        parts.end()?;
        Ok((machine, added))
    }
}

/// What was added later to the machine part.
pub(crate) struct Added {
    pub(crate) scale: Scale,
    pub(crate) hold: Hold,
    pub(crate) pauses: Pauses,
    pub(crate) capacity: History,
    pub(crate) modes: BTreeMap<ManagerId, ManagerMode>,
    pub(crate) disk: History<Disk>,
    pub(crate) marks: BTreeMap<ManagerId, u64>,
    pub(crate) fenced: BTreeSet<(ManagerId, HostId)>,
}

fn next<T: Default + serde::de::DeserializeOwned>(parts: &mut codec::Parts<'_>) -> Result<T, codec::Error> {
    if parts.is_empty() { Ok(T::default()) } else { parts.next() }
}
