//! Readers of queues, logs and events over a [`Feed`].

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;

use crate::contract::{Error, Event, EventReader, Message, PlacedEvent, Reader, Result};
use crate::env::{BoxFuture, Mono};
use crate::ids::Seq;

use super::events::EVENT_ID;
use super::feed::{Came, Feed};
use super::layout::Track;
use super::{Shared, fence};

/// What one read gives at the most, beside the one message that there always may be.
const READ_BYTES: usize = 4 << 20;

impl From<Came> for Message {
    fn from(came: Came) -> Self {
        Self { seq: Seq(came.seq), at: came.at, body: came.body }
    }
}

/// Up to `max` of the ready ones, and about [`READ_BYTES`].
fn portion(ready: &mut VecDeque<Came>, max: usize) -> Vec<Came> {
    let (mut bytes, mut taken) = (0_usize, Vec::with_capacity(ready.len().min(max)));
    while let Some(came) = ready.front() {
        bytes = bytes.saturating_add(came.body.len());
        if !taken.is_empty() && (taken.len() >= max || bytes > READ_BYTES) {
            break;
        }
        taken.extend(ready.pop_front());
    }
    taken
}

/// A reader of a queue. What is trimmed while it is behind is dropped silently by the server; so it
/// asks for the queue's floor, below which things may be dropped, before that can have happened:
/// nothing is dropped for [`super::Config::trim_every`] after the floor has been raised.
pub(super) struct QueueReader {
    pub(super) shared: Arc<Shared>,
    pub(super) track: Track,
    pub(super) feed: Feed,
    pub(super) ready: VecDeque<Came>,
    /// The last message handed out, or what lies before the first that this reader promises.
    pub(super) given: u64,
    /// The floor as it was last seen.
    pub(super) floor: u64,
    /// When it was asked for.
    pub(super) seen_at: Mono,
    /// The question for the floor, with when it was asked. Kept here, so that a dropped read loses nothing.
    pub(super) asking: Option<BoxFuture<(Mono, Result<u64>)>>,
}

impl QueueReader {
    /// Looks at the floor again if it may have risen above what is still to be read.
    async fn look(&mut self) -> Result<()> {
        if self.asking.is_none() && self.shared.env.mono().since(self.seen_at) >= self.shared.config.trim_every / 2 {
            let (shared, track) = (Arc::clone(&self.shared), self.track);
            self.asking = Some(Box::pin(async move {
                let asked_at = shared.env.mono();
                (asked_at, shared.floor(track).await)
            }));
        }
        if let Some(asking) = &mut self.asking {
            let (asked_at, floor) = asking.await;
            self.asking = None;
            self.floor = floor?;
            self.seen_at = asked_at;
        }
        Ok(())
    }

    /// How many of the ready messages come before a hole, up to `max`. The message just below the
    /// floor is one that was there: it has been given, or is ready, or is missing.
    fn whole(&self, max: usize) -> usize {
        let mut before = self.given;
        let whole = self.ready.iter().take(max).take_while(|came| {
            let missing = before + 1 < self.floor && self.floor <= came.seq;
            before = came.seq;
            !missing
        });
        whole.count()
    }
}

#[async_trait]
impl Reader for QueueReader {
    async fn next(&mut self, max: usize) -> Result<Vec<Message>> {
        if self.ready.is_empty() {
            self.feed.more(&mut self.ready).await?;
        }
        self.look().await?;
        let whole = self.whole(max.max(1));
        give(&mut self.ready, whole, &mut self.given)
    }
}

/// So many of the ready messages; [`Error::Trimmed`] for none.
fn give(ready: &mut VecDeque<Came>, whole: usize, given: &mut u64) -> Result<Vec<Message>> {
    if whole == 0 {
        return Err(Error::Trimmed { first: ready.front().map_or(Seq::ZERO, |came| Seq(came.seq)) });
    }
    let taken = portion(ready, whole);
    if let Some(last) = taken.last() {
        *given = last.seq;
    }
    Ok(taken.into_iter().map(Message::from).collect())
}

/// A reader of a log: each entry names the one before it.
pub(super) struct LogReader {
    pub(super) feed: Feed,
    pub(super) ready: VecDeque<Came>,
    pub(super) given: u64,
}

#[async_trait]
impl Reader for LogReader {
    async fn next(&mut self, max: usize) -> Result<Vec<Message>> {
        if self.ready.is_empty() {
            self.feed.more(&mut self.ready).await?;
        }
        let mut before = self.given;
        let whole = self.ready.iter().take(max.max(1)).take_while(|came| {
            let follows = fence::predecessor(came.headers.as_ref()) == Some(before);
            before = came.seq;
            follows
        });
        let whole = whole.count();
        give(&mut self.ready, whole, &mut self.given)
    }
}

/// A reader of events. What has made room for newer ones is left out.
pub(super) struct Events {
    pub(super) feed: Feed,
    pub(super) ready: VecDeque<Came>,
}

#[async_trait]
impl EventReader for Events {
    async fn next(&mut self, max: usize) -> Result<Vec<PlacedEvent>> {
        loop {
            if self.ready.is_empty() {
                self.feed.more(&mut self.ready).await?;
            }
            let placed: Vec<_> = portion(&mut self.ready, max).into_iter().filter_map(placed).collect();
            if !placed.is_empty() {
                return Ok(placed);
            }
        }
    }
}

/// The event of a message; none for what somebody else has published there.
fn placed(came: Came) -> Option<PlacedEvent> {
    let id = came.headers.as_ref().and_then(|headers| headers.get(EVENT_ID)).map(|id| id.as_str().to_owned());
    let tenant = came.subject.rsplit('.').next().and_then(|tenant| tenant.parse().ok());
    match (id, tenant) {
        (Some(id), Some(tenant)) => {
            Some(PlacedEvent { seq: Seq(came.seq), event: Event { id, tenant, body: came.body } })
        }
        (Some(_) | None, Some(_) | None) => {
            tracing::warn!(subject = came.subject.as_str(), seq = came.seq, "an event of somebody else is left out");
            None
        }
    }
}
