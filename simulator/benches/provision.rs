//! Durable provisions from submission to outcome event, everything in one process: 4 cells, 256 shards, and
//! managers that answer at once. These keep their VMs in memory, so that what is measured is Cellbus, all
//! of which is durable; one line has managers that make each VM durable before they answer.
//!
//! ```text
//! cargo bench -p cellbus-simulator --bench provision [-- MODE [VMS]]
//!   load    (default) 50,000 hosts, with 1,000 to 64,000 jobs in flight; then with 1 to 10,000 VMs a job
//!   hosts   the cost of a VM at 1,000, 10,000 and 50,000 hosts
//!   vms     the cost of a VM as the fleet grows from nothing to VMS (5,000,000 by default)
//! ```
//! The raw limit of the same run is a plain file to which the same number of 512-byte records is
//! appended, one flush a batch of 500.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time, on real tasks")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cellbus_bus::Bus as _;
use cellbus_bus::allocator::{self, Allocator};
use cellbus_bus::ids::JobId;
use cellbus_bus::job::{Digest, Job, Notify, Policy, Power, Provision, Request, Size};
use cellbus_cell::config::{Config, Sources};
use cellbus_simulator::Inventory;
use cellbus_simulator::cluster::{Cluster, Parts};
use cellbus_simulator::managers::Latency;

/// As in the `cellbus` binary.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

const BATCH: usize = 500;
/// VMs in flight where the number is not what is looked at: enough to keep two cores busy.
const IN_FLIGHT: usize = 64_000;

