use cellbus_bus::contract::Message;
use cellbus_bus::embedded::{Config, Embedded};
use cellbus_bus::env::{WallMs, real};
use cellbus_bus::ids::{Epoch, ManagerId, ShardCount};

use super::*;
use crate::record::Operator;
use crate::snapshot::ShardSnapshot;

fn two() -> ShardCount {
    ShardCount::new(2).unwrap()
}
fn shard(n: u16) -> ShardId {
    ShardId::new(n, two()).unwrap()
}

/// A bus in a directory of its own, and a replica that follows it.
struct World {
    /// Removed when this is dropped.
    _dir: tempfile::TempDir,
    bus: Arc<Embedded>,
    env: Env,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let env = real(tokio::runtime::Handle::current());
        let bus = Embedded::open(Config { free_bytes_min: 0, ..Config::new(dir.path()) }, env.clone()).unwrap();
        Self { _dir: dir, bus, env }
    }
    fn follow(&self, replica: &Arc<Replica>) -> Following {
        let (tail, handle) = Tail::new(Arc::clone(&self.bus) as Arc<dyn Bus>, self.env.clone(), Arc::clone(replica));
        let stop = CancellationToken::new();
        let (done, ended) = tokio::sync::oneshot::channel();
        let run = tail.run(stop.clone());
        self.env.spawn("tail under test", async move {
            run.await;
            done.send(()).unwrap();
        });
        Following { handle, stop, ended }
    }
    /// Appends an entry as its owner would, and gives its sequence.
    async fn append(&self, shard: ShardId, epoch: u64, records: Vec<Record>) -> Seq {
        let end = self.bus.log_end(shard).await.unwrap();
        self.append_after(shard, end, epoch, records).await
    }
    async fn append_after(&self, shard: ShardId, prev: Seq, epoch: u64, records: Vec<Record>) -> Seq {
        let end = self.bus.log_end(shard).await.unwrap();
        let entry = Entry { epoch: Epoch(epoch), prev, at: WallMs(end.0), jobs: None, control: None, records };
        self.bus.append(shard, end, entry.encode()).await.unwrap()
    }
    /// A snapshot of the log so far, folded plainly.
    async fn snapshot(&self, shard: ShardId) -> (SnapshotId, ShardSnapshot) {
        let end = self.bus.log_end(shard).await.unwrap();
        let mut tables = Tables::default();
        let mut reader = self.bus.read_log(shard, Seq::ZERO).await.unwrap();
        while tables.seq < end {
            for Message { seq, body, .. } in reader.next(100).await.unwrap() {
                tables.apply(seq, &Entry::decode(&body).unwrap());
            }
        }
        let snapshot = tables.snapshot();
        (SnapshotId { shard, seq: end, epoch: snapshot.epoch }, snapshot)
    }
}

struct Following {
    handle: Handle,
    stop: CancellationToken,
    ended: tokio::sync::oneshot::Receiver<()>,
}
impl Following {
    async fn stop(self) {
        self.stop.cancel();
        self.ended.await.unwrap();
    }
}

fn opened() -> Record {
    Record::Opened { cell: "c1".parse().unwrap(), address: "local:c1".to_owned() }
}
fn manager(n: u64) -> ManagerId {
    ManagerId::derive(&n.to_string())
}
/// Something that shows in the rows: manager n is cordoned.
fn cordoned(n: u64) -> Record {
    Record::ManagerCordoned {
        manager: manager(n),
        cordoned: true,
        by: Operator { who: "test".to_owned(), from: String::new() },
    }
}
fn cordons(replica: &Replica) -> Vec<ManagerId> {
    replica.cordons().into_iter().map(|(manager, _)| manager).collect()
}
fn managers(numbers: &[u64]) -> Vec<ManagerId> {
    let mut all: Vec<ManagerId> = numbers.iter().map(|n| manager(*n)).collect();
    all.sort_unstable();
    all
}
fn empty() -> Arc<Replica> {
    Arc::new(Replica::new(two(), 1))
}

