//! The ingress: producers' jobs, from the topics of all tenants, over a group of all cells.
//!
//! Each partition is one cell's at a time. One task reads, a bounded number ahead; a second gives again
//! what was dropped or held for too long, and a third commits what is done with, ten times a second, and
//! drops it from the topic now and then. What a cell had taken when it died, the brokers give to others
//! when its session has run out; what it had acked in its last moment may come again with it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientContext, Statistics};
use tokio::sync::Notify;

use crate::contract::{Delivery, Result, Unacked};
use crate::env::{Env, Mono};
use crate::ids::Seq;

use self::acks::Acks;
pub(super) use self::acks::Done;
use self::taken::Taken;
use super::client::{self, Context};
use super::feed::drop_aside;
use super::layout::Place;
use super::{Shared, answer, closed};

mod acks;
mod taken;
mod unacked;

pub(super) use unacked::Order;

/// Messages that one cell has ahead at the most.
const AHEAD: usize = 1024;
/// Between two looks at what is to be paused.
const LOOK: Duration = Duration::from_millis(100);
/// And so many messages between two at the most.
const LOOK_EVERY: u64 = 256;
/// How long nothing is read, where there is no room, before the brokers are told to pause: a pause throws
/// away what has been fetched, which is fetched again then. Meanwhile changes of the group are not heard.
const HOLD: Duration = Duration::from_secs(1);
/// How often what is done with is dropped from a topic.
const DROP_EVERY: Duration = Duration::from_secs(60);

/// What is out: taken, and neither acked nor given again.
#[derive(Default)]
pub(super) struct Ingress {
    state: Mutex<State>,
    /// A message has come, or comes again.
    came: Notify,
    /// There is room again.
    room: Notify,
    /// Something is due earlier than the watching task knows.
    sooner: Notify,
    consumer: Mutex<Option<Arc<StreamConsumer<GroupContext>>>>,
}

#[derive(Default)]
struct State {
    running: bool,
    next_id: u64,
    ready: VecDeque<u64>,
    held: BTreeMap<u64, Held>,
    /// Ids by when they come again.
    due: BTreeSet<(Duration, u64)>,
    partitions: BTreeMap<Place, Acks>,
    paused: BTreeSet<Place>,
}

/// A message that is not done with.
struct Held {
    place: Place,
    offset: i64,
    parts: Arc<Parts>,
    /// How often it was given out.
    turn: u64,
    /// When it comes again.
    due: Option<Duration>,
}

