//! Decisions about jobs, at their home.

use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::codec;
use cellbus_bus::ids::{JobId, TenantId, VmId};
use cellbus_bus::job::{Job, Operation, Request, Target};
use cellbus_directory::record::{CancelledBy, IntentKey};
use cellbus_directory::work::Task;
use cellbus_directory::{Failure, FailureCode, JobState, Outcome, Record, VmSummary, Work};

use super::Shard;
use super::apply::{VMS_LISTED_MAX, children_share_a_manager};
use super::state::Timer;
use crate::input::Context;
use crate::item::{ControlItem, JobItem};
use crate::placement;

/// What no build writes.
const PACK_IN_PACK: &str = "the item is a pack of items within another";

impl Shard {
    pub(super) fn job_message(&mut self, ctx: &Context<'_>, message: &Bytes) {
        match JobItem::decode(message) {
            Ok(JobItem::Pack(items)) => {
                self.soft.jobs_per_message.read(items.len());
                items.iter().for_each(|item| self.job_item(ctx, JobItem::decode(item), item));
            }
            alone => {
                self.soft.jobs_per_message.read(1);
                self.job_item(ctx, alone, message);
            }
        }
    }

    fn job_item(&mut self, ctx: &Context<'_>, item: Result<JobItem, codec::Error>, body: &Bytes) {
        match item {
            Ok(JobItem::Job(job)) if job.id.shard(self.count) == self.id => self.intake(ctx, job),
            Ok(JobItem::Work(work)) if work.vm.shard(self.count) == self.id => self.work(ctx, work),
            Ok(JobItem::Job(_) | JobItem::Work(_)) => {
                self.put_aside(ctx, "jobs", "wrong_shard", "the item belongs on another shard's queue", body);
            }
            Ok(JobItem::Pack(_)) => self.put_aside(ctx, "jobs", "unreadable", PACK_IN_PACK, body),
            Err(error) => self.put_aside(ctx, "jobs", "unreadable", &error.to_string(), body),
        }
    }

    /// One that belongs elsewhere is left to whoever has handed it in, and who will not find it here.
    pub(super) fn handed(&mut self, ctx: &Context<'_>, job: Arc<Job>, bytes: usize) {
        if job.id.shard(self.count) != self.id {
            return;
        }
        self.intake(ctx, job);
        // Of one that is known nothing is recorded, and so nothing is to be appended.
        if self.soft.pending_at.is_some() {
            self.soft.pending_bytes += bytes;
        }
    }

    pub(super) fn control_message(&mut self, ctx: &Context<'_>, message: &Bytes) {
        match ControlItem::decode(message) {
            Ok(ControlItem::Pack(items)) => {
                items.iter().for_each(|item| self.control_item(ctx, ControlItem::decode(item), item));
            }
            alone => self.control_item(ctx, alone, message),
        }
    }

    fn control_item(&mut self, ctx: &Context<'_>, item: Result<ControlItem, codec::Error>, body: &Bytes) {
        match item {
            Ok(item) => self.control(ctx, item, body),
            Err(error) => self.put_aside(ctx, "control", "unreadable", &error.to_string(), body),
        }
    }

