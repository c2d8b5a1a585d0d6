//! One call on one VM: power, shape, snapshots, another host. There is nothing to undo: the call
//! was made or it was not, and the manager says which.

use cellbus_directory::{Failure, FailureCode, Outcome, RefusalReason, Step, Vm};

use super::{Next, at_home};
use crate::shard::run::Run;

pub(super) fn next(vm: &Vm, run: &Run, step: Step) -> Next {
    match run.refusals.last() {
        // Refused because the manager took no calls: the same call again.
        None => at_home(vm, step),
        Some(refusal) if refusal.reason == RefusalReason::NotBegun => at_home(vm, step),
        Some(refusal) => {
            Next::End(Outcome::Failed(Failure::passing(FailureCode::NoRoom, refusal.detail.clone()).at(step)))
        }
    }
}

pub(super) fn ended(run: &Run) -> Next {
    match &run.failure {
        Some(failure) => Next::End(Outcome::Failed(failure.clone())),
        None => Next::End(Outcome::Succeeded),
    }
}
