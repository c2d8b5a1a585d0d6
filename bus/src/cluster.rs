//! Whether a cell may take part in a cluster: what it was built and configured for, against the
//! cluster record.

use crate::contract::ClusterRecord;
use crate::ids::ShardCount;

/// How keys map to shards in this build ([`crate::ids::ShardId::of`]).
pub const HASH_SCHEME: u16 = 1;
/// The newest format of records that this build reads and writes.
pub const FORMAT: u16 = 1;

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
    /// Keys would be looked for on the wrong shards.
    #[error(
        "this cluster maps keys to shards by scheme {stored}, and this build knows only scheme {HASH_SCHEME}; run the build that made it"
    )]
    HashScheme {
        /// In the record.
        stored: u16,
    },
    /// Cells write what this build cannot read.
    #[error("this cluster writes format {stored}, and this build reads up to {FORMAT}; run a newer build")]
    Format {
        /// In the record.
        stored: u16,
    },
}

impl Mismatch {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Shards { .. } => "cluster_shards_differ",
            Self::HashScheme { .. } => "cluster_hash_scheme_unknown",
            Self::Format { .. } => "cluster_newer_format",
        }
    }
    /// Never: a person must change the configuration or the build.
    #[must_use]
    pub fn retryable(&self) -> bool {
        false
    }
}

impl ClusterRecord {
    /// Whether a process that is configured for `shards` may take part.
    ///
    /// # Errors
    /// [`Mismatch`], with what to do.
    pub fn check(&self, shards: ShardCount) -> Result<(), Mismatch> {
        if self.hash_scheme != HASH_SCHEME {
            return Err(Mismatch::HashScheme { stored: self.hash_scheme });
        }
        if self.format > FORMAT {
            return Err(Mismatch::Format { stored: self.format });
        }
        if self.shards != shards {
            return Err(Mismatch::Shards { stored: self.shards, wanted: shards });
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
            format: FORMAT,
            created_at: WallMs(0),
        };
        assert_eq!(record.check(ShardCount::DEFAULT), Ok(()));
        let wanted = ShardCount::new(64).unwrap();
        assert_eq!(record.check(wanted).map_err(|mismatch| mismatch.code()), Err("cluster_shards_differ"));
        let other = ClusterRecord { hash_scheme: 2, ..record.clone() };
        assert_eq!(
            other.check(ShardCount::DEFAULT).map_err(|mismatch| mismatch.code()),
            Err("cluster_hash_scheme_unknown")
        );
        let newer = ClusterRecord { format: FORMAT + 1, ..record };
        assert_eq!(newer.check(ShardCount::DEFAULT).map_err(|mismatch| mismatch.code()), Err("cluster_newer_format"));
    }
}
