//! A bus in memory that keeps the contract ([`Bus`]) through whatever it is made to suffer.
//!
//! A call travels to it, takes effect in one moment, and its answer travels back. Calls and
//! answers may be lost on the way (then nobody knows whether a write took place), the bus may be
//! away for a while, and a node may be cut off from it. A restart loses what had not taken effect
//! and breaks every connection; what took effect stays, acknowledged or not, unless the bus is put
//! back to an older state, which breaks the contract and is a fault of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cellbus_bus::contract::{
    Bus, ClusterRecord, DROPPED_FOR, Delivery, Depth, Error, Event, EventReader, Member, Message, PlacedEvent,
    Position, Queue, Reader, Result, SnapshotId, Unacked,
};
use cellbus_bus::env::Env;
use cellbus_bus::ids::{CellId, Epoch, Seq, ShardId};
use cellbus_directory::{Entry, Record};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::executor::{Executor, NodeId};
use super::history::History;
use super::sabotage::Sabotage;
use super::trace;

mod store;

pub(super) use store::Forgets;
use store::Store;

/// How long a caller waits for an answer that was lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// How long it takes to find that the bus cannot be reached.
const UNREACHABLE_AFTER: Duration = Duration::from_millis(200);

/// What calls to the bus meet at present.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// How long a call takes at the most, on its way there.
    pub(super) delay_max: Duration,
    /// How likely a call is lost, and its answer.
    pub(super) loss: f64,
    /// How likely it is refused for want of room.
    pub(super) full: f64,
    /// How likely a message is late for its reader, by up to a second.
    pub(super) late: f64,
}

struct State {
    store: Store,
    weather: Weather,
    rng: SmallRng,
    down: bool,
    /// Grows with every restart: connections of before are broken.
    connections: u64,
    /// Nodes that cannot reach it.
    cut: Vec<NodeId>,
    /// Nodes that are not told what is in a log.
    deaf: Vec<(NodeId, ShardId)>,
    /// Bytes of each log for which there is room, if that has a limit.
    log_room: Option<u64>,
    checks: Checks,
    /// Who is to be woken by what has just taken effect, whatever becomes of its answer.
    woken: Vec<Waker>,
}

/// What is checked of every entry that is appended.
#[derive(Default)]
struct Checks {
    /// By shard: the epoch of the last entry that counts.
    epochs: std::collections::BTreeMap<ShardId, Epoch>,
    violations: Vec<String>,
    /// Every entry there ever was, trimmed ones too; `None`: not kept.
    shadow: Option<std::collections::BTreeMap<ShardId, Vec<(Seq, Bytes)>>>,
    appends: u64,
    records: u64,
    /// Entries are not a shard's: nothing is looked at.
    unread: bool,
}

/// The bus itself, as the world sees it.
#[derive(Clone)]
pub(super) struct SimulatedBus {
    executor: Arc<Executor>,
    /// The world's: travel takes the world's time.
    env: Env,
    history: Arc<History>,
    sabotage: Option<Sabotage>,
    state: Arc<Mutex<State>>,
}

