//! Seeded runs of the whole of Cellbus in virtual time. `CELLBUS_LONG=1` makes many more of them.

use std::num::NonZero;
use std::time::Duration;

use cellbus_bus::ids::ShardCount;
use cellbus_simulator::simulate::{Asked, Config, FaultKind, Faults, Idle, idle, run, run_many, shrink};

/// Seeds of runs that once failed, and what was wrong. What a seed does changes with the code, so
/// that each is worth little by itself; all together they have been good at finding things.
const CORPUS: &[(u64, &str)] = &[
    (0, "a migrate of a VM that is off, for which there was no room, was said to have succeeded"),
    (4, "a call that was put off for less than a millisecond was due at once, and again"),
    (9, "a create of an older session was forgotten when a later try was turned away: made twice"),
    (23, "the same, and cancelled: its VM came to be with nobody to answer for it"),
    (34, "an adopted create had just ended when it was withdrawn: taken for never begun"),
    (86, "an adopted create had just ended when its manager was cordoned: taken for refused"),
    (412, "a migrate that a lost copy parked was not helped by trying again, and left its source behind"),
    (6_083, "the same"),
    (6_287, "an operation failed for good that an earlier owner had done: its VM was not read again"),
    (33, "an audit did not look at snapshots, and a front only at their number"),
    (37, "the same"),
    (414, "an operation failed for good that an earlier try had done, and who was to read the VM again died"),
    (447, "a revert after a migrate to where the VM was already: the books knew a power that was never copied"),
    (6_192, "what was observed while work was under way was forgotten, and the work needed no call"),
    (6_051, "a host was lost while a VM moved to it: its manager's front panicked when the move ended"),
];

fn long() -> bool {
    std::env::var_os("CELLBUS_LONG").is_some()
}

