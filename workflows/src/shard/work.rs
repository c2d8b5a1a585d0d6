//! Decisions about the work on VMs: admission, which goes next, and what follows from an answer.

use std::sync::Arc;

use cellbus_bus::ids::{JobId, ManagerId, TenantId, VmId};
use cellbus_bus::job::{MigrateTo, Operation};
use cellbus_directory::record::IntentKey;
use cellbus_directory::work::Task;
use cellbus_directory::{Failure, FailureCode, Outcome, Record, Refusal, Step, StepResult, VmState, Work};

use super::Shard;
use super::run::Run;
use super::state::Timer;
use crate::action::{Answer, Later};
use crate::input::Context;
use crate::placement::{self, Choice};
use crate::sagas::{self, Next};

/// Calls that a shard has under way at once, whatever their managers: bounds its memory, not its speed.
const SLOTS_MAX: usize = 8_192;

/// Decisions for one VM in a row without a call or an end of its line; a handful a piece of work is usual.
const DECISIONS_MAX: usize = 10_000;

impl Shard {
    /// Work has come for a VM whose home is here. Sent again, it is admitted once.
    pub(super) fn work(&mut self, ctx: &Context<'_>, work: Arc<Work>) {
        let (vm, job) = (work.vm, work.job);
        if self.state.done.contains(&(vm, job)) {
            return;
        }
        let known = self.state.vms.get(&vm).filter(|entry| entry.vm.tenant == work.tenant);
        match (&work.task, known) {
            (Task::Create { .. }, Some(_)) => return,
            (Task::Create { .. }, None) => {}
            (Task::Adopt(adoption), _) => {
                if !self.may_adopt(ctx, &work, adoption) {
                    return;
                }
            }
            (
                Task::Operate(_) | Task::Inspect | Task::Failover { .. } | Task::Rehome { .. } | Task::DropStray { .. },
                Some(_),
            ) => {
                if self.soft.admitted.contains(&(vm, job)) {
                    return;
                }
            }
            (Task::Operate(_), None) => {
                let failure =
                    Failure::lasting(FailureCode::VmNotFound, format!("tenant {} has no VM {vm}", work.tenant));
                let outcome = Outcome::Failed(failure);
                self.record(ctx, Record::WorkDropped { vm, job, index: work.index, outcome: outcome.clone() });
                self.work_over(ctx, &work, &outcome);
                return;
            }
            (Task::Inspect | Task::Failover { .. } | Task::Rehome { .. } | Task::DropStray { .. }, None) => return,
        }
        if let Some(deadline) = work.deadline_at {
            self.soft.timers.insert((deadline, Timer::WorkDeadline(vm, job)));
        }
        self.record(ctx, Record::WorkAdmitted { work });
        self.enqueue(vm);
    }

    /// Something about a VM was observed: read it again, after all that is under way on it or waits.
    /// That may need no call, and what it reads may be older than what was observed.
    pub(super) fn observed(&mut self, ctx: &Context<'_>, vm: VmId, manager: ManagerId) {
        let Some(entry) = self.state.vms.get(&vm) else { return };
        let Some(home) = &entry.vm.home else { return };
        let (job, task) = if home.manager == manager {
            (JobId::from_uuid(uuid::Uuid::nil()), Task::Inspect)
        } else {
            // It may have been moved there behind Cellbus's back. A line of its own: a look at its home
            // that waits already is not this one.
            (JobId::from_uuid(manager.uuid()), Task::Rehome { manager })
        };
        let copy = entry.vm.other.as_ref().is_some_and(|other| other.manager == manager);
        // A look that waits already is enough.
        if copy || self.soft.admitted.contains(&(vm, job)) || entry.vm.is_deleted() {
            return;
        }
        let work =
            Work { vm, job, index: 0, tenant: entry.vm.tenant.clone(), accepted_at: ctx.now, deadline_at: None, task };
        self.record(ctx, Record::WorkAdmitted { work: Arc::new(work) });
        self.enqueue(vm);
    }

    /// The VM's head of line may start, if it is not under way.
    pub(super) fn enqueue(&mut self, vm: VmId) {
        if let Some(entry) = self.state.vms.get(&vm)
            && entry.run.is_none()
            && entry.line.len() == 1
            && let Some(head) = entry.head()
        {
            let tenant = head.tenant.clone();
            self.soft.ready.push(&tenant, vm);
        }
    }

