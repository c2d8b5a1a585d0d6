//! Managers, each by its name, and only from the process whose cells front it: with every process
//! speaking of every manager their series would grow with the product of both.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use cellbus_workflows::Health;
use prometheus::{IntGaugeVec, Registry};

use super::described::{Described, register, signed};
use crate::gateway::{CircuitState, ManagerRow};

const UP: Described = Described::gauge(
    "cellbus_manager_up",
    "0 or 1",
    &["manager"],
    "1 while the manager answers and takes work",
    "0: `cellbus managers` says why; its VMs keep running, work on them waits",
);
const CORDONED: Described = Described::gauge(
    "cellbus_manager_cordoned",
    "0 or 1",
    &["manager"],
    "1 while an operator keeps new VMs off the manager; alerts on it are silent then",
    "Uncordon it after maintenance: `cellbus managers uncordon`",
);
const CIRCUIT_OPEN: Described = Described::gauge(
    "cellbus_manager_circuit_open",
    "0 or 1",
    &["manager"],
    "1 while its circuit is open or half open: calls to it failed, and only probes go",
    "As cellbus_manager_up",
);
const OPERATIONS: Described = Described::gauge(
    "cellbus_manager_operations",
    "operations",
    &["manager", "state"],
    "Operations at the manager: running (the concurrency in use), waiting for their turn",
    "Many waiting for long: the manager is saturated; more cells do not help, other limits (`managers[].limits`) or managers do",
);
const HOSTS: Described = Described::gauge(
    "cellbus_manager_hosts",
    "hosts",
    &["manager", "state"],
    "Its hosts: open (they take new VMs), closed",
    "Many closed: `cellbus hosts`",
);
const VMS: Described = Described::gauge(
    "cellbus_manager_vms",
    "VMs",
    &["manager", "whose"],
    "VMs that the manager says it holds: ours, foreign",
    "Foreign ones take room that nobody here accounts for",
);
const CAPACITY: Described = Described::gauge(
    "cellbus_manager_capacity",
    "vCPUs or bytes",
    &["manager", "resource"],
    "What its hosts have in all, over-commit counted, and a datastore that several of them see once: vcpus, memory_bytes, disk_bytes",
    "To see how full it is, with cellbus_manager_capacity_free",
);
const CAPACITY_FREE: Described = Described::gauge(
    "cellbus_manager_capacity_free",
    "vCPUs or bytes",
    &["manager", "resource"],
    "What is free of it on hosts that are open",
    "Add hosts or move VMs before it ends: `cellbus vm migrate`",
);

const IRREGULAR_VMS: Described = Described::gauge(
    "cellbus_manager_irregular_vms",
    "VMs",
    &["manager"],
    "VMs at the manager whose id is not beyond doubt (two of one id, an id that was changed); only where there are any",
    "CellbusManagerIrregular; `irregular_why` of `cellbus managers --output json` says which",
);

pub(super) const ALL: &[Described] =
    &[UP, CORDONED, CIRCUIT_OPEN, OPERATIONS, HOSTS, VMS, CAPACITY, CAPACITY_FREE, IRREGULAR_VMS];

/// Labels beside the manager's name, of each gauge.
const OPERATION_STATES: [&str; 2] = ["running", "waiting"];
const HOST_STATES: [&str; 2] = ["open", "closed"];
const WHOSE: [&str; 2] = ["ours", "foreign"];
const RESOURCES: [&str; 3] = ["vcpus", "memory_bytes", "disk_bytes"];

pub(super) struct Managers {
    up: IntGaugeVec,
    cordoned: IntGaugeVec,
    circuit_open: IntGaugeVec,
    operations: IntGaugeVec,
    hosts: IntGaugeVec,
    vms: IntGaugeVec,
    capacity: IntGaugeVec,
    capacity_free: IntGaugeVec,
    irregular_vms: IntGaugeVec,
    /// Those that have series now.
    shown: Mutex<BTreeSet<String>>,
}

impl Managers {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            up: register(registry, UP.int_gauges())?,
            cordoned: register(registry, CORDONED.int_gauges())?,
            circuit_open: register(registry, CIRCUIT_OPEN.int_gauges())?,
            operations: register(registry, OPERATIONS.int_gauges())?,
            hosts: register(registry, HOSTS.int_gauges())?,
            vms: register(registry, VMS.int_gauges())?,
            capacity: register(registry, CAPACITY.int_gauges())?,
            capacity_free: register(registry, CAPACITY_FREE.int_gauges())?,
            irregular_vms: register(registry, IRREGULAR_VMS.int_gauges())?,
            shown: Mutex::default(),
        })
    }

    /// Those that are fronted here, and no others any more.
    pub(super) fn show<'a>(&self, rows: impl Iterator<Item = &'a ManagerRow>) {
        // Two that are asked at once must not drop what the other shows.
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = std::mem::take(&mut *shown);
        for row in rows {
            self.one(row);
            gone.remove(&row.name);
            shown.insert(row.name.clone());
        }
        gone.iter().for_each(|name| self.drop(name));
    }

    fn one(&self, row: &ManagerRow) {
        let name = row.name.as_str();
        let circuit_open = match &row.circuit {
            Some(CircuitState::Open { .. } | CircuitState::HalfOpen) => 1,
            Some(CircuitState::Closed) | None => 0,
        };
        self.up.with_label_values(&[name]).set(i64::from(row.health == Health::Healthy));
        self.cordoned.with_label_values(&[name]).set(i64::from(row.cordoned));
        self.circuit_open.with_label_values(&[name]).set(circuit_open);
        let two = |gauges: &IntGaugeVec, labels: [&str; 2], values: [u64; 2]| {
            for (label, value) in labels.iter().zip(values) {
                gauges.with_label_values(&[name, label]).set(signed(value));
            }
        };
        let sum =
            |operations: &std::collections::BTreeMap<String, u32>| operations.values().copied().map(u64::from).sum();
        two(&self.operations, OPERATION_STATES, [sum(&row.running), sum(&row.waiting)]);
        two(&self.hosts, HOST_STATES, [row.hosts_open.into(), row.hosts.saturating_sub(row.hosts_open).into()]);
        two(&self.vms, WHOSE, [row.vms, row.foreign_vms]);
        if row.irregular_vms > 0 {
            self.irregular_vms.with_label_values(&[name]).set(signed(row.irregular_vms));
        } else {
            // Nothing to be seen to is no series: thousands of managers have none.
            let _ = self.irregular_vms.remove_label_values(&[name]);
        }
        let of = [(row.vcpus, 0), (row.memory_mib, 20), (row.disk_gib, 30)];
        for (resource, (of, shift)) in RESOURCES.iter().zip(of) {
            self.capacity.with_label_values(&[name, resource]).set(signed(of.total.saturating_mul(1 << shift)));
            self.capacity_free.with_label_values(&[name, resource]).set(signed(of.free.saturating_mul(1 << shift)));
        }
    }

    fn drop(&self, name: &str) {
        // A series that is not there cannot be removed, which is as good.
        for gauges in [&self.up, &self.cordoned, &self.circuit_open, &self.irregular_vms] {
            let _ = gauges.remove_label_values(&[name]);
        }
        let labelled: [(&IntGaugeVec, &[&str]); 5] = [
            (&self.operations, &OPERATION_STATES),
            (&self.hosts, &HOST_STATES),
            (&self.vms, &WHOSE),
            (&self.capacity, &RESOURCES),
            (&self.capacity_free, &RESOURCES),
        ];
        for (gauges, labels) in labelled {
            for label in labels {
                let _ = gauges.remove_label_values(&[name, label]);
            }
        }
    }
}