impl SimulatedBus {
    pub(super) fn new(
        executor: &Arc<Executor>,
        env: Env,
        seed: u64,
        history: Arc<History>,
        sabotage: Option<Sabotage>,
        shadow: bool,
    ) -> Self {
        let state = State {
            store: Store::default(),
            weather: Weather::default(),
            rng: SmallRng::seed_from_u64(seed ^ 0xb05),
            down: false,
            connections: 0,
            cut: Vec::new(),
            deaf: Vec::new(),
            log_room: None,
            checks: Checks { shadow: shadow.then(Default::default), ..Checks::default() },
            woken: Vec::new(),
        };
        Self { executor: Arc::clone(executor), env, history, sabotage, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to it of one node.
    pub(super) fn client(&self, node: NodeId) -> Arc<Client> {
        Arc::new(Client { bus: self.clone(), node, directory: false, read: Arc::default(), ends: Arc::default() })
    }
    /// The same, for the directory of a node.
    pub(super) fn directory_client(&self, node: NodeId) -> Arc<Client> {
        Arc::new(Client { bus: self.clone(), node, directory: true, read: Arc::default(), ends: Arc::default() })
    }

    // ── faults ──

    /// Owners are told that each log has room for so much. What does not fit is taken all the same.
    pub(super) fn set_log_room(&self, bytes: u64) {
        self.state().log_room = Some(bytes);
    }
    pub(super) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }
    /// It stops. What has taken effect stays.
    pub(super) fn stop(&self) {
        let woken = {
            let mut state = self.state();
            state.down = true;
            state.connections += 1;
            state.store.restarted()
        };
        self.executor.note("bus down", 0);
        woken.into_iter().for_each(Waker::wake);
    }
    pub(super) fn start(&self) {
        self.state().down = false;
        self.executor.note("bus up", 0);
    }
    /// Everything that it holds now.
    pub(super) fn image(&self) -> Image {
        Image(self.state().store.clone())
    }
    /// What it acknowledged since the image was taken is lost. Gives the shards whose logs have lost
    /// entries, and where those end now.
    pub(super) fn put_back(&self, image: Image, what: Forgets) -> Vec<(ShardId, Seq)> {
        let (woken, lost) = {
            let mut state = self.state();
            let shards = state.store.shards();
            let before: Vec<(ShardId, Seq)> =
                shards.into_iter().map(|shard| (shard, state.store.log(shard).last())).collect();
            let mut woken = state.store.put_back(image.0, what);
            woken.append(&mut state.store.restarted());
            let mut lost = Vec::new();
            for (shard, end) in before {
                let now = state.store.log(shard).last();
                if now < end {
                    lost.push((shard, now));
                }
                let State { store, checks, .. } = &mut *state;
                checks.put_back(shard, now, store.entries(shard).last().map(|(_, body)| body));
            }
            (woken, lost)
        };
        self.executor.note("bus put back", 0);
        woken.into_iter().for_each(Waker::wake);
        lost
    }
    /// A node is cut off, or not any more.
    pub(super) fn cut(&self, node: NodeId, cut: bool) {
        let woken = {
            let mut state = self.state();
            state.cut.retain(|known| *known != node);
            if cut {
                state.cut.push(node);
            }
            state.store.all_waiting()
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// A node is not told any more what is in a log, or is told again.
    pub(super) fn deafen(&self, node: NodeId, log: ShardId, deaf: bool) {
        let mut state = self.state();
        state.deaf.retain(|known| *known != (node, log));
        if deaf {
            state.deaf.push((node, log));
        }
    }
    /// Everybody is told everything again.
    pub(super) fn hear_again(&self) {
        self.state().deaf.clear();
    }

    // ── what became of it ──

    pub(super) fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.state().checks.violations)
    }
    /// Appends and records so far.
    pub(super) fn appended(&self) -> (u64, u64) {
        let state = self.state();
        (state.checks.appends, state.checks.records)
    }
    pub(super) fn ingress_open(&self) -> usize {
        self.state().store.ingress_open()
    }
    /// All entries of all logs from their beginnings, where they are kept.
    pub(super) fn shadow(&self) -> std::collections::BTreeMap<ShardId, Vec<(Seq, Bytes)>> {
        self.state().checks.shadow.clone().unwrap_or_default()
    }
    /// All entries of one log, likewise.
    pub(super) fn shadow_of(&self, shard: ShardId) -> Vec<Bytes> {
        let state = self.state();
        let log = state.checks.shadow.as_ref().and_then(|logs| logs.get(&shard));
        log.map(|log| log.iter().map(|(_, body)| body.clone()).collect()).unwrap_or_default()
    }
    /// The newest snapshot of a shard that its log names, and the entries after it.
    pub(super) fn newest_snapshot(&self, shard: ShardId) -> Option<(SnapshotId, Bytes)> {
        let state = self.state();
        let named = |id: &SnapshotId| {
            state.store.entries(shard).any(|(_, body)| {
                Entry::decode(body).is_ok_and(|entry| {
                    entry.records.iter().any(|record| matches!(record, Record::Snapshot { id: of } if of == id))
                })
            })
        };
        let id = state.store.snapshots(shard).into_iter().rev().find(named)?;
        Some((id, state.store.read_snapshot(id)?))
    }
    /// Where the log of each shard ends.
    pub(super) fn ends(&self) -> Vec<(ShardId, Seq)> {
        let mut state = self.state();
        let shards = state.store.shards();
        shards.into_iter().map(|shard| (shard, state.store.log(shard).last())).collect()
    }
}

/// All that a bus held at one moment.
pub(super) struct Image(Store);

impl Checks {
    /// The log of a shard ends with this entry now.
    fn put_back(&mut self, shard: ShardId, end: Seq, last: Option<&Bytes>) {
        let epoch = last.and_then(|body| Entry::decode(body).ok()).map(|entry| entry.epoch);
        self.epochs.insert(shard, epoch.unwrap_or_default());
        if let Some(entries) = self.shadow.as_mut().and_then(|shadow| shadow.get_mut(&shard)) {
            entries.retain(|(seq, _)| *seq <= end);
        }
    }
    /// Looks at an entry that has been taken.
    fn appended(&mut self, shard: ShardId, expected: Seq, seq: Seq, body: &Bytes, history: &History, at: u64) {
        self.appends += 1;
        if self.unread {
            return;
        }
        if let Some(shadow) = &mut self.shadow {
            shadow.entry(shard).or_default().push((seq, body.clone()));
        }
        let entry = match Entry::decode(body) {
            Ok(entry) => entry,
            Err(error) => {
                self.violations.push(format!("shard {shard}: entry {seq} cannot be read: {error}"));
                return;
            }
        };
        self.records += entry.records.len() as u64;
        if entry.prev != expected {
            self.violations.push(format!(
                "shard {shard}: entry {seq} says that it follows {}, and was appended after {expected}",
                entry.prev
            ));
        }
        let last = self.epochs.entry(shard).or_default();
        let opened = matches!(entry.records.first(), Some(Record::Opened { .. }));
        let right = if opened { entry.epoch > *last } else { entry.epoch == *last };
        if !right {
            self.violations.push(format!(
                "shard {shard}: entry {seq} of epoch {} was taken after epoch {last} had opened",
                entry.epoch
            ));
        }
        *last = (*last).max(entry.epoch);
        history.add(at, || {
            let records: Vec<String> = entry.records.iter().map(|record| format!("{record:?}")).collect();
            format!("shard {shard} epoch {} appends {seq}: {}", entry.epoch, records.join(" | "))
        });
    }
}

/// How a node reaches the bus.
#[derive(Clone)]
pub(super) struct Client {
    bus: SimulatedBus,
    node: NodeId,
    /// Whether the directory reads through it.
    directory: bool,
    /// For a deliberate bug: the last entries that were read.
    read: Arc<Mutex<std::collections::BTreeMap<ShardId, Message>>>,
    /// Likewise: where logs ended when that was told last.
    ends: Arc<Mutex<std::collections::BTreeMap<ShardId, Seq>>>,
}

/// What will become of one call.
struct Fate {
    travels: Duration,
    lost: bool,
    answer_lost: bool,
    full: bool,
}

fn unavailable(reason: &str) -> Error {
    Error::Unavailable { reason: reason.to_owned() }
}

impl Client {
    fn reachable(&self, state: &State) -> Result<()> {
        if state.down {
            return Err(unavailable("the simulated bus is down"));
        }
        if state.cut.contains(&self.node) {
            return Err(unavailable("the simulated bus cannot be reached"));
        }
        Ok(())
    }

