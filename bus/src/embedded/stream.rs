//! One stream of messages (a queue, a log, the events, the ingress) as it stands in memory: which
//! sequences are kept and where, and the bodies of the latest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::contract::{Message, Queue, QueueKind};
use crate::env::WallMs;
use crate::ids::{Seq, ShardId};

use super::record::MESSAGE_HEADER;
use super::segment::{Segment, Segments};

/// What a stream carries. The numbers are written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum StreamKind {
    Jobs = 1,
    Control = 2,
    Log = 3,
    Events = 4,
    Ingress = 5,
}
impl StreamKind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Jobs, Self::Control, Self::Log, Self::Events, Self::Ingress].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Which stream. Events and ingress have one each, with shard 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StreamId {
    pub(super) kind: StreamKind,
    pub(super) shard: u16,
}
impl StreamId {
    pub(super) const EVENTS: Self = Self { kind: StreamKind::Events, shard: 0 };
    pub(super) const INGRESS: Self = Self { kind: StreamKind::Ingress, shard: 0 };
    pub(super) fn log(shard: ShardId) -> Self {
        Self { kind: StreamKind::Log, shard: shard.index() }
    }
    pub(super) fn queue(queue: Queue) -> Self {
        let kind = match queue.kind {
            QueueKind::Jobs => StreamKind::Jobs,
            QueueKind::Control => StreamKind::Control,
        };
        Self { kind, shard: queue.shard.index() }
    }
}
impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            StreamKind::Jobs => write!(f, "jobs.{}", self.shard),
            StreamKind::Control => write!(f, "control.{}", self.shard),
            StreamKind::Log => write!(f, "log.{}", self.shard),
            StreamKind::Events => f.write_str("events"),
            StreamKind::Ingress => f.write_str("ingress"),
        }
    }
}

/// Where a message's record begins, and how long its body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
}
impl Place {
    /// Bytes that the record takes.
    pub(super) fn record_bytes(&self) -> u64 {
        MESSAGE_HEADER as u64 + u64::from(self.length)
    }
}

/// One stream.
pub(super) struct Stream {
    pub(super) id: StreamId,
    /// Told whenever messages were added, or the bus stopped.
    pub(super) changed: Notify,
    /// The next sequence, counting what is staged and not yet durable. The committer's own.
    claimed: AtomicU64,
    state: Mutex<State>,
}

/// What is durable of a stream.
pub(super) struct State {
    /// The first sequence kept; `next` if none is.
    pub(super) first: u64,
    /// The sequence that the next message gets.
    pub(super) next: u64,
    /// Of `first`, `first + 1`, ... `next - 1`.
    places: VecDeque<Place>,
    /// The latest messages, with bodies; ends at `next - 1`.
    tail: VecDeque<Message>,
}

/// What a read found.
pub(super) enum Found {
    /// Messages from memory.
    Messages(Vec<Message>),
    /// They are on disk only.
    OnDisk(DiskRead),
    /// Nothing there yet.
    AtEnd,
    /// The first that is kept lies beyond what was asked for.
    Trimmed(u64),
}

/// A read that needs the disk. It holds its segments open, so that nobody can take them away.
pub(super) struct DiskRead {
    pub(super) id: StreamId,
    pub(super) from: u64,
    pub(super) places: Vec<(Place, Arc<Segment>)>,
}

impl Stream {
    pub(super) fn new(id: StreamId, first: u64, places: VecDeque<Place>) -> Self {
        let next = first + places.len() as u64;
        Self {
            id,
            changed: Notify::new(),
            claimed: AtomicU64::new(next),
            state: Mutex::new(State { first, next, places, tail: VecDeque::new() }),
        }
    }

    /// The state. Locks are held for look-ups only, never over I/O or an await.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last durable sequence; zero if there never was one.
    pub(super) fn end(&self) -> Seq {
        Seq(self.state().next - 1)
    }