fn job(n: usize, count: usize) -> Arc<Job> {
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
            count: u32::try_from(count).expect("a count"),
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
fn raw(dir: &Path, records: usize) -> f64 {
    let mut file = std::fs::File::create(dir.join("raw")).expect("a file");
    let record = vec![7_u8; 512 * BATCH];
    let began = Instant::now();
    for _ in 0..records.div_ceil(BATCH) {
        file.write_all(&record).expect("written");
        file.sync_data().expect("flushed");
    }
    records as f64 / began.elapsed().as_secs_f64()
}

/// What a stretch of provisions took.
struct Stretch {
    vms: usize,
    wall: f64,
    cpu: f64,
    flushes: u64,
}
impl Stretch {
    fn line(&self, what: &str) {
        let (vms, rate) = (self.vms as f64, self.vms as f64 / self.wall);
        println!(
            "{what:<24} {rate:>7.0} VMs a second  {:>5.1} us of CPU each, {:>3.0}% of two cores busy  {:>5.1} VMs a flush  peak {} MiB",
            self.cpu / vms * 1e6,
            self.cpu / self.wall / 2.0 * 100.0,
            vms / self.flushes.max(1) as f64,
            peak_mib(),
        );
    }
}

struct Bench {
    cluster: Cluster,
    events: Box<dyn cellbus_bus::contract::EventReader>,
    next: usize,
}

impl Bench {
    async fn open(hosts: u64, managers: u64, dir: &Path) -> Self {
        Self::open_with(hosts, managers, dir, false).await
    }

    async fn open_with(hosts: u64, managers: u64, dir: &Path, managers_durable: bool) -> Self {
        let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
        let mut inventory = Inventory::generate(hosts, managers).expect("an inventory");
        // Room for as many small VMs as any of these runs makes.
        inventory.managers.iter_mut().flat_map(|m| &mut m.hosts).for_each(|host| host.vcpus = 512);
        let config = Config::load(Sources::default()).expect("the defaults");
        let parts = Parts { config: config.in_directory(dir), inventory, latency: Latency::None, managers_durable };
        let cluster = Cluster::open(parts, env).await.expect("it starts");
        cluster.ready(Duration::from_secs(60)).await.expect("ready");
        let events = cluster.bus().read_events(None).await.expect("events");
        Self { cluster, events, next: 0 }
    }

    /// So many more VMs, from submission to outcome, with so many in flight; `each` of one job.
    async fn run(&mut self, vms: usize, in_flight: usize, each: usize) -> Stretch {
        let (jobs, together) = (vms.div_ceil(each), BATCH.div_ceil(each));
        let (from, to) = (self.next, self.next + jobs);
        self.next = to;
        let flushes = self.cluster.bus().stats().syncs_total;
        let (began, cpu) = (Instant::now(), cpu_seconds());
        let room = Arc::new(tokio::sync::Semaphore::new(in_flight));
        let gateway = self.cluster.gateway().clone();
        let (asked, submitting) = (Arc::clone(&room), tokio::task::JoinSet::new());
        let submitter = tokio::spawn(async move {
            let mut submitting = submitting;
            for first in (from..to).step_by(together) {
                let last = (first + together).min(to);
                let permits = asked.acquire_many(((last - first) * each) as u32).await.expect("it stays open");
                permits.forget();
                let gateway = gateway.clone();
                let jobs = (first..last).map(|n| job(n, each)).collect();
                submitting.spawn(async move { gateway.submit(jobs).await.expect("taken") });
            }
            while submitting.join_next().await.is_some() {}
        });
        let mut ended = 0;
        while ended < jobs {
            let events = self.events.next(4096).await.expect("events");
            let now = events.iter().filter(|e| e.event.id.ends_with("/succeeded")).count();
            room.add_permits(now * each);
            ended += now;
        }
        submitter.await.expect("submitted");
        let flushes = self.cluster.bus().stats().syncs_total - flushes;
        Stretch { vms: jobs * each, wall: began.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu, flushes }
    }

    async fn close(self) {
        let violations = self.cluster.fleet().violations();
        assert_eq!(violations, Default::default(), "the managers saw what must not be");
        self.cluster.stop(Duration::from_secs(30)).await;
    }
}

async fn load(vms: usize, dir: &Path) {
    for in_flight in [1_000, 4_000, 16_000, 64_000] {
        let dir = dir.join(in_flight.to_string());
        let mut bench = Bench::open(50_000, 500, &dir).await;
        bench.run(20_000, in_flight, 1).await;
        bench.run(vms, in_flight, 1).await.line(&format!("{in_flight} jobs in flight"));
        bench.close().await;
    }
    let mut bench = Bench::open_with(50_000, 500, &dir.join("durable"), true).await;
    bench.run(20_000, IN_FLIGHT, 1).await;
    bench.run(vms, IN_FLIGHT, 1).await.line("durable managers");
    bench.close().await;
    for each in [1, 10, 100, 1_000, 10_000] {
        let dir = dir.join(format!("each-{each}"));
        let mut bench = Bench::open(50_000, 500, &dir).await;
        bench.run(20_000, IN_FLIGHT, each).await;
        bench.run(vms, IN_FLIGHT, each).await.line(&format!("{each} VMs a job"));
        bench.close().await;
    }
    println!("raw limit in the same run: {:.0} records a second", raw(dir, vms));
    println!("bounded by: CPU where the share is near 100%, else the rounds of a job (queue, log, manager, log)");
}

async fn hosts(vms: usize, dir: &Path) {
    for hosts in [1_000, 10_000, 50_000] {
        let dir = dir.join(hosts.to_string());
        let mut bench = Bench::open(hosts, hosts / 100, &dir).await;
        bench.run(20_000, IN_FLIGHT, 1).await;
        bench.run(vms, IN_FLIGHT, 1).await.line(&format!("{hosts} hosts"));
        bench.close().await;
    }
}

async fn vms(vms: usize, dir: &Path) {
    let mut bench = Bench::open(50_000, 500, dir).await;
    let mut made = 0;
    while made < vms {
        let stretch = bench.run((vms / 20).max(1), IN_FLIGHT, 1).await;
        stretch.line(&format!("{made} VMs"));
        made += stretch.vms;
    }
    bench.close().await;
}

fn main() {
    allocator::keep_freed_pages();
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let count = words.iter().find_map(|word| word.parse().ok());
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match words.first().map(String::as_str) {
        Some("hosts") => runtime.block_on(hosts(count.unwrap_or(200_000), dir.path())),
        Some("vms") => runtime.block_on(vms(count.unwrap_or(5_000_000), dir.path())),
        Some(_) | None => runtime.block_on(load(count.unwrap_or(200_000), dir.path())),
    }
}
