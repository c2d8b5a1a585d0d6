//! What a replica of the directory costs, at up to five million VMs. `cargo bench -p cellbus-directory`.
//!
//! Prints medians, and beside each figure what bounds it. Sizes: `DIRECTORY_BENCH_VMS` (default
//! 5000000), and a fifth of it for the smaller load. Name parts (`memory look-ups pages checkpoint fold`) to run only those.
//! The allocator is that of the `cellbus` binary, which asks for huge pages; run once more with
//! `MIMALLOC_ALLOW_THP=0` for normal ones. Started without
//! `--bench` (as `cargo test --all-targets` does) it runs on a handful of VMs, to see that it runs.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cellbus_bus::contract::Position;
use cellbus_bus::env::{WallMs, real};
use cellbus_bus::ids::{Epoch, HostId, JobId, ManagerId, OpNumber, Seq, ShardCount, TenantId, VmId};
use cellbus_bus::job::{Digest, Job, Labels, Notify, Policy, Power, Provision, Request, Size};
use cellbus_directory::checkpoint::{Checkpoint, Cluster, Config};
use cellbus_directory::replica::PAGE_MAX;
use cellbus_directory::{
    Entry, JobFilter, Outcome, Place, PowerState, Record, Replica, ShardSnapshot, Step, StepResult, Template, Vm,
    VmFacts, VmFilter, VmState,
};
use dashmap::DashMap;

mod allocated;

use allocated::BYTES;

const MANAGERS: u32 = 500;
const HOSTS_A_MANAGER: u32 = 100;
const TENANTS: u32 = 100;
const TEMPLATES: u32 = 50;
const SIZE: Size = Size { vcpus: 4, memory_mib: 8192, disk_gib: 40 };

/// What is left out of a population, to see what it costs.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    All,
    /// No VM is anywhere.
    NoPlaces,
    /// All are tombstones, which have no name to be found by, and no place.
    NoNames,
}

/// What `work` took of this thread's own time.
fn ran_for<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = ran();
    let out = work();
    (out, ran() - before)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let out = work();
    (out, began.elapsed())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn say(what: &str, figure: &str, bound: &str) {
    println!("{what:<58} {figure:>26}   {bound}");
}

/// A population: ids are derived as those of real jobs are.
struct Fleet {
    count: ShardCount,
    ids: Vec<VmId>,
    templates: Vec<Arc<Template>>,
    tenants: Vec<TenantId>,
    places: Vec<Place>,
}

impl Fleet {
    fn new(vms: usize) -> Self {
        let ids = (0..vms).map(|n| JobId::derive("acme", "/bench", &n.to_string()).vm(0)).collect();
        let template = |n: u32| {
            let labels = Labels::from([("app".to_owned(), format!("app-{n}")), ("env".to_owned(), "prod".to_owned())]);
            Arc::new(Template {
                image: "debian-12".to_owned(),
                labels,
                require: Labels::new(),
                policy: Policy::default(),
            })
        };
        let places = (0..MANAGERS * HOSTS_A_MANAGER).map(|n| Place {
            manager: ManagerId::derive(&format!("vc-{:03}", n % MANAGERS)),
            host: Some(host(n / MANAGERS)),
        });
        Self {
            count: ShardCount::DEFAULT,
            ids,
            templates: (0..TEMPLATES).map(template).collect(),
            tenants: (0..TENANTS).map(|n| format!("tenant-{n}").parse().expect("well formed")).collect(),
            places: places.collect(),
        }
    }

    fn vm(&self, n: usize, part: Part) -> Vm {
        let id = self.ids[n];
        let job = JobId::from_uuid(id.uuid());
        let name = format!("vm-{n:07}").parse().expect("well formed");
        let (tenant, template) = (&self.tenants[n % self.tenants.len()], &self.templates[n % self.templates.len()]);
        let at = WallMs(1_790_000_000_000 + n as u64);
        let mut vm = Vm::planned(id, job, tenant.clone(), name, SIZE, Arc::clone(template), at);
        vm.op = OpNumber(1);
        vm.settled = if part == Part::NoNames { VmState::Deleted } else { VmState::Running };
        // Hosts in no order that goes with the ids.
        let place = n.wrapping_mul(2_654_435_761) % self.places.len();
        vm.home = (part == Part::All).then(|| self.places[place].clone());
        vm
    }

