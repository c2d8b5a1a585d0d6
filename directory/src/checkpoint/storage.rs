//! What a checkpoint is kept in: sled on a disk; in the simulation, memory that fails as disks do.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::Error;

/// Memory that sled may use for what it has read. Everything is read once.
const CACHE_BYTES: u64 = 16 << 20;

/// Keeps numbered tables, for one process alone. Calls block, and may panic over damage: whoever
/// calls them guards himself. What a call answers is never trusted further than its checksums go.
pub trait Storage: Send + Sync {
    /// The tables that are there, in any order. Makes the place that they are in.
    ///
    /// # Errors
    /// When that cannot be read or made.
    fn numbers(&self) -> Result<Vec<u64>, Error>;
    /// Opens a table; an empty one where there is none.
    ///
    /// # Errors
    /// [`Error::InUse`] while another process has it; others over damage.
    fn open(&self, number: u64) -> Result<Arc<dyn Table>, Error>;
    /// Removes a table that nobody has open, if there is one.
    ///
    /// # Errors
    /// When it may still be there.
    fn remove(&self, number: u64) -> Result<(), Error>;
    /// Keeps it as the one that was damaged last, for whoever wants to know; it has no number any more.
    ///
    /// # Errors
    /// When it may still have it.
    fn set_aside(&self, number: u64) -> Result<(), Error>;
}

/// Values by key, in the order of keys. What was written may be lost until [`Table::flush`] has
/// returned; the writes of one [`Table::write`] are all there, or none is.
pub trait Table: Send + Sync {
    /// # Errors
    /// When it cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error>;
    /// Keys that begin with these bytes, with their values.
    ///
    /// # Errors
    /// When they cannot be read.
    fn scan(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, Error>;
    /// Keys from one to another.
    ///
    /// # Errors
    /// When they cannot be read.
    fn keys(&self, range: RangeInclusive<Vec<u8>>) -> Result<Vec<Bytes>, Error>;
    /// Sets these keys, or removes those without a value.
    ///
    /// # Errors
    /// When it cannot be said whether they were written.
    fn write(&self, writes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), Error>;
    /// Has all that was written survive.
    ///
    /// # Errors
    /// When it may not.
    fn flush(&self) -> Result<(), Error>;
    /// Bytes that the table takes.
    ///
    /// # Errors
    /// When it cannot be said.
    fn size(&self) -> Result<u64, Error>;
}

/// sled's, in directories `store-1` and so on of one directory.
pub(super) struct Sled {
    dir: PathBuf,
}

impl Sled {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("store-{number}"))
    }
}

impl Storage for Sled {
    fn numbers(&self) -> Result<Vec<u64>, Error> {
        fs::create_dir_all(&self.dir)?;
        Ok(numbers(&self.dir)?.into_iter().map(|(number, _)| number).collect())
    }
    fn open(&self, number: u64) -> Result<Arc<dyn Table>, Error> {
        let path = self.path(number);
        let config = sled::Config::default()
            .path(&path)
            .cache_capacity(CACHE_BYTES)
            // The one thread that writes flushes, and nobody beside it.
            .flush_every_ms(None);
        match config.open() {
            Ok(db) => Ok(Arc::new(SledTable { db })),
            // sled has no kind for this.
            Err(error) if error.to_string().contains("could not acquire lock") => Err(Error::InUse { dir: path }),
            Err(error) => Err(Error::Store(error)),
        }
    }
    fn remove(&self, number: u64) -> Result<(), Error> {
        let path = self.path(number);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        Ok(())
    }
    fn set_aside(&self, number: u64) -> Result<(), Error> {
        let aside = self.dir.join("damaged");
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        Ok(fs::rename(self.path(number), aside)?)
    }
}

/// The stores in a directory, by number.
pub(super) fn numbers(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_prefix("store-")?.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

struct SledTable {
    db: sled::Db,
}

impl Table for SledTable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        Ok(self.db.get(key)?.map(Bytes::from_owner))
    }
    fn scan(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, Error> {
        let pair = |pair: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = pair?;
            Ok((Bytes::from_owner(key), Bytes::from_owner(value)))
        };
        self.db.scan_prefix(prefix).map(pair).collect()
    }
    fn keys(&self, range: RangeInclusive<Vec<u8>>) -> Result<Vec<Bytes>, Error> {
        self.db.range(range).keys().map(|key| Ok(Bytes::from_owner(key?))).collect()
    }
    fn write(&self, writes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), Error> {
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        Ok(self.db.apply_batch(batch)?)
    }
    fn flush(&self) -> Result<(), Error> {
        self.db.flush()?;
        Ok(())
    }
    fn size(&self) -> Result<u64, Error> {
        Ok(self.db.size_on_disk()?)
    }
}
