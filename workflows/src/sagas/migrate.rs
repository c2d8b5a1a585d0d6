//! Migrate between managers. One commit point (`Moved`): before it only undo, after it only forward.
//!
//! ```text
//!   quiesce source ─▶ copy to target (off) ─▶ ┃Moved┃ ─▶ start copy ─▶ drop source
//!     undo: start       undo: delete copy     ┃
//! ```
//!
//! The copy is started only once the source is quiet, so no two of them ever run. The source is
//! dropped only once the copy has been seen after `Moved`: it is the last thing that could bring the
//! VM back. Is the copy gone by then (its host was lost), the work is parked. An operator's retry
//! asks both managers again, and with the copy definitely absent and the source definitely there
//! [`cellbus_directory::Record::MovedBack`] makes the source the VM again; from there it is undone:
//!
//! ```text
//!   ┃Moved┃ ─▶ copy absent ─▶ parked ─▶ check copy ─absent─▶ check source ─present─▶ ┃MovedBack┃ ─▶ undo
//!                                          └─ present: forward        └─ absent: lost
//! ```
//!
//! That takes a person, for what a manager says of a copy may have to do with what was done to the
//! manager: only who knows that the copy runs nowhere may have the source started.

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
    if run.has_done(Step::CheckSource) {
        return match &vm.other {
            Some(_) => Next::MoveBack,
            None => Next::End(Outcome::Failed(
                Failure::lasting(FailureCode::VmLost, "neither manager has it").at(Step::CheckSource),
            )),
        };
    }
    if vm.settled == VmState::Lost
        && let Some(source) = &vm.other
    {
        return if run.has_done(Step::CheckCopy) {
            Next::Call(Step::CheckSource, source.manager)
        } else {
            at_home(vm, Step::CheckCopy)
        };
    }
    // What ran before the migrate runs after it. `settled` still says what it was.
    if run.has_done(Step::Quiesce) && !run.has_done(Step::StartCopy) {
        return at_home(vm, Step::StartCopy);
    }
    match &vm.other {
        Some(_) if !run.has_done(Step::StartCopy) && !run.has_done(Step::CheckCopy) => at_home(vm, Step::CheckCopy),
        Some(source) if !run.has_done(Step::DropSource) => Next::Call(Step::DropSource, source.manager),
        Some(_) | None => Next::End(Outcome::Succeeded),
    }
}

/// Why a migrate ends that was moved back.
pub(crate) fn copy_lost() -> Outcome {
    Outcome::Failed(Failure::lasting(
        FailureCode::CopyLost,
        "the copy was lost before the source was dropped; the VM is where it was",
    ))
}
