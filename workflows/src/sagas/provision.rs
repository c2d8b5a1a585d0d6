//! Provision: place, create. Compensation: remove what the create may have left.

use cellbus_bus::ids::ManagerId;
use cellbus_directory::{Outcome, Step, Vm};

use super::Next;
use crate::shard::run::Run;

pub(super) fn next(vm: &Vm, run: &Run, only: Option<ManagerId>) -> Next {
    if let Some(cause) = &run.undoing {
        if let Some(failure) = &run.failure {
            return Next::Park(failure.clone());
        }
        // A create that was refused leaves no home, and nothing to undo.
        return match &vm.home {
            Some(home) if run.has_begun(Step::Create) && !run.has_done(Step::UndoCreate) => {
                Next::Call(Step::UndoCreate, home.manager)
            }
            Some(_) | None => Next::End(cause.clone()),
        };
    }
    if let Some(failure) = &run.failure {
        return Next::Undo(if run.cancel { Outcome::Cancelled } else { Outcome::Failed(failure.clone()) });
    }
    match (run.has_done(Step::Create), run.cancel) {
        (true, true) => Next::Undo(Outcome::Cancelled),
        (true, false) => Next::End(Outcome::Succeeded),
        (false, true) => Next::End(Outcome::Cancelled),
        (false, false) => Next::Place(Step::Create, only),
    }
}
