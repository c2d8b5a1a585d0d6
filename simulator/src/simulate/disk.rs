//! The disk of a node, which outlives it: storage for its directory's checkpoint that tears, loses
//! and fails writes, and lets what it holds rot.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cellbus_directory::checkpoint::{Error, Storage, Table};
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// What is wrong with a disk at present.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum DiskFault {
    /// Reading and writing fail this often.
    Fails(f64),
    /// It stops for good, in the middle of the write that comes after so many.
    StopsAfter(u32),
    /// It says that writes are durable, and loses some of those of the next flushes.
    Lies,
}

/// Of one [`Table::write`]: keys, and their new values.
type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A table as it is on the disk, and as those who read it see it.
#[derive(Default)]
struct Content {
    durable: BTreeMap<Vec<u8>, Vec<u8>>,
    seen: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Written and not flushed, in order.
    waiting: Vec<Writes>,
    /// Bytes that were ever written: room is not used again, as with sled.
    written: u64,
}

impl Content {
    fn settle(&mut self, writes: Writes) {
        put(&mut self.durable, writes);
    }
}

fn put(content: &mut BTreeMap<Vec<u8>, Vec<u8>>, writes: Writes) {
    for (key, value) in writes {
        match value {
            Some(value) => content.insert(key, value),
            None => content.remove(&key),
        };
    }
}

struct State {
    tables: BTreeMap<u64, Content>,
    fault: Option<DiskFault>,
    stopped: bool,
    unchecked: bool,
    rng: SmallRng,
}

impl State {
    /// The process has died: of what was not flushed some of the first is there.
    fn crashed(&mut self) {
        let State { tables, rng, .. } = self;
        for content in tables.values_mut() {
            let waiting = std::mem::take(&mut content.waiting);
            let kept = rng.random_range(0..=waiting.len());
            waiting.into_iter().take(kept).for_each(|writes| content.settle(writes));
            content.seen = content.durable.clone();
        }
    }

    /// Whether the disk does what it is asked to.
    fn works(&mut self) -> io::Result<()> {
        let failed = match self.fault {
            None | Some(DiskFault::Lies) => false,
            Some(DiskFault::Fails(rate)) => self.rng.random_bool(rate),
            Some(DiskFault::StopsAfter(_)) => self.stopped,
        };
        if failed { Err(io::Error::other("a simulated disk fails")) } else { Ok(()) }
    }

    /// Whether this write is the one that it stops in.
    fn stops_now(&mut self) -> bool {
        match &mut self.fault {
            Some(DiskFault::StopsAfter(0)) => true,
            Some(DiskFault::StopsAfter(left)) => {
                *left -= 1;
                false
            }
            Some(DiskFault::Fails(_) | DiskFault::Lies) | None => false,
        }
    }

    fn write(&mut self, number: u64, writes: Writes) -> io::Result<()> {
        self.works()?;
        if self.stops_now() {
            self.stopped = true;
            let State { tables, rng, .. } = self;
            let Some(content) = tables.get_mut(&number) else { return Ok(()) };
            // All before it is there, and of this one some keys and half of one value.
            for earlier in std::mem::take(&mut content.waiting) {
                content.settle(earlier);
            }
            let reached = rng.random_range(0..=writes.len());
            let mut torn: Writes = writes.into_iter().take(reached).collect();
            if let Some((_, Some(value))) = torn.last_mut()
                && !value.is_empty()
            {
                value.truncate(rng.random_range(0..value.len()));
            }
            content.settle(torn);
            return Err(io::Error::other("a simulated disk has stopped"));
        }
        let content = self.tables.entry(number).or_default();
        content.written +=
            writes.iter().map(|(key, value)| (key.len() + value.as_ref().map_or(0, Vec::len)) as u64).sum::<u64>();
        put(&mut content.seen, writes.clone());
        content.waiting.push(writes);
        Ok(())
    }

