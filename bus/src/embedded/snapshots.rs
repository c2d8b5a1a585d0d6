//! Snapshots: one immutable file each, in chunks with a checksum each.
//!
//! ```text
//! "CELLSNP1" | shard u16 | seq u64 | epoch u64 | length u64 | crc u32 | chunks: crc u32, up to 1 MiB
//! ```
//!
//! A file appears under its name whole or not at all ([`crate::env::Disk::replace`]), so a partial
//! snapshot is never readable.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::contract::{Error, Result, SnapshotId};
use crate::env::{Disk, Env};
use crate::ids::{Epoch, Seq, ShardId};

use super::intake;

const MAGIC: &[u8; 8] = b"CELLSNP1";
const HEADER: usize = 38;
/// Damage costs, and is told, by the chunk.
const CHUNK_BYTES: usize = 1 << 20;

/// The snapshots of all shards.
pub(super) struct Snapshots {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    ids: Mutex<BTreeSet<SnapshotId>>,
}

fn header(id: SnapshotId, length: usize) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&id.shard.index().to_be_bytes());
    out[10..18].copy_from_slice(&id.seq.0.to_be_bytes());
    out[18..26].copy_from_slice(&id.epoch.0.to_be_bytes());
    out[26..34].copy_from_slice(&(length as u64).to_be_bytes());
    let crc = crc32fast::hash(&out[..34]);
    out[34..].copy_from_slice(&crc.to_be_bytes());
    out
}

fn encode(id: SnapshotId, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len() + body.len() / CHUNK_BYTES * 4 + 4);
    out.extend_from_slice(&header(id, body.len()));
    for chunk in body.chunks(CHUNK_BYTES) {
        out.extend_from_slice(&crc32fast::hash(chunk).to_be_bytes());
        out.extend_from_slice(chunk);
    }
    out
}

fn decode(id: SnapshotId, file: &[u8]) -> Option<Bytes> {
    let mut length = [0; 8];
    length.copy_from_slice(file.get(26..34)?);
    // Not trusted before the header is known to be right; then bounded by the file itself.
    let length = usize::try_from(u64::from_be_bytes(length)).ok()?;
    let (head, mut rest) = file.split_at_checked(HEADER)?;
    if head != header(id, length) || length > rest.len() {
        return None;
    }
    let mut body = BytesMut::with_capacity(length);
    while body.len() < length {
        let (crc, chunks) = rest.split_at_checked(4)?;
        let (chunk, others) = chunks.split_at_checked((length - body.len()).min(CHUNK_BYTES))?;
        if crc32fast::hash(chunk).to_be_bytes() != crc {
            return None;
        }
        body.extend_from_slice(chunk);
        rest = others;
    }
    rest.is_empty().then(|| body.freeze())
}

