//! Topics and partitions: what is kept where.
//!
//! | topic | partitions | kept |
//! |---|---|---|
//! | `<p>.jobs.<tenant>` | as its maker wants | until a cell has acked it |
//! | `<p>.events.<tenant>` | as its maker wants | within limits |
//! | `<p>.queue-jobs`, `<p>.queue-control`, `<p>.log`, `<p>.snapshots` | one a shard | until trimmed |
//! | `<p>.snapshot-marks` | one | the last of each key |
//! | `<p>.members` | one | the last of each key, for some minutes |
//! | `<p>.cluster` | one | for ever |
//! | `<p>.events` | one | within limits |
//!
//! `<p>` is the prefix. A sequence is an offset and one.

use std::fmt;
use std::sync::Arc;

use crate::contract::{MESSAGE_BYTES_MAX, Queue, QueueKind};
use crate::ids::{Seq, ShardId};

use super::config::Config;

/// The layout that this build makes, and the newest that it knows. It stands beside the cluster record.
pub(super) const LAYOUT: u32 = 1;
/// What a topic must take as one message: the largest of ours, with room for its headers.
pub(super) const MESSAGE_BYTES: usize = MESSAGE_BYTES_MAX + (64 << 10);
/// A file of a partition. What is trimmed gives room back by whole files.
const SEGMENT_BYTES: &str = "67108864";
/// For ever.
const NEVER: &str = "-1";

/// A partition of a topic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
}

impl Place {
    pub(super) fn new(topic: &Arc<str>, partition: i32) -> Self {
        Self { topic: Arc::clone(topic), partition }
    }
}
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The sequence of the message at an offset.
pub(super) fn seq(offset: i64) -> Seq {
    Seq(u64::try_from(offset).map_or(0, |offset| offset.saturating_add(1)))
}
/// The offset of what comes after a sequence.
pub(super) fn after(seq: Seq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

/// A topic as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) partitions: u16,
    pub(super) settings: Vec<(&'static str, String)>,
}

/// Names of topics.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    prefix: String,
    queue_jobs: Arc<str>,
    queue_control: Arc<str>,
    log: Arc<str>,
    snapshots: Arc<str>,
    marks: Arc<str>,
    members: Arc<str>,
    cluster: Arc<str>,
    events: Arc<str>,
}

impl Layout {
    pub(super) fn new(config: &Config) -> Self {
        let name = |what: &str| Arc::from(format!("{}.{what}", config.prefix));
        Self {
            prefix: config.prefix.clone(),
            queue_jobs: name("queue-jobs"),
            queue_control: name("queue-control"),
            log: name("log"),
            snapshots: name("snapshots"),
            marks: name("snapshot-marks"),
            members: name("members"),
            cluster: name("cluster"),
            events: name("events"),
        }
    }

    pub(super) fn queue(&self, queue: Queue) -> Place {
        let topic = match queue.kind {
            QueueKind::Jobs => &self.queue_jobs,
            QueueKind::Control => &self.queue_control,
        };
        Place::new(topic, i32::from(queue.shard.index()))
    }
    pub(super) fn log(&self, shard: ShardId) -> Place {
        Place::new(&self.log, i32::from(shard.index()))
    }
    pub(super) fn snapshots(&self, shard: ShardId) -> Place {
        Place::new(&self.snapshots, i32::from(shard.index()))
    }
    pub(super) fn marks(&self) -> Place {
        Place::new(&self.marks, 0)
    }
    pub(super) fn members(&self) -> Place {
        Place::new(&self.members, 0)
    }
    pub(super) fn cluster(&self) -> Place {
        Place::new(&self.cluster, 0)
    }
    /// Events of all tenants, in one order.
    pub(super) fn events(&self) -> Place {
        Place::new(&self.events, 0)
    }

