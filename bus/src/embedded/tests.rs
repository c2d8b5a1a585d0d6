//! Tests that need the inside of the transport: injected failures, a model, bounds on disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::runtime::Handle;

use super::*;
use crate::env::{BoxFuture, Clock, Disk, Mono, Random, Spawner, Task, WallMs, real};
use crate::ids::ShardCount;

fn small(dir: &Path) -> Config {
    Config { free_bytes_min: 0, segment_bytes: 4096, tail_bytes: 4096, ..Config::new(dir) }
}
fn shard(index: u16) -> ShardId {
    ShardId::new(index, ShardCount::DEFAULT).unwrap()
}
fn jobs(index: u16) -> Queue {
    Queue { shard: shard(index), kind: QueueKind::Jobs }
}
fn control(index: u16) -> Queue {
    Queue { shard: shard(index), kind: QueueKind::Control }
}
const NOTHING: Position = Position { seq: Seq::ZERO, digest: Digest([0; 16]) };

/// Everything that is there now.
async fn all(mut reader: Box<dyn Reader>, end: Seq) -> Vec<(u64, Bytes)> {
    let mut messages = Vec::new();
    while messages.last().is_none_or(|(seq, _)| *seq < end.0) && end > Seq::ZERO {
        messages.extend(reader.next(1000).await.unwrap().into_iter().map(|message| (message.seq.0, message.body)));
    }
    messages
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Embedded::open(small(dir.path()), real(Handle::current())).unwrap();
    let end = bus.append(shard(0), Seq::ZERO, Bytes::from_static(b"before")).await.unwrap();
    let mut waiting = bus.read_log(shard(0), end).await.unwrap();
    let waiting = tokio::join!(waiting.next(1), async {
        bus.shared.fail_sync.store(true, Ordering::Relaxed);
        let lost = bus.append(shard(0), end, Bytes::from_static(b"lost")).await;
        assert!(matches!(&lost, Err(Error::Unknown { reason }) if reason.contains("injected")), "{lost:?}");
    })
    .0;
    assert!(matches!(waiting, Err(Error::Unavailable { .. })), "who waits is told: {waiting:?}");

    // The disk is well again, but nobody knows what it holds.
    bus.shared.fail_sync.store(false, Ordering::Relaxed);
    for refused in [
        bus.append(shard(0), end, Bytes::new()).await.map(drop),
        bus.publish(jobs(0), vec![Bytes::new()]).await.map(drop),
        bus.publish_events(vec![Event { id: "1".into(), tenant: "acme".parse().unwrap(), body: Bytes::new() }]).await,
        bus.trim_queue(jobs(0), Seq(1)).await,
        bus.accepting(),
    ] {
        assert!(matches!(&refused, Err(Error::Unavailable { reason }) if reason.contains("injected")), "{refused:?}");
    }
    bus.close().await;
    // Another start reads what is there: the entry may be or not be, and is whole.
    let bus = Embedded::open(small(dir.path()), real(Handle::current())).unwrap();
    let found = bus.log_end(shard(0)).await.unwrap();
    assert!(found == end || found == end.next(), "{found}");
    bus.append(shard(0), found, Bytes::new()).await.unwrap();
}

/// A real environment with a disk that says what it is told to say.
struct Told {
    real: Env,
    free_bytes: AtomicU64,
}
impl Clock for Told {
    fn wall(&self) -> WallMs {
        self.real.wall()
    }
    /// A second later at each look, so that no reading is young enough to be used again.
    fn mono(&self) -> Mono {
        static LOOKS: AtomicU64 = AtomicU64::new(0);
        Mono(Duration::from_secs(LOOKS.fetch_add(1, Ordering::Relaxed)))
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        self.real.sleep(duration)
    }
}
impl Spawner for Told {
    fn spawn(&self, name: &'static str, future: BoxFuture<()>) -> Task {
        self.real.spawn(name, future)
    }
    fn blocking(&self, name: &'static str, work: Box<dyn FnOnce() + Send + 'static>) -> BoxFuture<()> {
        let env = self.real.clone();
        Box::pin(async move {
            env.blocking(name, work).await;
        })
    }
    fn panicked(&self, name: &'static str, why: &str) {
        self.real.panicked(name, why);
    }
}
impl Random for Told {
    fn next_u64(&self) -> u64 {
        self.real.random_u64()
    }
}
impl Disk for Told {
    fn read(&self, path: &Path) -> std::io::Result<Option<Bytes>> {
        self.real.disk().read(path)
    }
    fn replace(&self, path: &Path, content: &[u8]) -> std::io::Result<()> {
        self.real.disk().replace(path, content)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.real.disk().remove(path)
    }
    fn free_bytes(&self, _path: &Path) -> std::io::Result<u64> {
        Ok(self.free_bytes.load(Ordering::Relaxed))
    }
}

