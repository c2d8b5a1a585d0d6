//! Figures of certificates, tokens and handshakes.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

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
        let metrics = Self {
            broken: IntGaugeVec::new(
                Opts::new(
                    "cellbus_security_file_broken",
                    "1 while new files of this kind cannot be used and the old ones stay in force",
                ),
                &["files"],
            )?,
            reloaded: IntCounterVec::new(
                Opts::new("cellbus_security_files_read_total", "How often new files of this kind came into force"),
                &["files"],
            )?,
            handshakes_failed: IntCounter::new(
                "cellbus_tls_handshakes_failed_total",
                "Connections that did not become TLS: no client of ours, a wrong certificate, or too slow",
            )?,
        };
        registry.register(Box::new(metrics.broken.clone()))?;
        registry.register(Box::new(metrics.reloaded.clone()))?;
        registry.register(Box::new(metrics.handshakes_failed.clone()))?;
        Ok(metrics)
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
