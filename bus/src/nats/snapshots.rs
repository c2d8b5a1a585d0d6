//! Snapshots: chunks, and a mark with their places, length and checksum that makes them count.
//!
//! A snapshot without its mark is not there. The mark is published on condition that there is none
//! of that name, so the first writer stays. Old snapshots lose their mark first.

use std::collections::BTreeMap;

use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::contract::{Error, Result, SnapshotId};
use crate::ids::ShardId;

use super::publish::{self, Conditional};
use super::{Shared, answer, kept};

/// Small enough for many to be on their way, large enough that a mark can name all of them.
const CHUNK_BYTES: usize = 512 << 10;
/// Chunks that are fetched at once.
const FETCHED_AT_ONCE: usize = 8;

/// What makes a snapshot whole.
#[derive(Serialize, Deserialize)]
struct Mark {
    bytes: u64,
    checksum: u32,
    /// Their sequences in the stream, in order.
    chunks: Vec<u64>,
}

impl Shared {
    pub(super) async fn write_snapshot(&self, id: SnapshotId, body: Bytes) -> Result<()> {
        self.connected()?;
        let whole = self.layout.snapshot_whole(id);
        if kept::last(&self.snapshots, &whole).await?.is_some() {
            return Ok(());
        }
        let chunk = self.layout.snapshot_chunk(id);
        let mut places = futures::stream::iter((0..body.len()).step_by(CHUNK_BYTES))
            .map(|from| {
                let bytes = body.slice(from..body.len().min(from + CHUNK_BYTES));
                self.publish_one(chunk.clone(), publish::message(bytes))
            })
            .buffered(FETCHED_AT_ONCE);
        let mut chunks = Vec::new();
        while let Some(place) = places.next().await {
            chunks.push(place?);
        }
        let mark = Mark { bytes: body.len() as u64, checksum: crc32fast::hash(&body), chunks };
        match self.publish_if(whole, publish::message(codec::encode(&mark).into()), 0).await? {
            // Refused: somebody else has written it whole in between, and the first stays.
            Conditional::Written(_) | Conditional::Refused => Ok(()),
        }
    }

    pub(super) async fn read_snapshot(&self, id: SnapshotId) -> Result<Option<Bytes>> {
        self.connected()?;
        let Some(mark) = kept::last(&self.snapshots, &self.layout.snapshot_whole(id)).await? else {
            return Ok(None);
        };
        let damaged = |what: &str| Error::Damaged {
            what: format!("snapshot {} of shard {}, epoch {}: {what}", id.seq, id.shard, id.epoch),
        };
        let mark: Mark = codec::decode_snapshot(&mark.body).map_err(|error| damaged(&error.to_string()))?;
        let subject = self.layout.snapshot_chunk(id);
        let chunks: Vec<Option<Bytes>> = futures::stream::iter(mark.chunks)
            .map(|place| chunk(&self.snapshots, &subject, place))
            .buffered(FETCHED_AT_ONCE)
            .try_collect()
            .await?;
        let mut body = BytesMut::with_capacity(usize::try_from(mark.bytes).unwrap_or(0).min(1 << 30));
        for bytes in chunks {
            match bytes {
                Some(bytes) => body.extend_from_slice(&bytes),
                // Trimmed while it was read: then the mark is gone too.
                None if kept::last(&self.snapshots, &self.layout.snapshot_whole(id)).await?.is_none() => {
                    return Ok(None);
                }
                None => return Err(damaged("a part is missing")),
            }
        }
        if body.len() as u64 != mark.bytes || crc32fast::hash(&body) != mark.checksum {
            return Err(damaged("its checksum is wrong"));
        }
        Ok(Some(body.freeze()))
    }

    pub(super) async fn snapshots(&self, shard: ShardId) -> Result<Vec<SnapshotId>> {
        self.connected()?;
        let named = self.named(shard).await?;
        Ok(named.into_iter().filter(|(_, whole)| *whole).map(|(id, _)| id).collect())
    }

    /// All names, with whether there is a mark.
    async fn named(&self, shard: ShardId) -> Result<BTreeMap<SnapshotId, bool>> {
        let doing = "list snapshots";
        let subjects = self.snapshots.info_with_subjects(self.layout.snapshots_of(shard)).await;
        let mut subjects = subjects.map_err(|error| answer::unavailable(doing, &error))?;
        let mut named = BTreeMap::new();
        while let Some(subject) = subjects.next().await {
            let (subject, _) = subject.map_err(|error| answer::unavailable(doing, &error))?;
            if let Some((id, whole)) = self.layout.snapshot_named(&subject, shard) {
                *named.entry(id).or_insert(false) |= whole;
            }
        }
        Ok(named)
    }

    /// Drops all but the last `keep`, and parts of those that never were whole and are older than the last.
    pub(super) async fn trim_snapshots(&self, shard: ShardId, keep: usize) -> Result<()> {
        let named = self.named(shard).await?;
        let whole: Vec<SnapshotId> = named.iter().filter(|(_, whole)| **whole).map(|(id, _)| *id).collect();
        let (dropped, _) = whole.split_at(whole.len().saturating_sub(keep));
        for (id, is_whole) in &named {
            // A part that is newer may be one that is being written.
            let abandoned = !is_whole && whole.last().is_some_and(|last| id < last);
            if abandoned || dropped.contains(id) {
                self.drop_snapshot(*id).await?;
            }
        }
        Ok(())
    }

    async fn drop_snapshot(&self, id: SnapshotId) -> Result<()> {
        for subjects in [self.layout.snapshot_whole(id), self.layout.snapshot_subjects(id)] {
            let purged = self.snapshots.purge().filter(subjects).await;
            purged.map_err(|error| answer::unavailable("drop a snapshot", &error))?;
        }
        Ok(())
    }
}

/// A chunk, from any replica; from the leader if that one has not heard of it yet.
async fn chunk(stream: &Stream<()>, subject: &str, place: u64) -> Result<Option<Bytes>> {
    match stream.direct_get(place).await {
        Ok(message) if message.subject.as_str() == subject => Ok(Some(message.payload)),
        Ok(_) => Ok(None),
        Err(error) => match error.kind() {
            DirectGetErrorKind::NotFound | DirectGetErrorKind::ErrorResponse(..) | DirectGetErrorKind::TimedOut => {
                Ok(kept::at(stream, subject, place).await?.map(|kept| kept.body))
            }
            DirectGetErrorKind::InvalidSubject | DirectGetErrorKind::Request | DirectGetErrorKind::Other => {
                Err(answer::unavailable("read a snapshot", &error))
            }
        },
    }
}
