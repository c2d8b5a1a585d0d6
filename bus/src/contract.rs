//! The contract that every transport keeps: what a cell may ask of a bus, and what it may rely on.
//!
//! ```text
//!  producers ─▶ ingress ─▶ any cell ─▶ queue(shard, jobs | control) ─▶ owner ─▶ log(shard) ─▶ readers
//!                                                                        └────▶ events(tenant) ─▶ producers
//! ```
//!
//! `conformance` holds one suite that every transport runs; what these docs say MUST hold, it
//! checks. All methods are cancel safe in this sense: dropping the future leaves the bus sound,
//! and whether a write took place is then unknown, as after [`Error::Unknown`].

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::env::WallMs;
use crate::format::Build;
use crate::ids::{CellId, Epoch, Seq, ShardCount, ShardId, TenantId};
use crate::job::Digest;

/// Why the bus did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Somebody else has written since: the caller's place in the log is no longer the end.
    /// Nothing was written.
    #[error("shard {shard}: the log ends at {found}, not at {expected}: another owner has written")]
    Fenced {
        /// The shard.
        shard: ShardId,
        /// Where the caller thought that the log ends.
        expected: Seq,
        /// Where it ends.
        found: Seq,
    },
    /// Nothing was written, because the store is full or below its free-space threshold.
    #[error("the bus takes no more for now: {reason}")]
    Full {
        /// What is full, and what to do.
        reason: String,
    },
    /// Larger than one message may be. Nothing was written.
    #[error("{bytes} bytes are more than the {max} that one message may have")]
    TooLarge {
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        max: usize,
    },
    /// The bus cannot be reached, or is closing. Nothing was written.
    #[error("the bus is not available: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// No answer, or one that says nothing: the write may or may not have taken place.
    #[error("the bus gave no answer: {reason}")]
    Unknown {
        /// Why.
        reason: String,
    },
    /// What is stored is not what was written. A person must look.
    #[error("the bus holds damaged data: {what}")]
    Damaged {
        /// What is damaged, and where.
        what: String,
    },
    /// A position that lies before the first message that is still kept.
    #[error("what was asked for begins before {first}, the first that is still kept")]
    Trimmed {
        /// The first sequence that can still be read.
        first: Seq,
    },
}

impl Error {
    /// Whether the same call may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Unavailable { .. } | Self::Unknown { .. } => true,
            Self::Fenced { .. } | Self::TooLarge { .. } | Self::Damaged { .. } | Self::Trimmed { .. } => false,
        }
    }
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The most bytes that one message (a queue item, a log entry, an event) may have on any transport.
pub const MESSAGE_BYTES_MAX: usize = 6 << 20;

/// An error for what no transport takes.
pub(crate) fn check_size(body: &Bytes) -> Result<()> {
    if body.len() <= MESSAGE_BYTES_MAX {
        Ok(())
    } else {
        Err(Error::TooLarge { bytes: body.len(), max: MESSAGE_BYTES_MAX })
    }
}

/// Written once when a cluster is made, checked at every start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Tells clusters apart; random.
    pub cluster_id: uuid::Uuid,
    /// N.
    pub shards: ShardCount,
    /// How keys map to shards. 1: first eight bytes, big endian, mod N.
    pub hash_scheme: u16,
    /// The format that cells write. Raised only by `cellbus upgrade finalize`.
    pub format: u16,
    /// When it was made.
    pub created_at: WallMs,
}

/// The two queues of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QueueKind {
    /// Work to be accepted: read up to a bound.
    Jobs,
    /// Reports, cancels, observations, repairs: always read, never refused for fullness of jobs.
    Control,
}

/// One queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Queue {
    /// Whose.
    pub shard: ShardId,
    /// Which of the two.
    pub kind: QueueKind,
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            QueueKind::Jobs => "jobs",
            QueueKind::Control => "control",
        };
        write!(f, "{kind}.{}", self.shard)
    }
}

/// How far a queue has been read: the last message taken, and its digest, so that a queue that
/// was lost or replaced is noticed and read again from its start (dedupe makes that safe).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// The last message taken; zero for none.
    pub seq: Seq,
    /// [`Digest::of`] its body.
    pub digest: Digest,
}

/// A message with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its place in its queue or log. Grows by at least one from message to message.
    pub seq: Seq,
    /// When the bus took it.
    pub at: WallMs,
    /// Its body.
    pub body: Bytes,
}

