//! The binary format of everything that Cellbus itself stores or sends between its parts.
//!
//! bincode is no longer maintained (3.0.0 is an empty tombstone), so it is used only here, pinned
//! to 2.0.1, behind a leading byte that names the format: another codec can take its place by
//! taking another number. Outside formats (CloudEvents, HTTP bodies) are JSON and never pass here.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The format that this build writes. Formats that it reads are matched in [`decode`].
pub const FORMAT: u8 = 1;

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
    #[error("format {found} is not known to this build, which reads format 1; run a newer build")]
    UnknownFormat {
        /// The format byte found.
        found: u8,
    },
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

fn decode_within<T: DeserializeOwned, const BYTES_MAX: usize>(bytes: &[u8]) -> Result<T, Error> {
    let (&format, body) = bytes.split_first().ok_or(Error::Empty)?;
    if format != FORMAT {
        return Err(Error::UnknownFormat { found: format });
    }
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
        assert!(matches!(decode::<(String, u32)>(&newer), Err(Error::UnknownFormat { found: 2 })));
    }
}
