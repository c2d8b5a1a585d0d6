//! What a simulated bus holds. Pure: it is told the time, and tells who is to be woken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::Waker;

use bytes::Bytes;
use cellbus_bus::contract::{
    ClusterRecord, Depth, Error, Event, MESSAGE_BYTES_MAX, Member, Message, PlacedEvent, Position, Queue, Result,
    SnapshotId, Unacked,
};
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{CellId, Seq, ShardId};
use cellbus_bus::job::Digest;

/// The most bytes that one read gives.
const READ_BYTES_MAX: usize = 4 << 20;
/// Events that are kept.
const EVENTS_MAX: usize = 2_000_000;

/// Messages in order, some of them waited for.
#[derive(Clone, Default)]
pub(super) struct Stream {
    kept: VecDeque<Message>,
    last: Seq,
    /// All up to and with this are gone.
    trimmed: Seq,
    waiting: Vec<Waker>,
}

impl Stream {
    fn push(&mut self, seq: Seq, at: WallMs, body: Bytes) {
        self.last = seq;
        self.kept.push_back(Message { seq, at, body });
    }
    fn index_after(&self, after: Seq) -> usize {
        self.kept.partition_point(|message| message.seq <= after)
    }
    pub(super) fn last(&self) -> Seq {
        self.last
    }
    fn at(&self, seq: Seq) -> Option<&Message> {
        let index = self.kept.partition_point(|message| message.seq < seq);
        self.kept.get(index).filter(|message| message.seq == seq)
    }
    fn trim(&mut self, through: Seq) {
        while self.kept.len() > 1 && self.kept.front().is_some_and(|message| message.seq <= through) {
            if let Some(gone) = self.kept.pop_front() {
                self.trimmed = gone.seq;
            }
        }
    }
    /// What comes after `after`; empty if nothing does yet, and then `waker` is woken.
    pub(super) fn read(&mut self, after: Seq, max: usize, waker: &Waker) -> Result<Vec<Message>> {
        if after < self.trimmed {
            return Err(Error::Trimmed { first: self.kept.front().map_or(self.last.next(), |message| message.seq) });
        }
        let from = self.index_after(after);
        let mut bytes = 0;
        let mut messages = Vec::new();
        for message in self.kept.iter().skip(from).take(max) {
            bytes += message.body.len();
            if !messages.is_empty() && bytes > READ_BYTES_MAX {
                break;
            }
            messages.push(message.clone());
        }
        if messages.is_empty() {
            self.wait(waker);
        }
        Ok(messages)
    }
    fn wait(&mut self, waker: &Waker) {
        if !self.waiting.iter().any(|known| known.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }
}

/// A producer's message that has not been acknowledged.
#[derive(Clone)]
pub(super) struct Inbound {
    pub(super) tenant: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
    /// Taken, and given to nobody else before this.
    hidden_until: u64,
}

/// What of a bus comes back as it was some time ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Forgets {
    /// All of it: sequences are given again.
    Everything,
    /// Logs and their snapshots.
    Logs,
    /// Queues.
    Queues,
}

/// Everything that is durable, and who waits for more.
#[derive(Clone, Default)]
pub(super) struct Store {
    cluster: Option<ClusterRecord>,
    queues: BTreeMap<Queue, Stream>,
    logs: BTreeMap<ShardId, Stream>,
    snapshots: BTreeMap<SnapshotId, Bytes>,
    events: VecDeque<PlacedEvent>,
    events_last: Seq,
    events_waiting: Vec<Waker>,
    ingress: BTreeMap<u64, Inbound>,
    ingress_last: u64,
    ingress_waiting: Vec<Waker>,
    members: BTreeMap<CellId, (Member, u64)>,
    /// One for all streams, as in a JetStream stream with many subjects: sequences have gaps.
    last: u64,
}

fn fits(body: &Bytes) -> Result<()> {
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(Error::TooLarge { bytes: body.len(), max: MESSAGE_BYTES_MAX });
    }
    Ok(())
}

impl Store {
    fn next(&mut self) -> Seq {
        self.last += 1;
        Seq(self.last)
    }

    pub(super) fn cluster(&mut self, initial: ClusterRecord) -> ClusterRecord {
        self.cluster.get_or_insert(initial).clone()
    }
    pub(super) fn cluster_record(&self) -> Option<ClusterRecord> {
        self.cluster.clone()
    }
    pub(super) fn replace_cluster(&mut self, expected: &ClusterRecord, new: ClusterRecord) -> Result<ClusterRecord> {
        match &mut self.cluster {
            None => Err(Error::Unavailable { reason: "there is no cluster record".to_owned() }),
            Some(stored) => {
                if stored == expected {
                    *stored = new;
                }
                Ok(stored.clone())
            }
        }
    }

