//! What the cells of a process do: jobs, steps, appends, shards taken.
//!
//! Counted where it becomes durable, by the owner alone, so that a job counts once wherever its shard
//! goes. All label values are there from the start: a rate of something that has not happened is 0.

use std::time::Duration;

use cellbus_bus::job::JobKind;
use cellbus_directory::record::Entry;
use cellbus_directory::{JobState, Record, RefusalReason, Step, StepResult};
use cellbus_workflows::Shard;
use prometheus::{Histogram, IntCounter, IntGauge, Registry, Result};

use super::described::{Described, register};

const ACCEPTED: Described = Described::counter(
    "cellbus_jobs_accepted_total",
    "jobs",
    &["type"],
    "Jobs accepted, by type: the rate of arrival",
    "The rate of type=\"delete\" is what CellbusDestructiveRate watches",
);
const ENDED: Described = Described::counter(
    "cellbus_jobs_ended_total",
    "jobs",
    &["type", "state"],
    "Jobs ended, by type and how: succeeded, failed, cancelled; the rate of completion",
    "Many failed: `cellbus job list --state failed`, whose errors have codes",
);
const JOB_SECONDS: Described = Described::histogram(
    "cellbus_job_seconds",
    "seconds",
    &["type"],
    "From when a job was accepted to its outcome, by type",
    "Compare with cellbus_job_start_seconds: waiting, or slow managers?",
);
const START_SECONDS: Described = Described::histogram(
    "cellbus_job_start_seconds",
    "seconds",
    &[],
    "From when a job was accepted to the first call for each of its VMs; what the latency objective is about. Waiting for a predecessor (`after`) counts too",
    "99 of 100 are to be within the objective: more cells, or managers that are not saturated",
);
const STEP_SECONDS: Described = Described::histogram(
    "cellbus_step_seconds",
    "seconds",
    &["step"],
    "From when a step was asked of its manager's owner to the answer, waiting for a turn included, by step",
    "Slow at one manager only: `cellbus managers`; slow at all: limits, or the network between cells",
);
const REFUSALS: Described = Described::counter(
    "cellbus_placement_refusals_total",
    "refusals",
    &["reason"],
    "Definite refusals, after which work is placed elsewhere: no_room, no_match, affinity, cordoned, not_begun",
    "Many no_room: capacity runs out where placement still looks",
);
const REMOVALS: Described = Described::counter(
    "cellbus_destructive_operations_total",
    "operations",
    &["result"],
    "Operations that remove something (delete, revert, snapshot-delete, removals within a migrate or an undo): begun at managers, or put off by the limit, each time that one is",
    "Many put off: a producer deletes more than `destructive.limit` allows; CellbusDestructiveRate, CellbusDestructiveLimited",
);
const REMOVALS_LIMIT: Described = Described::gauge(
    "cellbus_destructive_limit_per_minute",
    "operations a minute",
    &[],
    "How many of them may begin in a minute at all managers together, as configured; 0: any number",
    "`destructive.limit` and `destructive.limit_per_manager`",
)
.of_cluster();
const OPENINGS: Described = Described::counter(
    "cellbus_shard_openings_total",
    "openings",
    &["from"],
    "Shards opened here, by who had opened them last: nobody (new), self (again), other (taken over, after a crash or a planned move)",
    "A steady rate means that shards flap: cells come and go, or lose their leases",
);
const FENCED: Described = Described::counter(
    "cellbus_log_fenced_total",
    "appends",
    &[],
    "Appends refused as another owner has written: each ended an owner that was late",
    "One now and then is a takeover. Many: cells too busy to keep their leases",
);
const APPEND_SECONDS: Described = Described::histogram(
    "cellbus_log_append_seconds",
    "seconds",
    &[],
    "From when an append was sent to its acknowledgement: durable",
    "Slow: the disk of the bus, or the network to it",
);
const APPEND_RECORDS: Described = Described::histogram(
    "cellbus_log_append_records",
    "records",
    &[],
    "Records that one append carried: the size of a batch",
    "Grows with load, by design",
);
const APPEND_BYTES: Described = Described::counter(
    "cellbus_log_append_bytes_total",
    "bytes",
    &[],
    "Bytes appended to logs",
    "To size the disk of the bus",
);
const APPENDS_REFUSED: Described = Described::counter(
    "cellbus_log_appends_refused_total",
    "appends",
    &[],
    "Appends that the bus refused, being full or out of reach, and that are tried again",
    "Make room on the bus, or see to it",
);
const SNAPSHOTS: Described = Described::counter(
    "cellbus_snapshots_total",
    "snapshots",
    &["result"],
    "Snapshots of shards: written, failed",
    "Failed ones are tried again, and the log grows until one is written: the bus's limits, its disk",
);

