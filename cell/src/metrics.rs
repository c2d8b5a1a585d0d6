//! The metrics of a process: names with units, labels of fixed cardinality, one registry.
//!
//! What is counted as it happens is here as counters and histograms; what is true at a moment
//! (queue depths, states of managers) is asked for when `/metrics` is read. Never a VM, job,
//! tenant or host as a label.

pub mod embedded;
mod memory;
pub mod peers;
pub mod security;

use std::time::Duration;

use cellbus_workflows::Health;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::http::Api;

/// Resources of the HTTP API, as the label `resource`.
const RESOURCES: &[&str] = &[
    "jobs",
    "vms",
    "locate",
    "explain",
    "cells",
    "shards",
    "managers",
    "hosts",
    "queue",
    "scale",
    "upgrade",
    "dead-letters",
    "audit",
    "events",
    "changes",
    "log",
    "openapi.json",
];

/// Metrics of one process. Cheap calls from many tasks at once.
pub struct Metrics {
    registry: Registry,
    requests_total: IntCounterVec,
    request_seconds: HistogramVec,
    locate_seconds: Histogram,
    locate_ok: prometheus::IntCounter,
    connections: IntGauge,
    intake_jobs_total: IntCounterVec,
    event_readers: IntGauge,
    bus_losses: IntGauge,
    shards_behind: IntGauge,
    shards_unreadable: IntGauge,
    vms: IntGaugeVec,
    queue_jobs: IntGaugeVec,
    dead_letters: IntGauge,
    shards_unknown: IntGauge,
    oldest_waiting_timestamp_seconds: IntGauge,
    managers: IntGaugeVec,
    cells: IntGauge,
    cells_desired: IntGauge,
    cells_draining: IntGauge,
    resident_bytes: IntGauge,
    resident_peak_bytes: IntGauge,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has one of them already: one registry a process, one set a registry.
    pub fn new(registry: Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        // 100 us to 100 s: from a look-up to a wait.
        let buckets = prometheus::exponential_buckets(0.000_1, 10_f64.sqrt(), 13)?;
        let request_seconds = HistogramVec::new(
            HistogramOpts::new("cellbus_http_request_seconds", "Time to answer, by resource").buckets(buckets),
            &["resource"],
        )?;
        registry.register(Box::new(request_seconds.clone()))?;
        let requests_total = counter(
            "cellbus_http_requests_total",
            "Requests answered, by resource and class of status",
            &["resource", "status"],
        )?;
        Ok(Self {
            locate_seconds: request_seconds.with_label_values(&["locate"]),
            locate_ok: requests_total.with_label_values(&["locate", "2xx"]),
            requests_total,
            request_seconds,
            connections: gauge("cellbus_http_connections", "Connections held")?,
            intake_jobs_total: counter(
                "cellbus_intake_jobs_total",
                "Jobs that came in, by what became of them at the door",
                &["result"],
            )?,
            event_readers: gauge("cellbus_http_event_readers", "Readers of /v1/events")?,
            shards_behind: gauge(
                "cellbus_directory_shards_behind",
                "Shards of which this process's directory has not read all that their owners in other processes had written when they were last asked.",
            )?,
            shards_unreadable: gauge(
                "cellbus_shards_unreadable",
                "Shards that this process's cells should own and cannot, since a newer build has written to them",
            )?,
            bus_losses: gauge(
                "cellbus_bus_losses",
                "Times that this process found the bus to have lost what it had acknowledged; its log says what to do",
            )?,
            vms: gauges("cellbus_directory_vms", "VMs in this process's directory, by state", &["state"])?,
            queue_jobs: gauges("cellbus_queue_jobs", "Jobs and work over all shards, by where they are", &["stage"])?,
            dead_letters: gauge("cellbus_dead_letters", "Dead letters kept")?,
            shards_unknown: gauge("cellbus_shards_unknown", "Shards that could not be asked when this was read")?,
            oldest_waiting_timestamp_seconds: gauge(
                "cellbus_queue_oldest_waiting_timestamp_seconds",
                "When the oldest work that has not started was accepted; 0 if there is none",
            )?,
            managers: gauges("cellbus_managers", "Managers, by health", &["health"])?,
            cells: gauge("cellbus_cells", "Live cells")?,
            cells_desired: gauge("cellbus_cells_desired", "Cells that there are to be, as was decided last")?,
            cells_draining: gauge("cellbus_cells_draining", "Live cells that hand their shards over")?,
            resident_bytes: gauge("process_resident_memory_bytes", "Memory that this process has resident")?,
            resident_peak_bytes: gauge(
                "cellbus_process_resident_memory_peak_bytes",
                "The most memory that this process has had resident",
            )?,
            registry,
        })
    }

