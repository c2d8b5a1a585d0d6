//! A front whose shard is handed over finishes what it has begun, so that nobody has to find out what
//! became of it: the manager would turn away what is on its way once the next owner has opened it.

use std::time::Duration;

use cellbus_bus::env::Mono;
use tokio::sync::oneshot;

use super::{Front, Work};

/// How long nothing begins at the most. A front that is still here then was not let go after all.
const FINISH_MAX: Duration = Duration::from_secs(4);

/// See the module.
pub(super) struct Finishing {
    told: Vec<oneshot::Sender<bool>>,
    until: Mono,
}

impl Front {
    /// Nothing more begins, and `told` hears when nothing is under way.
    pub(super) fn finish(&self, work: &mut Work, told: oneshot::Sender<bool>) {
        let until = self.env.mono().after(FINISH_MAX);
        let finishing = work.finishing.get_or_insert(Finishing { told: Vec::new(), until });
        finishing.told.push(told);
        finishing.until = until;
        work.desk.close();
    }
}

impl Work {
    /// Tells those who wait for it that nothing is under way any more. Called when all answers have gone out.
    pub(super) fn finished(&mut self) {
        if let Some(finishing) = &mut self.finishing
            && !self.desk.under_way()
        {
            let idle = self.desk.idle();
            // Whoever waited may have gone.
            for told in finishing.told.drain(..) {
                let _ = told.send(idle);
            }
        }
    }

    /// The shard was not let go in time: work begins again.
    pub(super) fn go_on(&mut self, now: Mono) {
        if self.finishing.as_ref().is_some_and(|finishing| finishing.until <= now) {
            self.finishing = None;
            self.desk.closed = false;
        }
    }
}