#[tokio::test]
async fn intake_is_refused_before_the_disk_is_full() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let told = Arc::new(Told { real: real(Handle::current()), free_bytes: AtomicU64::new(100 * MIB) });
    let env = Env::new(told.clone(), told.clone(), told.clone(), told.clone());
    let bus = Embedded::open(Config { free_bytes_min: 80 * MIB, ..small(dir.path()) }, env).unwrap();
    let one = || vec![Bytes::from_static(b"x")];
    let full = |result: Result<()>| matches!(result, Err(Error::Full { .. }));
    bus.accepting().unwrap();
    bus.publish(jobs(0), one()).await.unwrap();

    told.free_bytes.store(79 * MIB, Ordering::Relaxed);
    let refused = bus.accepting().unwrap_err();
    assert!(refused.to_string().contains("79 MiB free, below the threshold of 80 MiB"), "{refused}");
    assert!(full(bus.publish(jobs(0), one()).await.map(drop)));
    assert!(full(bus.ingress_publish("acme", Vec::new(), Bytes::new()).await));
    // What runs goes on, and control gets through even beside jobs that do not.
    let end = bus.append(shard(0), Seq::ZERO, Bytes::new()).await.unwrap();
    bus.publish(control(0), one()).await.unwrap();
    assert!(full(bus.publish_all(vec![(jobs(1), one()), (control(1), one())]).await));
    assert_eq!(bus.depth(control(1), Seq::ZERO).await.unwrap().messages, 1);
    assert_eq!(bus.depth(jobs(1), Seq::ZERO).await.unwrap().messages, 0);
    bus.trim_queue(jobs(0), Seq(1)).await.unwrap();

    told.free_bytes.store(19 * MIB, Ordering::Relaxed);
    assert!(full(bus.publish(control(0), one()).await.map(drop)));
    assert!(full(bus.append(shard(0), end, Bytes::new()).await.map(drop)));

    told.free_bytes.store(100 * MIB, Ordering::Relaxed);
    bus.accepting().unwrap();
    bus.publish(jobs(0), one()).await.unwrap();
}

#[tokio::test]
async fn a_long_life_of_writing_and_trimming_stays_small_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { segment_bytes: 64 << 10, ..small(dir.path()) };
    let bus = Embedded::open(config.clone(), real(Handle::current())).unwrap();
    // A shard that rests: its one message and its one entry must not pin a segment for ever.
    bus.publish(jobs(99), vec![Bytes::from_static(b"rests")]).await.unwrap();
    bus.append(shard(99), Seq::ZERO, Bytes::from_static(b"rests too")).await.unwrap();
    let body = Bytes::from(vec![7; 1000]);
    let mut largest = 0;
    for round in 0..2_000_u64 {
        let queue = jobs((round % 16) as u16);
        let last = bus.publish(queue, vec![body.clone(); 10]).await.unwrap();
        bus.trim_queue(queue, Seq(last.0.saturating_sub(5))).await.unwrap();
        largest = largest.max(bus.stats().segment_bytes);
    }
    let stats = bus.stats();
    assert_eq!(stats.messages_total, 20_002);
    // 20 MB were written, about 80 KB are kept.
    assert!(largest < 10 * config.segment_bytes, "{largest} bytes at the most, {stats:?}");
    let on_disk: u64 =
        std::fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    // And the spare, and what is written ahead.
    assert!(on_disk < 12 * config.segment_bytes, "{on_disk} bytes");
    drop(bus);
    let bus = Embedded::open(config, real(Handle::current())).unwrap();
    assert_eq!(
        all(bus.read_queue(jobs(99), NOTHING).await.unwrap(), Seq(1)).await,
        [(1, Bytes::from_static(b"rests"))]
    );
    assert_eq!(bus.log_end(shard(99)).await.unwrap(), Seq(1));
    for index in 0..16 {
        assert_eq!(bus.depth(jobs(index), Seq::ZERO).await.unwrap().messages, 5);
    }
}

