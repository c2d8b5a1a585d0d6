//! The local checkpoint of a replica: rows and positions on disk, so that a start need not read
//! all logs again.
//!
//! ```text
//!  every so often ─▶ shards with enough new entries ─▶ rows in columns ─▶ sled, one flush
//!  at start ─▶ chunks of all shards, decoded in parallel ─▶ Replica ─▶ the tail goes on
//! ```
//!
//! All of it can be rebuilt from the bus, so whatever is wrong with it (missing, damaged, of an
//! older format, of another cluster) costs one warning and a longer start, and no more: a
//! damaged store is moved aside, a shard that can't be read starts from its snapshot.
//!
//! sled 0.34 holds it, within what is known of that store: few values of about 130 KiB (larger
//! ones become files that it never gives back), one thread that calls the blocking `flush`, its
//! own flushing off, every call guarded against its panics. It reuses space late, so when it has
//! grown to several times what it holds, everything is written to a fresh store beside it, which
//! then takes its place.
//!
//! sled reads and writes files by itself, past `Env`: it is behind [`Storage`], and the simulator
//! gives a checkpoint storage of its own, that fails as disks do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::env::Env;
use cellbus_bus::ids::ShardCount;
use tokio_util::sync::CancellationToken;

use crate::replica::Replica;
use crate::spoken::chain;

mod storage;
mod store;
#[cfg(test)]
mod tests;

pub use storage::{Storage, Table};
use store::{Opened, Store};

/// Of what is stored. A store of another format is rebuilt.
const FORMAT: u16 = 2;

/// How long it takes until a store in use is taken to be another process's: two seconds.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Where the checkpoint is, and how often it is written.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its directory, for this process alone. Made if it is not there.
    pub dir: PathBuf,
    /// How often it is looked at what there is to write.
    pub every: Duration,
    /// A shard is written when this many entries, and a quarter as many as it has rows, were
    /// folded since the last time: writing then costs less than folding did.
    pub entries_min: u64,
    /// A shard with any new entry is written at the latest after this.
    pub at_latest: Duration,
    /// Threads that load.
    pub threads: usize,
    /// A store is written anew only when it is larger than this.
    pub renew_bytes_min: u64,
}

impl Config {
    /// The defaults, in this directory.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            every: Duration::from_secs(10),
            entries_min: 4_096,
            at_latest: Duration::from_secs(300),
            threads: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            renew_bytes_min: 256 << 20,
        }
    }
}

/// Which cluster a checkpoint is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// From the cluster record.
    pub id: uuid::Uuid,
    /// From the cluster record.
    pub shards: ShardCount,
}

/// What a start found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Shards that were loaded.
    pub shards: usize,
    /// Their VMs.
    pub vms: usize,
    /// Why not everything was, in a sentence; `None` if everything was, or if there was none.
    pub rebuilt: Option<String>,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Shards.
    pub shards: usize,
    /// Bytes.
    pub bytes: u64,
}

/// Why it could not be written. The next attempt begins with an empty store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store said so.
    #[error("the checkpoint could not be written")]
    Store(#[from] sled::Error),
    /// The file system said so.
    #[error("the checkpoint's directory could not be used")]
    Io(#[from] std::io::Error),
    /// The store panicked, as it does over damage.
    #[error("the store panicked: {what}")]
    Panicked {
        /// Its message.
        what: String,
    },
    /// Another process has it.
    #[error("another process uses the checkpoint in {dir}")]
    InUse {
        /// Which.
        dir: PathBuf,
    },
    /// The runtime is shutting down.
    #[error("the process is shutting down")]
    ShuttingDown,
}

impl Error {
    /// Whether the same may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Store(_) | Self::Io(_) | Self::Panicked { .. } => true,
            Self::InUse { .. } | Self::ShuttingDown => false,
        }
    }
}

/// The checkpoint of one replica.
pub struct Checkpoint {
    config: Config,
    cluster: Cluster,
    env: Env,
    storage: Arc<dyn Storage>,
    replica: Arc<Replica>,
    /// `None` after a failure, until the next attempt.
    store: Option<Store>,
    /// Another process has the directory: nothing in it may be touched.
    in_use: bool,
    loaded: Loaded,
}

impl Checkpoint {
    /// Opens the checkpoint and loads it into the replica, which must be empty. It never fails:
    /// what can't be used is set aside, with one warning, and [`Loaded::rebuilt`] says why.
    pub async fn open(config: Config, cluster: Cluster, env: Env, replica: Arc<Replica>) -> Self {
        let storage = Arc::new(storage::Sled::new(&config.dir));
        Self::open_in(storage, config, cluster, env, replica).await
    }

