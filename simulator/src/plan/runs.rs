//! Runs that the model is held against: whole clusters in this process, as large as fit here.
//!
//! Each run makes VMs in steps, and after each step kills a cell and waits until the others serve
//! its shards. Managers answer at once, so that what is measured is Cellbus.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_cell::config::Config;
use cellbus_cell::gateway::ShardState;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Assumptions, Bus, Fleet, plan};
use crate::cluster::{self, Cluster, Parts};
use crate::inventory::{self, Inventory};
use crate::load::{self, Options, Usage, workload};
use crate::managers::Latency;

const POLL: Duration = Duration::from_millis(10);
const TAKEOVER_MAX: Duration = Duration::from_secs(120);

/// What is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Hosts of the cluster.
    pub hosts: u64,
    /// VMs that it is to have, in steps.
    pub vms: Vec<u64>,
}

impl Step {
    /// Hosts from 1,000 to 50,000 with as many VMs, and at the most hosts more and more VMs.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        let small = [1_000, 10_000].map(|hosts| Self { hosts, vms: vec![20_000] });
        small.into_iter().chain([Self { hosts: 50_000, vms: vec![20_000, 60_000, 140_000] }]).collect()
    }
}

/// What a run has shown, beside what the model says of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ran {
    /// Hosts of the cluster.
    pub hosts: u64,
    /// VMs that it had.
    pub vms: u64,
    /// Provisions a second on the way there.
    pub jobs_per_second: f64,
    /// CPU of a job, microseconds; load harness and simulated managers included.
    pub job_cpu_us: f64,
    /// What the model says.
    pub job_cpu_us_planned: f64,
    /// Memory for each VM, bytes: shard, directory and simulated manager.
    pub vm_bytes: f64,
    /// What the model says, of shard and directory.
    pub vm_bytes_planned: f64,
    /// From a cell's death until all shards were served again, seconds.
    pub takeover_seconds: f64,
    /// What the model says.
    pub takeover_seconds_planned: f64,
}

/// Why there was no run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster did not start.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// So many hosts cannot be.
    #[error(transparent)]
    Inventory(#[from] inventory::Error),
    /// It started, and did not do as it should.
    #[error("{0}")]
    Run(String),
}

impl Error {
    /// Whether the same may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Cluster(error) => error.retryable(),
            Self::Inventory(_) => false,
            Self::Run(_) => true,
        }
    }
}

/// Runs one cluster through its steps; `usage` says what this process has used until now, and
/// `told` is given each result.
///
/// # Errors
/// When the cluster does not start, or does not do as it should.
pub async fn run(
    step: &Step,
    cores: f64,
    config: Config,
    data: &Path,
    env: &Env,
    usage: impl Fn() -> Usage,
    mut told: impl FnMut(&Ran),
) -> Result<Vec<Ran>, Error> {
    let wrong = |what: String| Error::Run(what);
    let cells = u64::from(config.cells);
    let lease = config.lease.ttl;
    let parts = Parts {
        config: config.in_directory(data),
        inventory: Inventory::generate(step.hosts, step.hosts.div_ceil(100))?,
        latency: Latency::None,
        managers_durable: true,
    };
    let mut cluster = Cluster::open(parts, env.clone()).await?;
    cluster.ready(Duration::from_secs(60)).await.map_err(|error| wrong(error.to_string()))?;
    let empty = usage();
    let mut assumed = Assumptions::of(Bus::Embedded);
    (assumed.cell_cores, assumed.lease_seconds) = (cores / cells as f64, lease.as_secs_f64());
    let (mut made, mut ran) = (0, Vec::new());
    for (round, vms) in step.vms.iter().enumerate() {
        let count = vms.saturating_sub(made);
        let before = usage();
        let options = Options {
            audit: false,
            lookups: Duration::ZERO,
            seed: round as u64,
            ..Options::flood("plan".parse().map_err(|_| wrong("a tenant of that name cannot be".to_owned()))?)
        };
        let work = workload::provisions(count, round as u64);
        let report = load::run(work, cluster.target(), options, Arc::new(()), CancellationToken::new(), env.clone())
            .await
            .map_err(|error| wrong(error.to_string()))?;
        if !report.clean() {
            return Err(wrong(format!("{} of {count} provisions failed", report.jobs_failed + report.jobs_unfinished)));
        }
        made = *vms;
        let after = usage();
        let fleet = Fleet { hosts: step.hosts, vms: made, jobs_per_second: 1.0, operation_seconds: 0.02 };
        let takeover = takeover(&mut cluster, env).await?;
        // As many cells as there are here, whatever the fleet needs.
        let planned = plan(fleet, &assumed).takeover_of(cells, &assumed);
        let one = Ran {
            hosts: step.hosts,
            vms: made,
            jobs_per_second: report.jobs_per_second,
            job_cpu_us: after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / count.max(1) as f64,
            job_cpu_us_planned: assumed.job_cpu_us,
            vm_bytes: (after.rss_mib - empty.rss_mib).max(0.0) * 1024.0 * 1024.0 / made.max(1) as f64,
            vm_bytes_planned: assumed.vm_bytes + assumed.row_bytes,
            takeover_seconds: takeover.as_secs_f64(),
            takeover_seconds_planned: planned,
        };
        told(&one);
        ran.push(one);
        cluster.add_cell();
        cluster.ready(Duration::from_secs(60)).await.map_err(|error| wrong(error.to_string()))?;
    }
    cluster.stop(Duration::from_secs(10)).await;
    Ok(ran)
}

/// Kills a cell, and waits until the others serve all that it did.
async fn takeover(cluster: &mut Cluster, env: &Env) -> Result<Duration, Error> {
    let Some(dead) = cluster.kill_cell() else { return Err(Error::Run("there was no cell to kill".to_owned())) };
    let began = env.mono();
    loop {
        env.sleep(POLL).await;
        let rows = cluster.gateway().shards().await.map_err(|error| Error::Run(error.to_string()))?;
        let served = |state: &ShardState| matches!(state, ShardState::Open);
        if rows.iter().all(|row| served(&row.state) && row.owner.as_ref().is_some_and(|owner| *owner != dead)) {
            return Ok(env.mono().since(began));
        }
        if env.mono().since(began) > TAKEOVER_MAX {
            return Err(Error::Run(format!("the shards of {dead} were not taken over")));
        }
    }
}
