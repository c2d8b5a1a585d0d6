//! The NATS JetStream transport: the bus of a cluster of processes.
//!
//! ```text
//!  producers ─▶ <p>.jobs.<tenant> ─▶ one work-queue stream ─▶ one pull consumer that all cells share
//!  cells ─────▶ <p>.queue.<kind>.<lane>.<shard> ─▶ lane streams ─▶ a reader for each shard, no acks
//!         └───▶ <p>.log.<lane>.<shard>, fenced ──▶ lane streams ─▶ readers of their own
//! ```
//!
//! What is kept where, and why so: `ops/docs/nats.md` and `ops/docs/decisions/0006-nats-layout.md`.
//!
//! Promises, beside those of [`crate::contract`]: a sequence is that of the lane's stream, so those
//! of one queue or log have gaps; of a `publish` or `publish_all` that fails, any part may be there;
//! an ack of a delivery is not answered by the server, so one that is lost with the connection means
//! that the message comes again; no stream but that of events drops anything by age or size.
//!
//! The servers keep time and tasks of their own, and so does their client library: this module is
//! an edge. What is ours goes through [`Env`].

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::contract::{
    Bus, ClusterRecord, Delivery, Depth, Error, Event, EventReader, Inbox, MESSAGE_BYTES_MAX, Member, Position, Queue,
    Reader, Result, SnapshotId, Unacked, check_size,
};
use crate::env::{Env, Mono};
use crate::ids::{CellId, Seq, ShardId};

mod answer;
mod cluster;

mod config;
mod connect;
mod error;
mod events;
mod feed;
mod fence;
mod figures;
mod inbox;
mod ingress;
mod kept;
mod layout;
mod members;
mod prepare;
mod publish;
mod queue;
mod reader;
mod room;
mod snapshots;
#[cfg(feature = "conformance")]
pub mod testing;
#[cfg(all(test, feature = "conformance"))]
mod tests;
mod trim;

pub use crate::secret::Secret;
pub use config::{Auth, Config, LANES_DEFAULT, LANES_MAX, Limits, Tls};
pub use error::{OpenError, Source};
pub use figures::StreamFigures;

use layout::{Family, Layout, Track};

/// What a server must take as one message: the largest of ours, with room for subject and headers.
pub const PAYLOAD_BYTES_MIN: usize = MESSAGE_BYTES_MAX + (64 << 10);
/// After a refusal for fullness producers are refused at once for so long; then the next one tries.
const FULL_FOR: Duration = Duration::from_secs(1);
/// Publishes of all callers on their way at once. Each call has a bound of its own, and one that
/// waited here for others would hold what they wait for; so this is not to be reached.
const ON_THEIR_WAY_MAX: usize = 1 << 20;

/// The NATS bus. Dropping it ends its tasks; [`Nats::close`] also gives back what it had taken.
pub struct Nats {
    shared: Arc<Shared>,
}

/// What opening does beside connecting.
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
    client: Client,
    jetstream: jetstream::Context,
    lanes: BTreeMap<(Family, u16), Stream<()>>,
    ingress_stream: Stream<()>,
    events: Stream<()>,
    snapshots: Stream<()>,
    members_stream: Stream<()>,
    state_stream: Stream<()>,
    closed: CancellationToken,
    /// How often a connection has come about.
    connects: watch::Receiver<u64>,
    /// Marks this process's appends.
    nonce: u64,
    appends: AtomicU64,
    /// When a publish was last refused for fullness.
    full_at: Mutex<Option<Mono>>,
    ingress: ingress::Ingress,
    members: members::Members,
    trims: trim::Trims,
    rooms: room::Rooms,
}

fn closed() -> Error {
    Error::Unavailable { reason: "the bus is closed".to_owned() }
}