    fn control(&mut self, ctx: &Context<'_>, item: ControlItem, body: &Bytes) {
        match item {
            ControlItem::Pack(_) => self.put_aside(ctx, "control", "unreadable", PACK_IN_PACK, body),
            ControlItem::Report { job, index, outcome, vm } => self.reported(ctx, job, index, &outcome, vm),
            ControlItem::Watch { job, waiting } => {
                self.record(ctx, Record::Watched { job, waiting });
                if self.state.awaited.contains_key(&job) {
                    let patience = ctx.now.after(self.limits.predecessor_patience);
                    self.soft.timers.insert((patience, Timer::Patience(job, waiting)));
                }
            }
            ControlItem::PredecessorEnded { job, predecessor, succeeded } => {
                self.predecessor_ended(ctx, job, predecessor, succeeded);
            }
            ControlItem::Cancel { job, tenant, by } => self.cancel(ctx, job, tenant.as_ref(), by),
            ControlItem::CancelWork { vm, job, index } => self.cancel_work(ctx, vm, job, index),
            ControlItem::CancelAnswer { job, target: _, outcome } => {
                if self.job_is_open(job) {
                    self.record(ctx, Record::JobEnded { job, outcome, vms: Vec::new() });
                }
            }
            ControlItem::Observed { vm, manager } => self.observed(ctx, vm, manager),
            ControlItem::Unpark { vm, job: _, decision, by } => {
                if self.state.parked.contains(&vm) {
                    self.record(ctx, Record::Unparked { vm, decision, by });
                    self.advance(ctx, vm);
                }
            }
            ControlItem::CordonManager { manager, cordoned, by } => {
                self.record(ctx, Record::ManagerCordoned { manager, cordoned, by });
            }
            ControlItem::CordonHost { manager, host, cordoned, by } => {
                self.record(ctx, Record::HostCordoned { manager, host, cordoned, by });
            }
            ControlItem::FenceHost { manager, host, fenced, by } => self.fence_host(ctx, manager, host, fenced, by),
            ControlItem::SetManagerMode { manager, mode, by } => self.set_manager_mode(ctx, manager, mode, by),
            ControlItem::Release { vm, manager } => self.release(ctx, vm, manager),
            ControlItem::HostDied { vm, manager, from, to } => self.host_died(ctx, vm, manager, from, to),
            ControlItem::DeadLetter(letter) => self.record(ctx, Record::DeadLettered { letter }),
            ControlItem::DropDeadLetter { id, at, retried, by } => {
                match self.state.dead_letters.get(&id).map(|letter| letter.at == at) {
                    Some(true) => self.record(ctx, Record::DeadLetterDropped { id, retried, by }),
                    // Tried again, it is back already.
                    Some(false) if retried => {
                        self.record(ctx, Record::Changed { by, what: format!("retried dead letter {id}") })
                    }
                    Some(false) | None => {}
                }
            }
            ControlItem::Changed { by, what } => self.record(ctx, Record::Changed { by, what }),
            ControlItem::ScaleSet { settings, by } => self.record(ctx, Record::ScaleSet { settings, by }),
            ControlItem::ScaleLead { controller, lease } => self.would_lead(ctx, controller, lease),
            ControlItem::ScaleDecided { leader, decision } => self.scale_decided(ctx, &leader, decision),
            ControlItem::Found { vm, manager } => self.found_at(ctx, vm, manager),
            ControlItem::Audited { read, cleared } => self.managers_audited(ctx, &read, &cleared),
            ControlItem::Pause { scope, reason, by } => self.pause(ctx, scope, reason, by),
            ControlItem::Resume { scope, by } => self.resume(ctx, scope, by),
            ControlItem::ManagerMarked { manager, mark } => {
                if self.state.marks.get(&manager).is_none_or(|known| *known < mark) {
                    self.record(ctx, Record::ManagerMarked { manager, mark });
                }
            }
            ControlItem::CapacitySampled { sample } => {
                if self.state.capacity.due(ctx.now) {
                    self.record(ctx, Record::CapacitySampled { sample });
                }
            }
            ControlItem::DiskSampled { sample } => {
                if self.state.disk.due(ctx.now) {
                    self.record(ctx, Record::DiskSampled { sample });
                }
            }
        }
    }

    pub(super) fn job_is_open(&self, job: JobId) -> bool {
        self.state.jobs.get(&job).is_some_and(|entry| !entry.row.state.ended())
    }

    fn intake(&mut self, ctx: &Context<'_>, job: Arc<Job>) {
        let id = job.id;
        self.soft.touched.push(id);
        // The same key again is the same job; with other data it is a conflict, which whoever asks
        // sees by the digest. Either way nothing is recorded.
        if self.state.jobs.contains_key(&id) || self.state.keys.contains_key(&id) {
            return;
        }
        self.record(ctx, Record::JobAccepted { job: Arc::clone(&job) });
        if job.after.is_some() {
            if let Some(deadline) = self.deadline_of(&job) {
                self.soft.timers.insert((deadline, Timer::JobDeadline(id)));
            }
        } else {
            self.set_out(ctx, &job);
        }
    }

