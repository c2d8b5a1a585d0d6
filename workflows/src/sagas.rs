//! The sagas: for each kind of work, which step comes next. One file each.
//!
//! A saga is a pure function of the VM and of what its [`Run`] has recorded so far. It never
//! remembers anything itself, so a crash between any two records changes nothing: the next owner
//! asks the same question of the same state.

mod adopt;
mod delete;
mod failover;
mod inspect;
pub(crate) mod migrate;
mod operate;
mod provision;
mod strays;

use cellbus_bus::ids::ManagerId;
use cellbus_bus::job::{MigrateTo, Operation};
use cellbus_directory::work::Task;
use cellbus_directory::{Failure, Outcome, Step, Vm};

use crate::shard::run::Run;
use crate::transition::{self, Verdict};
use crate::view::ManagerNames;

/// What a workflow does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Call the manager that holds the VM (for the other copy of a migrate: that manager).
    Call(Step, ManagerId),
    /// Choose a manager (of these, if one is named), then make this call there.
    Place(Step, Option<ManagerId>),
    /// Past the commit point: what was the copy is the VM.
    Commit,
    /// What was the copy is gone: the source is the VM again.
    MoveBack,
    /// It is at this manager and nowhere else: it is known there from here on.
    Found(ManagerId),
    /// Undo what was done; end so.
    Undo(Outcome),
    /// Nothing helps but a person.
    Park(Failure),
    /// It is over.
    End(Outcome),
}

/// Which step comes next for the work at the head of this VM's line.
pub(crate) fn next(vm: &Vm, run: &Run, names: &ManagerNames) -> Next {
    if let Some(outcome) = &run.abandoned {
        return Next::End(outcome.clone());
    }
    match &run.work.task {
        Task::Create { only, .. } => provision::next(vm, run, *only),
        Task::Inspect => inspect::next(vm, run),
        Task::Failover { from, .. } => failover::next(vm, run, from),
        Task::Adopt(adoption) => adopt::next(run, adoption),
        Task::Rehome { manager } => strays::rehome(vm, run, *manager),
        Task::DropStray { manager, .. } => strays::drop(vm, run, *manager),
        Task::Operate(operation) => operation_next(operation, vm, run, names),
    }
}

fn operation_next(operation: &Operation, vm: &Vm, run: &Run, names: &ManagerNames) -> Next {
    // A migrate between managers that has begun goes on by what is recorded of it.
    if let Some(target) = run.moving_to {
        return migrate::next(vm, run, target);
    }
    // A migrate for which there was no room before anything was begun: there is nothing to undo.
    if let Some(cause) = &run.undoing {
        return Next::End(cause.clone());
    }
    if run.nothing_made() {
        if run.cancel {
            return Next::End(Outcome::Cancelled);
        }
        let target = match operation {
            Operation::Migrate(MigrateTo::Manager(name)) => names.id(name),
            _ => None,
        };
        return match transition::verdict(operation, vm, target) {
            Verdict::Nothing => Next::End(Outcome::Succeeded),
            Verdict::Illegal(failure) => Next::End(Outcome::Failed(failure)),
            Verdict::MoveTo(target) => migrate::next(vm, run, target),
            Verdict::Do(Step::Delete) => delete::next(vm, run),
            Verdict::Do(step) => operate::next(vm, run, step),
        };
    }
    match operation {
        Operation::Delete => delete::next(vm, run),
        Operation::Start
        | Operation::Stop(_)
        | Operation::Restart(_)
        | Operation::Suspend
        | Operation::Resume
        | Operation::Resize { .. }
        | Operation::Snapshot(_)
        | Operation::Revert(_)
        | Operation::SnapshotDelete(_)
        | Operation::Migrate(_) => operate::ended(run),
    }
}

/// The manager that holds the VM, for a call on it; without one the VM is lost.
fn at_home(vm: &Vm, step: Step) -> Next {
    match &vm.home {
        Some(home) => Next::Call(step, home.manager),
        None => Next::End(Outcome::Failed(
            Failure::lasting(cellbus_directory::FailureCode::VmLost, "no manager holds it").at(step),
        )),
    }
}
