//! The tail: follows the logs of all shards and folds them into a [`Replica`].
//!
//! ```text
//!  for each shard, in a task of its own:
//!    check where the replica is ──────not in this log────────▶ load the newest snapshot that counts
//!        │                                                            │
//!        ▼                                                            ▼
//!    read the log ─▶ decode ─▶ Replica::apply ──hole, trimmed──▶ load the snapshot again
//! ```
//!
//! Where the replica is is checked whenever reading begins anew: after a start (from a checkpoint), and
//! after every connection that broke, since a bus may come back as it was some time ago and give the
//! same sequences to other entries. What it lost is said in the log, counted ([`Replica::losses`]),
//! and read again from what is left.
//!
//! A shard whose log can't be read (an entry that is damaged, or written by a newer build) is
//! reported and stopped; the others go on, and what is known of its VMs stays listed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cellbus_bus::contract::{Bus, Error as BusError, Reader, SnapshotId};
use cellbus_bus::env::Env;
use cellbus_bus::format::Formats;
use cellbus_bus::ids::{Seq, ShardId};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fold::{Fence, Tables};
use crate::record::{Entry, Record};
use crate::replica::{Applied, Replica, Stamp};
use crate::snapshot::ShardSnapshot;
use crate::spoken::chain;

/// Entries taken from a log at a time. Between batches other tasks run, so this many folds
/// (about a millisecond) are the longest that a thread is held.
const BATCH: usize = 256;
/// Shards that load at once: a snapshot may have tens of megabytes.
const LOADING_MAX: usize = 8;
/// Waits after a bus that cannot be reached: the first, doubled up to the longest.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Times in a row that a shard is loaded without getting further in between before its log is
/// taken to be broken. A log may be trimmed between the look at its snapshots and reading on.
const LOADS_MAX: u32 = 5;

/// Why a shard can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus said so.
    #[error("the bus could not be read")]
    Bus(#[from] BusError),
    /// An entry can't be read.
    #[error("entry {seq} can't be read")]
    Entry {
        /// Which.
        seq: Seq,
        /// Why.
        #[source]
        source: cellbus_bus::codec::Error,
    },
    /// Entries are missing, and no snapshot stands in for them.
    #[error("entries after {after} are missing, and no snapshot that counts stands in for them")]
    Missing {
        /// The last entry that was read.
        after: Seq,
    },
    /// A defect of this program.
    #[error("folding it panicked: {what}")]
    Panicked {
        /// The panic's message.
        what: String,
    },
}

impl Error {
    /// Whether the same may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Bus(error) => error.retryable(),
            Self::Entry { .. } | Self::Missing { .. } | Self::Panicked { .. } => false,
        }
    }
}

/// How far a shard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardState {
    /// Its snapshot, or the log up to where it ended when this began, is being read.
    Loading,
    /// It has been read to the end once, and is followed.
    Following,
    /// It can't be read, and why; what was read before is still listed.
    Failed(String),
}

/// Follows all shards. One task a shard: each waits on its own log, a failure or a panic is
/// that shard's alone, and the runtime spreads them over the processors.
pub struct Tail {
    bus: Arc<dyn Bus>,
    env: Env,
    replica: Arc<Replica>,
    progress: Arc<Progress>,
    formats: Formats,
}

struct Progress {
    states: Mutex<Vec<ShardState>>,
    changed: Notify,
}

impl Progress {
    fn set(&self, shard: ShardId, state: ShardState) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = states.get_mut(usize::from(shard.index()))
            && *known != state
        {
            *known = state;
            drop(states);
            self.changed.notify_waiters();
        }
    }
}

/// How a [`Tail`] is doing. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    bus: Arc<dyn Bus>,
    replica: Arc<Replica>,
    progress: Arc<Progress>,
}