/// Makes these runs, as many at once as there are processors, and tells of all that went wrong.
fn all_well(configs: impl Iterator<Item = Config> + Send) {
    let mut bad = Vec::new();
    let at_once = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    run_many(configs, at_once, |config, report| {
        if !report.good() {
            let Config { seed, faults, .. } = config;
            bad.push(format!("cellbus simulate --seed {seed} --faults {faults}: {:#?}", report.violations));
        }
    });
    assert!(bad.is_empty(), "{} runs failed; these show what happened:\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn without_faults_everything_ends_well() {
    for seed in 0..if long() { 100 } else { 3 } {
        let report = run(&Config { faults: Faults::none(), ..Config::small(seed) });
        assert!(report.good(), "{report:#?}");
        assert!(report.jobs_succeeded > 50 && report.vms_checked > 30, "{report:#?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut traces = Vec::new();
    for seed in 0..if long() { 200 } else { 2 } {
        let first = run(&Config::small(seed));
        assert_eq!(first, run(&Config::small(seed)));
        // Nor does it matter whether its history is kept.
        let told = run(&Config { history: true, ..Config::small(seed) });
        assert_eq!(told.trace, first.trace);
        traces.push(first.trace);
    }
    let runs = traces.len();
    traces.sort();
    traces.dedup();
    assert_eq!(traces.len(), runs, "another seed gives another run");
}

#[test]
fn seeds_that_once_failed() {
    all_well(CORPUS.iter().map(|(seed, _)| Config::small(*seed)));
}

#[test]
fn every_fault_alone() {
    let seeds = 1_000..if long() { 1_040 } else { 1_001 };
    let alone = |kind: &FaultKind| {
        let faults = Faults::only(*kind);
        seeds.clone().map(move |seed| Config { faults: faults.clone(), ..Config::small(seed) })
    };
    all_well(FaultKind::ALL.iter().flat_map(alone));
}

#[test]
fn every_fault_together() {
    all_well((2_000..if long() { 5_000 } else { 2_060 }).map(Config::small));
}

/// Whatever becomes of cells, their clocks and the bus, and whoever cannot know of it.
#[test]
fn operators_stop_work() {
    let faults: Faults = "stops=6,crash,pause,clock,partition,bus,network,members".parse().unwrap();
    let seeds = 4_000..if long() { 4_200 } else { 4_006 };
    all_well(seeds.map(|seed| Config { faults: faults.clone(), ..Config::small(seed) }));
}

/// With more shards than the small runs, of which a quarter is the most cells.
#[test]
fn an_autoscaler_that_acts() {
    let (mut led, mut more, mut fewer, mut moved) = (0, 0, 0, 0);
    for seed in 3_000..if long() { 3_100 } else { 3_006 } {
        let report = run(&Config {
            shards: ShardCount::new(32).unwrap(),
            faults: "autoscaler=2,crash,pause,partition,bus".parse().unwrap(),
            ..Config::small(seed)
        });
        assert!(report.good(), "seed {seed}: {:#?}", report.violations);
        led += report.controllers_led;
        more += report.scaled_out;
        fewer += report.scaled_in;
        moved += report.cells_moved;
    }
    assert!(led > 3 && more > 3 && fewer > 3 && moved > 6, "{led} led, {more} more, {fewer} fewer, {moved} moved");
}

#[test]
fn a_failing_run_is_made_smaller() {
    let caught = |seed| Config {
        sabotage: Some(cellbus_simulator::simulate::Sabotage::StaleDirectory),
        faults: "crash,pause".parse().unwrap(),
        duration: std::time::Duration::from_secs(30),
        ..Config::small(seed)
    };
    // Looks at VMs may put right what this directory has not heard of.
    let failing = (0..5).map(caught).find(|config| !run(config).good()).expect("one of them fails");
    let shrunk = shrink(&failing, 40, |_| {}).expect("it fails");
    assert!(!shrunk.report.good());
    assert_eq!(shrunk.config.faults, Faults::none(), "none of them was needed");
    assert!(shrunk.config.duration < failing.duration && shrunk.config.vms < failing.vms);
    assert!(shrink(&Config { faults: Faults::none(), ..Config::small(3) }, 5, |_| {}).is_none());
}

/// For whoever looks for bugs: `CELLBUS_SEEDS=from..to`, `CELLBUS_FAULTS=list`, `CELLBUS_SHARDS=count`.
#[test]
#[ignore = "runs as many seeds as it is told"]
fn seeds_from_the_environment() {
    let seeds = std::env::var("CELLBUS_SEEDS").unwrap_or_else(|_| "0..20".to_owned());
    let (from, to) = seeds.split_once("..").expect("from..to");
    let faults: Faults = std::env::var("CELLBUS_FAULTS").unwrap_or_else(|_| "all".to_owned()).parse().unwrap();
    let history = std::env::var_os("CELLBUS_HISTORY").is_some();
    let shards = std::env::var("CELLBUS_SHARDS")
        .map_or(Config::small(0).shards, |count| ShardCount::new(count.parse().unwrap()).unwrap());
    let mut bad = Vec::new();
    for seed in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        let report = run(&Config { faults: faults.clone(), history, shards, ..Config::small(seed) });
        println!(
            "seed {seed}: led {} out {} in {} moved {}, {:.0} s",
            report.controllers_led, report.scaled_out, report.scaled_in, report.cells_moved, report.virtual_seconds
        );
        if !report.good() {
            bad.push(seed);
            println!("seed {seed}: {:#?}", report.violations);
            report.history.iter().for_each(|line| println!("{line}"));
        }
    }
    assert!(bad.is_empty(), "these failed: {bad:?}");
}

fn asked(cells: u32, shards: u16, lease: u64) -> Asked {
    let shards = ShardCount::new(shards).expect("a number of shards");
    let lease = Duration::from_secs(lease);
    let asked = idle(&Idle { seed: 4, cells: cells - 2, directories: 2, shards, lease, job_every: None });
    assert!(asked.panics.is_empty(), "{:?}", asked.panics);
    assert!(asked.open_after.is_some(), "not all shards were served: {asked:?}");
    println!("{} shards, {cells} cells, a lease of {lease:?}: {asked:.2?}", shards.get());
    asked
}

/// What an idle cluster asks grows with its cells, and with its shards, not with one times the other.
#[test]
fn an_idle_cluster_asks_little_of_its_bus() {
    let (few, many) = (asked(5, 256, 3), asked(50, 256, 3));
    let rate = |asked: &Asked, what| asked.per_second.get(what).copied().unwrap_or_default();
    for what in ["append", "publish", "publish-events", "write-snapshot"] {
        assert!(rate(&many, what) < 0.1, "{what}: {many:?}");
    }
    // Once for all that is in a process, at each beat: lists name everybody, and cost more than beats.
    assert!(rate(&many, "members") <= rate(&many, "beat"), "{many:?}");
    for what in ["beat", "members", "requests"] {
        let (few, many) = (rate(&few, what), rate(&many, what));
        assert!(many < 12.0 * few + 1.0, "{what}: {few} a second with 5 cells, {many} with 50");
    }
    if long() {
        let _ = asked(500, 2_048, 12);
    }
}

/// Of a job's appends two must be made before anything follows: that it is accepted, and that it has ended. That its
/// outcome is out goes along with those of others.
#[test]
fn a_job_costs_its_bus_two_appends_where_others_are_beside_it() {
    let (shards, lease) = (ShardCount::new(4).expect("a number of shards"), Duration::from_secs(3));
    let job_every = Some(Duration::from_millis(40));
    let asked = idle(&Idle { seed: 4, cells: 2, directories: 2, shards, lease, job_every });
    assert!(asked.panics.is_empty() && asked.jobs > 1_000, "{asked:?}");
    let of_a_job = |what| asked.per_second.get(what).copied().unwrap_or_default() * 60.0 / asked.jobs as f64;
    println!("{} jobs: {:.2} appends, {:.2} publishes of each", asked.jobs, of_a_job("append"), of_a_job("publish"));
    assert!(of_a_job("append") < 2.5, "{asked:?}");
    assert!(of_a_job("publish") < 1.1, "{asked:?}");
}
