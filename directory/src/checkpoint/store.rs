//! A checkpoint's store: what is in it, and how its failures are kept in.
//!
//! Keys: `meta`; `p` and a number, places in order; `s`, shard: its head; `v`, shard, number and
//! `j`, shard, number: chunks of VMs and jobs. Every value is a checksum and then its body. A
//! shard's values change in one batch, and each names the saving that it is of.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cellbus_bus::codec;
use cellbus_bus::env::{Env, panic_text};
use cellbus_bus::ids::ShardId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::storage::{Storage, Table};
use super::{Cluster, Error, FORMAT, Loaded, Saved};
use crate::replica::{Head, JobChunk, Loader, Replica, VmChunk};
use crate::spoken::chain;
use crate::vm::Place;

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
    storage: Arc<dyn Storage>,
    table: Arc<dyn Table>,
    number: u64,
    cluster: Cluster,
    /// Grows with every saving, from a number that no saving of another process had.
    generation: u64,
    /// Sums over the first places that are stored: none, one, two and so on.
    place_sums: Vec<u32>,
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
        Err(panic) => Err(Error::Panicked { what: panic_text(&*panic).to_owned() }),
    }
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
/// as `damaged`, for whoever wants to know. `generation`: a number that no saving before had.
pub(super) fn open(
    storage: &Arc<dyn Storage>,
    cluster: Cluster,
    renew_bytes_min: u64,
    generation: u64,
) -> Result<Opened, Error> {
    let mut stores = guarded(|| storage.numbers())?;
    stores.sort_unstable();
    let mut rebuilt = None;
    while let Some(number) = stores.pop() {
        let opened = guarded(|| {
            let table = storage.open(number)?;
            let meta = table.get(b"meta")?;
            Ok((table, meta))
        });
        let why = match opened {
            Ok((table, meta)) => match meta.as_deref().map(unframe::<Meta>) {
                Some(Some(meta)) if meta.format != FORMAT => {
                    format!("it has format {}, and this build writes {FORMAT}", meta.format)
                }
                Some(Some(meta)) if meta.cluster != cluster.id || meta.shards != cluster.shards.get() => {
                    format!("it is of cluster {} with {} shards", meta.cluster, meta.shards)
                }
                Some(Some(_)) => {
                    // What a crash left of making it; the newest that is whole is used.
                    for older in stores {
                        let _ = storage.remove(older);
                    }
                    let store = Store::new(storage, table, number, cluster, renew_bytes_min, generation);
                    return Ok(Opened { store, rebuilt: None });
                }
                Some(None) => "it is damaged".to_owned(),
                // Begun and not finished: the one before it is still whole, if there was one.
                None if !stores.is_empty() => {
                    drop(table);
                    let _ = storage.remove(number);
                    continue;
                }
                None => "it is damaged: it does not say what it is".to_owned(),
            },
            Err(error @ Error::InUse { .. }) => return Err(error),
            Err(error) => format!("it is damaged: {}", chain(&error)),
        };
        rebuilt.get_or_insert(why);
        storage.set_aside(number)?;
    }
    Ok(Opened { store: begin_anew(storage, cluster, renew_bytes_min, generation)?, rebuilt })
}

/// An empty store. What was there before is removed: the caller knows that no process uses it.
pub(super) fn begin_anew(
    storage: &Arc<dyn Storage>,
    cluster: Cluster,
    renew_bytes_min: u64,
    generation: u64,
) -> Result<Store, Error> {
    for number in storage.numbers()? {
        storage.remove(number)?;
    }
    let number = 1;
    let table = guarded(|| storage.open(number))?;
    let store = Store::new(storage, table, number, cluster, renew_bytes_min, generation);
    store.sign()?;
    Ok(store)
}

impl Store {
    fn new(
        storage: &Arc<dyn Storage>,
        table: Arc<dyn Table>,
        number: u64,
        cluster: Cluster,
        renew_bytes_min: u64,
        generation: u64,
    ) -> Self {
        Self {
            storage: Arc::clone(storage),
            table,
            number,
            cluster,
            generation,
            place_sums: vec![0],
            live: BTreeMap::new(),
            renew_bytes_min,
        }
    }

    /// Closes it and keeps it, once, as `damaged`.
    pub(super) fn set_aside(self) {
        let Self { storage, table, number, .. } = self;
        drop(table);
        // What stays is removed when the next is made.
        let _ = storage.set_aside(number);
    }

    /// Says what the store is: from here on it counts.
    fn sign(&self) -> Result<(), Error> {
        let meta = Meta { format: FORMAT, cluster: self.cluster.id, shards: self.cluster.shards.get() };
        guarded(|| {
            self.table.write(vec![(b"meta".to_vec(), Some(frame(&meta)))])?;
            self.table.flush()
        })
    }

    // ── loading ──