#[tokio::test]
async fn a_slow_read_outlives_the_segments_that_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { tail_bytes: 0, ..small(dir.path()) };
    let bus = Embedded::open(config, real(Handle::current())).unwrap();
    let body = |number: u64| Bytes::from(format!("{number:0>500}"));
    let last = bus.publish(jobs(0), (1..=5).map(body).collect()).await.unwrap();
    let found = bus.shared.streams.get(StreamId::queue(jobs(0))).read(1, 5, usize::MAX, &bus.shared.segments);
    let Found::OnDisk(slow) = found else { panic!("nothing is held in memory") };
    while bus.shared.segments.all().len() == 1 {
        bus.publish(jobs(1), vec![body(0)]).await.unwrap();
    }
    bus.publish(jobs(0), vec![body(6)]).await.unwrap();
    bus.trim_queue(jobs(0), last).await.unwrap();
    for number in 0..100 {
        // Emptied segments are written again, but not the one that is being read.
        let last = bus.publish(jobs(1), vec![body(number)]).await.unwrap();
        bus.trim_queue(jobs(1), last).await.unwrap();
    }
    assert!(bus.shared.segments.all().iter().all(|segment| segment.id > 1), "what is read is gone from the index");
    let messages = slow.run().unwrap();
    assert_eq!(
        messages.into_iter().map(|message| message.body).collect::<Vec<_>>(),
        (1..=5).map(body).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn acks_out_of_order_outlive_their_segment() {
    let dir = tempfile::tempdir().unwrap();
    let long = Duration::from_secs(3600);
    let bus = Embedded::open(small(dir.path()), real(Handle::current())).unwrap();
    for number in 0..6_u8 {
        bus.ingress_publish("acme", Vec::new(), Bytes::from(vec![number])).await.unwrap();
    }
    let mut taken = Vec::new();
    for _ in 0..6 {
        taken.push(bus.ingress_next(long).await.unwrap());
    }
    // The first stays open and holds back the others, whose acks are then only records...
    for delivery in taken.drain(1..) {
        delivery.ack().await.unwrap();
    }
    // ... in segments that go.
    let first_segments = bus.shared.segments.all().last().unwrap().id;
    for index in 1..100 {
        // A little in each segment stays, so that it takes cleaning to get rid of one.
        bus.publish(jobs(index), vec![Bytes::new()]).await.unwrap();
        let last = bus.publish(jobs(0), vec![Bytes::from(vec![7; 1000])]).await.unwrap();
        bus.trim_queue(jobs(0), last).await.unwrap();
    }
    assert!(bus.shared.segments.all().iter().all(|segment| segment.id > first_segments));
    bus.close().await;
    let bus = Embedded::open(small(dir.path()), real(Handle::current())).unwrap();
    let again = bus.ingress_next(long).await.unwrap();
    assert_eq!(again.body(), &vec![0]);
    assert!(bus.shared.env.timeout(Duration::from_millis(50), bus.ingress_next(long)).await.is_none());
    again.ack().await.unwrap();
    assert_eq!(bus.shared.ingress.acked(std::iter::empty(), &bus.shared.streams.get(StreamId::INGRESS)), 7);
}

#[tokio::test]
async fn events_are_kept_up_to_their_bounds() {
    let dir = tempfile::tempdir().unwrap();
    for (change, most) in [
        (Config { events_keep: 80, ..small(dir.path()) }, 100),
        (Config { events_bytes_max: 10_000, ..small(dir.path()) }, 110),
    ] {
        let bus = Embedded::open(change, real(Handle::current())).unwrap();
        for number in 0..1000_u64 {
            let event =
                Event { id: number.to_string(), tenant: "acme".parse().unwrap(), body: Bytes::from(vec![b'e'; 60]) };
            bus.publish_events(vec![event]).await.unwrap();
        }
        let mut reader = bus.read_events(Some(Seq::ZERO)).await.unwrap();
        let first = reader.next(1).await.unwrap().remove(0);
        let kept = bus.shared.streams.get(StreamId::EVENTS).end().0 + 1 - first.seq.0;
        assert!((50..=most).contains(&kept), "{kept} events");
        let mut beyond = bus.read_events(Some(Seq(u64::MAX))).await.unwrap();
        assert_eq!(beyond.next(1).await.unwrap()[0], first, "an unknown place gives all that is kept");
    }
}

/// A step of the model test.
#[derive(Clone, Debug)]
enum Step {
    Publish { queue: u16, items: u8, bytes: u16 },
    Append { shard: u16, bytes: u16 },
    TrimQueue { queue: u16, back: u64 },
    TrimLog { shard: u16, back: u64 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_u16, 1..5_u8, 0..600_u16).prop_map(|(queue, items, bytes)| Step::Publish { queue, items, bytes }),
        6 => (0..3_u16, 0..600_u16).prop_map(|(shard, bytes)| Step::Append { shard, bytes }),
        4 => (0..3_u16, 0..4_u64).prop_map(|(queue, back)| Step::TrimQueue { queue, back }),
        4 => (0..3_u16, 0..4_u64).prop_map(|(shard, back)| Step::TrimLog { shard, back }),
        1 => Just(Step::Reopen),
    ]
}

