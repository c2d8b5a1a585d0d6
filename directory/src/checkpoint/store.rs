//! The checkpoint's sled store: what is in it, and how its failures are kept in.
//!
//! Keys: `meta`; `p` and a number, places in order; `s`, shard: its head; `v`, shard, number and
//! `j`, shard, number: chunks of VMs and jobs. Every value is a checksum and then its body. A
//! shard's values change in one batch, and each names the saving that it is of.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cellbus_bus::codec;
use cellbus_bus::env::Env;
use cellbus_bus::ids::ShardId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Cluster, Error, FORMAT, Loaded, Saved};
use crate::replica::{Head, JobChunk, Loader, Replica, VmChunk};
use crate::spoken::{chain, message_of};
use crate::vm::Place;

/// Memory that sled may use for what it has read. Everything is read once.
const CACHE_BYTES: u64 = 16 << 20;
/// Places of one value.
const PLACES_A_CHUNK: u32 = 2_048;
/// A store this many times larger than what it holds is written anew.
const GROWN: u64 = 4;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Meta {
    format: u16,
    cluster: uuid::Uuid,
    shards: u16,
}

pub(super) struct Store {
    db: Arc<sled::Db>,
    dir: PathBuf,
    number: u64,
    cluster: Cluster,
    /// Grows with every saving.
    generation: u64,
    /// Places that are stored.
    places: u32,
    /// Bytes of each shard: all together, about what the store should have.
    live: BTreeMap<ShardId, u64>,
    renew_bytes_min: u64,
}

/// A store, and why it is a new one although there was one before.
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) rebuilt: Option<String>,
}

/// Runs work on the store; a panic of it is an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    match std::panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => Err(Error::Panicked { what: message_of(&*panic) }),
    }
}

/// The directory of the newest store, and its number.
pub(super) fn newest(dir: &Path) -> Option<(u64, PathBuf)> {
    numbers(dir).into_iter().max()
}

fn numbers(dir: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<(u64, PathBuf)> = entries
        .map_while(Result::ok)
        .filter_map(|entry| Some((entry.file_name().to_str()?.strip_prefix("store-")?.parse().ok()?, entry.path())))
        .collect();
    found.sort_unstable();
    found
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("store-{number}"))
}

fn open_db(path: &Path) -> Result<sled::Db, Error> {
    let config = sled::Config::default()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        // The one thread that writes flushes, and nobody beside it.
        .flush_every_ms(None);
    config.open().map_err(|error| {
        // sled has no kind for this.
        if error.to_string().contains("could not acquire lock") {
            Error::InUse { dir: path.to_owned() }
        } else {
            Error::Store(error)
        }
    })
}

fn frame(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    codec::encode_into(value, &mut bytes);
    let sum = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn unframe<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (sum, body) = bytes.split_first_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    codec::decode(body).ok()
}

fn key(kind: u8, shard: ShardId, number: Option<u32>) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(&shard.index().to_be_bytes());
    key.extend(number.into_iter().flat_map(u32::to_be_bytes));
    key
}