impl Snapshots {
    /// Those in `dir`, which is made if it is not there.
    pub(super) fn open(dir: PathBuf, disk: Arc<dyn Disk>) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(&dir)? {
            // What else is there is a replacement that a crash cut short.
            if let Some(id) = entry?.file_name().to_str().and_then(id_of) {
                ids.insert(id);
            }
        }
        Ok(Self { dir, disk, ids: Mutex::new(ids) })
    }

    fn ids(&self) -> std::sync::MutexGuard<'_, BTreeSet<SnapshotId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, shard: ShardId) -> Vec<SnapshotId> {
        let first = SnapshotId { shard, seq: Seq::ZERO, epoch: Epoch::ZERO };
        let last = SnapshotId { shard, seq: Seq(u64::MAX), epoch: Epoch(u64::MAX) };
        self.ids().range(first..=last).copied().collect()
    }

    pub(super) async fn write(self: &Arc<Self>, env: &Env, id: SnapshotId, body: Bytes) -> Result<()> {
        if self.ids().contains(&id) {
            // Immutable: one name, one content.
            return Ok(());
        }
        let this = Arc::clone(self);
        let written =
            env.blocking("write snapshot", move || this.disk.replace(&this.path(id), &encode(id, &body))).await;
        match written.ok_or_else(intake::closed)? {
            Ok(()) => {
                self.ids().insert(id);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                Err(Error::Full {
                    reason: format!(
                        "no room for a snapshot ({error}); free some space on the disk of the data directory"
                    ),
                })
            }
            Err(error) => Err(Error::Unavailable { reason: format!("a snapshot could not be written ({error})") }),
        }
    }

    pub(super) async fn read(self: &Arc<Self>, env: &Env, id: SnapshotId) -> Result<Option<Bytes>> {
        if !self.ids().contains(&id) {
            return Ok(None);
        }
        let this = Arc::clone(self);
        let read = env.blocking("read snapshot", move || {
            let file = this.disk.read(&this.path(id))?;
            Ok(file.map(|file| decode(id, &file)))
        });
        match read.await.ok_or_else(intake::closed)? {
            Ok(Some(Some(body))) => Ok(Some(body)),
            Ok(Some(None)) => Err(Error::Damaged { what: format!("snapshot {}", file_name(id)) }),
            // Trimmed since the look at `ids`.
            Ok(None) => Ok(None),
            Err(error) => Err(read_failed(&error)),
        }
    }

    /// Drops all but the last `keep` of a shard.
    pub(super) async fn trim(self: &Arc<Self>, env: &Env, shard: ShardId, keep: usize) -> Result<()> {
        let ids = self.of(shard);
        let gone = ids[..ids.len().saturating_sub(keep)].to_vec();
        if gone.is_empty() {
            return Ok(());
        }
        let this = Arc::clone(self);
        let removed = env.blocking("trim snapshots", move || {
            gone.into_iter().try_for_each(|id| {
                this.disk.remove(&this.path(id))?;
                this.ids().remove(&id);
                Ok(())
            })
        });
        removed.await.ok_or_else(intake::closed)?.map_err(|error: io::Error| Error::Unavailable {
            reason: format!("an old snapshot could not be removed ({error})"),
        })
    }

    fn path(&self, id: SnapshotId) -> PathBuf {
        self.dir.join(file_name(id))
    }
}

fn read_failed(error: &io::Error) -> Error {
    Error::Unavailable { reason: format!("a snapshot could not be read ({error})") }
}

fn file_name(id: SnapshotId) -> String {
    format!("{:05}-{:020}-{:020}.snapshot", id.shard.index(), id.seq.0, id.epoch.0)
}

fn id_of(name: &str) -> Option<SnapshotId> {
    let mut parts = Path::new(name.strip_suffix(".snapshot")?).to_str()?.split('-');
    let mut part = || parts.next();
    let shard = part()?.parse().ok()?;
    let seq = Seq(part()?.parse().ok()?);
    let epoch = Epoch(part()?.parse().ok()?);
    let id = SnapshotId { shard: ShardId::stored(shard), seq, epoch };
    (file_name(id) == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SnapshotId {
        SnapshotId { shard: ShardId::stored(7), seq: Seq(9), epoch: Epoch(3) }
    }

    #[test]
    fn a_snapshot_is_read_back_whatever_its_length() {
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 5] {
            let body: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            assert_eq!(decode(id(), &encode(id(), &body)).unwrap(), body, "{length}");
        }
    }

    #[test]
    fn damage_is_noticed() {
        let file = encode(id(), b"the state of a shard");
        for cut in 0..file.len() {
            assert_eq!(decode(id(), &file[..cut]), None);
        }
        for bit in 0..file.len() * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(id(), &damaged), None, "bit {bit}");
        }
        let other = SnapshotId { epoch: Epoch(4), ..id() };
        assert_eq!(decode(other, &file), None);
    }

    #[test]
    fn a_name_is_one_id() {
        assert_eq!(id_of(&file_name(id())), Some(id()));
        for other in ["", "1-2-3.snapshot", "00007-00000000000000000009-00000000000000000003.snapshot.new"] {
            assert_eq!(id_of(other), None);
        }
    }
}