/// What should be there: sequence and body of what is kept.
#[derive(Default)]
struct Kept {
    next: u64,
    messages: BTreeMap<u64, Bytes>,
}
impl Kept {
    fn push(&mut self, body: Bytes) {
        self.next += 1;
        self.messages.insert(self.next, body);
    }
    fn trim(&mut self, through: u64) {
        let last = self.next;
        self.messages.retain(|seq, _| *seq > through || *seq == last);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Whatever is published, appended and trimmed, over rolls, cleaning and restarts: what is
    /// there is what should be.
    #[test]
    fn the_store_is_as_its_model(steps in proptest::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async move {
            let dir = tempfile::tempdir().unwrap();
            let config = Config { segment_bytes: 1024, tail_bytes: 512, ..small(dir.path()) };
            let mut bus = Embedded::open(config.clone(), real(Handle::current())).unwrap();
            let mut queues: BTreeMap<u16, Kept> = BTreeMap::new();
            let mut logs: BTreeMap<u16, Kept> = BTreeMap::new();
            let mut number = 0_u64;
            let mut body = |bytes: u16| {
                number += 1;
                let mut body = number.to_be_bytes().to_vec();
                body.resize(8 + usize::from(bytes), number as u8);
                Bytes::from(body)
            };
            for step in steps {
                match step {
                    Step::Publish { queue, items, bytes } => {
                        let items: Vec<Bytes> = (0..items).map(|_| body(bytes)).collect();
                        let kept = queues.entry(queue).or_default();
                        items.iter().for_each(|item| kept.push(item.clone()));
                        assert_eq!(bus.publish(jobs(queue), items).await.unwrap().0, kept.next);
                    }
                    Step::Append { shard: index, bytes } => {
                        let entry = body(bytes);
                        let kept = logs.entry(index).or_default();
                        let expected = Seq(kept.next);
                        kept.push(entry.clone());
                        assert_eq!(bus.append(shard(index), expected, entry).await.unwrap().0, kept.next);
                    }
                    Step::TrimQueue { queue, back } => {
                        let kept = queues.entry(queue).or_default();
                        let through = kept.next.saturating_sub(back);
                        kept.trim(through);
                        bus.trim_queue(jobs(queue), Seq(through)).await.unwrap();
                    }
                    Step::TrimLog { shard: index, back } => {
                        let kept = logs.entry(index).or_default();
                        let through = kept.next.saturating_sub(back);
                        kept.trim(through);
                        bus.trim_log(shard(index), Seq(through), 2).await.unwrap();
                    }
                    Step::Reopen => {
                        bus.close().await;
                        bus = Embedded::open(config.clone(), real(Handle::current())).unwrap();
                    }
                }
            }
            for reopened in [false, true] {
                if reopened {
                    bus.close().await;
                    bus = Embedded::open(config.clone(), real(Handle::current())).unwrap();
                }
                for (queue, kept) in &queues {
                    let found = all(bus.read_queue(jobs(*queue), NOTHING).await.unwrap(), Seq(kept.next)).await;
                    assert_eq!(found, kept.messages.clone().into_iter().collect::<Vec<_>>());
                }
                for (index, kept) in &logs {
                    let before = kept.messages.keys().next().map_or(0, |first| first - 1);
                    let found = all(bus.read_log(shard(*index), Seq(before)).await.unwrap(), Seq(kept.next)).await;
                    assert_eq!(found, kept.messages.clone().into_iter().collect::<Vec<_>>());
                }
                let stats = bus.stats();
                let live: u64 = queues.values().chain(logs.values()).flat_map(|kept| kept.messages.values())
                    .map(|body| (body.len() + MESSAGE_HEADER) as u64).sum();
                assert_eq!(stats.live_bytes, live, "every kept byte is counted once");
            }
        });
    }
}
