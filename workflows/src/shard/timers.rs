//! Time: retries with backoff, deadlines, retention. All of it soft, and armed again by a new owner.

use std::time::Duration;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{JobId, VmId};
use cellbus_directory::record::IntentKey;
use cellbus_directory::{Outcome, Record};

use super::state::Timer;
use super::{Limits, Shard};
use crate::input::{Context, EffectAnswer};

/// Jobs or VMs that one tick lets go of: bounds the entry.
const SWEEP_MAX: usize = 1_000;
/// How often retention is looked after.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// The pause before try `count + 1`: doubled each time up to the most, and spread over its upper
/// half, so that many that failed together do not come back together.
pub(super) fn backoff(limits: &Limits, count: u32, random: u64) -> Duration {
    let doubled = limits.retry_first.saturating_mul(1 << count.saturating_sub(1).min(16)).min(limits.retry_max);
    let half = doubled / 2;
    let spread = u64::try_from(half.as_millis()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_millis(random % spread)
}

impl Shard {
    /// What a new owner must do again: all open effects, all timers, all waiting work.
    pub(super) fn rearm(&mut self, ctx: &Context<'_>) {
        self.soft.retries.clear();
        for intent in self.state.intents.iter().cloned().collect::<Vec<_>>() {
            if let IntentKey::Call(vm, op) = intent
                && let Some(doing) = self.state.vms.get(&vm).and_then(|e| e.vm.doing.clone()).filter(|d| d.op == op)
            {
                if self.hold_call_back(vm, &doing) {
                    continue;
                }
                self.try_again(ctx, &intent, vm, doing.manager);
            }
            self.soft.retries.push(intent);
        }
        let mut waiting: Vec<VmId> = self
            .state
            .vms
            .values()
            .filter(|entry| entry.head().is_some() && entry.vm.doing.is_none())
            .map(|entry| entry.vm.id)
            .collect();
        // In the order accepted, as before.
        waiting.sort_unstable_by_key(|vm| (self.state.vms.get(vm).and_then(|e| e.head()).map(|w| w.accepted_at), *vm));
        for vm in waiting {
            if let Some(tenant) = self.state.vms.get(&vm).and_then(|e| e.head()).map(|w| w.tenant.clone()) {
                self.soft.ready.push(&tenant, vm);
            }
        }
        let mut timers: Vec<(WallMs, Timer)> = Vec::new();
        let mut ready: Vec<JobId> = Vec::new();
        #[expect(clippy::iter_over_hash_type, reason = "what it fills is sorted")]
        for entry in self.state.vms.values() {
            for work in entry.run.iter().map(|r| &r.work).chain(&entry.line) {
                timers.extend(work.deadline_at.map(|at| (at, Timer::WorkDeadline(work.vm, work.job))));
            }
        }
        #[expect(clippy::iter_over_hash_type, reason = "what it fills is sorted")]
        for entry in self.state.jobs.values() {
            let Some(job) = entry.body.as_ref().filter(|_| !entry.row.state.ended()) else { continue };
            if entry.waiting {
                timers.extend(job.deadline.map(|d| (entry.row.accepted_at.after(d), Timer::JobDeadline(job.id))));
            } else if super::apply::children_share_a_manager(job) && !entry.forwarded && entry.only.is_none() {
                ready.push(job.id);
            }
        }
        ready.sort_unstable();
        timers.extend(ready.into_iter().map(|job| (ctx.now, Timer::Ready(job))));
        for (job, waiters) in &self.state.awaited {
            let patience = ctx.now.after(self.limits.predecessor_patience);
            timers.extend(waiters.iter().map(|w| (patience, Timer::Patience(*job, *w))));
        }
        self.soft.leader_heard = ctx.now;
        timers.push((ctx.now.after(SWEEP_EVERY), Timer::Sweep));
        self.soft.timers.extend(timers);
    }

    pub(super) fn tick(&mut self, ctx: &Context<'_>) {
        while let Some((at, _)) = self.soft.timers.first()
            && *at <= ctx.now
            && !self.batch_full()
            && let Some((at, timer)) = self.soft.timers.pop_first()
        {
            self.due(ctx, at, timer);
        }
    }

    fn due(&mut self, ctx: &Context<'_>, at: WallMs, timer: Timer) {
        match timer {
            Timer::Retry(intent) => {
                if !self.state.intents.contains(&intent) {
                    return;
                }
                // Somebody may have been in more of a hurry than this timer.
                if let IntentKey::Call(vm, _) = &intent
                    && let Some(doing) = self.state.vms.get(vm).and_then(|e| e.vm.doing.clone())
                {
                    if self.soft.attempts.get(&intent).is_some_and(|attempt| attempt.next_at != Some(at)) {
                        return;
                    }
                    self.try_again(ctx, &intent, *vm, doing.manager);
                }
                self.soft.retries.push(intent);
            }
            Timer::Place(vm) => self.advance(ctx, vm),
            // Whoever hands an input in pumps afterwards.
            Timer::Pump => {}
            Timer::Sweep => {
                self.sweep(ctx);
                self.soft.timers.insert((ctx.now.after(SWEEP_EVERY), Timer::Sweep));
            }
            Timer::Pauses => self.look_at_pauses(ctx),
            Timer::Ready(id) => {
                let job = self.state.jobs.get(&id).filter(|e| !e.row.state.ended()).and_then(|e| e.body.clone());
                if let Some(job) = job {
                    self.set_out(ctx, &job);
                }
            }
            Timer::WorkDeadline(vm, job) => self.work_deadline(ctx, vm, job),
            Timer::JobDeadline(id) => {
                if self.state.jobs.get(&id).is_some_and(|e| e.waiting && !e.row.state.ended()) {
                    let outcome = super::work::deadline_exceeded();
                    self.record(ctx, Record::JobEnded { job: id, outcome, vms: Vec::new() });
                }
            }
            Timer::Patience(job, waiting) => {
                if self.state.awaited.get(&job).is_some_and(|w| w.contains(&waiting)) {
                    self.record(ctx, Record::WatchGivenUp { job, waiting });
                }
            }
        }
    }

    fn work_deadline(&mut self, ctx: &Context<'_>, vm: VmId, job: JobId) {
        let Some(entry) = self.state.vms.get(&vm) else { return };
        if entry.head().is_some_and(|head| head.job == job) {
            self.take_back(ctx, vm);
            return;
        }
        let Some(work) = entry.line.iter().find(|w| w.job == job).cloned() else { return };
        let outcome: Outcome = super::work::deadline_exceeded();
        self.record(ctx, Record::WorkDropped { vm, job, index: work.index, outcome: outcome.clone() });
        self.work_over(ctx, &work, &outcome);
    }

    /// Retention: old jobs leave the lists, then their keys and tombstones go.
    fn sweep(&mut self, ctx: &Context<'_>) {
        let old = |at: &WallMs, keep: Duration| ctx.now.since(*at) > keep;
        let limits = self.limits.clone();
        let retired: Vec<JobId> = self
            .state
            .ended
            .iter()
            .take(SWEEP_MAX)
            .take_while(|(at, _)| old(at, limits.job_retention))
            // A job whose outcome is not out yet is still needed.
            .take_while(|(_, id)| !self.state.intents.contains(&IntentKey::OutcomeEvent(*id)))
            .map(|(_, id)| *id)
            .collect();
        if !retired.is_empty() {
            self.record(ctx, Record::JobsRetired { jobs: retired });
        }
        let keys: Vec<JobId> = self
            .state
            .keys_order
            .iter()
            .take(SWEEP_MAX)
            .take_while(|(at, _)| old(at, limits.remember))
            .map(|(_, id)| *id)
            .collect();
        if !keys.is_empty() {
            self.record(ctx, Record::JobsForgotten { jobs: keys });
        }
        let vms: Vec<VmId> = self
            .state
            .tombstones
            .iter()
            .take(SWEEP_MAX)
            .take_while(|(at, _)| old(at, limits.remember))
            .map(|(_, id)| *id)
            .collect();
        if !vms.is_empty() {
            self.record(ctx, Record::VmsForgotten { vms });
        }
        let works: Vec<(VmId, JobId)> = self
            .state
            .done_order
            .iter()
            .take(SWEEP_MAX)
            .take_while(|(at, ..)| old(at, limits.remember))
            .map(|(_, vm, job)| (*vm, *job))
            .collect();
        if !works.is_empty() {
            self.record(ctx, Record::WorksForgotten { works });
        }
    }

    pub(super) fn answered(&mut self, ctx: &Context<'_>, intent: IntentKey, answer: EffectAnswer) {
        if !self.state.intents.contains(&intent) {
            return;
        }
        match answer {
            EffectAnswer::Call(answer) => self.call_answered(ctx, &intent, answer),
            EffectAnswer::Resolved(found) => {
                if let IntentKey::Resolve(job) = intent {
                    self.resolved(ctx, job, &found);
                }
            }
            EffectAnswer::Published => self.published(ctx, intent),
            EffectAnswer::Failed { detail } => {
                let attempt = self.soft.attempts.entry(intent.clone()).or_default();
                attempt.count += 1;
                attempt.detail = detail;
                let at = ctx.now.after(backoff(&self.limits, attempt.count, ctx.random));
                attempt.next_at = Some(at);
                self.soft.timers.insert((at, Timer::Retry(intent)));
            }
        }
    }

    fn published(&mut self, ctx: &Context<'_>, intent: IntentKey) {
        match intent {
            IntentKey::Forward(job) => self.forwarded(ctx, job),
            IntentKey::Report(vm, job) => self.record(ctx, Record::WorkReported { vm, job }),
            IntentKey::Watch(_)
            | IntentKey::PassCancel(_)
            | IntentKey::AnswerCancel(..)
            | IntentKey::TellWaiting(..)
            | IntentKey::OutcomeEvent(_)
            | IntentKey::AcceptedEvent(_)
            | IntentKey::VmEvent(..) => {
                self.record(ctx, Record::IntentClosed { intent });
            }
            // These are answered otherwise.
            IntentKey::Resolve(_) | IntentKey::Call(..) => {}
        }
    }
}