impl Handle {
    /// Each shard's state, by shard.
    #[must_use]
    pub fn states(&self) -> Vec<ShardState> {
        self.progress.states.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Whether each shard has been read to its end, as it was when reading began, or is reported
    /// failed. Before that look-ups must not say that there is no such VM.
    #[must_use]
    pub fn ready(&self) -> bool {
        let states = self.progress.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.iter().all(|state| match state {
            ShardState::Loading => false,
            ShardState::Following | ShardState::Failed(_) => true,
        })
    }
    /// Waits for [`Handle::ready`]. Cancel safe.
    pub async fn until_ready(&self) {
        loop {
            let changed = self.progress.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.ready() {
                return;
            }
            changed.await;
        }
    }
    /// Shards that can't be read, and why.
    #[must_use]
    pub fn failed(&self) -> Vec<(ShardId, String)> {
        let states = self.states();
        self.replica
            .shards()
            .shards()
            .zip(states)
            .filter_map(|(shard, state)| match state {
                ShardState::Failed(why) => Some((shard, why)),
                ShardState::Loading | ShardState::Following => None,
            })
            .collect()
    }
    /// How much of each shard's log is not yet in the rows: the sequence of its end less that of
    /// the last entry read, an upper bound of the entries between them. Asks the bus once a
    /// shard: for metrics, every few seconds.
    ///
    /// # Errors
    /// When the bus can't be reached.
    pub async fn lag(&self) -> Result<Vec<(ShardId, u64)>, BusError> {
        let mut lag = Vec::with_capacity(usize::from(self.replica.shards().get()));
        for shard in self.replica.shards().shards() {
            let end = self.bus.log_end(shard).await?;
            lag.push((shard, end.0.saturating_sub(self.replica.applied(shard).0)));
        }
        Ok(lag)
    }
}

/// What a shard's reading ended with.
enum Broken {
    /// What was read is not the log's: load a snapshot.
    Reload,
    /// Try again, or give up.
    Failed(Error),
}
impl From<BusError> for Broken {
    fn from(error: BusError) -> Self {
        match error {
            BusError::Trimmed { .. } => Self::Reload,
            BusError::Fenced { .. }
            | BusError::Full { .. }
            | BusError::TooLarge { .. }
            | BusError::Unavailable { .. }
            | BusError::Unknown { .. }
            | BusError::Damaged { .. } => Self::Failed(Error::Bus(error)),
        }
    }
}

impl Tail {
    /// One that will go on from where the replica is: empty, or loaded from a checkpoint.
    #[must_use]
    pub fn new(bus: Arc<dyn Bus>, env: Env, replica: Arc<Replica>) -> (Self, Handle) {
        let states = vec![ShardState::Loading; usize::from(replica.shards().get())];
        let progress = Arc::new(Progress { states: Mutex::new(states), changed: Notify::new() });
        let handle = Handle { bus: Arc::clone(&bus), replica: Arc::clone(&replica), progress: Arc::clone(&progress) };
        (Self { bus, env, replica, progress, formats: Formats::KNOWN }, handle)
    }

    /// As a build that reads these formats.
    #[must_use]
    pub fn reading(self, formats: Formats) -> Self {
        Self { formats, ..self }
    }

    /// Follows all shards until `stop`. Returns when nothing is being folded any more.
    pub async fn run(self, stop: CancellationToken) {
        let tail = Arc::new(self);
        let tasks = TaskTracker::new();
        let loading = Arc::new(Semaphore::new(LOADING_MAX));
        for shard in tail.replica.shards().shards() {
            let (tail, stop, loading) = (Arc::clone(&tail), stop.clone(), Arc::clone(&loading));
            let env = tail.env.clone();
            env.spawn(
                "directory tail",
                tasks.track_future(async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = tail.keep_following(shard, &loading) => {}
                    }
                }),
            );
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn keep_following(&self, shard: ShardId, loading: &Semaphore) {
        let error = match self.env.caught("directory", self.follow_with_retries(shard, loading)).await {
            Ok(error) => error,
            Err(what) => Error::Panicked { what },
        };
        let why = chain(&error);
        tracing::error!(%shard, error = %why, "the directory can't read this shard's log any further; what it read before stays listed");
        self.progress.set(shard, ShardState::Failed(why));
    }

