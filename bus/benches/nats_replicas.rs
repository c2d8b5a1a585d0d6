//! Readers, lanes and trimming on three replicas, beside what a bare client reaches there in the same run.
//!
//! Three servers that flush each write before they acknowledge it, as `ops/deploy/nats` has them, share the
//! machine with the clients. Each number of lanes has servers of its own, and a yardstick of its own.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and starts tasks")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use cellbus_bus::Bus;
use cellbus_bus::allocator::{self, Allocator};
use cellbus_bus::env::real;
use cellbus_bus::ids::ShardCount;
use cellbus_bus::nats::testing::bare::{self, Log, WorkQueue};
use cellbus_bus::nats::testing::{NatsServer, left_out};
use cellbus_bus::nats::{Config, Nats};
use futures::future::BoxFuture;
use tokio::runtime::Handle;

use rounds::{MESSAGES, ROUNDS, SHARDS, appends, measure, payload, reads, whole_way};

#[expect(dead_code, reason = "what the benchmarks of other transports measure beside it")]
mod rounds;

/// As in the `cellbus` binary.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

const REPLICAS: u16 = 3;
/// As `ops/deploy/nats` has it.
const FLUSHED: &str = "sync_interval: always";
/// Numbers of lanes that are compared.
const LANES: [u16; 4] = [1, 4, 16, 64];
/// Between two tries to open a bus while servers elect a leader.
const AGAIN: Duration = Duration::from_millis(200);

fn show(name: &str, rate: f64, bare: f64) {
    println!("{name:<58} {rate:>9.0} /s   {:>5.2} of bare publish, pull, ack", rate / bare);
}

fn show_time(name: &str, took: Duration) {
    println!("{name:<58} {:>9.0} ms", took.as_secs_f64() * 1000.0);
}

/// A bus of its own on three servers, and what fills its ingress.
async fn open(servers: &[NatsServer], lanes: u16) -> (Arc<dyn Bus>, impl Fn() -> BoxFuture<'static, ()>) {
    let config = Config {
        servers: servers.iter().map(NatsServer::url).collect(),
        replicas: REPLICAS,
        lanes,
        prefix: NatsServer::prefix(),
        ..servers[0].config()
    };
    let subject = format!("{}.jobs.acme", config.prefix);
    let bus = loop {
        match Nats::open(config.clone(), real(Handle::current())).await {
            Ok(bus) => break bus,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
        tokio::time::sleep(AGAIN).await;
    };
    let producer = bare::context(&servers[0]).await;
    let publish = move || -> BoxFuture<'static, ()> {
        let (producer, subject) = (producer.clone(), subject.clone());
        Box::pin(async move { bare::publish(&producer, &subject, &payload(), MESSAGES).await })
    };
    (bus, publish)
}

/// The yardstick: publish, one shared pull consumer, ack; from the first publish to the last ack.
async fn bare_loop(server: &NatsServer) -> f64 {
    let (queue, body) = (WorkQueue::new(server, REPLICAS.into()).await, payload());
    measure(MESSAGES, async || queue.round(&body, MESSAGES).await).await
}

/// What the lanes carry.
async fn carried(lanes: u16) {
    let servers = NatsServer::cluster_with(REPLICAS.into(), FLUSHED);
    let (bus, publish) = open(&servers, lanes).await;
    let bare = bare_loop(&servers[0]).await;
    println!();
    show(&format!("{lanes} lanes: bare publish, one shared pull consumer, ack"), bare, bare);
    show("  fenced append, 256 shards", appends(&bus).await, bare);
    let (rate, opened) = reads(&bus).await;
    show(&format!("  256 readers (opened in {:.0} ms)", opened * 1000.0), rate, bare);
    show("  ingress, two appends, event; 256 shards", whole_way(&bus, publish, ShardCount::DEFAULT).await, bare);
}

/// One reader of a stream, and dropping what has been read from it.
async fn streams() {
    let servers = NatsServer::cluster_with(REPLICAS.into(), FLUSHED);
    // The servers have a leader once a bus opens.
    drop(open(&servers, 1).await);
    let bare = bare_loop(&servers[0]).await;
    let (subjects, body) = (u64::from(SHARDS), payload());
    let fill = async || {
        let log = Log::new(&servers[0], REPLICAS.into()).await;
        log.publish_over(subjects, &body, MESSAGES / subjects).await;
        log
    };
    let log = fill().await;
    println!();
    let rate = measure(MESSAGES, async || log.replay(MESSAGES / subjects * subjects).await).await;
    show(&format!("one bare reader of a stream with {subjects} subjects"), rate, bare);
    let end = log.end().await;
    let began = Instant::now();
    log.drop_below(end).await;
    show_time(&format!("dropping {} messages, the stream as a whole", end - 1), began.elapsed());
    let log = fill().await;
    let began = Instant::now();
    log.drop_each_below(subjects, end).await;
    show_time("the same, subject by subject", began.elapsed());
}

fn main() {
    allocator::keep_freed_pages();
    if left_out() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!(
            "{MESSAGES} messages of {} bytes, three replicas, file storage, {FLUSHED}; median of {ROUNDS} rounds",
            rounds::BODY
        );
        for lanes in LANES {
            carried(lanes).await;
        }
        streams().await;
    });
}