    /// The job waits for nothing any more: choose what must be chosen once, and let it go.
    pub(super) fn set_out(&mut self, ctx: &Context<'_>, job: &Arc<Job>) {
        let id = job.id;
        let waits = self.state.jobs.get(&id).is_some_and(|entry| entry.waiting);
        let only = match &job.request {
            Request::Provision(p) if children_share_a_manager(job) => match placement::for_group(ctx, &job.tenant, p) {
                Some(manager) => Some(manager),
                None => {
                    let again = ctx.now.after(self.limits.retry_first);
                    self.soft.timers.insert((again, Timer::Ready(id)));
                    return;
                }
            },
            Request::Provision(_) | Request::Operate(..) | Request::Cancel(_) => None,
        };
        if waits || only.is_some() {
            self.record(ctx, Record::JobReady { job: id, only });
        }
        match &job.request {
            Request::Provision(p) if p.count == 1 => self.enqueue(id.vm(0)),
            Request::Operate(Target::Id(vm), operation) => self.forward_locally(ctx, job, *vm, operation),
            Request::Provision(_) | Request::Operate(Target::Name(_), _) | Request::Cancel(_) => {}
        }
    }

    /// A VM whose home is here too needs no message.
    fn forward_locally(&mut self, ctx: &Context<'_>, job: &Arc<Job>, vm: VmId, operation: &Operation) {
        if vm.shard(self.count) != self.id {
            return;
        }
        let work = self.work_on(job, vm, operation);
        self.record(ctx, Record::JobForwarded { job: job.id });
        self.work(ctx, Arc::new(work));
    }

    pub(super) fn work_on(&self, job: &Job, vm: VmId, operation: &Operation) -> Work {
        let accepted_at = self.state.jobs.get(&job.id).map_or_else(Default::default, |entry| entry.row.accepted_at);
        Work {
            vm,
            job: job.id,
            index: 0,
            tenant: job.tenant.clone(),
            accepted_at,
            deadline_at: job.deadline.map(|d| accepted_at.after(d)),
            task: Task::Operate(operation.clone()),
        }
    }

    pub(super) fn resolved(&mut self, ctx: &Context<'_>, id: JobId, found: &[VmId]) {
        let Some(job) = self.state.jobs.get(&id).and_then(|entry| entry.body.clone()) else { return };
        let Request::Operate(Target::Name(name), operation) = &job.request else { return };
        if !self.job_is_open(id) {
            return;
        }
        let failure = match found {
            [vm] => {
                self.record(ctx, Record::JobResolved { job: id, vm: *vm });
                self.forward_locally(ctx, &job, *vm, operation);
                return;
            }
            [] => Failure::lasting(FailureCode::VmNotFound, format!("tenant {} has no VM named {name}", job.tenant)),
            _ => Failure::lasting(
                FailureCode::NameAmbiguous,
                format!("tenant {} has more than one VM named {name}; give its id instead", job.tenant),
            ),
        };
        self.record(ctx, Record::JobEnded { job: id, outcome: Outcome::Failed(failure), vms: Vec::new() });
    }

    pub(super) fn forwarded(&mut self, ctx: &Context<'_>, id: JobId) {
        if self.state.intents.contains(&IntentKey::Forward(id)) {
            self.soft.touched.push(id);
            self.record(ctx, Record::JobForwarded { job: id });
        }
    }

    fn predecessor_ended(&mut self, ctx: &Context<'_>, id: JobId, predecessor: JobId, succeeded: Option<bool>) {
        let Some(entry) = self.state.jobs.get(&id).filter(|entry| entry.waiting) else { return };
        let Some(job) = entry.body.clone() else { return };
        if job.after != Some(predecessor) {
            return;
        }
        self.soft.touched.push(id);
        let failure = match succeeded {
            Some(true) => {
                self.set_out(ctx, &job);
                return;
            }
            Some(false) => format!("job {predecessor}, named in `after`, did not succeed"),
            None => format!("job {predecessor}, named in `after`, is not known; submit it first, or check the id"),
        };
        let failure = Failure::lasting(FailureCode::PredecessorFailed, failure);
        self.record(ctx, Record::JobEnded { job: id, outcome: Outcome::Failed(failure), vms: Vec::new() });
    }

