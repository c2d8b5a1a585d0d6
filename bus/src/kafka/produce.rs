//! Writing: many messages on their way at once, each acknowledged by all replicas in sync.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};

use crate::contract::{Error, MESSAGE_BYTES_MAX, Result};

use super::client::{self, Context};
use super::config::Config;
use super::feed::drop_aside;
use super::layout::Place;
use super::{Shared, answer, closed};

/// Messages of one call on their way at once: enough to fill the way there and back.
const WINDOW: usize = 4096;
/// Bytes of one call on their way at once, beside the one message that there always may be.
const WINDOW_BYTES: usize = 32 << 20;

/// An error for what no transport takes.
pub(super) fn check_size(body: &Bytes) -> Result<()> {
    if body.len() <= MESSAGE_BYTES_MAX {
        Ok(())
    } else {
        Err(Error::TooLarge { bytes: body.len(), max: MESSAGE_BYTES_MAX })
    }
}

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

/// Where a record goes.
pub(super) enum To {
    /// This partition.
    Place(Place),
    /// Any partition of the topic, as the client spreads them.
    Topic(Arc<str>),
}

/// The producer. One that has failed for good is replaced.
pub(super) struct Producer {
    config: Config,
    context: Context,
    current: Mutex<FutureProducer<Context>>,
}

impl Producer {
    /// Blocks while its client is made.
    pub(super) fn new(config: &Config, context: Context) -> std::result::Result<Self, KafkaError> {
        let current = FutureProducer::from_config_and_context(&client::producer(config), context.clone())?;
        Ok(Self { config: config.clone(), context, current: Mutex::new(current) })
    }
    pub(super) fn current(&self) -> FutureProducer<Context> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    /// Puts a record into the client's hands.
    fn send(&self, to: &To, record: &Record) -> Result<DeliveryFuture> {
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
        let producer = self.producer.current();
        producer.send_result(out).map_err(|(error, _)| {
            self.failed_for_good(&error);
            answer::write_error("write", &error, bytes)
        })
    }

    /// A producer that has lost its place among the messages that it sent says so of all that follow.
    fn failed_for_good(&self, error: &KafkaError) {
        let dead = error.rdkafka_error_code().is_some_and(|code| matches!(code, Code::Fatal));
        if !dead {
            return;
        }
        let mut current = self.producer.current.lock().unwrap_or_else(PoisonError::into_inner);
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
    async fn settled(&self, sent: DeliveryFuture, bytes: usize) -> Result<Option<i64>> {
        match sent.await {
            Ok(Ok(delivery)) => {
                self.heard().answered();
                Ok(Some(delivery.offset).filter(|offset| *offset >= 0))
            }
            Ok(Err((error, _))) => {
                self.failed_for_good(&error);
                Err(answer::write_error("write", &error, bytes))
            }
            Err(_) => Err(Error::Unknown { reason: "the Kafka client stopped before it answered".to_owned() }),
        }
    }

    /// Writes one message.
    pub(super) async fn write(&self, to: To, record: Record) -> Result<Option<i64>> {
        let bytes = record.body.as_ref().map_or(0, Bytes::len);
        let sent = self.send(&to, &record)?;
        self.settled(sent, bytes).await
    }

    /// Writes all, in order in each partition, and gives the offset of the last. On an error the
    /// others may be there.
    pub(super) async fn write_all(
        &self,
        records: impl IntoIterator<Item = (To, Record)> + Send,
    ) -> Result<Option<i64>> {
        let mut on_their_way: VecDeque<(DeliveryFuture, usize)> = VecDeque::new();
        let (mut bytes_on_their_way, mut last, mut failed) = (0, None, None);
        let settle = |outcome: Result<Option<i64>>, last: &mut Option<i64>, failed: &mut Option<Error>| match outcome {
            Ok(offset) => *last = offset,
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
                let Some((sent, bytes)) = on_their_way.pop_front() else { break };
                bytes_on_their_way -= bytes;
                settle(self.settled(sent, bytes).await, &mut last, &mut failed);
            }
            match self.send(&to, &record) {
                Ok(sent) => {
                    bytes_on_their_way += bytes;
                    on_their_way.push_back((sent, bytes));
                }
                Err(error) => settle(Err(error), &mut last, &mut failed),
            }
        }
        for (sent, bytes) in on_their_way {
            settle(self.settled(sent, bytes).await, &mut last, &mut failed);
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(last),
        }
    }
}
