//! Readers: from memory where they keep up, from the segments where they do not, and woken by the
//! committer where there is nothing yet.

use std::sync::Arc;

use async_trait::async_trait;

use crate::codec;
use crate::contract::{Error, Event, EventReader, Message, PlacedEvent, Reader, Result};

use super::Shared;
use super::stream::{Found, Stream};

/// What one call gives at the most, in bytes of bodies.
const NEXT_BYTES_MAX: usize = 4 << 20;

/// What to do when what comes next is no longer kept.
#[derive(Clone, Copy)]
pub(super) enum Trimmed {
    /// Tell the caller, who must not miss a message.
    Refuse,
    /// Go on with the first that is kept.
    Skip,
}

pub(super) struct StreamReader {
    pub(super) shared: Arc<Shared>,
    pub(super) stream: Arc<Stream>,
    /// The sequence that comes next. Moved only when messages are handed out, so that a dropped
    /// call takes nothing.
    pub(super) next: u64,
    pub(super) trimmed: Trimmed,
}

impl StreamReader {
    async fn messages(&mut self, max: usize) -> Result<Vec<Message>> {
        loop {
            // Without waiting, as long as there is something.
            if let Some(messages) = self.there(max).await? {
                return Ok(messages);
            }
            let stream = Arc::clone(&self.stream);
            let mut changed = std::pin::pin!(stream.changed.notified());
            changed.as_mut().enable();
            // Again, now that no change can be missed.
            if let Some(messages) = self.there(max).await? {
                return Ok(messages);
            }
            self.shared.running()?;
            changed.await;
        }
    }

    async fn there(&mut self, max: usize) -> Result<Option<Vec<Message>>> {
        let messages = loop {
            match self.stream.read(self.next, max, NEXT_BYTES_MAX, &self.shared.segments) {
                Found::Messages(messages) => break messages,
                Found::OnDisk(read) => break self.shared.read(read).await?,
                Found::AtEnd => return Ok(None),
                Found::Trimmed(first) => match self.trimmed {
                    Trimmed::Refuse => return Err(Error::Trimmed { first: crate::ids::Seq(first) }),
                    Trimmed::Skip => self.next = first,
                },
            }
        };
        let Some(last) = messages.last() else {
            return Err(Error::Damaged { what: format!("message {} of {} has no place", self.next, self.stream.id) });
        };
        self.next = last.seq.0 + 1;
        Ok(Some(messages))
    }
}

#[async_trait]
impl Reader for StreamReader {
    async fn next(&mut self, max: usize) -> Result<Vec<Message>> {
        self.messages(max).await
    }
}

/// Reads the stream of events.
pub(super) struct EventStreamReader(pub(super) StreamReader);

#[async_trait]
impl EventReader for EventStreamReader {
    async fn next(&mut self, max: usize) -> Result<Vec<PlacedEvent>> {
        let messages = self.0.messages(max).await?;
        messages.into_iter().map(placed).collect()
    }
}

fn placed(message: Message) -> Result<PlacedEvent> {
    let event = codec::decode::<Event>(&message.body)
        .map_err(|error| Error::Damaged { what: format!("event {}: {error}", message.seq) })?;
    Ok(PlacedEvent { seq: message.seq, event })
}
