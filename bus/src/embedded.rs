//! The embedded transport: a bus for one process and one disk, and the default.
//!
//! ```text
//!  writers ──requests──▶ committer (one thread): one frame ─▶ one write, one fdatasync
//!                             │ then
//!                             ├──▶ answers all who wrote
//!                             └──▶ streams in memory: index, latest bodies ──woken──▶ readers
//! ```
//!
//! All messages (queues, logs, events, ingress) go into one row of segment files, in the order of
//! commit; an index in memory says where each one is (12 bytes a message). What is trimmed is
//! dropped from the index, and segments in which little is kept are cleaned and removed. At start
//! the segments are read once and every checksum is checked. Snapshots are files of their own;
//! members live in memory, as all cells do. Why not a key-value store:
//! `ops/docs/decisions/0003-embedded-store.md`.
//!
//! Promises, beside those of [`crate::contract`]: sequences are dense; [`Bus::publish_all`] and
//! every other write is all or nothing (except that below the free-space threshold the control
//! part of a mixed `publish_all` is taken and the job part refused); nothing is answered before
//! it is durable; after a failed write or sync nothing more is taken until a restart.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::codec;
use crate::contract::{
    Bus, ClusterRecord, Delivery, Depth, Error, Event, EventReader, Member, Message, Position, Queue, QueueKind,
    Reader, Result, SnapshotId, Unacked, check_size,
};
use crate::env::Env;
use crate::ids::{CellId, Seq, ShardId};
use crate::job::Digest;

mod clean;
mod cluster;
mod commit;
mod data_dir;
mod error;
mod gather;
mod ingress;
mod intake;
mod members;
mod reader;
mod record;
mod recover;
mod segment;
mod snapshots;
mod space;
mod stream;
#[cfg(test)]
mod tests;

pub use error::OpenError;

use commit::Committer;
use ingress::Ingress;
use intake::{Intake, Write};
use members::Members;
use reader::{EventStreamReader, StreamReader, Trimmed};
use record::MESSAGE_HEADER;
use segment::Segments;
use snapshots::Snapshots;
use space::{Need, Space};
use stream::{DiskRead, Found, Stream, StreamId, Streams};

/// Where the bus keeps its data, and how much.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory, for this process alone. Made if it is not there.
    pub dir: PathBuf,
    /// Below this much free space jobs are refused; below a quarter of it everything is.
    pub free_bytes_min: u64,
    /// How many events are kept for readers that come back.
    pub events_keep: u64,
    /// How many bytes of events are kept at the most.
    pub events_bytes_max: u64,
    /// How many bytes of the latest messages are held in memory for readers that keep up. Those
    /// that fall further behind read the segments.
    pub tail_bytes: usize,
    /// How large a segment grows before the next is begun. The disk holds up to about twice what
    /// is kept, and two segments.
    pub segment_bytes: u64,
}

impl Config {
    /// The defaults, in this directory.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            free_bytes_min: 512 << 20,
            events_keep: 100_000,
            events_bytes_max: 256 << 20,
            // About a second of full speed: a reader that is further behind has more to do than
            // to wait for the page cache.
            tail_bytes: 48 << 20,
            segment_bytes: 64 << 20,
        }
    }
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages made durable since the start.
    pub messages_total: u64,
    /// Calls of `fdatasync` since the start.
    pub syncs_total: u64,
    /// Bytes moved by cleaning since the start.
    pub moved_bytes_total: u64,
    /// Segment files.
    pub segments: u64,
    /// Their size in bytes.
    pub segment_bytes: u64,
    /// Bytes of it that are kept messages.
    pub live_bytes: u64,
    /// Free space of the disk below.
    pub free_bytes: u64,
}

/// The embedded bus. Dropping it closes it, as [`Embedded::close`] does.
pub struct Embedded {
    shared: Arc<Shared>,
    snapshots: Arc<Snapshots>,
    members: Members,
    /// Held while the cluster record is looked at, so that one caller writes it.
    cluster: Arc<Mutex<()>>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

/// What the bus, its readers, its deliveries and its committer share.
struct Shared {
    env: Env,
    config: Config,
    streams: Streams,
    segments: Segments,
    intake: Intake,
    ingress: Ingress,
    space: Space,
    /// Why nothing more is taken.
    failed: OnceLock<String>,
    stopped: AtomicBool,
    stats: Counters,
    #[cfg(test)]
    fail_sync: AtomicBool,
}

#[derive(Default)]
struct Counters {
    messages: AtomicU64,
    syncs: AtomicU64,
    moved: AtomicU64,
}

impl Shared {
    /// An error once a write or sync has failed.
    fn failed(&self) -> Result<()> {
        match self.failed.get() {
            Some(reason) => Err(Error::Unavailable { reason: reason.clone() }),
            None => Ok(()),
        }
    }
    /// An error once nothing more will come.
    fn running(&self) -> Result<()> {
        self.failed()?;
        if self.stopped.load(Ordering::Acquire) { Err(intake::closed()) } else { Ok(()) }
    }
    fn fail(&self, reason: &str) {
        // The first reason is the one to tell.
        let _ = self.failed.set(reason.to_owned());
        self.wake_all();
    }
    /// The committer's last act.
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.intake.close();
        self.intake.abandon();
        self.wake_all();
    }
    fn wake_all(&self) {
        for stream in self.streams.all() {
            stream.changed.notify_waiters();
        }
    }
    /// Reads from disk, off the async threads.
    async fn read(&self, read: DiskRead) -> Result<Vec<Message>> {
        self.env.blocking("read segment", move || read.run()).await.ok_or_else(intake::closed)?
    }
}

