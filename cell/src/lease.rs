//! The lease of a cell on its membership: until when it may act, by its own monotonic clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cellbus_bus::Mono;
use tokio::sync::Notify;

/// A cell's lease. Shared by its runners, which stop acting when it has run out.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// In nanoseconds of the monotonic clock; zero: never held.
    until: AtomicU64,
    /// How often it has run out. A shard that was opened before the last time must be claimed anew.
    lapses: AtomicU64,
    renewed: Notify,
}

impl Lease {
    /// Held until then, counted from before the beat was sent: others cannot think it over earlier.
    pub(crate) fn renew(&self, until: Mono) {
        self.until.store(nanos(until.0), Ordering::Release);
        self.renewed.notify_waiters();
    }
    /// Given up: nobody acts under it any more.
    pub(crate) fn end(&self) {
        self.until.store(0, Ordering::Release);
    }
    /// It has run out: whoever acts under it claims anew, however soon it is renewed.
    pub(crate) fn lapse(&self) {
        self.lapses.fetch_add(1, Ordering::AcqRel);
    }
    /// How often it has run out.
    pub(crate) fn lapses(&self) -> u64 {
        self.lapses.load(Ordering::Acquire)
    }
    /// Whether it is held at this time.
    pub(crate) fn held(&self, now: Mono) -> bool {
        nanos(now.0) < self.until.load(Ordering::Acquire)
    }
    /// How long it is still held.
    pub(crate) fn left(&self, now: Mono) -> Duration {
        Duration::from_nanos(self.until.load(Ordering::Acquire)).saturating_sub(now.0)
    }
    /// Waits for the next renewal.
    pub(crate) async fn renewed(&self) {
        self.renewed.notified().await
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
