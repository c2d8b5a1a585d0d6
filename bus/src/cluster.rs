//! Whether a cell may take part in a cluster: what it was built and configured for, against the
//! cluster record.

use crate::contract::ClusterRecord;
use crate::format::Formats;
use crate::ids::ShardCount;

/// How keys map to shards in this build ([`crate::ids::ShardId::of`]).
pub const HASH_SCHEME: u16 = 1;
/// In the place of the scheme while a backup is being restored: no build maps keys so.
pub const RESTORING: u16 = 0;

/// Why a cell may not take part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// N is fixed for the life of a cluster.
    #[error(
        "this cluster was made with {} shards and this process is configured for {}; configure {0}, the number cannot change",
        stored.get(), wanted.get()
    )]
    Shards {
        /// In the record.
        stored: ShardCount,
        /// Configured.
        wanted: ShardCount,
    },
    /// What is there is not all of it.
    #[error(
        "a backup is being restored here, or a restore was cut off: wait for its end; if none runs, empty the bus and restore again"
    )]
    Restoring,
    /// Keys would be looked for on the wrong shards.
    #[error(
        "this cluster maps keys to shards by scheme {stored}, and this build knows only scheme {HASH_SCHEME}; run the build that made it"
    )]
    HashScheme {
        /// In the record.
        stored: u16,
    },
    /// Cells write what this build cannot read.
    #[error("this cluster writes format {stored}, and this build reads {known}; run a newer build")]
    NewerFormat {
        /// In the record.
        stored: u16,
        /// What this build reads.
        known: Formats,
    },
    /// This build would not write what the others read.
    #[error(
        "this cluster writes format {stored}, and this build knows only {known}; run the build before it and `cellbus upgrade finalize` first"
    )]
    OlderFormat {
        /// In the record.
        stored: u16,
        /// What this build reads.
        known: Formats,
    },
}

impl Mismatch {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Shards { .. } => "cluster_shards_differ",
            Self::Restoring => "cluster_being_restored",
            Self::HashScheme { .. } => "cluster_hash_scheme_unknown",
            Self::NewerFormat { .. } => "cluster_newer_format",
            Self::OlderFormat { .. } => "cluster_older_format",
        }
    }
    /// Never: a person must change the configuration or the build.
    #[must_use]
    pub fn retryable(&self) -> bool {
        false
    }
}

impl ClusterRecord {
    /// Whether a process that reads `known` and is configured for `shards` may take part.
    ///
    /// # Errors
    /// [`Mismatch`], with what to do.
    pub fn check(&self, shards: ShardCount, known: Formats) -> Result<(), Mismatch> {
        if self.hash_scheme == RESTORING {
            return Err(Mismatch::Restoring);
        }
        if self.hash_scheme != HASH_SCHEME {
            return Err(Mismatch::HashScheme { stored: self.hash_scheme });
        }
        self.check_format(known)?;
        if self.shards != shards {
            return Err(Mismatch::Shards { stored: self.shards, wanted: shards });
        }
        Ok(())
    }

    /// Whether a process that reads `known` may write what this cluster's cells write.
    ///
    /// # Errors
    /// [`Mismatch::NewerFormat`], [`Mismatch::OlderFormat`].
    pub fn check_format(&self, known: Formats) -> Result<(), Mismatch> {
        let stored = self.format;
        if stored > known.newest {
            return Err(Mismatch::NewerFormat { stored, known });
        }
        if stored < known.oldest {
            return Err(Mismatch::OlderFormat { stored, known });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::WallMs;

    #[test]
    fn only_a_matching_process_takes_part() {
        let record = ClusterRecord {
            cluster_id: uuid::Uuid::nil(),
            shards: ShardCount::DEFAULT,
            hash_scheme: HASH_SCHEME,
            format: 1,
            created_at: WallMs(0),
        };
        let code = |record: &ClusterRecord, shards, known| record.check(shards, known).map_err(|m| m.code());
        let known = Formats::KNOWN;
        assert_eq!(record.check(ShardCount::DEFAULT, known), Ok(()));
        let wanted = ShardCount::new(64).unwrap();
        assert_eq!(code(&record, wanted, known), Err("cluster_shards_differ"));
        let other = ClusterRecord { hash_scheme: 2, ..record.clone() };
        assert_eq!(code(&other, ShardCount::DEFAULT, known), Err("cluster_hash_scheme_unknown"));
        let newer = ClusterRecord { format: 2, ..record.clone() };
        assert_eq!(code(&newer, ShardCount::DEFAULT, known), Err("cluster_newer_format"));
        assert_eq!(code(&newer, ShardCount::DEFAULT, Formats::NEXT), Ok(()));
        let later = Formats { oldest: 2, newest: 3 };
        assert_eq!(code(&record, ShardCount::DEFAULT, later), Err("cluster_older_format"));
        let half = ClusterRecord { hash_scheme: RESTORING, ..record.clone() };
        assert_eq!(code(&half, ShardCount::DEFAULT, known), Err("cluster_being_restored"));
    }
}
