//! The fold of one shard's log into rows: what each record means to whoever lists and looks up.
//!
//! ```text
//!  Entry ─▶ Fence (does it count?) ─▶ apply ─▶ Rows: VMs, jobs, cordons
//! ```
//!
//! [`apply`] decides; [`Rows`] holds. The directory's replica holds rows in a tight form,
//! [`Tables`] in plain maps, as a yardstick for it and for tests. What a record does to one VM or
//! one job is a method of [`Vm`] or [`JobRow`], which the shard's owner calls too.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cellbus_bus::contract::Position;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, HostId, JobId, ManagerId, Seq, VmId};

use crate::job::JobRow;
use crate::record::{Entry, ParkedDecision, Record, VmSummary};
use crate::snapshot::ShardSnapshot;
use crate::vm::{Doing, Vm};
use crate::work::{Outcome, Task};

/// Tells entries that count from those of an owner that had been replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Fence {
    epoch: Epoch,
}

impl Fence {
    /// After the `Opened` of this epoch.
    #[must_use]
    pub const fn at(epoch: Epoch) -> Self {
        Self { epoch }
    }
    /// The epoch of the last `Opened` that counted.
    #[must_use]
    pub const fn epoch(self) -> Epoch {
        self.epoch
    }
    /// Whether the entry counts. One that opens the shard counts only if its epoch is new (of two
    /// cells that claim the same one, where the bus has no compare-and-set, the first has it);
    /// any other unless its epoch is older than the last that was opened.
    pub fn admits(&mut self, entry: &Entry) -> bool {
        if entry.records.iter().any(|record| matches!(record, Record::Opened { .. })) {
            let new = entry.epoch > self.epoch;
            self.epoch = self.epoch.max(entry.epoch);
            new
        } else {
            entry.epoch >= self.epoch
        }
    }
}

/// Where the rows of one shard are kept.
pub trait Rows {
    /// Adds a VM, unless one with its id is known.
    fn add_vm(&mut self, vm: Vm);
    /// Changes a VM, if it is known.
    fn change_vm(&mut self, id: VmId, change: impl FnOnce(&mut Vm));
    /// Drops a VM.
    fn forget_vm(&mut self, id: VmId);
    /// Adds a job, unless one with its id is known.
    fn add_job(&mut self, row: JobRow);
    /// Changes a job, if it is known, and gives what `change` gave.
    fn change_job<T>(&mut self, id: JobId, change: impl FnOnce(&mut JobRow) -> T) -> Option<T>;
    /// Ends a job, if it is known. `vms` say how far the shards of its VMs must have been read for
    /// a reader to find them as the outcome says.
    fn end_job(&mut self, id: JobId, outcome: &Outcome, vms: &[VmSummary], at: WallMs) {
        let _ = vms;
        self.change_job(id, |row| row.ended(outcome, at));
    }
    /// Drops a job.
    fn retire_job(&mut self, id: JobId);
    /// Cordons a manager (no host given) or a host, or takes that back.
    fn cordon(&mut self, manager: ManagerId, host: Option<&HostId>, cordoned: bool);
}

/// Folds an entry that counts ([`Fence::admits`]).
pub fn apply(rows: &mut impl Rows, entry: &Entry) {
    for record in &entry.records {
        apply_record(rows, entry.at, record);
    }
}

fn apply_record(rows: &mut impl Rows, at: WallMs, record: &Record) {
    match record {
        Record::JobAccepted { job } => {
            // One that waits for another job makes its VM when it may go on (`JobRow::ready`).
            if job.after.is_none()
                && let Some(vm) = Vm::of_single(job, at)
            {
                rows.add_vm(vm);
            }
            rows.add_job(JobRow::accepted(job, at));
        }
        Record::JobReady { job, .. } => {
            if let Some(vm) = rows.change_job(*job, |row| row.ready(at)).flatten() {
                rows.add_vm(vm);
            }
        }
        Record::JobResolved { job, vm } => {
            rows.change_job(*job, |row| row.resolved(*vm));
        }
        Record::JobForwarded { job } => {
            rows.change_job(*job, JobRow::forwarded);
        }
        Record::ChildEnded { job, .. } => {
            rows.change_job(*job, JobRow::under_way);
        }
        Record::JobEnded { job, outcome, vms } => rows.end_job(*job, outcome, vms, at),
        Record::JobsRetired { jobs } | Record::JobsForgotten { jobs } => {
            jobs.iter().for_each(|job| rows.retire_job(*job));
        }

        Record::WorkAdmitted { work } => match &work.task {
            Task::Create { name, size, template, .. } => rows.add_vm(Vm::planned(
                work.vm,
                work.job,
                work.tenant.clone(),
                name.clone(),
                *size,
                std::sync::Arc::clone(template),
                at,
            )),
            Task::Adopt(adoption) => adopted(rows, Vm::adopted(work, adoption, at)),
            Task::Operate(_) | Task::Inspect | Task::Failover { .. } | Task::Rehome { .. } | Task::DropStray { .. } => {
            }
        },
        Record::StepBegun { vm, op, step, manager, host: _ } => {
            rows.change_vm(*vm, |row| row.step_begun(Doing { op: *op, step: *step, manager: *manager }, at));
            change_own_job(rows, *vm, JobRow::under_way);
        }
        Record::StepEnded { vm, op, result } => rows.change_vm(*vm, |row| row.step_ended(*op, result, at)),
        Record::Moved { vm } => rows.change_vm(*vm, |row| row.moved(at)),
        Record::MovedBack { vm, settled } => rows.change_vm(*vm, |row| row.moved_back(*settled, at)),
        Record::VmFound { vm, manager } => rows.change_vm(*vm, |row| {
            row.found_at(*manager, at);
        }),
        Record::Parked { vm, .. } => change_own_job(rows, *vm, JobRow::parked),
        Record::Unparked { vm, decision, .. } => {
            match decision {
                ParkedDecision::Retry => {}
                ParkedDecision::Abandon => rows.change_vm(*vm, Vm::given_up),
            }
            change_own_job(rows, *vm, JobRow::unparked);
        }
        Record::WorkEnded { vm, job, outcome } | Record::WorkDropped { vm, job, outcome, .. } => {
            // Most work succeeds, and that changes no row.
            if !outcome.succeeded() {
                rows.change_vm(*vm, |row| row.work_ended(*job, outcome, at));
            }
        }
        Record::VmsForgotten { vms } => vms.iter().for_each(|vm| rows.forget_vm(*vm)),

        Record::ManagerCordoned { manager, cordoned, .. } => rows.cordon(*manager, None, *cordoned),
        Record::HostCordoned { manager, host, cordoned, .. } => rows.cordon(*manager, Some(host), *cordoned),

        Record::Opened { .. }
        | Record::Watched { .. }
        | Record::WatchGivenUp { .. }
        | Record::JobCancelAsked { .. }
        | Record::CancelAnswered { .. }
        | Record::WorkCancelAsked { .. }
        | Record::WorksForgotten { .. }
        | Record::Undoing { .. }
        | Record::WorkReported { .. }
        | Record::IntentClosed { .. }
        | Record::DeadLettered { .. }
        | Record::DeadLetterDropped { .. }
        | Record::Changed { .. }
        | Record::ScaleSet { .. }
        | Record::ScaleLed { .. }
        | Record::ScaleDecided { .. }
        | Record::ManagersAudited { .. }
        | Record::Paused { .. }
        | Record::Resumed { .. }
        | Record::CapacitySampled { .. }
        | Record::ManagerModeSet { .. }
        | Record::DiskSampled { .. }
        | Record::ManagerMarked { .. }
        | Record::HostFenced { .. }
        | Record::Snapshot { .. } => {}
    }
}

