//! The Kafka transport: the bus of a cluster of processes where Kafka is the company's bus already.
//!
//! ```text
//!  producers ─▶ <p>.jobs.<tenant> ─▶ one group of all cells
//!  cells ─────▶ <p>.queue-<kind>[shard] ─▶ a reader for each shard, from its position, no group
//!         └───▶ <p>.log[shard], each record naming what it follows ─▶ readers that leave out what is void
//! ```
//!
//! What is kept where, and why so: `ops/docs/kafka.md` and `ops/docs/decisions/0012-kafka-fence.md`.
//!
//! Promises, beside those of [`crate::contract`]: a sequence is an offset and one; of a `publish` or
//! `publish_all` that fails, any part may be there; an ack of a delivery is written down within
//! [`Config::commit_every`], and one that is lost before with its process means that the message comes
//! again; no topic but those of events drops anything by age or size.
//!
//! The brokers keep time of their own, and librdkafka threads of its own: this module is an edge. What
//! is ours goes through [`Env`], and calls of librdkafka that wait for an answer through
//! [`Env::blocking`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use crate::contract::{
    Bus, ClusterRecord, Delivery, Depth, Error, Event, EventReader, Member, Position, Queue, Reader, Result,
    SnapshotId, Unacked, check_size,
};
use crate::env::{Env, Mono};
use crate::ids::{CellId, Seq, ShardId};

mod answer;
mod asked;
mod chain;
mod client;
mod cluster;
mod config;
mod error;
mod events;
mod feed;
mod fence;
mod figures;
mod ingress;
mod layout;
mod members;
mod prepare;
mod produce;
mod queue;
mod replicas;
mod snapshots;
mod table;
#[cfg(feature = "conformance")]
pub mod testing;
#[cfg(all(test, feature = "conformance"))]
mod tests;
mod token;

pub use config::{Auth, Config, Mechanism, TENANT_PARTITIONS_MAX, Tls};
pub use error::OpenError;
pub use figures::{Figures, TopicFigures};

use client::{Context, Heard};
use feed::Pool;
use layout::{Layout, Place};
use produce::{Record, To};

/// How long a broker holds its answer to a reader where there is nothing new; a reader that is opened
/// waits for so long at the most before its client asks for its partition.
const READER_WAIT: Duration = Duration::from_millis(50);
/// The same for looks at what is there, which answers itself.
const PEEK_WAIT: Duration = Duration::from_millis(5);
/// After a refusal for fullness producers are refused at once for so long; then the next one tries.
const FULL_FOR: Duration = Duration::from_secs(1);
/// Messages of the ingress that a cell has taken at once. A request carries what there is for one partition just then,
/// so few of them make many requests: with 256 shards this carried twice what 2,048 did.
const IN_FLIGHT: usize = 8_192;

/// The Kafka bus. Dropping it ends its tasks; [`Kafka::close`] also gives back what it had taken.
pub struct Kafka {
    shared: Arc<Shared>,
}

/// What opening does beside connecting.
#[derive(Clone, Copy)]
enum Way {
    /// It makes what is missing.
    Make,
    /// It wants everything to be there.
    Attach,
}

/// What the bus, its readers and its deliveries share.
struct Shared {
    env: Env,
    config: Config,
    layout: Layout,
    context: Context,
    admin: Arc<AdminClient<Context>>,
    producer: produce::Producer,
    /// For readers that follow.
    readers: Arc<Pool>,
    /// For looks at what is there already.
    peeks: Arc<Pool>,
    closed: CancellationToken,
    /// Marks this process's appends.
    nonce: u64,
    /// When a write was last refused for fullness.
    full_at: Mutex<Option<Mono>>,
    known: prepare::Known,
    replicas: replicas::Seen,
    fences: fence::Fences,
    cluster_known: Mutex<Option<(Seq, ClusterRecord)>>,
    members: table::Table,
    marks: table::Table,
    ingress: ingress::Ingress,
    ingress_order: ingress::Order,
    asking: asked::Asking,
}

fn closed() -> Error {
    Error::Unavailable { reason: "the bus is closed".to_owned() }
}