impl Shared {
    /// An error while nothing would be sent. What is handed to the client library then is sent once
    /// the connection is back, long after its caller has given up.
    fn connected(&self) -> Result<()> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        match self.client.connection_state() {
            State::Connected => Ok(()),
            State::Pending | State::Disconnected => {
                Err(Error::Unavailable { reason: "NATS is out of reach".to_owned() })
            }
        }
    }
    /// The counter of connections, as it is now.
    fn connects(&self) -> watch::Receiver<u64> {
        let mut connects = self.connects.clone();
        connects.mark_unchanged();
        connects
    }
    fn lane(&self, track: Track) -> &Stream<()> {
        let lane = self.layout.lane(track.shard);
        self.lanes.get(&(track.family, lane)).expect("every lane of every family is opened")
    }
    fn filled(&self) {
        *self.full_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.env.mono());
    }
}

impl Nats {
    /// Connects, checks the server, and makes or checks all streams. Every process of a cluster
    /// does so at its start; of several at once exactly one makes each stream.
    ///
    /// # Errors
    /// [`OpenError`], with what to do. Streams that were made before stay.
    pub async fn open(config: Config, env: Env) -> std::result::Result<Arc<Self>, OpenError> {
        Self::connect(config, Way::Make, env).await
    }

    /// Connects to a cluster that is there, as somebody does who is no part of it: nothing is made,
    /// nothing is set, and the number of lanes is the cluster's own.
    ///
    /// # Errors
    /// [`OpenError`], with what to do; [`OpenError::NoCluster`] where there is none.
    pub async fn attach(config: Config, env: Env) -> std::result::Result<Arc<Self>, OpenError> {
        Self::connect(config, Way::Attach, env).await
    }

    async fn connect(mut config: Config, way: Way, env: Env) -> std::result::Result<Arc<Self>, OpenError> {
        config.check().map_err(|(field, rule)| OpenError::Config { field, rule })?;
        let (connected, connects) = watch::channel(0);
        let client = connect::connect(&config, &env, connected).await?;
        let jetstream = ContextBuilder::new()
            .timeout(config.answer_timeout)
            .max_ack_inflight(ON_THEIR_WAY_MAX)
            .build(client.clone());
        match way {
            Way::Make => prepare::prepare(&config, &Layout::new(&config), &client, &jetstream).await?,
            Way::Attach => config.lanes = prepare::found(&Layout::new(&config), &client, &jetstream).await?,
        }
        let layout = Layout::new(&config);
        let stream = async |name: String| {
            jetstream.get_stream_no_info(&name).await.map_err(|error| OpenError::NoAnswer {
                doing: format!("the question for the stream {name}"),
                source: Box::new(error),
            })
        };
        let mut lanes = BTreeMap::new();
        for family in Family::ALL {
            for lane in 0..layout.lanes {
                lanes.insert((family, lane), stream(layout.lane_stream(family, lane)).await?);
            }
        }
        let shared = Shared {
            lanes,
            ingress_stream: stream(layout.ingress()).await?,
            events: stream(layout.events()).await?,
            snapshots: stream(layout.snapshots()).await?,
            members_stream: stream(format!("KV_{}", layout.members())).await?,
            state_stream: stream(format!("KV_{}", layout.state())).await?,
            closed: CancellationToken::new(),
            connects,
            nonce: env.random_u64(),
            appends: AtomicU64::new(0),
            full_at: Mutex::new(None),
            ingress: ingress::Ingress::default(),
            members: members::Members::default(),
            trims: trim::Trims::default(),
            rooms: room::Rooms::default(),
            env,
            config,
            layout,
            client,
            jetstream,
        };
        Ok(Arc::new(Self { shared: Arc::new(shared) }))
    }

