//! What a process shows: everything that is described, nothing else, and not too much of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::embedded::{self, Embedded};
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, ManagerId};
use cellbus_bus::kafka::{Figures, TopicFigures};
use cellbus_bus::nats::StreamFigures;
use cellbus_directory::VmState;
use cellbus_workflows::Health;
use prometheus::Registry;
use prometheus::proto::{MetricFamily, MetricType};

use super::*;
use crate::gateway::{CircuitState, FreeOf, PausesShown, QueueRow, ScaleShown};

/// Series that one process may have beside those of the managers that it fronts.
const PROCESS_SERIES_MAX: usize = 1_500;
/// Series of one manager.
const MANAGER_SERIES_MAX: usize = 15;

fn manager(number: usize) -> ManagerRow {
    let name = format!("vc-{number:04}");
    let of = FreeOf { free: 3, total: 4 };
    ManagerRow {
        id: ManagerId::derive(&name),
        name,
        cell: Some("cell-1".parse().unwrap()),
        epoch: Epoch(1),
        health: Health::Healthy,
        circuit: Some(CircuitState::Closed),
        detail: String::new(),
        cordoned: false,
        mode: cellbus_directory::ManagerMode::Enabled,
        paused: None,
        paused_why: String::new(),
        hosts: 5,
        hosts_open: 4,
        vms: 1,
        foreign_vms: 2,
        irregular_vms: 0,
        irregular_why: String::new(),
        running: BTreeMap::from([("create".into(), 2), ("power".into(), 1)]),
        waiting: BTreeMap::new(),
        vcpus: of,
        memory_mib: of,
        disk_gib: of,
        as_of: WallMs(0),
    }
}

/// A process with all the metrics that any has, each with all the label values that it can have.
fn everything(managers: usize, tenants: usize) -> (tempfile::TempDir, Metrics) {
    let metrics = Metrics::new(Registry::new()).unwrap();
    let registry = metrics.registry().clone();
    let folder = tempfile::tempdir().unwrap();
    let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
    embedded::Embedded::open(embedded::Config::new(folder.path().join("bus")), env)
        .map(|bus: Arc<Embedded>| super::embedded::register(&registry, bus).unwrap())
        .unwrap();
    let peers = peers::Metrics::new(&registry).unwrap();
    peers.dropped("full", 1);
    backup::Metrics::new(&registry).unwrap();
    let files = security::Metrics::new(&registry).unwrap();
    for kind in ["tls", "tokens", "members"] {
        files.broken(kind, false);
        files.reloaded(kind);
    }
    let work = Registry::new();
    work::Metrics::new(&work).unwrap();
    spans::Metrics::new(&work).unwrap();
    let metrics = metrics.beside(&work);

    for resource in RESOURCES
        .iter()
        .map(|r| format!("/v1/{r}"))
        .chain(["/metrics", "/healthz", "/readyz", "/members/v1/cells/c/call", "/nothing"].map(str::to_owned))
    {
        for status in [200, 304, 404, 503] {
            metrics.request(&resource, status, Duration::from_millis(3));
        }
    }
    for result in ["accepted", "refused", "conflict", "unavailable"] {
        metrics.intake(result, 1);
    }
    for state in VmState::ALL {
        metrics.vms.with_label_values(&[state.as_str()]).set(1);
    }
    let streams = |lane: usize| ["queue_jobs", "queue_control", "log"].map(|family| format!("{family}_{lane}"));
    let names = ["jobs", "events", "snapshots"].map(str::to_owned).into_iter().chain((0..4).flat_map(streams));
    let figures: Vec<_> = names
        .map(|stream| StreamFigures {
            stream,
            messages: 1,
            bytes: 1,
            bytes_max: None,
            first_seq: 1,
            last_seq: 1,
            oldest_at: None,
        })
        .collect();
    nats::Gauges::new(&registry).unwrap().show(&figures);
    let topics =
        ["jobs", "queue-jobs", "queue-control", "log", "snapshots", "snapshot-marks", "members", "cluster", "events"];
    let topics = topics.map(|topic| TopicFigures { topic: topic.to_owned(), partitions: 1, messages: 1, end: 1 });
    kafka::Gauges::new(&registry).unwrap().show(&Figures { topics: topics.into(), ingress: 1 });
    let rows: Vec<ManagerRow> = (0..managers).map(manager).collect();
    metrics.managers.show(rows.iter());
    let cluster = &metrics.cluster;
    for what in ["queue", "shards", "managers", "cells", "scale", "pauses"] {
        cluster.read(what, Ok(()));
    }
    let waiting_by_tenant = (0..tenants).map(|n| (format!("tenant-{n}").parse().unwrap(), 7)).collect();
    cluster.queue(&QueueRow { waiting_by_tenant, ..QueueRow::default() });
    cluster.managers(&rows);
    cluster.shards(&[]);
    cluster.cells(&[]);
    cluster.pauses(&PausesShown { pauses: Arc::default(), known_ago: Duration::ZERO });
    cluster.scale(&ScaleShown {
        settings: crate::config::scale::Scale::default().settings,
        kept: cellbus_workflows::Scale::default(),
        cells_active: 1,
        cells_draining: 0,
    });
    (folder, metrics)
}

fn families(metrics: &Metrics) -> Vec<MetricFamily> {
    let mut families = metrics.registry.gather();
    families.extend(metrics.others.iter().flat_map(Registry::gather));
    families
}

fn series(metrics: &Metrics) -> usize {
    metrics.text().unwrap().lines().filter(|line| !line.starts_with('#')).count()
}

