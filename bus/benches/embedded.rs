//! What the embedded bus makes durable in a second, beside what the disk takes at all.
//!
//! Each figure is the median of some rounds; the bare file is measured in the same run, since
//! what a sync costs differs from hour to hour on shared machines.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cellbus_bus::Bus;
use cellbus_bus::contract::{Event, Position, Queue, QueueKind};
use cellbus_bus::embedded::{Config, Embedded};
use cellbus_bus::env::real;
use cellbus_bus::ids::{Seq, ShardCount, ShardId};
use tokio::runtime::Handle;

const BODY: usize = 512;
const ROUNDS: usize = 5;

fn cpu() -> Duration {
    let usage = |stat: &str| -> Option<u64> {
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    // In ticks of 10 ms.
    let ticks = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| usage(&stat)).unwrap_or(0);
    Duration::from_millis(ticks * 10)
}

struct Figure {
    per_second: f64,
    cpu_us: f64,
}

async fn measure(messages: u64, mut round: impl AsyncFnMut()) -> Figure {
    round().await;
    let mut rates = Vec::new();
    let cpu_began = cpu();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        round().await;
        rates.push(messages as f64 / began.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let cpu_us = (cpu() - cpu_began).as_secs_f64() * 1e6 / (messages as f64 * ROUNDS as f64);
    Figure { per_second: rates[ROUNDS / 2], cpu_us }
}

fn show(name: &str, figure: &Figure, bound: &str) {
    println!("{name:<44} {:>10.0} /s  {:>6.2} us CPU each   bound by {bound}", figure.per_second, figure.cpu_us);
}

fn shard(index: u64) -> ShardId {
    ShardId::new((index % 256) as u16, ShardCount::DEFAULT).expect("below the default")
}
fn jobs(index: u64) -> Queue {
    Queue { shard: shard(index), kind: QueueKind::Jobs }
}

/// The limit: one thread, a write and an fdatasync for each group.
async fn bare(group: usize, groups: u64) -> Figure {
    let dir = tempfile::tempdir().expect("a directory");
    let mut file = OpenOptions::new().create(true).append(true).open(dir.path().join("log")).expect("a file");
    let bytes = vec![7; group * BODY];
    measure(groups * group as u64, async || {
        for _ in 0..groups {
            file.write_all(&bytes).expect("a write");
            file.sync_data().expect("a sync");
        }
    })
    .await
}

fn open(dir: &std::path::Path) -> Arc<Embedded> {
    let config = Config { free_bytes_min: 0, ..Config::new(dir) };
    Embedded::open(config, real(Handle::current())).expect("the store opens")
}

/// Appends by so many owners at once, each to its own log, one in flight each.
async fn appends(owners: u64, each: u64) -> (Figure, u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let bus = open(dir.path());
    let entry = Bytes::from(vec![7; BODY]);
    let figure = measure(owners * each, async || {
        let mut tasks = tokio::task::JoinSet::new();
        for owner in 0..owners {
            let (bus, entry) = (Arc::clone(&bus), entry.clone());
            tasks.spawn(async move {
                // More writers than shards write to queues, where nobody is fenced.
                if owner < 256 {
                    let mut end = bus.log_end(shard(owner)).await.expect("an end");
                    for _ in 0..each {
                        end = bus.append(shard(owner), end, entry.clone()).await.expect("an append");
                    }
                    bus.trim_log(shard(owner), end, 2).await.expect("a trim");
                } else {
                    let mut last = Seq::ZERO;
                    for _ in 0..each {
                        last = bus.publish(jobs(owner), vec![entry.clone()]).await.expect("a publish");
                    }
                    bus.trim_queue(jobs(owner), last).await.expect("a trim");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
    })
    .await;
    let stats = bus.stats();
    (figure, stats.messages_total / stats.syncs_total.max(1))
}

/// `publish_all` of 1,000 items over 256 queues, some calls in flight.
async fn publish_all(in_flight: usize) -> Figure {
    const CALLS: u64 = 200;
    let dir = tempfile::tempdir().expect("a directory");
    let bus = open(dir.path());
    let body = Bytes::from(vec![7; BODY]);
    measure(CALLS * 1000, async || {
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..in_flight {
            let (bus, body) = (Arc::clone(&bus), body.clone());
            tasks.spawn(async move {
                for _ in 0..CALLS as usize / in_flight {
                    let items = (0..250).map(|index| (jobs(index + worker as u64), vec![body.clone(); 4])).collect();
                    bus.publish_all(items).await.expect("a publish");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
        for index in 0..256 {
            bus.trim_queue(jobs(index), Seq(u64::MAX)).await.expect("a trim");
        }
    })
    .await
}

/// The bus's part of a provision: a queue item published and read, two log entries for eight
/// provisions together, an event each; 256 shards.
async fn provisions() -> Figure {
    const EACH: u64 = 400;
    const TOGETHER: u64 = 8;
    let dir = tempfile::tempdir().expect("a directory");
    let bus = open(dir.path());
    let body = Bytes::from(vec![7; BODY]);
    let tenant: cellbus_bus::ids::TenantId = "acme".parse().expect("a tenant");
    measure(EACH * 256, async || {
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..256 {
            let (bus, body, tenant) = (Arc::clone(&bus), body.clone(), tenant.clone());
            tasks.spawn(async move {
                let start = bus.publish(jobs(index), Vec::new()).await.expect("an end");
                let mut reader = bus.read_queue(jobs(index), Position::default()).await.expect("a reader");
                if start > Seq::ZERO {
                    reader.next(1).await.expect("the last that was kept");
                }
                let mut end = bus.log_end(shard(index)).await.expect("an end");
                for _ in 0..EACH / TOGETHER {
                    let last =
                        bus.publish(jobs(index), vec![body.clone(); TOGETHER as usize]).await.expect("a publish");
                    let mut seen = Seq::ZERO;
                    while seen < last {
                        seen = reader.next(100).await.expect("messages").last().expect("one at least").seq;
                    }
                    for _ in 0..2 {
                        let entry = Bytes::from(vec![7; BODY * TOGETHER as usize / 2]);
                        end = bus.append(shard(index), end, entry).await.expect("an append");
                    }
                    let event = |number: u64| Event {
                        id: format!("event-{number}"),
                        tenant: tenant.clone(),
                        body: body.clone(),
                    };
                    bus.publish_events((0..TOGETHER).map(event).collect()).await.expect("events");
                }
                bus.trim_queue(jobs(index), Seq(u64::MAX)).await.expect("a trim");
                bus.trim_log(shard(index), Seq(u64::MAX), 2).await.expect("a trim");
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
    })
    .await
}

/// Opening a store of this many messages.
async fn reopen() -> (f64, u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let bus = open(dir.path());
    let body = Bytes::from(vec![7; BODY]);
    for _ in 0..500 {
        bus.publish_all((0..250).map(|index| (jobs(index), vec![body.clone(); 4])).collect()).await.expect("a publish");
    }
    bus.close().await;
    drop(bus);
    let began = Instant::now();
    let bus = open(dir.path());
    let seconds = began.elapsed().as_secs_f64();
    (500_000.0 / seconds, bus.stats().segment_bytes)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!("messages of {BODY} bytes, durable one by one or in groups; median of {ROUNDS} rounds");
        show("bare file, groups of 1", &bare(1, 2_000).await, "the disk's sync");
        show("bare file, groups of 64", &bare(64, 1_000).await, "the disk's sync");
        show("bare file, groups of 1,000", &bare(1_000, 200).await, "the disk's bandwidth");
        let (one, _) = appends(1, 2_000).await;
        show("1 owner appending", &one, "a sync and two thread switches an append");
        let (many, together) = appends(256, 100).await;
        show("256 owners appending", &many, &format!("waking tasks; {together} messages a sync"));
        let (more, together) = appends(1_024, 100).await;
        show("1,024 writers", &more, &format!("waking tasks; {together} messages a sync"));
        show("publish_all of 1,000, 1 in flight", &publish_all(1).await, "the disk's sync and bandwidth");
        show("publish_all of 1,000, 4 in flight", &publish_all(4).await, "the committer's thread and the disk");
        show("the bus's part of provisions, 256 shards", &provisions().await, "processor time");
        let (rate, bytes) = reopen().await;
        println!(
            "{:<44} {rate:>10.0} /s  ({} MiB)          bound by reading and checking sums",
            "messages read at open",
            bytes >> 20
        );
    });
}
