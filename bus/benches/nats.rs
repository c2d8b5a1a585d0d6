//! What the NATS transport carries in a second, beside what a bare client of the same server reaches
//! in the same run.
//!
//! Server and clients share the machine. Each figure is the median of some rounds; the bare figures
//! are measured between ours, since machines that are shared differ from minute to minute.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and starts tasks")]

use std::sync::Arc;
use std::time::Instant;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use cellbus_bus::Bus;
use cellbus_bus::contract::{Event, Position, Queue, QueueKind};
use cellbus_bus::env::real;
use cellbus_bus::ids::{Seq, ShardCount, ShardId};
use cellbus_bus::nats::testing::{NatsServer, left_out};
use cellbus_bus::nats::{Config, Nats};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

const BODY: usize = 512;
const ROUNDS: usize = 3;
const MESSAGES: u64 = 40_000;
const SHARDS: u16 = 256;

fn payload() -> Bytes {
    Bytes::from(vec![7; BODY])
}
fn shard(index: u64) -> ShardId {
    ShardId::new((index % u64::from(SHARDS)) as u16, ShardCount::DEFAULT).expect("below the default")
}
fn jobs(index: u64) -> Queue {
    Queue { shard: shard(index), kind: QueueKind::Jobs }
}

/// The median rate of some rounds, after one that warms up.
async fn measure(messages: u64, mut round: impl AsyncFnMut()) -> f64 {
    let mut rates = Vec::new();
    for number in 0..=ROUNDS {
        let began = Instant::now();
        round().await;
        if number > 0 {
            rates.push(messages as f64 / began.elapsed().as_secs_f64());
        }
    }
    rates.sort_by(f64::total_cmp);
    rates[ROUNDS / 2]
}

fn show(name: &str, rate: f64, bare: f64) {
    println!("{name:<58} {rate:>9.0} /s   {:>5.2} of bare publish, pull, ack", rate / bare);
}

async fn bus(server: &NatsServer) -> Arc<Nats> {
    let config = Config { prefix: NatsServer::prefix(), ..server.config() };
    Nats::open(config, real(Handle::current())).await.expect("the bus opens")
}

async fn context(server: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.expect("a client connects"))
}

/// Publishes to `subject` with so many on their way, as fast as a bare client can.
async fn bare_publish(context: &jetstream::Context, subject: &str, messages: u64) {
    let (send, mut acks) = tokio::sync::mpsc::channel(2_000);
    let waiting = tokio::spawn(async move {
        while let Some(ack) = acks.recv().await {
            let ack: jetstream::context::PublishAckFuture = ack;
            ack.await.expect("an ack");
        }
    });
    for _ in 0..messages {
        let ack = context.publish(subject.to_owned(), payload()).await.expect("a publish");
        send.send(ack).await.expect("the waiting task lives");
    }
    drop(send);
    waiting.await.expect("the waiting task ends");
}

async fn work_queue(server: &NatsServer) -> (jetstream::Context, stream::Stream, String) {
    let context = context(server).await;
    let name = NatsServer::prefix();
    let config = stream::Config {
        name: name.clone(),
        subjects: vec![format!("{name}.>")],
        retention: stream::RetentionPolicy::WorkQueue,
        ..stream::Config::default()
    };
    let stream = context.create_stream(config).await.expect("a stream");
    (context, stream, format!("{name}.acme"))
}

async fn bare_publishes(server: &NatsServer) -> f64 {
    let (context, stream, subject) = work_queue(server).await;
    let rate = measure(MESSAGES, async || bare_publish(&context, &subject, MESSAGES).await).await;
    stream.purge().await.expect("a purge");
    rate
}

