//! What comes on some subjects of a stream from a sequence on, and goes on by itself.
//!
//! Each feed is a consumer of its own on the server: in memory, without acks, begun at a sequence.
//! A server that restarts forgets it, a connection can lose what was on its way; then a new one is
//! made that goes on behind the last message that came. Before that it is checked that this message
//! is still there, because two things would otherwise go unnoticed: a consumer that is begun below
//! the first message silently gets a later one, and one that is begun beyond the end waits for ever.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;

use crate::contract::{Error, Result};
use crate::env::{BoxFuture, WallMs};

use super::layout::Track;
use super::{Shared, answer, kept};

/// Messages asked for at once. A new request is made when half of them have come, so that a reader
/// that keeps up makes one request for so many.
const BATCH: usize = 256;
/// Bytes asked for at once: more than the largest message, or it would never come.
const BATCH_BYTES: usize = super::PAYLOAD_BYTES_MIN + (1 << 20);
/// How long a request waits for messages.
const EXPIRES: Duration = Duration::from_secs(30);
/// The server says that often that it still knows the consumer. Twice that without a word is the end of it.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// The server forgets the consumer of a feed that asks for nothing. Longer than a request waits.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(90);
/// Between two tries to begin again: half of it to the whole of it.
const AGAIN: Duration = Duration::from_millis(400);

/// A message that came.
pub(super) struct Came {
    pub(super) seq: u64,
    pub(super) at: WallMs,
    pub(super) subject: async_nats::Subject,
    pub(super) headers: Option<HeaderMap>,
    pub(super) body: Bytes,
}

/// What is fed.
#[derive(Clone)]
pub(super) enum Source {
    /// A queue or a log.
    Track(Track),
    /// All events.
    Events,
}

pub(super) struct Feed {
    shared: Arc<Shared>,
    source: Source,
    stream: Stream<()>,
    subject: String,
    /// The next sequence that may come.
    next: u64,
    /// The last message that came.
    last: Option<(u64, Bytes)>,
    state: State,
    /// A new connection may be to a server that knows nothing of the consumer.
    connects: watch::Receiver<u64>,
}

enum State {
    /// The consumer is being made. The future is kept here, so that a dropped wait loses nothing.
    Opening(BoxFuture<Result<(Box<pull::Stream>, u64)>>),
    /// The consumer's sequence of the last message that came: a hole in it is a loss.
    Open(Box<pull::Stream>, u64),
    Pausing(BoxFuture<()>),
}

impl Feed {
    /// From `next` on. Nothing is asked of the server before the first wait.
    pub(super) fn new(shared: Arc<Shared>, source: Source, next: u64) -> Self {
        let (stream, subject) = match &source {
            Source::Track(track) => (shared.lane(*track).clone(), shared.layout.subject(*track)),
            Source::Events => (shared.events.clone(), shared.layout.event_subject("*")),
        };
        let opening = open(stream.clone(), subject.clone(), next);
        let connects = shared.connects();
        Self { shared, source, stream, subject, next, last: None, state: State::Opening(Box::pin(opening)), connects }
    }

    /// Begins, so that what is published after this is sure to be sent.
    pub(super) async fn begin(&mut self) -> Result<()> {
        if let State::Opening(opening) = &mut self.state {
            let (stream, consumed) = opening.await?;
            self.state = State::Open(stream, consumed);
        }
        Ok(())
    }

    /// Waits for at least one message and adds what has come to `ready`. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the last message that came is no longer what is stored;
    /// [`Error::Unavailable`] once the bus is closed. While the server is away it waits.
    pub(super) async fn more(&mut self, ready: &mut VecDeque<Came>) -> Result<()> {
        loop {
            let closed = self.shared.closed.clone();
            let step = tokio::select! {
                biased;
                () = closed.cancelled() => return Err(super::closed()),
                Ok(()) = self.connects.changed() => Step::Again,
                step = Self::step(&mut self.state) => step,
            };
            match step {
                Step::Opened(stream, consumed) => self.state = State::Open(stream, consumed),
                Step::Again => self.reopen(),
                Step::Failed(error @ Error::Damaged { .. }) => return Err(error),
                Step::Failed(error) => {
                    tracing::debug!(subject = self.subject, %error, "a reader begins again");
                    let pause = AGAIN / 2 + (AGAIN / 2).mul_f64(self.shared.env.random_u64() as f64 / u64::MAX as f64);
                    self.state = State::Pausing(self.shared.env.sleep(pause));
                }
                Step::Came(message) => {
                    if self.take(message, ready) {
                        self.drain(ready);
                        return Ok(());
                    }
                    // One is missing before it.
                    self.reopen();
                }
            }
        }
    }