    fn fate(&self) -> Fate {
        let mut state = self.bus.state();
        let State { weather, rng, .. } = &mut *state;
        let travels = match u64::try_from(weather.delay_max.as_nanos()) {
            Ok(0) | Err(_) => Duration::ZERO,
            Ok(most) => Duration::from_nanos(rng.random_range(0..most)),
        };
        let mut meets = |rate: f64| rate > 0.0 && rng.random_bool(rate);
        Fate {
            travels,
            lost: meets(weather.loss / 2.0),
            answer_lost: meets(weather.loss / 2.0),
            full: meets(weather.full),
        }
    }

    /// A call that changes nothing: without an answer it is as if it had not been made.
    async fn look<T>(&self, look: impl FnOnce(&mut Store, u64) -> Result<T>) -> Result<T> {
        self.call(false, |state, now| look(&mut state.store, now)).await.map_err(|error| match error {
            Error::Unknown { reason } => Error::Unavailable { reason },
            other => other,
        })
    }

    async fn call<T>(&self, writes: bool, work: impl FnOnce(&mut State, u64) -> Result<T>) -> Result<T> {
        let env = &self.bus.env;
        let reachable = self.reachable(&self.bus.state());
        if let Err(error) = reachable {
            env.sleep(UNREACHABLE_AFTER).await;
            return Err(error);
        }
        let fate = self.fate();
        let connection = self.bus.state().connections;
        if !fate.travels.is_zero() {
            env.sleep(fate.travels).await;
        }
        let no_answer = || Error::Unknown { reason: "the simulated bus gave no answer".to_owned() };
        if fate.lost {
            env.sleep(ANSWER_LIMIT).await;
            return Err(no_answer());
        }
        let arrived = {
            let mut state = self.bus.state();
            if self.reachable(&state).is_err() || state.connections != connection {
                None
            } else if fate.full && writes {
                Some(Err(Error::Full { reason: "the simulated bus has no room for now".to_owned() }))
            } else {
                let now = self.bus.executor.now();
                Some(work(&mut state, now))
            }
        };
        let woken = std::mem::take(&mut self.bus.state().woken);
        woken.into_iter().for_each(Waker::wake);
        let Some(done) = arrived else {
            // It was under way when the bus went away: nobody can say that it had not arrived.
            env.sleep(UNREACHABLE_AFTER).await;
            return Err(no_answer());
        };
        let done = done?;
        if fate.answer_lost {
            env.sleep(ANSWER_LIMIT).await;
            return Err(no_answer());
        }
        Ok(done)
    }

