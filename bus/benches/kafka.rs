//! What the Kafka transport carries in a second, beside what a bare client of the same broker reaches in
//! the same run.
//!
//! Broker and clients share the machine. Each figure is the median of some rounds; the bare figures are
//! measured between ours, since machines that are shared differ from minute to minute.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and starts tasks")]

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::Bus;
use cellbus_bus::allocator::{self, Allocator};
use cellbus_bus::env::real;
use cellbus_bus::ids::ShardCount;
use cellbus_bus::kafka::testing::{KafkaServer, left_out};
use cellbus_bus::kafka::{Config, Kafka};
use futures::future::BoxFuture;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::runtime::Handle;

use rounds::{MESSAGES, ROUNDS, appends, intake, measure, payload, publish_all, publishes, reads, whole_way};

mod rounds;

/// As in the `cellbus` binary.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Appends of one shard, one after the other.
const APPENDS: u64 = 2_000;
/// Those that are a transaction each, which take long.
const TRANSACTIONS: u64 = 100;

fn show(name: &str, rate: f64, bare: f64) {
    println!("{name:<58} {rate:>9.0} /s   {:>5.2} of bare produce, consume, commit", rate / bare);
}

fn client(server: &KafkaServer) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", server.address()).set("acks", "all").set("linger.ms", "0");
    client
}

async fn topic(server: &KafkaServer, name: &str, partitions: i32) {
    server.make_topics(&[name.to_owned()], partitions).await;
}

fn producer(server: &KafkaServer) -> FutureProducer {
    client(server).set("enable.idempotence", "true").create().expect("a producer")
}

/// Produces with all on their way at once, as fast as a bare client can.
async fn bare_publish(producer: &FutureProducer, topic: &str, messages: u64) {
    let body = payload();
    let mut on_their_way = std::collections::VecDeque::new();
    for _ in 0..messages {
        if on_their_way.len() >= 2_000 {
            let sent: rdkafka::producer::DeliveryFuture = on_their_way.pop_front().expect("some are");
            sent.await.expect("an answer").expect("a write");
        }
        let record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic).payload(&body);
        on_their_way.push_back(producer.send_result(record).map_err(|(error, _)| error).expect("a place"));
    }
    for sent in on_their_way {
        sent.await.expect("an answer").expect("a write");
    }
}

/// The yardstick: produce, one consumer of a group, commit; from the first produce to the last commit.
async fn bare_loop(server: &KafkaServer) -> f64 {
    let name = KafkaServer::prefix();
    topic(server, &name, 4).await;
    let producer = producer(server);
    let consumer: StreamConsumer = client(server)
        .set("group.id", &name)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    consumer.subscribe(&[&name]).expect("a subscription");
    measure(MESSAGES, async || {
        let (producer, name) = (producer.clone(), name.clone());
        let publishing = tokio::spawn(async move { bare_publish(&producer, &name, MESSAGES).await });
        for number in 1..=MESSAGES {
            drop(consumer.recv().await.expect("a message"));
            if number % 1_000 == 0 {
                consumer.commit_consumer_state(CommitMode::Async).expect("a commit");
            }
        }
        consumer.commit_consumer_state(CommitMode::Sync).expect("a commit");
        publishing.await.expect("the producer ends");
    })
    .await
}

/// The bound of a partition for each shard: the same bare client, one record after the other to each of 256
/// partitions, so that each is a request of its own.
async fn bare_spread(server: &KafkaServer) -> f64 {
    const PARTITIONS: i32 = 256;
    let name = KafkaServer::prefix();
    topic(server, &name, PARTITIONS).await;
    let producer = producer(server);
    let body = payload();
    measure(MESSAGES, async || {
        let mut on_their_way = std::collections::VecDeque::new();
        for number in 0..MESSAGES {
            // No more than one of each partition: those that wait for the same would share a request.
            if on_their_way.len() >= PARTITIONS as usize {
                let sent: rdkafka::producer::DeliveryFuture = on_their_way.pop_front().expect("some are");
                sent.await.expect("an answer").expect("a write");
            }
            let partition = i32::try_from(number % PARTITIONS as u64).expect("small");
            let record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&name).partition(partition).payload(&body);
            on_their_way.push_back(producer.send_result(record).map_err(|(error, _)| error).expect("a place"));
        }
        for sent in on_their_way {
            sent.await.expect("an answer").expect("a write");
        }
    })
    .await
}