    /// Takes no more, and gives back the ingress messages that are not acked. Readers get
    /// [`Error::Unavailable`]. Idempotent.
    pub async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.give_back().await;
        // Acks are on their way without an answer; the rest has been answered.
        let flushed = self.shared.env.timeout(self.shared.config.answer_timeout, self.shared.client.flush()).await;
        if !matches!(flushed, Some(Ok(()))) {
            tracing::debug!("the last words to NATS may not have arrived");
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

#[async_trait]
impl Bus for Nats {
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
        let mut message = publish::message(body);
        for (name, value) in headers {
            // A client of NATS could not send others either.
            let name: String = name.chars().filter(|c| c.is_ascii_graphic() && *c != ':').collect();
            let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            message = message.header(name.as_str(), value.as_str());
        }
        self.shared.publish_one(self.shared.layout.ingress_subject(tenant), message).await.map(drop)
    }
    async fn reply(&self, to: &str, body: Bytes) {
        if let Err(error) = self.shared.client.publish(to.to_owned(), body).await {
            tracing::debug!(%error, "a producer was not answered");
        }
    }
    async fn inbox(&self) -> Result<Option<Box<dyn Inbox>>> {
        Ok(Some(Box::new(inbox::Answers::open(&self.shared).await?)))
    }

    async fn ingress_next(&self, redeliver_after: Duration) -> Result<Box<dyn Delivery>> {
        ingress::next(&self.shared, redeliver_after).await
    }
    async fn ingress_unacked(&self, after: Seq, max: usize) -> Result<Vec<Unacked>> {
        self.shared.unacked(after, max).await
    }
    async fn ingress_depth(&self) -> Result<u64> {
        self.shared.ingress_depth().await
    }

    async fn publish(&self, queue: Queue, items: Vec<Bytes>) -> Result<Seq> {
        if items.is_empty() {
            return self.shared.queue_end(queue).await;
        }
        self.shared.publish(vec![(queue, items)]).await.map(Seq)
    }
    async fn publish_all(&self, items: Vec<(Queue, Vec<Bytes>)>) -> Result<()> {
        self.shared.publish(items).await.map(drop)
    }
    async fn read_queue(&self, queue: Queue, after: Position) -> Result<Box<dyn Reader>> {
        Ok(Box::new(queue::read(&self.shared, queue, after).await?))
    }
    async fn queue_end(&self, queue: Queue) -> Result<Seq> {
        self.shared.connected()?;
        self.shared.queue_end(queue).await
    }
    async fn depth(&self, queue: Queue, after: Seq) -> Result<Depth> {
        self.shared.depth(queue, after).await
    }
    async fn trim_queue(&self, queue: Queue, through: Seq) -> Result<()> {
        self.shared.trim(Track::queue(queue), through).await
    }

    async fn append(&self, shard: ShardId, expected: Seq, entry: Bytes) -> Result<Seq> {
        self.shared.append(shard, expected, entry).await
    }
    async fn log_end(&self, shard: ShardId) -> Result<Seq> {
        self.shared.log_end(shard).await
    }
    async fn read_log(&self, shard: ShardId, after: Seq) -> Result<Box<dyn Reader>> {
        Ok(Box::new(queue::read_log(&self.shared, shard, after).await?))
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
        self.shared.trim(Track::log(shard), through).await?;
        self.shared.trim_snapshots(shard, keep_snapshots).await
    }
    fn log_fullness(&self, shard: ShardId) -> Option<f64> {
        self.shared.fullness(Track::log(shard))
    }
    fn queue_fullness(&self, queue: Queue) -> Option<f64> {
        self.shared.fullness(Track::queue(queue))
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
        self.shared.publish_events(events).await
    }
    async fn read_events(&self, after: Option<Seq>) -> Result<Box<dyn EventReader>> {
        Ok(Box::new(events::read(&self.shared, after).await?))
    }

    fn accepting(&self) -> Result<()> {
        self.shared.connected()?;
        let full_at = *self.shared.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        match full_at {
            Some(at) if self.shared.env.mono().since(at) < FULL_FOR => Err(Error::Full {
                reason: "a stream of NATS is at its limit; make room, or raise the limit".to_owned(),
            }),
            Some(_) | None => Ok(()),
        }
    }
}