    /// The same in storage of the caller's own; [`Config::dir`] only names it then.
    pub async fn open_in(
        storage: Arc<dyn Storage>,
        config: Config,
        cluster: Cluster,
        env: Env,
        replica: Arc<Replica>,
    ) -> Self {
        let opened = Self::open_store(&storage, &config, cluster, &env).await;
        let mut in_use = false;
        let (store, loaded) = match opened {
            Ok(Opened { store, rebuilt: Some(why) }) => {
                (Some(store), Loaded { rebuilt: Some(why), ..Loaded::default() })
            }
            Ok(Opened { mut store, rebuilt: None }) => match store.load(&replica, &env, config.threads).await {
                Ok(loaded) => (Some(store), loaded),
                // None of it can be used, so none of it may stay: the first writing begins anew.
                Err(why) => {
                    env.blocking("set the checkpoint aside", move || store.set_aside()).await;
                    (None, Loaded { rebuilt: Some(why), ..Loaded::default() })
                }
            },
            Err(error) => {
                in_use = matches!(error, Error::InUse { .. });
                (None, Loaded { rebuilt: Some(chain(&error)), ..Loaded::default() })
            }
        };
        let dir = config.dir.display();
        match &loaded.rebuilt {
            Some(reason) => {
                tracing::warn!(%dir, reason, "the directory's checkpoint can't be used, or not all of it; what is missing is read from the logs")
            }
            None if loaded.shards > 0 => {
                tracing::info!(%dir, shards = loaded.shards, vms = loaded.vms, "the directory was loaded from its checkpoint");
            }
            None => {}
        }
        Self { config, cluster, env, storage, replica, store, in_use, loaded }
    }

    async fn open_store(
        storage: &Arc<dyn Storage>,
        config: &Config,
        cluster: Cluster,
        env: &Env,
    ) -> Result<Opened, Error> {
        let mut tries = 0;
        loop {
            let (storage, renew, generation) = (Arc::clone(storage), config.renew_bytes_min, env.random_u64());
            let open = move || store::open(&storage, cluster, renew, generation);
            let opened = env.blocking("open the checkpoint", open).await;
            match opened.unwrap_or(Err(Error::ShuttingDown)) {
                // sled lets its lock go a while after it was closed, in a thread of its own.
                Err(Error::InUse { .. }) if tries < LOCK_TRIES => {
                    tries += 1;
                    env.sleep(LOCK_PAUSE).await;
                }
                opened => return opened,
            }
        }
    }

    /// What the start found.
    #[must_use]
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Writes every shard that has changed. Blocking work runs off the async threads. Not cancel
    /// safe: a dropped call may leave the store to be opened again.
    ///
    /// # Errors
    /// When the store can't be written; the next call begins with an empty one.
    pub async fn save(&mut self) -> Result<Saved, Error> {
        self.save_if(|entries, _| entries > 0).await
    }

    async fn save_if(&mut self, due: impl Fn(u64, usize) -> bool) -> Result<Saved, Error> {
        let due: Vec<_> = self
            .replica
            .shards()
            .shards()
            .filter(|shard| {
                let (entries, rows) = self.replica.unsaved(*shard);
                due(entries, rows)
            })
            .collect();
        if due.is_empty() {
            return Ok(Saved::default());
        }
        if self.in_use {
            return Err(Error::InUse { dir: self.config.dir.clone() });
        }
        let (store, storage, cluster) = (self.store.take(), Arc::clone(&self.storage), self.cluster);
        let (renew, generation) = (self.config.renew_bytes_min, self.env.random_u64());
        let replica = Arc::clone(&self.replica);
        let work = move || {
            let mut store = match store {
                Some(store) => store,
                // Whatever is there was found to be of no use, or has just failed.
                None => store::begin_anew(&storage, cluster, renew, generation)?,
            };
            let saved = store.save(&replica, &due)?;
            Ok((store, saved))
        };
        match self.env.blocking("write the checkpoint", move || store::guarded(work)).await {
            Some(Ok((store, saved))) => {
                self.store = Some(store);
                Ok(saved)
            }
            Some(Err(error)) => Err(error),
            None => Err(Error::ShuttingDown),
        }
    }

    /// Writes what is due every so often, and everything once more when `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut last_full = self.env.mono();
        let mut pause = self.config.every;
        loop {
            let sleep = self.env.sleep(pause);
            let stopping = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                () = sleep => false,
            };
            let everything = stopping || self.env.mono().since(last_full) >= self.config.at_latest;
            let entries_min = self.config.entries_min;
            let saved = self
                .save_if(|entries, rows| {
                    entries > 0 && (everything || (entries >= entries_min && entries >= rows as u64 / 4))
                })
                .await;
            pause = self.config.every;
            match saved {
                Ok(saved) => {
                    if everything {
                        last_full = self.env.mono();
                    }
                    if saved.shards > 0 {
                        tracing::debug!(
                            shards = saved.shards,
                            bytes = saved.bytes,
                            "the directory's checkpoint was written"
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(dir = %self.config.dir.display(), error = %chain(&error), "the directory's checkpoint could not be written; the next start takes longer");
                    if !error.retryable() {
                        return;
                    }
                    pause = self.config.at_latest;
                }
            }
            if stopping {
                return;
            }
        }
    }
}

/// Whether there is a checkpoint in this directory, of whatever state.
#[must_use]
pub fn exists(dir: &Path) -> bool {
    storage::numbers(dir).is_ok_and(|numbers| !numbers.is_empty())
}