    /// Fills a replica shard by shard, as a start from snapshots does.
    fn fill(&self, vms: usize, part: Part) -> Replica {
        let replica = Replica::new(self.count, 1);
        let mut by_shard: Vec<Vec<usize>> = vec![Vec::new(); usize::from(self.count.get())];
        for n in 0..vms {
            by_shard[usize::from(self.ids[n].shard(self.count).index())].push(n);
        }
        for (shard, numbers) in self.count.shards().zip(by_shard) {
            replica.load(
                shard,
                ShardSnapshot {
                    seq: Seq(1),
                    epoch: Epoch(1),
                    jobs_read: Position::default(),
                    control_read: Position::default(),
                    vms: numbers.iter().map(|n| self.vm(*n, part)).collect(),
                    jobs: Vec::new(),
                    cordons: Vec::new(),
                    machine: bytes::Bytes::new(),
                },
            );
        }
        replica
    }

    /// The look-ups: all ids, in an order that has nothing to do with that of filling.
    fn queries(&self, vms: usize) -> Vec<VmId> {
        let mut queries = self.ids[..vms].to_vec();
        queries.sort_unstable_by_key(|id| {
            let bytes = id.as_bytes();
            (bytes[9], bytes[12], bytes[4], *id)
        });
        queries
    }
}

fn host(n: u32) -> HostId {
    format!("host-{n:03}").parse().expect("well formed")
}

/// Bytes allocated by what `make` leaves, as malloc sees them.
fn bytes_of<T>(make: impl FnOnce() -> T) -> (T, f64) {
    let before = BYTES.load(Ordering::Relaxed);
    let made = make();
    (made, (BYTES.load(Ordering::Relaxed) - before) as f64)
}

/// One look-up a query, the queries divided over two threads; millions a second of the time
/// that the threads ran, so that other work on the machine counts less.
#[expect(clippy::disallowed_methods, reason = "what is measured is what threads see")]
fn lookups(queries: &[VmId], look_up: impl Fn(VmId) -> bool + Sync) -> f64 {
    let halves = queries.chunks(queries.len().div_ceil(2));
    std::thread::scope(|scope| {
        let threads: Vec<_> = halves
            .map(|half| {
                let look_up = &look_up;
                scope.spawn(move || {
                    let before = ran();
                    assert!(half.iter().all(|id| look_up(*id)));
                    half.len() as f64 / (ran() - before).as_secs_f64() / 1e6
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("look-ups find what is there")).sum()
    })
}

/// How long this thread has run.
fn ran() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok()).unwrap_or_default())
}

fn bench_memory(fleet: &Fleet, vms: usize) -> Replica {
    let n = vms as f64;
    // The same entries in the same number of sub-tables: what the table of VMs costs by itself.
    let (table, table_bytes) = bytes_of(|| {
        let table: DashMap<VmId, (u32, u32)> = DashMap::with_shard_amount(16);
        for id in &fleet.ids[..vms] {
            table.insert(*id, (1, 2));
        }
        table
    });
    drop(table);
    let (without, without_names) = bytes_of(|| fleet.fill(vms, Part::NoNames));
    drop(without);
    let (without, without_places) = bytes_of(|| fleet.fill(vms, Part::NoPlaces));
    drop(without);
    let (replica, all) = bytes_of(|| fleet.fill(vms, Part::All));
    let (places, names) = (all - without_places, without_places - without_names);
    say(
        "locate: bytes a VM",
        &format!("{:.1}", table_bytes / n),
        "24-byte entries in half-full tables, or a little more",
    );
    say("list by manager or host: bytes a VM", &format!("{:.1}", places / n), "8-byte keys in B-trees, 50,000 hosts");
    say("  both together: bytes a VM", &format!("{:.1}", (table_bytes + places) / n), "the goal is 90");
    say("names: bytes a VM", &format!("{:.1}", names / n), "8-byte keys in B-trees");
    let rest = all - table_bytes - places - names;
    say(
        "row, order by id and by tenant: bytes a VM",
        &format!("{:.1}", rest / n),
        "80-byte rows, two B-trees of 8-byte keys",
    );
    say("all: bytes a VM", &format!("{:.1}", all / n), "filled from snapshots");

    replica
}

