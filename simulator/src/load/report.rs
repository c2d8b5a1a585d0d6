//! What a run comes to: the one JSON object of `demo` and `load` (ops/docs/interface.md).

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::latencies::Latencies;
use super::marks::Mark;
use super::series::Series;
use super::verdict::{Check, Outcome};

/// The result of a run. Serialises to the object that scripts read; fields are only ever added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Hosts of the cluster.
    pub hosts: u64,
    /// Managers of the cluster.
    pub managers: u64,
    /// The most cells seen at once.
    pub cells_peak: u64,
    /// Jobs that the cluster acknowledged.
    pub jobs_submitted: u64,
    /// Of these, ended as asked.
    pub jobs_succeeded: u64,
    /// Of these, ended otherwise (cancelled ones too).
    pub jobs_failed: u64,
    /// VMs that were made.
    pub vms_created: u64,
    /// VMs of this run that are there more than once.
    pub duplicates: u64,
    /// Acknowledged jobs without an outcome, and VMs that were made and are not there.
    pub lost: u64,
    /// VMs that the directory has (deleted ones not counted).
    pub directory_entries: u64,
    /// Differences between directory and managers.
    pub directory_mismatches: u64,
    /// From the first submission to the last outcome.
    pub wall_seconds: f64,
    /// Jobs that ended, by that time.
    pub jobs_per_second: f64,
    /// From when a job was due to its outcome.
    pub latency_ms: LatencyMs,
    /// VMs located a second, in calls of up to 10,000.
    pub lookups_per_second: f64,
    /// The server's peak.
    pub rss_mib: u64,

    // ── beside the published fields ──
    /// Cells when the run began, and when what the autoscaler had added was gone again; left out where
    /// that was not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cells_start: Option<u64>,
    /// See `cells_start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cells_end: Option<u64>,
    /// VMs that were deleted again.
    pub vms_deleted: u64,
    /// Jobs that were refused, and not counted above.
    pub jobs_refused: u64,
    /// Jobs that had not ended when the run was broken off.
    pub jobs_unfinished: u64,
    /// Of `lost`: acknowledged jobs without an outcome.
    pub jobs_lost: u64,
    /// Of `lost`: VMs that are not there.
    pub vms_missing: u64,
    /// VMs of this run that are there and should not be: deleted, or never known to be made.
    pub vms_unexpected: u64,
    /// Tasks that could not be asked for, as the create that they needed failed.
    pub skipped: u64,
    /// Failures and refusals by code, with the words of the first.
    pub failures: BTreeMap<String, Failures>,
    /// Whether the run was broken off.
    pub interrupted: bool,
    /// What could not be checked, and why; empty if all was.
    pub unchecked: Vec<String>,
    /// Operations that were sent as creates, as no VM was free for them when they were due.
    pub turned: u64,
    /// How long jobs waited in the harness, from when they were due until they were handed to a
    /// connection; nothing where jobs have no time.
    pub late_ms: LatencyMs,
    /// The most jobs without an outcome at one time.
    pub in_flight_max: u64,
    /// How many there may be.
    pub in_flight_limit: u64,
    /// For how long that limit held up jobs which were due.
    pub limit_reached_seconds: f64,
    /// By type of job.
    pub by_type: BTreeMap<String, Tally>,
    /// By tenant.
    pub by_tenant: BTreeMap<String, Tally>,
    /// The version of the server, where it says one.
    pub server_version: Option<String>,
    /// What was checked, and what came of it.
    pub checks: Vec<Check>,
    /// How it went, moment by moment: written by [`super::Recording`], not for scripts.
    #[serde(skip)]
    pub details: Details,
}

/// How a run went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// Moment by moment.
    pub series: Series,
    /// Latencies of each type of job.
    pub latency_by_type: BTreeMap<String, Latencies>,
    /// What happened to the cluster meanwhile.
    pub marks: Vec<Mark>,
    /// As much more happened, and is not kept.
    pub marks_dropped: u64,
}

/// What became of some of the jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Ended as asked.
    pub succeeded: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// From when a job was due to its outcome, to 1 %.
    pub latency_ms: LatencyMs,
}

/// Failures of one code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// What the first said.
    pub first: String,
}

/// Percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyMs {
    /// Half are faster.
    pub p50: f64,
    /// Nine of ten are faster.
    pub p90: f64,
    /// 99 of 100 are faster.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

impl Report {
    /// Whether all went as asked and all was checked and found right.
    #[must_use]
    pub fn clean(&self) -> bool {
        let wrong = [
            self.jobs_failed,
            self.jobs_refused,
            self.jobs_unfinished,
            self.skipped,
            self.lost,
            self.duplicates,
            self.directory_mismatches,
            self.vms_unexpected,
        ];
        let failed = self.checks.iter().any(|check| check.outcome == Outcome::Failed);
        wrong.iter().all(|count| *count == 0) && !failed && !self.interrupted && self.unchecked.is_empty()
    }
}

impl From<&Latencies> for LatencyMs {
    fn from(latencies: &Latencies) -> Self {
        let at = |part| latencies.at(part).unwrap_or_default();
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

/// Times of a run, to three digits, up to a day.
pub(super) struct Exact(Histogram<u64>);

impl Exact {
    pub(super) fn new() -> Self {
        const DAY_MICROS: u64 = 24 * 3600 * 1_000_000;
        Self(Histogram::new_with_bounds(1, DAY_MICROS, 3).expect("these bounds make a histogram"))
    }
    pub(super) fn add(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }
    pub(super) fn millis(&self) -> LatencyMs {
        if self.0.is_empty() {
            return LatencyMs::default();
        }
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e3;
        LatencyMs { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: self.0.max() as f64 / 1e3 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_fields_are_there() {
        let value = serde_json::to_value(Report::default()).unwrap();
        for field in [
            "hosts",
            "managers",
            "cells_peak",
            "jobs_submitted",
            "jobs_succeeded",
            "jobs_failed",
            "vms_created",
            "duplicates",
            "lost",
            "directory_entries",
            "directory_mismatches",
            "wall_seconds",
            "jobs_per_second",
            "latency_ms",
            "lookups_per_second",
            "rss_mib",
        ] {
            assert!(value.get(field).is_some(), "{field}");
        }
        for field in ["p50", "p90", "p99", "max"] {
            assert!(value["latency_ms"][field].is_number(), "{field}");
        }
        assert!(Report::default().clean());
        assert!(!Report { lost: 1, ..Report::default() }.clean());
    }

    #[test]
    fn percentiles_are_in_milliseconds() {
        let mut latencies = Exact::new();
        for millis in 1..=1_000 {
            latencies.add(Duration::from_millis(millis));
        }
        let said = latencies.millis();
        assert!(
            (said.p50 - 500.0).abs() < 2.0 && (said.p99 - 990.0).abs() < 2.0 && (said.max - 1_000.0).abs() < 2.0,
            "{said:?}"
        );
        latencies.add(Duration::from_secs(1 << 40));
        assert!(latencies.millis().max > 8e7, "what is beyond a day counts as a day");
    }
}
