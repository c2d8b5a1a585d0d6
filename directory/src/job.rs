//! A job as lists and look-ups show it, and the fold that keeps it.

use std::fmt;
use std::sync::Arc;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{JobId, TenantId, VmId, VmName};
use cellbus_bus::job::{Job, JobKind, Request, Size};
use serde::{Deserialize, Serialize};

use crate::vm::{Template, Vm};
use crate::work::Outcome;

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

/// The VM that a waiting provision for one VM will make once it may go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What it will be called.
    pub name: VmName,
    /// Its shape.
    pub size: Size,
    /// What it boots from, and where it may go.
    pub template: Arc<Template>,
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
    /// The VM that it will make when [`JobRow::ready`] is called: the record that lets it go on
    /// does not say it again. Only while it waits.
    pub plan: Option<Arc<Plan>>,
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
        let plan = match &job.request {
            Request::Provision(p) if p.count == 1 && job.after.is_some() => {
                Some(Arc::new(Plan { name: p.name.clone(), size: p.size, template: Arc::new(Template::of(p)) }))
            }
            Request::Provision(_) | Request::Operate(..) | Request::Cancel(_) => None,
        };
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
            plan,
        }
    }

    /// Nothing holds it back any more. A provision for one VM is in the order of its VM at once;
    /// one that waited gives that VM now.
    pub fn ready(&mut self, at: WallMs) -> Option<Vm> {
        if self.state.ended() {
            return None;
        }
        self.state = if self.makes_its_own_vm() { JobState::Accepted } else { JobState::Queued };
        let plan = self.plan.take()?;
        Some(Vm::planned(
            self.id.vm(0),
            self.id,
            self.tenant.clone(),
            plan.name.clone(),
            plan.size,
            Arc::clone(&plan.template),
            at,
        ))
    }
    /// The name in its subject stands for this VM.
    pub fn resolved(&mut self, vm: VmId) {
        self.vm = Some(vm);
    }
    /// Its work is in the order of its VMs.
    pub fn forwarded(&mut self) {
        self.advance(&[JobState::Queued], JobState::Accepted);
    }
    /// A call was made for it, or one of its children has ended: it is under way.
    pub fn under_way(&mut self) {
        self.advance(&[JobState::Queued, JobState::Accepted, JobState::Waiting], JobState::Running);
    }
    /// An operator must decide.
    pub fn parked(&mut self) {
        self.advance(&[JobState::Queued, JobState::Accepted, JobState::Waiting, JobState::Running], JobState::Parked);
    }
    /// An operator has decided.
    pub fn unparked(&mut self) {
        self.advance(&[JobState::Parked], JobState::Running);
    }
    /// It has ended. The first outcome counts.
    pub fn ended(&mut self, outcome: &Outcome, at: WallMs) {
        if self.state.ended() {
            return;
        }
        self.state = JobState::of(outcome);
        self.outcome = Some(outcome.clone());
        self.ended_at = Some(at);
        self.plan = None;
    }

    /// Whether it is a provision for one VM, which has the job's own id and lives on its shard.
    #[must_use]
    pub fn makes_its_own_vm(&self) -> bool {
        self.kind == JobKind::Provision && self.vm == Some(self.id.vm(0))
    }

    fn advance(&mut self, from: &[JobState], to: JobState) {
        if from.contains(&self.state) {
            self.state = to;
        }
    }
}
