//! Appending to a log, and what to say when the server's answer is a refusal or none.
//!
//! Every entry carries the sequence that its writer expected to be the last, which is the fence and
//! names its predecessor for readers, and a mark of its own. By the mark a writer finds out whether
//! an append without an answer was written: the first entry after the one it expected is either its
//! own, or that of another, and then its own never will be.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use crate::contract::{Error, Result, check_size};
use crate::ids::{Seq, ShardId};

use super::Shared;
use super::kept::{self, Kept};
use super::layout::{Family, Track};
use super::publish::{self, Conditional};

/// Who wrote it: the process, and which of its appends.
pub(super) const MARK: &str = "Cellbus-Append";
/// The entry that this one follows. The server checks it at the append, and keeps it.
const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
/// How long an append of another that is on its way may take to be seen.
const IN_FLIGHT: Duration = Duration::from_secs(2);
/// Between the first two looks for it; doubled each time.
const LOOK: Duration = Duration::from_millis(1);
/// The longest time between two looks.
const LOOK_MAX: Duration = Duration::from_millis(20);

/// One append, as it is sent and looked for.
struct Append {
    shard: ShardId,
    /// Where the log is to end.
    expected: Seq,
    /// See [`MARK`].
    mark: String,
    message: PublishMessage,
}

/// The sequence of the entry that this one follows.
pub(super) fn predecessor(headers: Option<&HeaderMap>) -> Option<u64> {
    headers?.get(EXPECTED)?.as_str().parse().ok()
}

impl Shared {
    pub(super) async fn append(&self, shard: ShardId, expected: Seq, entry: Bytes) -> Result<Seq> {
        check_size(&entry)?;
        let number = self.appends.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{:016x}-{number:x}", self.nonce);
        let bytes = entry.len();
        let message = publish::message(entry).header(MARK, mark.as_str());
        let append = Append { shard, expected, mark, message };
        let seq = match self.send(&append).await {
            Ok(Conditional::Written(seq)) => Seq(seq),
            Ok(Conditional::Refused) => self.refused(&append).await?,
            Err(Error::Unknown { reason }) => self.unanswered(&append, reason).await?,
            Err(error) => return Err(error),
        };
        self.rooms.appended(Family::Log, self.layout.lane(shard), bytes);
        Ok(seq)
    }

    async fn send(&self, append: &Append) -> Result<Conditional> {
        let subject = self.layout.subject(Track::log(append.shard));
        self.publish_if(subject, append.message.clone(), append.expected.0).await
    }

    /// The server did not take it. It may have taken it before, and this be the answer to a second
    /// sending of the same after a reconnect.
    ///
    /// With replicas a leader refuses what comes while an entry is on its way to the others: that of another
    /// owner, or the one before this, which it acknowledges a moment before it puts it out of its hands. Once that
    /// is over and the log ends where it was said to, it is sent again: what was refused is never written later.
    async fn refused(&self, append: &Append) -> Result<Seq> {
        let Append { shard, expected, ref mark, .. } = *append;
        let (began, mut pause) = (self.env.mono(), LOOK);
        loop {
            let reason = match self.found(shard, expected, mark).await {
                Ok(Found::Own(seq)) => return Ok(seq),
                Ok(Found::Other(found) | Found::Untold(found)) => {
                    return Err(Error::Fenced { shard, expected, found });
                }
                Ok(Found::Nothing) => match self.send(append).await {
                    Ok(Conditional::Written(seq)) => return Ok(Seq(seq)),
                    Ok(Conditional::Refused) => "another append is on its way".to_owned(),
                    Err(Error::Unknown { reason }) => return self.unanswered(append, reason).await,
                    Err(error) => return Err(error),
                },
                Err(error) => error.to_string(),
            };
            if self.env.mono().since(began) >= IN_FLIGHT {
                return Err(Error::Unavailable { reason });
            }
            self.env.sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    async fn unanswered(&self, append: &Append, reason: String) -> Result<Seq> {
        let Append { shard, expected, ref mark, .. } = *append;
        match self.found(shard, expected, mark).await {
            Ok(Found::Own(seq)) => Ok(seq),
            Ok(Found::Other(found)) => Err(Error::Fenced { shard, expected, found }),
            // It may still come, or have come and be trimmed.
            Ok(Found::Nothing | Found::Untold(_)) | Err(_) => Err(Error::Unknown { reason }),
        }
    }

    /// What follows the entry at `expected`.
    pub(super) async fn found(&self, shard: ShardId, expected: Seq, mark: &str) -> Result<Found> {
        let track = Track::log(shard);
        let (stream, subject) = (self.lane(track), self.layout.subject(track));
        let Some(last) = kept::last(stream, &subject).await? else {
            return Ok(if expected == Seq::ZERO { Found::Nothing } else { Found::Other(Seq::ZERO) });
        };
        let end = Seq(last.seq);
        if end == expected {
            return Ok(Found::Nothing);
        }
        if end < expected {
            return Ok(Found::Other(end));
        }
        let follows = |entry: &Kept| predecessor(Some(&entry.headers)) == Some(expected.0);
        let successor = if follows(&last) { Some(last) } else { kept::next(stream, &subject, expected.0 + 1).await? };
        match successor {
            Some(entry) if follows(&entry) && entry.headers.get(MARK).is_some_and(|found| found.as_str() == mark) => {
                Ok(Found::Own(Seq(entry.seq)))
            }
            Some(entry) if follows(&entry) => Ok(Found::Other(end)),
            // What followed is trimmed, or `expected` never was the end of this log.
            Some(_) | None => Ok(Found::Untold(end)),
        }
    }

    pub(super) async fn log_end(&self, shard: ShardId) -> Result<Seq> {
        self.connected()?;
        let track = Track::log(shard);
        let last = kept::last(self.lane(track), &self.layout.subject(track)).await?;
        Ok(last.map_or(Seq::ZERO, |last| Seq(last.seq)))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Ours, written.
    Own(Seq),
    /// That of another; the log ends here. Ours never will be written.
    Other(Seq),
    /// The log ends here, and what followed is no longer to be seen.
    Untold(Seq),
    /// Nothing yet.
    Nothing,
}
