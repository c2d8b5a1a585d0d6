//! Streams and subjects: what is kept where.
//!
//! | stream | subjects | kept |
//! |---|---|---|
//! | `<p>_jobs` | `<p>.jobs.<tenant>` | until a cell has acked it |
//! | `<p>_queue_<kind>_<lane>` | `<p>.queue.<kind>.<lane>.<shard>` | until trimmed |
//! | `<p>_log_<lane>` | `<p>.log.<lane>.<shard>` | until trimmed |
//! | `<p>_snapshots` | `<p>.snapshot.<shard>.<seq>.<epoch>.chunk`, `.whole` | until trimmed |
//! | `<p>_events` | `<p>.events.<tenant>` | within limits |
//! | `KV_<p>_members` | `$KV.<p>_members.<cell>` | a time to live |
//! | `KV_<p>_state` | `$KV.<p>_state.<key>` | for ever |
//!
//! `<p>` is the prefix, `<lane>` the shard's index modulo the number of lanes.

use std::time::Duration;

use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, RetentionPolicy, StorageType};

use crate::contract::{Queue, QueueKind, SnapshotId};
use crate::ids::{CellId, Epoch, Seq, ShardId};

use super::config::Config;

/// The layout that this build makes.
pub(super) const LAYOUT: u32 = 1;

/// Readers that one stream may have. A lane has one for each of its shards in each process that follows them. A
/// stream that names no number has 1,000 from nats-server 2.15 on, and any number before: two directories that follow
/// 2,048 shards are more.
pub(super) const CONSUMERS_MAX: i32 = 100_000;

/// Names of streams and subjects.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    prefix: String,
    pub(super) lanes: u16,
}

/// A stream of queues or logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    Queue(QueueKind),
    Log,
}

impl Family {
    pub(super) const ALL: [Self; 3] = [Self::Queue(QueueKind::Jobs), Self::Queue(QueueKind::Control), Self::Log];

    /// The stream of a lane, without the prefix.
    pub(super) fn lane(self, lane: u16) -> String {
        format!("{}_{lane}", self.stream())
    }
    fn stream(self) -> &'static str {
        match self {
            Self::Queue(QueueKind::Jobs) => "queue_jobs",
            Self::Queue(QueueKind::Control) => "queue_control",
            Self::Log => "log",
        }
    }
    fn subject(self) -> &'static str {
        match self {
            Self::Queue(QueueKind::Jobs) => "queue.jobs",
            Self::Queue(QueueKind::Control) => "queue.control",
            Self::Log => "log",
        }
    }
}

/// One shard's part of a family: a subject of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Track {
    pub(super) family: Family,
    pub(super) shard: ShardId,
}

impl Track {
    pub(super) fn queue(queue: Queue) -> Self {
        Self { family: Family::Queue(queue.kind), shard: queue.shard }
    }
    pub(super) fn log(shard: ShardId) -> Self {
        Self { family: Family::Log, shard }
    }
}

impl Layout {
    pub(super) fn new(config: &Config) -> Self {
        Self { prefix: config.prefix.clone(), lanes: config.lanes }
    }

