//! How full the streams of NATS are: the same from every process, asked of the server when metrics are read.

use std::sync::Arc;

use cellbus_bus::nats::{Nats, StreamFigures};
use prometheus::{IntGaugeVec, Registry};

use super::described::{Described, register, signed};

const MESSAGES: Described = Described::gauge(
    "cellbus_bus_stream_messages",
    "messages",
    &["stream"],
    "NATS: messages kept in each stream: jobs (not taken yet), events, snapshots, and each lane of queue_jobs, queue_control, log",
    "A lane that grows without end is pinned by a shard that cannot write snapshots: `cellbus shards`",
)
.of_cluster();
const BYTES: Described = Described::gauge(
    "cellbus_bus_stream_bytes",
    "bytes",
    &["stream"],
    "NATS: their size",
    "What the servers' disks must hold, times the replicas",
)
.of_cluster();
const BYTES_MAX: Described = Described::gauge(
    "cellbus_bus_stream_max_bytes",
    "bytes",
    &["stream"],
    "NATS: at how many bytes the stream is full and refuses; 0: no limit of its own",
    "Raise it (`nats.lane_size_max` and the like) before it is reached: a full stream stops work",
)
.of_cluster();
const FIRST: Described = Described::gauge(
    "cellbus_bus_stream_first_sequence",
    "sequences",
    &["stream"],
    "NATS: the lowest sequence kept: what is below was trimmed (lanes, snapshots), taken (jobs) or given up (events)",
    "One that stands still while the last one moves: nothing is trimmed",
)
.of_cluster();
const LAST: Described = Described::gauge(
    "cellbus_bus_stream_last_sequence",
    "sequences",
    &["stream"],
    "NATS: the last sequence given out",
    "Its rate is that of writing",
)
.of_cluster();
const OLDEST: Described = Described::gauge(
    "cellbus_bus_stream_oldest_timestamp_seconds",
    "seconds since 1970",
    &["stream"],
    "NATS: when the oldest message that is kept was written; 0 if there is none. For snapshots: the oldest snapshot",
    "`time() - x` of stream=\"jobs\" is how long the oldest job has waited for a cell",
)
.of_cluster();

pub(super) const ALL: &[Described] = &[MESSAGES, BYTES, BYTES_MAX, FIRST, LAST, OLDEST];

/// The gauges, and whom to ask.
pub(super) struct Streams {
    nats: Arc<Nats>,
    gauges: Gauges,
}

impl Streams {
    pub(super) fn new(registry: &Registry, nats: Arc<Nats>) -> prometheus::Result<Self> {
        Ok(Self { nats, gauges: Gauges::new(registry)? })
    }

    pub(super) async fn gather(&self) {
        match self.nats.figures().await {
            Ok(figures) => self.gauges.show(&figures),
            // That the bus does not answer is said by another metric.
            Err(error) => tracing::debug!(%error, "the streams could not be read for metrics"),
        }
    }
}

pub(super) struct Gauges {
    messages: IntGaugeVec,
    bytes: IntGaugeVec,
    bytes_max: IntGaugeVec,
    first: IntGaugeVec,
    last: IntGaugeVec,
    oldest: IntGaugeVec,
}

impl Gauges {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            messages: register(registry, MESSAGES.int_gauges())?,
            bytes: register(registry, BYTES.int_gauges())?,
            bytes_max: register(registry, BYTES_MAX.int_gauges())?,
            first: register(registry, FIRST.int_gauges())?,
            last: register(registry, LAST.int_gauges())?,
            oldest: register(registry, OLDEST.int_gauges())?,
        })
    }
    pub(super) fn show(&self, figures: &[StreamFigures]) {
        for of in figures {
            for (gauges, value) in [
                (&self.messages, of.messages),
                (&self.bytes, of.bytes),
                (&self.bytes_max, of.bytes_max.unwrap_or(0)),
                (&self.first, of.first_seq),
                (&self.last, of.last_seq),
                (&self.oldest, of.oldest_at.map_or(0, |at| at.0 / 1_000)),
            ] {
                gauges.with_label_values(&[of.stream.as_str()]).set(signed(value));
            }
        }
    }
}
