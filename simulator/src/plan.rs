//! How large a Cellbus a fleet needs, and what gives way first: arithmetic over measured costs.
//!
//! ```text
//!  Fleet (hosts, VMs, jobs a second, how long operations take) ─┐
//!                                                               ├─▶ plan() ─▶ Plan: parts, times, limits
//!  Assumptions (measured costs, limits of cells and broker) ────┘
//! ```
//!
//! The model is linear on purpose: every figure can be followed by hand, and each assumption says
//! where it was measured, or that it is a guess. What it leaves out is said in [`Plan::caveats`].
//! [`runs`] holds it against clusters of a size that fits here.

use serde::Serialize;

mod assume;
mod page;
pub mod runs;

pub use assume::{Assumptions, Bus, UnknownAssumption};
pub use page::html;

/// What is to be managed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fleet {
    /// Hosts, all managers together.
    pub hosts: u64,
    /// VMs on them.
    pub vms: u64,
    /// Jobs a second at the busiest.
    pub jobs_per_second: f64,
    /// Seconds that an operation takes at its manager, in the middle.
    pub operation_seconds: f64,
}

impl Fleet {
    /// With so many hosts: 20 VMs a host, and as many jobs as the worst of two days asks for. One is
    /// busy: four jobs a VM and day, five times the mean at its peak. In the other a power domain
    /// with a third of the hosts has come back, and its VMs are to be started within ten minutes.
    #[must_use]
    pub fn of(hosts: u64) -> Self {
        let vms = hosts.saturating_mul(20);
        let busy = vms as f64 * 4.0 / 86_400.0 * 5.0;
        let storm = vms as f64 / 3.0 / 600.0;
        Self { hosts, vms, jobs_per_second: busy.max(storm), operation_seconds: 5.0 }
    }
}

/// What gives way at which rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limit {
    /// Of what.
    pub of: &'static str,
    /// Jobs a second that it carries, for this fleet and at the most of it that there can be.
    pub jobs_per_second: f64,
    /// Why it ends there, in words.
    pub because: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// For this.
    pub fleet: Fleet,
    /// Managers that the hosts need.
    pub managers: u64,
    /// Cells, one spare among them.
    pub cells: u64,
    /// Which of them says so.
    pub cells_for: &'static str,
    /// Shards: fixed for the cluster's life, so for what it may grow to.
    pub shards: u64,
    /// Replicas of the directory.
    pub replicas: u64,
    /// Memory of a cell, MiB.
    pub cell_memory_mib: u64,
    /// Memory of a replica of the directory, MiB.
    pub replica_memory_mib: u64,
    /// Messages a second at the bus.
    pub bus_messages_per_second: f64,
    /// Bytes a second written at the bus, all its replicas together.
    pub bus_bytes_per_second: f64,
    /// Of what the bus carries, the share that is used.
    pub bus_share: f64,
    /// From a cell's death until its shards are served again, seconds.
    pub takeover_seconds: f64,
    /// From nothing (no checkpoint) until a replica serves, seconds.
    pub replay_seconds: f64,
    /// From its checkpoint until a replica serves, seconds.
    pub checkpoint_seconds: f64,
    /// What gives way, the first first.
    pub limits: Vec<Limit>,
    /// What does not fit, in words; empty if all does.
    pub impossible: Vec<String>,
    /// What the figures leave out.
    pub caveats: Vec<&'static str>,
}

const MIB: f64 = 1024.0 * 1024.0;
const SHARDS_MIN: u64 = 256;
const SHARDS_MAX: u64 = 4096;