fn bench_lookups(fleet: &Fleet, replica: &Replica, vms: usize) {
    type Bare = DashMap<VmId, (u32, u32), foldhash::fast::RandomState>;
    let (bare, bare_bytes) = bytes_of(|| {
        let bare: Bare = DashMap::default();
        for (n, id) in (0..).zip(&fleet.ids[..vms]) {
            bare.insert(*id, (n, n));
        }
        bare
    });
    say("a bare DashMap of 24-byte entries: bytes a VM", &format!("{:.1}", bare_bytes / vms as f64), "for scale");
    let queries = fleet.queries(vms);
    let (mut ours, mut theirs, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..7 {
        ours.push(lookups(&queries, |id| replica.locate(id).is_some_and(|l| black_box(l.state()) == VmState::Running)));
        theirs.push(lookups(&queries, |id| bare.get(&id).is_some_and(|v| black_box(v.0) == v.1)));
        whole.push(lookups(&queries, |id| {
            let location = replica.locate(id);
            location.is_some_and(|l| black_box((l.manager(), l.host(), l.epoch(), l.as_of())).0.is_some())
        }));
    }
    let (ours, theirs, whole) = (median(ours), median(theirs), median(whole));
    say("locate, two threads", &format!("{ours:.1} M/s"), "one miss of the cache and TLB each");
    say("a bare DashMap, two threads", &format!("{theirs:.1} M/s"), "the same");
    say("  locate to bare", &format!("{:.2}", ours / theirs), "the goal is 0.8");
    say(
        "locate with manager, host, epoch, as_of, two threads",
        &format!("{whole:.1} M/s"),
        "a miss each for entry, place and row",
    );
}

fn bench_pages(fleet: &Fleet, replica: &Replica) {
    let page = |what: &str, filter: &VmFilter, limit: usize| {
        let mut times = Vec::new();
        let mut cursor = None;
        let mut rows = 0;
        for _ in 0..20 {
            let (page, time) = timed(|| replica.list(filter, limit, cursor.as_deref()).expect("our own cursor"));
            times.push(time.as_secs_f64() * 1e3);
            rows = rows.max(page.items.len());
            cursor = page.next;
        }
        let worst = times.iter().copied().fold(0.0, f64::max);
        say(
            what,
            &format!("{:.2} ms (most {worst:.2})", median(times)),
            &format!("{rows} rows made, one miss or two each"),
        );
    };
    let tenant = Some(fleet.tenants[7].clone());
    let manager = Some(fleet.places[7].manager);
    page("page of 1,000 by tenant", &VmFilter { tenant: tenant.clone(), ..VmFilter::default() }, PAGE_MAX);
    page("page of 1,000 by manager", &VmFilter { manager, ..VmFilter::default() }, PAGE_MAX);
    page("page by host", &VmFilter { manager, host: Some(host(3)), ..VmFilter::default() }, PAGE_MAX);
    page(
        "page of 1,000 by host name in all managers",
        &VmFilter { host: Some(host(3)), ..VmFilter::default() },
        PAGE_MAX,
    );
    page("page of 1,000 of all", &VmFilter::default(), PAGE_MAX);
    page("page by manager and tenant", &VmFilter { manager, tenant, ..VmFilter::default() }, PAGE_MAX);
    page("page of a state that no VM has", &VmFilter { state: Some(VmState::Lost), ..VmFilter::default() }, PAGE_MAX);
    let labels = Labels::from([("app".to_owned(), "app-none".to_owned())]);
    page("page by a label that no VM has (ends early)", &VmFilter { labels, ..VmFilter::default() }, PAGE_MAX);
    let (jobs, time) = timed(|| replica.jobs(&JobFilter::default(), PAGE_MAX, None).expect("no cursor").items.len());
    say("page of jobs", &format!("{:.2} ms", time.as_secs_f64() * 1e3), &format!("{jobs} rows"));
}

/// The records of a provision from acceptance to success, in three entries.
struct Provisions {
    seqs: Vec<Seq>,
    made: u64,
}

impl Provisions {
    fn new(count: ShardCount) -> Self {
        Self { seqs: vec![Seq(1); usize::from(count.get())], made: 0 }
    }
    /// Encoded entries of `count` provisions.
    fn make(&mut self, fleet: &Fleet, count: usize) -> Vec<(cellbus_bus::ids::ShardId, Seq, bytes::Bytes)> {
        let mut out = Vec::with_capacity(count * 3);
        for _ in 0..count {
            self.made += 1;
            let n = self.made;
            let tenant = fleet.tenants[n as usize % fleet.tenants.len()].clone();
            let id = JobId::derive("acme", "/more", &n.to_string());
            let vm = id.vm(0);
            let job = Job {
                id,
                tenant,
                source: "/bench".to_owned(),
                event_id: format!("order-{n}"),
                digest: Digest::default(),
                after: None,
                notify: Notify::Outcome,
                deadline: None,
                extensions: std::collections::BTreeMap::new(),
                request: Request::Provision(Provision {
                    name: format!("new-{n}").parse().expect("well formed"),
                    count: 1,
                    size: SIZE,
                    image: "debian-12".to_owned(),
                    labels: fleet.templates[0].labels.clone(),
                    require: Labels::new(),
                    policy: Policy::default(),
                    power: Power::On,
                }),
            };
            let place = fleet.places[n as usize * 31 % fleet.places.len()].clone();
            let host = place.host.clone().expect("all have one");
            let facts = VmFacts { host, power: PowerState::Running, size: SIZE, snapshots: Vec::new() };
            let (op, manager) = (OpNumber(1), place.manager);
            let shard = id.shard(fleet.count);
            for records in [
                vec![Record::JobAccepted { job: Arc::new(job) }],
                vec![Record::StepBegun { vm, op, step: Step::Create, manager, host: None }],
                vec![
                    Record::StepEnded { vm, op, result: StepResult::Present(facts) },
                    Record::WorkEnded { vm, job: id, outcome: Outcome::Succeeded },
                    Record::JobEnded { job: id, outcome: Outcome::Succeeded, vms: Vec::new() },
                ],
            ] {
                let seq = &mut self.seqs[usize::from(shard.index())];
                let at = WallMs(1_790_000_000_000 + n);
                let entry = Entry { epoch: Epoch(1), prev: *seq, at, jobs: None, control: None, records };
                *seq = seq.next();
                out.push((shard, *seq, entry.encode()));
            }
        }
        out
    }
}

fn bench_fold(fleet: &Fleet, vms: usize) {
    for step in 0..=5 {
        let there = vms * step / 5;
        let replica = fleet.fill(there, Part::All);
        let mut provisions = Provisions::new(fleet.count);
        // The first shards' tables may be about to grow; that is part of it.
        let entries = provisions.make(fleet, (vms / 50).max(100));
        let count = entries.len() as f64 / 3.0;
        let (entries, decoding) = ran_for(|| {
            let decode = |bytes: &bytes::Bytes| Entry::decode(bytes).expect("just encoded");
            entries.iter().map(|(shard, seq, bytes)| (*shard, *seq, decode(bytes))).collect::<Vec<_>>()
        });
        let ((), folding) = ran_for(|| {
            for (shard, seq, entry) in &entries {
                black_box(replica.apply(*shard, *seq, entry));
            }
        });
        say(
            &format!("a provision folded, {there} VMs there"),
            &format!("{:.2} us", folding.as_secs_f64() * 1e6 / count),
            &format!("3 entries, 5 records; decoding them {:.2} us", decoding.as_secs_f64() * 1e6 / count),
        );
    }
}

fn bench_checkpoint(fleet: &Fleet, replica: Replica, vms: usize) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().expect("a runtime");
    let env = real(runtime.handle().clone());
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Cluster { id: uuid::Uuid::from_u128(1), shards: fleet.count };
    let replica = Arc::new(replica);
    let empty = Arc::new(Replica::new(fleet.count, 1));
    let make = Checkpoint::open(Config::new(dir.path()), cluster, env.clone(), empty);
    drop(runtime.block_on(make));
    // The store is empty, the replica is not: what is written is all of it.
    let opened = Checkpoint::open(Config::new(dir.path()), cluster, env.clone(), Arc::clone(&replica));
    let mut checkpoint = runtime.block_on(opened);
    let (saved, time) = timed(|| runtime.block_on(checkpoint.save()).expect("a writable directory"));
    say(
        &format!("checkpoint of {vms} VMs written"),
        &format!("{:.2} s", time.as_secs_f64()),
        &format!("{} MB, sled's log and one flush", saved.bytes / 1_000_000),
    );
    drop(checkpoint);
    let on_disk = disk_bytes(dir.path());
    say("  on disk", &format!("{} MB", on_disk / 1_000_000), "what sled makes of it");
    drop(replica);

    let mut times = Vec::new();
    let mut bytes = 0.0;
    for _ in 0..3 {
        let fresh = Arc::new(Replica::new(fleet.count, 1));
        let ((checkpoint, used), time) = timed(|| {
            bytes_of(|| {
                let opened = Checkpoint::open(Config::new(dir.path()), cluster, env.clone(), Arc::clone(&fresh));
                runtime.block_on(opened)
            })
        });
        assert_eq!((checkpoint.loaded().vms, &checkpoint.loaded().rebuilt), (vms, &None));
        assert_eq!(fresh.stats().vms_live(), vms);
        times.push(time.as_secs_f64());
        bytes = used;
    }
    say(
        &format!("checkpoint of {vms} VMs loaded, to serving"),
        &format!("{:.2} s", median(times)),
        "two threads: sled's recovery, decoding, tables",
    );
    say(
        "all after loading: bytes a VM",
        &format!("{:.1}", bytes / vms as f64),
        "indexes built from sorted input; sled's cache in it",
    );
}