    // ── queues ──

    pub(super) fn publish(&mut self, at: WallMs, items: Vec<(Queue, Vec<Bytes>)>) -> Result<(Seq, Vec<Waker>)> {
        items.iter().flat_map(|(_, bodies)| bodies).try_for_each(fits)?;
        let mut woken = Vec::new();
        let mut last = Seq::ZERO;
        for (queue, bodies) in items {
            for body in bodies {
                last = self.next();
                self.queues.entry(queue).or_default().push(last, at, body);
            }
            woken.append(&mut self.queues.entry(queue).or_default().waiting);
        }
        Ok((last, woken))
    }
    pub(super) fn queue(&mut self, queue: Queue) -> &mut Stream {
        self.queues.entry(queue).or_default()
    }
    /// Where a reader begins that comes with this position.
    pub(super) fn begin(&mut self, queue: Queue, after: Position) -> Seq {
        let stream = self.queues.entry(queue).or_default();
        let known = stream.at(after.seq).is_some_and(|message| Digest::of(&message.body) == after.digest);
        if known { after.seq } else { stream.trimmed }
    }
    pub(super) fn depth(&self, queue: Queue, after: Seq) -> Depth {
        let Some(stream) = self.queues.get(&queue) else { return Depth::default() };
        let from = stream.index_after(after);
        Depth {
            messages: (stream.kept.len() - from) as u64,
            oldest_at: stream.kept.get(from).map(|message| message.at),
        }
    }
    pub(super) fn trim_queue(&mut self, queue: Queue, through: Seq) {
        if let Some(stream) = self.queues.get_mut(&queue) {
            stream.trim(through);
        }
    }

    // ── logs ──

    /// `fenced`: whether the expected end is looked at at all.
    pub(super) fn append(
        &mut self,
        at: WallMs,
        shard: ShardId,
        expected: Seq,
        entry: Bytes,
        fenced: bool,
    ) -> Result<(Seq, Vec<Waker>)> {
        fits(&entry)?;
        let found = self.log(shard).last;
        if fenced && found != expected {
            return Err(Error::Fenced { shard, expected, found });
        }
        let seq = self.next();
        let log = self.log(shard);
        log.push(seq, at, entry);
        Ok((seq, std::mem::take(&mut log.waiting)))
    }
    pub(super) fn log(&mut self, shard: ShardId) -> &mut Stream {
        self.logs.entry(shard).or_default()
    }
    pub(super) fn begin_log(&mut self, shard: ShardId, after: Seq) -> Result<()> {
        let log = self.log(shard);
        if after > log.last {
            return Err(Error::Damaged { what: format!("shard {shard}: {after} lies beyond the end {}", log.last) });
        }
        if after < log.trimmed {
            return Err(Error::Trimmed { first: log.kept.front().map_or(log.last.next(), |message| message.seq) });
        }
        Ok(())
    }
    pub(super) fn write_snapshot(&mut self, id: SnapshotId, body: Bytes) {
        self.snapshots.entry(id).or_insert(body);
    }
    pub(super) fn snapshots(&self, shard: ShardId) -> Vec<SnapshotId> {
        self.snapshots.keys().filter(|id| id.shard == shard).copied().collect()
    }
    pub(super) fn read_snapshot(&self, id: SnapshotId) -> Option<Bytes> {
        self.snapshots.get(&id).cloned()
    }
    pub(super) fn trim_log(&mut self, shard: ShardId, through: Seq, keep: usize) {
        self.log(shard).trim(through);
        let ids = self.snapshots(shard);
        for id in ids.iter().take(ids.len().saturating_sub(keep)) {
            self.snapshots.remove(id);
        }
    }

    // ── ingress ──

