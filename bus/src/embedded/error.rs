//! Why a data directory could not be opened, with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why [`super::Embedded::open`] did not open the data directory. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the data directory {} is in use by another process{}; stop that one first, or give this one a directory of its own", dir.display(), holder.as_ref().map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The other process, as far as it is known.
        holder: Option<u32>,
    },
    /// This process may not write there.
    #[error("the data directory {} cannot be written; check its owner and mode, and that it is not mounted read-only", dir.display())]
    ReadOnly {
        /// The directory.
        dir: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// What is in it is not what was written.
    #[error("the data directory {} is damaged ({what}); nothing was changed: restore it from a backup, or move it away to start empty", dir.display())]
    Corrupt {
        /// The directory.
        dir: PathBuf,
        /// What is damaged, and where.
        what: String,
    },
    /// Written by a build that knows more than this one.
    #[error("the data directory {} has format {found}, and this build reads up to {}; run the newer build that wrote it", dir.display(), super::data_dir::FORMAT)]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// No room to open it.
    #[error("the disk of the data directory {} is full; free some space and start again", dir.display())]
    Full {
        /// The directory.
        dir: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// Anything else that the file system says.
    #[error("the data directory {} cannot be opened ({doing})", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// The stable code that `ops/docs/errors/` has a page for.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "data_dir_locked",
            Self::ReadOnly { .. } => "data_dir_read_only",
            Self::Corrupt { .. } => "data_dir_corrupt",
            Self::NewerFormat { .. } => "data_dir_newer_format",
            Self::Full { .. } => "data_dir_full",
            Self::Io { .. } => "data_dir_unusable",
        }
    }
    /// Whether opening may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Locked { .. } | Self::Full { .. } => true,
            Self::ReadOnly { .. } | Self::Corrupt { .. } | Self::NewerFormat { .. } | Self::Io { .. } => false,
        }
    }

    pub(super) fn io(dir: &Path, doing: &'static str, source: io::Error) -> Self {
        let dir = dir.to_owned();
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly { dir, source },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { dir, source },
            // std's kinds are not ours to list.
            _ => Self::Io { dir, doing, source },
        }
    }
    pub(super) fn corrupt(dir: &Path, what: impl Into<String>) -> Self {
        Self::Corrupt { dir: dir.to_owned(), what: what.into() }
    }
}
