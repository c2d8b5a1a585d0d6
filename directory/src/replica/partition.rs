//! The rows of one shard.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, HostId, JobId, ManagerId, OpNumber, Seq, ShardId, VmId};
use cellbus_bus::job::Size;
use smallvec::SmallVec;

use super::Shared;
use super::key::{Id, Key, ROWS_MAX};
use super::places::NOWHERE;
use super::row::{
    JobExtra, JobSlot, LongTexts, Ms48, Text, VmExtra, VmRow, index, job_state_number, number, place_of, place_state,
    small_size, state_number, state_of,
};
use super::slab::Slab;
use super::spot::Spot;
use crate::fold::{Fence, Rows};
use crate::job::{JobRow, JobState};
use crate::record::{Entry, VmSummary};
use crate::vm::{Vm, VmState};
use crate::work::Outcome;

/// Rows with the order in which they are listed, and how many are in each state.
pub(super) struct Table<R, const STATES: usize> {
    pub(super) rows: Slab<R>,
    pub(super) by_id: BTreeSet<Key>,
    pub(super) by_tenant: BTreeMap<NonZeroU32, BTreeSet<Key>>,
    pub(super) states: [usize; STATES],
}

impl<R, const STATES: usize> Table<R, STATES> {
    fn new() -> Self {
        Self { rows: Slab::new(), by_id: BTreeSet::new(), by_tenant: BTreeMap::new(), states: [0; STATES] }
    }
    fn index(&mut self, key: Key, tenant: NonZeroU32, state: usize) {
        self.by_id.insert(key);
        self.by_tenant.entry(tenant).or_default().insert(key);
        self.states[state] += 1;
    }
    fn unindex(&mut self, key: Key, tenant: NonZeroU32, state: usize) {
        self.by_id.remove(&key);
        if let Some(keys) = self.by_tenant.get_mut(&tenant) {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_tenant.remove(&tenant);
            }
        }
        self.states[state] -= 1;
    }
}

/// Tells one history of a log from another: a restored bus may give the same sequence to
/// another entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stamp {
    pub(crate) epoch: Epoch,
    pub(crate) prev: Seq,
    pub(crate) at: WallMs,
}

impl Stamp {
    /// Of an entry.
    #[must_use]
    pub fn of(entry: &Entry) -> Self {
        Self { epoch: entry.epoch, prev: entry.prev, at: entry.at }
    }
}

/// The rows of one shard, and how far its log has been read for them.
pub(super) struct Partition {
    pub(super) shard: ShardId,
    pub(super) seq: Seq,
    pub(super) fence: Fence,
    /// The entry `seq`, where it was read and not taken from a snapshot.
    pub(super) stamp: Option<Stamp>,
    pub(super) vms: Table<VmRow, { VmState::ALL.len() }>,
    pub(super) vm_extras: Slab<Box<VmExtra>>,
    pub(super) jobs: Table<JobSlot, { JobState::ALL.len() }>,
    pub(super) job_extras: Slab<Box<JobExtra>>,
    pub(super) texts: LongTexts,
    pub(super) cordons: BTreeSet<(ManagerId, Option<HostId>)>,
    /// Entries folded since the rows were last written to the checkpoint.
    pub(super) unsaved: u64,
}

impl Partition {
    pub(super) fn new(shard: ShardId) -> Self {
        Self {
            shard,
            seq: Seq::ZERO,
            fence: Fence::default(),
            stamp: None,
            vms: Table::new(),
            vm_extras: Slab::new(),
            jobs: Table::new(),
            job_extras: Slab::new(),
            texts: Slab::new(),
            cordons: BTreeSet::new(),
            unsaved: 0,
        }
    }

    pub(super) fn key(&self, id: &impl Id, row: u32) -> Key {
        Key::new(self.shard, id, row)
    }

