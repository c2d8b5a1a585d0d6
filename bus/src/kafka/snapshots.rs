//! Snapshots: chunks on a partition of their shard, and a mark with their places, length and checksum
//! that makes them count.
//!
//! A snapshot without its mark is not there. Marks are kept by key, and no two have one key, so that the
//! first of a name can stay: of several of one name the one that lies first counts. Old snapshots lose
//! their mark first.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::contract::{Error, Result, SnapshotId};
use crate::ids::ShardId;

use super::layout::Place;
use super::produce::{Record, To};
use super::{Shared, table};

/// Small enough for many to be on their way.
const CHUNK_BYTES: usize = 512 << 10;

/// What makes a snapshot whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    id: SnapshotId,
    bytes: u64,
    checksum: u32,
    /// Their offsets, in order.
    chunks: Vec<i64>,
}

/// A mark, and the keys under which it and later ones of the same name are.
struct Marked {
    offset: i64,
    mark: Mark,
    keys: Vec<Bytes>,
}

impl Shared {
    /// The marks of a shard.
    async fn marks_of(&self, shard: ShardId) -> Result<BTreeMap<SnapshotId, Marked>> {
        let rows = self.rows(&self.marks, &self.layout.marks()).await?;
        let mut marks: BTreeMap<SnapshotId, Marked> = BTreeMap::new();
        let of_shard = format!("{shard}.");
        for (key, table::Row { offset, body, .. }) in rows {
            if !key.starts_with(of_shard.as_bytes()) {
                continue;
            }
            let mark: Mark = codec::decode_snapshot(&body).map_err(|error| Error::Damaged {
                what: format!("the mark of a snapshot of shard {shard}: {error}"),
            })?;
            match marks.entry(mark.id) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(Marked { offset, mark, keys: vec![key] });
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    let first = entry.get_mut();
                    first.keys.push(key);
                    if offset < first.offset {
                        (first.offset, first.mark) = (offset, mark);
                    }
                }
            }
        }
        Ok(marks)
    }

    pub(super) async fn write_snapshot(&self, id: SnapshotId, body: Bytes) -> Result<()> {
        if self.marks_of(id.shard).await?.contains_key(&id) {
            return Ok(());
        }
        let place = self.layout.snapshots(id.shard);
        let mut chunks = Vec::new();
        for from in (0..body.len()).step_by(CHUNK_BYTES) {
            let bytes = body.slice(from..body.len().min(from + CHUNK_BYTES));
            let offset = self.write(To::Place(place.clone()), Record::new(bytes)).await?;
            let nowhere =
                || Error::Unavailable { reason: "the place of a chunk is not known; write it again".to_owned() };
            chunks.push(offset.ok_or_else(nowhere)?);
        }
        let mark = Mark { id, bytes: body.len() as u64, checksum: crc32fast::hash(&body), chunks };
        let key = format!("{}.{}.{}.{:016x}", id.shard, id.seq, id.epoch, self.env.random_u64());
        let record = Record { key: Some(Bytes::from(key)), ..Record::new(codec::encode(&mark).into()) };
        self.write(To::Place(self.layout.marks()), record).await.map(drop)
    }

    pub(super) async fn read_snapshot(&self, id: SnapshotId) -> Result<Option<Bytes>> {
        let Some(Marked { mark, .. }) = self.marks_of(id.shard).await?.remove(&id) else { return Ok(None) };
        let damaged = |what: &str| Error::Damaged {
            what: format!("snapshot {} of shard {}, epoch {}: {what}", id.seq, id.shard, id.epoch),
        };
        let mut body = BytesMut::with_capacity(usize::try_from(mark.bytes).unwrap_or(0).min(1 << 30));
        if let (Some(first), Some(last)) = (mark.chunks.first().copied(), mark.chunks.last().copied()) {
            let place = self.layout.snapshots(id.shard);
            let (low, high) = self.watermarks(&place).await?;
            if first < low && !self.marks_of(id.shard).await?.contains_key(&id) {
                // Trimmed while it was read: then the mark is gone too.
                return Ok(None);
            }
            if first < low || last >= high {
                return Err(damaged("a part is missing"));
            }
            let mut wanted = mark.chunks.iter();
            let mut next = wanted.next();
            for came in self.range(&place, first, last + 1).await? {
                if next == Some(&came.offset) {
                    body.extend_from_slice(&came.body.unwrap_or_default());
                    next = wanted.next();
                }
            }
        }
        if body.len() as u64 != mark.bytes || crc32fast::hash(&body) != mark.checksum {
            return Err(damaged("its checksum is wrong"));
        }
        Ok(Some(body.freeze()))
    }

    pub(super) async fn snapshots(&self, shard: ShardId) -> Result<Vec<SnapshotId>> {
        Ok(self.marks_of(shard).await?.into_keys().collect())
    }

    /// Drops all but the last `keep`, and what lies before those that are kept: chunks of one that is
    /// being written lie behind them.
    pub(super) async fn trim_snapshots(&self, shard: ShardId, keep: usize) -> Result<()> {
        let marks: Vec<Marked> = self.marks_of(shard).await?.into_values().collect();
        let (dropped, kept) = marks.split_at(marks.len().saturating_sub(keep));
        if dropped.is_empty() {
            return Ok(());
        }
        let gone = dropped
            .iter()
            .flat_map(|marked| &marked.keys)
            .map(|key| (To::Place(self.layout.marks()), Record { key: Some(key.clone()), ..Record::default() }));
        let gone: Vec<_> = gone.collect();
        self.write_all(gone).await.map_err(|error| match error {
            // Asked for again later, as all trims are.
            Error::Unknown { reason } | Error::Full { reason } => Error::Unavailable { reason },
            other => other,
        })?;
        let place: Place = self.layout.snapshots(shard);
        let first_kept = kept.iter().flat_map(|marked| &marked.mark.chunks).min().copied();
        let (low, _) = self.watermarks(&place).await?;
        match first_kept {
            Some(first) if first > low => self.drop_before(&place, first).await,
            Some(_) | None => Ok(()),
        }
    }
}
