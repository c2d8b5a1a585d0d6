//! Where simulated managers keep their state: one store for all of a process, with group commit.
//!
//! Writers hand in whole records and get a sequence; one task merges whatever waits into one batch,
//! makes it durable with one flush, and wakes those who wait for it. The state in memory is the one
//! that counts; the store is read only when it is opened.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cellbus_bus::Env;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tokio::sync::{Notify, oneshot};

/// The most records in one batch: bounds how long the first of them waits for the flush.
const BATCH_RECORDS_MAX: usize = 8_192;
/// Records of VMs are small and read only at start, so the store gets little memory.
const MEMTABLE_BYTES: u64 = 16 << 20;
const CACHE_BYTES: u64 = 4 << 20;
const JOURNAL_BYTES_MAX: u64 = 128 << 20;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it open.
    #[error("the simulated managers' state in {dir} is in use by another process")]
    InUse {
        /// Where.
        dir: PathBuf,
    },
    /// What the store or the file system says.
    #[error("the simulated managers' state in {dir} cannot be opened")]
    Open {
        /// Where.
        dir: PathBuf,
        /// What it says.
        #[source]
        source: fjall::Error,
    },
    /// A record that is not what this program writes.
    #[error("the simulated managers' state in {dir} is damaged: {detail}")]
    Damaged {
        /// Where.
        dir: PathBuf,
        /// Which record, and what is wrong with it.
        detail: String,
    },
    /// The runtime is shutting down.
    #[error("the program is shutting down")]
    ShuttingDown,
}

impl Error {
    /// Only a directory in use may become free by itself.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::InUse { .. } => true,
            Self::Open { .. } | Self::Damaged { .. } | Self::ShuttingDown => false,
        }
    }
}

/// How far the store has been written; what one writer got from [`Store::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Mark(u64);

/// A record under its key; with no value the key is removed.
pub(super) type Write = (Vec<u8>, Option<Vec<u8>>);

/// What the store held when it was opened, in the order of the keys.
pub(super) type Held = Vec<(Vec<u8>, Vec<u8>)>;

/// The store failed, and takes nothing more: what was not durable yet may be lost.
#[derive(Debug)]
pub(super) struct Failed;

pub(super) struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Notify,
    durable: AtomicU64,
    failed: OnceLock<String>,
    /// Whether records go anywhere but memory.
    kept: bool,
}

/// Bounded by the operations under way: each puts a record or two and waits for them.
#[derive(Default)]
struct Queue {
    pending: Vec<Write>,
    given: u64,
    waiting: Vec<(u64, oneshot::Sender<()>)>,
    closing: Option<oneshot::Sender<()>>,
    closed: bool,
}

struct Disk {
    database: Database,
    records: Keyspace,
}

impl Store {
    /// Opens the store in `dir` and gives what it holds. With no
    /// directory nothing is kept, and every write is durable at once.
    pub(super) async fn open(dir: Option<&Path>, env: &Env) -> Result<(Self, Held), Error> {
        let Some(dir) = dir.map(Path::to_owned) else { return Ok((Self::with(false), Vec::new())) };
        let (disk, held) =
            env.blocking("open the managers' store", move || Disk::open(&dir)).await.ok_or(Error::ShuttingDown)??;
        let store = Self::with(true);
        env.spawn("managers' store", commit(Arc::clone(&store.shared), disk, env.clone()));
        Ok((store, held))
    }