impl Embedded {
    /// Opens the data directory, or makes it. Reads all segments once: about a second for each
    /// GiB. Blocks.
    ///
    /// # Errors
    /// [`OpenError`]; nothing in the directory was changed then.
    #[expect(
        clippy::disallowed_methods,
        reason = "the committer blocks on the disk all its life: it needs a thread of its own, and the simulator has a bus of its own"
    )]
    pub fn open(config: Config, env: Env) -> Result<Arc<Self>, OpenError> {
        let dir = config.dir.as_path();
        data_dir::create(dir)?;
        let lock = data_dir::lock(dir)?;
        data_dir::check_format(dir, &*env.disk())?;
        let snapshots = Snapshots::open(dir.join("snapshots"), env.disk())
            .map_err(|error| OpenError::io(dir, "listing its snapshots", error))?;
        let space = Space::new(dir.to_owned(), &env, config.free_bytes_min)
            .map_err(|error| OpenError::io(dir, "reading its free space", error))?;
        let recovered = recover::recover(dir, env.random_u64(), config.segment_bytes)?;
        let log_dir = recover::log_dir(dir);
        let shared = Arc::new(Shared {
            env,
            streams: Streams::new(recovered.streams),
            segments: Segments::new(recovered.segments),
            intake: Intake::new(),
            ingress: Ingress::new(recovered.acked),
            space,
            failed: OnceLock::new(),
            stopped: AtomicBool::new(false),
            stats: Counters::default(),
            #[cfg(test)]
            fail_sync: AtomicBool::new(false),
            config: config.clone(),
        });
        let committer = Committer::new(Arc::clone(&shared), log_dir, recovered.active, lock);
        let thread = std::thread::Builder::new()
            .name("bus-committer".into())
            .spawn(move || committer.run())
            .map_err(|error| OpenError::io(&config.dir, "starting its thread", error))?;
        Ok(Arc::new(Self {
            shared,
            snapshots: Arc::new(snapshots),
            members: Members::default(),
            cluster: Arc::default(),
            committer: Mutex::new(Some(thread)),
        }))
    }

    /// Writes what has been asked for, takes no more, and lets the directory go. Readers get
    /// [`Error::Unavailable`]. Idempotent.
    pub async fn close(&self) {
        self.shared.intake.close();
        let thread = self.committer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A committer that panicked has said so itself.
            self.shared.env.blocking("close the bus", move || drop(thread.join())).await;
        }
    }

    /// Figures for metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let segments = self.shared.segments.all();
        Stats {
            messages_total: self.shared.stats.messages.load(Ordering::Relaxed),
            syncs_total: self.shared.stats.syncs.load(Ordering::Relaxed),
            moved_bytes_total: self.shared.stats.moved.load(Ordering::Relaxed),
            segments: segments.len() as u64,
            segment_bytes: segments.iter().map(|segment| segment.size()).sum(),
            live_bytes: segments.iter().map(|segment| segment.live()).sum(),
            free_bytes: self.shared.space.free_bytes(&self.shared.env),
        }
    }

    fn check(&self, need: Need) -> Result<()> {
        self.shared.failed()?;
        self.shared.space.check(&self.shared.env, need)
    }

    /// Makes messages durable.
    async fn write(&self, groups: Vec<(Arc<Stream>, Vec<Bytes>)>) -> Result<Seq> {
        let mut bytes = 0;
        for body in groups.iter().flat_map(|(_, items)| items) {
            check_size(body)?;
            bytes += body.len() + MESSAGE_HEADER;
        }
        self.shared.intake.write(bytes, Write::Publish(groups)).await
    }

    fn reader(&self, stream: Arc<Stream>, next: u64, trimmed: Trimmed) -> StreamReader {
        StreamReader { shared: Arc::clone(&self.shared), stream, next, trimmed }
    }

    /// One message, if it is kept.
    async fn message(&self, stream: &Stream, seq: Seq) -> Result<Option<Message>> {
        let mut messages = match stream.read(seq.0, 1, usize::MAX, &self.shared.segments) {
            Found::Messages(messages) => messages,
            Found::OnDisk(read) => self.shared.read(read).await?,
            Found::AtEnd | Found::Trimmed(_) => Vec::new(),
        };
        Ok(messages.pop())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.intake.close();
        if let Some(thread) = self.committer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It waits for nothing but the disk, and the directory must be free once this is gone.
            let _ = thread.join();
        }
    }
}

