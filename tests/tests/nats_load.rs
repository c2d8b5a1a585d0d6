//! `cellbus load --over nats`: load goes the way of producers, and nothing of it is lost.

#![expect(clippy::disallowed_methods, reason = "it drives the real binary from outside, in real time")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::binary::cellbus;
use cellbus_tests::cluster::{Cluster, Shape};
use serde_json::Value;

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

async fn run(arguments: &[&str]) -> Result<Output> {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || Command::new(cellbus()).args(&arguments).stdin(Stdio::null()).output();
    Ok(tokio::task::spawn_blocking(run).await??)
}