    pub(super) fn lane(&self, shard: ShardId) -> u16 {
        shard.index() % self.lanes
    }
    pub(super) fn lane_stream(&self, family: Family, lane: u16) -> String {
        format!("{}_{}", self.prefix, family.lane(lane))
    }
    /// The subjects of a lane.
    pub(super) fn lane_subjects(&self, family: Family, lane: u16) -> String {
        format!("{}.{}.{lane}.*", self.prefix, family.subject())
    }
    pub(super) fn subject(&self, track: Track) -> String {
        format!("{}.{}.{}.{}", self.prefix, track.family.subject(), self.lane(track.shard), track.shard)
    }
    /// The track of a subject of this family.
    pub(super) fn track_named(&self, subject: &str, family: Family) -> Option<Track> {
        let shard = subject.rsplit('.').next()?.parse().ok()?;
        Some(Track { family, shard: ShardId::stored(shard) })
    }
    pub(super) fn ingress(&self) -> String {
        format!("{}_jobs", self.prefix)
    }
    pub(super) fn ingress_subject(&self, tenant: &str) -> String {
        format!("{}.jobs.{tenant}", self.prefix)
    }
    pub(super) fn events(&self) -> String {
        format!("{}_events", self.prefix)
    }
    pub(super) fn event_subject(&self, tenant: &str) -> String {
        format!("{}.events.{tenant}", self.prefix)
    }
    pub(super) fn snapshots(&self) -> String {
        format!("{}_snapshots", self.prefix)
    }
    /// All that is kept under a snapshot's name.
    pub(super) fn snapshot_subjects(&self, id: SnapshotId) -> String {
        format!("{}.snapshot.{}.{}.{}.*", self.prefix, id.shard, id.seq, id.epoch)
    }
    pub(super) fn snapshot_chunk(&self, id: SnapshotId) -> String {
        format!("{}.snapshot.{}.{}.{}.chunk", self.prefix, id.shard, id.seq, id.epoch)
    }
    pub(super) fn snapshot_whole(&self, id: SnapshotId) -> String {
        format!("{}.snapshot.{}.{}.{}.whole", self.prefix, id.shard, id.seq, id.epoch)
    }
    pub(super) fn snapshots_of(&self, shard: ShardId) -> String {
        format!("{}.snapshot.{shard}.>", self.prefix)
    }
    /// The snapshot that a subject belongs to, and whether it is the mark that it is whole.
    pub(super) fn snapshot_named(&self, subject: &str, shard: ShardId) -> Option<(SnapshotId, bool)> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".snapshot.")?;
        let mut tokens = rest.split('.');
        let _shard = tokens.next()?;
        let seq = tokens.next()?.parse().ok()?;
        let epoch = tokens.next()?.parse().ok()?;
        let id = SnapshotId { shard, seq: Seq(seq), epoch: Epoch(epoch) };
        match tokens.next()? {
            "whole" => Some((id, true)),
            "chunk" => Some((id, false)),
            _ => None,
        }
    }
    pub(super) fn members(&self) -> String {
        format!("{}_members", self.prefix)
    }
    /// A cell's key in the bucket of members. A dot would cut the key in two, and one at its end is
    /// refused; `=` is allowed in keys and in no cell id.
    pub(super) fn member_key(cell: &CellId) -> String {
        cell.as_str().replace('.', "=")
    }
    pub(super) fn state(&self) -> String {
        format!("{}_state", self.prefix)
    }
    /// Below this, everything of a track may have been dropped.
    pub(super) fn floor_key(&self, track: Track) -> String {
        format!("floor.{}.{}.{}", track.family.subject(), self.lane(track.shard), track.shard)
    }
    pub(super) fn floors_of(&self, family: Family, lane: u16) -> String {
        format!("$KV.{}_state.floor.{}.{lane}.*", self.prefix, family.subject())
    }
    /// The subject of a key in the bucket of state.
    pub(super) fn state_subject(&self, key: &str) -> String {
        format!("$KV.{}_state.{key}", self.prefix)
    }

    /// Every stream but the buckets, as it should be.
    pub(super) fn streams(&self, config: &Config) -> Vec<StreamConfig> {
        let limits = &config.limits;
        let bytes = |limit: Option<u64>| limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        let base = StreamConfig {
            storage: StorageType::File,
            num_replicas: usize::from(config.replicas),
            retention: RetentionPolicy::Limits,
            // Fullness is a refusal to whoever writes, never a loss.
            discard: DiscardPolicy::New,
            max_messages: -1,
            max_messages_per_subject: -1,
            max_consumers: CONSUMERS_MAX,
            ..StreamConfig::default()
        };
        let mut streams = vec![
            StreamConfig {
                name: self.ingress(),
                subjects: vec![self.ingress_subject("*")],
                retention: RetentionPolicy::WorkQueue,
                max_bytes: bytes(limits.ingress_bytes_max),
                ..base.clone()
            },
            StreamConfig {
                name: self.events(),
                subjects: vec![self.event_subject("*")],
                discard: DiscardPolicy::Old,
                max_messages: i64::try_from(limits.events_keep).unwrap_or(i64::MAX),
                max_bytes: bytes(Some(limits.events_bytes_max)),
                max_age: limits.events_age_max,
                ..base.clone()
            },
            StreamConfig {
                name: self.snapshots(),
                subjects: vec![format!("{}.snapshot.>", self.prefix)],
                max_bytes: bytes(limits.snapshots_bytes_max),
                allow_direct: true,
                ..base.clone()
            },
        ];
        for family in Family::ALL {
            for lane in 0..self.lanes {
                streams.push(StreamConfig {
                    name: self.lane_stream(family, lane),
                    subjects: vec![self.lane_subjects(family, lane)],
                    max_bytes: bytes(limits.lane_bytes_max),
                    // Nothing here carries a message id: the shortest window there is.
                    duplicate_window: Duration::from_millis(100),
                    ..base.clone()
                });
            }
        }
        streams
    }

    /// The buckets as streams: what `nats kv add` makes, so that its tools can read them.
    pub(super) fn buckets(&self, config: &Config) -> Vec<StreamConfig> {
        let bucket = |name: String, max_age: Duration| StreamConfig {
            subjects: vec![format!("$KV.{name}.>")],
            name: format!("KV_{name}"),
            storage: StorageType::File,
            num_replicas: usize::from(config.replicas),
            discard: DiscardPolicy::New,
            max_messages: -1,
            max_messages_per_subject: 1,
            max_bytes: -1,
            max_consumers: -1,
            max_age,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            duplicate_window: Duration::from_millis(100),
            ..StreamConfig::default()
        };
        vec![bucket(self.members(), config.member_ttl_max), bucket(self.state(), Duration::ZERO)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardCount;

    #[test]
    fn names_of_snapshots_come_back() {
        let layout = Layout::new(&Config::new(Vec::new()));
        let shard = ShardId::new(7, ShardCount::DEFAULT).unwrap();
        let id = SnapshotId { shard, seq: Seq(12), epoch: Epoch(3) };
        assert_eq!(layout.snapshot_named(&layout.snapshot_whole(id), shard), Some((id, true)));
        assert_eq!(layout.snapshot_named(&layout.snapshot_chunk(id), shard), Some((id, false)));
        assert_eq!(layout.snapshot_named("cellbus.snapshot.7.x.3.whole", shard), None);
    }

    /// Producers' and operators' permissions and tools rest on these.
    #[test]
    fn subjects_are_what_the_documents_say() {
        let layout = Layout::new(&Config::new(Vec::new()));
        let shard = ShardId::new(6, ShardCount::DEFAULT).unwrap();
        assert_eq!(layout.ingress_subject("acme"), "cellbus.jobs.acme");
        assert_eq!(layout.event_subject("acme"), "cellbus.events.acme");
        assert_eq!(layout.subject(Track::log(shard)), "cellbus.log.2.6");
        assert_eq!(layout.subject(Track::queue(Queue { shard, kind: QueueKind::Jobs })), "cellbus.queue.jobs.2.6");
        assert_eq!(layout.floor_key(Track::log(shard)), "floor.log.2.6");
    }
}
