//! Failover: the VM's host is dead. It is brought to another host of its manager, and started there.
//!
//! ```text
//!   bring to another host (off: nothing ran it any more) ─▶ start
//! ```
//!
//! Nothing is undone: a VM that has been brought over and not been started is one that is off. Whatever
//! has become of it meanwhile (it was moved, stopped or removed) ends this before it begins.

use cellbus_bus::ids::HostId;
use cellbus_directory::{Failure, FailureCode, Outcome, Step, Vm, VmState};

use super::{Next, at_home};
use crate::shard::run::Run;

pub(super) fn next(vm: &Vm, run: &Run, from: &HostId) -> Next {
    if let Some(failure) = &run.failure {
        return Next::End(Outcome::Failed(failure.clone()));
    }
    // It never began: who fronts the manager says it again, with another host, while there is reason to.
    if let Some(refusal) = run.refusals.last() {
        let failure = Failure::passing(FailureCode::NoRoom, refusal.detail.clone());
        return Next::End(Outcome::Failed(failure.at(Step::Failover)));
    }
    if run.has_done(Step::Start) {
        return Next::End(Outcome::Succeeded);
    }
    if run.has_done(Step::Failover) {
        return at_home(vm, Step::Start);
    }
    let there = vm.home.as_ref().and_then(|home| home.host.as_ref()) == Some(from);
    if there && vm.settled == VmState::Running { at_home(vm, Step::Failover) } else { Next::End(Outcome::Succeeded) }
}