    fn deaf(&self, log: ShardId) -> bool {
        self.bus.state().deaf.contains(&(self.node, log))
    }
    fn ends(&self) -> MutexGuard<'_, std::collections::BTreeMap<ShardId, Seq>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn blind(&self) -> bool {
        self.directory && self.bus.sabotage == Some(Sabotage::BlindDirectory)
    }
    /// The last entry of a log that was read through it.
    fn last_read(&self, shard: ShardId) -> Option<Message> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }

    fn wall(&self) -> cellbus_bus::WallMs {
        self.bus.env.wall()
    }

    async fn publish_items(&self, items: Vec<(Queue, Vec<Bytes>)>) -> Result<Seq> {
        // Room for control is kept to the last.
        let at = self.wall();
        let hash = items
            .iter()
            .flat_map(|(_, bodies)| bodies)
            .fold(0, |hash: u64, body| hash.rotate_left(7) ^ trace::bytes(body));
        self.call(true, move |state, _| {
            let (seq, mut woken) = state.store.publish(at, items)?;
            state.woken.append(&mut woken);
            self.bus.executor.note("publish", hash ^ seq.0);
            Ok(seq)
        })
        .await
    }

    fn reader(&self, what: What, after: Seq) -> SimulatedReader {
        let connection = self.bus.state().connections;
        SimulatedReader { client: self.clone(), what, after, connection, late: None }
    }
}

#[async_trait]
impl Bus for Client {
    async fn cluster(&self, initial: ClusterRecord) -> Result<ClusterRecord> {
        self.look(|store, _| Ok(store.cluster(initial))).await
    }
    async fn cluster_record(&self) -> Result<Option<ClusterRecord>> {
        self.look(|store, _| Ok(store.cluster_record())).await
    }
    async fn replace_cluster(&self, expected: &ClusterRecord, new: ClusterRecord) -> Result<ClusterRecord> {
        let expected = expected.clone();
        self.call(true, move |state, _| state.store.replace_cluster(&expected, new.clone())).await
    }