impl Shared {
    fn heard(&self) -> &Heard {
        &self.context.heard
    }
    /// An error while nothing would be sent: what is handed to the client then is sent once a broker is
    /// back, which may be after its caller has given up.
    fn reachable(&self) -> Result<()> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        Ok(())
    }

    /// The first offset that is kept, and the one after the last.
    async fn watermarks(&self, place: &Place) -> Result<(i64, i64)> {
        let began = self.env.mono();
        loop {
            let (admin, asked, timeout) = (Arc::clone(&self.admin), place.clone(), self.config.answer_timeout);
            let answer = self.env.blocking("kafka watermarks", move || {
                admin.inner().fetch_watermarks(&asked.topic, asked.partition, timeout)
            });
            match answer.await {
                Some(Ok(marks)) => {
                    self.heard().answered(self.env.mono());
                    return Ok(marks);
                }
                // A partition that was made a moment ago, or whose leader has just changed.
                Some(Err(error))
                    if error.rdkafka_error_code().is_some_and(prepare::comes_soon)
                        && self.env.mono().since(began) < self.config.answer_timeout =>
                {
                    self.env.sleep(prepare::LOOK).await;
                }
                Some(Err(error)) => {
                    return Err(answer::unavailable(&format!("ask for the ends of {place}"), &error));
                }
                None => return Err(closed()),
            }
        }
    }

    /// Drops what lies before an offset.
    async fn drop_before(&self, place: &Place, offset: i64) -> Result<()> {
        let doing = format!("trim {place}");
        let failed = |error: &KafkaError| answer::unavailable(&doing, error);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&place.topic, place.partition, Offset::Offset(offset))
            .map_err(|error| failed(&error))?;
        let options = AdminOptions::new().request_timeout(Some(self.config.answer_timeout));
        let deleted = self.admin.delete_records(&list, &options).await.map_err(|error| failed(&error))?;
        for row in deleted.elements() {
            row.error().map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    fn filled(&self, error: Error) -> Error {
        if matches!(error, Error::Full { .. }) {
            *self.full_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.env.mono());
        }
        error
    }
}

impl Kafka {
    /// Connects, and makes or checks all topics. Every process of a cluster does so at its start; of
    /// several at once exactly one makes each topic.
    ///
    /// # Errors
    /// [`OpenError`], with what to do. Topics that were made before stay.
    pub async fn open(config: Config, env: Env) -> std::result::Result<Arc<Self>, OpenError> {
        Self::connect(config, Way::Make, env).await
    }

    /// Connects to a cluster that is there, as somebody does who is no part of it: nothing is made,
    /// nothing is set, and the number of shards is the cluster's own.
    ///
    /// # Errors
    /// [`OpenError`], with what to do; [`OpenError::NoCluster`] where there is none.
    pub async fn attach(config: Config, env: Env) -> std::result::Result<Arc<Self>, OpenError> {
        Self::connect(config, Way::Attach, env).await
    }

    async fn connect(mut config: Config, way: Way, env: Env) -> std::result::Result<Arc<Self>, OpenError> {
        config.check().map_err(|(field, rule)| OpenError::Config { field, rule })?;
        let context = Context::new(&config);
        let (told, made_for) = (config.clone(), context.clone());
        let made = env.blocking("kafka clients", move || {
            let failed = |error: KafkaError| OpenError::Client { reason: error.to_string() };
            let admin = AdminClient::from_config_and_context(&client::common(&told), made_for.clone());
            let admin = admin.map_err(failed)?;
            if let Some(file) = &made_for.token {
                let token = file.read().map_err(|reason| OpenError::Client { reason })?;
                token::hand_over(admin.inner(), token).map_err(|reason| OpenError::SignIn { reason })?;
            }
            Ok((Arc::new(admin), produce::Producer::new(&told, made_for).map_err(failed)?))
        });
        let (admin, producer) = match made.await {
            Some(made) => made?,
            None => return Err(OpenError::Client { reason: "this process is ending".to_owned() }),
        };
        let layout = Layout::new(&config);
        match way {
            Way::Make => prepare::prepare(&admin, &config, &layout, &env).await?,
            Way::Attach => config.shards = prepare::shards(&admin, &config, &layout, &env).await?,
        }
        let closed = CancellationToken::new();
        let pool = |wait| {
            let client = client::reader(&config, wait);
            Arc::new(Pool::new(client, context.clone(), env.clone(), closed.clone()))
        };
        let shared = Shared {
            readers: pool(READER_WAIT),
            peeks: pool(PEEK_WAIT),
            nonce: env.random_u64(),
            full_at: Mutex::new(None),
            known: prepare::Known::default(),
            replicas: replicas::Seen::default(),
            fences: fence::Fences::default(),
            cluster_known: Mutex::new(None),
            members: table::Table::default(),
            marks: table::Table::default(),
            ingress: ingress::Ingress::default(),
            ingress_order: ingress::Order::default(),
            asking: asked::Asking::default(),
            closed,
            env,
            config,
            layout,
            context,
            admin,
            producer,
        };
        // What was opened is closed again if it is refused: by dropping it.
        let opened = Arc::new(Self { shared: Arc::new(shared) });
        let shared = &opened.shared;
        if shared.context.token.is_some() {
            shared.env.spawn("kafka token", token::renew(Arc::downgrade(shared)));
        }
        shared.known_layout().await?;
        Ok(opened)
    }

    /// Takes no more, and gives back the ingress messages that are not acked. Readers get
    /// [`Error::Unavailable`]. Idempotent.
    pub async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.leave_ingress().await;
        self.shared.ask_no_more().await;
        self.shared.readers.close();
        self.shared.peeks.close();
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.shared.closed.cancel();
        if let Some(consumer) = self.shared.asking.take() {
            feed::drop_aside(&self.shared.env, consumer);
        }
    }
}

#[async_trait]
impl Bus for Kafka {
    async fn cluster(&self, initial: ClusterRecord) -> Result<ClusterRecord> {
        self.shared.cluster(initial).await
    }
    async fn cluster_record(&self) -> Result<Option<ClusterRecord>> {
        self.shared.cluster_record().await
    }
    async fn replace_cluster(&self, expected: &ClusterRecord, new: ClusterRecord) -> Result<ClusterRecord> {
        self.shared.replace_cluster(expected, new).await
    }

