//! Appending to a log, by the void rule of [`super::chain`].
//!
//! A record names what it follows, and carries a mark of its own, by which its writer finds out whether
//! an append without an answer was written. What this process knows of a log, it keeps: an append to
//! the end that it knows of needs nothing but the write, since the offset tells whether anything came
//! in between. Only then is the log read back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::contract::{Error, Result, check_size};
use crate::ids::{Seq, ShardId};

use super::chain::Chain;
use super::feed::{Came, Stop};
use super::layout::{Place, after, seq};
use super::produce::{Record, To};
use super::{Shared, closed};

/// The sequence of the record that this one follows, in decimal.
pub(super) const FOLLOWS: &str = "cellbus-follows";
/// Who wrote it: the process, and which of its appends.
const MARK: &str = "cellbus-append";

/// What this process knows of its logs.
#[derive(Default)]
pub(super) struct Fences {
    known: Mutex<BTreeMap<Place, Arc<tokio::sync::Mutex<Option<Chain>>>>>,
    appends: AtomicU64,
}

impl Fences {
    fn of(&self, place: &Place) -> Arc<tokio::sync::Mutex<Option<Chain>>> {
        Arc::clone(self.known.lock().unwrap_or_else(PoisonError::into_inner).entry(place.clone()).or_default())
    }

    /// A reader has come so far. Spares the first append a reading of the whole log.
    pub(super) fn learn(&self, place: &Place, chain: Chain) {
        // While an append is under way it knows better.
        if let Ok(mut known) = self.of(place).try_lock()
            && known.is_none_or(|known| known.next < chain.next)
        {
            *known = Some(chain);
        }
    }
}

pub(super) fn follows(came: &Came) -> Option<Seq> {
    std::str::from_utf8(came.header(FOLLOWS)?).ok()?.parse().ok().map(Seq)
}

impl Shared {
    /// Appends to a shard's log.
    pub(super) async fn append(&self, shard: ShardId, expected: Seq, entry: Bytes) -> Result<Seq> {
        match self.append_at(&self.layout.log(shard), expected, entry, None).await? {
            Ok(seq) => Ok(seq),
            Err(found) => Err(Error::Fenced { shard, expected, found }),
        }
    }