    async fn ingress_publish(&self, tenant: &str, headers: Vec<(String, String)>, body: Bytes) -> Result<()> {
        let tenant = tenant.to_owned();
        let headers = headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        self.call(true, move |state, _| {
            let mut woken = state.store.ingress(tenant, headers, body)?;
            state.woken.append(&mut woken);
            Ok(())
        })
        .await
    }
    async fn reply(&self, _to: &str, _body: Bytes) {}
    async fn ingress_unacked(&self, after: Seq, max: usize) -> Result<Vec<Unacked>> {
        self.look(|store, _| Ok(store.unacked(after, max))).await
    }
    /// Draws no fate, so that counting changes nothing of a run.
    async fn ingress_depth(&self) -> Result<u64> {
        let state = self.bus.state();
        self.reachable(&state)?;
        Ok(u64::try_from(state.store.ingress_open()).unwrap_or(u64::MAX))
    }
    async fn ingress_next(&self, redeliver_after: Duration) -> Result<Box<dyn Delivery>> {
        let hide_for = u64::try_from(redeliver_after.as_nanos()).unwrap_or(u64::MAX);
        {
            let connection = self.bus.state().connections;
            let mut again: Option<cellbus_bus::env::BoxFuture<()>> = None;
            let taken = std::future::poll_fn(|context| {
                if let Some(sleep) = &mut again
                    && sleep.as_mut().poll(context).is_ready()
                {
                    again = None;
                }
                let now = self.bus.executor.now();
                let mut state = self.bus.state();
                if state.down || state.connections != connection {
                    return Poll::Ready(Err(unavailable("the connection to the simulated bus is broken")));
                }
                // While it is cut off, nothing comes.
                let cut = state.cut.contains(&self.node);
                let next = if cut { Err(None) } else { state.store.take(now, hide_for, context.waker()) };
                drop(state);
                match next {
                    Ok(taken) => Poll::Ready(Ok(taken)),
                    Err(at) => {
                        let pause =
                            at.map_or(Duration::from_secs(1), |at| Duration::from_nanos(at.saturating_sub(now)));
                        let mut sleep =
                            self.bus.env.sleep(pause.clamp(Duration::from_millis(1), Duration::from_secs(1)));
                        // Registers it; it cannot be over yet.
                        let _ = sleep.as_mut().poll(context);
                        again = Some(sleep);
                        Poll::Pending
                    }
                }
            });
            let (id, inbound) = match taken.await {
                Ok(taken) => taken,
                Err(error) => {
                    self.bus.env.sleep(UNREACHABLE_AFTER).await;
                    return Err(error);
                }
            };
            let client = self.clone();
            if self.bus.sabotage == Some(Sabotage::AckBeforePublish) {
                self.bus.state().store.ack(id);
            }
            let incarnation = self.bus.executor.incarnation(self.node);
            Ok(Box::new(SimulatedDelivery { client, id, inbound, incarnation }))
        }
    }

    async fn publish(&self, queue: Queue, items: Vec<Bytes>) -> Result<Seq> {
        self.publish_items(vec![(queue, items)]).await
    }
    async fn publish_all(&self, items: Vec<(Queue, Vec<Bytes>)>) -> Result<()> {
        self.publish_items(items).await.map(drop)
    }
    async fn read_queue(&self, queue: Queue, after: Position) -> Result<Box<dyn Reader>> {
        let after = if self.bus.sabotage == Some(Sabotage::ForgetDedupe) { Position::default() } else { after };
        let mut from = self.look(|store, _| Ok(store.begin(queue, after))).await?;
        if self.bus.sabotage == Some(Sabotage::ReadPositionOffByOne) && from > Seq::ZERO {
            from = from.next();
            let mut state = self.bus.state();
            let next = state.store.queue(queue).read(Seq(from.0 - 1), 1, Waker::noop());
            from = next.ok().and_then(|next| next.first().map(|message| message.seq)).unwrap_or(Seq(from.0 - 1));
        }
        Ok(Box::new(self.reader(What::Queue(queue), from)))
    }
    async fn queue_end(&self, queue: Queue) -> Result<Seq> {
        self.look(|store, _| Ok(store.queue(queue).last())).await
    }
    async fn depth(&self, queue: Queue, after: Seq) -> Result<Depth> {
        self.look(|store, _| Ok(store.depth(queue, after))).await
    }
    async fn trim_queue(&self, queue: Queue, through: Seq) -> Result<()> {
        if self.bus.sabotage == Some(Sabotage::ForgetDedupe) {
            return Ok(());
        }
        self.look(|store, _| {
            store.trim_queue(queue, through);
            Ok(())
        })
        .await
    }