struct Parts {
    tenant: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Ingress {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn consumer(&self) -> Option<Arc<StreamConsumer<GroupContext>>> {
        self.consumer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl State {
    /// It comes again then.
    fn put_off(&mut self, id: u64, until: Mono) -> bool {
        let Some(held) = self.held.get_mut(&id) else { return false };
        if let Some(due) = held.due.take() {
            self.due.remove(&(due, id));
        }
        held.due = Some(until.0);
        let sooner = self.due.first().is_none_or(|(first, _)| until.0 < *first);
        self.due.insert((until.0, id));
        sooner
    }

    fn forget(&mut self, id: u64) -> Option<Held> {
        let held = self.held.remove(&id)?;
        if let Some(due) = held.due {
            self.due.remove(&(due, id));
        }
        Some(held)
    }

    /// Another cell has these now.
    fn lose(&mut self, lost: &BTreeSet<Place>) {
        self.partitions.retain(|place, _| !lost.contains(place));
        self.paused.retain(|place| !lost.contains(place));
        let ids: Vec<u64> =
            self.held.iter().filter(|(_, held)| lost.contains(&held.place)).map(|(id, _)| *id).collect();
        for id in ids {
            self.forget(id);
        }
        let held = &self.held;
        self.ready.retain(|id| held.contains_key(id));
    }

    /// What is to be committed, of all partitions or of these.
    fn take_done(&mut self, of: Option<&BTreeSet<Place>>) -> Vec<(Place, Done)> {
        let partitions = self.partitions.iter_mut().filter(|(place, _)| of.is_none_or(|of| of.contains(place)));
        partitions.filter_map(|(place, acks)| Some((place.clone(), acks.take_done()?))).collect()
    }
}

/// A list of what to commit.
fn commits(done: &[(Place, Done)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (place, done) in done {
        let mut row = list.add_partition(&place.topic, place.partition);
        // Both are within what Kafka takes.
        let _ = row.set_offset(Offset::Offset(done.below));
        row.set_metadata(done.text());
    }
    list
}

fn places(list: &TopicPartitionList) -> BTreeSet<Place> {
    let place = |row: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| Place {
        topic: Arc::from(row.topic()),
        partition: row.partition(),
    };
    list.elements().iter().map(place).collect()
}

/// Hears which partitions come and go.
pub(super) struct GroupContext {
    plain: Context,
    shared: Weak<Shared>,
}

impl ClientContext for GroupContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = Context::ENABLE_REFRESH_OAUTH_TOKEN;

    fn generate_oauth_token(
        &self,
        config: Option<&str>,
    ) -> std::result::Result<rdkafka::client::OAuthToken, Box<dyn std::error::Error>> {
        self.plain.generate_oauth_token(config)
    }
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        self.plain.log(level, facility, message);
    }
    fn stats(&self, _statistics: Statistics) {}
    fn error(&self, error: KafkaError, reason: &str) {
        self.plain.error(error, reason);
    }
}

impl ConsumerContext for GroupContext {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let (Rebalance::Revoke(list), Some(shared)) = (rebalance, self.shared.upgrade()) else { return };
        let lost = places(list);
        let mut state = shared.ingress.state();
        let done = state.take_done(Some(&lost));
        state.lose(&lost);
        drop(state);
        if !done.is_empty()
            && let Err(error) = consumer.commit(&commits(&done), CommitMode::Async)
        {
            tracing::debug!(%error, "what was done with may come again");
        }
    }
}

/// The next message for a consumer.
pub(super) async fn next(shared: &Arc<Shared>, redeliver_after: Duration) -> Result<Box<dyn Delivery>> {
    let ingress = &shared.ingress;
    start(shared);
    loop {
        let mut came = std::pin::pin!(ingress.came.notified());
        came.as_mut().enable();
        if shared.closed.is_cancelled() {
            return Err(closed());
        }
        if let Some(taken) = take(shared, redeliver_after) {
            return Ok(Box::new(taken));
        }
        tokio::select! {
            biased;
            () = shared.closed.cancelled() => return Err(closed()),
            () = came => {}
        }
    }
}

fn take(shared: &Arc<Shared>, redeliver_after: Duration) -> Option<Taken> {
    let until = shared.env.mono().after(redeliver_after);
    let mut state = shared.ingress.state();
    let id = state.ready.pop_front()?;
    let sooner = state.put_off(id, until);
    let held = state.held.get_mut(&id)?;
    held.turn += 1;
    let (turn, parts) = (held.turn, Arc::clone(&held.parts));
    let (low, more) = (state.ready.len() == AHEAD / 2, !state.ready.is_empty());
    drop(state);
    if sooner {
        shared.ingress.sooner.notify_one();
    }
    if low {
        shared.ingress.room.notify_one();
    }
    if more {
        // Another may wait, whose word came before this one was taken.
        shared.ingress.came.notify_one();
    }
    Some(Taken { shared: Arc::clone(shared), id, turn, parts })
}

/// The three tasks, once.
fn start(shared: &Arc<Shared>) {
    if std::mem::replace(&mut shared.ingress.state().running, true) {
        return;
    }
    let (reading, watching, committing) = (Arc::clone(shared), Arc::clone(shared), Arc::clone(shared));
    let until_closed = |shared: Arc<Shared>, work: crate::env::BoxFuture<()>| async move {
        let closed = shared.closed.clone();
        tokio::select! {
            biased;
            () = closed.cancelled() => {}
            () = work => {}
        }
    };
    let work = Arc::clone(&reading);
    shared.env.spawn("kafka ingress", until_closed(reading, Box::pin(async move { read(&work).await })));
    let work = Arc::clone(&watching);
    shared.env.spawn("kafka ingress watch", until_closed(watching, Box::pin(async move { watch(&work).await })));
    let work = Arc::clone(&committing);
    shared.env.spawn("kafka ingress commit", until_closed(committing, Box::pin(async move { commit(&work).await })));
}

/// A consumer of a task, which lets go of it off the async threads: the last to do so waits for brokers.
struct Aside(Env, Option<Arc<StreamConsumer<GroupContext>>>);

impl Drop for Aside {
    fn drop(&mut self) {
        drop_aside(&self.0, self.1.take());
    }
}

/// Reads for as long as there is room.
async fn read(shared: &Arc<Shared>) {
    let consumer = loop {
        let (config, making) = (client::ingress(&shared.config, &shared.layout.group()), Arc::clone(shared));
        let made = shared.env.blocking("kafka group", move || {
            let context = GroupContext { plain: making.context.clone(), shared: Arc::downgrade(&making) };
            let consumer = StreamConsumer::from_config_and_context(&config, context)?;
            consumer.subscribe(&[&making.layout.ingress_pattern()])?;
            let consumer = Arc::new(consumer);
            *making.ingress.consumer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&consumer));
            Ok::<_, KafkaError>(consumer)
        });
        match made.await {
            Some(Ok(consumer)) => break Aside(shared.env.clone(), Some(consumer)),
            Some(Err(error)) => tracing::warn!(%error, "the group of cells cannot be joined; trying again"),
            None => return,
        }
        shared.env.sleep(LOOK * 10).await;
    };
    let Some(consumer) = &consumer.1 else { return };
    for number in 1_u64.. {
        tokio::select! {
            biased;
            () = shared.ingress.room.notified() => {}
            came = consumer.recv() => match came {
                Ok(message) => {
                    shared.heard().answered(shared.env.mono());
                    match taken_in(shared, consumer, &message).await {
                        // There may be thousands of partitions to look at.
                        Ok(Room::Left) if number % LOOK_EVERY != 0 => continue,
                        Ok(Room::Left | Room::None) => {}
                        Err(error) => {
                            // It is read again once the partition is assigned again.
                            tracing::warn!(%error, "what the group has done with cannot be read; starting again");
                            lose_all(shared, consumer).await;
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "ingress");
                    shared.env.sleep(LOOK).await;
                }
            },
            () = shared.env.sleep(LOOK) => {}
        }
        let (full, paused) = {
            let state = shared.ingress.state();
            (state.ready.len() >= AHEAD, !state.paused.is_empty())
        };
        if full && !paused && shared.env.timeout(HOLD, shared.ingress.room.notified()).await.is_some() {
            continue;
        }
        pause(shared, consumer).await;
    }
}