pub(super) const ALL: &[Described] = &[
    ACCEPTED,
    ENDED,
    JOB_SECONDS,
    START_SECONDS,
    STEP_SECONDS,
    REFUSALS,
    REMOVALS,
    REMOVALS_LIMIT,
    OPENINGS,
    FENCED,
    APPEND_SECONDS,
    APPEND_RECORDS,
    APPEND_BYTES,
    APPENDS_REFUSED,
    SNAPSHOTS,
];

/// From an answer at once to half an hour; 5 s is the default latency objective.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0];
/// An append takes from a few of the disk's writes to as long as a lease.
const APPEND: &[f64] = &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
const RECORDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0];
const ENDS: [JobState; 3] = [JobState::Succeeded, JobState::Failed, JobState::Cancelled];
const REASONS: [RefusalReason; 5] = [
    RefusalReason::NoRoom,
    RefusalReason::NoMatch,
    RefusalReason::Affinity,
    RefusalReason::Cordoned,
    RefusalReason::NotBegun,
];

/// Who had opened a shard last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// Nobody: it is new.
    Nobody,
    /// The same cell.
    Itself,
    /// Another cell.
    Other,
}

impl From {
    const ALL: [Self; 3] = [Self::Nobody, Self::Itself, Self::Other];
    const fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Itself => "self",
            Self::Other => "other",
        }
    }
}

/// Counters of a process, each with the handles of all its label values: none is looked up while
/// jobs are under way.
#[derive(Debug)]
pub(crate) struct Metrics {
    accepted: Vec<IntCounter>,
    ended: Vec<[IntCounter; 3]>,
    job_seconds: Vec<Histogram>,
    start_seconds: Histogram,
    step_seconds: Vec<Histogram>,
    refusals: [IntCounter; 5],
    removals: [IntCounter; 2],
    removals_limit: IntGauge,
    openings: [IntCounter; 3],
    fenced: IntCounter,
    append_seconds: Histogram,
    append_records: Histogram,
    append_bytes: IntCounter,
    appends_refused: IntCounter,
    snapshots: [IntCounter; 2],
}

/// As which step it is shown: looks are looks whatever for, and each step costs some 20 series.
fn shown_as(step: Step) -> Step {
    match step {
        Step::CheckCopy | Step::CheckSource | Step::CheckStray | Step::CheckHome => Step::Inspect,
        Step::DropStray => Step::Delete,
        other => other,
    }
}