    /// Loads all shards that can be, in `threads` threads; an error if none of it can be used.
    pub(super) async fn load(&mut self, replica: &Arc<Replica>, env: &Env, threads: usize) -> Result<Loaded, String> {
        let table = Arc::clone(&self.table);
        let places = env.blocking("load places", move || guarded(|| read_places(table.as_ref()))).await;
        let places = match places {
            Some(Ok(Some(places))) => places,
            Some(Ok(None)) => return Err("its list of hosts is damaged".to_owned()),
            Some(Err(error)) => return Err(chain(&error)),
            None => return Err("the process is shutting down".to_owned()),
        };
        let Some(loader) = Loader::new(Arc::clone(replica), &places) else {
            return Err("the directory was not empty".to_owned());
        };
        let sums = Arc::new(sums_of(vec![0], &places));
        self.place_sums.clone_from(&sums);

        let next = Arc::new(AtomicUsize::new(0));
        let results = Arc::new(Mutex::new(Results::default()));
        let loader = Arc::new(loader);
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                let (table, next, results) = (Arc::clone(&self.table), Arc::clone(&next), Arc::clone(&results));
                let (loader, shards, sums) = (Arc::clone(&loader), self.cluster.shards, Arc::clone(&sums));
                env.blocking("load shards", move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let shard = u16::try_from(index).ok().and_then(|index| ShardId::new(index, shards));
                        let Some(shard) = shard else { return };
                        let loaded = guarded(|| read_shard(table.as_ref(), shard, &loader, &sums));
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
        let size = self.table.size()?;
        if size > self.renew_bytes_min.max(live * GROWN) {
            self.renew(replica)?;
        }
        Ok(saved)
    }

    fn write(&mut self, replica: &Replica, shards: &[ShardId]) -> Result<Saved, Error> {
        let mut saved = Saved::default();
        self.generation = self.generation.wrapping_add(1);
        let mut written = Vec::with_capacity(shards.len());
        for shard in shards {
            let (entries, _) = replica.unsaved(*shard);
            let Some(mut image) = replica.image(*shard, self.generation) else { continue };
            // First what the rows refer to.
            image.head.places_sum = self.write_places(replica, image.head.places)?;
            let mut writes = Vec::new();
            let mut bytes = 0;
            let mut put = |key: Vec<u8>, value: Vec<u8>| {
                bytes += (key.len() + value.len()) as u64;
                writes.push((key, Some(value)));
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
                let old = self.table.keys(key(kind, *shard, Some(first))..=key(kind, *shard, Some(u32::MAX)))?;
                writes.extend(old.into_iter().map(|key| (key.to_vec(), None)));
            }
            self.table.write(writes)?;
            self.live.insert(*shard, bytes);
            saved.shards += 1;
            saved.bytes += bytes;
            written.push((*shard, image.head.seq, entries));
        }
        self.table.flush()?;
        for (shard, seq, entries) in written {
            replica.saved(shard, seq, entries);
        }
        Ok(saved)
    }

    /// Stores places up to this number, if there are more than are stored; gives their sum.
    fn write_places(&mut self, replica: &Replica, needed: u32) -> Result<u32, Error> {
        if let Some(sum) = self.place_sums.get(needed as usize) {
            return Ok(*sum);
        }
        let stored = self.place_sums.len() as u32 - 1;
        // The last chunk may have had room.
        let mut first = stored / PLACES_A_CHUNK * PLACES_A_CHUNK;
        let places = replica.places_from(first);
        let sums = sums_of(self.place_sums.clone(), &places[(stored - first) as usize..]);
        for chunk in places.chunks(PLACES_A_CHUNK as usize) {
            self.table.write(vec![(places_key(first), Some(frame(&chunk)))])?;
            first += PLACES_A_CHUNK;
        }
        self.place_sums = sums;
        Ok(self.place_sums.get(needed as usize).copied().unwrap_or_default())
    }

    /// Writes everything into a fresh store, which then takes this one's place.
    fn renew(&mut self, replica: &Replica) -> Result<(), Error> {
        let number = self.number + 1;
        self.storage.remove(number)?;
        let table = guarded(|| self.storage.open(number))?;
        let (cluster, generation) = (self.cluster, self.generation);
        let mut fresh = Self::new(&self.storage, table, number, cluster, self.renew_bytes_min, generation);
        let all: Vec<ShardId> = self.cluster.shards.shards().collect();
        fresh.write(replica, &all)?;
        fresh.sign()?;
        let old = self.number;
        *self = fresh;
        self.storage.remove(old)
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

fn read_places(table: &dyn Table) -> Result<Option<Vec<Place>>, Error> {
    let mut places: Vec<Place> = Vec::new();
    for (key, value) in table.scan(b"p")? {
        let Some(chunk) = unframe::<Vec<Place>>(&value) else { return Ok(None) };
        if key.as_ref() != places_key(u32::try_from(places.len()).unwrap_or(u32::MAX)) {
            return Ok(None);
        }
        places.extend(chunk);
    }
    Ok(Some(places))
}

/// Goes on with sums over more places.
fn sums_of(mut sums: Vec<u32>, places: &[Place]) -> Vec<u32> {
    for place in places {
        let mut hasher = crc32fast::Hasher::new_with_initial(sums.last().copied().unwrap_or_default());
        hasher.update(&codec::encode(place));
        sums.push(hasher.finalize());
    }
    sums
}

fn read_shard(table: &dyn Table, shard: ShardId, loader: &Loader, place_sums: &[u32]) -> Result<Read, Error> {
    let Some(value) = table.get(&key(b's', shard, None))? else { return Ok(Read::Absent) };
    let mut bytes = value.len() as u64;
    let damaged = |what: &str| Ok(Read::Damaged(what.to_owned()));
    let Some(head) = unframe::<Head>(&value) else { return damaged("its head is damaged") };
    if place_sums.get(head.places as usize) != Some(&head.places_sum) {
        return damaged("the hosts that it refers to are not those that are stored");
    }
    let mut vms = Vec::new();
    let mut jobs = Vec::new();
    for number in 0..head.vm_chunks {
        let value = table.get(&key(b'v', shard, Some(number)))?;
        let chunk = value.as_deref().and_then(unframe::<VmChunk>).filter(|chunk| chunk.generation == head.generation);
        let Some(chunk) = chunk else { return damaged("VMs are damaged") };
        bytes += value.map_or(0, |value| value.len() as u64);
        vms.push(chunk);
    }
    for number in 0..head.job_chunks {
        let value = table.get(&key(b'j', shard, Some(number)))?;
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
