//! Figures of the embedded bus, read when metrics are.

use std::sync::Arc;

use cellbus_bus::embedded::Embedded;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge, Registry};

/// Adds the figures of `bus` to a registry.
///
/// # Errors
/// When the registry has them already.
pub fn register(registry: &Registry, bus: Arc<Embedded>) -> prometheus::Result<()> {
    registry.register(Box::new(EmbeddedBus {
        bus,
        messages: IntCounter::new("cellbus_bus_messages_total", "Messages made durable since the start")?,
        syncs: IntCounter::new("cellbus_bus_syncs_total", "Flushes to the disk since the start")?,
        moved: IntCounter::new("cellbus_bus_moved_bytes_total", "Bytes moved by cleaning since the start")?,
        segments: IntGauge::new("cellbus_bus_segments", "Segment files")?,
        segment_bytes: IntGauge::new("cellbus_bus_segment_bytes", "Size of the segment files")?,
        live_bytes: IntGauge::new("cellbus_bus_live_bytes", "Bytes of the segment files that are kept messages")?,
        free_bytes: IntGauge::new("cellbus_bus_free_bytes", "Free space on the disk of the data directory")?,
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
            gauge.set(i64::try_from(now).unwrap_or(i64::MAX));
        }
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}
