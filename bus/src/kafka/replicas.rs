//! Why a write got no answer. A client tries again for as long as too few brokers have a partition in
//! sync, or none leads it, and in the end says no more than that it waited; so the brokers are asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::env::Mono;

use super::Shared;
use super::layout::Place;

/// Writes fail in crowds; one answer does for so long.
const FRESH: Duration = Duration::from_secs(1);

/// What was seen last, and when.
#[derive(Default)]
pub(super) struct Seen(tokio::sync::Mutex<Option<(Mono, Arc<BTreeMap<String, Vec<Partition>>>)>>);

#[derive(Clone, Copy, Debug)]
struct Partition {
    id: i32,
    led: bool,
    in_sync: usize,
    replicas: usize,
}

impl Shared {
    /// In words, with a code, whether a partition has too few replicas to be written to.
    pub(super) async fn short_of_replicas(&self, place: &Place) -> Option<String> {
        let seen = self.partitions_seen().await?;
        // Of a message that found no partition any may be the cause.
        let mut partitions =
            seen.get(&*place.topic)?.iter().filter(|partition| place.partition < 0 || partition.id == place.partition);
        let wanted = usize::from(self.config.replicas / 2 + 1);
        partitions.find_map(|partition| {
            let Partition { id, led, in_sync, replicas } = *partition;
            let topic = &place.topic;
            if !led {
                return Some(format!(
                    "no broker that may lead {topic}[{id}] is up, of {replicas} that have it (kafka_not_enough_replicas)"
                ));
            }
            (in_sync < wanted.min(replicas)).then(|| {
                format!(
                    "{in_sync} of {replicas} brokers have {topic}[{id}] in sync, and min.insync.replicas wants {wanted} \
                     (kafka_not_enough_replicas)"
                )
            })
        })
    }

    async fn partitions_seen(&self) -> Option<Arc<BTreeMap<String, Vec<Partition>>>> {
        let mut seen = self.replicas.0.lock().await;
        if let Some((at, known)) = &*seen
            && self.env.mono().since(*at) < FRESH
        {
            return Some(Arc::clone(known));
        }
        let (admin, timeout) = (Arc::clone(&self.admin), self.config.answer_timeout);
        let asked = self.env.blocking("kafka metadata", move || admin.inner().fetch_metadata(None, timeout)).await;
        let metadata = asked?.ok()?;
        let partitions = |topic: &rdkafka::metadata::MetadataTopic| {
            let partitions = topic.partitions().iter().map(|partition| Partition {
                id: partition.id(),
                led: partition.leader() >= 0,
                in_sync: partition.isr().len(),
                replicas: partition.replicas().len(),
            });
            (topic.name().to_owned(), partitions.collect())
        };
        let known = Arc::new(metadata.topics().iter().map(partitions).collect::<BTreeMap<_, _>>());
        *seen = Some((self.env.mono(), Arc::clone(&known)));
        Some(known)
    }
}