fn disk_bytes(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("a directory");
    entries
        .map_while(Result::ok)
        .map(
            |entry| {
                if entry.path().is_dir() { disk_bytes(&entry.path()) } else { entry.metadata().map_or(0, |m| m.len()) }
            },
        )
        .sum()
}

fn main() {
    let full = std::env::args().any(|argument| argument == "--bench");
    let asked = std::env::var("DIRECTORY_BENCH_VMS").ok().and_then(|text| text.parse().ok());
    let vms: usize = if full { asked.unwrap_or(5_000_000) } else { 2_000 };
    let only: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |part: &str| only.is_empty() || only.iter().any(|argument| argument == part);
    let fleet = Fleet::new(vms);
    println!(
        "{vms} VMs, {MANAGERS} managers with {HOSTS_A_MANAGER} hosts each, {TENANTS} tenants, {TEMPLATES} templates"
    );
    let replica = if wanted("memory") { bench_memory(&fleet, vms) } else { fleet.fill(vms, Part::All) };
    if wanted("look-ups") {
        bench_lookups(&fleet, &replica, vms);
    }
    if wanted("pages") {
        bench_pages(&fleet, &replica);
    }
    if wanted("checkpoint") {
        bench_checkpoint(&fleet, replica, vms);
        bench_checkpoint(&fleet, fleet.fill(vms / 5, Part::All), vms / 5);
    }
    if wanted("fold") {
        bench_fold(&fleet, vms);
    }
}
