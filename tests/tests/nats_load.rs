//! `cellbus load --over nats`: load goes the way of producers, and nothing of it is lost.

#![expect(clippy::disallowed_methods, reason = "it drives the real binary from outside, in real time")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use cellbus_bus::Bus as _;
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::binary::cellbus;
use cellbus_tests::cluster::{Cluster, Shape};
use cellbus_tests::process::{event, wait_for};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_over_nats_is_acknowledged_by_the_broker_and_ends() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let shape = Shape { more: "tenants = [\"acme\", \"globex\"]\n".to_owned(), ..Shape::default() };
    let cluster = Cluster::start(shape, 2, 1).await?;
    let (server, urls) = (&cluster.directories[0].url, format!("nats.urls={}", cluster.broker.url()));
    let mut made = 0;
    let mut load = async |more: &[&str], way: &str| -> Result<(Output, Value)> {
        made += 1;
        let page = cluster.folder().join(format!("load-{made}.html"));
        let common = ["load", "--server", server, "--over", way, "--set", &urls, "--output", "json", "--report"];
        let page = page.to_str().context("UTF-8")?;
        let done = run(&[&common[..], &[page], more].concat()).await?;
        let report: Value = serde_json::from_slice(&done.stdout)
            .with_context(|| format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr)))?;
        ensure!(Path::new(page).metadata()?.len() > 1_000, "a page");
        Ok((done, report))
    };

    let flags = ["--rate", "40", "--duration", "5s", "--arrivals", "poisson", "--tenants", "acme=3,globex=1"];
    let (done, report) = load(&flags, "nats").await?;
    ensure!(done.status.success(), "{report}");
    let jobs = report["jobs_submitted"].as_u64().context("a number")?;
    ensure!(jobs > 100 && report["jobs_succeeded"] == jobs, "{report}");
    ensure!(report["lost"] == 0 && report["duplicates"] == 0 && report["directory_mismatches"] == 0, "{report}");
    ensure!(report["latency_ms"]["p50"].as_f64().context("a latency")? > 0.0, "{report}");

    // Without an inbox all is the same, and shorter.
    let (done, report) =
        load(&["--rate", "40", "--duration", "2s", "--tenant", "acme", "--no-answers"], "nats").await?;
    ensure!(done.status.success() && report["jobs_succeeded"] == 80 && report["lost"] == 0, "{report}");

    // Refused in the inbox: durable on the broker, and then no job.
    let flags = ["--rate", "20", "--duration", "1s", "--tenant", "initech", "--no-audit"];
    let (done, report) = load(&flags, "nats").await?;
    ensure!(done.status.code() == Some(1), "{report}");
    ensure!(report["jobs_refused"] == 20 && report["lost"] == 0, "{report}");
    ensure!(report["failures"]["unknown_tenant"]["count"] == 20, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_a_cluster_is_refused() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let cluster = Cluster::start(Shape::default(), 1, 0).await?;
    let urls = format!("nats.urls={}", cluster.broker.url());
    let flags = ["load", "--server", &cluster.cells[0].url, "--rate", "1", "--over", "nats", "--set", &urls];
    let done = run(&[&flags[..], &["--set", "nats.prefix=elsewhere"]].concat()).await?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(!done.status.success() && said.contains("no stream elsewhere_jobs"), "{said}");
    Ok(())
}

/// Of a job's appends two must be made before anything follows. While jobs wait for a cell, its shards' appends begin some
/// time apart and carry more of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_wait_in_the_ingress_share_appends() -> Result<()> {
    const JOBS: u64 = 6_000;
    if left_out() {
        return Ok(());
    }
    let room =
        Shape { managers: 20, hosts_per_manager: 100, latency: "none", managers_durable: false, ..Shape::default() };
    let mut cluster = Cluster::start(Shape { shards: 64, ..room }, 0, 1).await?;
    let bus = cluster.bus().await?;
    let data = json!({"name": "web", "vcpus": 1, "memory_mib": 1, "disk_gib": 1, "image": "x", "power": "off"});
    stream::iter(0..JOBS)
        .map(|number| bus.ingress_publish("acme", structured(), job(number, &data)))
        .buffer_unordered(500)
        .try_for_each(async |()| Ok(()))
        .await?;
    cluster.add_cell()?;
    let cell = &cluster.cells[0];
    let ended = |metrics: &str| sum(metrics, "cellbus_jobs_ended_total{");
    let metrics = wait_for("every job to end", Duration::from_secs(120), async || {
        let metrics = cell.text("/metrics").await?;
        let ended = ended(&metrics);
        Ok(if ended >= JOBS as f64 { Ok(metrics) } else { Err(format!("{ended} have ended")) })
    })
    .await
    .with_context(|| cell.log_tail())?;
    let appends = sum(&metrics, "cellbus_log_append_records_count ");
    println!("{:.2} appends of a job", appends / JOBS as f64);
    ensure!(appends < 0.8 * JOBS as f64, "{appends} appends for {JOBS} jobs");
    Ok(())
}

fn structured() -> Vec<(String, String)> {
    vec![("content-type".to_owned(), "application/cloudevents+json".to_owned())]
}

fn job(number: u64, data: &Value) -> Bytes {
    event("provision", &format!("job-{number}"), None, data).to_string().into()
}

/// Of all series that begin so.
fn sum(metrics: &str, series: &str) -> f64 {
    let values = metrics.lines().filter(|line| line.starts_with(series));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn run(arguments: &[&str]) -> Result<Output> {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || Command::new(cellbus()).args(&arguments).stdin(Stdio::null()).output();
    Ok(tokio::task::spawn_blocking(run).await??)
}
