//! How much is in the topics.

use std::collections::BTreeMap;

use super::Kafka;
use super::layout::Place;
use crate::contract::Result;

/// What a topic holds, over all its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFigures {
    /// Its name without the prefix: `queue-jobs`, `log`, ...; `jobs`: those of all tenants together.
    pub topic: String,
    /// How many partitions it has, of which something was told.
    pub partitions: u64,
    /// Offsets from the first that is kept to the end: messages, and what is void or a mark of the brokers.
    pub messages: u64,
    /// Offsets that were ever given out.
    pub end: u64,
}

/// What all topics hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Each topic, `jobs` first, without the tenants' topics of events.
    pub topics: Vec<TopicFigures>,
    /// Jobs of producers that are not acked.
    pub ingress: u64,
}

impl Kafka {
    /// What the topics hold. Partitions that nobody leads are left out.
    ///
    /// # Errors
    /// [`crate::contract::Error::Unavailable`] when there is no answer.
    pub async fn figures(&self) -> Result<Figures> {
        let shared = &self.shared;
        let (jobs, ingress) = shared.ingress_ends().await?;
        let topics = shared.layout.topics(&shared.config);
        let places: Vec<Place> = topics
            .iter()
            .flat_map(|topic| (0..i32::from(topic.partitions)).map(|partition| Place::new(&topic.name, partition)))
            .collect();
        let none = |topic: &str| TopicFigures { topic: topic.to_owned(), partitions: 0, messages: 0, end: 0 };
        let short = |name: &str| name[shared.config.prefix.len() + 1..].to_owned();
        let mut found: BTreeMap<String, TopicFigures> = BTreeMap::new();
        let mut all = none("jobs");
        for (place, ends) in jobs.into_iter().chain(shared.ends(&places).await?) {
            let topic = if shared.layout.tenant(&place.topic).is_some() {
                &mut all
            } else {
                let name = short(&place.topic);
                found.entry(name.clone()).or_insert_with(|| none(&name))
            };
            topic.partitions += 1;
            topic.messages += ends.messages();
            topic.end += u64::try_from(ends.high).unwrap_or(0);
        }
        Ok(Figures { topics: std::iter::once(all).chain(found.into_values()).collect(), ingress })
    }
}
