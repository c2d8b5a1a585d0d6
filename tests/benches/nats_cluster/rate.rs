//! Jobs a second from the ingress to their outcomes, how long one takes, and what each process spends on it.
//!
//! Producers on NATS ask for no answers: each job is acknowledged by the broker, and its outcome is an event. Over HTTP
//! jobs make many VMs each. Each run has a cluster of its own, since what a run leaves behind (snapshots that are due, memory
//! that grows) weighs on the next one.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cellbus_tests::cluster::Cluster;
use cellbus_tests::process::{command, cpu_of};
use serde_json::Value;

use crate::{bare, fleet, shape};

/// How long jobs come.
const SECONDS: &str = "10s";
/// One VM each; and, as `cellbus load` does by default, two in five for VMs that are there, whose homes are
/// mostly others than the jobs'.
const PROVISIONS: &[&str] = &["--mix", "provision=1"];
const LIVELY: &[&str] = &[];
/// VMs that jobs over HTTP make.
const VMS: u64 = 400_000;

struct Run {
    name: &'static str,
    /// Jobs a second.
    rate: u32,
    mix: &'static [&'static str],
}

const FEW: [Run; 3] = [
    Run { name: "jobs for one VM, too many", rate: 14_000, mix: PROVISIONS },
    Run { name: "two in five for VMs that are there", rate: 14_000, mix: LIVELY },
    Run { name: "jobs for one VM, a quarter", rate: 2_500, mix: PROVISIONS },
];
const MANY: [Run; 2] = [
    Run { name: "jobs for one VM, too many", rate: 10_000, mix: PROVISIONS },
    Run { name: "jobs for one VM, a quarter", rate: 2_000, mix: PROVISIONS },
];

pub(crate) async fn run() -> Result<()> {
    for (shards, runs) in [(16, &FEW[..]), (256, &MANY[..])] {
        println!("{shards} shards");
        for run in runs {
            over_nats(run, &Cluster::start(shape(50, 200, shards), 1, 1).await?).await?;
        }
        over_http(&Cluster::start(shape(50, 200, shards), 1, 1).await?).await?;
    }
    Ok(())
}

/// CPU time that the processes have had which a job passes: broker, cell, directory, managers.
fn cpu(cluster: &Cluster) -> Result<[Duration; 4]> {
    let broker = cpu_of(cluster.broker.pid().context("the broker runs")?)?;
    Ok([broker, cluster.cells[0].cpu()?, cluster.directories[0].cpu()?, cluster.managers.cpu()?])
}

/// What each has spent on one of so many since.
fn spent(cluster: &Cluster, before: [Duration; 4], among: f64) -> Result<String> {
    let after = cpu(cluster)?;
    let [broker, cell, directory, managers] =
        std::array::from_fn(|at| after[at].saturating_sub(before[at]).as_secs_f64() * 1e6 / among);
    Ok(format!("CPU us: broker {broker:.0}, cell {cell:.0}, directory {directory:.0}, managers {managers:.0}"))
}

async fn over_nats(Run { name, rate, mix }: &Run, cluster: &Cluster) -> Result<()> {
    let before = bare::turn(&cluster.broker).await;
    let had = cpu(cluster)?;
    let (offered, urls) = (rate.to_string(), format!("nats.urls={}", cluster.broker.url()));
    let server = &cluster.directories[0].url;
    let what = ["load", "--server", server, "--over", "nats", "--no-answers", "--set", &urls, "--rate", &offered];
    let how = ["--duration", SECONDS, "--no-audit", "--output", "json"];
    let done = tokio::task::block_in_place(|| command().args(what).args(how).args(*mix).stdin(Stdio::null()).output())?;
    let report: Value = serde_json::from_slice(&done.stdout)
        .with_context(|| format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr)))?;
    ensure!(done.status.success() && report["lost"] == 0, "{report}");
    let number = |value: &Value| value.as_f64().context("a number");
    let (jobs, second) = (number(&report["jobs_succeeded"])?, number(&report["jobs_per_second"])?);
    let (p50, p99) = (number(&report["latency_ms"]["p50"])?, number(&report["latency_ms"]["p99"])?);
    let spent = spent(cluster, had, jobs)?;
    let bare = f64::midpoint(before, bare::turn(&cluster.broker).await);
    println!(
        "  {name:<36} {offered:>6} offered {second:>6.0} /s, {:.2} of bare publish, pull, ack ({bare:.0} /s); p50 {p50:.0} ms, \
         p99 {p99:.0} ms; {spent}",
        second / bare,
    );
    Ok(())
}

async fn over_http(cluster: &Cluster) -> Result<()> {
    let had = cpu(cluster)?;
    let began = Instant::now();
    fleet::make(&cluster.cells[0].door(), 0, VMS).await?;
    let second = VMS as f64 / began.elapsed().as_secs_f64();
    let name = "over HTTP, jobs for 10,000 VMs";
    println!("  {name:<36} {VMS:>7} VMs    {second:>6.0} VMs/s; {}", spent(cluster, had, VMS as f64)?);
    Ok(())
}
