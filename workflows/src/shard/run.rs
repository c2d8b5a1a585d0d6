//! How far the work at the head of a VM's line has come: what its log records say, nothing else.

use std::sync::Arc;

use cellbus_bus::ids::ManagerId;
use cellbus_bus::job::{MigrateTo, Operation};
use cellbus_directory::work::Task;
use cellbus_directory::{Failure, Outcome, Refusal, Step, StepResult, Work};
use serde::{Deserialize, Serialize};

/// A workflow under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// What it is for.
    pub(crate) work: Arc<Work>,
    /// Steps whose call was made and not refused, oldest first.
    pub(crate) begun: Vec<Step>,
    /// Steps that were done, oldest first.
    pub(crate) done: Vec<Step>,
    /// Definite refusals, oldest first.
    pub(crate) refusals: Vec<Refusal>,
    /// The last step failed for a lasting reason.
    pub(crate) failure: Option<Failure>,
    /// It is being undone, and will end so.
    pub(crate) undoing: Option<Outcome>,
    /// Somebody wants it called off.
    pub(crate) cancel: bool,
    /// It waits for a person.
    pub(crate) parked: Option<Failure>,
    /// A person has given it up: it ends so.
    pub(crate) abandoned: Option<Outcome>,
    /// A migrate between managers has begun, to this one.
    pub(crate) moving_to: Option<ManagerId>,
    /// A migrate is past its commit point.
    pub(crate) moved: bool,
}

impl Run {
    pub(crate) fn new(work: Arc<Work>) -> Self {
        Self {
            work,
            begun: Vec::new(),
            done: Vec::new(),
            refusals: Vec::new(),
            failure: None,
            undoing: None,
            cancel: false,
            parked: None,
            abandoned: None,
            moving_to: None,
            moved: false,
        }
    }

    pub(crate) fn has_begun(&self, step: Step) -> bool {
        self.begun.contains(&step)
    }
    pub(crate) fn has_done(&self, step: Step) -> bool {
        self.done.contains(&step)
    }

    /// No call that may have changed anything was made: only refusals so far.
    pub(crate) fn nothing_made(&self) -> bool {
        self.begun.is_empty() && self.undoing.is_none()
    }

    pub(crate) fn step_begun(&mut self, step: Step, manager: ManagerId) {
        self.begun.push(step);
        match (&self.work.task, step) {
            (Task::Operate(Operation::Migrate(MigrateTo::Manager(name))), Step::Quiesce | Step::Copy) => {
                // The name was looked up when the step was decided; its id follows from it.
                self.moving_to = Some(ManagerId::derive(name.as_str()));
            }
            (
                Task::Operate(_)
                | Task::Create { .. }
                | Task::Inspect
                | Task::Failover { .. }
                | Task::Adopt(_)
                | Task::Rehome { .. }
                | Task::DropStray { .. },
                _,
            ) => {}
        }
        let _ = manager;
    }

    pub(crate) fn step_ended(&mut self, step: Step, result: &StepResult) {
        match result {
            // Done once it is known to be gone from there; still there, the look was only begun.
            StepResult::Present(_) if step == Step::CheckHome => {}
            StepResult::Present(_) => self.done.push(step),
            StepResult::Absent => match step {
                Step::Delete
                | Step::UndoCreate
                | Step::UndoCopy
                | Step::DropSource
                | Step::Inspect
                | Step::CheckSource
                | Step::CheckHome
                | Step::DropStray => self.done.push(step),
                // It is not where it was seen, or gone again.
                Step::CheckStray => {}
                Step::CheckCopy => {
                    self.done.push(step);
                    // The first to find the copy gone asks a person. Later ones are what he asked for.
                    let looked = |step: &&Step| matches!(step, Step::StartCopy | Step::CheckCopy);
                    if self.begun.iter().filter(looked).count() == 1 {
                        self.failure = Some(lost(step));
                    }
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
                | Step::UndoQuiesce
                | Step::Adopt => {
                    self.failure = Some(lost(step));
                }
            },
            StepResult::Refused(refusal) => {
                // It never began: as if the call had not been made.
                if let Some(at) = self.begun.iter().rposition(|s| *s == step) {
                    self.begun.remove(at);
                }
                self.refusals.push(refusal.clone());
            }
            StepResult::Failed(failure) => self.failure = Some(failure.clone()),
        }
    }
}

fn lost(step: Step) -> Failure {
    Failure::lasting(cellbus_directory::FailureCode::VmLost, "its manager says that it is not there").at(step)
}
