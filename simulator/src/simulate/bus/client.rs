//! One node's way to the simulated bus: its calls, what becomes of them on the way, its readers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cellbus_bus::contract::{
    Bus, ClusterRecord, DROPPED_FOR, Delivery, Depth, Error, Event, EventReader, Member, Message, PlacedEvent,
    Position, Queue, Reader, Result, SnapshotId, Unacked,
};
use cellbus_bus::ids::{CellId, Seq, ShardId};
use cellbus_directory::{Entry, Record};
use rand::Rng as _;

use super::super::executor::NodeId;
use super::super::sabotage::Sabotage;
use super::super::trace;
use super::store::{Inbound, Store};
use super::{SimulatedBus, State};

/// How long it takes to find that the bus cannot be reached.
const UNREACHABLE_AFTER: Duration = Duration::from_millis(200);
/// How long a caller waits for an answer that was lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// How a node reaches the bus.
#[derive(Clone)]
pub(in crate::simulate) struct Client {
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
    pub(super) fn new(bus: &SimulatedBus, node: NodeId, directory: bool) -> Self {
        Self { bus: bus.clone(), node, directory, read: Arc::default(), ends: Arc::default() }
    }
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
        self.bus.counted("publish", 1);
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
        self.bus.counted("cluster-record", 1);
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
        self.bus.counted("ingress-depth", 1);
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
        self.bus.counted("read-queue", 1);
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
        self.bus.counted("queue-end", 1);
        self.look(|store, _| Ok(store.queue(queue).last())).await
    }
    async fn depth(&self, queue: Queue, after: Seq) -> Result<Depth> {
        self.bus.counted("depth", 1);
        self.look(|store, _| Ok(store.depth(queue, after))).await
    }
    async fn trim_queue(&self, queue: Queue, through: Seq) -> Result<()> {
        self.bus.counted("trim-queue", 1);
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
        self.bus.counted("append", 1);
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
        self.bus.counted("log-end", 1);
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
        self.bus.counted("read-log", 1);
        let blind = self.blind();
        self.look(|store, _| if blind { Ok(()) } else { store.begin_log(shard, after) }).await?;
        Ok(Box::new(self.reader(What::Log(shard), after)))
    }
    async fn write_snapshot(&self, id: SnapshotId, body: Bytes) -> Result<()> {
        self.bus.counted("write-snapshot", 1);
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
        self.bus.counted("snapshots", 1);
        self.look(|store, _| Ok(store.snapshots(shard))).await
    }
    async fn read_snapshot(&self, id: SnapshotId) -> Result<Option<Bytes>> {
        self.bus.counted("read-snapshot", 1);
        self.look(|store, _| Ok(store.read_snapshot(id))).await
    }
    async fn trim_log(&self, shard: ShardId, through: Seq, keep_snapshots: usize) -> Result<()> {
        self.bus.counted("trim-log", 1);
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
        self.bus.counted("beat", 1);
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
        let members = self.look(|store, now| Ok(store.members(now))).await?;
        self.bus.counted("members", 1);
        self.bus.counted("members-listed", members.len());
        Ok(members)
    }

    async fn publish_events(&self, events: Vec<Event>) -> Result<()> {
        self.bus.counted("publish-events", 1);
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
    inbound: Inbound,
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