    /// The registry, for other parts' metrics.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A request was answered.
    pub(crate) fn request(&self, path: &str, status: u16, took: Duration) {
        let resource = resource(path);
        if resource == "locate" && status == 200 {
            // The busiest of all: its handles are at hand.
            self.locate_ok.inc();
            self.locate_seconds.observe(took.as_secs_f64());
            return;
        }
        let class = match status {
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.requests_total.with_label_values(&[resource, class]).inc();
        self.request_seconds.with_label_values(&[resource]).observe(took.as_secs_f64());
    }
    /// Jobs came in.
    pub(crate) fn intake(&self, result: &'static str, count: usize) {
        if count > 0 {
            self.intake_jobs_total.with_label_values(&[result]).inc_by(count as u64);
        }
    }
    pub(crate) fn connections(&self, change: i64) {
        self.connections.add(change);
    }
    pub(crate) fn event_readers(&self, now: usize) {
        self.event_readers.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    /// Asks for what is true now. What cannot be had keeps its last value, and `shards_unknown`
    /// or the log says so.
    pub(crate) async fn gather_cluster(&self, api: &dyn Api) {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.bus_losses.set(signed(api.bus_losses()));
        self.shards_behind.set(signed(api.shards_behind() as u64));
        self.shards_unreadable.set(signed(api.shards_unreadable() as u64));
        for (state, count) in api.vm_counts() {
            self.vms.with_label_values(&[state.as_str()]).set(signed(count as u64));
        }
        match api.queue().await {
            Ok(queue) => {
                for (stage, count) in [
                    ("unread", queue.unread),
                    ("control_unread", queue.control_unread),
                    ("waiting", queue.waiting),
                    ("waiting_for_managers", queue.waiting_for_managers),
                    ("running", queue.running),
                    ("parked", queue.parked),
                    ("open", queue.jobs_open),
                ] {
                    self.queue_jobs.with_label_values(&[stage]).set(signed(count));
                }
                self.dead_letters.set(signed(queue.dead_letters));
                self.shards_unknown.set(i64::from(queue.shards_unknown));
                self.oldest_waiting_timestamp_seconds.set(queue.oldest_waiting_at.map_or(0, |at| signed(at.0 / 1_000)));
            }
            Err(error) => tracing::debug!(%error, "the queue could not be read for metrics"),
        }
        match api.managers().await {
            Ok(managers) => {
                for (health, name) in
                    [(Health::Unknown, "unknown"), (Health::Healthy, "healthy"), (Health::CircuitOpen, "circuit_open")]
                {
                    let count = managers.iter().filter(|row| row.health == health).count();
                    self.managers.with_label_values(&[name]).set(signed(count as u64));
                }
            }
            Err(error) => tracing::debug!(%error, "managers could not be read for metrics"),
        }
        match api.cells().await {
            Ok(cells) => self.cells.set(signed(cells.len() as u64)),
            Err(error) => tracing::debug!(%error, "cells could not be read for metrics"),
        }
    }

    /// How many cells there are to be, as [`Metrics::gather_cluster`].
    pub(crate) async fn gather_scale(&self, api: &dyn Api) {
        match api.scale().await {
            Ok(scale) => {
                let desired = scale.kept.decisions.back().map_or(scale.cells_active, |last| last.desired);
                self.cells_desired.set(i64::from(desired));
                self.cells_draining.set(i64::from(scale.cells_draining));
            }
            Err(error) => tracing::debug!(%error, "how many cells there are to be could not be read for metrics"),
        }
    }

    /// Prometheus' text format.
    ///
    /// # Errors
    /// When a metric of the registry cannot be written.
    pub(crate) fn text(&self) -> prometheus::Result<String> {
        if let Some((now, peak)) = memory::resident() {
            self.resident_bytes.set(now);
            self.resident_peak_bytes.set(peak);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Of a path: one of a fixed set, whatever was asked for.
fn resource(path: &str) -> &'static str {
    match path.strip_prefix("/v1/") {
        Some(rest) => {
            let first = rest.split('/').next().unwrap_or_default();
            RESOURCES.iter().find(|known| **known == first).copied().unwrap_or("other")
        }
        None => match path {
            path if path.starts_with("/members/") => "members",
            "/metrics" => "metrics",
            "/healthz" => "healthz",
            "/readyz" => "readyz",
            _ => "other",
        },
    }
}