    fn flush(&mut self, number: u64) -> io::Result<()> {
        self.works()?;
        let lies = self.fault == Some(DiskFault::Lies);
        let State { tables, rng, .. } = self;
        let Some(content) = tables.get_mut(&number) else { return Ok(()) };
        for writes in std::mem::take(&mut content.waiting) {
            if !(lies && rng.random_bool(0.3)) {
                content.settle(writes);
            }
        }
        Ok(())
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct NodeDisk {
    state: Arc<Mutex<State>>,
}

impl NodeDisk {
    /// `unchecked`: what rots has the right checksum all the same.
    pub(super) fn new(seed: u64, unchecked: bool) -> Self {
        let state = State {
            unchecked,
            tables: BTreeMap::new(),
            fault: None,
            stopped: false,
            rng: SmallRng::seed_from_u64(seed ^ 0xd15c),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_fault(&self, fault: Option<DiskFault>) {
        let mut state = self.state();
        state.fault = fault;
        state.stopped = false;
    }
    /// Its node has died.
    pub(super) fn crashed(&self) {
        self.state().crashed();
    }
    /// A value that it holds, if it holds any, is not what it was. Its node must be dead.
    pub(super) fn rot(&self, rng: &mut SmallRng) -> bool {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some((_, value)) = state.tables.values_mut().flat_map(|content| content.durable.iter_mut()).choose(rng)
        else {
            return false;
        };
        match rng.random_range(0..3) {
            _ if state.unchecked => {
                // Checksums come first.
                let at = rng.random_range(4..value.len().max(5));
                if let Some((sum, body)) = value.split_first_chunk_mut::<4>()
                    && let Some(byte) = body.get_mut(at - 4)
                {
                    *byte ^= 1 << rng.random_range(0..8);
                    *sum = crc32fast::hash(body).to_le_bytes();
                }
            }
            0 => value.clear(),
            1 => value.truncate(value.len() / 2),
            _ => {
                let at = rng.random_range(0..value.len().max(1));
                if let Some(byte) = value.get_mut(at) {
                    *byte ^= 1 << rng.random_range(0..8);
                }
            }
        }
        state.tables.values_mut().for_each(|content| content.seen = content.durable.clone());
        true
    }
}

impl Storage for NodeDisk {
    fn numbers(&self) -> Result<Vec<u64>, Error> {
        let mut state = self.state();
        state.works()?;
        Ok(state.tables.keys().copied().collect())
    }
    fn open(&self, number: u64) -> Result<Arc<dyn Table>, Error> {
        let mut state = self.state();
        state.works()?;
        state.tables.entry(number).or_default();
        Ok(Arc::new(NodeTable { disk: self.clone(), number }))
    }
    fn remove(&self, number: u64) -> Result<(), Error> {
        let mut state = self.state();
        state.works()?;
        state.tables.remove(&number);
        Ok(())
    }
    fn set_aside(&self, number: u64) -> Result<(), Error> {
        self.remove(number)
    }
}

struct NodeTable {
    disk: NodeDisk,
    number: u64,
}

impl NodeTable {
    fn read<T>(&self, read: impl FnOnce(&BTreeMap<Vec<u8>, Vec<u8>>) -> T) -> Result<T, Error> {
        let mut state = self.disk.state();
        state.works()?;
        Ok(read(&state.tables.entry(self.number).or_default().seen))
    }
}

impl Table for NodeTable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.read(|seen| seen.get(key).map(|value| Bytes::copy_from_slice(value)))
    }
    fn scan(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, Error> {
        self.read(|seen| {
            let from = seen.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
            from.map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))).collect()
        })
    }
    fn keys(&self, range: RangeInclusive<Vec<u8>>) -> Result<Vec<Bytes>, Error> {
        // sled takes a range that is the wrong way round for an empty one; a map does not.
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.read(|seen| seen.range(range).map(|(key, _)| Bytes::copy_from_slice(key)).collect())
    }
    fn write(&self, writes: Writes) -> Result<(), Error> {
        Ok(self.disk.state().write(self.number, writes)?)
    }
    fn flush(&self) -> Result<(), Error> {
        Ok(self.disk.state().flush(self.number)?)
    }
    fn size(&self) -> Result<u64, Error> {
        let mut state = self.disk.state();
        state.works()?;
        Ok(state.tables.get(&self.number).map_or(0, |content| content.written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> Writes {
        vec![(key.as_bytes().to_vec(), Some(value.as_bytes().to_vec()))]
    }

    #[test]
    fn what_was_flushed_outlives_a_crash_and_what_was_not_may_be_gone() {
        let mut lost = 0;
        for seed in 0..20 {
            let disk = NodeDisk::new(seed, false);
            let table = disk.open(1).unwrap();
            table.write(one("a", "1")).unwrap();
            table.flush().unwrap();
            table.write(one("a", "2")).unwrap();
            assert_eq!(table.get(b"a").unwrap().unwrap(), "2");
            disk.crashed();
            let found = disk.open(1).unwrap().get(b"a").unwrap().unwrap();
            lost += u32::from(found == "1");
            assert!(found == "1" || found == "2");
        }
        assert!((1..20).contains(&lost));
    }

    #[test]
    fn a_disk_stops_in_the_middle_of_a_write() {
        let mut halves = 0;
        for seed in 0..20 {
            let disk = NodeDisk::new(seed, false);
            let table = disk.open(1).unwrap();
            disk.set_fault(Some(DiskFault::StopsAfter(1)));
            table.write(one("a", "1")).unwrap();
            let mut two = one("b", "22222222");
            two.append(&mut one("c", "33333333"));
            assert!(table.write(two).is_err());
            assert!(table.flush().is_err() && table.get(b"a").is_err(), "it has stopped");
            disk.crashed();
            disk.set_fault(None);
            let table = disk.open(1).unwrap();
            assert_eq!(table.get(b"a").unwrap().unwrap(), "1");
            halves += u32::from(table.get(b"b").unwrap().is_some() && table.get(b"c").unwrap().is_none());
        }
        assert!(halves > 0);
    }
}
