//! Migrate between managers. One commit point (`Moved`): before it only undo, after it only forward.
//!
//! ```text
//!   quiesce source ─▶ copy to target (off) ─▶ ┃Moved┃ ─▶ start copy ─▶ drop source
//!     undo: start       undo: delete copy     ┃
//! ```
//!
//! The copy is started only once the source is quiet, so no two of them ever run.

use cellbus_bus::ids::ManagerId;
use cellbus_directory::{Failure, FailureCode, Outcome, RefusalReason, Step, Vm, VmState};

use super::{Next, at_home};
use crate::shard::run::Run;

pub(super) fn next(vm: &Vm, run: &Run, target: ManagerId) -> Next {
    if run.moved {
        return forward(vm, run);
    }
    if let Some(cause) = &run.undoing {
        return undo(vm, run, cause);
    }
    if run.cancel {
        return Next::Undo(Outcome::Cancelled);
    }
    if let Some(failure) = &run.failure {
        return Next::Undo(Outcome::Failed(failure.clone()));
    }
    if vm.settled == VmState::Running && !run.has_done(Step::Quiesce) {
        return at_home(vm, Step::Quiesce);
    }
    if run.has_done(Step::Copy) {
        return Next::Commit;
    }
    match run.refusals.iter().rev().find(|r| r.reason != RefusalReason::NotBegun) {
        Some(refusal) => {
            Next::Undo(Outcome::Failed(Failure::passing(FailureCode::NoRoom, refusal.detail.clone()).at(Step::Copy)))
        }
        None => Next::Place(Step::Copy, Some(target)),
    }
}

fn undo(vm: &Vm, run: &Run, cause: &Outcome) -> Next {
    if let Some(failure) = &run.failure {
        return Next::Park(failure.clone());
    }
    if let Some(copy) = &vm.other
        && !run.has_done(Step::UndoCopy)
    {
        return Next::Call(Step::UndoCopy, copy.manager);
    }
    let quiesced = run.has_begun(Step::Quiesce) && !run.has_done(Step::UndoQuiesce);
    if quiesced && vm.settled == VmState::Running {
        return at_home(vm, Step::UndoQuiesce);
    }
    Next::End(cause.clone())
}

fn forward(vm: &Vm, run: &Run) -> Next {
    if let Some(failure) = &run.failure {
        return Next::Park(failure.clone());
    }
    // What ran before the migrate runs after it. `settled` still says what it was.
    if run.has_done(Step::Quiesce) && !run.has_done(Step::StartCopy) {
        return at_home(vm, Step::StartCopy);
    }
    match &vm.other {
        Some(source) if !run.has_done(Step::DropSource) => Next::Call(Step::DropSource, source.manager),
        Some(_) | None => Next::End(Outcome::Succeeded),
    }
}