fn need(kind: QueueKind) -> Need {
    match kind {
        QueueKind::Jobs => Need::Intake,
        QueueKind::Control => Need::Progress,
    }
}

#[async_trait]
impl Bus for Embedded {
    async fn cluster(&self, initial: ClusterRecord) -> Result<ClusterRecord> {
        self.on_record(move |record| match record.read()? {
            Some(stored) => Ok(stored),
            None => record.write(initial),
        })
        .await
    }
    async fn cluster_record(&self) -> Result<Option<ClusterRecord>> {
        self.on_record(cluster::Stored::read).await
    }
    async fn replace_cluster(&self, expected: &ClusterRecord, new: ClusterRecord) -> Result<ClusterRecord> {
        let expected = expected.clone();
        self.on_record(move |record| match record.read()? {
            Some(stored) if stored == expected => record.write(new),
            Some(stored) => Ok(stored),
            None => Err(Error::Unavailable { reason: "there is no cluster record".to_owned() }),
        })
        .await
    }

    async fn ingress_publish(&self, tenant: &str, headers: Vec<(String, String)>, body: Bytes) -> Result<()> {
        self.check(Need::Intake)?;
        check_size(&body)?;
        let stream = self.shared.streams.get(StreamId::INGRESS);
        let message = ingress::encode(tenant, headers, body);
        // Its envelope may take it over the limit for messages by a little; only the limit for
        // requests bounds it here.
        let bytes = message.len() + MESSAGE_HEADER;
        self.shared.intake.write(bytes, Write::Publish(vec![(stream, vec![message])])).await.map(drop)
    }
    async fn reply(&self, _to: &str, _body: Bytes) {}

    async fn ingress_next(&self, redeliver_after: Duration) -> Result<Box<dyn Delivery>> {
        ingress::next(&self.shared, redeliver_after).await
    }
    async fn ingress_unacked(&self, after: Seq, max: usize) -> Result<Vec<Unacked>> {
        self.shared.running()?;
        ingress::unacked(&self.shared, after, max).await
    }
    async fn ingress_depth(&self) -> Result<u64> {
        self.shared.running()?;
        Ok(self.shared.ingress.depth(&self.shared.streams.get(StreamId::INGRESS)))
    }

    async fn publish(&self, queue: Queue, items: Vec<Bytes>) -> Result<Seq> {
        self.check(need(queue.kind))?;
        let stream = self.shared.streams.get(StreamId::queue(queue));
        if items.is_empty() {
            return Ok(stream.end());
        }
        self.write(vec![(stream, items)]).await
    }
    async fn publish_all(&self, items: Vec<(Queue, Vec<Bytes>)>) -> Result<()> {
        self.check(Need::Progress)?;
        let mut refused = None;
        let mut groups = Vec::with_capacity(items.len());
        for (queue, items) in items {
            match self.shared.space.check(&self.shared.env, need(queue.kind)) {
                Ok(()) if items.is_empty() => {}
                Ok(()) => groups.push((self.shared.streams.get(StreamId::queue(queue)), items)),
                // What control carries must get through as long as there is any room.
                Err(error) => refused = Some(error),
            }
        }
        if !groups.is_empty() {
            self.write(groups).await?;
        }
        refused.map_or(Ok(()), Err)
    }
    async fn read_queue(&self, queue: Queue, after: Position) -> Result<Box<dyn Reader>> {
        self.shared.running()?;
        let stream = self.shared.streams.get(StreamId::queue(queue));
        let known = match after.seq {
            Seq::ZERO => false,
            seq => self.message(&stream, seq).await?.is_some_and(|message| Digest::of(&message.body) == after.digest),
        };
        let next = if known { after.seq.0 + 1 } else { stream.state().first };
        Ok(Box::new(self.reader(stream, next, Trimmed::Refuse)))
    }
    async fn queue_end(&self, queue: Queue) -> Result<Seq> {
        self.shared.running()?;
        Ok(self.shared.streams.get(StreamId::queue(queue)).end())
    }
    async fn depth(&self, queue: Queue, after: Seq) -> Result<Depth> {
        self.shared.running()?;
        let stream = self.shared.streams.get(StreamId::queue(queue));
        let (first, next) = {
            let state = stream.state();
            (state.first, state.next)
        };
        let from = after.0.saturating_add(1).max(first);
        if from >= next {
            return Ok(Depth::default());
        }
        let oldest_at = match stream.taken_at(from) {
            Some(at) => Some(at),
            None => self.message(&stream, Seq(from)).await?.map(|message| message.at),
        };
        Ok(Depth { messages: next - from, oldest_at })
    }
    async fn trim_queue(&self, queue: Queue, through: Seq) -> Result<()> {
        let stream = self.shared.streams.get(StreamId::queue(queue));
        self.trim(stream, through).await
    }

