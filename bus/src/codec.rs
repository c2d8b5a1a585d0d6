//! The binary format of everything that Cellbus itself stores or sends between its parts.
//!
//! bincode is no longer maintained (3.0.0 is an empty tombstone), so it is used only here, pinned
//! to 2.0.1, behind a leading byte that names the format: another codec can take its place by
//! taking another number. Outside formats (CloudEvents, HTTP bodies) are JSON and never pass here.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::format::Formats;

/// The format of what is not kept for long, and the first of what is ([`crate::format`]).
pub const FORMAT: u8 = 1;
/// [`FORMAT`] behind a CRC-32 of it, in little endian.
const CHECKED: u8 = 2;

/// The most that [`decode`] allocates for one value: well above any message.
const DECODE_BYTES_MAX: usize = 64 << 20;
/// The most that [`decode_snapshot`] allocates: a shard that holds millions of VMs. What it reads has
/// passed a checksum, so the bound only stops what cannot be meant.
const SNAPSHOT_BYTES_MAX: usize = 16 << 30;

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are empty.
    #[error("the value is empty")]
    Empty,
    /// Written by a build that knows more than this one.
    #[error("format {found} is not known to this build, which reads {known}; run {}", which(*found, *known))]
    UnknownFormat {
        /// The format byte found.
        found: u8,
        /// What this build reads.
        known: Formats,
    },
    /// Not what was written: its checksum is another.
    #[error("the value is damaged: its checksum is wrong")]
    Checksum,
    /// Not what was written.
    #[error("the value is damaged")]
    Damaged(#[source] bincode::error::DecodeError),
    /// Whole, with something behind it.
    #[error("the value has {extra} bytes too many")]
    Trailing {
        /// How many.
        extra: usize,
    },
}

fn which(found: u8, known: Formats) -> &'static str {
    if u16::from(found) < known.oldest {
        "the build before it, until nothing of that format is left"
    } else {
        "a newer build"
    }
}

fn config<const BYTES_MAX: usize>() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<BYTES_MAX>()
}

/// Appends the format byte and `value` to `out`.
pub fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    out.push(FORMAT);
    // Writing to memory fails only for types that bincode cannot express (unsized sequences,
    // untagged enums). Ours are pinned by tests, so this cannot happen at run time.
    bincode::serde::encode_into_std_write(value, out, bincode::config::standard())
        .expect("our own types always encode");
}

/// The format byte, then `value`.
#[must_use]
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    encode_into(value, &mut out);
    out
}

/// `value` in one of the formats of [`crate::format`], as the cluster record says.
///
/// # Panics
/// For a format that no build has: a process that is told of one does not start.
#[must_use]
pub fn encode_as<T: Serialize + ?Sized>(format: u16, value: &T) -> Vec<u8> {
    match u8::try_from(format) {
        Ok(FORMAT) => encode(value),
        Ok(CHECKED) => {
            let mut out = Vec::with_capacity(256);
            out.extend_from_slice(&[CHECKED, 0, 0, 0, 0]);
            bincode::serde::encode_into_std_write(value, &mut out, bincode::config::standard())
                .expect("our own types always encode");
            let sum = crc32fast::hash(&out[5..]).to_le_bytes();
            out[1..5].copy_from_slice(&sum);
            out
        }
        Ok(_) | Err(_) => panic!("format {format} cannot be written"),
    }
}

/// Reads what [`encode_as`] wrote in any format, all of it. Whether this build is to read that format
/// is asked before, of [`Formats::admit`].
///
/// # Errors
/// When the bytes are damaged, or written by a newer build.
pub fn decode_any<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    any_within::<T, DECODE_BYTES_MAX>(bytes)
}

/// [`decode_any`] for the snapshot of a shard, which may be far larger than a message.
///
/// # Errors
/// When the bytes are damaged, or written by a newer build.
pub fn decode_any_snapshot<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    any_within::<T, SNAPSHOT_BYTES_MAX>(bytes)
}

fn any_within<T: DeserializeOwned, const BYTES_MAX: usize>(bytes: &[u8]) -> Result<T, Error> {
    let Some((&CHECKED, rest)) = bytes.split_first() else { return decode_within::<T, BYTES_MAX>(bytes) };
    let (sum, body) = rest.split_first_chunk().ok_or(Error::Checksum)?;
    if crc32fast::hash(body).to_le_bytes() != *sum {
        return Err(Error::Checksum);
    }
    body_within::<T, BYTES_MAX>(body)
}

/// Reads what [`encode`] wrote, all of it.
///
/// # Errors
/// When the bytes are damaged, or written by a newer build.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    decode_within::<T, DECODE_BYTES_MAX>(bytes)
}