/// Works it out.
#[must_use]
pub fn plan(fleet: Fleet, assumed: &Assumptions) -> Plan {
    let (vms, rate) = (fleet.vms as f64, fleet.jobs_per_second);
    let managers = fleet.hosts.div_ceil(assumed.hosts_per_manager.max(1)).max(1);

    // A cell: processors for the rate, memory for the VMs of its shards and for jobs that have ended.
    let cell_rate = assumed.cell_cores * assumed.utilisation / (assumed.job_cpu_us / 1e6);
    let jobs_kept = vms * assumed.jobs_per_vm_and_day * assumed.job_retention_days;
    let state = vms * assumed.vm_bytes + jobs_kept * assumed.job_bytes;
    let cell_room = assumed.cell_memory_mib * MIB * assumed.utilisation;
    let (for_rate, for_memory) = ((rate / cell_rate).ceil(), (state / cell_room).ceil());
    // Two are the least, so that one can go; beyond that, one to spare.
    let cells = (for_rate.max(for_memory) + 1.0).max(2.0) as u64;
    let cells_for = if for_memory > for_rate { "memory" } else { "rate" };

    // Shards: four for each cell, and none so large that opening it takes long.
    let shards = (cells * 4).max((vms / assumed.vms_per_shard_max).ceil() as u64);
    let shards = shards.next_power_of_two().max(SHARDS_MIN);

    let bus_share = rate / assumed.bus_jobs_per_second;

    // Replicas: each folds every log.
    let fold_rate = assumed.replica_cores * assumed.utilisation / (assumed.fold_us / 1e6);
    let replicas = ((rate * assumed.lookups_per_job / assumed.lookups_per_second).ceil() as u64).max(2);
    let row_bytes = assumed.row_bytes * vms + assumed.listed_job_bytes * jobs_kept;

    let takeover = takeover_seconds(vms, cells, assumed);
    let replay = vms * assumed.restore_us / 1e6 / assumed.replica_cores
        + vms * assumed.snapshot_bytes * 2.0 / (assumed.bus_read_mib * MIB);

    let cells_most = shards / 4;
    let slots = managers as f64 * assumed.operations_per_manager;
    let mut limits = vec![
        Limit {
            of: "managers",
            jobs_per_second: slots / fleet.operation_seconds,
            because: format!(
                "{managers} managers with {:.0} operations under way each, of {} s",
                assumed.operations_per_manager, fleet.operation_seconds
            ),
        },
        Limit {
            of: "bus",
            jobs_per_second: assumed.bus_jobs_per_second * assumed.utilisation,
            because: format!("{} carries {:.0} jobs a second", assumed.bus.as_str(), assumed.bus_jobs_per_second),
        },
        Limit {
            of: "directory",
            jobs_per_second: fold_rate,
            because: format!("each replica folds every job, {} us each", assumed.fold_us),
        },
        Limit {
            of: "cells",
            jobs_per_second: cell_rate * cells_most as f64,
            because: format!("{shards} shards let {cells_most} cells work, {cell_rate:.0} jobs a second each"),
        },
    ];
    limits.sort_by(|a, b| a.jobs_per_second.total_cmp(&b.jobs_per_second));

    let mut impossible: Vec<String> = limits
        .iter()
        .filter(|limit| limit.jobs_per_second < rate)
        .map(|limit| {
            format!(
                "{}: {:.0} jobs a second of the {rate:.0} that are asked for: {}",
                limit.of, limit.jobs_per_second, limit.because
            )
        })
        .collect();
    if shards > SHARDS_MAX {
        impossible
            .push(format!("{shards} shards, of {SHARDS_MAX} that a cluster may have: split the fleet over clusters"));
    }
    Plan {
        fleet,
        managers,
        cells,
        cells_for,
        shards,
        replicas,
        cell_memory_mib: (state / cells as f64 / MIB + assumed.cell_base_mib).ceil() as u64,
        replica_memory_mib: (row_bytes / MIB + assumed.cell_base_mib).ceil() as u64,
        bus_messages_per_second: rate * assumed.bus_messages_per_job,
        bus_bytes_per_second: rate * assumed.bus_bytes_per_job * assumed.bus_replicas,
        bus_share,
        takeover_seconds: takeover,
        replay_seconds: replay,
        checkpoint_seconds: vms * assumed.checkpoint_us / 1e6,
        limits,
        impossible,
        caveats: vec![
            "jobs are taken to be spread evenly over shards and managers",
            "several assumptions are guesses, and say so: --assumptions shows them, --set changes them",
            "the hypervisors' own limits (datastores, networks) are not in it",
            "costs a job were measured with provisions, the dearest kind but migrate",
        ],
    }
}

impl Plan {
    /// What a takeover would take with so many cells.
    #[must_use]
    pub fn takeover_of(&self, cells: u64, assumed: &Assumptions) -> f64 {
        takeover_seconds(self.fleet.vms as f64, cells, assumed)
    }
}

/// The lease runs out; then the survivors share the dead cell's shards, and read and replay them.
fn takeover_seconds(vms: f64, cells: u64, assumed: &Assumptions) -> f64 {
    let survivors = cells.saturating_sub(1).max(1) as f64;
    let moved = vms / cells.max(1) as f64;
    // The tail is cut when it outweighs the snapshot: at the most as much again.
    let tail_jobs = assumed.snapshot_bytes / assumed.log_bytes * moved;
    let open_seconds = (moved * assumed.restore_us + tail_jobs * assumed.replay_us) / 1e6;
    let read_seconds = moved * assumed.snapshot_bytes * 2.0 / (assumed.bus_read_mib * MIB);
    assumed.lease_seconds + open_seconds / (survivors * assumed.cell_cores) + read_seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_of_everything_never_needs_less() {
        let assumed = Assumptions::of(Bus::Nats);
        let mut before = plan(Fleet::of(1_000), &assumed);
        for hosts in [10_000, 50_000, 500_000, 5_000_000] {
            let now = plan(Fleet::of(hosts), &assumed);
            assert!(now.cells >= before.cells && now.shards >= before.shards && now.managers > before.managers);
            assert!(now.replica_memory_mib > before.replica_memory_mib);
            assert!(now.shards.is_power_of_two() && now.cells * 4 <= now.shards);
            before = now;
        }
    }

    #[test]
    fn what_gives_way_first_is_said_and_the_rate_beyond_it_is_impossible() {
        let assumed = Assumptions::of(Bus::Nats);
        let fleet = Fleet { jobs_per_second: 10.0, ..Fleet::of(50_000) };
        let easy = plan(fleet, &assumed);
        assert!(easy.impossible.is_empty(), "{:?}", easy.impossible);
        assert!(easy.limits.windows(2).all(|two| two[0].jobs_per_second <= two[1].jobs_per_second));
        let beyond = easy.limits[0].jobs_per_second * 1.01;
        let hard = plan(Fleet { jobs_per_second: beyond, ..fleet }, &assumed);
        assert!(hard.impossible[0].starts_with(easy.limits[0].of), "{:?}", hard.impossible);
    }

    #[test]
    fn slow_operations_make_the_managers_the_limit() {
        let assumed = Assumptions::of(Bus::Embedded);
        let slow = Fleet { operation_seconds: 600.0, ..Fleet::of(50_000) };
        assert_eq!(plan(slow, &assumed).limits[0].of, "managers");
        let instant = Fleet { operation_seconds: 0.001, ..slow };
        assert_ne!(plan(instant, &assumed).limits[0].of, "managers");
    }

    #[test]
    fn a_longer_lease_is_a_longer_takeover() {
        let one = Assumptions::of(Bus::Nats);
        let three = Assumptions::of(Bus::Nats3);
        let times = |assumed| plan(Fleet::of(50_000), assumed).takeover_seconds;
        assert!(times(&three) - times(&one) > 8.0);
    }
}
