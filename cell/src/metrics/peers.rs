//! Figures of calls to cells in other processes.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Counters, cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    calls_failed: IntCounter,
    posts_sent: IntCounter,
    posts_dropped: IntCounterVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has one of them already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            calls_failed: IntCounter::new(
                "cellbus_peers_calls_failed_total",
                "Calls to other processes without answer",
            )?,
            posts_sent: IntCounter::new("cellbus_peers_posts_sent_total", "Posts that other processes have taken")?,
            posts_dropped: IntCounterVec::new(
                Opts::new("cellbus_peers_posts_dropped_total", "Posts to other processes that were dropped, by reason"),
                &["reason"],
            )?,
        };
        registry.register(Box::new(metrics.calls_failed.clone()))?;
        registry.register(Box::new(metrics.posts_sent.clone()))?;
        registry.register(Box::new(metrics.posts_dropped.clone()))?;
        Ok(metrics)
    }
    pub(crate) fn failed(&self) {
        self.calls_failed.inc();
    }
    pub(crate) fn sent(&self, count: usize) {
        self.posts_sent.inc_by(count as u64);
    }
    pub(crate) fn dropped(&self, reason: &'static str, count: usize) {
        self.posts_dropped.with_label_values(&[reason]).inc_by(count as u64);
    }
    /// How many were dropped, whatever the reason.
    #[must_use]
    pub fn posts_dropped(&self) -> u64 {
        ["full", "not_there", "unreachable"].iter().map(|r| self.posts_dropped.with_label_values(&[*r]).get()).sum()
    }
}
