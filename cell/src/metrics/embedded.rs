//! Figures of the embedded bus, read when metrics are.

use std::sync::Arc;

use cellbus_bus::embedded::Embedded;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge, Registry};

use super::described::{Described, signed};

const MESSAGES: Described = Described::counter(
    "cellbus_bus_messages_total",
    "messages",
    &[],
    "Embedded bus: messages made durable since the start",
    "The rate of writing",
);
const SYNCS: Described = Described::counter(
    "cellbus_bus_syncs_total",
    "flushes",
    &[],
    "Embedded bus: flushes to the disk since the start",
    "Messages for each flush say how well writes are grouped",
);
const MOVED: Described = Described::counter(
    "cellbus_bus_moved_bytes_total",
    "bytes",
    &[],
    "Embedded bus: bytes moved by cleaning since the start",
    "Far above what is written: little of the segments can be dropped",
);
const SEGMENTS: Described =
    Described::gauge("cellbus_bus_segments", "files", &[], "Embedded bus: segment files", "To see what a start reads");
const SEGMENT_BYTES: Described = Described::gauge(
    "cellbus_bus_segment_bytes",
    "bytes",
    &[],
    "Embedded bus: size of the segment files",
    "What it takes of the disk",
);
const LIVE_BYTES: Described = Described::gauge(
    "cellbus_bus_live_bytes",
    "bytes",
    &[],
    "Embedded bus: bytes of the segment files that are kept messages",
    "Grows with VMs and with jobs that are still listed (`jobs.retention`)",
);
const FREE_BYTES: Described = Described::gauge(
    "cellbus_bus_free_bytes",
    "bytes",
    &[],
    "Embedded bus: free space on the disk of the data directory",
    "Below `disk.free_min` jobs are refused: make room before",
);

pub(super) const ALL: &[Described] = &[MESSAGES, SYNCS, MOVED, SEGMENTS, SEGMENT_BYTES, LIVE_BYTES, FREE_BYTES];

/// Adds the figures of `bus` to a registry.
///
/// # Errors
/// When the registry has them already.
pub fn register(registry: &Registry, bus: Arc<Embedded>) -> prometheus::Result<()> {
    registry.register(Box::new(EmbeddedBus {
        bus,
        messages: MESSAGES.int_counter()?,
        syncs: SYNCS.int_counter()?,
        moved: MOVED.int_counter()?,
        segments: SEGMENTS.int_gauge()?,
        segment_bytes: SEGMENT_BYTES.int_gauge()?,
        live_bytes: LIVE_BYTES.int_gauge()?,
        free_bytes: FREE_BYTES.int_gauge()?,
    }))
}

struct EmbeddedBus {
    bus: Arc<Embedded>,
    messages: IntCounter,
    syncs: IntCounter,
    moved: IntCounter,
    segments: IntGauge,
    segment_bytes: IntGauge,
    live_bytes: IntGauge,
    free_bytes: IntGauge,
}

impl EmbeddedBus {
    fn all(&self) -> [&dyn Collector; 7] {
        [
            &self.messages,
            &self.syncs,
            &self.moved,
            &self.segments,
            &self.segment_bytes,
            &self.live_bytes,
            &self.free_bytes,
        ]
    }
}

impl Collector for EmbeddedBus {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }
    fn collect(&self) -> Vec<MetricFamily> {
        let stats = self.bus.stats();
        for (counter, now) in [
            (&self.messages, stats.messages_total),
            (&self.syncs, stats.syncs_total),
            (&self.moved, stats.moved_bytes_total),
        ] {
            // Two that are read at once may both add: the next reading is right again.
            counter.inc_by(now.saturating_sub(counter.get()));
        }
        for (gauge, now) in [
            (&self.segments, stats.segments),
            (&self.segment_bytes, stats.segment_bytes),
            (&self.live_bytes, stats.live_bytes),
            (&self.free_bytes, stats.free_bytes),
        ] {
            gauge.set(signed(now));
        }
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}
