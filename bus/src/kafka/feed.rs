//! Consumers, shared by many readers: each client can be at one place of a partition only, so a
//! reader takes the first client that has its partition free. A client costs threads and
//! connections; a reader of one, next to nothing.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use rdkafka::TopicPartitionList;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _};
use rdkafka::consumer::stream_consumer::StreamPartitionQueue;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::Offset;
use tokio_util::sync::CancellationToken;

use crate::contract::{Error, Result};
use crate::env::{Env, WallMs};

use super::client::Context;
use super::layout::Place;
use super::{answer, closed};

/// Messages that one look takes at the most.
const BATCH: usize = 512;
/// After an error of a broker.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// A message as it came.
#[derive(Clone, Debug)]
pub(super) struct Came {
    pub(super) offset: i64,
    pub(super) at: WallMs,
    pub(super) key: Option<Bytes>,
    pub(super) headers: Vec<(String, Bytes)>,
    /// `None`: a mark that the key is gone.
    pub(super) body: Option<Bytes>,
}

impl Came {
    pub(super) fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map(|headers| {
            let header = |header: rdkafka::message::Header<'_, &[u8]>| {
                (header.key.to_owned(), header.value.map(Bytes::copy_from_slice).unwrap_or_default())
            };
            headers.iter().map(header).collect()
        });
        Self {
            offset: message.offset(),
            at: WallMs(message.timestamp().to_millis().and_then(|at| u64::try_from(at).ok()).unwrap_or(0)),
            key: message.key().map(Bytes::copy_from_slice),
            headers: headers.unwrap_or_default(),
            body: message.payload().map(Bytes::copy_from_slice),
        }
    }
    pub(super) fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
    pub(super) fn bytes(&self) -> usize {
        self.body.as_ref().map_or(0, Bytes::len)
    }
}

/// Clients for readers, made as they are needed.
pub(super) struct Pool {
    pub(super) client: ClientConfig,
    pub(super) context: Context,
    pub(super) env: Env,
    pub(super) closed: CancellationToken,
    pub(super) instances: Mutex<Vec<Arc<Instance>>>,
}

/// A client.
pub(super) struct Instance {
    env: Env,
    /// `None` once it is being taken down.
    consumer: Option<Arc<StreamConsumer<Context>>>,
    taken: Mutex<BTreeSet<Place>>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The last of it to be dropped says good-bye to the brokers, and waits for it.
        if let Some(consumer) = self.consumer.take() {
            drop_aside(&self.env, consumer);
        }
    }
}

/// Drops what blocks when it is dropped off the async threads.
pub(super) fn drop_aside<T: Send + 'static>(env: &Env, what: T) {
    let aside = env.clone();
    env.spawn("kafka drop", async move {
        aside.blocking("kafka drop", move || drop(what)).await;
    });
}

impl Pool {
    pub(super) fn new(client: ClientConfig, context: Context, env: Env, closed: CancellationToken) -> Self {
        Self { client, context, env, closed, instances: Mutex::new(Vec::new()) }
    }

    /// A reader from this offset on.
    pub(super) async fn open(self: &Arc<Self>, place: Place, offset: i64) -> Result<Feed> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        let pool = Arc::clone(self);
        let opened = self.env.blocking("kafka reader", move || {
            let instance = pool.instance(&place)?;
            // From here on whatever comes of it is undone when it is dropped.
            let mut feed =
                Feed { instance, place, queue: None, next: offset, env: pool.env.clone(), closed: pool.closed.clone() };
            feed.assign()?;
            Ok(feed)
        });
        opened.await.unwrap_or_else(|| Err(closed()))
    }

    /// A client that has the place free; it is taken then. Blocks where one must be made.
    fn instance(&self, place: &Place) -> Result<Arc<Instance>> {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        for instance in instances.iter() {
            if instance.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone()) {
                return Ok(Arc::clone(instance));
            }
        }
        let consumer = StreamConsumer::from_config_and_context(&self.client, self.context.clone());
        let consumer = Arc::new(consumer.map_err(|error| answer::unavailable("open a reader", &error))?);
        let events = Arc::downgrade(&consumer);
        let ended = self.closed.clone();
        let instance = Arc::new(Instance {
            env: self.env.clone(),
            consumer: Some(consumer),
            taken: Mutex::new(BTreeSet::from([place.clone()])),
        });
        instances.push(Arc::clone(&instance));
        let (env, pause) = (self.env.clone(), PAUSE);
        // What is no partition's comes here and must be taken; nothing of ours does.
        self.env.spawn("kafka events", async move {
            while let Some(consumer) = events.upgrade() {
                let event = async {
                    tokio::select! {
                        biased;
                        () = ended.cancelled() => false,
                        _ = consumer.recv() => true,
                    }
                };
                if !event.await {
                    drop_aside(&env, consumer);
                    return;
                }
                env.sleep(pause).await;
            }
        });
        Ok(instance)
    }

    /// Lets go of all clients that no reader has.
    pub(super) fn close(&self) {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Why a feed cannot go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// What comes next is not there: it was dropped, or is beyond the end.
    Gone,
    /// Anything else.
    Failed(Error),
}

