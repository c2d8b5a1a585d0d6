//! Work on one VM: what is to be done, by which steps, and how it ends. Records ([`crate::record`]) say
//! where it has got to; so its types are written in logs, and variants are only ever added at the end.

use std::sync::Arc;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{ForeignKey, HostId, JobId, ManagerId, OpNumber, TenantId, VmId, VmName};
use cellbus_bus::job::{Operation, Power, Size};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Refusal};
use crate::vm::{Template, VmFacts};

/// A call of a workflow on a VM's manager. Named for what is asked, not for who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Provision: make the VM, and power it on if asked.
    Create,
    /// Compensation of `Create`: remove what it may have left.
    UndoCreate,
    /// Power on.
    Start,
    /// Power off.
    Stop,
    /// Reboot.
    Restart,
    /// Suspend.
    Suspend,
    /// Resume.
    Resume,
    /// Change the shape.
    Resize,
    /// Take a snapshot.
    Snapshot,
    /// Go back to a snapshot.
    Revert,
    /// Drop a snapshot.
    SnapshotDelete,
    /// Move to another host of the same manager.
    Relocate,
    /// Migrate between managers, 1: stop the source.
    Quiesce,
    /// Migrate between managers, 2: make the copy on the target, powered off.
    Copy,
    /// Migrate between managers, 3 (after `Moved`): start the copy.
    StartCopy,
    /// Migrate between managers, 4: remove the source.
    DropSource,
    /// Compensation of `Copy`.
    UndoCopy,
    /// Compensation of `Quiesce`: start the source again.
    UndoQuiesce,
    /// Remove the VM.
    Delete,
    /// Read the VM again after an observation.
    Inspect,
    /// Migrate between managers, after `Moved`: whether the copy is there.
    CheckCopy,
    /// Migrate between managers, after `Moved`: whether the source is there, the copy being gone.
    CheckSource,
    /// After its host died: bring it to another host of the same manager, from where it is started again.
    Failover,
    /// Take in a VM that stands at its manager already.
    Adopt,
    /// Whether another manager has the VM than is known.
    CheckStray,
    /// Whether the manager that is known to have the VM still has it.
    CheckHome,
    /// Remove what another manager has of the VM beside its own.
    DropStray,
}
/// What a step may do to what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// Nothing.
    Reads,
    /// It makes something, or changes what can be changed back.
    Changes,
    /// It is destructive: what it removes is gone for good.
    Removes,
}

impl Step {
    /// What it may do to what is there.
    #[must_use]
    pub const fn kind(self) -> StepKind {
        match self {
            Self::Inspect | Self::CheckCopy | Self::CheckSource | Self::CheckStray | Self::CheckHome => StepKind::Reads,
            Self::Create
            | Self::Start
            | Self::Stop
            | Self::Restart
            | Self::Suspend
            | Self::Resume
            | Self::Resize
            | Self::Snapshot
            | Self::Relocate
            | Self::Quiesce
            | Self::Copy
            | Self::StartCopy
            | Self::UndoQuiesce
            | Self::Failover
            | Self::Adopt => StepKind::Changes,
            // A revert drops all that was written since the snapshot.
            Self::UndoCreate
            | Self::UndoCopy
            | Self::DropSource
            | Self::DropStray
            | Self::Delete
            | Self::Revert
            | Self::SnapshotDelete => StepKind::Removes,
        }
    }
    /// Every step.
    pub const ALL: &[Self] = &[
        Self::Create,
        Self::UndoCreate,
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Suspend,
        Self::Resume,
        Self::Resize,
        Self::Snapshot,
        Self::Revert,
        Self::SnapshotDelete,
        Self::Relocate,
        Self::Quiesce,
        Self::Copy,
        Self::StartCopy,
        Self::DropSource,
        Self::UndoCopy,
        Self::UndoQuiesce,
        Self::Delete,
        Self::Inspect,
        Self::CheckCopy,
        Self::CheckSource,
        Self::Failover,
        Self::Adopt,
        Self::CheckStray,
        Self::CheckHome,
        Self::DropStray,
    ];
    /// As in metrics and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::UndoCreate => "undo-create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Resize => "resize",
            Self::Snapshot => "snapshot",
            Self::Revert => "revert",
            Self::SnapshotDelete => "snapshot-delete",
            Self::Relocate => "relocate",
            Self::Quiesce => "quiesce",
            Self::Copy => "copy",
            Self::StartCopy => "start-copy",
            Self::DropSource => "drop-source",
            Self::UndoCopy => "undo-copy",
            Self::UndoQuiesce => "undo-quiesce",
            Self::Delete => "delete",
            Self::Inspect => "inspect",
            Self::CheckCopy => "check-copy",
            Self::CheckSource => "check-source",
            Self::Failover => "failover",
            Self::Adopt => "adopt",
            Self::CheckStray => "check-stray",
            Self::CheckHome => "check-home",
            Self::DropStray => "drop-stray",
        }
    }
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepResult {
    /// Done; the VM is there and is so.
    Present(VmFacts),
    /// Done; the VM is not there.
    Absent,
    /// It definitely never began. Placement may try elsewhere.
    Refused(Refusal),
    /// It will not succeed by trying again. Something may have been done.
    Failed(Failure),
}

