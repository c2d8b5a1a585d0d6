//! Inspect: read the VM again after something was observed. Changes nothing at the manager.

use cellbus_directory::{Outcome, Step, Vm};

use super::{Next, at_home};
use crate::shard::run::Run;

pub(super) fn next(vm: &Vm, run: &Run) -> Next {
    if run.has_done(Step::Inspect) || run.failure.is_some() || vm.is_deleted() || vm.home.is_none() {
        return Next::End(Outcome::Succeeded);
    }
    at_home(vm, Step::Inspect)
}