    async fn step(state: &mut State) -> Step {
        match state {
            State::Opening(opening) => match opening.await {
                Ok((stream, consumed)) => Step::Opened(stream, consumed),
                Err(error) => Step::Failed(error),
            },
            State::Pausing(pause) => {
                pause.await;
                Step::Again
            }
            State::Open(stream, _) => match stream.next().await {
                Some(Ok(message)) => Step::Came(Box::new(message)),
                Some(Err(error)) => Step::Failed(answer::unavailable("read", &error)),
                None => Step::Again,
            },
        }
    }

    /// What else is there, without waiting.
    fn drain(&mut self, ready: &mut VecDeque<Came>) {
        while ready.len() < BATCH {
            let State::Open(stream, _) = &mut self.state else { return };
            match stream.next().now_or_never() {
                Some(Some(Ok(message))) => {
                    if !self.take(Box::new(message), ready) {
                        self.reopen();
                        return;
                    }
                }
                // It will say so again, or end, at the next wait.
                Some(Some(Err(_)) | None) => {
                    self.reopen();
                    return;
                }
                None => return,
            }
        }
    }

    /// Whether the message is the one that had to come.
    fn take(&mut self, message: Box<async_nats::jetstream::Message>, ready: &mut VecDeque<Came>) -> bool {
        let State::Open(_, consumed) = &mut self.state else { return false };
        let Ok(info) = message.info() else { return false };
        if info.consumer_sequence != *consumed + 1 || info.stream_sequence < self.next {
            return false;
        }
        *consumed = info.consumer_sequence;
        let (seq, at) = (info.stream_sequence, kept::wall(info.published.unix_timestamp_nanos()));
        let async_nats::Message { subject, payload, headers, .. } = message.message;
        self.next = seq + 1;
        self.last = Some((seq, payload.clone()));
        ready.push_back(Came { seq, at, subject, headers, body: payload });
        true
    }

    fn reopen(&mut self) {
        let (shared, source, last) = (Arc::clone(&self.shared), self.source.clone(), self.last.clone());
        let (stream, subject, mut next) = (self.stream.clone(), self.subject.clone(), self.next);
        self.state = State::Opening(Box::pin(async move {
            shared.connected()?;
            if let Some((seq, body)) = last {
                next = shared.goes_on(&source, &stream, &subject, seq, &body).await?;
            }
            open(stream, subject, next).await
        }));
    }
}

enum Step {
    Opened(Box<pull::Stream>, u64),
    Came(Box<async_nats::jetstream::Message>),
    Failed(Error),
    Again,
}

/// Makes the consumer; gives it with the consumer's sequence before the first message.
async fn open(stream: Stream<()>, subject: String, next: u64) -> Result<(Box<pull::Stream>, u64)> {
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: next.max(1) },
        ack_policy: AckPolicy::None,
        filter_subject: subject,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: FORGOTTEN_AFTER,
        ..pull::Config::default()
    };
    let consumer =
        stream.create_consumer(config).await.map_err(|error| answer::unavailable("open a reader", &error))?;
    let messages = consumer
        .stream()
        .max_messages_per_batch(BATCH)
        .max_bytes_per_batch(BATCH_BYTES)
        .expires(EXPIRES)
        .heartbeat(HEARTBEAT)
        .messages()
        .await
        .map_err(|error| answer::unavailable("open a reader", &error))?;
    Ok((Box::new(messages), 0))
}

impl Shared {
    /// Where a reader goes on whose last message was `body` at `seq`.
    async fn goes_on(
        &self,
        source: &Source,
        stream: &Stream<()>,
        subject: &str,
        seq: u64,
        body: &Bytes,
    ) -> Result<u64> {
        let track = match source {
            Source::Track(track) => *track,
            Source::Events => {
                let info = stream.get_info().await.map_err(|error| answer::unavailable("ask for events", &error))?;
                // Events that were lost with their server are not waited for: what is kept comes instead.
                return Ok(if info.state.last_sequence < seq { 1 } else { seq + 1 });
            }
        };
        match kept::at(stream, subject, seq).await? {
            Some(kept) if kept.body == *body => Ok(seq + 1),
            None if self.floor(track).await? > seq => Ok(seq + 1),
            Some(_) | None => Err(Error::Damaged {
                what: format!("NATS no longer has message {seq} of {subject} as it was read: the server has lost data"),
            }),
        }
    }
}
