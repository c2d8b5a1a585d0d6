//! Snapshots of a shard, and what they let the bus drop.

use bytes::Bytes;
use cellbus_bus::contract::{Queue, QueueKind, SnapshotId};
use cellbus_directory::Record;

use super::open::Open;
use super::{Runner, context};

/// Snapshots that are kept: should the last not be readable, the one before it is.
const KEEP: usize = 2;

/// How much room a log or a queue has left, which it may share with those of other shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Room {
    /// Enough, or no limit is known.
    #[default]
    Enough,
    /// Snapshots come sooner, and only the newest is kept with what follows it.
    Little,
    /// They come sooner still. Of a log: no new jobs are taken, and what is left is for those that run,
    /// for snapshots, and for whoever must open a shard.
    Last,
}

impl Room {
    fn of(fullness: Option<f64>) -> Self {
        match fullness {
            Some(fullness) if fullness >= 0.9 => Self::Last,
            Some(fullness) if fullness >= 0.75 => Self::Little,
            Some(_) | None => Self::Enough,
        }
    }
    /// By how much sooner a snapshot is due.
    fn haste(self) -> u64 {
        match self {
            Self::Enough => 1,
            Self::Little => 8,
            Self::Last => 64,
        }
    }
}

impl Runner {
    /// Whether the log after the last snapshot outweighs it. Then opening the shard takes twice
    /// as long as it need, and it is time for a new one.
    pub(super) fn snapshot_is_due(&self, open: &Open) -> bool {
        open.tail_bytes
            >= self.config.snapshot_bytes_min.max(open.snapshot_bytes) / self.room.max(self.queue_room).haste()
    }

    /// Looks at how much room there is.
    pub(super) fn look_for_room(&mut self) {
        let queue = |kind| self.process.bus.queue_fullness(Queue { shard: self.shard, kind });
        self.queue_room = Room::of(queue(QueueKind::Jobs)).max(Room::of(queue(QueueKind::Control)));
        let room = Room::of(self.process.bus.log_fullness(self.shard));
        if room == self.room {
            return;
        }
        match (self.room, room) {
            (_, Room::Last) => {
                tracing::warn!(shard = %self.shard, "its log is nearly full: no new jobs are taken until there is room");
            }
            (Room::Last, _) => tracing::info!(shard = %self.shard, "its log has room again: new jobs are taken"),
            (_, _) => {}
        }
        self.room = room;
    }
    /// Whether there is room for new jobs.
    pub(super) fn has_room(&self) -> bool {
        self.room < Room::Last
    }

    /// Writes a snapshot of what is durable, and notes it in what is appended next. `None`: it
    /// could not be written; it is tried again after the next append.
    pub(super) async fn snapshot(&self, open: &mut Open) -> Option<SnapshotId> {
        let id = SnapshotId { shard: self.shard, seq: open.end, epoch: open.shard.epoch() };
        let body: Bytes = open.shard.snapshot(open.end).encode_as(self.process.format());
        let bytes = body.len() as u64;
        if let Err(error) = self.process.bus.write_snapshot(id, body).await {
            self.process.work.snapshot(false);
            tracing::warn!(shard = %self.shard, %error, "snapshot was not written");
            // So that it is not tried after each append.
            open.tail_bytes /= 2;
            return None;
        }
        self.process.work.snapshot(true);
        let view = self.process.board.view();
        open.shard.note(&context(&self.process, &view, &self.process.pauses.pauses()), Record::Snapshot { id });
        open.snapshot_bytes = bytes;
        open.tail_bytes = 0;
        Some(id)
    }

    /// The record that names the snapshot is durable: what lies before the one before it can go, of
    /// the log first. So a backup that began with a snapshot which is still there when it has read the
    /// queues has missed nothing of them ([`crate::backup`]). Where room is little, what lies before
    /// this one can go, and the one before it too.
    pub(super) async fn trim(&self, open: &mut Open, id: SnapshotId) {
        let before = open.snapshot.replace(id);
        let here = open.shard.positions();
        let there = std::mem::replace(&mut open.snapshot_read, here);
        let (through, keep, (jobs, control)) = match before {
            _ if self.room.max(self.queue_room) > Room::Enough && self.is_sound(id).await => (id.seq, 1, here),
            Some(before) => (before.seq, KEEP, there),
            None => return,
        };
        let bus = &self.process.bus;
        let queue = |kind| Queue { shard: self.shard, kind };
        let trimmed = async {
            bus.trim_log(self.shard, through, keep).await?;
            bus.trim_queue(queue(QueueKind::Jobs), jobs.seq).await?;
            bus.trim_queue(queue(QueueKind::Control), control.seq).await
        };
        if let Err(error) = trimmed.await {
            // What was not dropped now is dropped with the next snapshot.
            tracing::warn!(shard = %self.shard, %error, "log and queues were not trimmed");
        }
    }

    /// Whether the snapshot can be read: nothing else will stand for what lies before it.
    async fn is_sound(&self, id: SnapshotId) -> bool {
        match self.process.bus.read_snapshot(id).await {
            Ok(Some(_)) => true,
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(shard = %self.shard, %error, "the new snapshot was not read back");
                false
            }
        }
    }
}
