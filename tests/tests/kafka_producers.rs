//! Producers in another language: the Python client `confluent-kafka` on a real cluster.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::ids::JobId;
use cellbus_bus::kafka::testing::{KafkaServer, left_out};
use cellbus_tests::cluster::{ClusterOn, Shape};
use cellbus_tests::workspace::{python, root};
use serde_json::Value;

/// A new tenant's topic is found within 10 s; the machine is shared with every other test.
const FOUND_SECONDS: f64 = 20.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_producer_hears_of_outcomes() -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    if left_out() {
        return Ok(());
    }
    let cluster = ClusterOn::<KafkaServer>::start(Shape::default(), 2, 1).await?;
    let seen = run(&python, &root().join("tests/producers/kafka_producer.py"), &cluster.broker.address())?;

    for (tenant, number) in [("acme", 1), ("acme", 2), ("globex", 1)] {
        let job = JobId::derive(tenant, "/producers/python", &format!("py-{number}")).to_string();
        let events = seen[tenant].as_array().context("events")?;
        let outcome = events.iter().find(|event| event["data"]["job_id"] == job.as_str());
        let outcome = outcome.with_context(|| format!("an event of {job} in {seen}"))?;
        ensure!(outcome["type"] == "io.cellbus.job.succeeded.v1" && outcome["tenant"] == tenant, "{outcome}");
        ensure!(outcome["data"]["vms"][0]["state"] == "running", "{outcome}");
    }
    let took = seen["found_after_seconds"].as_f64().context("a number")?;
    println!("a job on a topic that had just been made ended after {took:.1} s");
    ensure!(took < FOUND_SECONDS, "a new tenant's topic was found after {took} s");
    // What was no job is kept, with its reason and the original.
    let letters = cluster.directories[0].all("/v1/dead-letters").await?;
    ensure!(letters.len() == 2, "{letters:?}");
    let binary = cluster.directories[0].all("/v1/vms?label=stadt%3DK%C3%B6ln").await?;
    ensure!(binary.len() == 1, "a label of binary mode is as it was sent: {binary:?}");
    cluster.audit().await
}

fn run(python: &Path, program: &Path, brokers: &str) -> Result<Value> {
    let done = Command::new(python).arg(program).arg(brokers).stdin(Stdio::null()).output()?;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "the producer ended with {}:\n{err}", done.status);
    serde_json::from_str(&out).with_context(|| format!("the producer printed {out}\n{err}"))
}
