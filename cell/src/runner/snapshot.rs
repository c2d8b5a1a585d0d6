//! Snapshots of a shard, and what they let the bus drop.

use bytes::Bytes;
use cellbus_bus::contract::{Queue, QueueKind, SnapshotId};
use cellbus_directory::Record;

use super::open::Open;
use super::{Runner, context};

/// Snapshots that are kept: should the last not be readable, the one before it is.
const KEEP: usize = 2;

impl Runner {
    /// Whether the log after the last snapshot outweighs it. Then opening the shard takes twice
    /// as long as it need, and it is time for a new one.
    pub(super) fn snapshot_is_due(&self, open: &Open) -> bool {
        open.tail_bytes >= self.config.snapshot_bytes_min.max(open.snapshot_bytes)
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
    /// queues has missed nothing of them ([`crate::backup`]).
    pub(super) async fn trim(&self, open: &mut Open, id: SnapshotId) {
        let before = open.snapshot.replace(id);
        let (jobs, control) = std::mem::replace(&mut open.snapshot_read, open.shard.positions());
        let Some(before) = before else { return };
        let bus = &self.process.bus;
        let queue = |kind| Queue { shard: self.shard, kind };
        let trimmed = async {
            bus.trim_log(self.shard, before.seq, KEEP).await?;
            bus.trim_queue(queue(QueueKind::Jobs), jobs.seq).await?;
            bus.trim_queue(queue(QueueKind::Control), control.seq).await
        };
        if let Err(error) = trimmed.await {
            // What was not dropped now is dropped with the next snapshot.
            tracing::warn!(shard = %self.shard, %error, "log and queues were not trimmed");
        }
    }
}
