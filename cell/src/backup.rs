//! Backups: all that a bus holds of a cluster in one file, and back from it onto an empty bus of any
//! transport, with any number of shards.
//!
//! ```text
//!  bus ──take──▶ file: snapshots, log tails, unread queues, unacked ingress ──restore──▶ empty bus
//! ```
//!
//! [`take`] reads beside the running cells and asks nothing of them. Its promise: all that was
//! acknowledged before it began is in the file. [`restore`] reads the whole file before it writes
//! anything, and leaves a bus on which nobody starts unless it came to its end. What is restored
//! holds back what cannot be undone until managers have been audited. Why it is so:
//! `ops/docs/decisions/0010-backup.md`.

use std::path::PathBuf;

use cellbus_bus::cluster::Mismatch;
use cellbus_bus::ids::ShardId;

mod file;
mod restore;
mod schedule;
mod shards;
mod take;

pub use restore::{Restored, restore};
pub use schedule::{Config, Service};
pub use take::{Taken, take};

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus.
    #[error("the bus does not answer as it should")]
    Bus(#[from] cellbus_bus::Error),
    /// The file of a backup.
    #[error(transparent)]
    File(#[from] cellbus_bus::backup::Error),
    /// It cannot be written.
    #[error("{path} cannot be written")]
    Write {
        /// The file, or its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no cluster on this bus.
    #[error("there is no cluster on this bus")]
    NoCluster,
    /// The cluster is of another build.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// Cells dropped what was still to be read, again and again.
    #[error(
        "the cells of shard {shard} have dropped what the backup had still to read, {tries} times: try again when there is less load"
    )]
    Overtaken {
        /// Which shard, the last time.
        shard: ShardId,
        /// How often it was begun.
        tries: u32,
    },
    /// What a shard's log says cannot be read, so it could not be restored either.
    #[error("shard {shard} cannot be read: {what}")]
    Shard {
        /// Which.
        shard: ShardId,
        /// Why.
        what: String,
    },
    /// Only an empty bus is restored onto.
    #[error("this bus is not empty ({what}): restore onto an empty one")]
    NotEmpty {
        /// What there is.
        what: String,
    },
    /// This process stops.
    #[error("it was stopped")]
    Stopped,
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bus(_) => "bus_unavailable",
            Self::File(error) => error.code(),
            Self::Write { .. } => "backup_not_written",
            Self::NoCluster => "backup_no_cluster",
            Self::Mismatch(error) => error.code(),
            Self::Overtaken { .. } => "backup_overtaken",
            Self::Shard { .. } => "backup_shard_unreadable",
            Self::NotEmpty { .. } => "restore_not_empty",
            Self::Stopped => "internal",
        }
    }
    /// Whether the same may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Bus(error) => error.retryable(),
            Self::File(error) => error.retryable(),
            Self::Overtaken { .. } => true,
            Self::Write { .. }
            | Self::NoCluster
            | Self::Mismatch(_)
            | Self::Shard { .. }
            | Self::NotEmpty { .. }
            | Self::Stopped => false,
        }
    }
}