fn places_key(number: u32) -> Vec<u8> {
    let mut key = vec![b'p'];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// Opens the newest store if it can be used, or makes a new one. An unusable one is kept, once,
/// as `damaged`, for whoever wants to know.
pub(super) fn open(dir: &Path, cluster: Cluster, renew_bytes_min: u64) -> Result<Opened, Error> {
    fs::create_dir_all(dir)?;
    let mut stores = numbers(dir);
    let mut rebuilt = None;
    while let Some((number, path)) = stores.pop() {
        let opened = guarded(|| {
            let db = open_db(&path)?;
            let meta = db.get("meta")?;
            Ok((db, meta))
        });
        let why = match opened {
            Ok((db, meta)) => match meta.as_deref().map(unframe::<Meta>) {
                Some(Some(meta)) if meta.format != FORMAT => {
                    format!("it has format {}, and this build writes {FORMAT}", meta.format)
                }
                Some(Some(meta)) if meta.cluster != cluster.id || meta.shards != cluster.shards.get() => {
                    format!("it is of cluster {} with {} shards", meta.cluster, meta.shards)
                }
                Some(Some(_)) => {
                    // What a crash left of making it; the newest that is whole is used.
                    for (_, older) in stores {
                        let _ = fs::remove_dir_all(older);
                    }
                    let mut store = Store::new(Arc::new(db), dir, number, cluster, renew_bytes_min);
                    store.generation = guarded(|| store.last_generation()).unwrap_or_default();
                    return Ok(Opened { store, rebuilt: None });
                }
                Some(None) => "it is damaged".to_owned(),
                // Begun and not finished: the one before it is still whole, if there was one.
                None if !stores.is_empty() => {
                    drop(db);
                    let _ = fs::remove_dir_all(&path);
                    continue;
                }
                None => "it is damaged: it does not say what it is".to_owned(),
            },
            Err(error @ Error::InUse { .. }) => return Err(error),
            Err(error) => format!("it is damaged: {}", chain(&error)),
        };
        rebuilt.get_or_insert(why);
        set_aside(dir, &path)?;
    }
    Ok(Opened { store: begin_anew(dir, cluster, renew_bytes_min)?, rebuilt })
}

/// An empty store. What was there before is removed: the caller knows that no process uses it.
pub(super) fn begin_anew(dir: &Path, cluster: Cluster, renew_bytes_min: u64) -> Result<Store, Error> {
    fs::create_dir_all(dir)?;
    for (_, path) in numbers(dir) {
        fs::remove_dir_all(path)?;
    }
    let number = 1;
    let store = Store::new(new_db(dir, number)?, dir, number, cluster, renew_bytes_min);
    store.sign()?;
    Ok(store)
}

fn new_db(dir: &Path, number: u64) -> Result<Arc<sled::Db>, Error> {
    let path = path_of(dir, number);
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    guarded(|| Ok(Arc::new(open_db(&path)?)))
}

fn set_aside(dir: &Path, path: &Path) -> io::Result<()> {
    let aside = dir.join("damaged");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::rename(path, aside)
}

impl Store {
    fn new(db: Arc<sled::Db>, dir: &Path, number: u64, cluster: Cluster, renew_bytes_min: u64) -> Self {
        Self {
            db,
            dir: dir.to_owned(),
            number,
            cluster,
            generation: 0,
            places: 0,
            live: BTreeMap::new(),
            renew_bytes_min,
        }
    }

    /// Closes it and keeps it, once, as `damaged`.
    pub(super) fn set_aside(self) {
        let Self { db, dir, number, .. } = self;
        drop(db);
        // What stays is removed when the next is made.
        let _ = set_aside(&dir, &path_of(&dir, number));
    }

    /// Says what the store is: from here on it counts.
    fn sign(&self) -> Result<(), Error> {
        let meta = Meta { format: FORMAT, cluster: self.cluster.id, shards: self.cluster.shards.get() };
        guarded(|| {
            self.db.insert("meta", frame(&meta))?;
            self.db.flush()?;
            Ok(())
        })
    }

    fn last_generation(&self) -> Result<u64, Error> {
        let mut last = 0;
        for item in self.db.scan_prefix(b"s") {
            let (_, value) = item?;
            last = last.max(unframe::<Head>(&value).map_or(0, |head| head.generation));
        }
        Ok(last)
    }

    // ── loading ──

    /// Loads all shards that can be, in `threads` threads; an error if none of it can be used.
    pub(super) async fn load(&mut self, replica: &Arc<Replica>, env: &Env, threads: usize) -> Result<Loaded, String> {
        let db = Arc::clone(&self.db);
        let places = env.blocking("load places", move || guarded(|| read_places(&db))).await;
        let places = match places {
            Some(Ok(Some(places))) => places,
            Some(Ok(None)) => return Err("its list of hosts is damaged".to_owned()),
            Some(Err(error)) => return Err(chain(&error)),
            None => return Err("the process is shutting down".to_owned()),
        };
        let Some(loader) = Loader::new(Arc::clone(replica), &places) else {
            return Err("the directory was not empty".to_owned());
        };
        self.places = u32::try_from(places.len()).unwrap_or(u32::MAX);

        let next = Arc::new(AtomicUsize::new(0));
        let results = Arc::new(Mutex::new(Results::default()));
        let loader = Arc::new(loader);
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                let (db, next, results) = (Arc::clone(&self.db), Arc::clone(&next), Arc::clone(&results));
                let (loader, shards) = (Arc::clone(&loader), self.cluster.shards);
                env.blocking("load shards", move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let shard = u16::try_from(index).ok().and_then(|index| ShardId::new(index, shards));
                        let Some(shard) = shard else { return };
                        let loaded = guarded(|| read_shard(&db, shard, &loader));
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        match loaded {
                            Ok(Read::Loaded { vms, bytes }) => {
                                results.loaded.shards += 1;
                                results.loaded.vms += vms;
                                results.live.insert(shard, bytes);
                            }
                            Ok(Read::Absent) => {}
                            Ok(Read::Damaged(why)) => results.damaged.push((shard, why)),
                            Err(error) => results.damaged.push((shard, chain(&error))),
                        }
                    }
                })
            })
            .collect();
        futures::future::join_all(workers).await;
        let finished = env.blocking("build indexes", move || {
            if let Some(loader) = Arc::into_inner(loader) {
                loader.finish();
            }
        });
        finished.await;
        let results = std::mem::take(&mut *results.lock().unwrap_or_else(PoisonError::into_inner));
        self.live = results.live;
        let mut loaded = results.loaded;
        if let Some((shard, why)) = results.damaged.first() {
            let count = results.damaged.len();
            loaded.rebuilt = Some(format!("{count} shards can't be read, first of them shard {shard}: {why}"));
        }
        Ok(loaded)
    }

    // ── saving ──

    /// Writes these shards; all of them into a fresh store if this one has grown too much.
    pub(super) fn save(&mut self, replica: &Replica, shards: &[ShardId]) -> Result<Saved, Error> {
        let saved = self.write(replica, shards)?;
        let live: u64 = self.live.values().sum();
        let size = self.db.size_on_disk()?;
        if size > self.renew_bytes_min.max(live * GROWN) {
            self.renew(replica)?;
        }
        Ok(saved)
    }

    fn write(&mut self, replica: &Replica, shards: &[ShardId]) -> Result<Saved, Error> {
        let mut saved = Saved::default();
        self.generation += 1;
        let mut written = Vec::with_capacity(shards.len());
        for shard in shards {
            let (entries, _) = replica.unsaved(*shard);
            let Some(image) = replica.image(*shard, self.generation) else { continue };
            // First what the rows refer to.
            self.write_places(replica, image.places)?;
            let mut batch = sled::Batch::default();
            let mut bytes = 0;
            let mut put = |key: Vec<u8>, value: Vec<u8>| {
                bytes += (key.len() + value.len()) as u64;
                batch.insert(key, value);
            };
            put(key(b's', *shard, None), frame(&image.head));
            for (number, chunk) in (0..).zip(&image.vms) {
                put(key(b'v', *shard, Some(number)), frame(chunk));
            }
            for (number, chunk) in (0..).zip(&image.jobs) {
                put(key(b'j', *shard, Some(number)), frame(chunk));
            }
            // Chunks of a time when it had more rows.
            for (kind, first) in [(b'v', image.head.vm_chunks), (b'j', image.head.job_chunks)] {
                for old in self.db.range(key(kind, *shard, Some(first))..=key(kind, *shard, Some(u32::MAX))).keys() {
                    batch.remove(old?);
                }
            }
            self.db.apply_batch(batch)?;
            self.live.insert(*shard, bytes);
            saved.shards += 1;
            saved.bytes += bytes;
            written.push((*shard, image.head.seq, entries));
        }
        self.db.flush()?;
        for (shard, seq, entries) in written {
            replica.saved(shard, seq, entries);
        }
        Ok(saved)
    }

    fn write_places(&mut self, replica: &Replica, needed: u32) -> Result<(), Error> {
        if needed <= self.places {
            return Ok(());
        }
        // The last chunk may have had room.
        let mut first = self.places / PLACES_A_CHUNK * PLACES_A_CHUNK;
        let places = replica.places_from(first);
        let total = first + u32::try_from(places.len()).unwrap_or_default();
        for chunk in places.chunks(PLACES_A_CHUNK as usize) {
            self.db.insert(places_key(first), frame(&chunk))?;
            first += PLACES_A_CHUNK;
        }
        self.places = total;
        Ok(())
    }

    /// Writes everything into a fresh store, which then takes this one's place.
    fn renew(&mut self, replica: &Replica) -> Result<(), Error> {
        let number = self.number + 1;
        let mut fresh = Self::new(new_db(&self.dir, number)?, &self.dir, number, self.cluster, self.renew_bytes_min);
        fresh.generation = self.generation;
        let all: Vec<ShardId> = self.cluster.shards.shards().collect();
        fresh.write(replica, &all)?;
        fresh.sign()?;
        let old = path_of(&self.dir, self.number);
        *self = fresh;
        fs::remove_dir_all(old)?;
        Ok(())
    }
}

