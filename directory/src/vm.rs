//! A VM as Cellbus knows it, and the one fold that makes it from log records.
//!
//! The VM's home shard and every directory replica run this same code over the same records, so
//! they cannot differ. [`Vm`] is the full record; the projection keeps it in a tighter form.

use std::fmt;
use std::sync::Arc;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{HostId, JobId, ManagerId, OpNumber, ShortName, TenantId, VmId, VmName};
use cellbus_bus::job::{Job, Labels, Policy, Provision, Size};
use serde::{Deserialize, Serialize};

use crate::work::{Adoption, Outcome, Step, StepResult, Work};

/// What a VM is doing, as the API shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Being made.
    Creating,
    /// Powered on.
    Running,
    /// Powered off.
    Stopped,
    /// Suspended to memory or disk.
    Suspended,
    /// On its way to another host or manager.
    Migrating,
    /// Being removed.
    Deleting,
    /// Gone; kept as a tombstone.
    Deleted,
    /// Its manager says that it is not there, and no job removed it.
    Lost,
    /// Its manager could not say.
    Unknown,
}

impl VmState {
    /// Every state.
    pub const ALL: &[Self] = &[
        Self::Creating,
        Self::Running,
        Self::Stopped,
        Self::Suspended,
        Self::Migrating,
        Self::Deleting,
        Self::Deleted,
        Self::Lost,
        Self::Unknown,
    ];
    /// As in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Suspended => "suspended",
            Self::Migrating => "migrating",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }
}
impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Power, as a manager reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerState {
    /// On.
    Running,
    /// Off.
    Stopped,
    /// Suspended.
    Suspended,
}

/// What a manager says of one VM that it holds: observation, never intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFacts {
    /// Where it is.
    pub host: HostId,
    /// Its power.
    pub power: PowerState,
    /// Its shape.
    pub size: Size,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<ShortName>,
}

/// Where a VM is, or is going.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Which manager.
    pub manager: ManagerId,
    /// Which host, once the manager's owner has chosen.
    pub host: Option<HostId>,
}

/// What all VMs of one provision job have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// What it boots from.
    pub image: String,
    /// Tags.
    pub labels: Labels,
    /// Labels that its host must have.
    pub require: Labels,
    /// Where it is best put.
    pub policy: Policy,
}

impl Template {
    /// Of this job.
    #[must_use]
    pub fn of(provision: &Provision) -> Self {
        Self {
            image: provision.image.clone(),
            labels: provision.labels.clone(),
            require: provision.require.clone(),
            policy: provision.policy.clone(),
        }
    }
}

/// The step of a workflow that is under way on a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doing {
    /// The number of its call.
    pub op: OpNumber,
    /// Which step.
    pub step: Step,
    /// Which manager was asked.
    pub manager: ManagerId,
}

/// What a VM with this power is when no workflow is under way.
fn settled(power: PowerState) -> VmState {
    match power {
        PowerState::Running => VmState::Running,
        PowerState::Stopped => VmState::Stopped,
        PowerState::Suspended => VmState::Suspended,
    }
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its id, for life.
    pub id: VmId,
    /// Whose.
    pub tenant: TenantId,
    /// What it is called.
    pub name: VmName,
    /// Its shape, as last reported (as asked for, before that).
    pub size: Size,
    /// What it shares with its siblings.
    pub template: Arc<Template>,
    /// The job that made it.
    pub job: JobId,
    /// What it was, or is, when no workflow is under way.
    pub settled: VmState,
    /// The step under way.
    pub doing: Option<Doing>,
    /// The manager that holds it: the one that counts.
    pub home: Option<Place>,
    /// During a migrate between managers: where the other copy is (target before `Moved`, source after).
    pub other: Option<Place>,
    /// The last op number given.
    pub op: OpNumber,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<ShortName>,
    /// When it was accepted.
    pub created_at: WallMs,
    /// When what is said here was last known to be true.
    pub as_of: WallMs,
}

impl Vm {
    /// The VM that a provision job (or its child for `index`) is about to make.
    #[must_use]
    pub fn planned(
        id: VmId,
        job: JobId,
        tenant: TenantId,
        name: VmName,
        size: Size,
        template: Arc<Template>,
        at: WallMs,
    ) -> Self {
        Self {
            id,
            tenant,
            name,
            size,
            template,
            job,
            settled: VmState::Creating,
            doing: None,
            home: None,
            other: None,
            op: OpNumber::ZERO,
            snapshots: Vec::new(),
            created_at: at,
            as_of: at,
        }
    }

