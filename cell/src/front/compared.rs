//! What changed at the manager while it changed hands.
//!
//! The owner before may have heard of a change and have told nobody yet; this one has read the manager with the
//! change in it, so that to it nothing has changed. So once, a while after the opening, what is held is compared with
//! what the directory lists, and the homes of what differs look at it. Of those that only the directory is behind in
//! they find nothing new.

use std::time::Duration;

use cellbus_bus::env::Mono;
use cellbus_bus::ids::VmId;

use super::done::Done;
use super::{Front, Work};
use crate::driver::HeldVm;

/// How long after the opening, or after a try without an answer: a takeover has more urgent things to ask.
const AFTER: Duration = Duration::from_secs(5);

/// How far that is.
pub(super) enum Compared {
    Due(Mono),
    Asked,
    Done,
}

impl Compared {
    pub(super) fn in_a_while(now: Mono) -> Self {
        Self::Due(now.after(AFTER))
    }
}

impl Front {
    /// Asks the directory, if that is due.
    pub(super) fn compare_with_directory(&self, work: &mut Work, now: Mono) {
        if !matches!(work.compared, Compared::Due(at) if now >= at) || !work.desk.circuit.closed() || work.desk.revoked
        {
            return;
        }
        work.compared = Compared::Asked;
        let began = work.desk.holdings.now();
        let (listing, env, limit) = (self.outside.listed(self.id(), None), self.env.clone(), self.config.read_timeout);
        let listed = async move {
            let answer = env.timeout(limit, listing).await;
            Done::Listed { began, result: answer.unwrap_or_else(|| Err("no answer in time".to_owned())) }
        };
        work.start(None, Box::pin(listed));
    }

    /// The directory has answered.
    pub(super) fn listed(&self, work: &mut Work, now: Mono, began: u64, result: Result<Vec<HeldVm>, String>) {
        match result {
            Ok(listed) => {
                work.compared = Compared::Done;
                let differ: Vec<VmId> = work.desk.differ(&listed, began);
                if !differ.is_empty() {
                    tracing::info!(manager = %self.config.name, vms = differ.len(), "VMs are not as the directory lists them: their homes look");
                    self.outside.observed(self.id(), differ);
                }
            }
            Err(why) => {
                tracing::debug!(manager = %self.config.name, why, "what the directory lists is not known yet");
                work.compared = Compared::in_a_while(now);
            }
        }
    }
}
