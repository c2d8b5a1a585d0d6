//! Delete: one call, for good. What cannot be deleted stays, and the job says why.

use cellbus_directory::{Outcome, Step, Vm};

use super::{Next, at_home};
use crate::shard::run::Run;

pub(super) fn next(vm: &Vm, run: &Run) -> Next {
    if let Some(failure) = &run.failure {
        return Next::End(Outcome::Failed(failure.clone()));
    }
    if run.has_done(Step::Delete) || vm.is_deleted() {
        return Next::End(Outcome::Succeeded);
    }
    at_home(vm, Step::Delete)
}