    pub(super) fn ingress(
        &mut self,
        tenant: String,
        headers: Vec<(String, String)>,
        body: Bytes,
    ) -> Result<Vec<Waker>> {
        fits(&body)?;
        self.ingress_last += 1;
        self.ingress.insert(self.ingress_last, Inbound { tenant, headers, body, hidden_until: 0 });
        Ok(std::mem::take(&mut self.ingress_waiting))
    }
    /// A message that nobody holds, or else when to look again.
    pub(super) fn take(&mut self, now: u64, hide_for: u64, waker: &Waker) -> Result<(u64, Inbound), Option<u64>> {
        if let Some((id, inbound)) = self.ingress.iter_mut().find(|(_, inbound)| inbound.hidden_until <= now) {
            inbound.hidden_until = now.saturating_add(hide_for);
            return Ok((*id, inbound.clone()));
        }
        if !self.ingress_waiting.iter().any(|known| known.will_wake(waker)) {
            self.ingress_waiting.push(waker.clone());
        }
        Err(self.ingress.values().map(|inbound| inbound.hidden_until).min())
    }
    pub(super) fn ack(&mut self, id: u64) {
        self.ingress.remove(&id);
    }
    /// A message that its consumer has dropped comes again then, if not earlier.
    pub(super) fn give_back(&mut self, id: u64, at: u64) {
        if let Some(inbound) = self.ingress.get_mut(&id) {
            inbound.hidden_until = inbound.hidden_until.min(at);
        }
    }
    pub(super) fn unacked(&self, after: Seq, max: usize) -> Vec<Unacked> {
        let found = self.ingress.range(after.0 + 1..).take(max).map(|(id, inbound)| Unacked {
            seq: Seq(*id),
            tenant: inbound.tenant.clone(),
            headers: inbound.headers.clone(),
            body: inbound.body.clone(),
        });
        found.collect()
    }
    /// Producers' messages that have not been acknowledged.
    pub(super) fn ingress_open(&self) -> usize {
        self.ingress.len()
    }

    // ── members ──

    pub(super) fn beat(&mut self, member: Member, until: u64) {
        self.members.insert(member.cell.clone(), (member, until));
    }
    pub(super) fn leave(&mut self, cell: &CellId) {
        self.members.remove(cell);
    }
    pub(super) fn members(&mut self, now: u64) -> Vec<Member> {
        self.members.retain(|_, (_, until)| *until > now);
        self.members.values().map(|(member, _)| member.clone()).collect()
    }

    // ── events ──

    pub(super) fn publish_events(&mut self, events: Vec<Event>) -> Vec<Waker> {
        for event in events {
            self.events_last = self.events_last.next();
            self.events.push_back(PlacedEvent { seq: self.events_last, event });
            if self.events.len() > EVENTS_MAX {
                self.events.pop_front();
            }
        }
        std::mem::take(&mut self.events_waiting)
    }
    pub(super) fn events_after(&self, after: Option<Seq>) -> Seq {
        match after {
            None => self.events_last,
            Some(after) if after > self.events_last => Seq::ZERO,
            Some(after) => after,
        }
    }
    pub(super) fn read_events(&mut self, after: Seq, max: usize, waker: &Waker) -> Vec<PlacedEvent> {
        let from = self.events.partition_point(|placed| placed.seq <= after);
        let events: Vec<PlacedEvent> = self.events.iter().skip(from).take(max).cloned().collect();
        if events.is_empty() && !self.events_waiting.iter().any(|known| known.will_wake(waker)) {
            self.events_waiting.push(waker.clone());
        }
        events
    }

    // ── restarts ──

    /// `waker` is woken when connections change.
    pub(super) fn wait_for_mending(&mut self, waker: &Waker) {
        if !self.ingress_waiting.iter().any(|known| known.will_wake(waker)) {
            self.ingress_waiting.push(waker.clone());
        }
    }

    /// It comes back as `image` was. Whoever waited is to be woken.
    pub(super) fn put_back(&mut self, mut image: Self, what: Forgets) -> Vec<Waker> {
        let woken = self.all_waiting();
        // Those of the image were woken long ago.
        drop(image.all_waiting());
        match what {
            Forgets::Everything => *self = image,
            Forgets::Logs => (self.logs, self.snapshots) = (image.logs, image.snapshots),
            Forgets::Queues => self.queues = image.queues,
        }
        woken
    }
    /// The bus was away: what consumers hold comes again, and whoever waits is woken.
    pub(super) fn restarted(&mut self) -> Vec<Waker> {
        self.ingress.values_mut().for_each(|inbound| inbound.hidden_until = 0);
        self.all_waiting()
    }
    /// Everybody who waits for anything.
    pub(super) fn all_waiting(&mut self) -> Vec<Waker> {
        let mut woken = std::mem::take(&mut self.ingress_waiting);
        woken.append(&mut self.events_waiting);
        for stream in self.queues.values_mut().chain(self.logs.values_mut()) {
            woken.append(&mut stream.waiting);
        }
        woken
    }

    /// Shards that have a log.
    pub(super) fn shards(&self) -> BTreeSet<ShardId> {
        self.logs.keys().copied().collect()
    }
    /// The entries of a log that are kept.
    pub(super) fn entries(&self, shard: ShardId) -> impl Iterator<Item = (Seq, &Bytes)> + '_ {
        self.logs.get(&shard).into_iter().flat_map(|log| log.kept.iter().map(|message| (message.seq, &message.body)))
    }
}