    /// Starts what may start, fairly between tenants.
    pub(super) fn pump(&mut self, ctx: &Context<'_>) {
        if !self.soft.owner {
            return;
        }
        let slots_max = self.soft.slots_max.map_or(SLOTS_MAX, |max| max.min(SLOTS_MAX));
        while self.soft.slots_total < slots_max
            && !self.batch_full()
            && let Some(vm) = self.soft.ready.pop()
        {
            self.advance(ctx, vm);
        }
        // What a full batch leaves is looked at again when it has been taken.
        if !self.soft.ready.is_empty() && self.soft.slots_total < slots_max {
            self.soft.timers.insert((ctx.now, Timer::Pump));
        }
    }

    /// How many calls may be under way when more work is started; what goes on is not held up. Whoever
    /// allows more hands in an input afterwards.
    pub fn allow(&mut self, calls: usize) {
        self.soft.slots_max = Some(calls);
    }
    /// Calls under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.soft.slots_total
    }
    /// Work that may start as soon as more calls are allowed.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.soft.ready.len()
    }

    /// Takes the VM's workflow as far as it goes without an answer.
    pub(super) fn advance(&mut self, ctx: &Context<'_>, vm: VmId) {
        for _ in 0..DECISIONS_MAX {
            let Some(entry) = self.state.vms.get(&vm) else { return };
            let Some(head) = entry.head().cloned() else { return };
            if self.batch_full() && entry.run.is_none() {
                // A long line of work that needs no call: the rest goes into the next entry.
                self.soft.ready.push_front(&head.tenant, vm);
                self.soft.timers.insert((ctx.now, Timer::Pump));
                return;
            }
            if entry.vm.doing.is_some() || entry.run.as_ref().is_some_and(|run| run.parked.is_some()) {
                return;
            }
            let fresh = Run::new(Arc::clone(&head));
            let run = entry.run.as_deref().unwrap_or(&fresh);
            if head.deadline_at.is_some_and(|at| at <= ctx.now) {
                if run.nothing_made() {
                    self.end(ctx, &head, deadline_exceeded());
                    continue;
                }
                if run.moving_to.is_some() && !run.moved && run.undoing.is_none() && !run.has_done(Step::Copy) {
                    self.record(ctx, Record::Undoing { vm, cause: deadline_exceeded() });
                    continue;
                }
            }
            match sagas::next(&entry.vm, run, ctx.names) {
                Next::Call(step, manager) => {
                    if let Some(why) = self.held(step, Some(manager)).or_else(|| self.paused(ctx, step, Some(manager)))
                    {
                        self.hold_back(vm, why);
                        return;
                    }
                    if self.limited(&head.tenant, vm, step, manager) || self.begin(ctx, vm, &head, step, manager) {
                        return;
                    }
                    self.soft.behind.entry(manager).or_default().push(&head.tenant, vm);
                    return;
                }
                Next::Place(step, only) => {
                    if let Some(why) = self.held(step, None).or_else(|| self.paused(ctx, step, only)) {
                        self.hold_back(vm, why);
                        return;
                    }
                    match self.place(ctx, vm, &head, step, only) {
                        Placed::Done => return,
                        Placed::Ended(outcome) if step == Step::Create => self.end(ctx, &head, outcome),
                        Placed::Ended(outcome) => self.record(ctx, Record::Undoing { vm, cause: outcome }),
                    }
                }
                Next::Commit => self.record(ctx, Record::Moved { vm }),
                Next::Found(manager) => self.record(ctx, Record::VmFound { vm, manager }),
                Next::MoveBack => {
                    // What was stopped for the migrate is started again.
                    let settled = if run.has_done(Step::Quiesce) { VmState::Running } else { entry.vm.settled };
                    self.record(ctx, Record::MovedBack { vm, settled });
                }
                Next::Undo(cause) => self.record(ctx, Record::Undoing { vm, cause }),
                Next::Park(failure) => {
                    self.record(ctx, Record::Parked { vm, failure });
                    self.soft.touched.push(head.job);
                    return;
                }
                Next::End(outcome) => self.end(ctx, &head, outcome),
            }
        }
        // A saga that decides the same again and again would hold up its whole cell; as a panic it is
        // seen, and its message put aside.
        panic!("VM {vm}: {DECISIONS_MAX} decisions without a step");
    }

    /// The head's work is over; what waits behind it may start.
    fn end(&mut self, ctx: &Context<'_>, work: &Arc<Work>, outcome: Outcome) {
        self.soft.places.remove(&work.vm);
        self.soft.held.remove(&work.vm);
        let moved = self.look_for_strays(work);
        self.record(ctx, Record::WorkEnded { vm: work.vm, job: work.job, outcome: outcome.clone() });
        if let (Task::Adopt(_), Outcome::Failed(failure)) = (&work.task, &outcome) {
            self.not_adopted(ctx, work, "not_adopted", &failure.to_string());
        }
        self.work_over(ctx, work, &outcome);
        if let Some(manager) = moved {
            self.observed(ctx, work.vm, manager);
        }
        // An earlier try may have done what a later one failed to do: what is there is read, and that
        // it is to be read is in the log, which outlives whoever else might remember it.
        let failed = matches!(&outcome, Outcome::Failed(failure) if failure.code == FailureCode::ManagerFailed);
        let home = self.state.vms.get(&work.vm).and_then(|entry| entry.vm.home.as_ref()).map(|home| home.manager);
        if let Some(manager) = home.filter(|_| failed && work.for_a_job()) {
            self.observed(ctx, work.vm, manager);
        }
    }

    /// Begins a call, unless its manager has as many from this shard as it may.
    fn begin(&mut self, ctx: &Context<'_>, vm: VmId, work: &Arc<Work>, step: Step, manager: ManagerId) -> bool {
        if self.slots_of(manager) >= self.limits.in_flight_per_manager_max {
            return false;
        }
        let Some(entry) = self.state.vms.get(&vm) else { return true };
        let mut above = entry.vm.op.max(self.state.hold.ops_above);
        let mut host = None;
        match &work.task {
            Task::Operate(Operation::Migrate(MigrateTo::Host(to))) => host = Some(to.clone()),
            Task::Failover { to, .. } => host = Some(to.clone()),
            Task::DropStray { op, .. } => above = above.max(*op),
            Task::Operate(_) | Task::Create { .. } | Task::Inspect | Task::Adopt(_) | Task::Rehome { .. } => {}
        }
        let op = above.next();
        self.record(ctx, Record::StepBegun { vm, op, step, manager, host });
        self.take_slot(&IntentKey::Call(vm, op), manager);
        true
    }

    fn place(&mut self, ctx: &Context<'_>, vm: VmId, work: &Arc<Work>, step: Step, only: Option<ManagerId>) -> Placed {
        let ctx = &ctx.of(vm);
        let Some(entry) = self.state.vms.get(&vm) else { return Placed::Done };
        if let Some(found) = self.state.hold.found.get(&vm).copied().filter(|_| step == Step::Create) {
            // It is there: nothing is to be chosen, and no room to be looked for.
            if !self.begin(ctx, vm, work, step, found) {
                self.soft.behind.entry(found).or_default().push(&work.tenant, vm);
            }
            return Placed::Done;
        }
        let fresh = Run::new(Arc::clone(work));
        let run = entry.run.as_deref().unwrap_or(&fresh);
        let excluded: Vec<&Refusal> = run.refusals.iter().collect();
        let asked = placement::Asked {
            tenant: &entry.vm.tenant,
            size: entry.vm.size,
            template: &entry.vm.template,
            only,
            refusals: &excluded,
            sibling: placement::Sibling::of(work),
            patient: ctx.now.since(work.accepted_at) < self.limits.placement_patience,
        };
        let choice =
            placement::choose(ctx, &asked, |manager| self.slots_of(manager) < self.limits.in_flight_per_manager_max);
        match choice {
            Choice::Manager(manager) => {
                self.soft.places.remove(&vm);
                self.soft.held.remove(&vm);
                if !self.begin(ctx, vm, work, step, manager) {
                    self.soft.crowded.push(&work.tenant, vm);
                }
                Placed::Done
            }
            Choice::Crowded => {
                self.soft.crowded.push(&work.tenant, vm);
                Placed::Done
            }
            Choice::Later(why) => {
                let place = self.soft.places.entry(vm).or_default();
                place.0 += 1;
                place.1 = why;
                let pause = super::timers::backoff(&self.limits, place.0, ctx.random);
                self.soft.timers.insert((ctx.now.after(pause), Timer::Place(vm)));
                self.wait_for_managers(ctx, vm);
                Placed::Done
            }
            Choice::Nowhere(failure) => Placed::Ended(Outcome::Failed(failure.at(step))),
        }
    }

    // ── slots: calls under way at a manager ──

    fn slots_of(&self, manager: ManagerId) -> usize {
        self.soft.slots.get(&manager).copied().unwrap_or(0)
    }

    pub(super) fn take_slot(&mut self, intent: &IntentKey, manager: ManagerId) {
        let attempt = self.soft.attempts.entry(intent.clone()).or_default();
        attempt.count += 1;
        attempt.next_at = None;
        if !std::mem::replace(&mut attempt.holds_slot, true) {
            *self.soft.slots.entry(manager).or_default() += 1;
            self.soft.slots_total += 1;
        }
    }

    /// Gives the call's slot back, and lets in who waits for it.
    fn free_slot(&mut self, intent: &IntentKey, manager: ManagerId) {
        let held = self.soft.attempts.get_mut(intent).is_some_and(|a| std::mem::take(&mut a.holds_slot));
        if !held {
            return;
        }
        if let Some(slots) = self.soft.slots.get_mut(&manager) {
            *slots -= 1;
        }
        self.soft.slots_total -= 1;
        let waiting = self.soft.behind.get_mut(&manager).and_then(super::fair::FairQueue::pop);
        if self.soft.behind.get(&manager).is_some_and(super::fair::FairQueue::is_empty) {
            self.soft.behind.remove(&manager);
        }
        if let Some(vm) = waiting.or_else(|| self.soft.crowded.pop())
            && let Some(tenant) = self.tenant_of(vm)
        {
            self.soft.ready.push_front(&tenant, vm);
        }
    }

    fn tenant_of(&self, vm: VmId) -> Option<TenantId> {
        self.state.vms.get(&vm).and_then(|entry| entry.head()).map(|work| work.tenant.clone())
    }

    // ── answers ──

    pub(super) fn call_answered(&mut self, ctx: &Context<'_>, intent: &IntentKey, answer: Answer) {
        let IntentKey::Call(vm, op) = *intent else { return };
        let Some(doing) = self.state.vms.get(&vm).and_then(|e| e.vm.doing.clone()).filter(|d| d.op == op) else {
            return;
        };
        self.free_slot(intent, doing.manager);
        self.limit_answered(vm, doing.manager, &answer);
        let result = match answer {
            Answer::Present(facts) => StepResult::Present(facts),
            Answer::Absent => StepResult::Absent,
            Answer::Refused(refusal) => StepResult::Refused(refusal),
            Answer::Failed(failure) => StepResult::Failed(failure.at(doing.step)),
            Answer::Later(later) => {
                self.later(ctx, intent, &later);
                return;
            }
        };
        self.step_over(ctx, vm, op, doing.step, result);
    }

    fn step_over(
        &mut self,
        ctx: &Context<'_>,
        vm: VmId,
        op: cellbus_bus::ids::OpNumber,
        step: Step,
        result: StepResult,
    ) {
        self.record(ctx, Record::StepEnded { vm, op, result });
        let differs =
            matches!(step, Step::Inspect | Step::Adopt) && self.state.intents.contains(&IntentKey::VmEvent(vm, op));
        if differs && let Some(entry) = self.state.vms.get(&vm) {
            self.soft.touched.push(entry.vm.job);
        }
        self.advance(ctx, vm);
    }

    /// No answer that says anything: the same call again, to the same manager, after a pause.
    fn later(&mut self, ctx: &Context<'_>, intent: &IntentKey, later: &Later) {
        let IntentKey::Call(vm, _) = *intent else { return };
        let pause = {
            let attempt = self.soft.attempts.entry(intent.clone()).or_default();
            attempt.detail = format!("{}: {}", later.reason.as_str(), later.detail);
            attempt.next_at = Some(ctx.now);
            match later.after {
                // Whoever names a pause knows for how long: it makes no later pause longer.
                Some(after) => {
                    attempt.named += 1;
                    after
                }
                None => {
                    let count = attempt.count.saturating_sub(attempt.named);
                    super::timers::backoff(&self.limits, count, ctx.random)
                }
            }
        };
        if self.withdraw(ctx, vm) || self.pause_call(ctx, vm, later) {
            return;
        }
        let at = ctx.now.after(pause);
        if let Some(attempt) = self.soft.attempts.get_mut(intent) {
            attempt.next_at = Some(at);
        }
        self.soft.timers.insert((at, Timer::Retry(intent.clone())));
    }

    /// Another try of a call: counted, in its slot, and asking for what is wanted by now.
    pub(super) fn try_again(&mut self, ctx: &Context<'_>, intent: &IntentKey, vm: VmId, manager: ManagerId) {
        self.take_slot(intent, manager);
        let withdraw = self.not_wanted(ctx, vm);
        if let Some(attempt) = self.soft.attempts.get_mut(intent) {
            attempt.withdraw = withdraw;
        }
    }

    /// Whether the call under way on the VM is for nothing by now: the deadline of its work has
    /// passed, or it is cancelled. Never so for what undoes, or goes on past a commit point.
    fn not_wanted(&self, ctx: &Context<'_>, vm: VmId) -> bool {
        let Some(entry) = self.state.vms.get(&vm) else { return false };
        let (Some(doing), Some(run)) = (&entry.vm.doing, &entry.run) else { return false };
        if run.undoing.is_some() || run.moved || run.abandoned.is_some() {
            return false;
        }
        let over = run.cancel || run.work.deadline_at.is_some_and(|at| at <= ctx.now);
        over && match doing.step {
            Step::Create
            | Step::Copy
            | Step::Start
            | Step::Stop
            | Step::Restart
            | Step::Suspend
            | Step::Resume
            | Step::Resize
            | Step::Snapshot
            | Step::Revert
            | Step::SnapshotDelete
            | Step::Relocate
            | Step::Quiesce
            | Step::Delete => true,
            Step::UndoCreate
            | Step::StartCopy
            | Step::DropSource
            | Step::UndoCopy
            | Step::UndoQuiesce
            | Step::Inspect
            | Step::CheckCopy
            | Step::CheckSource
            | Step::Failover
            | Step::Adopt
            | Step::CheckStray
            | Step::CheckHome
            | Step::DropStray => false,
        }
    }

    /// A call that waits for its next try and is not wanted any more is asked to be taken back, at
    /// once. Only the manager's owner knows whether it has begun; this shard would have to guess,
    /// and a copy that is still on its way could be carried out after the job was called off.
    pub(super) fn withdraw(&mut self, ctx: &Context<'_>, vm: VmId) -> bool {
        let Some(doing) = self.state.vms.get(&vm).and_then(|e| e.vm.doing.clone()) else { return false };
        let intent = IntentKey::Call(vm, doing.op);
        let waits = self.soft.attempts.get(&intent).is_some_and(|a| !a.withdraw && a.next_at.is_some());
        if !waits || !self.not_wanted(ctx, vm) {
            return false;
        }
        self.soft.held.remove(&vm);
        self.try_again(ctx, &intent, vm, doing.manager);
        self.soft.retries.push(intent);
        true
    }

    /// The head's work is to be over if it has done nothing so far.
    pub(super) fn take_back(&mut self, ctx: &Context<'_>, vm: VmId) {
        if self.state.vms.get(&vm).is_some_and(|e| e.vm.doing.is_none()) {
            self.advance(ctx, vm);
        } else {
            self.withdraw(ctx, vm);
        }
    }

    // ── cancel ──

    pub(super) fn cancel_work(&mut self, ctx: &Context<'_>, vm: VmId, job: JobId, index: u32) {
        if self.state.done.contains(&(vm, job)) {
            return;
        }
        let place = self.state.vms.get(&vm).map(|entry| {
            let under_way = entry.run.as_ref().is_some_and(|run| run.work.job == job);
            let waiting = entry.line.iter().find(|w| w.job == job).cloned();
            (under_way, waiting)
        });
        match place {
            Some((true, _)) => {
                self.record(ctx, Record::WorkCancelAsked { vm, job });
                self.take_back(ctx, vm);
            }
            Some((false, Some(work))) => {
                self.record(ctx, Record::WorkDropped { vm, job, index, outcome: Outcome::Cancelled });
                self.work_over(ctx, &work, &Outcome::Cancelled);
            }
            // It has not come yet. When it does, it is known to be over.
            Some((false, None)) | None => {
                self.record(ctx, Record::WorkDropped { vm, job, index, outcome: Outcome::Cancelled });
                if job.shard(self.count) == self.id {
                    let work = Work {
                        vm,
                        job,
                        index,
                        tenant: match self.state.jobs.get(&job) {
                            Some(entry) => entry.row.tenant.clone(),
                            None => return,
                        },
                        accepted_at: ctx.now,
                        deadline_at: None,
                        task: Task::Operate(Operation::Delete),
                    };
                    self.work_over(ctx, &work, &Outcome::Cancelled);
                }
            }
        }
    }
}

enum Placed {
    /// A call was begun, or the VM waits for its turn.
    Done,
    /// There is no place.
    Ended(Outcome),
}

fn deadline_failure() -> Failure {
    Failure::lasting(FailureCode::DeadlineExceeded, "its deadline passed before any call to a manager was made")
}

pub(super) fn deadline_exceeded() -> Outcome {
    Outcome::Failed(deadline_failure())
}
