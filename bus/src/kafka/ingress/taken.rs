//! A message in a cell's hands.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::contract::{DROPPED_FOR, Delivery, Error, Result};

use super::super::{Shared, closed};
use super::{Held, Parts};

/// A message as it was given out, for this time.
pub(super) struct Taken {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u64,
    pub(super) turn: u64,
    pub(super) parts: Arc<Parts>,
}

/// Not acked, it comes again in a moment. One that is acked, or was given to another since, does not.
impl Drop for Taken {
    fn drop(&mut self) {
        let until = self.shared.env.mono().after(DROPPED_FOR);
        let mut state = self.shared.ingress.state();
        let mine = |held: &Held| held.turn == self.turn && held.due.is_some_and(|due| due > until.0);
        if state.held.get(&self.id).is_some_and(mine) && state.put_off(self.id, until) {
            self.shared.ingress.sooner.notify_one();
        }
    }
}

#[async_trait]
impl Delivery for Taken {
    fn tenant(&self) -> &str {
        &self.parts.tenant
    }
    fn headers(&self) -> &[(String, String)] {
        &self.parts.headers
    }
    fn body(&self) -> &Bytes {
        &self.parts.body
    }
    /// Written down within [`super::Config::commit_every`]: a process that dies before is as one that
    /// died before it acked.
    async fn ack(self: Box<Self>) -> Result<()> {
        if self.shared.closed.is_cancelled() {
            return Err(closed());
        }
        let mut state = self.shared.ingress.state();
        let Some(held) = state.forget(self.id) else {
            return Err(Error::Unavailable { reason: "the message is another cell's now, or was acked".to_owned() });
        };
        if let Some(acks) = state.partitions.get_mut(&held.place) {
            acks.ack(held.offset);
        }
        // It may have come again meanwhile, and wait to be given out a second time.
        state.ready.retain(|id| *id != self.id);
        Ok(())
    }
    /// Kafka has no inboxes.
    fn reply_to(&self) -> Option<&str> {
        None
    }
}