/// The yardstick: publish, one shared pull consumer, ack; from the first publish to the last ack.
async fn bare_loop(server: &NatsServer) -> f64 {
    let (producer, stream, subject) = work_queue(server).await;
    let config = pull::Config {
        durable_name: Some("cells".to_owned()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: 100_000,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.expect("a consumer");
    measure(MESSAGES, async || {
        let (producer, subject) = (producer.clone(), subject.clone());
        let publishing = tokio::spawn(async move { bare_publish(&producer, &subject, MESSAGES).await });
        let mut messages = consumer.stream().max_messages_per_batch(500).messages().await.expect("messages");
        for _ in 0..MESSAGES {
            let message = messages.next().await.expect("a message").expect("a message");
            message.ack().await.expect("an ack");
        }
        publishing.await.expect("the producer ends");
    })
    .await
}

async fn publish_all(server: &NatsServer) -> f64 {
    let bus = bus(server).await;
    measure(MESSAGES, async || {
        let mut tasks = JoinSet::new();
        for worker in 0..4_u64 {
            let bus = Arc::clone(&bus);
            tasks.spawn(async move {
                for _ in 0..MESSAGES / 4_000 {
                    let items = (0..250).map(|index| (jobs(index + worker), vec![payload(); 4])).collect();
                    bus.publish_all(items).await.expect("a publish");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
    })
    .await
}

/// Each publish waits for its ack, so many at once.
async fn publishes(server: &NatsServer, at_once: u64) -> f64 {
    let bus = bus(server).await;
    measure(MESSAGES, async || {
        let mut tasks = JoinSet::new();
        for worker in 0..at_once {
            let bus = Arc::clone(&bus);
            tasks.spawn(async move {
                for _ in 0..MESSAGES / at_once {
                    bus.publish(jobs(worker), vec![payload()]).await.expect("a publish");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
    })
    .await
}

/// Ingress as a cell does it: taken, published to the queue of its home, acked; 256 at once.
async fn intake(server: &NatsServer) -> f64 {
    let config = Config { prefix: NatsServer::prefix(), ..server.config() };
    let subject = format!("{}.jobs.acme", config.prefix);
    let bus = Nats::open(config, real(Handle::current())).await.expect("the bus opens");
    let producer = context(server).await;
    measure(MESSAGES, async || {
        let (producer, subject) = (producer.clone(), subject.clone());
        let publishing = tokio::spawn(async move { bare_publish(&producer, &subject, MESSAGES).await });
        take_in(&bus, MESSAGES).await;
        publishing.await.expect("the producer ends");
    })
    .await
}

async fn take_in(bus: &Arc<Nats>, messages: u64) {
    let mut doing = FuturesUnordered::new();
    for number in 0..messages {
        while doing.len() >= 256 {
            doing.next().await;
        }
        let delivery = bus.ingress_next(std::time::Duration::from_secs(30)).await.expect("a delivery");
        doing.push(async move {
            bus.publish(jobs(number), vec![delivery.body().clone()]).await.expect("a publish");
            delivery.ack().await.expect("an ack");
        });
    }
    while doing.next().await.is_some() {}
}

/// Fenced appends, one on its way for each of 256 shards.
async fn appends(server: &NatsServer) -> f64 {
    let bus = bus(server).await;
    measure(MESSAGES, async || {
        let mut tasks = JoinSet::new();
        for index in 0..u64::from(SHARDS) {
            let bus = Arc::clone(&bus);
            tasks.spawn(async move {
                let mut end = bus.log_end(shard(index)).await.expect("an end");
                for _ in 0..MESSAGES / u64::from(SHARDS) {
                    end = bus.append(shard(index), end, payload()).await.expect("an append");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
    })
    .await
}

/// 256 readers from the start of their queues to the end.
async fn reads(server: &NatsServer) -> (f64, f64) {
    let bus = bus(server).await;
    let each = MESSAGES / u64::from(SHARDS);
    for _ in 0..each {
        let items = (0..u64::from(SHARDS)).map(|index| (jobs(index), vec![payload()])).collect();
        bus.publish_all(items).await.expect("a publish");
    }
    let mut opened = 0.0;
    let rate = measure(MESSAGES, async || {
        let began = Instant::now();
        let readers = futures::future::join_all(
            (0..u64::from(SHARDS)).map(|index| bus.read_queue(jobs(index), Position::default())),
        )
        .await;
        opened = began.elapsed().as_secs_f64();
        let mut tasks = JoinSet::new();
        for reader in readers {
            let mut reader = reader.expect("a reader");
            tasks.spawn(async move {
                let mut seen = 0;
                while seen < each {
                    seen += reader.next(256).await.expect("messages").len() as u64;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
    })
    .await;
    (rate, opened)
}

/// The bus's part of the whole way: ingress, queue, read by position, two fenced appends for what was
/// read together, an event each.
async fn whole_way(server: &NatsServer) -> f64 {
    let config = Config { prefix: NatsServer::prefix(), ..server.config() };
    let subject = format!("{}.jobs.acme", config.prefix);
    let bus = Nats::open(config, real(Handle::current())).await.expect("the bus opens");
    let producer = context(server).await;
    let tenant: cellbus_bus::ids::TenantId = "acme".parse().expect("a tenant");
    let (done, mut outcomes) = tokio::sync::mpsc::channel::<u64>(1_000);
    for index in 0..u64::from(SHARDS) {
        let (bus, tenant, done) = (Arc::clone(&bus), tenant.clone(), done.clone());
        tokio::spawn(async move {
            let mut reader = bus.read_queue(jobs(index), Position::default()).await.expect("a reader");
            let mut end = Seq::ZERO;
            loop {
                let Ok(messages) = reader.next(256).await else { return };
                for _ in 0..2 {
                    let entry = Bytes::from(vec![7; BODY / 2 * messages.len()]);
                    end = bus.append(shard(index), end, entry).await.expect("an append");
                }
                let event = |number: usize| Event { id: format!("e{number}"), tenant: tenant.clone(), body: payload() };
                bus.publish_events((0..messages.len()).map(event).collect()).await.expect("events");
                if done.send(messages.len() as u64).await.is_err() {
                    return;
                }
            }
        });
    }
    measure(MESSAGES, async || {
        let (producer, subject) = (producer.clone(), subject.clone());
        let publishing = tokio::spawn(async move { bare_publish(&producer, &subject, MESSAGES).await });
        let taking = {
            let bus = Arc::clone(&bus);
            tokio::spawn(async move { take_in(&bus, MESSAGES).await })
        };
        let mut ended = 0;
        while ended < MESSAGES {
            ended += outcomes.recv().await.expect("an outcome");
        }
        publishing.await.expect("the producer ends");
        taking.await.expect("the intake ends");
    })
    .await
}

fn main() {
    if left_out() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let server = NatsServer::start();
        println!("{MESSAGES} messages of {BODY} bytes, one replica, file storage; median of {ROUNDS} rounds");
        let before = bare_loop(&server).await;
        let bare = bare_publishes(&server).await;
        show("bare publish", bare, before);
        show("publish_all of 1,000 over 250 queues, 4 calls at once", publish_all(&server).await, before);
        show("publish of one, 64 at once", publishes(&server, 64).await, before);
        show("fenced append, 256 shards", appends(&server).await, before);
        let (rate, opened) = reads(&server).await;
        show(&format!("256 readers (opened in {:.0} ms)", opened * 1000.0), rate, before);
        let again = bare_loop(&server).await;
        let yardstick = f64::midpoint(before, again);
        show("bare publish, one shared pull consumer, ack", before, before);
        show("  the same again", again, before);
        show("ingress to queue, acked, 256 at once", intake(&server).await, yardstick);
        show("ingress, queue, read, two appends, event; 256 shards", whole_way(&server).await, yardstick);
    });
}
