//! The committer: the one thread that writes. It takes every request that waits, puts all of them
//! into one frame, makes that durable with one `fdatasync`, and only then shows the messages to
//! readers and answers. Whatever came meanwhile is the next frame, begun at once or a little later
//! ([`super::gather`]).

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::contract::{Error, Result};
use crate::env::WallMs;
use crate::ids::{Seq, ShardId};

use super::Shared;
use super::clean::Cleaning;
use super::data_dir::Lock;
use super::gather::Gather;
use super::intake::{Request, Write};
use super::record::{self, FrameBuilder};
use super::segment::{AHEAD_BYTES, Segment};
use super::stream::{Place, Stream, StreamId};

/// A frame takes no further request once it has this many bytes: the disk can then begin, and
/// who waits for the first is not held up by the last.
const FRAME_BYTES_TARGET: usize = 4 << 20;
/// Beyond this a segment takes no more, though no new one could be made: places have 32 bits.
const SEGMENT_BYTES_MAX: u64 = 2 << 30;

static ZEROS: [u8; AHEAD_BYTES as usize] = [0; AHEAD_BYTES as usize];

/// Where the log ends.
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) position: u64,
    pub(super) next_frame: u64,
    /// Up to here the file has blocks that were written once.
    written_ahead: u64,
    /// Up to here it has blocks, or they are reserved.
    allocated: u64,
}

impl Active {
    /// Goes on after the last frame of `segment`.
    pub(super) fn new(segment: Arc<Segment>, next_frame: u64) -> io::Result<Self> {
        let written_ahead = segment.file.metadata()?.len();
        Ok(Self { position: segment.size(), segment, next_frame, written_ahead, allocated: written_ahead })
    }
}

pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    segments_dir: PathBuf,
    active: Active,
    frame: FrameBuilder,
    staged: Staged,
    /// Something was written that no sync has covered yet.
    dirty: bool,
    /// What the streams hold in memory, in order of commit: stream, last sequence, bytes.
    tails: VecDeque<(Arc<Stream>, u64, usize)>,
    tails_bytes: usize,
    events_bytes: u64,
    cleaning: Option<Cleaning>,
    /// Told apart so that a disk that stays full is logged once.
    roll_failed: bool,
    /// Held as long as this thread may write.
    _lock: Lock,
}

