//! What the NATS transport carries in a second, beside what a bare client of the same server reaches
//! in the same run.
//!
//! Server and clients share the machine. Each figure is the median of some rounds; the bare figures
//! are measured between ours, since machines that are shared differ from minute to minute.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and starts tasks")]

use std::sync::Arc;

use cellbus_bus::Bus;
use cellbus_bus::allocator::{self, Allocator};
use cellbus_bus::env::real;
use cellbus_bus::ids::ShardCount;
use cellbus_bus::nats::testing::bare::{self, WorkQueue};
use cellbus_bus::nats::testing::{NatsServer, left_out};
use cellbus_bus::nats::{Config, Nats};
use futures::future::BoxFuture;
use tokio::runtime::Handle;

use rounds::{MESSAGES, ROUNDS, appends, intake, measure, payload, publish_all, publishes, reads, whole_way};

mod rounds;

/// As in the `cellbus` binary.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn show(name: &str, rate: f64, bare: f64) {
    println!("{name:<58} {rate:>9.0} /s   {:>5.2} of bare publish, pull, ack", rate / bare);
}

async fn bus(server: &NatsServer) -> Arc<dyn Bus> {
    let config = Config { prefix: NatsServer::prefix(), ..server.config() };
    Nats::open(config, real(Handle::current())).await.expect("the bus opens")
}

async fn bare_publishes(server: &NatsServer) -> f64 {
    let (queue, body) = (WorkQueue::new(server, 1).await, payload());
    let rate = measure(MESSAGES, async || queue.publish(&body, MESSAGES).await).await;
    queue.purge().await;
    rate
}

/// The yardstick: publish, one shared pull consumer, ack; from the first publish to the last ack.
async fn bare_loop(server: &NatsServer) -> f64 {
    let (queue, body) = (WorkQueue::new(server, 1).await, payload());
    measure(MESSAGES, async || queue.round(&body, MESSAGES).await).await
}

/// A bus, and what fills its ingress.
async fn filled(server: &NatsServer) -> (Arc<dyn Bus>, impl Fn() -> BoxFuture<'static, ()>) {
    let config = Config { prefix: NatsServer::prefix(), ..server.config() };
    let subject = format!("{}.jobs.acme", config.prefix);
    let bus = Nats::open(config, real(Handle::current())).await.expect("the bus opens");
    let producer = bare::context(server).await;
    let publish = move || -> BoxFuture<'static, ()> {
        let (producer, subject) = (producer.clone(), subject.clone());
        Box::pin(async move { bare::publish(&producer, &subject, &payload(), MESSAGES).await })
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
        let server = NatsServer::start();
        println!("{MESSAGES} messages of {} bytes, one replica, file storage; median of {ROUNDS} rounds", rounds::BODY);
        let before = bare_loop(&server).await;
        let bare = bare_publishes(&server).await;
        show("bare publish", bare, before);
        show("publish_all of 1,000 over 250 queues, 4 calls at once", publish_all(&bus(&server).await).await, before);
        show("publish of one, 64 at once", publishes(&bus(&server).await, 64).await, before);
        show("fenced append, 256 shards", appends(&bus(&server).await).await, before);
        let (rate, opened) = reads(&bus(&server).await).await;
        show(&format!("256 readers (opened in {:.0} ms)", opened * 1000.0), rate, before);
        let again = bare_loop(&server).await;
        let yardstick = f64::midpoint(before, again);
        show("bare publish, one shared pull consumer, ack", before, before);
        show("  the same again", again, before);
        let (bus, publish) = filled(&server).await;
        show("ingress to queue, acked", intake(&bus, publish).await, yardstick);
        drop(bus);
        for shards in [256, 64, 16] {
            let count = ShardCount::new(shards).expect("a count");
            let (bus, publish) = filled(&server).await;
            let name = format!("ingress, two appends, event; {shards} shards");
            show(&name, whole_way(&bus, publish, count).await, yardstick);
        }
    });
}
