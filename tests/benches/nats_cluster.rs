//! A cluster on NATS in processes of its own, under load: what it carries in a second, how long a job
//! takes, what each process spends on it, and what a bare client of the same server reaches in the
//! same run.
//!
//! nats-server, a cell, a directory, managers that answer at once and keep their VMs in memory, and the
//! load, all on this machine. Producers ask for no answers; each job is acknowledged by the broker, and
//! its outcome is an event.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and starts tasks")]

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use cellbus_bus::allocator::{self, Allocator};
use cellbus_bus::nats::testing::bare::WorkQueue;
use cellbus_bus::nats::testing::{NatsServer, left_out};
use cellbus_tests::cluster::{Cluster, Shape};
use cellbus_tests::process::command;
use serde_json::Value;

/// As in the `cellbus` binary, so that the yardstick is no shorter.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Messages of a round of the yardstick, and their bytes: about those of a job.
const MESSAGES: u64 = 60_000;
const BODY: usize = 512;
/// Of CPU time in `/proc`: what Linux tells user space on every architecture of today.
const TICKS_A_SECOND: f64 = 100.0;
/// How long jobs come.
const SECONDS: &str = "10s";
/// One VM each; and, as `cellbus load` does by default, two in five for VMs that are there, whose homes are
/// mostly others than the jobs'.
const PROVISIONS: &[&str] = &["--mix", "provision=1"];
const LIVELY: &[&str] = &[];

/// CPU time of the processes that a job passes, in clock ticks: broker, cell, directory, managers.
fn ticks(cluster: &Cluster) -> Result<[u64; 4]> {
    let broker = cluster.broker.pid().context("the broker runs")?;
    let pids = [broker, cluster.cells[0].pid(), cluster.directories[0].pid(), cluster.managers.pid()];
    let mut ticks = [0; 4];
    for (ticks, pid) in ticks.iter_mut().zip(pids) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Behind the name, which may hold anything, utime and stime are the 12th and 13th.
        let behind = stat.rsplit(')').next().context("a name")?;
        let fields: Vec<&str> = behind.split_ascii_whitespace().collect();
        *ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    Ok(ticks)
}

/// Offers so many jobs a second.
fn run(cluster: &Cluster, name: &str, rate: u32, mix: &[&str], bare: f64) -> Result<()> {
    let before = ticks(cluster)?;
    let (rate, urls) = (rate.to_string(), format!("nats.urls={}", cluster.broker.url()));
    let server = &cluster.directories[0].url;
    let what = ["load", "--server", server, "--over", "nats", "--no-answers", "--set", &urls, "--rate", &rate];
    let how = ["--duration", SECONDS, "--no-audit", "--output", "json"];
    let done = command().args(what).args(how).args(mix).stdin(Stdio::null()).output()?;
    let report: Value = serde_json::from_slice(&done.stdout)
        .with_context(|| format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr)))?;
    ensure!(done.status.success() && report["lost"] == 0, "{report}");
    let after = ticks(cluster)?;
    let number = |value: &Value| value.as_f64().context("a number");
    let (jobs, second) = (number(&report["jobs_succeeded"])?, number(&report["jobs_per_second"])?);
    let (p50, p99) = (number(&report["latency_ms"]["p50"])?, number(&report["latency_ms"]["p99"])?);
    let micros = |at: usize| (after[at] - before[at]) as f64 * 1e6 / TICKS_A_SECOND / jobs;
    println!(
        "{name:<32} {rate:>6} offered {second:>6.0} /s {:>5.2} of bare   p50 {p50:>6.0} ms p99 {p99:>6.0} ms   CPU of a job: broker {:.0} us, cell {:.0}, directory {:.0}, managers {:.0}",
        second / bare,
        micros(0),
        micros(1),
        micros(2),
        micros(3),
    );
    Ok(())
}

/// Publish, one shared pull consumer, ack; from the first publish to the last ack.
async fn bare_loop(server: &NatsServer) -> f64 {
    let (queue, body) = (WorkQueue::new(server).await, Bytes::from(vec![7; BODY]));
    // One that warms up.
    queue.round(&body, MESSAGES / 4).await;
    let began = Instant::now();
    queue.round(&body, MESSAGES).await;
    MESSAGES as f64 / began.elapsed().as_secs_f64()
}

async fn with_shards(shards: u16, rates: &[(&str, u32, &[&str])]) -> Result<()> {
    let shape = Shape {
        managers: 50,
        hosts_per_manager: 200,
        latency: "none",
        managers_durable: false,
        shards,
        ..Shape::default()
    };
    let cluster = Cluster::start(shape, 1, 1).await?;
    let bare = bare_loop(&cluster.broker).await;
    println!("{shards} shards; bare publish, one shared pull consumer, ack: {bare:.0} /s");
    for (name, rate, mix) in rates {
        tokio::task::block_in_place(|| run(&cluster, name, *rate, mix, bare))?;
    }
    let again = bare_loop(&cluster.broker).await;
    println!("bare again: {again:.0} /s");
    Ok(())
}

fn main() -> Result<()> {
    allocator::keep_freed_pages();
    if left_out() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let rates: &[(&str, u32, &[&str])] = &[
            ("one VM a job", 14_000, PROVISIONS),
            ("three of five make a VM", 14_000, LIVELY),
            ("one VM a job, at its ease", 2_500, PROVISIONS),
        ];
        with_shards(16, rates).await?;
        with_shards(256, &[("one VM a job", 8_000, PROVISIONS), ("at its ease", 1_500, PROVISIONS)]).await
    })
}