    /// Appends if `expected` is the last that counts; else gives what is; with one more header. One append of this process to a
    /// place at a time: others would only be void.
    pub(super) async fn append_at(
        &self,
        place: &Place,
        expected: Seq,
        entry: Bytes,
        more: Option<(&'static str, Bytes)>,
    ) -> Result<std::result::Result<Seq, Seq>> {
        check_size(&entry)?;
        self.reachable()?;
        let cell = self.fences.of(place);
        let mut known = cell.lock().await;
        let chain = match *known {
            Some(chain) if chain.end > expected => return Ok(Err(chain.end)),
            Some(chain) if chain.end == expected => chain,
            Some(_) | None => {
                let (chain, _) = self.caught_up(place, *known, None).await?;
                *known = Some(chain);
                if chain.end != expected {
                    return Ok(Err(chain.end));
                }
                chain
            }
        };
        let number = self.fences.appends.fetch_add(1, Ordering::Relaxed);
        let mark = Bytes::from(format!("{:016x}-{number:x}", self.nonce));
        let mut headers = vec![(FOLLOWS, Bytes::from(expected.to_string())), (MARK, mark.clone())];
        headers.extend(more);
        let record = Record { headers, ..Record::new(entry) };
        let unknown = match self.write(To::Place(place.clone()), record).await {
            // Nothing lies between: what counted before is the last that counts.
            Ok(Some(offset)) if offset == chain.next => {
                *known = Some(Chain::from(seq(offset)));
                return Ok(Ok(seq(offset)));
            }
            Ok(_) => None,
            Err(error @ Error::Unknown { .. }) => Some(error),
            Err(error) => return Err(error),
        };
        // Read back. What is known stays as it was if this is cut off.
        match (self.caught_up(place, Some(chain), Some(&mark)).await, unknown) {
            (Ok((chain, own)), unknown) => {
                *known = Some(chain);
                match (own, unknown) {
                    (Some(own), _) => Ok(Ok(own)),
                    // It is not there and may come yet; then it counts if nothing else has by then.
                    (None, Some(unknown)) if chain.end == expected => Err(unknown),
                    (None, _) => Ok(Err(chain.end)),
                }
            }
            (Err(_), Some(unknown)) => Err(unknown),
            // It is written, and whether it counts is not known.
            (Err(error), None) => Err(Error::Unknown { reason: error.to_string() }),
        }
    }

    /// What counts up to the end of a log, from what is known of it on; and where the record with this
    /// mark is, if it is among what was read and counts.
    async fn caught_up(
        &self,
        place: &Place,
        known: Option<Chain>,
        mark: Option<&Bytes>,
    ) -> Result<(Chain, Option<Seq>)> {
        let (low, high) = self.watermarks(place).await?;
        let mut chain = match known {
            // Known is more than there is: the brokers have lost what they had.
            Some(chain) if chain.next <= high && low <= chain.next => chain,
            Some(_) | None if low < high || low == 0 => Chain::from_first_kept(low),
            // All of it was dropped by somebody else; it goes on where it was.
            Some(_) | None => Chain { end: Seq(u64::try_from(high).unwrap_or(0)), next: high },
        };
        let mut own = None;
        if chain.next < high {
            let read = self.range(place, chain.next, high).await?;
            for came in read {
                let counts = chain.judge(came.offset, follows(&came));
                if counts && mark.is_some() && came.header(MARK) == mark {
                    own = Some(seq(came.offset));
                }
            }
        }
        Ok((chain, own))
    }

    /// The last that counts.
    pub(super) async fn end_of(&self, place: &Place) -> Result<Seq> {
        self.reachable()?;
        let cell = self.fences.of(place);
        let mut known = cell.lock().await;
        let (chain, _) = self.caught_up(place, *known, None).await?;
        *known = Some(chain);
        Ok(chain.end)
    }

    /// The messages from one offset up to another, which is written already.
    pub(super) async fn range(&self, place: &Place, from: i64, to: i64) -> Result<Vec<Came>> {
        let mut feed = self.peeks.open(place.clone(), from).await?;
        let (mut read, mut ready) = (Vec::new(), VecDeque::new());
        let began = self.env.mono();
        while feed.next < to {
            let more = self.env.timeout(self.config.answer_timeout, feed.more(&mut ready)).await;
            match more {
                Some(Ok(())) => read.extend(ready.drain(..).filter(|came| came.offset < to)),
                Some(Err(Stop::Failed(error))) => return Err(error),
                Some(Err(Stop::Gone)) => {
                    return Err(Error::Unavailable { reason: format!("{place} was trimmed while it was read") });
                }
                None => {
                    let waited = self.env.mono().since(began);
                    return Err(Error::Unavailable {
                        reason: format!("Kafka, read {place}: nothing from {} on in {waited:?}", feed.next),
                    });
                }
            }
        }
        Ok(read)
    }

    /// Drops what lies before `through`, which stays: it is what the next reader begins with.
    pub(super) async fn trim_chain(&self, place: &Place, through: Seq) -> Result<()> {
        self.reachable()?;
        let (low, high) = self.watermarks(place).await?;
        if low == high || after(through) <= low + 1 {
            return Ok(());
        }
        let end = self.last_that_counts(place, through, low, high).await?;
        let before = after(end) - 1;
        if before > low { self.drop_before(place, before).await } else { Ok(()) }
    }
}

impl Shared {
    /// The last record up to and with `through` that counts: readers begin at the first that is kept.
    async fn last_that_counts(&self, place: &Place, through: Seq, low: i64, high: i64) -> Result<Seq> {
        let known = { *self.fences.of(place).lock().await };
        if let Some(known) = known
            && known.end <= through
        {
            return Ok(known.end);
        }
        // A writer names only what it knows to count; so what is named counts.
        if after(through) < high {
            let successor = self.range(place, after(through), after(through) + 1).await?;
            if successor.first().and_then(follows) == Some(through) {
                return Ok(through);
            }
        }
        let (mut chain, to) = (Chain::from_first_kept(low), after(through).min(high));
        if chain.next < to {
            for came in self.range(place, chain.next, to).await? {
                chain.judge(came.offset, follows(&came));
            }
        }
        Ok(chain.end)
    }
}

/// A reader of a log: only what counts.
pub(super) struct LogReader {
    shared: Arc<Shared>,
    place: Place,
    feed: super::feed::Feed,
    came: VecDeque<Came>,
    chain: Chain,
    ready: VecDeque<Came>,
}

pub(super) async fn read_log(shared: &Arc<Shared>, shard: ShardId, from: Seq) -> Result<LogReader> {
    shared.reachable()?;
    let place = shared.layout.log(shard);
    let (low, high) = shared.watermarks(&place).await?;
    if after(from) > high {
        // It would wait in silence for entries that were there once.
        return Err(Error::Damaged { what: format!("the log of shard {shard} ends at {high}, before {from}") });
    }
    if after(from) < low {
        return Err(Error::Trimmed { first: seq(low) });
    }
    let feed = shared.readers.open(place.clone(), after(from)).await?;
    let (came, ready) = (VecDeque::new(), VecDeque::new());
    Ok(LogReader { shared: Arc::clone(shared), place, feed, came, chain: Chain::from(from), ready })
}

#[async_trait::async_trait]
impl crate::contract::Reader for LogReader {
    async fn next(&mut self, max: usize) -> Result<Vec<crate::contract::Message>> {
        loop {
            while let Some(came) = self.came.front() {
                if came.offset > self.chain.next {
                    // A hole: dropped, or what the brokers keep for themselves.
                    let (low, _) = self.shared.watermarks(&self.place).await?;
                    if low > self.chain.next {
                        return Err(Error::Trimmed { first: seq(low) });
                    }
                }
                let Some(came) = self.came.pop_front() else { break };
                if self.chain.judge(came.offset, follows(&came)) {
                    self.ready.push_back(came);
                }
            }
            if !self.ready.is_empty() {
                self.shared.fences.learn(&self.place, self.chain);
                return Ok(super::queue::portion(&mut self.ready, max));
            }
            match self.feed.more(&mut self.came).await {
                Ok(()) => {}
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Gone) => return Err(self.shared.gone(&self.place, self.chain.next).await),
            }
        }
    }
}

impl Shared {
    /// Why what comes next at an offset is not there.
    pub(super) async fn gone(&self, place: &Place, next: i64) -> Error {
        if self.closed.is_cancelled() {
            return closed();
        }
        match self.watermarks(place).await {
            Ok((low, _)) if low > next => Error::Trimmed { first: seq(low) },
            Ok((_, high)) => Error::Damaged {
                what: format!(
                    "{place} ends at {high}, before {next}, up to which it was read: the brokers have lost data"
                ),
            },
            Err(error) => error,
        }
    }
}
