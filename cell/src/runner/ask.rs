//! Questions to a shard, answered only from what is durable.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use cellbus_bus::ids::{JobId, VmId};
use cellbus_directory::capacity::Histories;
use cellbus_directory::record::DeadLetter;
use cellbus_workflows::{Change, Scale, Shard, Stats, VmExplanation};
use foldhash::fast::FixedState;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::gather::Gather;
use crate::peers::{Decision, JobAnswer, Until, VmAnswer, WorkAnswer};
use crate::spans::Context as TraceContext;

/// Jobs that are waited for in one shard. Beyond this, whoever asks is answered as things are.
const WAITERS_MAX: usize = 200_000;

/// A question. Those that go over many shards fill their slots of what is gathered.
pub(crate) enum Ask {
    Jobs { items: Vec<(usize, JobId)>, until: Until, answers: Arc<Gather<JobAnswer>> },
    Decided { items: Vec<(usize, JobId)>, once: Once, answers: Arc<Gather<Decision>> },
    Vms { items: Vec<(usize, VmId)>, answers: Arc<Gather<VmAnswer>> },
    Works { items: Vec<(usize, (VmId, JobId))>, answers: Arc<Gather<Option<WorkAnswer>>> },
    Parked(usize, Arc<Gather<Vec<(JobId, VmId)>>>),
    Explain(VmId, oneshot::Sender<Option<Box<VmExplanation>>>),
    Stats(usize, Arc<Gather<Stats>>),
    DeadLetters(usize, Arc<Gather<Vec<Arc<DeadLetter>>>>),
    Changes(usize, Arc<Gather<Vec<Change>>>),
    Scale { limit: usize, before: Option<u64>, back: oneshot::Sender<Box<Scale>> },
    Capacity(oneshot::Sender<Box<Histories>>),
    Traces { items: Vec<(usize, JobId)>, answers: Arc<Gather<Option<Option<TraceContext>>>> },
}

/// Once what, it is told what became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Once {
    /// It is known.
    Known,
    /// It is known, and not `queued`.
    Decided,
}

impl Ask {
    /// The shard is not open here.
    pub(crate) fn not_open(self) {
        match self {
            Self::Jobs { items, answers, .. } => {
                items.iter().for_each(|(index, _)| answers.fill(*index, JobAnswer::NotMine))
            }
            Self::Decided { items, answers, .. } => {
                items.iter().for_each(|(index, _)| answers.fill(*index, Decision::NotMine))
            }
            Self::Vms { items, answers } => items.iter().for_each(|(index, _)| answers.fill(*index, VmAnswer::NotMine)),
            Self::Works { items, answers } => items.iter().for_each(|(index, _)| answers.fill(*index, None)),
            Self::Traces { items, answers } => items.iter().for_each(|(index, _)| answers.fill(*index, None)),
            // Whoever asks is told by the slot that stays empty, or the dropped sender.
            Self::Explain(..)
            | Self::Parked(..)
            | Self::Stats(..)
            | Self::DeadLetters(..)
            | Self::Changes(..)
            | Self::Scale { .. }
            | Self::Capacity(_) => {}
        }
    }
}

struct Waiter {
    index: usize,
    wants: Wants,
}
/// Weak: whoever has given up waiting leaves nothing behind for long.
enum Wants {
    Status(Until, Weak<Gather<JobAnswer>>),
    Decision(Once, Weak<Gather<Decision>>),
}

/// Those who wait for jobs of one shard.
#[derive(Default)]
pub(super) struct Waiters {
    by_job: HashMap<JobId, SmallVec<[Waiter; 1]>, FixedState>,
    count: usize,
}

