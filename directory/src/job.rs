//! A job as lists and look-ups show it, and the fold that keeps it.

use std::fmt;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{JobId, TenantId, VmId};
use cellbus_bus::job::{Job, JobKind, Request};
use serde::{Deserialize, Serialize};

use crate::record::Outcome;

/// Where a job is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Its key is remembered; its work is not yet in the order of its VM.
    Queued,
    /// In the order of its VM.
    Accepted,
    /// For its predecessor, or for room or a manager.
    Waiting,
    /// A call was made.
    Running,
    /// An operator must decide.
    Parked,
    /// As asked.
    Succeeded,
    /// Not.
    Failed,
    /// Called off.
    Cancelled,
}

impl JobState {
    /// Every state.
    pub const ALL: &[Self] = &[
        Self::Queued,
        Self::Accepted,
        Self::Waiting,
        Self::Running,
        Self::Parked,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];
    /// As in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Accepted => "accepted",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Parked => "parked",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
    /// Whether it is an outcome.
    #[must_use]
    pub const fn ended(self) -> bool {
        match self {
            Self::Queued | Self::Accepted | Self::Waiting | Self::Running | Self::Parked => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }
    /// The state of this outcome.
    #[must_use]
    pub const fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Succeeded => Self::Succeeded,
            Outcome::Failed(_) => Self::Failed,
            Outcome::Cancelled => Self::Cancelled,
        }
    }
}
impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A job's row in lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRow {
    /// Which.
    pub id: JobId,
    /// Whose.
    pub tenant: TenantId,
    /// Its type.
    pub kind: JobKind,
    /// Where it is on its way.
    pub state: JobState,
    /// The CloudEvents `source`.
    pub source: String,
    /// The CloudEvents `id`.
    pub event_id: String,
    /// The VM that it is about, where it is about one and that is known.
    pub vm: Option<VmId>,
    /// How many VMs it makes or is about.
    pub vms_total: u32,
    /// When it was accepted.
    pub accepted_at: WallMs,
    /// When it ended.
    pub ended_at: Option<WallMs>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

impl JobRow {
    /// A job that has just been accepted.
    #[must_use]
    pub fn accepted(job: &Job, at: WallMs) -> Self {
        let (vm, vms_total, state) = match &job.request {
            Request::Provision(p) if p.count == 1 => (Some(job.id.vm(0)), 1, JobState::Accepted),
            Request::Provision(p) => (None, p.count, JobState::Queued),
            Request::Operate(cellbus_bus::job::Target::Id(vm), _) => (Some(*vm), 1, JobState::Queued),
            Request::Operate(cellbus_bus::job::Target::Name(_), _) => (None, 1, JobState::Queued),
            Request::Cancel(_) => (None, 0, JobState::Queued),
        };
        let state = if job.after.is_some() { JobState::Waiting } else { state };
        Self {
            id: job.id,
            tenant: job.tenant.clone(),
            kind: job.request.kind(),
            state,
            source: job.source.clone(),
            event_id: job.event_id.clone(),
            vm,
            vms_total,
            accepted_at: at,
            ended_at: None,
            outcome: None,
        }
    }
    /// It has ended.
    pub fn ended(&mut self, outcome: &Outcome, at: WallMs) {
        self.state = JobState::of(outcome);
        self.outcome = Some(outcome.clone());
        self.ended_at = Some(at);
    }
}
