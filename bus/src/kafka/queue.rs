//! Queues: publish, read from a position, depth, trim.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::contract::{Depth, Error, Message, Position, Queue, Reader, Result, check_size};
use crate::ids::Seq;
use crate::job::Digest;

use super::Shared;
use super::feed::{Came, Feed, Stop};
use super::layout::{Place, after, seq};
use super::produce::{Record, To};

/// What one read gives at the most, beside the one message that there always may be.
const READ_BYTES: usize = 4 << 20;

impl From<Came> for Message {
    fn from(came: Came) -> Self {
        Self { seq: seq(came.offset), at: came.at, body: came.body.unwrap_or_default() }
    }
}

/// Up to `max` of the ready ones, and about [`READ_BYTES`].
pub(super) fn portion<T: From<Came>>(ready: &mut VecDeque<Came>, max: usize) -> Vec<T> {
    let (mut bytes, mut taken) = (0_usize, Vec::with_capacity(ready.len().min(max)));
    while let Some(came) = ready.front() {
        bytes = bytes.saturating_add(came.bytes());
        if !taken.is_empty() && (taken.len() >= max || bytes > READ_BYTES) {
            break;
        }
        taken.extend(ready.pop_front().map(T::from));
    }
    taken
}

impl Shared {
    /// Writes to queues; the sequence is that of the last item.
    pub(super) async fn publish(&self, items: Vec<(Queue, Vec<Bytes>)>) -> Result<Option<Seq>> {
        for body in items.iter().flat_map(|(_, items)| items) {
            check_size(body)?;
        }
        self.reachable()?;
        let items = items.into_iter().flat_map(|(queue, items)| {
            let place = self.layout.queue(queue);
            items.into_iter().map(move |body| (To::Place(place.clone()), Record::new(body)))
        });
        Ok(self.write_all(items).await?.map(seq))
    }

    /// The last message of a queue.
    pub(super) async fn queue_end(&self, queue: Queue) -> Result<Seq> {
        self.reachable()?;
        let (_, high) = self.watermarks(&self.layout.queue(queue)).await?;
        Ok(seq(high - 1))
    }

    pub(super) async fn depth(&self, queue: Queue, from: Seq) -> Result<Depth> {
        self.reachable()?;
        let place = self.layout.queue(queue);
        let (low, high) = self.watermarks(&place).await?;
        let first = after(from).max(low);
        if first >= high {
            return Ok(Depth::default());
        }
        let oldest = self.range(&place, first, first + 1).await?;
        Ok(Depth {
            messages: u64::try_from(high - first).unwrap_or(0),
            oldest_at: oldest.first().map(|oldest| oldest.at),
        })
    }

    pub(super) async fn trim_queue(&self, queue: Queue, through: Seq) -> Result<()> {
        self.reachable()?;
        let place = self.layout.queue(queue);
        let (low, high) = self.watermarks(&place).await?;
        // The last message stays, so that its digest can still be checked.
        let before = after(through).min(high - 1);
        if before > low { self.drop_before(&place, before).await } else { Ok(()) }
    }
}

/// A reader of a queue.
pub(super) struct QueueReader {
    shared: Arc<Shared>,
    place: Place,
    feed: Feed,
    came: VecDeque<Came>,
    /// What comes next to be handed out.
    next: i64,
}

pub(super) async fn read(shared: &Arc<Shared>, queue: Queue, position: Position) -> Result<QueueReader> {
    shared.reachable()?;
    let place = shared.layout.queue(queue);
    let (low, high) = shared.watermarks(&place).await?;
    let from = after(position.seq);
    let mut came = VecDeque::new();
    // The message of the position comes first, if it is still there, and is looked at.
    if low < from && from <= high {
        let mut feed = shared.readers.open(place.clone(), from - 1).await?;
        let looked = async {
            while came.is_empty() {
                match feed.more(&mut came).await {
                    Ok(()) => {}
                    Err(Stop::Failed(error)) => return Err(error),
                    Err(Stop::Gone) => return Ok(()),
                }
            }
            Ok(())
        };
        let looked = shared.env.timeout(shared.config.answer_timeout, looked).await;
        looked.unwrap_or_else(|| Err(Error::Unavailable { reason: format!("Kafka, read {place}: no answer") }))?;
        let known = came.pop_front().is_some_and(|found| {
            found.offset == from - 1 && found.body.is_some_and(|body| Digest::of(&body) == position.digest)
        });
        if known {
            return Ok(QueueReader { shared: Arc::clone(shared), place, feed, came, next: from });
        }
        came.clear();
    }
    let (low, _) = shared.watermarks(&place).await?;
    let feed = shared.readers.open(place.clone(), low).await?;
    Ok(QueueReader { shared: Arc::clone(shared), place, feed, came, next: low })
}

#[async_trait]
impl Reader for QueueReader {
    async fn next(&mut self, max: usize) -> Result<Vec<Message>> {
        if self.came.is_empty() {
            match self.feed.more(&mut self.came).await {
                Ok(()) => {}
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Gone) => return Err(self.shared.gone(&self.place, self.next).await),
            }
        }
        // A hole is what was dropped, or what the brokers keep for themselves.
        if self.came.front().is_some_and(|came| came.offset > self.next) {
            let (low, _) = self.shared.watermarks(&self.place).await?;
            if low > self.next {
                return Err(Error::Trimmed { first: seq(low) });
            }
        }
        let whole = self.whole();
        let max = max.max(1).min(whole);
        let taken: Vec<Message> = portion(&mut self.came, max);
        if let Some(last) = taken.last() {
            self.next = after(last.seq);
        }
        Ok(taken)
    }
}

impl QueueReader {
    /// How many of those that came follow each other.
    fn whole(&self) -> usize {
        let Some(first) = self.came.front() else { return 0 };
        let mut next = first.offset;
        let whole = self.came.iter().take_while(|came| {
            let follows = came.offset == next;
            next = came.offset + 1;
            follows
        });
        whole.count()
    }
}