impl Waiters {
    /// Answers a question, or keeps it until a job has come so far.
    pub(super) fn ask(&mut self, shard: &Shard, ask: Ask) {
        match ask {
            Ask::Jobs { items, until, answers } => {
                for (index, job) in items {
                    let waiter = Waiter { index, wants: Wants::Status(until, Arc::downgrade(&answers)) };
                    self.look(shard, job, waiter);
                }
            }
            Ask::Decided { items, once, answers } => {
                for (index, job) in items {
                    let waiter = Waiter { index, wants: Wants::Decision(once, Arc::downgrade(&answers)) };
                    self.look(shard, job, waiter);
                }
            }
            Ask::Vms { items, answers } => {
                for (index, vm) in items {
                    let known = shard.vm(&vm).map_or(VmAnswer::Unknown, |vm| VmAnswer::Known(Box::new(vm.clone())));
                    answers.fill(index, known);
                }
            }
            Ask::Works { items, answers } => {
                for (index, (vm, job)) in items {
                    let work = shard.work_on_vm(&vm, &job);
                    answers.fill(index, work.map(|(state, waits_for)| WorkAnswer { state, waits_for }));
                }
            }
            Ask::Parked(index, answers) => answers.fill(index, shard.parked_work().collect()),
            Ask::Explain(vm, back) => {
                // Whoever asked may have gone.
                let _ = back.send(shard.explain_vm(&vm).map(Box::new));
            }
            Ask::Stats(index, answers) => answers.fill(index, shard.stats()),
            Ask::DeadLetters(index, answers) => answers.fill(index, shard.dead_letters()),
            Ask::Changes(index, answers) => answers.fill(index, shard.changes()),
            Ask::Scale { limit, before, back } => {
                // Whoever asked may have gone.
                let _ = back.send(Box::new(shard.scale().newest(limit, before)));
            }
            Ask::Capacity(back) => {
                // Likewise.
                let _ = back.send(Box::new(shard.capacity()));
            }
            Ask::Traces { items, answers } => {
                for (index, job) in items {
                    answers.fill(index, shard.job_extensions(&job).map(TraceContext::of));
                }
            }
        }
    }

    /// Jobs have moved on: those who wait for them look again.
    pub(super) fn touched(&mut self, shard: &Shard, jobs: &[JobId]) {
        if self.count == 0 {
            return;
        }
        for job in jobs {
            if let Some(waiting) = self.by_job.remove(job) {
                self.count -= waiting.len();
                waiting.into_iter().for_each(|waiter| self.look(shard, *job, waiter));
            }
        }
    }

    /// The shard is closed here: those who wait look elsewhere.
    pub(super) fn not_open(self) {
        self.by_job.into_values().flatten().for_each(|waiter| match waiter.wants {
            Wants::Status(_, answers) => {
                if let Some(answers) = answers.upgrade() {
                    answers.fill(waiter.index, JobAnswer::NotMine);
                }
            }
            Wants::Decision(_, answers) => {
                if let Some(answers) = answers.upgrade() {
                    answers.fill(waiter.index, Decision::NotMine);
                }
            }
        });
    }

    /// Forgets those who have given up.
    pub(super) fn sweep(&mut self) {
        self.by_job.retain(|_, waiting| {
            waiting.retain(|waiter| match &waiter.wants {
                Wants::Status(_, answers) => answers.strong_count() > 0,
                Wants::Decision(_, answers) => answers.strong_count() > 0,
            });
            !waiting.is_empty()
        });
        self.count = self.by_job.values().map(SmallVec::len).sum();
    }

    fn look(&mut self, shard: &Shard, job: JobId, waiter: Waiter) {
        let full = self.count >= WAITERS_MAX;
        let settled = match &waiter.wants {
            Wants::Status(until, answers) => {
                let Some(answers) = answers.upgrade() else { return };
                let status = shard.job(&job);
                let settled = full
                    || match (&status, until) {
                        (_, Until::Now) => true,
                        (None, Until::Decided | Until::Ended) => false,
                        (Some(status), Until::Decided) => status.row.state != cellbus_directory::JobState::Queued,
                        (Some(status), Until::Ended) => status.row.state.ended(),
                    };
                if settled {
                    let answer = match status {
                        Some(status) => JobAnswer::Known(Box::new(status)),
                        None => JobAnswer::Unknown { read: shard.positions().0.seq },
                    };
                    answers.fill(waiter.index, answer);
                }
                settled
            }
            Wants::Decision(once, answers) => {
                let Some(answers) = answers.upgrade() else { return };
                let known = shard.job_state(&job);
                let told = |(state, _)| *once == Once::Known || state != cellbus_directory::JobState::Queued;
                let settled = full || known.is_some_and(told);
                if settled {
                    answers.fill(
                        waiter.index,
                        known.map_or(Decision::Unknown, |(state, digest)| Decision::Known { state, digest }),
                    );
                }
                settled
            }
        };
        if !settled {
            self.by_job.entry(job).or_default().push(waiter);
            self.count += 1;
        }
    }
}
