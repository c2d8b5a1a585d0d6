//! Formats of what is stored for a long time: log entries, snapshots, items of queues.
//!
//! Such a value begins with a byte that names its format. Which one cells write is said once for
//! the whole cluster, in its record ([`crate::contract::ClusterRecord::format`]); which ones a build
//! reads is its [`Formats`]. So two builds work side by side: the newer one writes what the older
//! one reads, until `cellbus upgrade finalize` raises the record.
//!
//! | format | what it is |
//! |---|---|
//! | 1 | bincode |
//! | 2 | bincode behind its CRC-32: not in use yet, what tests upgrade to |

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec;

/// What begins with a larger byte is of no format, and of no build: it is somebody else's.
pub const FORMAT_MAX: u16 = 31;

/// The formats that a build reads, and may be told to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formats {
    /// The oldest that it reads.
    pub oldest: u16,
    /// The newest that it reads.
    pub newest: u16,
}

impl Formats {
    /// Those of this release.
    pub const KNOWN: Self = Self { oldest: 1, newest: 1 };
    /// Those of the release after it, as tests have it: they upgrade a cluster to it.
    pub const NEXT: Self = Self { oldest: 1, newest: 2 };

    /// Whether a build with this range reads `format`.
    #[must_use]
    pub fn read(self, format: u16) -> bool {
        (self.oldest..=self.newest).contains(&format)
    }

    /// Whether a build with this range may read what begins with these bytes. What is of no format
    /// at all passes: whoever reads it says what is wrong with it.
    ///
    /// # Errors
    /// [`codec::Error::UnknownFormat`].
    pub fn admit(self, bytes: &[u8]) -> Result<(), codec::Error> {
        match bytes.first() {
            Some(&found @ 1..) if u16::from(found) <= FORMAT_MAX && !self.read(u16::from(found)) => {
                Err(codec::Error::UnknownFormat { found, known: self })
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { oldest, newest } if oldest == newest => write!(f, "format {oldest}"),
            Self { oldest, newest } => write!(f, "formats {oldest} to {newest}"),
        }
    }
}

/// Which build a process is of, as it says to the other members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// What it reads.
    pub formats: Formats,
}

impl Build {
    /// This release.
    #[must_use]
    pub fn current() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), formats: Formats::KNOWN }
    }
    /// The release after it, as tests have it.
    #[must_use]
    pub fn next() -> Self {
        Self { version: format!("{}+next", env!("CARGO_PKG_VERSION")), formats: Formats::NEXT }
    }
}

/// What is taken of a member that does not say: it can only be older than all that do.
impl Default for Build {
    fn default() -> Self {
        Self { version: "unknown".to_owned(), formats: Formats { oldest: 1, newest: 1 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_admits_what_it_reads_and_what_is_of_no_format() {
        for known in [&[1, 7][..], &[], &[0], b"{}", &[255]] {
            assert!(Formats::KNOWN.admit(known).is_ok(), "{known:?}");
        }
        for unknown in [[2], [31]] {
            let error = Formats::KNOWN.admit(&unknown).unwrap_err();
            assert!(matches!(error, codec::Error::UnknownFormat { found, .. } if found == unknown[0]), "{error}");
        }
        assert!(Formats::NEXT.admit(&[2]).is_ok());
        let later = Formats { oldest: 2, newest: 3 };
        assert!(later.admit(&[1]).is_err(), "one that was given up is unknown too");
    }
}