#[tokio::test]
async fn what_is_shown_is_what_is_described() {
    let (_folder, metrics) = everything(1, 1);
    metrics.managers.show([&ManagerRow { irregular_vms: 1, ..manager(0) }].into_iter());
    let described: BTreeMap<&str, Described> =
        super::described().iter().flat_map(|(_, all)| all.iter()).map(|one| (one.name, *one)).collect();
    let mut seen = BTreeSet::new();
    for family in families(&metrics) {
        let name = family.name().to_owned();
        let one = described.get(name.as_str()).unwrap_or_else(|| panic!("{name} is shown and not described"));
        assert_eq!(family.help(), one.help, "{name}");
        let kind = match one.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        };
        assert_eq!(family.get_field_type(), kind, "{name}");
        for metric in family.get_metric() {
            let labels: BTreeSet<&str> = metric.get_label().iter().map(|label| label.name()).collect();
            assert_eq!(labels, one.labels.iter().copied().collect(), "{name}");
        }
        assert!(seen.insert(name.clone()), "{name} is shown twice");
    }
    let missing: Vec<_> = described.keys().filter(|name| !seen.contains(**name)).collect();
    assert!(missing.is_empty(), "described and never shown: {missing:?}");
    for one in described.values() {
        let ours = one.name.starts_with("cellbus_") || one.name == "process_resident_memory_bytes";
        assert!(ours && (one.kind == Kind::Counter) == one.name.ends_with("_total"), "{}", one.name);
        assert!(!one.unit.is_empty() && one.help.len() > 7 && one.advice.len() > 7, "{}", one.name);
        assert!(!one.help.contains('|') && !one.advice.contains('|'), "{}: the table has columns", one.name);
        let unbounded = ["tenant", "vm", "job", "host", "cell", "shard"];
        assert!(!one.labels.iter().any(|label| unbounded.contains(label)), "{}", one.name);
    }
}

/// At 500 managers and 1,000 tenants. A manager counts once in a cluster, a tenant never.
#[tokio::test]
async fn series_stay_within_their_budget() {
    let (_folder, small) = everything(0, 0);
    let (_folder, large) = everything(500, 1_000);
    let (small, large) = (series(&small), series(&large));
    assert!(small <= PROCESS_SERIES_MAX, "{small} series of a process without managers");
    assert_eq!(large - small, 500 * MANAGER_SERIES_MAX);
    println!("{small} series of a process, {large} with 500 managers");
}

#[test]
fn a_manager_that_another_process_fronts_now_is_not_shown_any_more() {
    let metrics = Metrics::new(Registry::new()).unwrap();
    let rows = [manager(1), ManagerRow { health: Health::Unknown, cordoned: true, ..manager(2) }];
    metrics.managers.show(rows.iter());
    let text = metrics.text().unwrap();
    for line in [
        "cellbus_manager_up{manager=\"vc-0001\"} 1",
        "cellbus_manager_up{manager=\"vc-0002\"} 0",
        "cellbus_manager_cordoned{manager=\"vc-0002\"} 1",
        "cellbus_manager_operations{manager=\"vc-0001\",state=\"running\"} 3",
        "cellbus_manager_hosts{manager=\"vc-0001\",state=\"closed\"} 1",
        "cellbus_manager_vms{manager=\"vc-0001\",whose=\"foreign\"} 2",
        "cellbus_manager_capacity_free{manager=\"vc-0001\",resource=\"memory_bytes\"} 3145728",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    // What is to be seen to has a series only while it is there.
    assert!(!text.contains("cellbus_manager_irregular_vms"), "{text}");
    let two = ManagerRow { irregular_vms: 2, ..manager(1) };
    metrics.managers.show([&two, &rows[1]].into_iter());
    assert!(metrics.text().unwrap().contains("cellbus_manager_irregular_vms{manager=\"vc-0001\"} 2"));
    metrics.managers.show(rows.iter());
    assert!(!metrics.text().unwrap().contains("cellbus_manager_irregular_vms"));
    let before = series(&metrics);
    metrics.managers.show(rows[1..].iter());
    let text = metrics.text().unwrap();
    assert!(!text.contains("vc-0001") && text.contains("vc-0002"), "{text}");
    assert_eq!(before - series(&metrics), MANAGER_SERIES_MAX);
}

#[test]
fn the_documented_metrics_are_those_in_force() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/docs/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- metrics: begin -->\n", "<!-- metrics: end -->");
    let (head, rest) = page.split_once(begin).unwrap();
    let (table, tail) = rest.split_once(end).unwrap();
    let wanted = markdown();
    if std::env::var_os("CELLBUS_BLESS").is_some() {
        std::fs::write(path, format!("{head}{begin}{wanted}{end}{tail}")).unwrap();
        return;
    }
    assert!(
        table == wanted,
        "ops/docs/metrics.md is out of date: run this test with CELLBUS_BLESS=1 and look at what changed"
    );
}

fn markdown() -> String {
    let mut out =
        String::from("| metric | type | of | unit | labels | meaning | what to do |\n|---|---|---|---|---|---|---|\n");
    for (subject, all) in super::described() {
        let _ = writeln!(out, "| **{subject}** | | | | | | |");
        for one in all {
            let kind = match one.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let scope = match one.scope {
                Scope::Process => "process",
                Scope::Cluster => "cluster",
            };
            let labels: Vec<String> = one.labels.iter().map(|label| format!("`{label}`")).collect();
            let Described { name, unit, help, advice, .. } = one;
            let _ =
                writeln!(out, "| `{name}` | {kind} | {scope} | {unit} | {} | {help} | {advice} |", labels.join(", "));
        }
    }
    out
}
