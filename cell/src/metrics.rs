//! The metrics of a process: names with units, labels of fixed cardinality, one page of them
//! (`ops/docs/metrics.md`), made from what is registered.
//!
//! What is counted as it happens is here as counters and histograms; what is true at a moment
//! (queue depths, states of managers) is asked for when `/metrics` is read. Never a VM, job,
//! tenant or host as a label; a manager only from the process that fronts it.

pub mod backup;
mod cluster;
mod described;
pub mod embedded;
mod kafka;
mod managers;
mod memory;
mod nats;
pub mod peers;
pub mod security;
#[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "nobody takes the spans"))]
pub(crate) mod spans;
#[cfg(test)]
mod tests;
pub(crate) mod work;

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::kafka::Kafka;
use cellbus_bus::nats::Nats;
use prometheus::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

use crate::gateway::ManagerRow;
use crate::http::Api;
use described::{register, signed};

pub use described::{Described, Kind, Scope};

const REQUESTS: Described = Described::counter(
    "cellbus_http_requests_total",
    "requests",
    &["resource", "status"],
    "Requests answered, by resource and class of status (2xx, 3xx, 4xx, 5xx)",
    "5xx: the bodies have codes, see ops/docs/errors/",
);
const REQUEST_SECONDS: Described = Described::histogram(
    "cellbus_http_request_seconds",
    "seconds",
    &["resource"],
    "Time to answer, by resource; locate is the latency of look-ups, events and jobs hold calls that wait",
    "Slow look-ups: a directory short of CPU; add a replica",
);
const CONNECTIONS: Described =
    Described::gauge("cellbus_http_connections", "connections", &[], "Connections held", "To see who leaks them");
const INTAKE: Described = Described::counter(
    "cellbus_intake_jobs_total",
    "jobs",
    &["result"],
    "Jobs that came in over HTTP, by what became of them at the door: accepted, refused (not valid), conflict, unavailable",
    "unavailable: producers are told to come again; see the queue and the bus",
);
const EVENT_READERS: Described = Described::gauge(
    "cellbus_http_event_readers",
    "readers",
    &[],
    "Readers of /v1/events",
    "At most `http.events_readers_max`",
);
const VMS: Described = Described::gauge(
    "cellbus_directory_vms",
    "VMs",
    &["state"],
    "VMs in this process's directory, by state: its size",
    "Processes that differ for long: the smaller one is behind",
);
const SHARDS_BEHIND: Described = Described::gauge(
    "cellbus_directory_shards_behind",
    "shards",
    &[],
    "The directory's lag: shards of which this process's directory has not read all that their owners in other processes had written when they were last asked",
    "Above 0 under load for a second, not for a minute: look-ups of this process are out of date then",
);
const SHARDS_UNREADABLE: Described = Described::gauge(
    "cellbus_shards_unreadable",
    "shards",
    &[],
    "Shards that this process's cells should own and cannot, since a newer build has written to them",
    "Above 0: finish the upgrade, `cellbus upgrade status` says which processes are of the older build",
);
const BUS_LOSSES: Described = Described::gauge(
    "cellbus_bus_losses",
    "losses",
    &[],
    "Times that this process found the bus to have lost what it had acknowledged; its log says what to do",
    "Never ignore it: an audit finds what no record names",
);
const BUS_SILENT: Described = Described::gauge(
    "cellbus_bus_silent_seconds",
    "seconds",
    &[],
    "How long this process has had no answer from the bus; below 2 while all is well",
    "The bus or the network to it is down; nothing is lost, all waits",
);
const RESIDENT: Described = Described::gauge(
    "process_resident_memory_bytes",
    "bytes",
    &[],
    "Memory that this process has resident",
    "Grows with VMs, and with jobs for `jobs.retention`",
);
const RESIDENT_PEAK: Described = Described::gauge(
    "cellbus_process_resident_memory_peak_bytes",
    "bytes",
    &[],
    "The most memory that this process has had resident",
    "To size machines",
);
const BUILD: Described = Described::gauge(
    "cellbus_build_info",
    "1",
    &["version"],
    "1; the version of this process is its label",
    "All processes of a cluster run the same build",
);

const ALL: &[Described] = &[
    REQUESTS,
    REQUEST_SECONDS,
    CONNECTIONS,
    INTAKE,
    EVENT_READERS,
    VMS,
    SHARDS_BEHIND,
    SHARDS_UNREADABLE,
    BUS_LOSSES,
    BUS_SILENT,
    RESIDENT,
    RESIDENT_PEAK,
    BUILD,
];