#[tokio::test]
async fn it_reads_what_is_there_and_then_what_comes() {
    let world = World::new();
    world.append(shard(0), 1, vec![opened(), cordoned(1)]).await;
    world.append(shard(1), 1, vec![opened(), cordoned(2)]).await;
    let replica = empty();
    let following = world.follow(&replica);
    following.handle.until_ready().await;
    assert_eq!(cordons(&replica), managers(&[1, 2]));
    let seq = world.append(shard(0), 1, vec![cordoned(3)]).await;
    replica.wait_for(shard(0), seq).await;
    assert_eq!(cordons(&replica), managers(&[1, 2, 3]));
    assert_eq!(following.handle.lag().await.unwrap(), [(shard(0), 0), (shard(1), 0)]);
    assert_eq!(following.handle.states(), [ShardState::Following, ShardState::Following]);
    following.stop().await;
    // Stopped means stopped.
    let seq = world.append(shard(0), 1, vec![cordoned(4)]).await;
    assert!(replica.applied(shard(0)) < seq);
}

#[tokio::test]
async fn entries_of_an_owner_that_was_replaced_are_void() {
    let world = World::new();
    world.append(shard(0), 1, vec![opened()]).await;
    world.append(shard(0), 2, vec![opened()]).await;
    world.append(shard(0), 1, vec![cordoned(1)]).await;
    let seq = world.append(shard(0), 2, vec![cordoned(2)]).await;
    let replica = empty();
    let following = world.follow(&replica);
    replica.wait_for(shard(0), seq).await;
    assert_eq!(cordons(&replica), managers(&[2]));
    following.stop().await;
}

#[tokio::test]
async fn it_starts_from_the_newest_snapshot_that_a_record_names() {
    let world = World::new();
    world.append(shard(0), 1, vec![opened(), cordoned(1)]).await;
    let (id, snapshot) = world.snapshot(shard(0)).await;
    world.bus.write_snapshot(id, snapshot.encode()).await.unwrap();
    world.append(shard(0), 1, vec![Record::Snapshot { id }]).await;
    world.append(shard(0), 1, vec![cordoned(2)]).await;
    // One that no record names, and that says something else.
    let (unnamed, mut lie) = world.snapshot(shard(0)).await;
    lie.cordons = vec![(manager(9), None)];
    world.bus.write_snapshot(unnamed, lie.encode()).await.unwrap();
    // One that is named by an owner that had been replaced when it named it.
    world.append(shard(0), 2, vec![opened()]).await;
    world.append(shard(0), 1, vec![Record::Snapshot { id: unnamed }]).await;
    // One that can't be read, although it is named.
    let (damaged, _) = world.snapshot(shard(0)).await;
    world.bus.write_snapshot(damaged, bytes::Bytes::from_static(b"\x01no snapshot")).await.unwrap();
    world.append(shard(0), 2, vec![Record::Snapshot { id: damaged }]).await;
    world.bus.trim_log(shard(0), id.seq, 4).await.unwrap();
    let seq = world.append(shard(0), 2, vec![cordoned(3)]).await;

    let replica = empty();
    let following = world.follow(&replica);
    following.handle.until_ready().await;
    assert_eq!(following.handle.failed(), []);
    assert_eq!((replica.applied(shard(0)), cordons(&replica)), (seq, managers(&[1, 2, 3])));
    following.stop().await;
}

