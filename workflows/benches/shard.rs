//! What the state machine alone costs for a provision: one shard, one thread, no I/O.
//!
//! Bounded by one core: decoding the job, deciding, folding the records, encoding the entries, and
//! building the outcome event. `cargo bench -p cellbus-workflows`.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::contract::Position;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{CellId, JobId, Seq, ShardCount, ShardId};
use cellbus_bus::job::{Digest, Job, Notify, Policy, Power, Provision, Request, Size};
use cellbus_directory::record::{Entry, Record};
use cellbus_directory::vm::PowerState;
use cellbus_directory::{Pauses, VmFacts};
use cellbus_workflows::{
    Action, Answer, CapacityView, ClassSummary, Context, Effect, EffectAnswer, EffectKind, Health, Input, JobItem,
    Limits, ManagerNames, ManagerSummary, Shard,
};

const JOBS: usize = 100_000;
const BATCH: usize = 64;

fn view(names: &ManagerNames) -> CapacityView {
    let class = ClassSummary {
        labels: BTreeMap::from([("gear".to_owned(), "g1".to_owned())]),
        hosts: 100,
        hosts_open: 100,
        vcpus_total: 6400,
        vcpus_free: 6400,
        memory_mib_total: 52_428_800,
        memory_mib_free: 52_428_800,
        disk_gib_total: 1_024_000,
        disk_gib_free: 1_024_000,
        vcpus_free_max: 64,
        memory_mib_free_max: 524_288,
        disk_gib_free_max: 10_240,
    };
    let managers = names.iter().map(|(name, id)| ManagerSummary {
        id: *id,
        name: name.to_string(),
        health: Health::Healthy,
        cordoned: false,
        classes: vec![class.clone()],
        running: 0,
        waiting: 0,
        running_max: 640,
    });
    CapacityView { managers: managers.collect(), version: 1 }
}

fn items() -> Vec<(Position, Bytes)> {
    (0..JOBS)
        .map(|n| {
            let event_id = format!("job-{n}");
            let job = Job {
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
                    size: Size { vcpus: 2, memory_mib: 4096, disk_gib: 20 },
                    image: "debian-12".to_owned(),
                    labels: BTreeMap::from([("app".to_owned(), "shop".to_owned())]),
                    require: BTreeMap::new(),
                    policy: Policy::default(),
                    power: Power::On,
                }),
            };
            let body = JobItem::Job(Arc::new(job)).encode();
            (Position { seq: Seq(n as u64 + 1), digest: Digest::of(&body) }, body)
        })
        .collect()
}

fn answer(effect: Effect) -> Input {
    let answer = match effect.what {
        EffectKind::Call(call) => {
            let Action::Create(spec) = call.action else { panic!("only creates here") };
            EffectAnswer::Call(Answer::Present(VmFacts {
                host: "sim-0000-h0001".parse().expect("a host"),
                power: PowerState::Running,
                size: spec.size,
                snapshots: Vec::new(),
            }))
        }
        EffectKind::Publish(items) => {
            black_box(items);
            EffectAnswer::Published
        }
        EffectKind::Event(event) => {
            black_box(event);
            EffectAnswer::Published
        }
        EffectKind::Resolve { .. } => EffectAnswer::Resolved(Vec::new()),
    };
    Input::Answered { intent: effect.intent, answer }
}

/// What a run has taken, and what it leaves.
struct Run {
    seconds: f64,
    log: Vec<Bytes>,
    shard: Shard,
    resident: u64,
}

