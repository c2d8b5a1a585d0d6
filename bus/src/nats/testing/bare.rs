//! What a bare client of a server reaches: the yardstick of benchmarks.
//!
//! Producers publish to a work queue, one shared pull consumer gets what they have published, and acks.

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use futures::StreamExt as _;

use super::NatsServer;

/// Publications that wait for their acks.
const ON_THEIR_WAY: usize = 2_000;
/// Messages that the consumer asks for at once.
const BATCH: usize = 500;
/// Messages that may wait for their acks.
const UNACKED_MAX: i64 = 100_000;

/// A client of its own.
///
/// # Panics
/// When the server does not answer, as with all here.
pub async fn context(server: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.expect("a client connects"))
}

/// Publishes to `subject` with many on their way, as fast as a bare client can.
///
/// # Panics
/// When a message is not acknowledged.
pub async fn publish(context: &jetstream::Context, subject: &str, body: &Bytes, messages: u64) {
    let (send, mut acks) = tokio::sync::mpsc::channel::<PublishAckFuture>(ON_THEIR_WAY);
    let publishing = async {
        for _ in 0..messages {
            let ack = context.publish(subject.to_owned(), body.clone()).await.expect("a publish");
            send.send(ack).await.expect("somebody waits for acks");
        }
        drop(send);
    };
    let waiting = async {
        while let Some(ack) = acks.recv().await {
            ack.await.expect("an ack");
        }
    };
    futures::join!(publishing, waiting);
}

/// How many streams and consumers the server has.
///
/// # Panics
/// When it does not say.
pub async fn streams_and_consumers(server: &NatsServer) -> (usize, usize) {
    let account = context(server).await.query_account().await.expect("an account");
    (account.streams, account.consumers)
}

async fn stream_of(
    context: &jetstream::Context,
    retention: stream::RetentionPolicy,
    num_replicas: usize,
) -> (stream::Stream, String) {
    let name = NatsServer::prefix();
    let subjects = vec![format!("{name}.>")];
    let config = stream::Config { name: name.clone(), subjects, retention, num_replicas, ..stream::Config::default() };
    (context.create_stream(config).await.expect("a stream"), format!("{name}.acme"))
}

/// A work queue of its own.
#[derive(Debug)]
pub struct WorkQueue {
    producer: jetstream::Context,
    stream: stream::Stream,
    subject: String,
}

impl WorkQueue {
    /// With so many copies.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn new(server: &NatsServer, replicas: usize) -> Self {
        let producer = context(server).await;
        let (stream, subject) = stream_of(&producer, stream::RetentionPolicy::WorkQueue, replicas).await;
        Self { producer, stream, subject }
    }

    /// Publishes so many, and no more.
    ///
    /// # Panics
    /// When one is not acknowledged.
    pub async fn publish(&self, body: &Bytes, messages: u64) {
        publish(&self.producer, &self.subject, body, messages).await;
    }

    /// Takes out all that is there.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn purge(&self) {
        self.stream.purge().await.expect("a purge");
    }

    /// Publishes so many while the shared consumer takes and acks them; returns with the last ack.
    ///
    /// # Panics
    /// When the server refuses anything.
    pub async fn round(&self, body: &Bytes, messages: u64) {
        let config = pull::Config {
            durable_name: Some("cells".to_owned()),
            ack_policy: AckPolicy::Explicit,
            max_ack_pending: UNACKED_MAX,
            ..pull::Config::default()
        };
        let consumer = self.stream.create_consumer(config).await.expect("a consumer");
        let (producer, subject, body) = (self.producer.clone(), self.subject.clone(), body.clone());
        let publishing = tokio::spawn(async move { publish(&producer, &subject, &body, messages).await });
        let mut taken = consumer.stream().max_messages_per_batch(BATCH).messages().await.expect("messages");
        for _ in 0..messages {
            let message = taken.next().await.expect("a message").expect("a message");
            message.ack().await.expect("an ack");
        }
        publishing.await.expect("the producer ends");
    }
}

/// A stream of its own that keeps what it holds.
#[derive(Debug)]
pub struct Log {
    producer: jetstream::Context,
    stream: stream::Stream,
    subject: String,
}

impl Log {
    /// With so many copies.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn new(server: &NatsServer, replicas: usize) -> Self {
        let producer = context(server).await;
        let (stream, subject) = stream_of(&producer, stream::RetentionPolicy::Limits, replicas).await;
        Self { producer, stream, subject }
    }

    /// Publishes so many.
    ///
    /// # Panics
    /// When one is not acknowledged.
    pub async fn publish(&self, body: &Bytes, messages: u64) {
        publish(&self.producer, &self.subject, body, messages).await;
    }

    /// Reads so many from the first, in order, without acks.
    ///
    /// # Panics
    /// When the server refuses anything.
    pub async fn replay(&self, messages: u64) {
        let consumer = self.stream.create_consumer(pull::OrderedConfig::default()).await.expect("a consumer");
        let mut read = consumer.messages().await.expect("messages");
        for _ in 0..messages {
            read.next().await.expect("a message").expect("a message");
        }
    }

    /// Publishes so many on each of so many subjects, by turns.
    ///
    /// # Panics
    /// When one is not acknowledged.
    pub async fn publish_over(&self, subjects: u64, body: &Bytes, each: u64) {
        let publishing = (0..subjects).map(|number| async move {
            publish(&self.producer, &self.one_of(number), body, each).await;
        });
        futures::future::join_all(publishing).await;
    }

    /// The number of the last message.
    ///
    /// # Panics
    /// When the server does not say.
    pub async fn end(&self) -> u64 {
        self.stream.get_info().await.expect("what the server says of the stream").state.last_sequence
    }

    /// Drops all messages below this number at once.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn drop_below(&self, number: u64) {
        self.stream.purge().sequence(number).await.expect("a purge");
    }

    /// Drops them from one of the subjects after the other.
    ///
    /// # Panics
    /// When the server refuses one.
    pub async fn drop_each_below(&self, subjects: u64, number: u64) {
        for subject in 0..subjects {
            let purge = self.stream.purge().filter(self.one_of(subject)).sequence(number);
            purge.await.expect("a purge");
        }
    }

    fn one_of(&self, number: u64) -> String {
        format!("{}.{number}", self.subject)
    }
}