    async fn ingress_publish(&self, tenant: &str, headers: Vec<(String, String)>, body: Bytes) -> Result<()> {
        check_size(&body)?;
        self.shared.reachable()?;
        let topic = self.shared.layout.tenant_jobs_topic(&self.shared.config, tenant);
        let topic = self.shared.tenant_topic(topic).await?;
        let record = Record { more_headers: headers, ..Record::new(body) };
        let written = self.shared.write(To::Topic(topic), record).await;
        written.map(drop).map_err(|error| self.shared.filled(error))
    }
    async fn reply(&self, _to: &str, _body: Bytes) {}

    fn ingress_in_flight(&self) -> usize {
        IN_FLIGHT
    }
    async fn ingress_next(&self, redeliver_after: Duration) -> Result<Box<dyn Delivery>> {
        ingress::next(&self.shared, redeliver_after).await
    }
    async fn ingress_unacked(&self, after: Seq, max: usize) -> Result<Vec<Unacked>> {
        ingress::look(&self.shared, after, max).await
    }
    async fn ingress_depth(&self) -> Result<u64> {
        self.shared.ingress_ends().await.map(|(_, open)| open)
    }

    async fn publish(&self, queue: Queue, items: Vec<Bytes>) -> Result<Seq> {
        if items.is_empty() {
            return self.shared.queue_end(queue).await;
        }
        let last = self.shared.publish(vec![(queue, items)]).await.map_err(|error| self.shared.filled(error))?;
        match last {
            Some(seq) => Ok(seq),
            // The brokers have not said where it lies: not beyond the end.
            None => self.shared.queue_end(queue).await,
        }
    }
    async fn publish_all(&self, items: Vec<(Queue, Vec<Bytes>)>) -> Result<()> {
        self.shared.publish(items).await.map(drop).map_err(|error| self.shared.filled(error))
    }
    async fn read_queue(&self, queue: Queue, after: Position) -> Result<Box<dyn Reader>> {
        Ok(Box::new(queue::read(&self.shared, queue, after).await?))
    }
    async fn queue_end(&self, queue: Queue) -> Result<Seq> {
        self.shared.queue_end(queue).await
    }
    async fn depth(&self, queue: Queue, after: Seq) -> Result<Depth> {
        self.shared.depth(queue, after).await
    }
    async fn trim_queue(&self, queue: Queue, through: Seq) -> Result<()> {
        self.shared.trim_queue(queue, through).await
    }

    async fn append(&self, shard: ShardId, expected: Seq, entry: Bytes) -> Result<Seq> {
        self.shared.append(shard, expected, entry).await.map_err(|error| self.shared.filled(error))
    }
    async fn log_end(&self, shard: ShardId) -> Result<Seq> {
        self.shared.end_of(&self.shared.layout.log(shard)).await
    }
    async fn read_log(&self, shard: ShardId, after: Seq) -> Result<Box<dyn Reader>> {
        Ok(Box::new(fence::read_log(&self.shared, shard, after).await?))
    }
    async fn write_snapshot(&self, id: SnapshotId, body: Bytes) -> Result<()> {
        self.shared.write_snapshot(id, body).await
    }
    async fn snapshots(&self, shard: ShardId) -> Result<Vec<SnapshotId>> {
        self.shared.snapshots(shard).await
    }
    async fn read_snapshot(&self, id: SnapshotId) -> Result<Option<Bytes>> {
        self.shared.read_snapshot(id).await
    }
    async fn trim_log(&self, shard: ShardId, through: Seq, keep_snapshots: usize) -> Result<()> {
        self.shared.trim_chain(&self.shared.layout.log(shard), through).await?;
        self.shared.trim_snapshots(shard, keep_snapshots).await
    }

    async fn beat(&self, member: Member, ttl: Duration) -> Result<()> {
        self.shared.beat(member, ttl).await
    }
    async fn leave(&self, cell: &CellId) -> Result<()> {
        self.shared.leave(cell).await
    }
    async fn members(&self) -> Result<Vec<Member>> {
        self.shared.members().await
    }

    async fn publish_events(&self, events: Vec<Event>) -> Result<()> {
        self.shared.publish_events(events).await.map_err(|error| self.shared.filled(error))
    }
    async fn read_events(&self, after: Option<Seq>) -> Result<Box<dyn EventReader>> {
        Ok(Box::new(events::read(&self.shared, after).await?))
    }

    fn accepting(&self) -> Result<()> {
        self.shared.reachable()?;
        if self.shared.heard().is_down(self.shared.env.mono()) {
            return Err(Error::Unavailable { reason: "no Kafka broker can be reached (kafka_unreachable)".to_owned() });
        }
        let full_at = *self.shared.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        match full_at {
            Some(at) if self.shared.env.mono().since(at) < FULL_FOR => {
                Err(Error::Full { reason: "more waits for the Kafka brokers than this process may hold".to_owned() })
            }
            Some(_) | None => Ok(()),
        }
    }
}
