//! Durable provisions from submission to outcome event, everything in one process: 500 managers
//! with 50,000 hosts that answer at once (and durably), 4 cells, 256 shards.
//!
//! `cargo bench -p cellbus-simulator --bench provision [-- JOBS]`. The raw limit of the same run is
//! a plain file to which the same number of 512-byte records is appended, one flush a batch of 500.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time, on real tasks")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cellbus_bus::Bus as _;
use cellbus_bus::ids::JobId;
use cellbus_bus::job::{Digest, Job, Notify, Policy, Power, Provision, Request, Size};
use cellbus_cell::config::{Config, Sources};
use cellbus_simulator::Inventory;
use cellbus_simulator::cluster::{Cluster, Parts};
use cellbus_simulator::managers::Latency;

/// As in the `cellbus` binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 500;
const SUBMITTERS: usize = 8;

fn job(n: usize) -> Arc<Job> {
    let event_id = format!("job-{n}");
    Arc::new(Job {
        id: JobId::derive("acme", "/bench", &event_id),
        tenant: "acme".parse().expect("a tenant"),
        source: "/bench".to_owned(),
        event_id,
        digest: Digest::default(),
        after: None,
        notify: Notify::Outcome,
        deadline: None,
        extensions: BTreeMap::new(),
        request: Request::Provision(Provision {
            name: format!("web-{n}").parse().expect("a name"),
            count: 1,
            size: Size { vcpus: 1, memory_mib: 1024, disk_gib: 10 },
            image: "debian-12".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), "shop".to_owned())]),
            require: BTreeMap::new(),
            policy: Policy::default(),
            power: Power::On,
        }),
    })
}

/// CPU seconds of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    fields.skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Records a second that a plain file takes, flushed every [`BATCH`] records.
fn raw(dir: &std::path::Path, records: usize) -> f64 {
    let mut file = std::fs::File::create(dir.join("raw")).expect("a file");
    let record = vec![7_u8; 512 * BATCH];
    let began = Instant::now();
    for _ in 0..records.div_ceil(BATCH) {
        file.write_all(&record).expect("written");
        file.sync_data().expect("flushed");
    }
    records as f64 / began.elapsed().as_secs_f64()
}

async fn run(jobs: usize, dir: &std::path::Path) {
    let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
    let parts = Parts {
        data: dir.to_owned(),
        config: Config::load(Sources::default()).expect("the defaults"),
        inventory: Inventory::generate(50_000, 500).expect("an inventory"),
        latency: Latency::None,
    };
    let began = Instant::now();
    let cluster = Cluster::open(parts, env).await.expect("it starts");
    cluster.ready(Duration::from_secs(60)).await.expect("ready");
    println!("ready in {:.2} s", began.elapsed().as_secs_f64());
    let mut events = cluster.bus().read_events(None).await.expect("events");
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let mut submitters = tokio::task::JoinSet::new();
    for submitter in 0..SUBMITTERS {
        let gateway = cluster.gateway().clone();
        submitters.spawn(async move {
            let mut next = submitter * BATCH;
            while next < jobs {
                let batch: Vec<_> = (next..(next + BATCH).min(jobs)).map(job).collect();
                gateway.submit(batch).await.expect("taken");
                next += SUBMITTERS * BATCH;
            }
        });
    }
    let mut ended = 0;
    while ended < jobs {
        ended += events.next(4096).await.expect("events").iter().filter(|e| e.event.id.ends_with("/succeeded")).count();
    }
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    while submitters.join_next().await.is_some() {}
    let rate = jobs as f64 / wall;
    let stats = cluster.bus().stats();
    println!("{jobs} provisions in {wall:.2} s: {rate:.0} a second, {:.1} us of CPU each", cpu / jobs as f64 * 1e6);
    println!(
        "  {:.1} messages a job, {:.1} jobs a flush of the bus",
        stats.messages_total as f64 / jobs as f64,
        jobs as f64 / stats.syncs_total.max(1) as f64
    );
    println!("  cpu busy {:.0}% of two cores; peak {} MiB", cpu / wall / 2.0 * 100.0, peak_mib());
    println!("  violations at the managers: {:?}", cluster.fleet().violations());
    let bare = raw(dir, jobs);
    println!("  raw limit in the same run: {bare:.0} records a second; ratio {:.2}", rate / bare);
    println!("  bounded by: CPU, where the share above is near 100%");
    cluster.stop(Duration::from_secs(10)).await;
}

fn main() {
    let jobs = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(200_000);
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(jobs, dir.path()));
}
