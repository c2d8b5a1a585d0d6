//! A VM that another manager has too, or instead.
//!
//! ```text
//!   rehome:      check stray ─there─▶ check home ─gone─▶ ┃VmFound┃ ─▶ inspect
//!                    └─ not there: nothing   └─ there: a double, which an audit shows
//!   drop stray:  check home ─there─▶ drop stray
//!                    └─ gone: nothing is removed
//! ```
//!
//! The directory goes on saying where the VM was until it is known to be elsewhere, so that whoever
//! locates it always gets an answer. Nothing is removed unless the manager that counts has just been
//! seen to have the VM.

use cellbus_bus::ids::ManagerId;
use cellbus_directory::{Failure, FailureCode, Outcome, Step, Vm, VmState};

use super::{Next, at_home};
use crate::shard::run::Run;

/// Something of the VM was observed at `manager`.
pub(super) fn rehome(vm: &Vm, run: &Run, manager: ManagerId) -> Next {
    let over = Next::End(Outcome::Succeeded);
    let Some(home) = vm.home.as_ref().filter(|_| settled_somewhere(vm)) else { return over };
    if run.failure.is_some() {
        return over;
    }
    if home.manager == manager {
        // It is known there; how it is there is read once.
        let unread = home.host.is_none() && !run.has_begun(Step::Inspect);
        return if unread { Next::Call(Step::Inspect, manager) } else { over };
    }
    if !run.has_begun(Step::CheckStray) {
        return Next::Call(Step::CheckStray, manager);
    }
    if !run.has_done(Step::CheckStray) {
        return over;
    }
    if !run.has_begun(Step::CheckHome) {
        return at_home(vm, Step::CheckHome);
    }
    if run.has_done(Step::CheckHome) { Next::Found(manager) } else { over }
}

/// What `manager` has of the VM is to be removed.
pub(super) fn drop(vm: &Vm, run: &Run, manager: ManagerId) -> Next {
    if let Some(failure) = &run.failure {
        return Next::End(Outcome::Failed(failure.clone()));
    }
    let elsewhere = vm.home.as_ref().is_some_and(|home| home.manager != manager);
    if run.has_done(Step::DropStray) || !elsewhere || !settled_somewhere(vm) {
        return Next::End(Outcome::Succeeded);
    }
    if !run.has_begun(Step::CheckHome) {
        return at_home(vm, Step::CheckHome);
    }
    if run.has_done(Step::CheckHome) {
        let gone = "the manager that is known to have it has it no more: nothing was removed elsewhere";
        return Next::End(Outcome::Failed(Failure::lasting(FailureCode::VmLost, gone).at(Step::CheckHome)));
    }
    Next::Call(Step::DropStray, manager)
}

/// Whether it is no tombstone, not being made, and not halfway between two managers.
fn settled_somewhere(vm: &Vm) -> bool {
    !vm.is_deleted() && vm.settled != VmState::Creating && vm.other.is_none()
}