/// Whether there is room for more.
enum Room {
    Left,
    None,
}

/// One message of a partition, of which must be known first what the group has done.
async fn taken_in(
    shared: &Arc<Shared>,
    consumer: &Arc<StreamConsumer<GroupContext>>,
    message: &BorrowedMessage<'_>,
) -> Result<Room> {
    let place = Place { topic: Arc::from(message.topic()), partition: message.partition() };
    if !shared.ingress.state().partitions.contains_key(&place) {
        committed(shared, consumer).await?;
    }
    let Some(tenant) = shared.layout.tenant(message.topic()) else { return Ok(Room::Left) };
    let mut state = shared.ingress.state();
    let Some(acks) = state.partitions.get_mut(&place) else { return Ok(Room::Left) };
    if !acks.came(message.offset()) {
        return Ok(Room::Left);
    }
    let full = acks.is_full();
    let parts = Parts {
        tenant: tenant.to_owned(),
        headers: headers(message),
        body: message.payload().map(Bytes::copy_from_slice).unwrap_or_default(),
    };
    let id = state.next_id;
    state.next_id += 1;
    state.held.insert(id, Held { place, offset: message.offset(), parts: Arc::new(parts), turn: 0, due: None });
    state.ready.push_back(id);
    let full = full || state.ready.len() >= AHEAD;
    drop(state);
    shared.ingress.came.notify_one();
    Ok(if full { Room::None } else { Room::Left })
}

