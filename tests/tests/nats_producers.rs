//! Producers in another language: the Python client `nats-py` on a real cluster.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::cluster::{Cluster, Shape};
use cellbus_tests::workspace::{python, root};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_producer_is_answered_and_hears_of_outcomes() -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    if left_out() {
        return Ok(());
    }
    let cluster = Cluster::start(Shape::default(), 2, 1).await?;
    let seen = run(&python, &root().join("tests/producers/nats_producer.py"), &cluster.broker.url())?;

    let accepted = |what: &str| -> Result<String> {
        let answer = &seen[what];
        ensure!(answer["type"] == "io.cellbus.job.accepted.v1", "{what}: {answer}");
        ensure!(answer["tenant"] == "acme" && answer["specversion"] == "1.0", "{what}: {answer}");
        Ok(answer["data"]["job_id"].as_str().context("a job id")?.to_owned())
    };
    let refused = |what: &str, code: &str| -> Result<()> {
        let answer = &seen[what];
        ensure!(answer["type"] == "io.cellbus.job.refused.v1", "{what}: {answer}");
        ensure!(answer["data"]["error"]["code"] == code, "{what}: {answer}");
        Ok(())
    };
    let (structured, binary) = (accepted("structured")?, accepted("binary")?);
    ensure!(accepted("again")? == structured, "the same event again is the same job");
    refused("conflict", "job_conflict")?;
    refused("refused", "not_json")?;
    refused("typo", "unknown_field")?;
    for job in [structured, binary] {
        let outcome = &seen["outcomes"][&job];
        ensure!(outcome["type"] == "io.cellbus.job.succeeded.v1", "{outcome}");
        ensure!(outcome["data"]["vms"][0]["state"] == "running", "{outcome}");
    }
    // What was no job is kept, with its reason and the original.
    let letters = cluster.directories[0].all("/v1/dead-letters").await?;
    ensure!(letters.len() == 2, "{letters:?}");
    cluster.audit().await
}

fn run(python: &Path, program: &Path, url: &str) -> Result<Value> {
    let done = Command::new(python).arg(program).arg(url).stdin(Stdio::null()).output()?;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "the producer ended with {}:\n{err}", done.status);
    serde_json::from_str(&out).with_context(|| format!("the producer printed {out}\n{err}"))
}
