//! Adopt: take in a VM that stands at its manager already. There is nothing to undo, and nothing that
//! may be removed: what could not be taken in stays as it is, and is put aside for a person.

use cellbus_directory::{Adoption, Outcome, Step};

use super::Next;
use crate::shard::run::Run;

pub(super) fn next(run: &Run, adoption: &Adoption) -> Next {
    if let Some(failure) = &run.failure {
        return Next::End(Outcome::Failed(failure.clone()));
    }
    if run.has_done(Step::Adopt) {
        return Next::End(Outcome::Succeeded);
    }
    Next::Call(Step::Adopt, adoption.manager)
}