/// What the group has done of the partitions that are newly this process's.
async fn committed(shared: &Arc<Shared>, consumer: &Arc<StreamConsumer<GroupContext>>) -> Result<()> {
    let (asking, timeout) = (Arc::clone(consumer), shared.config.answer_timeout);
    let known: BTreeSet<Place> = shared.ingress.state().partitions.keys().cloned().collect();
    let asked = shared.env.blocking("kafka committed", move || {
        let mut list = TopicPartitionList::new();
        for row in asking.assignment()?.elements() {
            if !known.contains(&Place { topic: Arc::from(row.topic()), partition: row.partition() }) {
                list.add_partition(row.topic(), row.partition());
            }
        }
        asking.committed_offsets(list, timeout)
    });
    let list = asked.await.ok_or_else(closed)?.map_err(|error| answer::unavailable("ask what is done", &error))?;
    let mut state = shared.ingress.state();
    for row in list.elements() {
        let below = match row.offset() {
            Offset::Offset(offset) => offset,
            _ => 0,
        };
        let place = Place { topic: Arc::from(row.topic()), partition: row.partition() };
        state.partitions.entry(place).or_insert_with(|| Acks::new(Done::read(below, row.metadata())));
    }
    Ok(())
}

/// Begins again with all partitions.
async fn lose_all(shared: &Arc<Shared>, consumer: &Arc<StreamConsumer<GroupContext>>) {
    let (leaving, pattern) = (Arc::clone(consumer), shared.layout.ingress_pattern());
    shared
        .env
        .blocking("kafka group", move || {
            leaving.unsubscribe();
            if let Err(error) = leaving.subscribe(&[&pattern]) {
                tracing::error!(%error, "the group of cells cannot be joined again");
            }
        })
        .await;
    shared.env.sleep(LOOK).await;
}

/// Holds back what there is no room for.
async fn pause(shared: &Arc<Shared>, consumer: &Arc<StreamConsumer<GroupContext>>) {
    let (mut stop, mut go) = (TopicPartitionList::new(), TopicPartitionList::new());
    {
        let mut state = shared.ingress.state();
        let state = &mut *state;
        let (full, low) = (state.ready.len() >= AHEAD, state.ready.len() <= AHEAD / 2);
        for (place, acks) in &state.partitions {
            if state.paused.contains(place) {
                if low && !acks.is_full() {
                    state.paused.remove(place);
                    go.add_partition(&place.topic, place.partition);
                }
            } else if full || acks.is_full() {
                state.paused.insert(place.clone());
                stop.add_partition(&place.topic, place.partition);
            }
        }
    }
    if stop.count() + go.count() == 0 {
        return;
    }
    let pausing = Arc::clone(consumer);
    shared
        .env
        .blocking("kafka pause", move || {
            for outcome in [pausing.pause(&stop), pausing.resume(&go)] {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "a partition was not paused or resumed");
                }
            }
        })
        .await;
}

/// Names in lower case, in a fixed order.
fn headers(message: &BorrowedMessage<'_>) -> Vec<(String, String)> {
    let text = |header: rdkafka::message::Header<'_, &[u8]>| {
        let value = header.value.map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default();
        (header.key.to_ascii_lowercase(), value)
    };
    let mut headers: Vec<(String, String)> =
        message.headers().map(|headers| headers.iter().map(text).collect()).unwrap_or_default();
    headers.sort();
    headers
}