    /// The VM of a provision job for one VM; `None` for any other job.
    #[must_use]
    pub fn of_single(job: &Job, at: WallMs) -> Option<Self> {
        match &job.request {
            cellbus_bus::job::Request::Provision(p) if p.count == 1 => Some(Self::planned(
                job.id.vm(0),
                job.id,
                job.tenant.clone(),
                p.name.clone(),
                p.size,
                Arc::new(Template::of(p)),
                at,
            )),
            cellbus_bus::job::Request::Provision(_)
            | cellbus_bus::job::Request::Operate(..)
            | cellbus_bus::job::Request::Cancel(_) => None,
        }
    }

    /// The VM that work is about to take in. `work`: of that adoption.
    #[must_use]
    pub fn adopted(work: &Work, adoption: &Adoption, at: WallMs) -> Self {
        let (tenant, name, template) = (work.tenant.clone(), adoption.name.clone(), Arc::clone(&adoption.template));
        let planned = Self::planned(work.vm, work.job, tenant, name, adoption.size, template, at);
        Self { op: adoption.op, ..planned }
    }

    /// What the API shows: the state that a step under way leads through, or the settled one.
    #[must_use]
    pub fn state(&self) -> VmState {
        Self::state_of(self.settled, self.doing.as_ref().map(|d| d.step))
    }

    /// [`Vm::state`] of a VM with this settled state and this step under way.
    #[must_use]
    pub fn state_of(settled: VmState, doing: Option<Step>) -> VmState {
        match doing {
            Some(Step::Create | Step::UndoCreate | Step::Adopt) => VmState::Creating,
            Some(Step::Delete) => VmState::Deleting,
            Some(
                Step::Relocate
                | Step::Failover
                | Step::Quiesce
                | Step::Copy
                | Step::StartCopy
                | Step::DropSource
                | Step::UndoCopy
                | Step::UndoQuiesce
                | Step::CheckCopy
                | Step::CheckSource,
            ) => VmState::Migrating,
            Some(
                Step::Start
                | Step::Stop
                | Step::Restart
                | Step::Suspend
                | Step::Resume
                | Step::Resize
                | Step::Snapshot
                | Step::Revert
                | Step::SnapshotDelete
                | Step::Inspect
                | Step::CheckStray
                | Step::CheckHome
                | Step::DropStray,
            )
            | None => settled,
        }
    }