    /// The group of all cells that take producers' jobs.
    pub(super) fn group(&self) -> String {
        format!("{}.cells", self.prefix)
    }
    pub(super) fn ingress(&self, tenant: &str) -> Arc<str> {
        Arc::from(format!("{}.jobs.{tenant}", self.prefix))
    }
    /// All topics of jobs, as librdkafka wants a pattern.
    pub(super) fn ingress_pattern(&self) -> String {
        // A prefix has no character that means anything in a pattern.
        format!("^{}\\.jobs\\.[a-z0-9-]+$", self.prefix)
    }
    /// The tenant of a topic of jobs.
    pub(super) fn tenant<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic.strip_prefix(&self.prefix)?.strip_prefix(".jobs.")
    }
    pub(super) fn tenant_events(&self, tenant: &str) -> Arc<str> {
        Arc::from(format!("{}.events.{tenant}", self.prefix))
    }

    /// Every topic that is no tenant's.
    pub(super) fn topics(&self, config: &Config) -> Vec<Topic> {
        let topic = |name: &Arc<str>, partitions: u16, more: &[(&'static str, &str)]| {
            let mut settings = vec![
                ("max.message.bytes", MESSAGE_BYTES.to_string()),
                ("message.timestamp.type", "LogAppendTime".to_owned()),
                ("segment.bytes", SEGMENT_BYTES.to_owned()),
            ];
            settings.extend(durable(config));
            settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
            Topic { name: Arc::clone(name), partitions, settings }
        };
        let kept = [("cleanup.policy", "delete"), ("retention.ms", NEVER), ("retention.bytes", NEVER)];
        let by_key = [("cleanup.policy", "compact")];
        let beats = [("cleanup.policy", "compact,delete"), ("retention.ms", "600000"), ("segment.ms", "60000")];
        let mut topics: Vec<Topic> = [&self.queue_jobs, &self.queue_control, &self.log, &self.snapshots]
            .map(|name| topic(name, config.shards, &kept))
            .into();
        topics.push(topic(&self.marks, 1, &by_key));
        topics.push(topic(&self.members, 1, &beats));
        topics.push(topic(&self.cluster, 1, &kept));
        let mut events = topic(&self.events, 1, &[]);
        events.settings.extend(limited(config));
        topics.push(events);
        topics
    }

    /// A tenant's topic of jobs. Nothing is dropped from it by age or size: what a cell has acked is
    /// dropped by that cell.
    pub(super) fn tenant_jobs_topic(&self, config: &Config, tenant: &str) -> Topic {
        let mut settings = vec![
            ("max.message.bytes", MESSAGE_BYTES.to_string()),
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", NEVER.to_owned()),
            ("retention.bytes", NEVER.to_owned()),
            ("segment.bytes", SEGMENT_BYTES.to_owned()),
        ];
        settings.extend(durable(config));
        Topic { name: self.ingress(tenant), partitions: config.tenant_partitions, settings }
    }

    /// A tenant's topic of events, in one order.
    pub(super) fn tenant_events_topic(&self, config: &Config, tenant: &str) -> Topic {
        let mut settings = vec![("max.message.bytes", MESSAGE_BYTES.to_string())];
        settings.extend(durable(config));
        settings.extend(limited(config));
        Topic { name: self.tenant_events(tenant), partitions: 1, settings }
    }
}

/// Acknowledged is on a majority.
fn durable(config: &Config) -> Vec<(&'static str, String)> {
    vec![
        ("min.insync.replicas", (config.replicas / 2 + 1).to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
    ]
}

fn limited(config: &Config) -> Vec<(&'static str, String)> {
    vec![
        ("cleanup.policy", "delete".to_owned()),
        ("retention.ms", config.events_age_max.as_millis().to_string()),
        ("retention.bytes", config.events_bytes_max.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardCount;

    /// Producers' and operators' permissions and tools rest on these.
    #[test]
    fn topics_are_what_the_documents_say() {
        let config = Config::new(Vec::new());
        let layout = Layout::new(&config);
        let shard = ShardId::new(6, ShardCount::DEFAULT).unwrap();
        assert_eq!(&*layout.ingress("acme"), "cellbus.jobs.acme");
        assert_eq!(&*layout.tenant_events("acme"), "cellbus.events.acme");
        assert_eq!(layout.log(shard).to_string(), "cellbus.log[6]");
        assert_eq!(layout.queue(Queue { shard, kind: QueueKind::Jobs }).to_string(), "cellbus.queue-jobs[6]");
        assert_eq!(layout.tenant("cellbus.jobs.acme"), Some("acme"));
        assert_eq!(layout.tenant("cellbus.events.acme"), None);
        let names: Vec<String> = layout.topics(&config).iter().map(|topic| topic.name.to_string()).collect();
        assert_eq!(
            names,
            [
                "cellbus.queue-jobs",
                "cellbus.queue-control",
                "cellbus.log",
                "cellbus.snapshots",
                "cellbus.snapshot-marks",
                "cellbus.members",
                "cellbus.cluster",
                "cellbus.events",
            ]
        );
    }

    #[test]
    fn sequences_are_offsets_and_one() {
        assert_eq!((seq(0), seq(41), seq(-1)), (Seq(1), Seq(42), Seq::ZERO));
        assert_eq!((after(Seq::ZERO), after(Seq(42))), (0, 42));
    }
}