    fn extra<E>(extras: &Slab<Box<E>>, at: Option<NonZeroU32>) -> Option<&E> {
        extras.get(index(at?)).map(AsRef::as_ref)
    }
    pub(super) fn vm_extra(&self, row: &VmRow) -> Option<&VmExtra> {
        Self::extra(&self.vm_extras, row.extra)
    }
    pub(super) fn job_extra(&self, slot: &JobSlot) -> Option<&JobExtra> {
        Self::extra(&self.job_extras, slot.extra)
    }

    /// What the API shows as the VM's state.
    pub(super) fn vm_state(&self, row: &VmRow) -> VmState {
        let doing = self.vm_extra(row).and_then(|extra| extra.doing.as_ref());
        Vm::state_of(state_of(row.place_state), doing.map(|doing| doing.step))
    }

    /// The row as the fold knows it.
    pub(super) fn vm(&self, shared: &Shared, row: &VmRow) -> Option<Vm> {
        let extra = self.vm_extra(row);
        let size = extra.and_then(|e| e.size).unwrap_or(Size {
            vcpus: row.vcpus,
            memory_mib: u64::from(row.memory_mib),
            disk_gib: u64::from(row.disk_gib),
        });
        Some(Vm {
            id: row.id,
            tenant: shared.tenants.get(row.tenant)?,
            name: row.name.get(&self.texts).parse().ok()?,
            size,
            template: shared.templates.get(row.template)?,
            job: match row.job {
                None => JobId::from_uuid(row.id.uuid()),
                Some(job) => shared.jobs.get(job)?,
            },
            settled: state_of(row.place_state),
            doing: extra.and_then(|e| e.doing.clone()),
            home: shared.places.get(place_of(row.place_state)).cloned(),
            other: extra.and_then(|e| e.other.clone()),
            op: extra.and_then(|e| e.op).unwrap_or(OpNumber(u64::from(row.op))),
            snapshots: extra.map(|e| e.snapshots.clone()).unwrap_or_default(),
            created_at: row.created_at.wall(),
            as_of: row.as_of.wall(),
        })
    }

    /// The row as the fold knows it.
    pub(super) fn job(&self, shared: &Shared, slot: &JobSlot) -> Option<JobRow> {
        let extra = self.job_extra(slot);
        let outcome = match slot.state {
            JobState::Succeeded => Some(Outcome::Succeeded),
            JobState::Cancelled => Some(Outcome::Cancelled),
            JobState::Failed => Some(Outcome::Failed(extra?.failure.clone()?)),
            JobState::Queued | JobState::Accepted | JobState::Waiting | JobState::Running | JobState::Parked => None,
        };
        Some(JobRow {
            id: slot.id,
            tenant: shared.tenants.get(slot.tenant)?,
            kind: slot.kind,
            state: slot.state,
            source: shared.sources.get(slot.source)?.as_ref().to_owned(),
            event_id: slot.event_id.get(&self.texts).to_owned(),
            vm: slot.has_vm.then_some(slot.vm),
            vms_total: slot.vms_total,
            accepted_at: slot.accepted_at.wall(),
            ended_at: slot.has_ended_at.then(|| slot.ended_at.wall()),
            outcome,
            plan: extra.and_then(|e| e.plan.clone()),
        })
    }

    /// The row as it is shown: a job whose VMs are not yet listed as its outcome says is still
    /// under way.
    pub(super) fn shown_job(&self, shared: &Shared, slot: &JobSlot) -> Option<JobRow> {
        let mut row = self.job(shared, slot)?;
        if !self.end_is_shown(shared, slot) {
            row.state = JobState::Running;
            row.outcome = None;
            row.ended_at = None;
        }
        Some(row)
    }
    pub(super) fn shown_job_state(&self, shared: &Shared, slot: &JobSlot) -> JobState {
        if self.end_is_shown(shared, slot) { slot.state } else { JobState::Running }
    }
    fn end_is_shown(&self, shared: &Shared, slot: &JobSlot) -> bool {
        self.job_extra(slot).is_none_or(|extra| extra.behind.iter().all(|(shard, seq)| shared.applied(*shard) >= *seq))
    }