/// What the frame under construction will have done, once it is durable.
#[derive(Default)]
struct Staged {
    at: WallMs,
    /// Whether anybody was promised durability.
    must_sync: bool,
    /// One for each run of messages of one stream: how many of `messages`.
    groups: Vec<(Arc<Stream>, usize)>,
    messages: Vec<(Place, Bytes)>,
    trims: Vec<(Arc<Stream>, u64)>,
    acks: Vec<u64>,
    moves: Vec<(Arc<Stream>, u64, Place, Place)>,
    answers: Vec<(oneshot::Sender<Result<Seq>>, Result<Seq>, u32)>,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, segments_dir: PathBuf, active: Active, lock: Lock) -> Self {
        let events_bytes = {
            let events = shared.streams.get(StreamId::EVENTS);
            let state = events.state();
            state.kept().map(|(_, place)| place.record_bytes()).sum()
        };
        Self {
            shared,
            segments_dir,
            active,
            frame: FrameBuilder::new(),
            staged: Staged::default(),
            dirty: false,
            tails: VecDeque::new(),
            tails_bytes: 0,
            events_bytes,
            cleaning: None,
            roll_failed: false,
            _lock: lock,
        }
    }

    /// Runs until the intake is closed and empty. Whichever way it ends, nobody is left waiting.
    pub(super) fn run(mut self) {
        struct AtEnd(Arc<Shared>);
        impl Drop for AtEnd {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.fail(
                        "the store's committing thread has died; restart the process, and report what its log says",
                    );
                }
                self.0.stop();
            }
        }
        let _at_end = AtEnd(Arc::clone(&self.shared));
        let mut batch = Vec::new();
        self.clean_up();
        let mut begun = self.shared.env.mono();
        let mut gather = Gather::new(begun, self.shared.env.busy());
        loop {
            let now = self.shared.env.mono();
            if !self.shared.intake.take(gather.apart().saturating_sub(now.since(begun)), &mut batch) {
                break;
            }
            begun = self.shared.env.mono();
            gather.committed(begun, batch.len(), || self.shared.env.busy());
            let mut requests = batch.drain(..).peekable();
            while requests.peek().is_some() {
                self.begin();
                while self.frame.len() < FRAME_BYTES_TARGET
                    && let Some(request) = requests.next()
                {
                    self.stage(request);
                }
                self.commit();
            }
        }
        if let Err(error) = self.sync() {
            tracing::error!(%error, "could not sync the bus's store while closing");
        }
    }

    /// Makes ready for a frame, in a new segment if the last is full.
    fn begin(&mut self) {
        self.staged.at = self.shared.env.wall();
        if self.active.position >= self.shared.config.segment_bytes {
            match self.roll() {
                Ok(()) => self.roll_failed = false,
                // The old segment can still grow. If the disk is full, the write will say so.
                Err(error) if !self.roll_failed => {
                    self.roll_failed = true;
                    tracing::error!(%error, "could not begin a new segment of the bus's store");
                }
                Err(_) => {}
            }
        }
    }

    /// Begins a new segment. Its first frame says where every stream stands, so that any older
    /// segment can go once none of its messages is kept.
    fn roll(&mut self) -> io::Result<()> {
        if let Err(error) = self.sync() {
            self.fail("could not make durable what was written to", &error);
            return Err(error);
        }
        let id = self.active.segment.id + 1;
        let number = self.active.next_frame;
        let mut frame = FrameBuilder::new();
        for stream in self.shared.streams.all() {
            let state = stream.state();
            frame.state(stream.id, state.first, state.next);
        }
        self.shared.ingress.each_acked(|seq| frame.acked(seq));
        let salt = self.shared.env.random_u64();
        let reserve = self.shared.config.segment_bytes;
        let segment = Segment::create(&self.segments_dir, id, salt, (number, frame), reserve)?;
        let segment = Arc::new(segment);
        self.shared.segments.insert(Arc::clone(&segment));
        self.active = Active::new(segment, number + 1)?;
        self.active.allocated = self.active.allocated.max(reserve);
        // As if it were a new file; a spare one costs less, which the next reading shows.
        self.shared.space.spent(self.active.allocated);
        self.clean_up();
        Ok(())
    }

    fn stage(&mut self, Request { write, answer, kib }: Request) {
        let result = if let Err(error) = self.shared.failed() {
            Err(error)
        } else {
            match write {
                Write::Append { shard, stream, expected, entry } => self.stage_append(shard, &stream, expected, entry),
                Write::Publish(groups) => {
                    let mut last = Seq::ZERO;
                    for (stream, items) in groups {
                        last = self.stage_messages(&stream, items);
                    }
                    Ok(last)
                }
                Write::Trim { stream, through } => Ok(self.stage_trim(stream, through)),
                Write::Ack { seq } => {
                    self.staged.must_sync = true;
                    self.frame.acked(seq);
                    self.staged.acks.push(seq);
                    Ok(Seq(seq))
                }
            }
        };
        self.staged.answers.push((answer, result, kib));
    }

    /// The fence: what is staged and not yet durable counts too, or two owners in one frame
    /// could both win.
    fn stage_append(&mut self, shard: ShardId, stream: &Arc<Stream>, expected: Seq, entry: Bytes) -> Result<Seq> {
        let found = Seq(stream.claimed() - 1);
        if found == expected {
            Ok(self.stage_messages(stream, vec![entry]))
        } else {
            Err(Error::Fenced { shard, expected, found })
        }
    }

    fn stage_messages(&mut self, stream: &Arc<Stream>, items: Vec<Bytes>) -> Seq {
        let mut next = stream.claimed();
        self.staged.must_sync = true;
        if !items.is_empty() {
            self.staged.groups.push((Arc::clone(stream), items.len()));
        }
        for body in items {
            let offset = self.frame.message(stream.id, next, self.staged.at, &body);
            let place = self.place_in_frame(offset, body.len());
            self.staged.messages.push((place, body));
            next += 1;
        }
        stream.claim(next);
        Seq(next - 1)
    }

    fn place_in_frame(&self, offset: usize, body_bytes: usize) -> Place {
        Place {
            segment: self.active.segment.id,
            // Segments end at SEGMENT_BYTES_MAX, bodies at MESSAGE_BYTES_MAX.
            offset: (self.active.position + offset as u64) as u32,
            length: body_bytes as u32,
        }
    }

    fn stage_trim(&mut self, stream: Arc<Stream>, through: Seq) -> Seq {
        // The last message stays, so that its digest can still be checked and a reader sees the end.
        let last = (stream.claimed() - 1).max(1);
        let first = through.0.saturating_add(1).min(last);
        if first > stream.state().first {
            self.frame.trim(stream.id, first);
            self.staged.trims.push((stream, first));
        }
        Seq(first)
    }

    /// Adds to the frame what cleaning moves, in proportion to what else is written.
    fn stage_moves(&mut self) {
        let Some(mut cleaning) = self.cleaning.take() else { return };
        let mut budget = (self.frame.len() * 2).max(256 << 10);
        while budget > 0 {
            match cleaning.next() {
                Err(error) => {
                    // The segment stays as it is; its readers are told when they read.
                    tracing::error!(%error, "could not clean a segment of the bus's store");
                    return;
                }
                Ok(None) => break,
                Ok(Some((stream, message, from))) => {
                    budget = budget.saturating_sub(message.body.len() + record::MESSAGE_HEADER);
                    let offset = self.frame.moved(stream.id, message.seq.0, message.at, &message.body);
                    let to = self.place_in_frame(offset, message.body.len());
                    // Not answered to anybody, but its old copy goes once this one is durable.
                    self.staged.must_sync = true;
                    self.staged.moves.push((stream, message.seq.0, from, to));
                }
            }
        }
        self.cleaning = Some(cleaning);
    }

    /// Makes the frame durable, shows what it did, answers.
    fn commit(&mut self) {
        if !self.frame.is_empty() {
            self.stage_moves();
            match self.write_frame() {
                Ok(()) => self.apply(),
                Err(error) => self.withdraw(&error),
            }
        }
        self.frame.clear();
        for (answer, result, kib) in self.staged.answers.drain(..) {
            self.shared.intake.answered(kib);
            // Who asked may have gone; what was written stays written.
            let _ = answer.send(result);
        }
        self.expire_events();
        if self.cleaning.as_ref().is_some_and(Cleaning::is_done) {
            self.cleaning = None;
            self.clean_up();
        }
    }

    fn write_frame(&mut self) -> Result<(), Error> {
        self.shared.failed()?;
        let segment = &self.active.segment;
        let frame = self.frame.finish(segment.salt, self.active.next_frame);
        let end = self.active.position + frame.len() as u64;
        if end > SEGMENT_BYTES_MAX {
            return Err(full());
        }
        let written = segment.file.write_all_at(frame, self.active.position);
        if written.is_ok() && end > self.active.written_ahead {
            // Large frames are few; for them the zeros would cost more than they spare.
            let left = self.shared.config.segment_bytes.saturating_sub(end);
            let ahead = if (frame.len() as u64) < AHEAD_BYTES { AHEAD_BYTES.min(left) } else { 0 };
            let zeros = segment.file.write_all_at(&ZEROS[..ahead as usize], end);
            // Only a saving: without room for them, the frame itself is still written.
            self.active.written_ahead = end + if zeros.is_ok() { ahead } else { 0 };
        }
        if let Err(error) = written {
            let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            if is_full && segment.file.set_len(self.active.position).is_ok() {
                // Nothing of the frame is left, so the bus is sound and only full.
                self.active.written_ahead = self.active.position;
                self.active.allocated = self.active.position;
                return Err(full());
            }
            return Err(self.fail("could not write to", &error));
        }
        let reach = self.active.written_ahead.max(end);
        if reach > self.active.allocated {
            self.shared.space.spent(reach - self.active.allocated);
            self.active.allocated = reach;
        }
        self.dirty = true;
        self.active.position = end;
        self.active.segment.set_size(end);
        self.active.next_frame += 1;
        if self.staged.must_sync {
            // After a failed sync nobody knows what the disk holds, and asking again can be
            // answered wrongly with success. So the bus ends here, and a restart reads what is there.
            self.sync().map_err(|error| self.fail("could not make durable what was written to", &error))?;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            #[cfg(test)]
            if self.shared.fail_sync.load(Ordering::Relaxed) {
                return Err(io::Error::other("injected"));
            }
            self.active.segment.file.sync_data()?;
            self.dirty = false;
            self.shared.stats.syncs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn fail(&self, what: &str, error: &io::Error) -> Error {
        let reason = format!("{what} the store ({error}); it takes no more until the process is restarted");
        tracing::error!(%error, "the embedded bus {what} its store and stops");
        self.shared.fail(&reason);
        Error::Unknown { reason }
    }

    /// Nothing of this frame was written, or nobody knows: everybody is told so.
    fn withdraw(&mut self, error: &Error) {
        for (stream, _) in self.staged.groups.drain(..) {
            stream.claim(stream.end().0 + 1);
        }
        self.staged.messages.clear();
        self.staged.trims.clear();
        self.staged.acks.clear();
        if !self.staged.moves.is_empty() {
            self.staged.moves.clear();
            self.cleaning = None;
        }
        self.staged.must_sync = false;
        for (_, result, _) in &mut self.staged.answers {
            if result.is_ok() {
                *result = Err(error.clone());
            }
        }
    }

    fn apply(&mut self) {
        let staged = &mut self.staged;
        staged.must_sync = false;
        let stats = &self.shared.stats;
        stats.messages.fetch_add(staged.messages.len() as u64, Ordering::Relaxed);
        let mut live = 0;
        let mut messages = staged.messages.drain(..);
        for (stream, count) in staged.groups.drain(..) {
            let mut bytes = 0;
            let last = {
                let mut state = stream.state();
                for (place, body) in messages.by_ref().take(count) {
                    // What a message takes in memory: its body, and about this much around it.
                    bytes += body.len() + 64;
                    live += place.record_bytes();
                    if stream.id == StreamId::EVENTS {
                        self.events_bytes += place.record_bytes();
                    }
                    state.push(place, staged.at, body);
                }
                state.next - 1
            };
            stream.changed.notify_waiters();
            self.tails_bytes += bytes;
            self.tails.push_back((stream, last, bytes));
        }
        drop(messages);
        while self.tails_bytes > self.shared.config.tail_bytes
            && let Some((stream, last, bytes)) = self.tails.pop_front()
        {
            self.tails_bytes -= bytes;
            stream.state().evict(last);
        }
        for (stream, seq, from, to) in staged.moves.drain(..) {
            if stream.state().moved(seq, from, to) {
                live += to.record_bytes();
                self.shared.segments.release(&[from]);
                stats.moved.fetch_add(to.record_bytes(), Ordering::Relaxed);
            }
        }
        self.active.segment.add_live(live);
        let mut gone = Vec::new();
        for (stream, first) in staged.trims.drain(..) {
            let before = gone.len();
            stream.state().trim(first, |place| gone.push(place));
            if stream.id == StreamId::EVENTS {
                self.events_bytes -= gone[before..].iter().map(Place::record_bytes).sum::<u64>();
            }
        }
        if !staged.acks.is_empty() {
            let stream = self.shared.streams.get(StreamId::INGRESS);
            let first = self.shared.ingress.acked(staged.acks.drain(..), &stream);
            stream.state().trim(first, |place| gone.push(place));
        }
        if !gone.is_empty() {
            self.shared.segments.release(&gone);
            self.drop_empty_segments();
        }
    }

    /// Keeps the events within their bounds. The trim is part of the next frame.
    fn expire_events(&mut self) {
        let config = &self.shared.config;
        let stream = self.shared.streams.get(StreamId::EVENTS);
        let first = {
            let state = stream.state();
            let kept = state.next - state.first;
            // An eighth of slack, so that events go in runs and not one by one.
            if kept <= config.events_keep + config.events_keep / 8 && self.events_bytes <= config.events_bytes_max {
                return;
            }
            let by_count = state.next.saturating_sub(config.events_keep);
            let mut bytes = self.events_bytes;
            let by_bytes = state.kept().find_map(|(seq, place)| {
                if bytes <= config.events_bytes_max / 8 * 7 {
                    return Some(seq);
                }
                bytes -= place.record_bytes();
                None
            });
            by_count.max(by_bytes.unwrap_or(state.next - 1))
        };
        self.stage_trim(stream, Seq(first.saturating_sub(1)));
    }

    /// Removes segments of which nothing is kept, and begins to clean one if too much is garbage.
    fn clean_up(&mut self) {
        self.drop_empty_segments();
        if self.cleaning.is_none() {
            self.cleaning = Cleaning::begin(&self.shared, self.active.segment.id);
        }
    }

    fn drop_empty_segments(&mut self) {
        let active = self.active.segment.id;
        for segment in self.shared.segments.all() {
            if segment.id == active || segment.live() > 0 {
                continue;
            }
            // The trims that emptied it must not be forgotten by a crash.
            if let Err(error) = self.sync() {
                self.fail("could not make durable what was written to", &error);
                return;
            }
            let id = segment.id;
            self.shared.segments.remove(id);
            if let Err(error) = segment.retire() {
                // It is read again at the next start, and found empty again.
                tracing::warn!(%error, segment = id, "could not remove an empty segment of the bus's store");
            }
        }
    }
}

fn full() -> Error {
    Error::Full { reason: "the disk of the data directory is full; free some space, intake goes on by itself".into() }
}
