//! One operation at the manager, and what of its answer is believed.

use std::sync::Arc;

use tracing::Instrument as _;

use super::desk::Start;
use super::done::Done;
use super::{Doing, Front, limits};
use crate::driver::Error;
use crate::spans::{Part, Span};

impl Front {
    /// Asks the driver for it.
    pub(super) fn perform(&self, start: Start) -> Doing {
        let driver = Arc::clone(&self.driver);
        let Start { ticket, job, shard, op, ask_tasks } = start;
        let span = tracing::trace_span!(
            "operation", %job, vm = %op.vm, %shard, manager = %self.config.name, op = op.number.0
        );
        let (env, spans, manager) = (self.env.clone(), self.outside.spans().clone(), self.config.name.clone());
        let wanted = !job.uuid().is_nil() && spans.want(&job);
        let performed = async move {
            let began = env.mono();
            tracing::trace!(kind = limits::Kind::of(&op.action).as_str(), "the manager is asked");
            // A fault that one VM brings out is not to stop all of its manager. Something may have been done, or
            // be under way still, as with every error of this kind: the VM is in doubt, and is read before
            // anything is believed of it.
            let performed = env.caught("operation", driver.perform(&op)).await;
            let mut result = performed.unwrap_or_else(|why| Err(Error::Permanent { detail: fault(&why) }));
            // "Not there" counts only when no older task may yet bring it about, and "no room" only
            // when no earlier try of this very operation has found some.
            let until = match &result {
                Ok(None) | Err(Error::NotFound) => Some(op.number),
                Err(Error::NoRoom { .. }) => Some(op.number.next()),
                Ok(Some(_)) | Err(_) => None,
            };
            if let Some(until) = until.filter(|_| ask_tasks) {
                match driver.tasks().await {
                    Ok(tasks) if tasks.iter().any(|task| task.vm == op.vm && task.number < until) => {
                        result = Err(Error::Unreachable { detail: "a task of an earlier try still runs".to_owned() });
                    }
                    Ok(_) => {}
                    Err(error) => result = Err(error),
                }
            }
            match &result {
                Ok(_) => tracing::trace!("the manager has done it"),
                Err(error) => tracing::trace!(%error, "the manager has not done it"),
            }
            if wanted {
                spans.end(Span {
                    job,
                    part: Part::Operation(limits::Kind::of(&op.action).as_str(), op.vm, op.number),
                    ended: env.wall(),
                    took: env.mono().since(began),
                    failed: result.as_ref().err().map(ToString::to_string),
                    attributes: vec![("cellbus.manager", manager.to_string())],
                });
            }
            Done::Op { ticket, vm: op.vm, result }
        };
        // The driver's own lines come in the span too. Not wanted, it costs nothing.
        if span.is_disabled() { Box::pin(performed) } else { Box::pin(performed.instrument(span)) }
    }
}

/// What a person is told of a panic.
pub(super) fn fault(why: &str) -> String {
    format!("a fault of this build of Cellbus, please report it: {why}")
}