    /// Whether it is a tombstone.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.settled == VmState::Deleted
    }

    /// A step begins: its call is about to be made.
    pub fn step_begun(&mut self, doing: Doing, at: WallMs) {
        self.op = self.op.max(doing.op);
        match doing.step {
            Step::Create | Step::Adopt => self.home = Some(Place { manager: doing.manager, host: None }),
            Step::Copy | Step::DropStray => self.other = Some(Place { manager: doing.manager, host: None }),
            Step::UndoCreate
            | Step::Delete
            | Step::Relocate
            | Step::Failover
            | Step::Quiesce
            | Step::StartCopy
            | Step::DropSource
            | Step::UndoCopy
            | Step::UndoQuiesce
            | Step::Start
            | Step::Stop
            | Step::Restart
            | Step::Suspend
            | Step::Resume
            | Step::Resize
            | Step::Snapshot
            | Step::Revert
            | Step::SnapshotDelete
            | Step::Inspect
            | Step::CheckCopy
            | Step::CheckSource
            | Step::CheckStray
            | Step::CheckHome => {}
        }
        self.doing = Some(doing);
        self.as_of = at;
    }

    /// The step with this number has ended.
    pub fn step_ended(&mut self, op: OpNumber, result: &StepResult, at: WallMs) {
        let Some(doing) = self.doing.take_if(|d| d.op == op) else { return };
        self.as_of = at;
        match result {
            StepResult::Present(facts) => self.present(&doing, facts),
            StepResult::Absent => self.absent(&doing),
            StepResult::Refused(_) => match doing.step {
                Step::Create | Step::Adopt => self.home = None,
                Step::Copy | Step::DropStray => self.other = None,
                Step::UndoCreate
                | Step::Delete
                | Step::Relocate
                | Step::Failover
                | Step::Quiesce
                | Step::StartCopy
                | Step::DropSource
                | Step::UndoCopy
                | Step::UndoQuiesce
                | Step::Start
                | Step::Stop
                | Step::Restart
                | Step::Suspend
                | Step::Resume
                | Step::Resize
                | Step::Snapshot
                | Step::Revert
                | Step::SnapshotDelete
                | Step::Inspect
                | Step::CheckCopy
                | Step::CheckSource
                | Step::CheckStray
                | Step::CheckHome => {}
            },
            // Nobody takes care of it any more: an audit must show it again.
            StepResult::Failed(_) if doing.step == Step::DropStray => self.other = None,
            StepResult::Failed(_) => {}
        }
    }

    fn present(&mut self, doing: &Doing, facts: &VmFacts) {
        let place = Place { manager: doing.manager, host: Some(facts.host.clone()) };
        if self.home.as_ref().is_some_and(|home| home.manager == doing.manager) {
            self.home = Some(place);
            self.size = facts.size;
            self.snapshots.clone_from(&facts.snapshots);
            // A quiesced source is still what it was to its owner: the settled state is what the
            // copy will be given. Only a step that is about the VM itself settles it.
            if doing.step != Step::Quiesce {
                self.settled = settled(facts.power);
            }
        } else if self.other.as_ref().is_some_and(|other| other.manager == doing.manager) {
            self.other = (doing.step != Step::DropStray).then_some(place);
            // What was the copy is gone, and this may be the VM again.
            if doing.step == Step::CheckSource {
                self.settled = settled(facts.power);
            }
        }
    }

    fn absent(&mut self, doing: &Doing) {
        if self.other.as_ref().is_some_and(|other| other.manager == doing.manager) {
            self.other = None;
            return;
        }
        match doing.step {
            Step::Delete | Step::UndoCreate => {
                self.settled = VmState::Deleted;
                self.home = None;
                self.snapshots.clear();
            }
            Step::Create
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
            | Step::Failover
            | Step::Quiesce
            | Step::Copy
            | Step::StartCopy
            | Step::DropSource
            | Step::UndoCopy
            | Step::UndoQuiesce
            | Step::Inspect
            | Step::CheckCopy
            | Step::CheckSource => {
                self.settled = VmState::Lost;
            }
            // One that is not there cannot be taken in; and what follows from a look at two managers
            // is known once both have answered.
            Step::Adopt | Step::CheckStray | Step::CheckHome | Step::DropStray => {}
        }
    }

    /// The commit point of a migrate: what was the copy is now the VM.
    pub fn moved(&mut self, at: WallMs) {
        std::mem::swap(&mut self.home, &mut self.other);
        self.as_of = at;
    }

    /// The copy was lost after the commit point: the source is the VM again, and was so before.
    pub fn moved_back(&mut self, settled: VmState, at: WallMs) {
        self.moved(at);
        self.settled = settled;
    }

    /// An operator has given up the work on it: what was done so far is left as it is, and nobody
    /// knows what that is until it is read again. Of the other copy of a migrate nobody takes care
    /// any more, so that an audit must show it.
    pub fn given_up(&mut self) {
        self.settled = VmState::Unknown;
        self.other = None;
    }

    /// It was found at this manager, and not at the one that is known; whether it is known there from
    /// here on. One that is still to be made, or that a call is under way on, is not.
    pub fn found_at(&mut self, manager: ManagerId, at: WallMs) -> bool {
        let moved = self.home.as_ref().is_some_and(|home| home.manager != manager);
        if !moved || self.doing.is_some() || self.is_deleted() || self.settled == VmState::Creating {
            return false;
        }
        self.home = Some(Place { manager, host: None });
        self.other = None;
        self.as_of = at;
        true
    }

    /// Work of `job` on it has ended, or was dropped before it began. A VM whose own provision did
    /// not succeed, and that never settled, was never made: whoever ended the work has undone all.
    pub fn work_ended(&mut self, job: JobId, outcome: &Outcome, at: WallMs) {
        if self.job == job && self.settled == VmState::Creating && !outcome.succeeded() {
            self.never_made(at);
        }
    }

    /// Its provision failed before anything was made, or after all was undone.
    pub fn never_made(&mut self, at: WallMs) {
        self.settled = VmState::Deleted;
        self.doing = None;
        self.home = None;
        self.as_of = at;
    }
}