    async fn append(&self, shard: ShardId, expected: Seq, entry: Bytes) -> Result<Seq> {
        let (at, hash) = (self.wall(), trace::bytes(&entry));
        let fenced = self.bus.sabotage != Some(Sabotage::SkipTheFence);
        let history = Arc::clone(&self.bus.history);
        self.call(true, move |state, now| {
            let (seq, mut woken) = state.store.append(at, shard, expected, entry.clone(), fenced)?;
            state.woken.append(&mut woken);
            state.checks.appended(shard, expected, seq, &entry, &history, now);
            self.bus.executor.note("append", hash ^ seq.0);
            Ok(seq)
        })
        .await
    }
    async fn log_end(&self, shard: ShardId) -> Result<Seq> {
        if self.deaf(shard) {
            let before = self.ends().get(&shard).copied();
            if let Some(end) = before.filter(|_| self.bus.sabotage == Some(Sabotage::GoOnUnknowing)) {
                return Ok(end);
            }
            self.bus.env.sleep(UNREACHABLE_AFTER).await;
            return Err(unavailable("the simulated bus does not tell"));
        }
        let end = self.look(|store, _| Ok(store.log(shard).last())).await?;
        self.ends().insert(shard, end);
        Ok(self.last_read(shard).map_or(end, |last| end.max(last.seq)))
    }
    async fn read_log(&self, shard: ShardId, after: Seq) -> Result<Box<dyn Reader>> {
        let blind = self.blind();
        self.look(|store, _| if blind { Ok(()) } else { store.begin_log(shard, after) }).await?;
        Ok(Box::new(self.reader(What::Log(shard), after)))
    }
    async fn write_snapshot(&self, id: SnapshotId, body: Bytes) -> Result<()> {
        self.call(true, |state, _| {
            state.store.write_snapshot(id, body);
            Ok(())
        })
        .await
        .map_err(|error| match error {
            Error::Unknown { reason } => Error::Unavailable { reason },
            other => other,
        })
    }
    async fn snapshots(&self, shard: ShardId) -> Result<Vec<SnapshotId>> {
        self.look(|store, _| Ok(store.snapshots(shard))).await
    }
    async fn read_snapshot(&self, id: SnapshotId) -> Result<Option<Bytes>> {
        self.look(|store, _| Ok(store.read_snapshot(id))).await
    }
    async fn trim_log(&self, shard: ShardId, through: Seq, keep_snapshots: usize) -> Result<()> {
        self.look(|store, _| {
            store.trim_log(shard, through, keep_snapshots);
            Ok(())
        })
        .await
    }
    fn log_fullness(&self, shard: ShardId) -> Option<f64> {
        let state = self.bus.state();
        let room = state.log_room?;
        let used: usize = state.store.entries(shard).map(|(_, body)| body.len()).sum();
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        Some(used as f64 / room as f64)
    }

    async fn beat(&self, member: Member, ttl: Duration) -> Result<()> {
        self.look(move |store, now| {
            store.beat(member, now.saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX)));
            Ok(())
        })
        .await
    }
    async fn leave(&self, cell: &CellId) -> Result<()> {
        self.look(|store, _| {
            store.leave(cell);
            Ok(())
        })
        .await
    }
    async fn members(&self) -> Result<Vec<Member>> {
        self.look(|store, now| Ok(store.members(now))).await
    }

    async fn publish_events(&self, events: Vec<Event>) -> Result<()> {
        let published = self.call(true, |state, _| {
            let mut woken = state.store.publish_events(events);
            state.woken.append(&mut woken);
            Ok(())
        });
        let published = published.await;
        if self.bus.sabotage == Some(Sabotage::ForgetOutcomes) { Ok(()) } else { published }
    }
    async fn read_events(&self, after: Option<Seq>) -> Result<Box<dyn EventReader>> {
        let after = self.look(|store, _| Ok(store.events_after(after))).await?;
        Ok(Box::new(self.reader(What::Events, after)))
    }

    fn accepting(&self) -> Result<()> {
        self.reachable(&self.bus.state())
    }
}

#[derive(Clone, Copy)]
enum What {
    Queue(Queue),
    Log(ShardId),
    Events,
}

/// A reader of one stream, over one connection.
struct SimulatedReader {
    client: Client,
    what: What,
    after: Seq,
    connection: u64,
    /// What is there will be seen at this time, and not before.
    late: Option<u64>,
}

