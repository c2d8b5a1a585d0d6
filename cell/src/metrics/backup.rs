//! Figures of scheduled backups.

use prometheus::{Gauge, IntCounter, IntGauge, Registry};

use super::described::{Described, register};
use crate::backup::Taken;

const TAKEN: Described = Described::counter(
    "cellbus_backups_taken_total",
    "backups",
    &[],
    "Scheduled backups that this process has taken",
    "To see that it takes any",
);
const FAILED: Described = Described::counter(
    "cellbus_backups_failed_total",
    "backups",
    &[],
    "Scheduled backups that failed",
    "Its log has the code; a full disk, or a bus that does not answer",
);
const LAST_AT: Described = Described::gauge(
    "cellbus_backup_last_timestamp_seconds",
    "seconds",
    &[],
    "When the last backup of this process was begun, since 1970; 0 before there is one",
    "Older than twice `backup.interval`: what is lost with the bus grows",
);
const LAST_BYTES: Described = Described::gauge("cellbus_backup_last_bytes", "bytes", &[], "Its size", "To size disks");
const LAST_TOOK: Described = Described::gauge(
    "cellbus_backup_last_duration_seconds",
    "seconds",
    &[],
    "How long it took",
    "Near `backup.interval`: take them less often",
);

pub(super) const ALL: &[Described] = &[TAKEN, FAILED, LAST_AT, LAST_BYTES, LAST_TOOK];

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    taken: IntCounter,
    failed: IntCounter,
    last_at: Gauge,
    last_bytes: IntGauge,
    last_took: Gauge,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has one of them already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            taken: register(registry, TAKEN.int_counter())?,
            failed: register(registry, FAILED.int_counter())?,
            last_at: register(registry, LAST_AT.float_gauge())?,
            last_bytes: register(registry, LAST_BYTES.int_gauge())?,
            last_took: register(registry, LAST_TOOK.float_gauge())?,
        })
    }
    pub(crate) fn taken(&self, taken: &Taken) {
        self.taken.inc();
        self.last_at.set(taken.at.0 as f64 / 1e3);
        self.last_bytes.set(i64::try_from(taken.summary.bytes).unwrap_or(i64::MAX));
        self.last_took.set(taken.took.as_secs_f64());
    }
    pub(crate) fn failed(&self) {
        self.failed.inc();
    }
}