    async fn follow_with_retries(&self, shard: ShardId, loading: &Semaphore) -> Error {
        let mut wait = RETRY_MIN;
        let mut loads = 0;
        // The replica may come from a checkpoint, or hold what a bus that came back has forgotten.
        let mut checked = false;
        // Reading the same entries again after a load is no progress.
        let mut furthest = self.replica.applied(shard);
        loop {
            let end = match self.follow(shard, loading, &mut checked).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            if self.replica.applied(shard) > furthest {
                furthest = self.replica.applied(shard);
                (wait, loads) = (RETRY_MIN, 0);
            }
            match end {
                Broken::Reload => {
                    loads += 1;
                    if loads > LOADS_MAX {
                        return Error::Missing { after: self.replica.applied(shard) };
                    }
                    let permit = loading.acquire().await;
                    match self.load(shard).await {
                        // What was just read need not be looked for.
                        Ok(()) => checked = true,
                        Err(Broken::Reload) => {}
                        Err(Broken::Failed(error)) if error.retryable() => {}
                        Err(Broken::Failed(error)) => return error,
                    }
                    drop(permit);
                    if loads == 1 {
                        continue;
                    }
                }
                Broken::Failed(error) if error.retryable() => {
                    tracing::warn!(%shard, error = %chain(&error), "the directory can't read this shard's log now; it tries again");
                }
                Broken::Failed(error) => return error,
            }
            self.env.sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Follows the log from where the replica is. Ends only in failure.
    async fn follow(
        &self,
        shard: ShardId,
        loading: &Semaphore,
        checked: &mut bool,
    ) -> Result<std::convert::Infallible, Broken> {
        let permit = loading.acquire().await;
        // Once for each time that it is followed: between two of them the bus may have been put back.
        if !std::mem::take(checked) {
            self.check(shard).await?;
        }
        let target = self.bus.log_end(shard).await?;
        let applied = self.replica.applied(shard);
        if applied > target {
            return Err(self.lost(shard, applied, target));
        }
        let mut reader = self.bus.read_log(shard, applied).await?;
        let mut permit = Some(permit);
        loop {
            if permit.is_some() && self.replica.applied(shard) >= target {
                permit = None;
                self.progress.set(shard, ShardState::Following);
            }
            for message in reader.next(BATCH).await? {
                let entry = self.formats.admit(&message.body).and_then(|()| Entry::decode(&message.body));
                let entry = entry.map_err(|source| Broken::Failed(Error::Entry { seq: message.seq, source }))?;
                match self.replica.apply(shard, message.seq, &entry) {
                    Applied::Counted | Applied::Void | Applied::Old => {}
                    Applied::Hole { .. } => {
                        // Whether what it should follow is still there decides what is said of it.
                        self.check(shard).await?;
                        return Err(Broken::Reload);
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// The bus has been put back to an older state: what was read is not all there any more.
    fn lost(&self, shard: ShardId, applied: Seq, end: Seq) -> Broken {
        self.replica.note_loss(shard);
        tracing::error!(%shard, %applied, %end, "the bus has lost entries of this shard's log that it had acknowledged; the directory is read again from what is left. What managers hold and no record names is found by an audit");
        Broken::Reload
    }

    /// Whether what the replica holds was folded from this log: the entry that it read last must
    /// be the one that is there.
    async fn check(&self, shard: ShardId) -> Result<(), Broken> {
        let applied = self.replica.applied(shard);
        if applied == Seq::ZERO {
            return Ok(());
        }
        let end = self.bus.log_end(shard).await?;
        if applied > end {
            return Err(self.lost(shard, applied, end));
        }
        let Some(stamp) = self.replica.stamp(shard) else {
            // A snapshot, and nothing after it: it must still be one that the log names.
            let id = SnapshotId { shard, seq: applied, epoch: self.replica.epoch(shard) };
            return match self.counts(id).await {
                Ok(true) | Err(Broken::Reload) => Ok(()),
                Ok(false) => Err(self.lost(shard, applied, end)),
                Err(failed @ Broken::Failed(_)) => Err(failed),
            };
        };
        let mut reader = match self.bus.read_log(shard, Seq(applied.0 - 1)).await {
            Ok(reader) => reader,
            // It is not kept any more. What comes next names it, if that is still there.
            Err(BusError::Trimmed { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let found = reader.next(1).await?.into_iter().next();
        let same = found.is_some_and(|message| {
            message.seq == applied && Entry::decode(&message.body).is_ok_and(|entry| Stamp::of(&entry) == stamp)
        });
        if same { Ok(()) } else { Err(self.lost(shard, applied, end)) }
    }

    /// Puts the newest snapshot that counts in the place of what the replica holds; nothing, if
    /// the log is whole and has no snapshot yet.
    async fn load(&self, shard: ShardId) -> Result<(), Broken> {
        let snapshot = match newest_snapshot(self.bus.as_ref(), self.formats, shard).await? {
            Some(snapshot) => snapshot,
            None => {
                // From the start, if the log has one: `read_log` says `Trimmed` otherwise.
                drop(self.bus.read_log(shard, Seq::ZERO).await?);
                Tables::default().snapshot()
            }
        };
        self.replica.load(shard, snapshot);
        Ok(())
    }

    async fn counts(&self, id: SnapshotId) -> Result<bool, Broken> {
        Ok(counts(self.bus.as_ref(), id).await?)
    }
}

/// The newest snapshot of a shard that counts and can be read in one of these formats.
///
/// # Errors
/// When the bus cannot be read.
pub async fn newest_snapshot(
    bus: &dyn Bus,
    formats: Formats,
    shard: ShardId,
) -> Result<Option<ShardSnapshot>, BusError> {
    for id in bus.snapshots(shard).await?.into_iter().rev() {
        match counts(bus, id).await {
            Ok(true) => {}
            Ok(false) | Err(BusError::Trimmed { .. }) => continue,
            Err(error) => return Err(error),
        }
        let snapshot = match bus.read_snapshot(id).await {
            Ok(Some(body)) => {
                let snapshot = formats.admit(&body).and_then(|()| ShardSnapshot::decode(&body));
                snapshot.map_err(|error| chain(&error))
            }
            Ok(None) => continue,
            Err(error @ BusError::Damaged { .. }) => Err(chain(&error)),
            Err(error) => return Err(error),
        };
        match snapshot {
            Ok(snapshot) if snapshot.seq == id.seq => return Ok(Some(snapshot)),
            Ok(_) => {
                tracing::warn!(%shard, seq = %id.seq, "a snapshot is not of the entry that it is named for; trying the one before it")
            }
            Err(error) => {
                tracing::warn!(%shard, seq = %id.seq, %error, "a snapshot can't be read; trying the one before it")
            }
        }
    }
    Ok(None)
}

/// A snapshot counts once a record of an owner that was not replaced names it: one that an
/// owner left half way, or wrote after it had been replaced, does not.
async fn counts(bus: &dyn Bus, id: SnapshotId) -> Result<bool, BusError> {
    let end = bus.log_end(id.shard).await?;
    if end <= id.seq {
        return Ok(false);
    }
    let mut reader: Box<dyn Reader> = bus.read_log(id.shard, id.seq).await?;
    let mut fence = Fence::at(id.epoch);
    loop {
        for message in reader.next(BATCH).await? {
            // One that can't be read is met again when it is to be folded.
            let Ok(entry) = Entry::decode(&message.body) else { return Ok(false) };
            let names = |record: &Record| matches!(record, Record::Snapshot { id: named } if *named == id);
            if fence.admits(&entry) && entry.records.iter().any(names) {
                return Ok(true);
            }
            if message.seq >= end {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests;