/// What the other way to fence a log costs: each append a transaction of its shard's producer.
async fn transactions(server: &KafkaServer) -> f64 {
    let name = KafkaServer::prefix();
    topic(server, &name, 1).await;
    let producer: FutureProducer = client(server).set("transactional.id", &name).create().expect("a producer");
    let limit = Duration::from_secs(30);
    producer.init_transactions(limit).expect("an id");
    let body = payload();
    measure(TRANSACTIONS, async || {
        for _ in 0..TRANSACTIONS {
            producer.begin_transaction().expect("a transaction");
            let record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&name).partition(0).payload(&body);
            let sent = producer.send_result(record).map_err(|(error, _)| error).expect("a place");
            sent.await.expect("an answer").expect("a write");
            tokio::task::block_in_place(|| producer.commit_transaction(limit)).expect("a commit");
        }
    })
    .await
}

/// The same appends by the void rule.
async fn void_rule(bus: &Arc<dyn Bus>) -> f64 {
    let shard = rounds::shard(0);
    measure(APPENDS, async || {
        let mut end = bus.log_end(shard).await.expect("an end");
        for _ in 0..APPENDS {
            end = bus.append(shard, end, payload()).await.expect("an append");
        }
    })
    .await
}

async fn bus(server: &KafkaServer) -> Arc<dyn Bus> {
    Kafka::open(config(server), real(Handle::current())).await.expect("the bus opens")
}
fn config(server: &KafkaServer) -> Config {
    Config { prefix: KafkaServer::prefix(), shards: 256, tenant_partitions: 4, ..server.config() }
}

/// A bus, and what fills its ingress.
async fn filled(server: &KafkaServer, shards: ShardCount) -> (Arc<dyn Bus>, impl Fn() -> BoxFuture<'static, ()>) {
    let config = Config { shards: shards.get(), ..config(server) };
    let name = format!("{}.jobs.acme", config.prefix);
    topic(server, &name, 4).await;
    let bus = Kafka::open(config, real(Handle::current())).await.expect("the bus opens");
    let producer = producer(server);
    let publish = move || -> BoxFuture<'static, ()> {
        let (producer, name) = (producer.clone(), name.clone());
        Box::pin(async move { bare_publish(&producer, &name, MESSAGES).await })
    };
    (bus, publish)
}

fn main() {
    allocator::keep_freed_pages();
    if left_out() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let server = KafkaServer::start();
        println!("{MESSAGES} messages of {} bytes, one replica; median of {ROUNDS} rounds", rounds::BODY);
        let before = bare_loop(&server).await;
        let one = bus(&server).await;
        show("one shard, append after append: the void rule", void_rule(&one).await, before);
        show("  a transaction each", transactions(&server).await, before);
        show("publish_all of 1,000 over 250 queues, 4 calls at once", publish_all(&one).await, before);
        show("publish of one, 64 at once", publishes(&one, 64).await, before);
        show("fenced append, 256 shards", appends(&one).await, before);
        drop(one);
        let (rate, opened) = reads(&bus(&server).await).await;
        show(&format!("256 readers (opened in {:.0} ms)", opened * 1000.0), rate, before);
        let again = bare_loop(&server).await;
        let yardstick = f64::midpoint(before, again);
        show("bare produce, consume, commit", before, before);
        show("  the same again", again, before);
        show("  bare produce, a request for each record (256 partitions)", bare_spread(&server).await, yardstick);
        let (bus, publish) = filled(&server, ShardCount::DEFAULT).await;
        show("ingress to queue, acked", intake(&bus, publish).await, yardstick);
        drop(bus);
        for shards in [256, 64, 16] {
            let count = ShardCount::new(shards).expect("a count");
            let (bus, publish) = filled(&server, count).await;
            let name = format!("ingress, two appends, event; {shards} shards");
            show(&name, whole_way(&bus, publish, count).await, yardstick);
        }
    });
}