fn run(items: &[(Position, Bytes)], names: &ManagerNames, view: &CapacityView) -> Run {
    let before = resident_bytes();
    let count = ShardCount::new(1).expect("one");
    let mut shard = Shard::new(ShardId::new(0, count).expect("zero"), count, Limits::for_shards(count));
    let now = WallMs(1_700_000_000_000);
    let opened = Entry {
        epoch: shard.epoch().next(),
        prev: Seq::ZERO,
        at: now,
        jobs: None,
        control: None,
        records: vec![Record::Opened { cell: "c1".parse::<CellId>().expect("a cell"), address: "local:c1".to_owned() }],
    };
    shard.apply(Seq(1), &opened);
    let mut random = 1_u64;
    shard.opened(&Context { now, random, view, names, pauses: &Pauses::default() });
    let started = cpu_time();
    let mut seq = Seq(1);
    let mut log = vec![opened.encode()];
    let mut inputs: Vec<Input> = Vec::new();
    let mut jobs = items.iter();
    loop {
        inputs.extend(jobs.by_ref().take(BATCH).map(|(at, body)| Input::Jobs { at: *at, body: body.clone() }));
        if inputs.is_empty() {
            break;
        }
        for input in inputs.drain(..) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shard.handle(&Context { now, random, view, names, pauses: &Pauses::default() }, input);
        }
        while let Some(batch) = shard.take_batch() {
            log.push(batch.entry.encode());
            seq = seq.next();
            inputs.extend(shard.appended(seq, names).effects.into_iter().map(answer));
        }
    }
    assert_eq!(shard.stats().vms, items.len());
    let seconds = cpu_time() - started;
    let logged: u64 = log.iter().map(|entry| entry.len() as u64).sum();
    Run { seconds, resident: resident_bytes().saturating_sub(before + logged), log, shard }
}

/// What a new owner pays: the log replayed, and a snapshot made and read.
fn replay(run: &Run) {
    let n = JOBS as f64;
    let count = ShardCount::new(1).expect("one");
    let id = ShardId::new(0, count).expect("zero");
    let limits = Limits::for_shards(count);
    let started = cpu_time();
    let mut shard = Shard::new(id, count, limits.clone());
    for (index, entry) in run.log.iter().enumerate() {
        shard.apply(Seq(index as u64 + 1), &Entry::decode(entry).expect("an entry"));
    }
    println!("  {:.2} us of CPU a job to replay its log", (cpu_time() - started) / n * 1e6);
    assert!(shard.same_state(&run.shard));
    let started = cpu_time();
    let snapshot = shard.snapshot(Seq(run.log.len() as u64)).encode();
    println!(
        "  {:.2} us a job to make a snapshot, {:.0} bytes of it",
        (cpu_time() - started) / n * 1e6,
        snapshot.len() as f64 / n
    );
    let started = cpu_time();
    let decoded = cellbus_directory::ShardSnapshot::decode(&snapshot).expect("a snapshot");
    let restored = Shard::restore(id, count, limits, decoded).expect("it restores");
    println!("  {:.2} us a job to read one", (cpu_time() - started) / n * 1e6);
    assert!(restored.same_state(&shard));
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// CPU seconds of this process: these machines are shared, and wall time says little.
fn cpu_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: f64 = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|t| t.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

fn main() {
    let names = ManagerNames::new((0..500).map(|n| format!("sim-{n:04}").parse().expect("a name")));
    let (view, items) = (view(&names), items());
    let first = run(&items, &names, &view);
    let mut seconds: Vec<f64> = (0..4).map(|_| run(&items, &names, &view).seconds).chain([first.seconds]).collect();
    seconds.sort_by(f64::total_cmp);
    let (seconds, n) = (seconds[2], items.len() as f64);
    println!("state machine, provision of one VM, 500 managers, median of 5 runs of {JOBS}:");
    println!("  {:.2} us of CPU a job ({:.0} a second on one core)", seconds / n * 1e6, n / seconds);
    let logged: u64 = first.log.iter().map(|entry| entry.len() as u64).sum();
    println!("  {:.0} bytes of log a job, {:.1} jobs an entry", logged as f64 / n, n / first.log.len() as f64);
    println!("  {:.0} bytes of memory a job that has ended and its VM", first.resident as f64 / n);
    replay(&first);
    println!("  bounded by: one core; no I/O is done");
}