/// [`decode`] for the snapshot of a shard, which may be far larger than a message.
///
/// # Errors
/// When the bytes are damaged, or written by a newer build.
pub fn decode_snapshot<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    decode_within::<T, SNAPSHOT_BYTES_MAX>(bytes)
}

/// Appends `value` to what [`encode`] wrote, without a format byte of its own: for [`Parts`].
pub fn encode_behind<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    bincode::serde::encode_into_std_write(value, out, bincode::config::standard())
        .expect("our own types always encode");
}

/// Values behind one another under one format byte, such as those of a snapshot to which builds have
/// added: a tuple reads as its parts.
#[derive(Debug)]
pub struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    /// Checks the format byte.
    ///
    /// # Errors
    /// When there is none, or one of a newer build.
    pub fn of(bytes: &'a [u8]) -> Result<Self, Error> {
        let (&format, body) = bytes.split_first().ok_or(Error::Empty)?;
        if format == FORMAT {
            Ok(Self(body))
        } else {
            Err(Error::UnknownFormat { found: format, known: Formats::KNOWN })
        }
    }
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The next value, which may be as large as [`decode_snapshot`] takes.
    ///
    /// # Errors
    /// When it is damaged.
    #[expect(clippy::should_implement_trait, reason = "each is of another type")]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let (value, used) =
            bincode::serde::decode_from_slice(self.0, config::<SNAPSHOT_BYTES_MAX>()).map_err(Error::Damaged)?;
        self.0 = &self.0[used..];
        Ok(value)
    }
    /// Nothing may be left.
    ///
    /// # Errors
    /// When something is.
    pub fn end(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Trailing { extra: self.0.len() }) }
    }
}

fn decode_within<T: DeserializeOwned, const BYTES_MAX: usize>(bytes: &[u8]) -> Result<T, Error> {
    let (&format, body) = bytes.split_first().ok_or(Error::Empty)?;
    if format != FORMAT {
        return Err(Error::UnknownFormat { found: format, known: Formats::KNOWN });
    }
    body_within::<T, BYTES_MAX>(body)
}

fn body_within<T: DeserializeOwned, const BYTES_MAX: usize>(body: &[u8]) -> Result<T, Error> {
    let (value, used) = bincode::serde::decode_from_slice(body, config::<BYTES_MAX>()).map_err(Error::Damaged)?;
    if used == body.len() { Ok(value) } else { Err(Error::Trailing { extra: body.len() - used }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let value = (7_u64, "seven".to_owned(), Some(vec![1_u8, 2, 3]));
        assert_eq!(decode::<(u64, String, Option<Vec<u8>>)>(&encode(&value)).unwrap(), value);
    }

    #[test]
    fn a_snapshot_may_be_larger_than_any_message() {
        let value = vec![7_u8; DECODE_BYTES_MAX + 1];
        let bytes = encode(&value);
        assert!(matches!(decode::<Vec<u8>>(&bytes), Err(Error::Damaged(_))), "a message may not");
        assert_eq!(decode_snapshot::<Vec<u8>>(&bytes).unwrap().len(), value.len());
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let bytes = encode(&("text".to_owned(), 5_u32));
        for cut in 0..bytes.len() {
            assert!(decode::<(String, u32)>(&bytes[..cut]).is_err());
        }
        let mut more = bytes.clone();
        more.push(0);
        assert!(matches!(decode::<(String, u32)>(&more), Err(Error::Trailing { extra: 1 })));
        let mut newer = bytes;
        newer[0] = 2;
        assert!(matches!(decode::<(String, u32)>(&newer), Err(Error::UnknownFormat { found: 2, .. })));
    }

    #[test]
    fn every_format_is_read_back_and_told_apart() {
        let value = (7_u64, "seven".to_owned());
        for format in 1..=2 {
            let bytes = encode_as(format, &value);
            assert_eq!(u16::from(bytes[0]), format);
            assert_eq!(decode_any::<(u64, String)>(&bytes).unwrap(), value);
            assert_eq!(decode_any_snapshot::<(u64, String)>(&bytes).unwrap(), value);
            for cut in 0..bytes.len() {
                assert!(decode_any::<(u64, String)>(&bytes[..cut]).is_err());
            }
        }
        let mut damaged = encode_as(2, &value);
        *damaged.last_mut().unwrap() ^= 1;
        assert!(matches!(decode_any::<(u64, String)>(&damaged), Err(Error::Checksum)));
        assert!(matches!(decode::<(u64, String)>(&encode_as(2, &value)), Err(Error::UnknownFormat { found: 2, .. })));
    }
}
