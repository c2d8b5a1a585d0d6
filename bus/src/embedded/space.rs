//! Free space: intake is refused before the disk is full, while what is needed to finish and to
//! trim still goes on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::contract::{Error, Result};
use crate::env::{Disk, Env, Mono};

/// How old a reading may be. What the bus itself writes meanwhile is taken off it.
const READING_AGE_MAX: Duration = Duration::from_millis(250);

/// What is written when space is short.
#[derive(Clone, Copy)]
pub(super) enum Need {
    /// New work: refused below the threshold.
    Intake,
    /// What running work needs: goes on down to a quarter of it.
    Progress,
}

pub(super) struct Space {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    free_bytes_min: u64,
    free_bytes: AtomicU64,
    /// When it was read. Who finds it old and gets the lock reads it again; the others go on.
    read_at: Mutex<Mono>,
}

impl Space {
    pub(super) fn new(dir: PathBuf, env: &Env, free_bytes_min: u64) -> std::io::Result<Self> {
        let disk = env.disk();
        let free_bytes = AtomicU64::new(disk.free_bytes(&dir)?);
        Ok(Self { dir, disk, free_bytes_min, free_bytes, read_at: Mutex::new(env.mono()) })
    }

    /// At most a moment old.
    pub(super) fn free_bytes(&self, env: &Env) -> u64 {
        if let Ok(mut read_at) = self.read_at.try_lock() {
            let now = env.mono();
            if now.since(*read_at) >= READING_AGE_MAX {
                *read_at = now;
                match self.disk.free_bytes(&self.dir) {
                    Ok(free_bytes) => self.free_bytes.store(free_bytes, Ordering::Relaxed),
                    // Unknown is not zero: the last reading holds.
                    Err(error) => tracing::warn!(%error, "could not read the free space of the data directory"),
                }
            }
        }
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// The committer's: this much was written since.
    pub(super) fn spent(&self, bytes: u64) {
        // A reading that is stored between load and store loses one subtraction; the next is near.
        let free_bytes = self.free_bytes.load(Ordering::Relaxed);
        self.free_bytes.store(free_bytes.saturating_sub(bytes), Ordering::Relaxed);
    }

    /// Whether there is room for this.
    pub(super) fn check(&self, env: &Env, need: Need) -> Result<()> {
        let min = match need {
            Need::Intake => self.free_bytes_min,
            Need::Progress => self.free_bytes_min / 4,
        };
        let free = self.free_bytes(env);
        if free >= min {
            return Ok(());
        }
        Err(Error::Full {
            reason: format!(
                "the disk of the data directory has {} MiB free, below the threshold of {} MiB; free some space, intake goes on by itself",
                free >> 20,
                min >> 20,
            ),
        })
    }
}