#[derive(Default)]
struct Results {
    loaded: Loaded,
    live: BTreeMap<ShardId, u64>,
    damaged: Vec<(ShardId, String)>,
}

enum Read {
    Loaded { vms: usize, bytes: u64 },
    Absent,
    Damaged(String),
}

fn read_places(db: &sled::Db) -> Result<Option<Vec<Place>>, Error> {
    let mut places: Vec<Place> = Vec::new();
    for item in db.scan_prefix(b"p") {
        let (key, value) = item?;
        let Some(chunk) = unframe::<Vec<Place>>(&value) else { return Ok(None) };
        if key.as_ref() != places_key(u32::try_from(places.len()).unwrap_or(u32::MAX)) {
            return Ok(None);
        }
        places.extend(chunk);
    }
    Ok(Some(places))
}

fn read_shard(db: &sled::Db, shard: ShardId, loader: &Loader) -> Result<Read, Error> {
    let Some(value) = db.get(key(b's', shard, None))? else { return Ok(Read::Absent) };
    let mut bytes = value.len() as u64;
    let damaged = |what: &str| Ok(Read::Damaged(what.to_owned()));
    let Some(head) = unframe::<Head>(&value) else { return damaged("its head is damaged") };
    let mut vms = Vec::new();
    let mut jobs = Vec::new();
    for number in 0..head.vm_chunks {
        let value = db.get(key(b'v', shard, Some(number)))?;
        let chunk = value.as_deref().and_then(unframe::<VmChunk>).filter(|chunk| chunk.generation == head.generation);
        let Some(chunk) = chunk else { return damaged("VMs are damaged") };
        bytes += value.map_or(0, |value| value.len() as u64);
        vms.push(chunk);
    }
    for number in 0..head.job_chunks {
        let value = db.get(key(b'j', shard, Some(number)))?;
        let chunk = value.as_deref().and_then(unframe::<JobChunk>).filter(|chunk| chunk.generation == head.generation);
        let Some(chunk) = chunk else { return damaged("jobs are damaged") };
        bytes += value.map_or(0, |value| value.len() as u64);
        jobs.push(chunk);
    }
    match loader.load(shard, head, vms, jobs) {
        Ok(vms) => Ok(Read::Loaded { vms, bytes }),
        Err(error) => damaged(&error.to_string()),
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::{Meta, frame};

    pub(in super::super) fn meta(format: u16, cluster: uuid::Uuid, shards: u16) -> Vec<u8> {
        frame(&Meta { format, cluster, shards })
    }
}