/// Gives again what was dropped, or held for too long.
async fn watch(shared: &Arc<Shared>) {
    let ingress = &shared.ingress;
    loop {
        let sooner = ingress.sooner.notified();
        let now = shared.env.mono();
        let wait = {
            let mut state = ingress.state();
            loop {
                let Some((due, id)) = state.due.first().copied() else { break None };
                if due > now.0 {
                    break Some(due - now.0);
                }
                state.due.pop_first();
                if let Some(held) = state.held.get_mut(&id) {
                    held.due = None;
                    state.ready.push_back(id);
                    ingress.came.notify_one();
                }
            }
        };
        match wait {
            None => sooner.await,
            Some(wait) => {
                let due = shared.env.sleep(wait);
                tokio::select! {
                    biased;
                    () = sooner => {}
                    () = due => {}
                }
            }
        }
    }
}

/// Commits what is done with.
async fn commit(shared: &Arc<Shared>) {
    let mut dropped_at = shared.env.mono();
    loop {
        shared.env.sleep(shared.config.commit_every).await;
        shared.commit_now().await;
        if shared.env.mono().since(dropped_at) >= DROP_EVERY {
            dropped_at = shared.env.mono();
            shared.drop_done().await;
        }
    }
}

impl Shared {
    async fn commit_now(&self) {
        let Some(consumer) = self.ingress.consumer() else { return };
        let done = self.ingress.state().take_done(None);
        if done.is_empty() {
            return;
        }
        let list = commits(&done);
        let outcome = self.env.blocking("kafka commit", move || consumer.commit(&list, CommitMode::Sync)).await;
        if let Some(Err(error)) = outcome {
            tracing::debug!(%error, "what is done with is committed again");
            let mut state = self.ingress.state();
            for (place, _) in done {
                if let Some(acks) = state.partitions.get_mut(&place) {
                    acks.again();
                }
            }
        }
    }

    /// Drops from the topics of jobs what the group is done with.
    async fn drop_done(&self) {
        let done: Vec<(Place, i64)> = {
            let mut state = self.ingress.state();
            let done = state.partitions.iter_mut().filter_map(|(place, acks)| {
                let below = acks.committed();
                (below > std::mem::replace(&mut acks.dropped, below)).then(|| (place.clone(), below))
            });
            done.collect()
        };
        for (place, below) in done {
            if let Err(error) = self.drop_before(&place, below).await {
                tracing::debug!(%place, %error, "jobs that are done with stay in their topic");
            }
        }
    }

    /// Commits, and leaves the group, so that others get what is not done with at once.
    pub(super) async fn leave_ingress(&self) {
        self.commit_now().await;
        let consumer = self.ingress.consumer.lock().unwrap_or_else(PoisonError::into_inner).take();
        {
            let mut state = self.ingress.state();
            state.ready.clear();
            state.held.clear();
            state.due.clear();
            state.partitions.clear();
        }
        let Some(consumer) = consumer else { return };
        // The task that reads lets go of it when it ends; the last says good-bye, and this waits for it: a
        // process that ends before leaves its partitions to nobody until its session has run out.
        let (env, began) = (&self.env, self.env.mono());
        while Arc::strong_count(&consumer) > 1 && env.mono().since(began) < self.config.answer_timeout {
            env.sleep(LOOK / 10).await;
        }
        let gone = env.blocking("kafka group", move || drop(consumer));
        if env.timeout(self.config.answer_timeout, gone).await.is_none() {
            tracing::debug!("the brokers were not told that this process leaves the group of cells");
        }
    }
}

/// What nobody has acked, looked at and not taken.
pub(super) async fn look(shared: &Arc<Shared>, after: Seq, max: usize) -> Result<Vec<Unacked>> {
    unacked::look(shared, after, max).await
}
