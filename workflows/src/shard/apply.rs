//! The one function that changes the durable state: what each record means.
//!
//! It runs the same on a live owner and in a replay. It may open intents; it decides nothing.

use std::sync::Arc;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{JobId, OpNumber, VmId};
use cellbus_bus::job::{Job, Notify, Request, Target};
use cellbus_directory::record::{CancelledBy, DeadLetter, IntentKey, ParkedDecision};
use cellbus_directory::vm::Doing;
use cellbus_directory::work::Task;
use cellbus_directory::{
    Failure, FailureCode, JobRow, JobState, Outcome, Record, Step, StepResult, Template, Vm, VmState, VmSummary, Work,
};

use super::run::Run;
use super::scale;
use super::state::{Durable, Happened, JobEntry, Report, VmEntry};
use super::{CHANGES_MAX, Change, DEAD_LETTERS_MAX, Shard};
use crate::sagas::migrate;

/// An outcome lists this many VMs; the rest is paged through.
pub(crate) const VMS_LISTED_MAX: usize = 100;

impl Shard {
    pub(super) fn apply_record(&mut self, at: WallMs, record: &Record) {
        match record {
            Record::Opened { .. } | Record::Snapshot { .. } => {}
            Record::JobAccepted { job } => self.job_accepted(at, job),
            Record::JobReady { job, only } => self.job_ready(at, *job, *only),
            Record::JobResolved { job, vm } => self.job_resolved(*job, *vm),
            Record::JobForwarded { job } => self.job_forwarded(*job),
            Record::Watched { job, waiting } => self.watched(*job, *waiting),
            Record::WatchGivenUp { job, waiting } => {
                if let Some(waiters) = self.state.awaited.get_mut(job) {
                    waiters.retain(|w| w != waiting);
                    if waiters.is_empty() {
                        self.state.awaited.remove(job);
                    }
                    self.open(IntentKey::TellWaiting(*job, *waiting));
                }
            }
            Record::ChildEnded { job, index, outcome, vm } => self.child_ended(*job, *index, outcome, vm.as_ref()),
            Record::JobCancelAsked { job, by } => self.job_cancel_asked(*job, by),
            Record::CancelAnswered { job, cancel, outcome } => {
                self.state.cancel_answers.insert((*job, *cancel), outcome.clone());
                self.open(IntentKey::AnswerCancel(*job, *cancel));
            }
            Record::JobEnded { job, outcome, vms } => self.job_ended(at, *job, outcome, vms),
            Record::JobsRetired { jobs } => jobs.iter().for_each(|job| self.job_retired(*job)),
            Record::JobsForgotten { jobs } => jobs.iter().for_each(|job| {
                self.state.keys.remove(job);
                if self.state.keys_order.front().is_some_and(|(_, front)| front == job) {
                    self.state.keys_order.pop_front();
                }
            }),
            Record::WorkAdmitted { work } => self.work_admitted(at, work),
            Record::StepBegun { vm, op, step, manager, host: _ } => {
                if let Some(entry) = self.state.vms.get_mut(vm) {
                    entry.vm.step_begun(Doing { op: *op, step: *step, manager: *manager }, at);
                    entry.happened(at, Happened::Called(*step));
                    if let Some(run) = run_mut(entry) {
                        run.step_begun(*step, *manager);
                    }
                    if matches!(step, Step::Create | Step::Adopt) {
                        // It is known there from here on.
                        self.state.hold.found.remove(vm);
                    }
                    self.own_job(*vm, JobRow::under_way);
                    self.open(IntentKey::Call(*vm, *op));
                }
            }
            Record::StepEnded { vm, op, result } => self.step_ended(at, *vm, *op, result),
            Record::Moved { vm } => {
                if let Some(entry) = self.state.vms.get_mut(vm) {
                    entry.vm.moved(at);
                    entry.happened(at, Happened::Moved);
                    if let Some(run) = run_mut(entry) {
                        run.moved = true;
                    }
                }
            }
            Record::MovedBack { vm, settled } => {
                if let Some(entry) = self.state.vms.get_mut(vm) {
                    entry.vm.moved_back(*settled, at);
                    entry.happened(at, Happened::Undoing);
                    if let Some(run) = run_mut(entry) {
                        run.moved = false;
                        run.undoing = Some(migrate::copy_lost());
                    }
                }
            }
            Record::Undoing { vm, cause } => {
                if let Some(entry) = self.state.vms.get_mut(vm) {
                    entry.happened(at, Happened::Undoing);
                    if let Some(run) = run_mut(entry) {
                        run.undoing = Some(cause.clone());
                        run.failure = None;
                    }
                }
            }
            Record::Parked { vm, failure } => {
                if let Some(entry) = self.state.vms.get_mut(vm) {
                    entry.happened(at, Happened::Parked);
                    if let Some(run) = run_mut(entry) {
                        run.parked = Some(failure.clone());
                    }
                    self.state.parked.insert(*vm);
                    self.own_job(*vm, JobRow::parked);
                }
            }
            Record::Unparked { vm, decision, by } => {
                self.unparked(at, *vm, *decision);
                self.changed(
                    at,
                    by,
                    format!(
                        "{} parked work of VM {vm}",
                        match decision {
                            ParkedDecision::Retry => "retried",
                            ParkedDecision::Abandon => "abandoned",
                        }
                    ),
                );
            }
            Record::WorkEnded { vm, job, outcome } => self.work_ended(at, *vm, *job, outcome),
            Record::WorkCancelAsked { vm, job } => {
                if let Some(run) = self.state.vms.get_mut(vm).and_then(run_mut).filter(|run| run.work.job == *job) {
                    run.cancel = true;
                }
            }
            Record::WorkDropped { vm, job, index, outcome } => self.work_dropped(at, *vm, *job, *index, outcome),
            Record::WorkReported { vm, job } => {
                self.close(&IntentKey::Report(*vm, *job));
                self.state.reports.remove(&(*vm, *job));
            }
            Record::WorksForgotten { works } => works.iter().for_each(|work| {
                self.state.done.remove(work);
                if self.state.done_order.front().is_some_and(|(_, vm, job)| (*vm, *job) == *work) {
                    self.state.done_order.pop_front();
                }
            }),
            Record::VmsForgotten { vms } => vms.iter().for_each(|vm| {
                if let Some(entry) = self.state.vms.remove(vm)
                    && !entry.vm.is_deleted()
                {
                    self.soft.vms_live -= 1;
                }
                if self.state.tombstones.front().is_some_and(|(_, front)| front == vm) {
                    self.state.tombstones.pop_front();
                }
            }),
            Record::ManagerCordoned { manager, cordoned, by } => {
                self.cordon((*manager, None), *cordoned);
                self.changed(
                    at,
                    by,
                    format!("{} manager {manager}", if *cordoned { "cordoned" } else { "uncordoned" }),
                );
            }
            Record::HostCordoned { manager, host, cordoned, by } => {
                self.cordon((*manager, Some(host.clone())), *cordoned);
                self.changed(at, by, format!("{} host {host}", if *cordoned { "cordoned" } else { "uncordoned" }));
            }
            Record::IntentClosed { intent } => {
                self.close(intent);
                match intent {
                    IntentKey::OutcomeEvent(job) => {
                        if let Some(entry) = self.state.jobs.get_mut(job) {
                            entry.body = None;
                        }
                    }
                    IntentKey::AnswerCancel(job, cancel) => {
                        self.state.cancel_answers.remove(&(*job, *cancel));
                    }
                    IntentKey::Watch(_)
                    | IntentKey::Resolve(_)
                    | IntentKey::Forward(_)
                    | IntentKey::PassCancel(_)
                    | IntentKey::TellWaiting(..)
                    | IntentKey::AcceptedEvent(_)
                    | IntentKey::Call(..)
                    | IntentKey::Report(..)
                    | IntentKey::VmEvent(..) => {}
                }
            }
            Record::DeadLettered { letter } => self.dead_lettered(letter),
            Record::DeadLetterDropped { id, retried, by } => {
                self.state.dead_letters.remove(id);
                self.changed(at, by, format!("{} dead letter {id}", if *retried { "retried" } else { "dropped" }));
            }
            Record::Changed { by, what } => self.changed(at, by, what.clone()),
            Record::ScaleSet { settings, by } => {
                self.changed(at, by, scale::in_words(settings));
                self.state.scale.set(at, settings, by);
            }
            Record::ScaleLed { leader } => self.state.scale.led(leader),
            Record::ScaleDecided { decision, .. } => self.state.scale.decided(decision),
            Record::Paused { scope, reason, by } => {
                let mut what = format!("paused {}", scope.in_words(None));
                if !reason.is_empty() {
                    what.push_str(": ");
                    what.push_str(reason);
                }
                self.changed(at, by, what);
                self.state.pauses.apply(at, record);
            }
            Record::Resumed { scope, by } => {
                self.changed(at, by, format!("resumed {}", scope.in_words(None)));
                self.state.pauses.apply(at, record);
            }
            Record::CapacitySampled { sample } => self.state.capacity.add(at, sample),
            Record::ManagerModeSet { manager, mode, by } => {
                self.state.modes.insert(*manager, *mode);
                self.changed(at, by, format!("set manager {manager} to {mode}"));
            }
            Record::DiskSampled { sample } => self.state.disk.add(at, sample),
            Record::ManagerMarked { manager, mark } => {
                self.state.marks.insert(*manager, *mark);
            }
            Record::HostFenced { manager, host, fenced, by } => {
                let which = (*manager, host.clone());
                if *fenced {
                    self.state.fenced.insert(which);
                    self.changed(at, by, format!("called host {host} dead"));
                } else {
                    self.state.fenced.remove(&which);
                    self.changed(at, by, format!("took back that host {host} is dead"));
                }
            }
            Record::VmFound { vm, manager } => self.vm_found(at, *vm, *manager),
            Record::ManagersAudited { read, cleared, all_read, over } => self.audited(read, cleared, *all_read, *over),
        }
    }