    async fn append(&self, shard: ShardId, expected: Seq, entry: Bytes) -> Result<Seq> {
        self.check(Need::Progress)?;
        check_size(&entry)?;
        let stream = self.shared.streams.get(StreamId::log(shard));
        self.shared.intake.write(entry.len() + MESSAGE_HEADER, Write::Append { shard, stream, expected, entry }).await
    }
    async fn log_end(&self, shard: ShardId) -> Result<Seq> {
        self.shared.running()?;
        Ok(self.shared.streams.get(StreamId::log(shard)).end())
    }
    async fn read_log(&self, shard: ShardId, after: Seq) -> Result<Box<dyn Reader>> {
        self.shared.running()?;
        let stream = self.shared.streams.get(StreamId::log(shard));
        let (first, next) = {
            let state = stream.state();
            (state.first, state.next)
        };
        let from = after.0.saturating_add(1);
        if from < first {
            return Err(Error::Trimmed { first: Seq(first) });
        }
        if from > next {
            // It would wait in silence for entries that were there once.
            return Err(Error::Damaged {
                what: format!("the log of shard {shard} ends at {}, before {after}", next - 1),
            });
        }
        Ok(Box::new(self.reader(stream, from, Trimmed::Refuse)))
    }
    async fn write_snapshot(&self, id: SnapshotId, body: Bytes) -> Result<()> {
        self.shared.running()?;
        self.check(Need::Progress)?;
        self.snapshots.write(&self.shared.env, id, body).await
    }
    async fn snapshots(&self, shard: ShardId) -> Result<Vec<SnapshotId>> {
        self.shared.running()?;
        Ok(self.snapshots.of(shard))
    }
    async fn read_snapshot(&self, id: SnapshotId) -> Result<Option<Bytes>> {
        self.shared.running()?;
        self.snapshots.read(&self.shared.env, id).await
    }
    async fn trim_log(&self, shard: ShardId, through: Seq, keep_snapshots: usize) -> Result<()> {
        self.trim(self.shared.streams.get(StreamId::log(shard)), through).await?;
        self.snapshots.trim(&self.shared.env, shard, keep_snapshots).await
    }

    async fn beat(&self, member: Member, ttl: Duration) -> Result<()> {
        self.shared.running()?;
        self.members.beat(member, self.shared.env.mono(), ttl);
        Ok(())
    }
    async fn leave(&self, cell: &CellId) -> Result<()> {
        self.shared.running()?;
        self.members.leave(cell);
        Ok(())
    }
    async fn members(&self) -> Result<Vec<Member>> {
        self.shared.running()?;
        Ok(self.members.live(self.shared.env.mono()))
    }

    async fn publish_events(&self, events: Vec<Event>) -> Result<()> {
        self.check(Need::Progress)?;
        let mut items = Vec::with_capacity(events.len());
        for event in events {
            check_size(&event.body)?;
            items.push(Bytes::from(codec::encode(&event)));
        }
        if items.is_empty() {
            return Ok(());
        }
        let bytes = items.iter().map(|item| item.len() + MESSAGE_HEADER).sum();
        self.shared
            .intake
            .write(bytes, Write::Publish(vec![(self.shared.streams.get(StreamId::EVENTS), items)]))
            .await
            .map(drop)
    }
    async fn read_events(&self, after: Option<Seq>) -> Result<Box<dyn EventReader>> {
        self.shared.running()?;
        let stream = self.shared.streams.get(StreamId::EVENTS);
        let (first, next) = {
            let state = stream.state();
            (state.first, state.next)
        };
        let from = match after {
            None => next,
            // Not from this stream: what is kept is all that can be offered.
            Some(after) if after.0 >= next => first,
            Some(after) => after.0 + 1,
        };
        Ok(Box::new(EventStreamReader(self.reader(stream, from, Trimmed::Skip))))
    }

    fn accepting(&self) -> Result<()> {
        self.shared.running()?;
        self.shared.space.check(&self.shared.env, Need::Intake)
    }
}

impl Embedded {
    /// Not synced by itself: a trim that a crash undoes is asked for again.
    async fn trim(&self, stream: Arc<Stream>, through: Seq) -> Result<()> {
        self.shared.failed()?;
        self.shared.intake.write(16, Write::Trim { stream, through }).await.map(drop)
    }
}
