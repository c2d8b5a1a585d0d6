//! Writing: many messages on their way at once, each acknowledged by all replicas in sync.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};

use crate::contract::{Error, Result};

use super::client::{self, Context};
use super::config::Config;
use super::feed::drop_aside;
use super::layout::Place;
use super::{Shared, answer, closed};

/// Messages of one call on their way at once: enough to fill the way there and back.
const WINDOW: usize = 4096;
/// Bytes of one call on their way at once, beside the one message that there always may be.
const WINDOW_BYTES: usize = 32 << 20;

/// A message to be written.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) key: Option<Bytes>,
    pub(super) headers: Vec<(&'static str, Bytes)>,
    pub(super) more_headers: Vec<(String, String)>,
    /// `None` takes the key out of a topic that is kept by key.
    pub(super) body: Option<Bytes>,
}

impl Record {
    pub(super) fn new(body: Bytes) -> Self {
        Self { body: Some(body), ..Self::default() }
    }
}

/// Clients that write. A client has five requests on their way to a broker at the most, or a broker could
/// not tell what came twice, and each request is of one partition; so shards that write one record at a
/// time wait for each other. A partition is one client's, so its order is kept.
const CLIENTS: usize = 4;

/// Where a record goes.
pub(super) enum To {
    /// This partition.
    Place(Place),
    /// Any partition of the topic, as the client spreads them.
    Topic(Arc<str>),
}

impl To {
    /// Which of the clients writes it.
    fn client(&self) -> usize {
        let number = match self {
            Self::Place(place) => usize::try_from(place.partition).unwrap_or(0),
            // All of a topic: the client spreads them over its partitions, and batches.
            Self::Topic(topic) => topic.len(),
        };
        number % CLIENTS
    }
}

/// The producers. One that has failed for good is replaced.
pub(super) struct Producer {
    config: Config,
    context: Context,
    clients: Vec<Mutex<FutureProducer<Context>>>,
}

impl Producer {
    /// Blocks while its clients are made.
    pub(super) fn new(config: &Config, context: Context) -> std::result::Result<Self, KafkaError> {
        let make = || FutureProducer::from_config_and_context(&client::producer(config), context.clone());
        let clients = (0..CLIENTS).map(|_| make().map(Mutex::new)).collect::<std::result::Result<_, _>>()?;
        Ok(Self { config: config.clone(), context, clients })
    }
    fn slot(&self, number: usize) -> std::sync::MutexGuard<'_, FutureProducer<Context>> {
        self.clients[number % CLIENTS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record on its way.
struct Sent {
    delivery: DeliveryFuture,
    client: usize,
    bytes: usize,
}

impl Shared {
    /// Puts a record into the client's hands.
    fn send(&self, to: &To, record: &Record) -> Result<Sent> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        let bytes = record.body.as_ref().map_or(0, Bytes::len);
        let (topic, partition) = match to {
            To::Place(place) => (&place.topic, Some(place.partition)),
            To::Topic(topic) => (topic, None),
        };
        let mut out: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic);
        if let Some(partition) = partition {
            out = out.partition(partition);
        }
        if let Some(key) = &record.key {
            out = out.key(key);
        }
        if let Some(body) = &record.body {
            out = out.payload(body);
        }
        if !record.headers.is_empty() || !record.more_headers.is_empty() {
            let mut headers = OwnedHeaders::new();
            for (key, value) in &record.headers {
                headers = headers.insert(Header { key, value: Some(&value[..]) });
            }
            for (key, value) in &record.more_headers {
                headers = headers.insert(Header { key, value: Some(value.as_bytes()) });
            }
            out = out.headers(headers);
        }
        let client = to.client();
        let producer = self.producer.slot(client).clone();
        match producer.send_result(out) {
            Ok(delivery) => Ok(Sent { delivery, client, bytes }),
            Err((error, _)) => {
                self.failed_for_good(client, &error);
                Err(answer::write_error("write", &error, bytes))
            }
        }
    }

