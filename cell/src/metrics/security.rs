//! Figures of certificates, tokens and handshakes.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Registry};

use super::described::{Described, register};

const BROKEN: Described = Described::gauge(
    "cellbus_security_file_broken",
    "0 or 1",
    &["files"],
    "1 while new files of this kind (tls, tokens, members, collector) cannot be used and the old ones stay in force",
    "The log says what is wrong with them: mend them before the old certificate runs out",
);
const READ: Described = Described::counter(
    "cellbus_security_files_read_total",
    "readings",
    &["files"],
    "How often new files of this kind came into force",
    "To see that a renewed certificate has arrived",
);
const HANDSHAKES_FAILED: Described = Described::counter(
    "cellbus_tls_handshakes_failed_total",
    "connections",
    &[],
    "Connections that did not become TLS: no client of ours, a wrong certificate, or too slow",
    "Some are port scanners. A jump after a renewal: callers have the old CA",
);

pub(super) const ALL: &[Described] = &[BROKEN, READ, HANDSHAKES_FAILED];

/// Counters, cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    broken: IntGaugeVec,
    reloaded: IntCounterVec,
    handshakes_failed: IntCounter,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has one of them already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            broken: register(registry, BROKEN.int_gauges())?,
            reloaded: register(registry, READ.int_counters())?,
            handshakes_failed: register(registry, HANDSHAKES_FAILED.int_counter())?,
        })
    }
    pub(crate) fn broken(&self, files: &'static str, broken: bool) {
        self.broken.with_label_values(&[files]).set(i64::from(broken));
    }
    pub(crate) fn reloaded(&self, files: &'static str) {
        self.reloaded.with_label_values(&[files]).inc();
    }
    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }
}