/// Work for one VM, as it travels to the VM's home shard and waits there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// On which VM.
    pub vm: VmId,
    /// For which job.
    pub job: JobId,
    /// Which child of it; zero where it has one VM.
    pub index: u32,
    /// Whose.
    pub tenant: TenantId,
    /// When the job was accepted.
    pub accepted_at: WallMs,
    /// When it fails unless a call was made before.
    pub deadline_at: Option<WallMs>,
    /// What is to be done.
    pub task: Task,
}

impl Work {
    /// Whether a job waits for its end. Else its `job` only tells it from other work on its VM.
    #[must_use]
    pub fn for_a_job(&self) -> bool {
        match self.task {
            Task::Create { .. } | Task::Operate(_) => true,
            Task::Inspect | Task::Failover { .. } | Task::Adopt(_) | Task::Rehome { .. } | Task::DropStray { .. } => {
                false
            }
        }
    }

    /// Whether it only reads what managers have. Its end is not told in a VM's history, which is short.
    #[must_use]
    pub fn only_looks(&self) -> bool {
        match self.task {
            Task::Inspect | Task::Rehome { .. } => true,
            Task::Create { .. }
            | Task::Operate(_)
            | Task::Failover { .. }
            | Task::Adopt(_)
            | Task::DropStray { .. } => false,
        }
    }
}

/// What is to be done to one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Make it.
    Create {
        /// Its name.
        name: VmName,
        /// Its shape.
        size: Size,
        /// What it shares with its siblings.
        template: Arc<Template>,
        /// Whether it is left running.
        power: Power,
        /// The only manager that may be chosen (affinity within one job).
        only: Option<ManagerId>,
        /// How many VMs its job makes, this one included.
        of: u32,
    },
    /// Do this to it.
    Operate(Operation),
    /// Read it again, because something was observed.
    Inspect,
    /// Start it again on another host: the one that it ran on is dead.
    Failover {
        /// The dead host.
        from: HostId,
        /// Where it goes, in the same manager.
        to: HostId,
    },
    /// Take it in: it stands at its manager already, and the directory does not know it.
    Adopt(Arc<Adoption>),
    /// Something of it was observed at another manager than is known: look which of them has it.
    Rehome {
        /// The other.
        manager: ManagerId,
    },
    /// Remove what another manager has of it, if the one that is known has it too.
    DropStray {
        /// The other.
        manager: ManagerId,
        /// The last operation that the other has done on it: the next is numbered above it.
        op: OpNumber,
    },
}

/// A VM that is taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// What it is to be called.
    pub name: VmName,
    /// Its shape, as last seen.
    pub size: Size,
    /// Its labels; the rest is empty.
    pub template: Arc<Template>,
    /// Where it stands.
    pub manager: ManagerId,
    /// What its manager knows it by; `None`: it carries its id already, an orphan.
    pub foreign: Option<ForeignKey>,
    /// The last operation that an orphan carries: the next is numbered above it.
    pub op: OpNumber,
}

/// How a job, or the work on one VM of it, ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As asked.
    Succeeded,
    /// Not, and why.
    Failed(Failure),
    /// Called off before it took effect.
    Cancelled,
}

impl Outcome {
    /// Whether it went as asked.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        matches!(self, Self::Succeeded)
    }
}