/// A VM is taken in, in the place of its tombstone if there is one.
fn adopted(rows: &mut impl Rows, vm: Vm) {
    let mut buried = None;
    rows.change_vm(vm.id, |known| buried = known.is_deleted().then_some(known.op));
    let Some(op) = buried else { return rows.add_vm(vm) };
    rows.forget_vm(vm.id);
    rows.add_vm(Vm { op: vm.op.max(op), ..vm });
}

/// A provision for one VM has the VM's id and is the first work on it: until it has ended, what
/// happens to the VM happens for it. The homes of other jobs hear of their work by reports.
fn change_own_job(rows: &mut impl Rows, vm: VmId, change: impl FnOnce(&mut JobRow)) {
    rows.change_job(JobId::from_uuid(vm.uuid()), |row| {
        if row.makes_its_own_vm() {
            change(row);
        }
    });
}

/// The rows of one shard in plain, ordered maps.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tables {
    /// How far the log has been read.
    pub seq: Seq,
    /// What counts from here on.
    pub fence: Fence,
    /// VMs, tombstones included.
    pub vms: BTreeMap<VmId, Vm>,
    /// Jobs.
    pub jobs: BTreeMap<JobId, JobRow>,
    /// Cordoned managers (no host) and hosts.
    pub cordons: BTreeSet<(ManagerId, Option<HostId>)>,
}

impl Tables {
    /// What a snapshot says.
    #[must_use]
    pub fn of(snapshot: ShardSnapshot) -> Self {
        Self {
            seq: snapshot.seq,
            fence: Fence::at(snapshot.epoch),
            vms: snapshot.vms.into_iter().map(|vm| (vm.id, vm)).collect(),
            jobs: snapshot.jobs.into_iter().map(|job| (job.id, job)).collect(),
            cordons: snapshot.cordons.into_iter().collect(),
        }
    }
    /// As a snapshot without what only the state machine needs.
    #[must_use]
    pub fn snapshot(&self) -> ShardSnapshot {
        ShardSnapshot {
            seq: self.seq,
            epoch: self.fence.epoch(),
            jobs_read: Position::default(),
            control_read: Position::default(),
            vms: self.vms.values().cloned().collect(),
            jobs: self.jobs.values().cloned().collect(),
            cordons: self.cordons.iter().cloned().collect(),
            machine: Bytes::new(),
        }
    }
    /// Folds the entry with this sequence; whether it counted.
    pub fn apply(&mut self, seq: Seq, entry: &Entry) -> bool {
        self.seq = seq;
        let counts = self.fence.admits(entry);
        if counts {
            apply(self, entry);
        }
        counts
    }
}

impl Rows for Tables {
    fn add_vm(&mut self, vm: Vm) {
        self.vms.entry(vm.id).or_insert(vm);
    }
    fn change_vm(&mut self, id: VmId, change: impl FnOnce(&mut Vm)) {
        if let Some(vm) = self.vms.get_mut(&id) {
            change(vm);
        }
    }
    fn forget_vm(&mut self, id: VmId) {
        self.vms.remove(&id);
    }
    fn add_job(&mut self, row: JobRow) {
        self.jobs.entry(row.id).or_insert(row);
    }
    fn change_job<T>(&mut self, id: JobId, change: impl FnOnce(&mut JobRow) -> T) -> Option<T> {
        self.jobs.get_mut(&id).map(change)
    }
    fn retire_job(&mut self, id: JobId) {
        self.jobs.remove(&id);
    }
    fn cordon(&mut self, manager: ManagerId, host: Option<&HostId>, cordoned: bool) {
        let what = (manager, host.cloned());
        if cordoned {
            self.cordons.insert(what);
        } else {
            self.cordons.remove(&what);
        }
    }
}

#[cfg(test)]
mod tests;