    /// The committer's: the sequence of the next message to be staged.
    pub(super) fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }
    /// The committer's: sets it.
    pub(super) fn claim(&self, next: u64) {
        self.claimed.store(next, Ordering::Relaxed)
    }

    /// Up to `max` messages, about `bytes_max` at the most, from `from` on.
    pub(super) fn read(&self, from: u64, max: usize, bytes_max: usize, segments: &Segments) -> Found {
        let state = self.state();
        if from < state.first {
            return Found::Trimmed(state.first);
        }
        if from >= state.next {
            return Found::AtEnd;
        }
        let max = max.max(1);
        let in_memory_from = state.next - state.tail.len() as u64;
        let mut bytes = 0;
        if from >= in_memory_from {
            let skip = (from - in_memory_from) as usize;
            let messages = state.tail.range(skip..).take(max).take_while(|message| {
                let fits = bytes == 0 || bytes + message.body.len() <= bytes_max;
                bytes += message.body.len().max(1);
                fits
            });
            return Found::Messages(messages.cloned().collect());
        }
        let skip = (from - state.first) as usize;
        let below = (in_memory_from - from) as usize;
        let places = state.places.range(skip..).take(max.min(below)).take_while(|place| {
            let fits = bytes == 0 || bytes + place.length as usize <= bytes_max;
            bytes += (place.length as usize).max(1);
            fits
        });
        // Looked up under the stream's lock: a place in the index is always in a segment that is
        // in the table, because the committer takes places away before it takes the segment.
        let places = segments.hold(places.copied());
        Found::OnDisk(DiskRead { id: self.id, from, places })
    }

    /// When the message `seq` was taken, if that is known without the disk.
    pub(super) fn taken_at(&self, seq: u64) -> Option<WallMs> {
        let state = self.state();
        let in_memory_from = state.next - state.tail.len() as u64;
        state.tail.get(usize::try_from(seq.checked_sub(in_memory_from)?).ok()?).map(|message| message.at)
    }
}

impl State {
    /// Adds a durable message.
    pub(super) fn push(&mut self, place: Place, at: WallMs, body: Bytes) {
        self.tail.push_back(Message { seq: Seq(self.next), at, body });
        self.places.push_back(place);
        self.next += 1;
    }
    /// Forgets the bodies of messages up to and with `through`.
    pub(super) fn evict(&mut self, through: u64) {
        let in_memory_from = self.next - self.tail.len() as u64;
        let count = (through + 1).saturating_sub(in_memory_from).min(self.tail.len() as u64);
        self.tail.drain(..count as usize);
        if self.tail.is_empty() {
            self.tail.shrink_to(64);
        }
    }
    /// Drops messages below `first`, telling each one's place to `gone`.
    pub(super) fn trim(&mut self, first: u64, gone: impl FnMut(Place)) {
        let first = first.min(self.next);
        let Some(count) = first.checked_sub(self.first) else { return };
        self.evict(first.saturating_sub(1));
        self.places.drain(..count as usize).for_each(gone);
        if self.places.capacity() > 1024 && self.places.len() < self.places.capacity() / 4 {
            self.places.shrink_to(self.places.len() * 2);
        }
        self.first = first;
    }
    /// The place of `seq`, if it is kept.
    pub(super) fn place(&self, seq: u64) -> Option<Place> {
        self.places.get(usize::try_from(seq.checked_sub(self.first)?).ok()?).copied()
    }
    /// Says that `seq` is now elsewhere. False if it is no longer kept.
    pub(super) fn moved(&mut self, seq: u64, from: Place, to: Place) -> bool {
        let index = seq.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.places.get_mut(index)) {
            Some(place) if *place == from => {
                *place = to;
                true
            }
            Some(_) | None => false,
        }
    }
    /// Kept messages with their places, oldest first.
    pub(super) fn kept(&self) -> impl Iterator<Item = (u64, Place)> {
        (self.first..).zip(self.places.iter().copied())
    }
}

/// All streams. Made when first asked for.
pub(super) struct Streams {
    by_id: RwLock<BTreeMap<StreamId, Arc<Stream>>>,
}
impl Streams {
    pub(super) fn new(by_id: BTreeMap<StreamId, Arc<Stream>>) -> Self {
        Self { by_id: RwLock::new(by_id) }
    }
    pub(super) fn get(&self, id: StreamId) -> Arc<Stream> {
        if let Some(stream) = self.by_id.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Arc::clone(stream);
        }
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(by_id.entry(id).or_insert_with(|| Arc::new(Stream::new(id, 1, VecDeque::new()))))
    }
    /// All that exist, by id.
    pub(super) fn all(&self) -> Vec<Arc<Stream>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
