//! Single messages as the leader of their stream has them: the end of a log, what stands at a position.
//!
//! Never direct gets, which any replica answers with what it has: a fence must ask whoever decides.

use std::error::Error as _;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageError, Stream};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use crate::contract::{Error, Message, Result};
use crate::env::WallMs;
use crate::ids::Seq;

use super::answer;

/// A stored message.
pub(super) struct Kept {
    pub(super) subject: Subject,
    pub(super) seq: u64,
    pub(super) at: WallMs,
    pub(super) body: Bytes,
    pub(super) headers: HeaderMap,
}

/// The server's nanoseconds as milliseconds.
pub(super) fn wall(nanos: i128) -> WallMs {
    WallMs(u64::try_from(nanos / 1_000_000).unwrap_or(0))
}

impl Kept {
    fn of(message: StreamMessage) -> Self {
        Self {
            subject: message.subject,
            seq: message.sequence,
            at: wall(message.time.unix_timestamp_nanos()),
            body: message.payload,
            headers: message.headers,
        }
    }
}

fn found(answer: Result<StreamMessage, RawMessageError>) -> Result<Option<StreamMessage>> {
    match answer {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => match error.source() {
            // Base64 or headers that cannot be read.
            Some(source) if source.is::<serde_json::Error>() => {
                Err(Error::Damaged { what: format!("a message of NATS cannot be read ({source})") })
            }
            _ => Err(answer::unavailable("asked for a message", &error)),
        },
    }
}

/// The last message of `subject`.
pub(super) async fn last(stream: &Stream<()>, subject: &str) -> Result<Option<Kept>> {
    Ok(found(stream.get_last_raw_message_by_subject(subject).await)?.map(Kept::of))
}

/// The first message of `subject` from `seq` on.
pub(super) async fn next(stream: &Stream<()>, subject: &str, seq: u64) -> Result<Option<Kept>> {
    Ok(found(stream.get_first_raw_message_by_subject(subject, seq.max(1)).await)?.map(Kept::of))
}

/// The message at `seq`, if it is one of `subject`.
pub(super) async fn at(stream: &Stream<()>, subject: &str, seq: u64) -> Result<Option<Kept>> {
    if seq == 0 {
        return Ok(None);
    }
    let message = found(stream.get_raw_message(seq).await)?;
    Ok(message.filter(|message| message.subject.as_str() == subject).map(Kept::of))
}

impl From<Kept> for Message {
    fn from(kept: Kept) -> Self {
        Self { seq: Seq(kept.seq), at: kept.at, body: kept.body }
    }
}
