//! The spans that a job's home, and a VM's, can tell of.

use std::time::Duration;

use cellbus_bus::ids::JobId;
use cellbus_directory::record::IntentKey;
use cellbus_directory::work::Step;
use cellbus_directory::{Outcome, Record};
use cellbus_workflows::{Answer, Shard};

use crate::peers::Answered;
use crate::process::Process;
use crate::spans::{Part, Span};

/// A call on a manager was answered.
pub(super) fn stepped(process: &Process, shard: &Shard, answered: &Answered, step: Step, took: Duration) {
    let job = shard.job_of(&answered.vm).filter(|job| process.spans.want(job));
    let Some(job) = job else { return };
    let failed = match &answered.answer {
        Answer::Present(_) | Answer::Absent => None,
        Answer::Refused(refusal) => Some(refusal.detail.clone()),
        Answer::Failed(failure) => Some(format!("{}: {}", failure.code.as_str(), failure.message)),
        Answer::Later(later) => Some(later.detail.clone()),
    };
    process.spans.end(Span {
        job,
        part: Part::Step(step.as_str(), answered.vm, answered.op),
        ended: process.env.wall(),
        took,
        failed,
        attributes: Vec::new(),
    });
}

/// Jobs that end with these records, of those whose spans are wanted. The traces of those that are
/// accepted are remembered: a job's home keeps what it brought along only until its outcome is out.
pub(super) fn ended(process: &Process, records: &[Record]) -> Vec<(JobId, Outcome)> {
    let ends = records.iter().filter_map(|record| match record {
        Record::JobAccepted { job } => {
            process.spans.learn(&job.id, &job.extensions);
            None
        }
        Record::JobEnded { job, outcome, .. } if process.spans.want(job) => Some((*job, outcome.clone())),
        _ => None,
    });
    ends.collect()
}

/// They have ended durably.
pub(super) fn jobs(process: &Process, shard: &Shard, ended: Vec<(JobId, Outcome)>) {
    for (job, outcome) in ended {
        let Some(status) = shard.job(&job) else { continue };
        // It may have been accepted elsewhere, and its record goes when its outcome is out.
        if process.spans.trace(&job).is_none()
            && let Some(extensions) = shard.job_extensions(&job)
        {
            process.spans.learn(&job, extensions);
        }
        let now = process.env.wall();
        let failed = match outcome {
            Outcome::Succeeded => None,
            Outcome::Failed(failure) => Some(format!("{}: {}", failure.code.as_str(), failure.message)),
            Outcome::Cancelled => Some("cancelled".to_owned()),
        };
        process.spans.end(Span {
            job,
            part: Part::Job(status.row.kind.as_str()),
            ended: now,
            took: Duration::from_millis(now.0.saturating_sub(status.row.accepted_at.0)),
            failed,
            attributes: vec![
                ("cellbus.tenant", status.row.tenant.to_string()),
                ("cellbus.shard", job.shard(process.count).to_string()),
            ],
        });
    }
}

/// The event about a job's end is with the bus, for an intent of this shard.
pub(super) fn told(process: &Process, shard: &Shard, intent: &IntentKey) {
    let IntentKey::OutcomeEvent(job) = intent else { return };
    if !process.spans.want(job) {
        return;
    }
    let now = process.env.wall();
    let since = shard.job(job).and_then(|status| status.row.ended_at).unwrap_or(now);
    process.spans.end(Span {
        job: *job,
        part: Part::Outcome,
        ended: now,
        took: Duration::from_millis(now.0.saturating_sub(since.0)),
        failed: None,
        attributes: Vec::new(),
    });
}