/// Every metric that there is, by subject.
#[must_use]
pub fn described() -> Vec<(&'static str, &'static [Described])> {
    vec![
        ("The cluster", cluster::ALL),
        ("Managers", managers::ALL),
        ("Work", work::ALL),
        ("The process", ALL),
        ("The bus on NATS", nats::ALL),
        ("The bus on Kafka", kafka::ALL),
        ("Backups", backup::ALL),
        ("The embedded bus", embedded::ALL),
        ("Calls between processes", peers::ALL),
        ("Certificates and tokens", security::ALL),
        ("Traces", spans::ALL),
    ]
}

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
    "pause",
    "resume",
    "pauses",
    "forecast",
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
    /// Of the other parts of the process.
    others: Vec<Registry>,
    streams: Option<nats::Streams>,
    topics: Option<kafka::Topics>,
    cluster: cluster::Cluster,
    managers: managers::Managers,
    requests_total: IntCounterVec,
    request_seconds: HistogramVec,
    locate_seconds: Histogram,
    locate_ok: IntCounter,
    connections: IntGauge,
    intake_jobs_total: IntCounterVec,
    event_readers: IntGauge,
    shards_unreadable: IntGauge,
    vms: IntGaugeVec,
    shards_behind: IntGauge,
    bus_losses: IntGauge,
    bus_silent_seconds: Gauge,
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
        // 100 us to 100 s: from a look-up to a wait.
        let buckets = prometheus::exponential_buckets(0.000_1, 10_f64.sqrt(), 13)?;
        let request_seconds = register(&registry, REQUEST_SECONDS.observed_by(&buckets))?;
        let requests_total = register(&registry, REQUESTS.int_counters())?;
        register(&registry, BUILD.int_gauges())?.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            others: Vec::new(),
            streams: None,
            topics: None,
            cluster: cluster::Cluster::new(&registry)?,
            managers: managers::Managers::new(&registry)?,
            locate_seconds: request_seconds.with_label_values(&["locate"]),
            locate_ok: requests_total.with_label_values(&["locate", "2xx"]),
            requests_total,
            request_seconds,
            connections: register(&registry, CONNECTIONS.int_gauge())?,
            intake_jobs_total: register(&registry, INTAKE.int_counters())?,
            event_readers: register(&registry, EVENT_READERS.int_gauge())?,
            vms: register(&registry, VMS.int_gauges())?,
            shards_behind: register(&registry, SHARDS_BEHIND.int_gauge())?,
            shards_unreadable: register(&registry, SHARDS_UNREADABLE.int_gauge())?,
            bus_losses: register(&registry, BUS_LOSSES.int_gauge())?,
            bus_silent_seconds: register(&registry, BUS_SILENT.float_gauge())?,
            resident_bytes: register(&registry, RESIDENT.int_gauge())?,
            resident_peak_bytes: register(&registry, RESIDENT_PEAK.int_gauge())?,
            registry,
        })
    }

    /// With those of another part of the process ([`crate::Process::registry`]).
    #[must_use]
    pub fn beside(mut self, other: &Registry) -> Self {
        self.others.push(other.clone());
        self
    }

    /// With those of the streams of its bus.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn on_nats(mut self, bus: Arc<Nats>) -> prometheus::Result<Self> {
        self.streams = Some(nats::Streams::new(&self.registry, bus)?);
        Ok(self)
    }

    /// With those of the topics of its bus.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn on_kafka(mut self, bus: Arc<Kafka>) -> prometheus::Result<Self> {
        self.topics = Some(kafka::Topics::new(&self.registry, bus)?);
        Ok(self)
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
        self.event_readers.set(signed(now as u64));
    }

    /// Asks for what is true now, all at once: a cell that does not answer holds up nothing but
    /// itself. What cannot be had keeps its last value, and `cellbus_cluster_read_failed` says so.
    pub(crate) async fn gather(&self, api: &dyn Api) {
        self.bus_losses.set(signed(api.bus_losses()));
        self.bus_silent_seconds.set(api.bus_silent().as_secs_f64());
        self.shards_behind.set(signed(api.shards_behind() as u64));
        self.shards_unreadable.set(signed(api.shards_unreadable() as u64));
        for (state, count) in api.vm_counts() {
            self.vms.with_label_values(&[state.as_str()]).set(signed(count as u64));
        }
        let streams = async {
            if let Some(streams) = &self.streams {
                streams.gather().await;
            }
            if let Some(topics) = &self.topics {
                topics.gather().await;
            }
        };
        let (queue, shards, managers, cells, scale, ()) =
            futures::join!(api.queue(), api.shards(), api.managers(), api.cells(), api.scale(), streams);
        let cluster = &self.cluster;
        if let Some(queue) = cluster.read("queue", queue) {
            cluster.queue(&queue);
        }
        if let Some(shards) = cluster.read("shards", shards) {
            cluster.shards(&shards);
        }
        if let Some(managers) = cluster.read("managers", managers) {
            cluster.managers(&managers);
            let here = |row: &&ManagerRow| row.cell.as_ref().is_some_and(|cell| api.is_here(cell));
            self.managers.show(managers.iter().filter(here));
        }
        if let Some(cells) = cluster.read("cells", cells) {
            cluster.cells(&cells);
        }
        if let Some(scale) = cluster.read("scale", scale) {
            cluster.scale(&scale);
        }
        if let Some(pauses) = cluster.read("pauses", api.pauses()) {
            cluster.pauses(&pauses);
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
        let mut families = self.registry.gather();
        families.extend(self.others.iter().flat_map(Registry::gather));
        TextEncoder::new().encode_to_string(&families)
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