    fn open(&mut self, intent: IntentKey) {
        if self.state.intents.insert(intent.clone()) && self.soft.owner {
            self.soft.opened.push(intent);
        }
    }

    fn close(&mut self, intent: &IntentKey) {
        self.state.intents.remove(intent);
        if self.soft.owner {
            self.soft.attempts.remove(intent);
        }
    }

    fn cordon(&mut self, what: (cellbus_bus::ids::ManagerId, Option<cellbus_bus::ids::HostId>), on: bool) {
        if on {
            self.state.cordons.insert(what);
        } else {
            self.state.cordons.remove(&what);
        }
    }

    fn changed(&mut self, at: WallMs, by: &cellbus_directory::record::Operator, what: String) {
        if self.state.changes.len() == CHANGES_MAX {
            self.state.changes.pop_front();
        }
        self.state.changes.push_back(Change { at, by: by.clone(), what });
    }

    fn dead_lettered(&mut self, letter: &Arc<DeadLetter>) {
        // The oldest makes room: the bound is stated, and the alert comes long before it.
        if self.state.dead_letters.len() >= DEAD_LETTERS_MAX
            && let Some(oldest) = self.state.dead_letters.values().min_by_key(|l| (l.at, l.id)).map(|l| l.id)
        {
            self.state.dead_letters.remove(&oldest);
        }
        self.state.dead_letters.insert(letter.id, Arc::clone(letter));
    }