#[tokio::test]
async fn a_replica_that_was_left_behind_loads_the_snapshot() {
    let world = World::new();
    world.append(shard(0), 1, vec![opened(), cordoned(1)]).await;
    let replica = empty();
    let following = world.follow(&replica);
    following.handle.until_ready().await;
    following.stop().await;
    world.append(shard(0), 1, vec![cordoned(2)]).await;
    let (id, snapshot) = world.snapshot(shard(0)).await;
    world.bus.write_snapshot(id, snapshot.encode()).await.unwrap();
    let seq = world.append(shard(0), 1, vec![Record::Snapshot { id }]).await;
    world.bus.trim_log(shard(0), id.seq, 2).await.unwrap();
    let following = world.follow(&replica);
    following.handle.until_ready().await;
    assert_eq!((replica.applied(shard(0)), cordons(&replica)), (seq, managers(&[1, 2])));
    assert_eq!(replica.losses(shard(0)), 0, "being left behind is no loss");
    following.stop().await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_stops_its_shard_only() {
    let world = World::new();
    world.append(shard(0), 1, vec![opened(), cordoned(1)]).await;
    let end = world.bus.log_end(shard(0)).await.unwrap();
    // A format of the future.
    world.bus.append(shard(0), end, bytes::Bytes::from_static(b"\x63new")).await.unwrap();
    let seq = world.append(shard(1), 1, vec![opened(), cordoned(2)]).await;
    let replica = empty();
    let following = world.follow(&replica);
    following.handle.until_ready().await;
    let failed = following.handle.failed();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].0, shard(0));
    assert!(failed[0].1.contains("entry 2") && failed[0].1.contains("newer build"), "{}", failed[0].1);
    replica.wait_for(shard(1), seq).await;
    assert_eq!(cordons(&replica), managers(&[1, 2]), "what was read before stays listed");
    following.stop().await;
}

#[tokio::test]
async fn a_hole_that_no_snapshot_fills_is_reported() {
    let world = World::new();
    world.append(shard(0), 1, vec![opened()]).await;
    world.append_after(shard(0), Seq(7), 1, vec![cordoned(1)]).await;
    let replica = empty();
    let following = world.follow(&replica);
    following.handle.until_ready().await;
    assert!(following.handle.failed()[0].1.contains("missing"), "{:?}", following.handle.failed());
    following.stop().await;
}

#[tokio::test]
async fn a_hole_that_a_snapshot_fills_is_read_over() {
    let world = World::new();
    world.append(shard(0), 1, vec![opened(), cordoned(1)]).await;
    let hole = world.append_after(shard(0), Seq(7), 1, Vec::new()).await;
    let snapshot =
        ShardSnapshot { seq: hole, epoch: Epoch(1), cordons: vec![(manager(5), None)], ..Tables::default().snapshot() };
    let id = SnapshotId { shard: shard(0), seq: hole, epoch: Epoch(1) };
    world.bus.write_snapshot(id, snapshot.encode()).await.unwrap();
    let seq = world.append(shard(0), 1, vec![Record::Snapshot { id }]).await;
    let replica = empty();
    let following = world.follow(&replica);
    following.handle.until_ready().await;
    assert_eq!((replica.applied(shard(0)), cordons(&replica)), (seq, managers(&[5])));
    assert_eq!(replica.losses(shard(0)), 0);
    following.stop().await;
}

#[tokio::test]
async fn a_bus_put_back_to_an_older_state_is_read_again() {
    // The replica has read a log that went further, or elsewhere, than the one it now meets.
    for (entries, same_length) in [(vec![1, 2, 3], false), (vec![1, 8], true)] {
        let before = World::new();
        before.append(shard(0), 1, vec![opened()]).await;
        for n in &entries {
            before.append(shard(0), 1, vec![cordoned(*n)]).await;
        }
        let replica = empty();
        let following = before.follow(&replica);
        following.handle.until_ready().await;
        following.stop().await;
        assert_eq!(cordons(&replica), managers(&entries));

        let after = World::new();
        // Written at another time: the same entry again would be told apart by nothing, and need not be.
        let epoch = if same_length { 2 } else { 1 };
        after.append(shard(0), epoch, vec![opened()]).await;
        after.append(shard(0), epoch, vec![cordoned(1)]).await;
        if same_length {
            after.append(shard(0), epoch, Vec::new()).await;
        }
        let following = after.follow(&replica);
        following.handle.until_ready().await;
        assert_eq!(following.handle.failed(), []);
        assert_eq!(cordons(&replica), managers(&[1]));
        assert_eq!((replica.losses(shard(0)), replica.losses(shard(1))), (1, 0), "it was noticed");
        assert_eq!(replica.epoch_seen(shard(0)), Epoch(epoch));
        following.stop().await;
    }
}
