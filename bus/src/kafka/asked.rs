//! What lies where, and what the group of cells is done with, asked for many partitions at once: a request
//! for each broker, however many partitions there are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::contract::Result;
use crate::env::Mono;

use super::client::Context;
use super::ingress::Done;
use super::layout::Place;
use super::{Shared, answer, client, closed, prepare};

/// The client that asks, and what it has heard of late.
#[derive(Default)]
pub(super) struct Asking {
    consumer: Mutex<Option<Arc<BaseConsumer<Context>>>>,
    partitions: tokio::sync::Mutex<Option<(Mono, Arc<Vec<Place>>)>>,
}

impl Asking {
    pub(super) fn take(&self) -> Option<Arc<BaseConsumer<Context>>> {
        self.consumer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The first offset that is kept, and the one after the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) low: i64,
    pub(super) high: i64,
}

impl Ends {
    pub(super) fn messages(self) -> u64 {
        u64::try_from(self.high - self.low).unwrap_or(0)
    }
}

/// What is asked of a client.
type Ask =
    fn(&BaseConsumer<Context>, TopicPartitionList, Duration) -> std::result::Result<TopicPartitionList, KafkaError>;

/// Whether an error passes by itself: the group's coordinator is being found, or a topic.
fn soon_answered(code: Code) -> bool {
    prepare::comes_soon(code)
        || matches!(
            code,
            Code::NotCoordinator
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::WaitingForCoordinator
        )
}

fn list<'a>(places: impl IntoIterator<Item = &'a Place>, offset: Offset) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for place in places {
        let mut row = list.add_partition(&place.topic, place.partition);
        // Those that are asked for here are within what Kafka takes.
        let _ = row.set_offset(offset);
    }
    list
}

impl Shared {
    /// Every partition of every topic of jobs.
    pub(super) async fn tenants_partitions(&self) -> Result<Vec<Place>> {
        let (admin, timeout) = (Arc::clone(&self.admin), self.config.answer_timeout);
        let asked = self.env.blocking("kafka metadata", move || admin.inner().fetch_metadata(None, timeout)).await;
        let metadata = asked.ok_or_else(closed)?.map_err(|error| answer::unavailable("ask for topics", &error))?;
        let mut places: Vec<Place> = Vec::new();
        for topic in metadata.topics() {
            if self.layout.tenant(topic.name()).is_some() {
                let name = Arc::from(topic.name());
                places.extend(topic.partitions().iter().map(|partition| Place::new(&name, partition.id())));
            }
        }
        places.sort();
        Ok(places)
    }

    /// The same, as old as what cells go by may be.
    async fn tenants_partitions_of_late(&self) -> Result<Arc<Vec<Place>>> {
        let mut known = self.asking.partitions.lock().await;
        if let Some((at, places)) = &*known
            && self.env.mono().since(*at) < self.config.discover_every
        {
            return Ok(Arc::clone(places));
        }
        let places = Arc::new(self.tenants_partitions().await?);
        *known = Some((self.env.mono(), Arc::clone(&places)));
        Ok(places)
    }

    /// Has a client ask, which is of the group of cells and does not join it; again while the brokers make up
    /// their minds who answers.
    async fn asked(&self, doing: &'static str, of: TopicPartitionList, ask: Ask) -> Result<TopicPartitionList> {
        let began = self.env.mono();
        loop {
            let known = self.asking.consumer.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (config, group, context) = (self.config.clone(), self.layout.group(), self.context.clone());
            let of = of.clone();
            let asked = self.env.blocking("kafka ask", move || {
                let consumer = match known {
                    Some(known) => known,
                    None => {
                        let told = client::ingress(&config, &group);
                        Arc::new(BaseConsumer::from_config_and_context(&told, context)?)
                    }
                };
                // Nobody else polls it, and it may want a new token. No message can come.
                drop(consumer.poll(Duration::ZERO));
                let answer = ask(&consumer, of, config.answer_timeout);
                Ok::<_, KafkaError>((consumer, answer))
            });
            let (consumer, answer) =
                asked.await.ok_or_else(closed)?.map_err(|error| answer::unavailable(doing, &error))?;
            if !self.closed.is_cancelled() {
                *self.asking.consumer.lock().unwrap_or_else(PoisonError::into_inner) = Some(consumer);
            }
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error)
                    if error.rdkafka_error_code().is_some_and(soon_answered)
                        && self.env.mono().since(began) < self.config.answer_timeout =>
                {
                    self.env.sleep(prepare::LOOK).await;
                }
                Err(error) => return Err(answer::unavailable(doing, &error)),
            }
        }
    }

    /// Lets go of the client.
    pub(super) async fn ask_no_more(&self) {
        if let Some(consumer) = self.asking.take() {
            self.env.blocking("kafka ask", move || drop(consumer)).await;
        }
    }

    /// What the group has committed, of those partitions of which it has committed something.
    pub(super) async fn done_of(&self, places: &[Place]) -> Result<BTreeMap<Place, Done>> {
        if places.is_empty() {
            return Ok(BTreeMap::new());
        }
        let asked = list(places, Offset::Invalid);
        let list = self.asked("ask what is done", asked, |consumer, of, limit| consumer.committed_offsets(of, limit));
        let mut done = BTreeMap::new();
        for row in list.await?.elements() {
            if let Offset::Offset(below) = row.offset() {
                done.insert(Place::new(&Arc::from(row.topic()), row.partition()), Done::read(below, row.metadata()));
            }
        }
        Ok(done)
    }

    /// One end of each partition; those that nobody leads are left out.
    async fn one_end(&self, places: &[Place], end: Offset) -> Result<BTreeMap<Place, i64>> {
        if places.is_empty() {
            return Ok(BTreeMap::new());
        }
        let asked = list(places, end);
        let list = self.asked("ask for the ends", asked, |consumer, of, limit| consumer.offsets_for_times(of, limit));
        let list = list.await?;
        let rows = list.elements();
        let found = rows.iter().filter_map(|row| match (row.error(), row.offset()) {
            (Ok(()), Offset::Offset(offset)) => Some((Place::new(&Arc::from(row.topic()), row.partition()), offset)),
            _ => None,
        });
        Ok(found.collect())
    }

    /// Both ends of each partition; those that nobody leads are left out.
    pub(super) async fn ends(&self, places: &[Place]) -> Result<BTreeMap<Place, Ends>> {
        let high = self.one_end(places, Offset::End).await?;
        let low = self.one_end(places, Offset::Beginning).await?;
        let both = |(place, high): (Place, i64)| {
            let low = low.get(&place).copied()?;
            Some((place, Ends { low, high }))
        };
        Ok(high.into_iter().filter_map(both).collect())
    }

    /// Both ends of all topics of jobs, and how many jobs in them are not acked.
    pub(super) async fn ingress_ends(&self) -> Result<(BTreeMap<Place, Ends>, u64)> {
        self.reachable()?;
        let places = self.tenants_partitions_of_late().await?;
        // First what is done: what comes meanwhile is not done with.
        let done = self.done_of(&places).await?;
        let ends = self.ends(&places).await?;
        let open = ends.iter().map(|(place, ends)| {
            let Some(done) = done.get(place) else { return ends.messages() };
            let beyond = u64::try_from(ends.high - done.below.max(ends.low)).unwrap_or(0);
            beyond.saturating_sub(u64::try_from(done.also.len()).unwrap_or(0))
        });
        let open = open.sum();
        Ok((ends, open))
    }
}