    // ── jobs ──

    fn job_accepted(&mut self, at: WallMs, job: &Arc<Job>) {
        let row = JobRow::accepted(job, at);
        let children = match &job.request {
            Request::Provision(p) if p.count > 1 => vec![0; (p.count as usize).div_ceil(64)],
            Request::Provision(_) | Request::Operate(..) | Request::Cancel(_) => Vec::new(),
        };
        let waiting = job.after.is_some();
        let choosing = children_share_a_manager(job);
        self.soft.jobs_open += 1;
        let mut entry = JobEntry {
            row,
            digest: job.digest,
            body: Some(Arc::clone(job)),
            vms: Vec::new(),
            children,
            children_ended: 0,
            children_failed: 0,
            children_cancelled: 0,
            first_failure: None,
            only: None,
            forwarded: false,
            waiting,
            cancel: Vec::new(),
            watchers: Vec::new(),
            ended_seq: None,
        };
        if let Some(waiters) = self.state.awaited.remove(&job.id) {
            entry.watchers = waiters;
        }
        self.state.jobs.insert(job.id, entry);
        if job.notify == Notify::Accepted {
            self.open(IntentKey::AcceptedEvent(job.id));
        }
        if waiting {
            self.open(IntentKey::Watch(job.id));
        } else if !choosing {
            self.job_goes_on(at, job, None);
        }
    }

