//! Appending to a log, and what to say when the server's answer is a refusal or none.
//!
//! Every entry carries the sequence that its writer expected to be the last, which is the fence and
//! names its predecessor for readers, and a mark of its own. By the mark a writer finds out whether
//! an append without an answer was written: the first entry after the one it expected is either its
//! own, or that of another, and then its own never will be.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::HeaderMap;
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
/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(20);

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
        let subject = self.layout.subject(Track::log(shard));
        match self.publish_if(subject, message, expected.0).await {
            Ok(Conditional::Written(seq)) => {
                self.rooms.appended(Family::Log, self.layout.lane(shard), bytes);
                Ok(Seq(seq))
            }
            Ok(Conditional::Refused) => self.refused(shard, expected, &mark).await,
            Err(Error::Unknown { reason }) => self.unanswered(shard, expected, &mark, reason).await,
            Err(error) => Err(error),
        }
    }

    /// The server did not take it. It may have taken it before, and this be the answer to a second
    /// sending of the same after a reconnect.
    async fn refused(&self, shard: ShardId, expected: Seq, mark: &str) -> Result<Seq> {
        let began = self.env.mono();
        loop {
            let reason = match self.found(shard, expected, mark).await {
                Ok(Found::Own(seq)) => return Ok(seq),
                Ok(Found::Other(found) | Found::Untold(found)) => {
                    return Err(Error::Fenced { shard, expected, found });
                }
                // The append of another is decided and not yet to be seen.
                Ok(Found::Nothing) => "another append is on its way".to_owned(),
                Err(error) => error.to_string(),
            };
            if self.env.mono().since(began) >= IN_FLIGHT {
                return Err(Error::Unavailable { reason });
            }
            self.env.sleep(LOOK).await;
        }
    }

    async fn unanswered(&self, shard: ShardId, expected: Seq, mark: &str, reason: String) -> Result<Seq> {
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