    fn with(kept: bool) -> Self {
        let shared = Shared {
            queue: Mutex::default(),
            wake: Notify::new(),
            durable: AtomicU64::new(0),
            failed: OnceLock::new(),
            kept,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Hands in a record. Never waits; records are written in the order in which they are put.
    pub(super) fn put(&self, write: Write) -> Mark {
        let mark = {
            let mut queue = self.shared.queue();
            queue.given += 1;
            if self.shared.kept {
                queue.pending.push(write);
            } else {
                self.shared.durable.store(queue.given, Ordering::Release);
            }
            queue.given
        };
        self.shared.wake.notify_one();
        Mark(mark)
    }

    /// Waits until everything up to `mark` is durable. Cancel safe.
    pub(super) async fn durable(&self, mark: Mark) -> Result<(), Failed> {
        if self.shared.durable.load(Ordering::Acquire) >= mark.0 {
            return Ok(());
        }
        let receive = {
            let mut queue = self.shared.queue();
            if self.shared.durable.load(Ordering::Acquire) >= mark.0 {
                return Ok(());
            }
            if queue.closed || self.shared.failed.get().is_some() {
                return Err(Failed);
            }
            let (send, receive) = oneshot::channel();
            queue.waiting.push((mark.0, send));
            receive
        };
        receive.await.map_err(|_| Failed)
    }

    /// Why the store takes nothing more, if it failed.
    pub(super) fn failure(&self) -> Option<&str> {
        self.shared.failed.get().map(String::as_str)
    }

    /// Writes what waits and lets the directory go. Afterwards nothing becomes durable.
    pub(super) async fn close(&self) {
        if !self.shared.kept {
            return;
        }
        let (send, receive) = oneshot::channel();
        {
            let mut queue = self.shared.queue();
            if queue.closed {
                return;
            }
            queue.closing = Some(send);
        }
        self.shared.wake.notify_one();
        // An error means that the task is gone, and the directory with it.
        let _ = receive.await;
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.queue().closing.get_or_insert_with(|| oneshot::channel().0);
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    fn open(dir: &Path) -> Result<(Self, Held), Error> {
        let failed = |source| match source {
            fjall::Error::Locked => Error::InUse { dir: dir.to_owned() },
            source => Error::Open { dir: dir.to_owned(), source },
        };
        let database = Database::builder(dir)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let records = database
            .keyspace("records", || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES))
            .map_err(failed)?;
        let mut held = Vec::new();
        for record in records.iter() {
            let (key, value) = record.into_inner().map_err(failed)?;
            held.push((key.to_vec(), value.to_vec()));
        }
        Ok((Self { database, records }, held))
    }

    fn write(&self, writes: Vec<Write>) -> Result<(), fjall::Error> {
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), writes.len())
            .durability(Some(PersistMode::SyncData));
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(&self.records, key, value),
                None => batch.remove(&self.records, key),
            }
        }
        batch.commit()
    }
}

/// Commits batch after batch, until the store is closed or fails.
async fn commit(shared: Arc<Shared>, disk: Disk, env: Env) {
    let disk = Arc::new(disk);
    loop {
        let (batch, upto, closing) = {
            let mut queue = shared.queue();
            let take = queue.pending.len().min(BATCH_RECORDS_MAX);
            let rest = queue.pending.split_off(take);
            let batch = std::mem::replace(&mut queue.pending, rest);
            // What was given and is not pending is in this batch or an earlier one.
            let upto = queue.given - queue.pending.len() as u64;
            let closing = if batch.is_empty() { queue.closing.take() } else { None };
            queue.closed |= closing.is_some();
            (batch, upto, closing)
        };
        if batch.is_empty() {
            if let Some(closed) = closing {
                shared.queue().waiting.clear();
                drop(disk);
                // Nobody waits when the store was dropped.
                let _ = closed.send(());
                return;
            }
            shared.wake.notified().await;
            continue;
        }
        let writer = Arc::clone(&disk);
        let failure = match env.blocking("commit managers' records", move || writer.write(batch)).await {
            Some(Ok(())) => None,
            Some(Err(error)) => Some(error.to_string()),
            None => Some("the program is shutting down".to_owned()),
        };
        let mut queue = shared.queue();
        if let Some(failure) = failure {
            tracing::error!(%failure, "the simulated managers' store failed; they answer nothing any more");
            // Set once, here.
            let _ = shared.failed.set(failure);
            queue.waiting.clear();
            queue.closed = true;
            return;
        }
        shared.durable.store(upto, Ordering::Release);
        let waiting = std::mem::take(&mut queue.waiting);
        let (due, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(mark, _)| *mark <= upto);
        queue.waiting = rest;
        drop(queue);
        for (_, waiter) in due {
            // A waiter that is gone was cancelled.
            let _ = waiter.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        cellbus_bus::env::real(tokio::runtime::Handle::current())
    }

    #[tokio::test]
    async fn what_is_durable_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let (store, held) = Store::open(Some(dir.path()), &env()).await.unwrap();
        assert!(held.is_empty());
        store.put((b"a".to_vec(), Some(b"1".to_vec())));
        store.put((b"b".to_vec(), Some(b"2".to_vec())));
        let mark = store.put((b"a".to_vec(), None));
        store.durable(mark).await.unwrap();
        assert!(
            matches!(Store::open(Some(dir.path()), &env()).await, Err(Error::InUse { .. })),
            "one process a directory"
        );
        let last = store.put((b"c".to_vec(), Some(b"3".to_vec())));
        store.close().await;
        store.durable(last).await.expect("closing writes what waits");
        let late = store.put((b"d".to_vec(), Some(b"4".to_vec())));
        assert!(store.durable(late).await.is_err(), "nothing is kept after closing");

        let (_store, held) = Store::open(Some(dir.path()), &env()).await.unwrap();
        assert_eq!(held, [(b"b".to_vec(), b"2".to_vec()), (b"c".to_vec(), b"3".to_vec())]);
    }

    #[tokio::test]
    async fn without_a_directory_all_is_durable_at_once() {
        let (store, _) = Store::open(None, &env()).await.unwrap();
        let mark = store.put((b"a".to_vec(), None));
        store.durable(mark).await.unwrap();
        store.close().await;
    }
}