    fn job_ready(&mut self, at: WallMs, id: JobId, only: Option<cellbus_bus::ids::ManagerId>) {
        let Some(entry) = self.state.jobs.get_mut(&id) else { return };
        let Some(job) = entry.body.clone() else { return };
        entry.waiting = false;
        entry.only = only;
        if let Some(vm) = entry.row.ready(at) {
            self.add_vm(vm);
        }
        self.close(&IntentKey::Watch(id));
        self.job_goes_on(at, &job, only);
    }

    pub(super) fn add_vm(&mut self, vm: Vm) {
        if let std::collections::hash_map::Entry::Vacant(place) = self.state.vms.entry(vm.id) {
            place.insert(VmEntry::new(vm));
            self.soft.vms_live += 1;
        }
    }

    /// Nothing holds the job back any more: its work goes to its VMs.
    fn job_goes_on(&mut self, at: WallMs, job: &Arc<Job>, only: Option<cellbus_bus::ids::ManagerId>) {
        match &job.request {
            Request::Provision(p) if p.count == 1 => {
                let work = Work {
                    vm: job.id.vm(0),
                    job: job.id,
                    index: 0,
                    tenant: job.tenant.clone(),
                    accepted_at: at,
                    deadline_at: self.deadline_of(job),
                    task: Task::Create {
                        name: p.name.clone(),
                        size: p.size,
                        template: Arc::new(Template::of(p)),
                        power: p.power,
                        only,
                        of: 1,
                    },
                };
                if let Some(entry) = self.state.jobs.get_mut(&job.id) {
                    entry.forwarded = true;
                    entry.row.forwarded();
                }
                self.work_admitted(at, &Arc::new(work));
            }
            Request::Provision(_) | Request::Operate(Target::Id(_), _) => self.open(IntentKey::Forward(job.id)),
            Request::Operate(Target::Name(_), _) => self.open(IntentKey::Resolve(job.id)),
            Request::Cancel(_) => self.open(IntentKey::PassCancel(job.id)),
        }
    }

    /// Deadlines count from acceptance of the job, also for one that waited for another.
    pub(super) fn deadline_of(&self, job: &Job) -> Option<WallMs> {
        let accepted = self.state.jobs.get(&job.id)?.row.accepted_at;
        job.deadline.map(|d| accepted.after(d))
    }

    fn job_resolved(&mut self, id: JobId, vm: VmId) {
        self.close(&IntentKey::Resolve(id));
        if let Some(entry) = self.state.jobs.get_mut(&id) {
            entry.row.vm = Some(vm);
            self.open(IntentKey::Forward(id));
        }
    }

    fn job_forwarded(&mut self, id: JobId) {
        self.close(&IntentKey::Forward(id));
        if let Some(entry) = self.state.jobs.get_mut(&id) {
            entry.forwarded = true;
            entry.row.forwarded();
        }
    }

    fn watched(&mut self, job: JobId, waiting: JobId) {
        match self.state.jobs.get_mut(&job) {
            Some(entry) if entry.row.state.ended() => self.open(IntentKey::TellWaiting(job, waiting)),
            Some(entry) => {
                if !entry.watchers.contains(&waiting) {
                    entry.watchers.push(waiting);
                }
            }
            None if self.state.keys.contains_key(&job) => self.open(IntentKey::TellWaiting(job, waiting)),
            None => {
                let waiters = self.state.awaited.entry(job).or_default();
                if !waiters.contains(&waiting) {
                    waiters.push(waiting);
                }
            }
        }
    }

