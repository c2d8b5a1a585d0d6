//! Figures of the spans that go to a collector of traces.

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::described::{Described, register};

const EXPORTED: Described = Described::counter(
    "cellbus_trace_spans_exported_total",
    "spans",
    &[],
    "Spans of jobs that the collector (`trace.otlp.endpoint`) has taken",
    "None while jobs run: see the log for why the collector refuses",
);
const DROPPED: Described = Described::counter(
    "cellbus_trace_spans_dropped_total",
    "spans",
    &["reason"],
    "Spans that were dropped, by reason: full (the collector is too slow or away), refused (by the collector, or after several tries), unknown (no home said which trace they belong to); no work waits for them",
    "full: a lower `trace.otlp.ratio`, or a faster collector",
);

pub(super) const ALL: &[Described] = &[EXPORTED, DROPPED];

/// Why spans were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The queue had no room.
    Full,
    /// The collector did not take them.
    Refused,
    /// Which trace they belong to could not be asked.
    Unknown,
}
impl Dropped {
    const ALL: [Self; 3] = [Self::Full, Self::Refused, Self::Unknown];
    fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// Counters, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    exported: IntCounter,
    dropped: IntCounterVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has one of them already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            exported: register(registry, EXPORTED.int_counter())?,
            dropped: register(registry, DROPPED.int_counters())?,
        };
        Dropped::ALL.into_iter().for_each(|reason| metrics.dropped(reason, 0));
        Ok(metrics)
    }
    #[cfg(feature = "otlp")]
    pub(crate) fn exported(&self, spans: usize) {
        self.exported.inc_by(spans as u64);
    }
    pub(crate) fn dropped(&self, reason: Dropped, spans: usize) {
        self.dropped.with_label_values(&[reason.as_str()]).inc_by(spans as u64);
    }
    #[cfg(test)]
    pub(crate) fn count_dropped(&self, reason: Dropped) -> u64 {
        self.dropped.with_label_values(&[reason.as_str()]).get()
    }
}
