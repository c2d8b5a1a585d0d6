//! Figures of calls to cells in other processes.

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::described::{Described, register};

const CALLS_FAILED: Described = Described::counter(
    "cellbus_peers_calls_failed_total",
    "calls",
    &[],
    "Calls to other processes without answer",
    "A steady rate: a cell that is cut off or overloaded, or the members' certificates",
);
const POSTS_SENT: Described = Described::counter(
    "cellbus_peers_posts_sent_total",
    "posts",
    &[],
    "Posts that other processes have taken",
    "The traffic between cells",
);
const POSTS_DROPPED: Described = Described::counter(
    "cellbus_peers_posts_dropped_total",
    "posts",
    &["reason"],
    "Posts to other processes that were dropped, by reason: full, not_there, unreachable; whoever posted asks again",
    "Some at each takeover. A steady rate of full: the receiver is too slow",
);

pub(super) const ALL: &[Described] = &[CALLS_FAILED, POSTS_SENT, POSTS_DROPPED];
const REASONS: [&str; 3] = ["full", "not_there", "unreachable"];

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
            calls_failed: register(registry, CALLS_FAILED.int_counter())?,
            posts_sent: register(registry, POSTS_SENT.int_counter())?,
            posts_dropped: register(registry, POSTS_DROPPED.int_counters())?,
        };
        for reason in REASONS {
            metrics.dropped(reason, 0);
        }
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
        REASONS.iter().map(|r| self.posts_dropped.with_label_values(&[*r]).get()).sum()
    }
}