    fn child_ended(&mut self, job: JobId, index: u32, outcome: &Outcome, vm: Option<&VmSummary>) {
        let Some(entry) = self.state.jobs.get_mut(&job) else { return };
        let (word, bit) = (index as usize / 64, index % 64);
        let Some(word) = entry.children.get_mut(word) else { return };
        if *word & (1 << bit) != 0 {
            return;
        }
        *word |= 1 << bit;
        entry.children_ended += 1;
        match outcome {
            Outcome::Succeeded => {}
            Outcome::Failed(failure) => {
                entry.children_failed += 1;
                entry.first_failure.get_or_insert_with(|| failure.clone());
            }
            Outcome::Cancelled => entry.children_cancelled += 1,
        }
        if let Some(vm) = vm
            && (index as usize) < VMS_LISTED_MAX
        {
            let at = entry.vms.partition_point(|(other, _)| *other < index);
            entry.vms.insert(at, (index, vm.clone()));
        }
        entry.row.under_way();
    }

    fn job_cancel_asked(&mut self, job: JobId, by: &CancelledBy) {
        let Some(entry) = self.state.jobs.get_mut(&job) else { return };
        entry.cancel.push(by.clone());
        let local = matches!(entry.body.as_deref().map(|j| &j.request), Some(Request::Provision(p)) if p.count == 1);
        let on_its_way = !entry.waiting && (entry.forwarded || self.state.intents.contains(&IntentKey::Forward(job)));
        if on_its_way && !local {
            self.open(IntentKey::PassCancel(job));
        }
    }

    fn job_ended(&mut self, at: WallMs, id: JobId, outcome: &Outcome, vms: &[VmSummary]) {
        let Some(entry) = self.state.jobs.get_mut(&id) else { return };
        if entry.row.state.ended() {
            return;
        }
        entry.row.ended(outcome, at);
        if !vms.is_empty() {
            entry.vms = (0..).zip(vms.iter().cloned()).collect();
        }
        let count = (entry.row.kind, entry.row.state);
        let (cancels, watchers) = (std::mem::take(&mut entry.cancel), std::mem::take(&mut entry.watchers));
        entry.children = Vec::new();
        entry.waiting = false;
        self.soft.jobs_open -= 1;
        *self.soft.ended_counts.entry(count).or_default() += 1;
        self.state.ended.push_back((at, id));
        for intent in [IntentKey::Watch(id), IntentKey::Resolve(id), IntentKey::Forward(id), IntentKey::PassCancel(id)]
        {
            self.close(&intent);
        }
        for by in cancels {
            match by {
                CancelledBy::Job(cancel) => self.open(IntentKey::AnswerCancel(id, cancel)),
                CancelledBy::Operator(_) | CancelledBy::Parent(_) => {}
            }
        }
        for waiting in watchers {
            self.open(IntentKey::TellWaiting(id, waiting));
        }
        self.open(IntentKey::OutcomeEvent(id));
        if self.soft.owner {
            self.soft.touched.push(id);
        }
    }

    fn job_retired(&mut self, id: JobId) {
        if self.state.ended.front().is_some_and(|(_, front)| *front == id)
            && let Some((at, _)) = self.state.ended.pop_front()
            && let Some(entry) = self.state.jobs.remove(&id)
        {
            self.state.keys.insert(id, (entry.digest, entry.row.state));
            self.state.keys_order.push_back((at, id));
        }
    }

    // ── VMs ──

