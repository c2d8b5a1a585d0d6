//! Queues: publish, read from a position, depth.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use bytes::Bytes;

use crate::contract::{Depth, Error, Position, Queue, Result, check_size};
use crate::ids::{Seq, ShardId};
use crate::job::Digest;

use super::feed::{Feed, Source};
use super::layout::Track;
use super::reader::{LogReader, QueueReader};
use super::{Shared, answer, kept, publish};

/// A consumer that only counts is forgotten soon.
const COUNTED_FOR: Duration = Duration::from_secs(1);

impl Shared {
    pub(super) async fn publish(&self, items: Vec<(Queue, Vec<Bytes>)>) -> Result<u64> {
        for body in items.iter().flat_map(|(_, items)| items) {
            check_size(body)?;
        }
        self.connected()?;
        let items = items.into_iter().flat_map(|(queue, items)| {
            let subject = self.layout.subject(Track::queue(queue));
            items.into_iter().map(move |body| {
                let bytes = body.len();
                (subject.clone(), publish::message(body), bytes)
            })
        });
        self.publish_all(items).await
    }

    /// The last message of a queue.
    pub(super) async fn queue_end(&self, queue: Queue) -> Result<Seq> {
        let track = Track::queue(queue);
        let last = kept::last(self.lane(track), &self.layout.subject(track)).await?;
        Ok(last.map_or(Seq::ZERO, |last| Seq(last.seq)))
    }

    pub(super) async fn depth(&self, queue: Queue, after: Seq) -> Result<Depth> {
        self.connected()?;
        let track = Track::queue(queue);
        let (stream, subject) = (self.lane(track), self.layout.subject(track));
        let from = after.0.saturating_add(1);
        let Some(oldest) = kept::next(stream, &subject, from).await? else { return Ok(Depth::default()) };
        // What a consumer that begins there would get. It is never read.
        let counter = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::None,
            filter_subject: subject,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: COUNTED_FOR,
            ..pull::Config::default()
        };
        let counted = stream.create_consumer(counter).await.map_err(|error| answer::unavailable("count", &error))?;
        Ok(Depth { messages: counted.cached_info().num_pending.max(1), oldest_at: Some(oldest.at) })
    }
}

pub(super) async fn read(shared: &Arc<Shared>, queue: Queue, after: Position) -> Result<QueueReader> {
    shared.connected()?;
    let track = Track::queue(queue);
    let (stream, subject) = (shared.lane(track), shared.layout.subject(track));
    let seen_at = shared.env.mono();
    let (found, floor) = futures::try_join!(kept::at(stream, &subject, after.seq.0), shared.floor(track))?;
    let known = found.is_some_and(|message| Digest::of(&message.body) == after.digest);
    // The first message that is kept lies at the floor or above.
    let given = if known { after.seq.0 } else { floor.saturating_sub(1) };
    let mut feed = Feed::new(Arc::clone(shared), Source::Track(track), if known { after.seq.0 + 1 } else { 1 });
    feed.begin().await?;
    Ok(QueueReader {
        shared: Arc::clone(shared),
        track,
        feed,
        ready: VecDeque::new(),
        given,
        floor,
        seen_at,
        asking: None,
    })
}

pub(super) async fn read_log(shared: &Arc<Shared>, shard: ShardId, after: Seq) -> Result<LogReader> {
    let end = shared.log_end(shard).await?;
    if after > end {
        // It would wait in silence for entries that were there once.
        return Err(Error::Damaged { what: format!("the log of shard {shard} ends at {end}, before {after}") });
    }
    let mut feed = Feed::new(Arc::clone(shared), Source::Track(Track::log(shard)), after.0 + 1);
    feed.begin().await?;
    Ok(LogReader { feed, ready: VecDeque::new(), given: after.0 })
}