/// Whether such a step may be the first of work that a job waits for.
fn for_a_job(step: Step) -> bool {
    !matches!(shown_as(step), Step::Inspect) && !matches!(step, Step::Adopt | Step::DropStray)
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self> {
        let accepted = register(registry, ACCEPTED.int_counters())?;
        let ended = register(registry, ENDED.int_counters())?;
        let job_seconds = register(registry, JOB_SECONDS.observed_by(SECONDS))?;
        let step_seconds = register(registry, STEP_SECONDS.observed_by(SECONDS))?;
        let refusals = register(registry, REFUSALS.int_counters())?;
        let removals = register(registry, REMOVALS.int_counters())?;
        let openings = register(registry, OPENINGS.int_counters())?;
        let snapshots = register(registry, SNAPSHOTS.int_counters())?;
        let kinds = JobKind::ALL.iter().map(|kind| kind.as_str());
        Ok(Self {
            accepted: kinds.clone().map(|kind| accepted.with_label_values(&[kind])).collect(),
            ended: kinds
                .clone()
                .map(|kind| ENDS.map(|state| ended.with_label_values(&[kind, state.as_str()])))
                .collect(),
            job_seconds: kinds.map(|kind| job_seconds.with_label_values(&[kind])).collect(),
            start_seconds: register(registry, START_SECONDS.observed(SECONDS))?,
            step_seconds: Step::ALL
                .iter()
                .map(|step| step_seconds.with_label_values(&[shown_as(*step).as_str()]))
                .collect(),
            refusals: REASONS.map(|reason| refusals.with_label_values(&[reason.as_str()])),
            removals: ["begun", "put_off"].map(|result| removals.with_label_values(&[result])),
            removals_limit: register(registry, REMOVALS_LIMIT.int_gauge())?,
            openings: From::ALL.map(|from| openings.with_label_values(&[from.as_str()])),
            fenced: register(registry, FENCED.int_counter())?,
            append_seconds: register(registry, APPEND_SECONDS.observed(APPEND))?,
            append_records: register(registry, APPEND_RECORDS.observed(RECORDS))?,
            append_bytes: register(registry, APPEND_BYTES.int_counter())?,
            appends_refused: register(registry, APPENDS_REFUSED.int_counter())?,
            snapshots: ["written", "failed"].map(|result| snapshots.with_label_values(&[result])),
        })
    }

    /// What an append carried has become durable.
    pub(crate) fn decided(&self, decided: &Decided) {
        for kind in &decided.accepted {
            if let Some(counter) = self.accepted.get(*kind as usize) {
                counter.inc();
            }
        }
        for waited in &decided.started {
            self.start_seconds.observe(waited.as_secs_f64());
        }
        for (kind, state, took) in &decided.ended {
            if let Some(counters) = self.ended.get(*kind as usize)
                && let Some((_, counter)) = ENDS.iter().zip(counters).find(|(end, _)| **end == *state)
            {
                counter.inc();
            }
            if let Some(seconds) = self.job_seconds.get(*kind as usize) {
                seconds.observe(took.as_secs_f64());
            }
        }
        for reason in &decided.refused {
            if let Some((_, counter)) = REASONS.iter().zip(&self.refusals).find(|(known, _)| **known == *reason) {
                counter.inc();
            }
        }
    }
    /// An append was acknowledged.
    pub(crate) fn appended(&self, records: usize, bytes: u64, took: Duration) {
        self.append_seconds.observe(took.as_secs_f64());
        // Some thousands at the most.
        self.append_records.observe(records as f64);
        self.append_bytes.inc_by(bytes);
    }
    pub(crate) fn append_refused(&self) {
        self.appends_refused.inc();
    }
    pub(crate) fn fenced(&self) {
        self.fenced.inc();
    }
    /// A step was answered by its manager.
    pub(crate) fn stepped(&self, step: Step, took: Duration) {
        if let Some(seconds) = self.step_seconds.get(step as usize) {
            seconds.observe(took.as_secs_f64());
        }
    }
    /// Operations that remove something have begun, or were put off by the limit.
    pub(crate) fn removals(&self, begun: u64, put_off: u64) {
        let [begins, puts_off] = &self.removals;
        begins.inc_by(begun);
        puts_off.inc_by(put_off);
    }
    /// So many of them may begin in a minute at all managers together; `None`: any number.
    pub(crate) fn limited_to(&self, per_minute: Option<f64>) {
        // The cast saturates.
        self.removals_limit.set(per_minute.unwrap_or_default().round() as i64);
    }
    pub(crate) fn opened(&self, from: From) {
        if let Some((_, counter)) = From::ALL.iter().zip(&self.openings).find(|(known, _)| **known == from) {
            counter.inc();
        }
    }
    pub(crate) fn snapshot(&self, written: bool) {
        let [good, bad] = &self.snapshots;
        if written { good.inc() } else { bad.inc() }
    }
}

/// What of a batch is counted, once it is durable.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    accepted: Vec<JobKind>,
    started: Vec<Duration>,
    ended: Vec<(JobKind, JobState, Duration)>,
    refused: Vec<RefusalReason>,
}

impl Decided {
    /// Of the batch that was just taken from this shard.
    pub(crate) fn of(shard: &Shard, entry: &Entry) -> Self {
        let mut decided = Self::default();
        for record in &entry.records {
            match record {
                Record::JobAccepted { job } => decided.accepted.push(job.request.kind()),
                Record::StepBegun { vm, step, .. } if for_a_job(*step) => {
                    decided.started.extend(shard.first_call_of(vm).map(|accepted| entry.at.since(accepted)));
                }
                Record::StepEnded { result: StepResult::Refused(refusal), .. } => decided.refused.push(refusal.reason),
                Record::JobEnded { job, outcome, .. } => {
                    let ended = shard.job_began(job);
                    decided
                        .ended
                        .extend(ended.map(|(kind, began)| (kind, JobState::of(outcome), entry.at.since(began))));
                }
                // Nothing is counted of the others.
                _ => {}
            }
        }
        decided
    }
}