    fn work_admitted(&mut self, at: WallMs, work: &Arc<Work>) {
        if let Task::Create { name, size, template, .. } = &work.task {
            let (tenant, template) = (work.tenant.clone(), Arc::clone(template));
            self.add_vm(Vm::planned(work.vm, work.job, tenant, name.clone(), *size, template, at));
        }
        if let Task::Adopt(adoption) = &work.task {
            self.adopted(at, work, adoption);
        }
        let Some(entry) = self.state.vms.get_mut(&work.vm) else { return };
        match &work.task {
            Task::Create { .. } => entry.happened(at, Happened::Accepted(cellbus_bus::job::JobKind::Provision)),
            Task::Operate(operation) => entry.happened(at, Happened::Accepted(operation.kind())),
            Task::Inspect | Task::Failover { .. } | Task::Adopt(_) | Task::Rehome { .. } | Task::DropStray { .. } => {}
        }
        entry.line.push_back(Arc::clone(work));
        self.soft.admitted.insert((work.vm, work.job));
    }

    fn step_ended(&mut self, at: WallMs, vm: VmId, op: OpNumber, result: &StepResult) {
        self.close(&IntentKey::Call(vm, op));
        let Some(entry) = self.state.vms.get_mut(&vm) else { return };
        let Some(doing) = entry.vm.doing.clone().filter(|d| d.op == op) else { return };
        let before = (entry.vm.settled, entry.vm.home.clone(), entry.vm.size);
        entry.vm.step_ended(op, result, at);
        entry.happened(
            at,
            match result {
                StepResult::Present(_) | StepResult::Absent => Happened::Done(doing.step),
                StepResult::Refused(_) => Happened::Refused(doing.step),
                StepResult::Failed(_) => Happened::Failed(doing.step),
            },
        );
        // One event for all that no job did: the last step says what has come of it.
        let mut failed_over = false;
        if let Some(run) = run_mut(entry) {
            run.step_ended(doing.step, result);
            failed_over = doing.step == Step::Start && matches!(run.work.task, Task::Failover { .. });
        }
        let differs = before != (entry.vm.settled, entry.vm.home.clone(), entry.vm.size);
        let was_deleted = before.0 == VmState::Deleted;
        if failed_over || matches!(doing.step, Step::Inspect | Step::Adopt) && differs {
            self.open(IntentKey::VmEvent(vm, op));
        }
        self.bury(at, vm, was_deleted);
    }

    /// A VM that was not a tombstone may have become one.
    fn bury(&mut self, at: WallMs, vm: VmId, was_deleted: bool) {
        if !was_deleted && self.state.vms.get(&vm).is_some_and(|entry| entry.vm.is_deleted()) {
            self.soft.vms_live = self.soft.vms_live.saturating_sub(1);
            self.state.tombstones.push_back((at, vm));
        }
    }

    /// The row of the provision for one VM that makes this VM: what happens to the VM happens for it.
    fn own_job(&mut self, vm: VmId, change: impl FnOnce(&mut JobRow)) {
        if let Some(entry) = self.state.jobs.get_mut(&JobId::from_uuid(vm.uuid()))
            && entry.row.makes_its_own_vm()
        {
            change(&mut entry.row);
        }
    }

    fn unparked(&mut self, at: WallMs, vm: VmId, decision: ParkedDecision) {
        self.state.parked.remove(&vm);
        self.own_job(vm, JobRow::unparked);
        let Some(entry) = self.state.vms.get_mut(&vm) else { return };
        entry.happened(at, Happened::Unparked);
        let Some(run) = run_mut(entry) else { return };
        run.parked = None;
        run.failure = None;
        // What was found then may not be so any more.
        run.done.retain(|step| !matches!(step, Step::CheckCopy | Step::CheckSource));
        if decision == ParkedDecision::Abandon {
            run.abandoned = Some(Outcome::Failed(Failure::lasting(
                FailureCode::Abandoned,
                "an operator gave it up; what was done so far was left as it is, an audit shows it",
            )));
            entry.vm.given_up();
        }
    }

    fn work_ended(&mut self, at: WallMs, vm: VmId, job: JobId, outcome: &Outcome) {
        let Some(entry) = self.state.vms.get_mut(&vm) else { return };
        let work = match entry.run.take() {
            Some(run) if run.work.job == job => run.work,
            Some(other) => {
                entry.run = Some(other);
                return;
            }
            // It ended before it began.
            None => match entry.line.pop_front_if(|front| front.job == job) {
                Some(work) => work,
                None => return,
            },
        };
        self.work_is_over(at, &work, outcome);
    }