    pub(super) fn job_row(&self, id: JobId) -> Option<u32> {
        let key = self.key(&id, 0);
        let mut found = self.jobs.by_id.range(key.group_start()..key.after_group()).map(|key| key.row());
        found.find(|row| self.jobs.rows.get(*row).is_some_and(|slot| slot.id == id))
    }
}

/// Folds into a partition, and into what all partitions share.
pub(super) struct Writer<'a> {
    pub(super) shared: &'a Shared,
    pub(super) part: &'a mut Partition,
}

impl Writer<'_> {
    /// Stores the parts of a VM that a fold may change, in `row` that has the others.
    fn store_vm(&mut self, at: u32, mut row: VmRow, vm: &Vm, old: Option<(u32, VmState)>) {
        let small = small_size(&vm.size);
        (row.vcpus, row.memory_mib, row.disk_gib) = small.unwrap_or_default();
        let op = u32::try_from(vm.op.0).ok();
        row.op = op.unwrap_or_default();
        row.as_of = Ms48::of(vm.as_of);
        let place = vm.home.as_ref().map_or(NOWHERE, |place| self.shared.places.number(place));
        row.place_state = place_state(place, vm.settled);

        let plain =
            vm.doing.is_none() && vm.other.is_none() && vm.snapshots.is_empty() && small.is_some() && op.is_some();
        if plain {
            if let Some(extra) = row.extra.take() {
                self.part.vm_extras.remove(index(extra));
            }
        } else {
            let extra = VmExtra {
                doing: vm.doing.clone(),
                other: vm.other.clone(),
                snapshots: vm.snapshots.clone(),
                size: small.is_none().then_some(vm.size),
                op: op.is_none().then_some(vm.op),
            };
            match row.extra.and_then(|extra| self.part.vm_extras.get_mut(index(extra))) {
                Some(known) => **known = extra,
                None => row.extra = Some(number(self.part.vm_extras.insert(Box::new(extra)))),
            }
        }

        let key = self.part.key(&vm.id, at);
        let state = vm.state();
        let was_live = old.is_some_and(|(_, state)| state != VmState::Deleted);
        let is_live = state != VmState::Deleted;
        if was_live != is_live {
            if is_live {
                self.shared.names.insert(&vm.tenant, &vm.name, self.part.shard, at);
            } else {
                self.shared.names.remove(&vm.tenant, &vm.name, self.part.shard, at);
            }
        }
        self.shared.places.moved(key, old.map_or(NOWHERE, |(place, _)| place), place);
        match old {
            None => self.part.vms.index(key, row.tenant, state_number(state) as usize),
            Some((_, old)) => {
                self.part.vms.states[state_number(old) as usize] -= 1;
                self.part.vms.states[state_number(state) as usize] += 1;
            }
        }
        if let Some(slot) = self.part.vms.rows.get_mut(at) {
            *slot = row;
        }
        self.shared.vms.insert(vm.id, Spot::new(at, place_state(place, state)));
    }

    fn vm_at(&self, id: VmId) -> Option<u32> {
        self.shared.vms.get(&id).map(|spot| spot.row())
    }

    /// Puts this VM in the place of whatever is known of it.
    pub(super) fn replace_vm(&mut self, vm: Vm) {
        let same = self.vm_at(vm.id).is_some_and(|at| {
            let known = self.part.vms.rows.get(at).and_then(|row| self.part.vm(self.shared, row));
            known.is_some_and(|known| {
                // What a fold never changes.
                (known.tenant, known.name, known.template, known.job, known.created_at)
                    == (vm.tenant.clone(), vm.name.clone(), Arc::clone(&vm.template), vm.job, vm.created_at)
            })
        });
        if same {
            self.change_vm(vm.id, |known| *known = vm);
        } else {
            self.forget_vm(vm.id);
            self.add_vm(vm);
        }
    }

    fn store_job(&mut self, at: u32, mut slot: JobSlot, row: &JobRow, behind: Vec<(ShardId, Seq)>) {
        let before = job_state_number(slot.state);
        slot.state = row.state;
        slot.has_vm = row.vm.is_some();
        slot.vm = row.vm.unwrap_or(VmId::from_uuid(uuid::Uuid::nil()));
        slot.has_ended_at = row.ended_at.is_some();
        slot.ended_at = Ms48::of(row.ended_at.unwrap_or_default());
        let failure = match &row.outcome {
            Some(Outcome::Failed(failure)) => Some(failure.clone()),
            Some(Outcome::Succeeded | Outcome::Cancelled) | None => None,
        };
        if failure.is_none() && row.plan.is_none() && behind.is_empty() {
            if let Some(extra) = slot.extra.take() {
                self.part.job_extras.remove(index(extra));
            }
        } else {
            let extra = JobExtra { failure, plan: row.plan.clone(), behind };
            match slot.extra.and_then(|extra| self.part.job_extras.get_mut(index(extra))) {
                Some(known) => **known = extra,
                None => slot.extra = Some(number(self.part.job_extras.insert(Box::new(extra)))),
            }
        }
        let after = job_state_number(slot.state);
        self.part.jobs.states[before] -= 1;
        self.part.jobs.states[after] += 1;
        if let Some(known) = self.part.jobs.rows.get_mut(at) {
            *known = slot;
        }
    }

    /// Puts this job in the place of whatever is known of it.
    pub(super) fn replace_job(&mut self, row: JobRow) {
        self.retire_job(row.id);
        self.add_job(row);
    }

    /// Adds a job with what its end waits for.
    pub(super) fn restore_job(&mut self, row: JobRow, behind: Vec<(ShardId, Seq)>) {
        let id = row.id;
        self.add_job(row);
        if !behind.is_empty() {
            self.change_job_and_wait(id, |_| (), |_| behind);
        }
    }

    fn change_job_and_wait<T>(
        &mut self,
        id: JobId,
        change: impl FnOnce(&mut JobRow) -> T,
        behind: impl FnOnce(&JobRow) -> Vec<(ShardId, Seq)>,
    ) -> Option<T> {
        let at = self.part.job_row(id)?;
        let slot = *self.part.jobs.rows.get(at)?;
        let mut row = self.part.job(self.shared, &slot)?;
        let given = change(&mut row);
        let behind = behind(&row);
        self.store_job(at, slot, &row, behind);
        Some(given)
    }
}