/// What waits in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Depth {
    /// Messages after the position asked for.
    pub messages: u64,
    /// When the first of them was taken.
    pub oldest_at: Option<WallMs>,
}

/// A reader of one queue or log from a position on: first what is there, then what comes.
///
/// It MUST give messages in order, each once, none left out.
#[async_trait]
pub trait Reader: Send {
    /// Waits until there is at least one message, then gives up to `max` of those that are there,
    /// about 4 MiB at the most. Never empty. Cancel safe: a dropped call takes nothing.
    ///
    /// # Errors
    /// [`Error::Trimmed`] when what comes next is no longer kept; [`Error::Unavailable`].
    async fn next(&mut self, max: usize) -> Result<Vec<Message>>;
}

/// Names a snapshot. Immutable once written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotId {
    /// Whose.
    pub shard: ShardId,
    /// State up to and with this log entry.
    pub seq: Seq,
    /// Who wrote it.
    pub epoch: Epoch,
}

/// How long a delivery that was dropped stays away: long enough not to spin while what it needs is
/// away, short enough to be taken up by another at once in the eyes of a producer.
pub const DROPPED_FOR: Duration = Duration::from_millis(500);

/// One message from a producer, as it came, not yet acknowledged. Dropped without an ack, it comes
/// again after [`DROPPED_FOR`], to any cell: whoever could not take it gives it back by that. (After
/// the time given to [`Bus::ingress_next`] where the process, or its way to the bus, was lost.)
#[async_trait]
pub trait Delivery: Send {
    /// From the subject or topic; the embedded transport's from [`Bus::ingress_publish`].
    fn tenant(&self) -> &str;
    /// Headers, for CloudEvents in binary mode. Names in lower case.
    fn headers(&self) -> &[(String, String)];
    /// The body.
    fn body(&self) -> &Bytes;
    /// Done with: never delivered again, unless the ack is lost with the connection or the bus,
    /// which is as if the consumer had died just before it. Call only after the item is durable in
    /// its queue.
    ///
    /// # Errors
    /// When the bus did not take the ack; the message then comes again.
    async fn ack(self: Box<Self>) -> Result<()>;
    /// Where the producer waits for an answer (a NATS reply inbox), if it does: for [`Bus::reply`].
    fn reply_to(&self) -> Option<&str>;
    /// How many messages waited for a cell when this one was given out, as far as the transport says so with it.
    fn waiting(&self) -> u64 {
        0
    }
}

/// A producer's message that is not acked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unacked {
    /// Its place in the ingress. Grows.
    pub seq: Seq,
    /// See [`Delivery::tenant`].
    pub tenant: String,
    /// See [`Delivery::headers`]. Where its producer waits for an answer is not among them.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

/// The header in which a producer names where it waits for an answer, as JetStream keeps the reply
/// subject of a message for its own acknowledgement. The value is an address of an inbox.
pub const REPLY_TO: &str = "cellbus-reply-to";

/// Where a producer waits for answers.
#[async_trait]
pub trait Inbox: Send {
    /// What its addresses begin with: the answer to the message that the producer itself calls
    /// number 7 comes in at `<address>.7`.
    fn address(&self) -> &str;
    /// The next answer, with the number of its message. Best effort: an answer that comes while the
    /// connection is down is lost. Cancel safe.
    ///
    /// # Errors
    /// When no more can come: the bus is closed.
    async fn next(&mut self) -> Result<(u64, Bytes)>;
}

/// An event for producers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Stable: the same event published twice has the same id, and readers may see it twice.
    pub id: String,
    /// Whose stream it goes on.
    pub tenant: TenantId,
    /// The CloudEvent as JSON.
    pub body: Bytes,
}

/// An event with its place in the stream of all events: what `Last-Event-ID` holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedEvent {
    /// Its place. Grows.
    pub seq: Seq,
    /// The event.
    pub event: Event,
}

/// A live process of the cluster, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which incarnation.
    pub cell: CellId,
    /// What it is there for.
    pub role: Role,
    /// Where other cells and users reach it (`http://host:port`, or `local:<cell>` in one process).
    pub address: String,
    /// Whether it takes shards.
    pub state: MemberState,
    /// When it joined.
    pub joined_at: WallMs,
    /// Grows with every beat.
    pub beat: u64,
    /// Of which build it is.
    #[serde(default)]
    pub build: Build,
}

/// What a member is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It runs shards and fronts managers.
    Cell,
    /// It answers look-ups, and runs nothing.
    Directory,
    /// It says how many cells there are to be, or waits to.
    Controller,
}