    fn work_dropped(&mut self, at: WallMs, vm: VmId, job: JobId, index: u32, outcome: &Outcome) {
        let waiting = self.state.vms.get_mut(&vm).and_then(|entry| {
            let place = entry.line.iter().position(|w| w.job == job)?;
            entry.line.remove(place)
        });
        if let Some(work) = waiting {
            self.work_is_over(at, &work, outcome);
        } else if self.state.done.insert((vm, job)) {
            // It has not come yet: when it does, it is known to be over.
            self.state.done_order.push_back((at, vm, job));
            self.report(vm, job, index, outcome);
        }
    }

    fn work_is_over(&mut self, at: WallMs, work: &Work, outcome: &Outcome) {
        self.soft.admitted.remove(&(work.vm, work.job));
        if self.soft.owner {
            self.soft.work_ended += 1;
        }
        if let Some(entry) = self.state.vms.get_mut(&work.vm) {
            let was_deleted = entry.vm.is_deleted();
            entry.vm.work_ended(work.job, outcome, at);
            if !work.only_looks() {
                entry.happened(at, Happened::Ended(JobState::of(outcome)));
            }
            self.bury(at, work.vm, was_deleted);
        }
        self.finished(at, work, outcome);
    }

    /// Remembers that the work is over, and opens the report to the job's home.
    fn finished(&mut self, at: WallMs, work: &Work, outcome: &Outcome) {
        if !work.for_a_job() {
            return;
        }
        if self.state.done.insert((work.vm, work.job)) {
            self.state.done_order.push_back((at, work.vm, work.job));
        }
        self.report(work.vm, work.job, work.index, outcome);
    }

    fn report(&mut self, vm: VmId, job: JobId, index: u32, outcome: &Outcome) {
        // A job whose home is here hears of it in the same entry: see `jobs::work_over`.
        if job.shard(self.count) == self.id {
            return;
        }
        let summary = self.summary(vm, outcome);
        self.state.reports.insert((vm, job), Report { index, outcome: outcome.clone(), vm: summary });
        self.open(IntentKey::Report(vm, job));
    }

    /// What is told of a VM to a job that is over. To one that was told that there is no such VM,
    /// nothing: it may be there, and another tenant's.
    pub(super) fn summary(&self, vm: VmId, outcome: &Outcome) -> Option<VmSummary> {
        if let Outcome::Failed(failure) = outcome
            && failure.code == FailureCode::VmNotFound
        {
            return None;
        }
        let vm = &self.state.vms.get(&vm)?.vm;
        Some(VmSummary {
            id: vm.id,
            name: vm.name.clone(),
            home: vm.home.clone(),
            state: vm.state(),
            // Filled in when the report goes out: the entry that holds this has no number yet.
            seq: cellbus_bus::ids::Seq::ZERO,
        })
    }
}

/// The workflow at the head of the line, begun if it was not.
fn run_mut(entry: &mut VmEntry) -> Option<&mut Run> {
    if entry.run.is_none() {
        let work = entry.line.pop_front()?;
        entry.run = Some(Box::new(Run::new(work)));
    }
    entry.run.as_deref_mut()
}

/// Whether all VMs of the job must go on one manager, which then is chosen once.
pub(super) fn children_share_a_manager(job: &Job) -> bool {
    match &job.request {
        Request::Provision(p) => p.count > 1 && p.policy.affinity.is_some(),
        Request::Operate(..) | Request::Cancel(_) => false,
    }
}

/// Work that has not ended, for a fresh owner.
pub(super) fn admitted(state: &Durable) -> super::state::Set<(VmId, JobId)> {
    #[expect(clippy::iter_over_hash_type, reason = "a set is the same in any order")]
    let works = {
        let mut works = super::state::Set::default();
        for entry in state.vms.values() {
            works.extend(entry.run.iter().map(|run| &run.work).chain(&entry.line).map(|work| (work.vm, work.job)));
        }
        works
    };
    works
}
