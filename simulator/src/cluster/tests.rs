use cellbus_cell::config::{Override, Sources, markdown};

use cellbus_cell::node::{cell_config, checkpoint_config};

use super::*;
use crate::drivers::front_config;

/// A value of each key of these sections that is not its default.
const OTHERS: &[(&str, &str)] = &[
    ("lease.ttl", "9s"),
    ("lease.beat", "300ms"),
    ("jobs.accepted_max", "7"),
    ("jobs.in_flight_per_manager_max", "1"),
    ("jobs.retention", "2d"),
    ("jobs.remember", "30d"),
    ("jobs.placement_patience", "7s"),
    ("cell.in_flight_max", "7"),
    ("snapshot.tail_min", "3MiB"),
    ("events.keep_max", "7000"),
    ("events.keep_size_max", "7MiB"),
    ("disk.free_min", "70MiB"),
    ("directory.checkpoint_dir", "/elsewhere"),
    ("directory.checkpoint_interval", "7s"),
    ("circuit.failures_max", "7"),
    ("circuit.open_first", "700ms"),
    ("circuit.open_max", "7m"),
];

/// All that the parts of a cluster are given.
fn given(key: &str, value: &str) -> String {
    let set = Override { key: key.to_owned(), value: value.to_owned(), flag: "--test".to_owned() };
    let overrides = if key.is_empty() { Vec::new() } else { vec![set] };
    let config = Config::load(Sources { overrides, ..Sources::default() }).expect("a sound configuration");
    let front = front_config(&config, &"vc-1".parse().expect("a name"));
    let cell = cell_config(&config, config.shards, "cell-1".parse().expect("an id"), vec![front]);
    format!("{:?} {:?} {cell:?}", bus_config(&config), checkpoint_config(&config))
}

#[test]
fn what_is_configured_reaches_the_parts() {
    let usual = given("", "");
    for (key, value) in OTHERS {
        assert_ne!(given(key, value), usual, "{key} reaches nobody");
    }
    // None is left out: the documentation lists them all.
    let sections = ["lease", "jobs", "cell", "snapshot", "trim", "events", "disk", "directory", "circuit"];
    for line in markdown().lines() {
        let Some(key) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) else { continue };
        let Some((section, _)) = key.split_once('.') else { continue };
        if sections.contains(&section) {
            assert!(OTHERS.iter().any(|(known, _)| *known == key), "{key} is not looked at by this test");
        }
    }
}

mod datastores;
mod drift;
mod failover;
mod one_manager;