impl SimulatedReader {
    /// Waits until `read` finds something. Nothing is taken before it is given.
    async fn wait<T>(&mut self, mut read: impl FnMut(&mut Store, Seq, &Waker) -> Result<Vec<T>>) -> Result<Vec<T>> {
        loop {
            let bus = &self.client.bus;
            let found = std::future::poll_fn(|context| {
                let mut state = bus.state();
                if state.down || state.connections != self.connection {
                    return Poll::Ready(Err(unavailable("the connection to the simulated bus is broken")));
                }
                let messages = match read(&mut state.store, self.after, context.waker()) {
                    Ok(messages) => messages,
                    Err(error) => return Poll::Ready(Err(error)),
                };
                if messages.is_empty() || state.cut.contains(&self.client.node) {
                    // Woken when there is something, or when the cut is mended.
                    if !messages.is_empty() {
                        state.store.wait_for_mending(context.waker());
                    }
                    return Poll::Pending;
                }
                let late = state.weather.late;
                let late = self.late.is_none() && late > 0.0 && state.rng.random_bool(late);
                let by = if late { state.rng.random_range(0..1_000_000_000) } else { 0 };
                Poll::Ready(Ok((messages, by)))
            })
            .await;
            let (messages, by) = found?;
            let now = bus.executor.now();
            if by > 0 {
                self.late = Some(now + by);
            }
            match self.late {
                Some(at) if at > now => bus.env.sleep(Duration::from_nanos(at - now)).await,
                Some(_) | None => {
                    self.late = None;
                    return Ok(messages);
                }
            }
        }
    }
}

#[async_trait]
impl Reader for SimulatedReader {
    async fn next(&mut self, max: usize) -> Result<Vec<Message>> {
        let what = self.what;
        if self.client.blind()
            && let What::Log(shard) = what
        {
            // The last entry is looked at again: it is as it was, whatever the bus has by now.
            if let Some(last) = self.client.last_read(shard).filter(|last| last.seq == self.after.next()) {
                self.after = last.seq;
                return Ok(vec![last]);
            }
        }
        let messages = self
            .wait(move |store, after, waker| match what {
                What::Queue(queue) => store.queue(queue).read(after, max, waker),
                What::Log(shard) => store.log(shard).read(after, max, waker),
                What::Events => Ok(Vec::new()),
            })
            .await?;
        while let What::Log(shard) = what
            && self.client.deaf(shard)
        {
            self.client.bus.env.sleep(UNREACHABLE_AFTER).await;
        }
        if let Some(last) = messages.last() {
            self.after = last.seq;
            if self.client.blind()
                && let What::Log(shard) = what
            {
                self.client.read.lock().unwrap_or_else(PoisonError::into_inner).insert(shard, last.clone());
            }
        }
        if self.client.directory && self.client.bus.sabotage == Some(Sabotage::StaleDirectory) {
            return Ok(messages.into_iter().map(without_results).collect());
        }
        Ok(messages)
    }
}

/// Of some entries, the directory does not hear how steps ended.
fn without_results(message: Message) -> Message {
    match Entry::decode(&message.body) {
        Ok(mut entry) if message.seq.0.is_multiple_of(7) => {
            entry.records.retain(|record| !matches!(record, Record::StepEnded { .. }));
            Message { body: entry.encode(), ..message }
        }
        Ok(_) | Err(_) => message,
    }
}

#[async_trait]
impl EventReader for SimulatedReader {
    async fn next(&mut self, max: usize) -> Result<Vec<PlacedEvent>> {
        let events = self.wait(move |store, after, waker| Ok(store.read_events(after, max, waker))).await?;
        if let Some(last) = events.last() {
            self.after = last.seq;
        }
        Ok(events)
    }
}

struct SimulatedDelivery {
    client: Client,
    id: u64,
    inbound: store::Inbound,
    incarnation: u64,
}

/// Not acked, it comes again soon; not of a node that has crashed, or is cut off: it could not say so.
/// One that is acked is not there any more.
impl Drop for SimulatedDelivery {
    fn drop(&mut self) {
        let bus = &self.client.bus;
        let after = u64::try_from(DROPPED_FOR.as_nanos()).unwrap_or(u64::MAX);
        let at = bus.executor.now().saturating_add(after);
        if bus.executor.incarnation(self.client.node) != self.incarnation {
            return;
        }
        let mut state = bus.state();
        if self.client.reachable(&state).is_ok() {
            state.store.give_back(self.id, at);
        }
    }
}

#[async_trait]
impl Delivery for SimulatedDelivery {
    fn tenant(&self) -> &str {
        &self.inbound.tenant
    }
    fn headers(&self) -> &[(String, String)] {
        &self.inbound.headers
    }
    fn body(&self) -> &Bytes {
        &self.inbound.body
    }
    async fn ack(self: Box<Self>) -> Result<()> {
        let id = self.id;
        self.client
            .look(move |store, _| {
                store.ack(id);
                Ok(())
            })
            .await
    }
    fn reply_to(&self) -> Option<&str> {
        None
    }
}

#[cfg(test)]
mod tests;