/// Whether a member takes shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It does.
    Active,
    /// It hands over what it has and takes no more.
    Draining,
}

/// A message bus. One object a process; cheap calls may be made from many tasks at once.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Gives the cluster record, writing `initial` if there is none. Of several callers at once
    /// exactly one writes, and all get what it wrote.
    ///
    /// # Errors
    /// When the bus cannot be reached, or holds a record that this build cannot read.
    async fn cluster(&self, initial: ClusterRecord) -> Result<ClusterRecord>;
    /// The cluster record; `None` before there is one. It may be a moment old.
    ///
    /// # Errors
    /// As [`Bus::cluster`].
    async fn cluster_record(&self) -> Result<Option<ClusterRecord>>;
    /// Puts `new` in the place of the cluster record if that is `expected`, and gives what is stored
    /// then: `new`, or what somebody else has written. Of several callers at once that expect the
    /// same exactly one writes. Durable on return.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: nothing was written, there may be no record. [`Error::Unknown`]: ask
    /// what is there.
    async fn replace_cluster(&self, expected: &ClusterRecord, new: ClusterRecord) -> Result<ClusterRecord>;

    // ── ingress: competing consumers, acked ──────────────────────────────────────────────

    /// Puts a producer's message on `cellbus.jobs.<tenant>`. Durable on return. Real producers
    /// use their own client; this is for the embedded transport and the conformance suite.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::TooLarge`], [`Error::Unavailable`], [`Error::Unknown`].
    async fn ingress_publish(&self, tenant: &str, headers: Vec<(String, String)>, body: Bytes) -> Result<()>;
    /// The next message that nobody has taken. One not acked within `redeliver_after` comes again,
    /// to any cell. A late ack of the first delivery counts. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn ingress_next(&self, redeliver_after: Duration) -> Result<Box<dyn Delivery>>;
    /// How many messages of the ingress one cell does best to have taken and not acknowledged. Where steps take long
    /// they bound the rate, as those that are on their way at once share requests; where they do not, more of them
    /// only cost. All come again when the cell dies.
    fn ingress_in_flight(&self) -> usize {
        2_048
    }
    /// Messages that are not acked, whether taken or not, after this place: up to `max`, about 4 MiB
    /// at the most; empty when there are no more. It takes nothing: this is for backups. What comes or
    /// is acked meanwhile may be there or not.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn ingress_unacked(&self, after: Seq, max: usize) -> Result<Vec<Unacked>>;
    /// How many messages are not acked, whether taken or not. It may be a moment old. For the autoscaler,
    /// about once a second.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn ingress_depth(&self) -> Result<u64>;

    /// Answers a producer at its [`Delivery::reply_to`]. Best effort: nobody may be listening. Does
    /// nothing on transports without inboxes.
    async fn reply(&self, to: &str, body: Bytes);
    /// An inbox for answers to messages that carry one of its addresses in their header
    /// [`REPLY_TO`]. `None` on transports without inboxes.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn inbox(&self) -> Result<Option<Box<dyn Inbox>>> {
        Ok(None)
    }

    // ── queues: publish; read in order from a position; depth ────────────────────────────

    /// Appends `items` to the queue, in order. Durable on return; the sequence is that of the
    /// last. All or none on transports with batches; otherwise, on error, some of them may be there,
    /// which dedupe makes harmless.
    ///
    /// # Errors
    /// [`Error::Full`] (never for [`QueueKind::Control`] while there is any room),
    /// [`Error::TooLarge`], [`Error::Unavailable`], [`Error::Unknown`].
    async fn publish(&self, queue: Queue, items: Vec<Bytes>) -> Result<Seq>;
    /// [`Bus::publish`] to many queues at once, in one durable step where the transport can.
    ///
    /// # Errors
    /// As `publish`; some queues may then have their items and others not.
    async fn publish_all(&self, items: Vec<(Queue, Vec<Bytes>)>) -> Result<()>;
    /// A reader of what comes after `after`. If the message at `after` is not the one whose digest
    /// it carries (the queue was lost or replaced), or lies beyond the end, reading begins at the
    /// start of the queue: the first message that is kept. So it does for the position zero, and
    /// for one whose message has been trimmed.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn read_queue(&self, queue: Queue, after: Position) -> Result<Box<dyn Reader>>;
    /// The sequence of the last message; zero if there never was one.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn queue_end(&self, queue: Queue) -> Result<Seq>;
    /// What waits after `after`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn depth(&self, queue: Queue, after: Seq) -> Result<Depth>;
    /// Says that nothing up to and with `through` will be read again. The bus may drop it, but
    /// keeps the last message, so that its digest can still be checked.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; trying again later is enough.
    async fn trim_queue(&self, queue: Queue, through: Seq) -> Result<()>;

    // ── log: fenced append, read from a position, snapshot, trim ─────────────────────────

    /// Appends one entry if the log's last entry is `expected` (zero for an empty log). Durable
    /// on return. This is the fence: of two owners that expect the same end one succeeds.
    ///
    /// # Errors
    /// [`Error::Fenced`]: nothing was written, give the shard up. [`Error::Unknown`]: close the
    /// shard and reopen by replay. [`Error::Full`], [`Error::Unavailable`]: nothing was written.
    async fn append(&self, shard: ShardId, expected: Seq, entry: Bytes) -> Result<Seq>;
    /// The sequence of the last entry, through whoever decides appends; zero if there never was one.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn log_end(&self, shard: ShardId) -> Result<Seq>;
    /// A reader of entries after `after`.
    ///
    /// # Errors
    /// [`Error::Trimmed`] when entries after `after` are no longer kept: load the snapshot (a
    /// transport may say so in the reader's first call instead). [`Error::Damaged`] when `after`
    /// lies beyond the end, where a reader would wait in silence for what was there once.
    async fn read_log(&self, shard: ShardId, after: Seq) -> Result<Box<dyn Reader>>;
    /// Stores a snapshot, in chunks of its own choosing. Durable on return. It counts only once a
    /// fenced record in the log names it. One name has one content: written again under the same
    /// id, the first stays.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Unavailable`]; a partial snapshot is never readable.
    async fn write_snapshot(&self, id: SnapshotId, body: Bytes) -> Result<()>;
    /// The snapshots that can be read, oldest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn snapshots(&self, shard: ShardId) -> Result<Vec<SnapshotId>>;
    /// The snapshot, or `None` if there is none by that name.
    ///
    /// # Errors
    /// [`Error::Damaged`] when its checksum is wrong; [`Error::Unavailable`].
    async fn read_snapshot(&self, id: SnapshotId) -> Result<Option<Bytes>>;
    /// Drops entries up to and with `through` (the last entry is always kept, and with it the
    /// fence) and all snapshots but the last `keep_snapshots`.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; trying again later is enough.
    async fn trim_log(&self, shard: ShardId, through: Seq, keep_snapshots: usize) -> Result<()>;
    /// The share of the room for this log that is in use, 0 to 1, shards may share it; `None` where
    /// no limit is known. Cheap: it is what was seen last, some seconds ago at the most while the
    /// log grows, and asking keeps it so. An owner makes room while there is some: what names a
    /// snapshot must itself be appended.
    fn log_fullness(&self, _shard: ShardId) -> Option<f64> {
        None
    }
    /// The same of the queue. What has been read is in use until it is trimmed.
    fn queue_fullness(&self, _queue: Queue) -> Option<f64> {
        None
    }

    // ── members ──────────────────────────────────────────────────────────────────────────

    /// Says that this member lives. It is gone when it has not beaten for `ttl`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn beat(&self, member: Member, ttl: Duration) -> Result<()>;
    /// Takes a member out at once.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn leave(&self, cell: &CellId) -> Result<()>;
    /// Who lives, by cell id.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn members(&self) -> Result<Vec<Member>>;

    // ── events ───────────────────────────────────────────────────────────────────────────

    /// Publishes events in order. Durable on return.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Unavailable`], [`Error::Unknown`].
    async fn publish_events(&self, events: Vec<Event>) -> Result<()>;
    /// Events after `after` (`None`: only those that come from now on), then what comes. An
    /// `after` older than what is kept, or beyond the end, begins with the oldest.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn read_events(&self, after: Option<Seq>) -> Result<Box<dyn EventReader>>;

    // ── health ───────────────────────────────────────────────────────────────────────────

    /// Whether producers' jobs can be taken now; the error says why not (disk below its threshold,
    /// store closed). Cheap: asked for every submission.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Unavailable`].
    fn accepting(&self) -> Result<()>;
}

/// A reader of events.
#[async_trait]
pub trait EventReader: Send {
    /// Waits for at least one event, then gives up to `max` of those there. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn next(&mut self, max: usize) -> Result<Vec<PlacedEvent>>;
}