impl Rows for Writer<'_> {
    fn add_vm(&mut self, vm: Vm) {
        if self.vm_at(vm.id).is_some() {
            return;
        }
        if self.part.vms.rows.len() >= ROWS_MAX {
            tracing::error!(shard = %self.part.shard, "a shard holds more VMs than a directory can list; use more shards");
            return;
        }
        let own = JobId::from_uuid(vm.id.uuid()) == vm.job;
        let row = VmRow {
            id: vm.id,
            name: Text::new(vm.name.as_str(), &mut self.part.texts),
            created_at: Ms48::of(vm.created_at),
            as_of: Ms48::of(vm.as_of),
            vcpus: 0,
            memory_mib: 0,
            disk_gib: 0,
            tenant: self.shared.tenants.acquire(&vm.tenant),
            template: self.shared.templates.acquire(&vm.template),
            job: (!own).then(|| self.shared.jobs.acquire(&vm.job)),
            op: 0,
            place_state: place_state(NOWHERE, vm.settled),
            extra: None,
        };
        let at = self.part.vms.rows.insert(row);
        self.store_vm(at, row, &vm, None);
    }

    fn change_vm(&mut self, id: VmId, change: impl FnOnce(&mut Vm)) {
        let Some(at) = self.vm_at(id) else { return };
        let Some(row) = self.part.vms.rows.get(at).copied() else { return };
        let Some(mut vm) = self.part.vm(self.shared, &row) else { return };
        let old = (place_of(row.place_state), vm.state());
        change(&mut vm);
        self.store_vm(at, row, &vm, Some(old));
    }

    fn forget_vm(&mut self, id: VmId) {
        let Some(at) = self.vm_at(id) else { return };
        let Some(row) = self.part.vms.rows.get(at).copied() else { return };
        let Some(vm) = self.part.vm(self.shared, &row) else { return };
        // First out of the way of look-ups, last out of the row that they read.
        self.shared.vms.remove(&id);
        let key = self.part.key(&id, at);
        let state = vm.state();
        if state != VmState::Deleted {
            self.shared.names.remove(&vm.tenant, &vm.name, self.part.shard, at);
        }
        self.shared.places.moved(key, place_of(row.place_state), NOWHERE);
        self.part.vms.unindex(key, row.tenant, state_number(state) as usize);
        self.part.vms.rows.remove(at);
        row.name.free(&mut self.part.texts);
        if let Some(extra) = row.extra {
            self.part.vm_extras.remove(index(extra));
        }
        self.shared.tenants.release(row.tenant);
        self.shared.templates.release(row.template);
        if let Some(job) = row.job {
            self.shared.jobs.release(job);
        }
    }

    fn add_job(&mut self, row: JobRow) {
        if self.part.job_row(row.id).is_some() {
            return;
        }
        if self.part.jobs.rows.len() >= ROWS_MAX {
            tracing::error!(shard = %self.part.shard, "a shard holds more jobs than a directory can list; keep them for less time");
            return;
        }
        let slot = JobSlot {
            id: row.id,
            event_id: Text::new(&row.event_id, &mut self.part.texts),
            vm: VmId::from_uuid(uuid::Uuid::nil()),
            accepted_at: Ms48::of(row.accepted_at),
            ended_at: Ms48::of(WallMs(0)),
            tenant: self.shared.tenants.acquire(&row.tenant),
            source: self.shared.sources.acquire(&Arc::from(row.source.as_str())),
            vms_total: row.vms_total,
            extra: None,
            kind: row.kind,
            state: row.state,
            has_vm: false,
            has_ended_at: false,
        };
        let at = self.part.jobs.rows.insert(slot);
        let key = self.part.key(&row.id, at);
        self.part.jobs.index(key, slot.tenant, job_state_number(row.state));
        self.store_job(at, slot, &row, Vec::new());
    }

    fn change_job<T>(&mut self, id: JobId, change: impl FnOnce(&mut JobRow) -> T) -> Option<T> {
        // Whatever its end waits for goes on being waited for.
        let behind =
            self.part.job_row(id).and_then(|at| self.part.jobs.rows.get(at)).and_then(|slot| self.part.job_extra(slot));
        let behind = behind.map(|extra| extra.behind.clone()).unwrap_or_default();
        self.change_job_and_wait(id, change, |_| behind)
    }

    fn end_job(&mut self, id: JobId, outcome: &Outcome, vms: &[VmSummary], at: WallMs) {
        let (shared, home) = (self.shared, self.part.shard);
        self.change_job_and_wait(
            id,
            |row| row.ended(outcome, at),
            |_| {
                let mut behind: SmallVec<[(ShardId, Seq); 4]> = vms
                    .iter()
                    .map(|vm| (vm.id.shard(shared.count), vm.seq))
                    .filter(|(shard, seq)| *shard != home && shared.applied(*shard) < *seq)
                    .collect();
                behind.sort_unstable();
                behind.dedup();
                behind.into_vec()
            },
        );
    }

    fn retire_job(&mut self, id: JobId) {
        let Some(at) = self.part.job_row(id) else { return };
        let Some(slot) = self.part.jobs.rows.remove(at) else { return };
        let key = self.part.key(&id, at);
        self.part.jobs.unindex(key, slot.tenant, job_state_number(slot.state));
        slot.event_id.free(&mut self.part.texts);
        if let Some(extra) = slot.extra {
            self.part.job_extras.remove(index(extra));
        }
        self.shared.tenants.release(slot.tenant);
        self.shared.sources.release(slot.source);
    }

    fn cordon(&mut self, manager: ManagerId, host: Option<&HostId>, cordoned: bool) {
        let what = (manager, host.cloned());
        if cordoned {
            self.part.cordons.insert(what);
        } else {
            self.part.cordons.remove(&what);
        }
    }
}
