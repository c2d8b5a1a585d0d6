//! Seeded runs of the whole of Cellbus in virtual time.

use cellbus_simulator::simulate::{Config, Faults, run};

#[test]
fn without_faults_everything_ends_well() {
    for seed in 0..4 {
        let report = run(&Config { faults: Faults::none(), ..Config::small(seed) });
        assert!(report.good(), "{report:#?}");
        assert!(report.jobs_succeeded > 50 && report.vms_checked > 30, "{report:#?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut traces = Vec::new();
    for seed in 0..4 {
        let first = run(&Config::small(seed));
        assert_eq!(first, run(&Config::small(seed)));
        traces.push(first.trace);
    }
    traces.dedup();
    assert_eq!(traces.len(), 4, "another seed gives another run");
}

/// For whoever looks for bugs: `CELLBUS_SEEDS=from..to`, `CELLBUS_FAULTS=list`, `CELLBUS_HISTORY=1`.
#[test]
#[ignore = "runs as many seeds as it is told"]
fn seeds_from_the_environment() {
    let seeds = std::env::var("CELLBUS_SEEDS").unwrap_or_else(|_| "0..20".to_owned());
    let (from, to) = seeds.split_once("..").expect("from..to");
    let faults: Faults = std::env::var("CELLBUS_FAULTS").unwrap_or_else(|_| "all".to_owned()).parse().unwrap();
    let history = std::env::var("CELLBUS_HISTORY").is_ok();
    let (mut bad, mut seen) = (0, 0);
    for seed in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        let report = run(&Config { faults: faults.clone(), history, ..Config::small(seed) });
        seen += 1;
        if !report.good() {
            bad += 1;
            println!("seed {seed}: {:#?}", report.violations);
            report.history.iter().for_each(|line| println!("{line}"));
        } else {
            println!(
                "seed {seed} well: {} s to rest, {} jobs, {} of {} checked",
                report.rest_seconds, report.jobs_submitted, report.vms_checked, report.vms
            );
        }
    }
    println!("{bad} of {seen} seeds failed");
}
