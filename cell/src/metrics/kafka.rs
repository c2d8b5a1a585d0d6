//! How much is in the topics of Kafka: the same from every process, asked of the brokers when metrics are read.

use std::sync::Arc;

use cellbus_bus::kafka::{Figures, Kafka};
use prometheus::{IntGauge, IntGaugeVec, Registry};

use super::described::{Described, register, signed};

const MESSAGES: Described = Described::gauge(
    "cellbus_bus_topic_messages",
    "offsets",
    &["topic"],
    "Kafka: from the first offset kept to the end, over all partitions of each topic: jobs (all tenants), queue-jobs, queue-control, log, snapshots, ...",
    "One that grows without end is not trimmed: a shard that cannot write snapshots (`cellbus shards`), or no right to delete records",
)
.of_cluster();
const END: Described = Described::gauge(
    "cellbus_bus_topic_end_offset",
    "offsets",
    &["topic"],
    "Kafka: offsets ever given out, over all partitions of each topic",
    "Its rate is that of writing",
)
.of_cluster();
const LAG: Described = Described::gauge(
    "cellbus_bus_ingress_lag",
    "jobs",
    &[],
    "Kafka: producers' jobs that no cell has acked; the lag of the group, without what is acked out of order",
    "It grows where cells do not keep up; the autoscaler counts it as unread",
)
.of_cluster();

pub(super) const ALL: &[Described] = &[MESSAGES, END, LAG];

/// The gauges, and whom to ask.
pub(super) struct Topics {
    kafka: Arc<Kafka>,
    gauges: Gauges,
}

impl Topics {
    pub(super) fn new(registry: &Registry, kafka: Arc<Kafka>) -> prometheus::Result<Self> {
        Ok(Self { kafka, gauges: Gauges::new(registry)? })
    }

    pub(super) async fn gather(&self) {
        match self.kafka.figures().await {
            Ok(figures) => self.gauges.show(&figures),
            // That the bus does not answer is said by another metric.
            Err(error) => tracing::debug!(%error, "the topics could not be read for metrics"),
        }
    }
}

pub(super) struct Gauges {
    messages: IntGaugeVec,
    end: IntGaugeVec,
    lag: IntGauge,
}

impl Gauges {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            messages: register(registry, MESSAGES.int_gauges())?,
            end: register(registry, END.int_gauges())?,
            lag: register(registry, LAG.int_gauge())?,
        })
    }
    pub(super) fn show(&self, figures: &Figures) {
        for of in &figures.topics {
            self.messages.with_label_values(&[of.topic.as_str()]).set(signed(of.messages));
            self.end.with_label_values(&[of.topic.as_str()]).set(signed(of.end));
        }
        self.lag.set(signed(figures.ingress));
    }
}
