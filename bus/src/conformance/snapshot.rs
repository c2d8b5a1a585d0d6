//! Snapshots: whole or not there, the last ones kept.

use bytes::Bytes;

use crate::contract::SnapshotId;
use crate::ids::{Epoch, Seq};

use super::{Subject, at_first_await, shard};

fn id(index: u16, seq: u64, epoch: u64) -> SnapshotId {
    SnapshotId { shard: shard(index), seq: Seq(seq), epoch: Epoch(epoch) }
}
fn state(bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i % 253) as u8).collect()
}

pub(super) async fn snapshots_are_read_back(subject: &mut dyn Subject) {
    let bus = subject.bus();
    assert_eq!(bus.read_snapshot(id(1, 5, 1)).await.expect("a read"), None);
    for (seq, bytes) in [(5, 0), (6, 1), (7, 5 << 20)] {
        bus.write_snapshot(id(1, seq, 1), state(bytes)).await.expect("a write");
        assert!(bus.read_snapshot(id(1, seq, 1)).await.expect("a read") == Some(state(bytes)), "{bytes} bytes");
    }
    bus.write_snapshot(id(1, 6, 1), state(100)).await.expect("a write under the same id");
    assert_eq!(bus.read_snapshot(id(1, 6, 1)).await.expect("a read"), Some(state(1)), "a snapshot is immutable");
    assert_eq!(bus.read_snapshot(id(1, 7, 2)).await.expect("a read"), None, "another epoch is another snapshot");
    assert_eq!(bus.read_snapshot(id(2, 7, 1)).await.expect("a read"), None, "another shard too");
}

pub(super) async fn snapshots_are_listed_oldest_first_and_trimmed(subject: &mut dyn Subject) {
    let bus = subject.bus();
    for seq in [30, 9, 200, 100] {
        bus.write_snapshot(id(3, seq, 2), state(10)).await.expect("a write");
        bus.write_snapshot(id(4, seq, 2), state(10)).await.expect("a write");
    }
    let listed = |seqs: &[u64]| seqs.iter().map(|seq| id(3, *seq, 2)).collect::<Vec<_>>();
    assert_eq!(bus.snapshots(shard(3)).await.expect("a list"), listed(&[9, 30, 100, 200]));
    bus.trim_log(shard(3), Seq(100), 2).await.expect("a trim");
    assert_eq!(bus.snapshots(shard(3)).await.expect("a list"), listed(&[100, 200]));
    assert_eq!(bus.read_snapshot(id(3, 30, 2)).await.expect("a read"), None);
    assert_eq!(bus.read_snapshot(id(3, 100, 2)).await.expect("a read"), Some(state(10)));
    bus.trim_log(shard(3), Seq(200), 2).await.expect("a second trim");
    assert_eq!(bus.snapshots(shard(3)).await.expect("a list"), listed(&[100, 200]));
    assert_eq!(bus.snapshots(shard(4)).await.expect("a list").len(), 4, "another shard's are left alone");
}

pub(super) async fn a_snapshot_is_whole_or_not_there(subject: &mut dyn Subject) {
    let bus = subject.bus();
    for seq in 1..20 {
        // Dropped at its first await, wherever that is.
        drop(at_first_await(bus.write_snapshot(id(5, seq, 1), state(2 << 20))).await);
        if let Some(found) = bus.read_snapshot(id(5, seq, 1)).await.expect("a read") {
            assert!(found == state(2 << 20));
        }
    }
    subject.reopen().await;
    let bus = subject.bus();
    for id in bus.snapshots(shard(5)).await.expect("a list") {
        let found = bus.read_snapshot(id).await.expect("a read");
        assert!(found == Some(state(2 << 20)), "what is listed can be read, whole");
    }
}