    /// A producer that has lost its place among the messages that it sent says so of all that follow.
    fn failed_for_good(&self, client: usize, error: &KafkaError) {
        let dead = error.rdkafka_error_code().is_some_and(|code| matches!(code, Code::Fatal));
        if !dead {
            return;
        }
        let mut current = self.producer.slot(client);
        let still = rdkafka::producer::Producer::client(&*current).fatal_error().is_some();
        if still {
            let made = FutureProducer::from_config_and_context(
                &client::producer(&self.producer.config),
                self.producer.context.clone(),
            );
            match made {
                Ok(made) => {
                    tracing::warn!(%error, "the Kafka producer has failed for good; another takes its place");
                    let dead = std::mem::replace(&mut *current, made);
                    drop_aside(&self.env, dead);
                }
                Err(error) => tracing::error!(%error, "no Kafka producer can be made"),
            }
        }
    }

    /// Waits for the brokers: the offset, which they may not tell of a message that came twice.
    async fn settled(&self, sent: Sent) -> Result<Option<i64>> {
        match sent.delivery.await {
            Ok(Ok(delivery)) => {
                self.heard().answered(self.env.mono());
                Ok(Some(delivery.offset).filter(|offset| *offset >= 0))
            }
            Ok(Err((error, message))) => {
                self.failed_for_good(sent.client, &error);
                let silent = matches!(error.rdkafka_error_code(), Some(Code::MessageTimedOut));
                let failed = answer::write_error("write", &error, sent.bytes);
                Err(match failed {
                    Error::Unknown { reason } if silent => {
                        let place = Place { topic: Arc::from(message.topic()), partition: message.partition() };
                        let why = self.short_of_replicas(&place).await;
                        Error::Unknown { reason: why.map_or(reason.clone(), |why| format!("{reason}; {why}")) }
                    }
                    failed => failed,
                })
            }
            Err(_) => Err(Error::Unknown { reason: "the Kafka client stopped before it answered".to_owned() }),
        }
    }

    /// Writes one message.
    pub(super) async fn write(&self, to: To, record: Record) -> Result<Option<i64>> {
        let sent = self.send(&to, &record)?;
        self.settled(sent).await
    }

    /// Writes all, in order in each partition, and gives the offset of the last. On an error the others may
    /// be there; a plain refusal means that none is.
    pub(super) async fn write_all(
        &self,
        records: impl IntoIterator<Item = (To, Record)> + Send,
    ) -> Result<Option<i64>> {
        let mut on_their_way: VecDeque<Sent> = VecDeque::new();
        let (mut bytes_on_their_way, mut last, mut failed, mut some) = (0, None, None, false);
        let mut settle =
            |outcome: Result<Option<i64>>, last: &mut Option<i64>, failed: &mut Option<Error>| match outcome {
                Ok(offset) => (*last, some) = (offset, true),
                // The first is the one to tell, but that something is unknown outweighs a plain refusal.
                Err(error) if failed.is_none() || matches!(error, Error::Unknown { .. }) => *failed = Some(error),
                Err(_) => {}
            };
        let records: Vec<(To, Record)> = records.into_iter().collect();
        for (to, record) in records {
            let bytes = record.body.as_ref().map_or(0, Bytes::len);
            while on_their_way.len() >= WINDOW
                || (!on_their_way.is_empty() && bytes_on_their_way + bytes > WINDOW_BYTES)
            {
                let Some(sent) = on_their_way.pop_front() else { break };
                bytes_on_their_way -= sent.bytes;
                settle(self.settled(sent).await, &mut last, &mut failed);
            }
            match self.send(&to, &record) {
                Ok(sent) => {
                    bytes_on_their_way += bytes;
                    on_their_way.push_back(sent);
                }
                Err(error) => settle(Err(error), &mut last, &mut failed),
            }
        }
        for sent in on_their_way {
            settle(self.settled(sent).await, &mut last, &mut failed);
        }
        match failed {
            Some(Error::Full { reason } | Error::Unavailable { reason }) if some => {
                Err(Error::Unknown { reason: format!("a part was written, and then no more: {reason}") })
            }
            Some(error) => Err(error),
            None => Ok(last),
        }
    }
}