/// One partition from an offset on.
pub(super) struct Feed {
    instance: Arc<Instance>,
    pub(super) place: Place,
    queue: Option<StreamPartitionQueue<Context>>,
    /// The offset that comes next, or the first one after it.
    pub(super) next: i64,
    env: Env,
    closed: CancellationToken,
}

impl Feed {
    fn consumer(&self) -> Result<&Arc<StreamConsumer<Context>>> {
        self.instance.consumer.as_ref().ok_or_else(closed)
    }

    /// Blocks for as long as its client needs to hear of it.
    fn assign(&mut self) -> Result<()> {
        let failed = |error: KafkaError| answer::unavailable("open a reader", &error);
        let consumer = Arc::clone(self.consumer()?);
        let queue = consumer.split_partition_queue(&self.place.topic, self.place.partition);
        // Split first: then nothing of it can come in the queue of events.
        self.queue = Some(queue.ok_or_else(|| failed(KafkaError::Global(Code::UnknownPartition)))?);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.place.topic, self.place.partition, Offset::Offset(self.next))
            .map_err(failed)?;
        consumer.incremental_assign(&list).map_err(failed)
    }

    /// Waits until there is at least one message, then takes those that are there. Cancel safe: what it
    /// has taken is in `ready`.
    pub(super) async fn more(&mut self, ready: &mut VecDeque<Came>) -> std::result::Result<(), Stop> {
        let Some(queue) = &self.queue else { return Err(Stop::Failed(closed())) };
        loop {
            let first = tokio::select! {
                biased;
                () = self.closed.cancelled() => return Err(Stop::Failed(closed())),
                first = queue.recv() => first,
            };
            match first {
                Ok(message) => take(&message, &mut self.next, ready),
                Err(error) => match error.rdkafka_error_code() {
                    Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => return Err(Stop::Gone),
                    // The client goes on trying.
                    Some(Code::PartitionEOF) | None => continue,
                    Some(code) => {
                        self.env.sleep(PAUSE).await;
                        return Err(Stop::Failed(Error::Unavailable { reason: answer::describe_code("read", code) }));
                    }
                },
            }
            let mut stream = queue.stream();
            while ready.len() < BATCH {
                match stream.next().now_or_never() {
                    Some(Some(Ok(message))) => take(&message, &mut self.next, ready),
                    // It says so again.
                    Some(Some(Err(_)) | None) | None => break,
                }
            }
            if !ready.is_empty() {
                return Ok(());
            }
        }
    }
}

fn take(message: &BorrowedMessage<'_>, next: &mut i64, ready: &mut VecDeque<Came>) {
    // What an older reader of this partition had asked for may be left in the queue.
    if message.offset() >= *next {
        *next = message.offset() + 1;
        ready.push_back(Came::of(message));
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let (instance, place, queue) = (Arc::clone(&self.instance), self.place.clone(), self.queue.take());
        let aside = self.env.clone();
        self.env.spawn("kafka reader ends", async move {
            let end = move || {
                let mut list = TopicPartitionList::new();
                list.add_partition(&place.topic, place.partition);
                if let Some(consumer) = &instance.consumer
                    && let Err(error) = consumer.incremental_unassign(&list)
                {
                    tracing::debug!(%place, %error, "a reader was not ended");
                }
                drop(queue);
                instance.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&place);
            };
            aside.blocking("kafka reader ends", end).await;
        });
    }
}
