//! The raw limits: what a bare client of the same server does.

use std::time::Instant;

use bytes::Bytes;
use cellbus_bus::nats::testing::NatsServer;
use cellbus_bus::nats::testing::bare::{Log, WorkQueue};

/// Messages of a round of the loop, and bytes of one: about those of a job.
const MESSAGES: u64 = 60_000;
const BODY: usize = 512;

/// Publish, one shared pull consumer, ack: messages a second, from the first publish to the last ack.
pub(crate) async fn turn(server: &NatsServer) -> f64 {
    let (queue, body) = (WorkQueue::new(server, 1).await, Bytes::from(vec![7; BODY]));
    // One that warms up.
    queue.round(&body, MESSAGES / 4).await;
    let began = Instant::now();
    queue.round(&body, MESSAGES).await;
    MESSAGES as f64 / began.elapsed().as_secs_f64()
}

/// Seconds that a reader takes for so many messages, in order, without acks.
pub(crate) async fn replay(server: &NatsServer, messages: u64) -> f64 {
    let log = Log::new(server, 1).await;
    log.publish(&Bytes::from(vec![7; BODY]), messages).await;
    let began = Instant::now();
    log.replay(messages).await;
    began.elapsed().as_secs_f64()
}