    fn cancel(&mut self, ctx: &Context<'_>, id: JobId, tenant: Option<&TenantId>, by: CancelledBy) {
        let known = self.state.jobs.get(&id).filter(|entry| tenant.is_none_or(|t| *t == entry.row.tenant));
        let Some(entry) = known else {
            self.refuse_cancel(ctx, id, tenant, by);
            return;
        };
        if entry.cancel.contains(&by) {
            return;
        }
        if entry.row.state.ended() {
            self.refuse_cancel(ctx, id, tenant, by);
            return;
        }
        let Some(job) = entry.body.clone() else { return };
        self.record(ctx, Record::JobCancelAsked { job: id, by });
        let Some(entry) = self.state.jobs.get(&id) else { return };
        let set_out = entry.forwarded || self.state.intents.contains(&IntentKey::Forward(id));
        match &job.request {
            _ if !set_out && !matches!(job.request, Request::Cancel(_)) => {
                self.record(ctx, Record::JobEnded { job: id, outcome: Outcome::Cancelled, vms: Vec::new() });
            }
            Request::Provision(p) if p.count == 1 => self.cancel_work(ctx, id.vm(0), id, 0),
            // Its VMs' homes are told: the intent that the record has opened.
            Request::Provision(_) | Request::Operate(..) => {}
            // A cancel is on its way or done; there is nothing to call off.
            Request::Cancel(_) => {}
        }
    }

    /// A cancel that comes too late, or is for no job, is answered at once.
    fn refuse_cancel(&mut self, ctx: &Context<'_>, target: JobId, tenant: Option<&TenantId>, by: CancelledBy) {
        let CancelledBy::Job(cancel) = by else { return };
        let state =
            self.state.jobs.get(&target).filter(|e| tenant.is_none_or(|t| *t == e.row.tenant)).map(|e| e.row.state);
        let outcome = cancel_outcome(target, state);
        self.record(ctx, Record::CancelAnswered { job: target, cancel, outcome });
    }

    /// The work on a VM is over; a job whose home is here too hears of it in the same entry.
    pub(super) fn work_over(&mut self, ctx: &Context<'_>, work: &Work, outcome: &Outcome) {
        if !work.for_a_job() || work.job.shard(self.count) != self.id {
            return;
        }
        let summary = self.summary(work.vm, outcome);
        self.reported(ctx, work.job, work.index, outcome, summary);
    }

    fn reported(&mut self, ctx: &Context<'_>, id: JobId, index: u32, outcome: &Outcome, vm: Option<VmSummary>) {
        let Some(entry) = self.state.jobs.get(&id).filter(|entry| !entry.row.state.ended()) else { return };
        self.soft.touched.push(id);
        if entry.row.vms_total <= 1 {
            let vms = vm.into_iter().collect();
            self.record(ctx, Record::JobEnded { job: id, outcome: outcome.clone(), vms });
            return;
        }
        let vm = vm.filter(|_| (index as usize) < VMS_LISTED_MAX);
        self.record(ctx, Record::ChildEnded { job: id, index, outcome: outcome.clone(), vm });
        let Some(entry) = self.state.jobs.get(&id) else { return };
        if entry.children_ended < entry.row.vms_total {
            return;
        }
        let total = entry.row.vms_total;
        let outcome = match (&entry.first_failure, entry.children_cancelled) {
            (Some(first), _) => Outcome::Failed(Failure {
                code: FailureCode::ChildrenFailed,
                message: format!("{} of {total} VMs failed; the first: {first}", entry.children_failed),
                step: first.step,
                retryable: first.retryable,
            }),
            (None, 0) => Outcome::Succeeded,
            (None, _) => Outcome::Cancelled,
        };
        let vms = entry.vms.iter().map(|(_, vm)| vm.clone()).collect();
        self.record(ctx, Record::JobEnded { job: id, outcome, vms });
    }
}

/// What a cancel job is told, given what its target has come to (`None`: there is no such job).
pub(super) fn cancel_outcome(target: JobId, state: Option<JobState>) -> Outcome {
    match state {
        Some(JobState::Cancelled) => Outcome::Succeeded,
        Some(state) => Outcome::Failed(Failure::lasting(
            FailureCode::NotCancellable,
            format!("job {target} has {state}: it had gone too far to be called off"),
        )),
        None => Outcome::Failed(Failure::lasting(
            FailureCode::JobNotFound,
            format!("there is no job {target} in the tenant"),
        )),
    }
}
