//! Producers whose clients are not ours: Python's `confluent-kafka`, and `kcat` from a shell, on a real cluster.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::ids::JobId;
use cellbus_bus::kafka::testing::{KafkaServer, left_out};
use cellbus_tests::cluster::{ClusterOn, Shape};
use cellbus_tests::process::wait_for;
use cellbus_tests::workspace::{kcat, python, root};
use serde_json::{Value, json};

/// A new tenant's topic is found within 10 s; the machine is shared with every other test.
const FOUND_SECONDS: f64 = 20.0;
/// How long outcomes may take on it.
const OUTCOMES: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_of_other_makes_hear_of_outcomes() -> Result<()> {
    let (python, kcat) = (python(), kcat());
    if left_out() || (python.is_none() && kcat.is_none()) {
        return Ok(());
    }
    let cluster = ClusterOn::<KafkaServer>::start(Shape::default(), 2, 1).await?;
    if let Some(python) = python {
        with_python(&python, &cluster).await?;
    }
    if let Some(kcat) = kcat {
        with_kcat(&kcat, &cluster).await?;
    }
    // All that was put on the bus is taken and acked, and counted.
    wait_for("the lag to be gone", OUTCOMES, async || {
        let metrics = cluster.directories[0].text("/metrics").await?;
        let of_jobs = |line: &&str| line.starts_with("cellbus_bus_topic_end_offset{topic=\"jobs\"} ");
        let written = metrics.lines().find(of_jobs).is_some_and(|line| !line.ends_with(" 0"));
        let gone = metrics.lines().any(|line| line == "cellbus_bus_ingress_lag 0");
        Ok(if written && gone { Ok(()) } else { Err(metrics) })
    })
    .await?;
    cluster.audit().await
}

async fn with_python(python: &Path, cluster: &ClusterOn<KafkaServer>) -> Result<()> {
    let seen = run(python, &root().join("tests/producers/kafka_producer.py"), &cluster.broker.address())?;

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
    Ok(())
}

/// Structured and binary mode, from a shell; the outcomes are read from the tenant's topic.
async fn with_kcat(kcat: &Path, cluster: &ClusterOn<KafkaServer>) -> Result<()> {
    let (broker, tenant, source) = (cluster.broker.address(), "initech", "/producers/kcat");
    let [jobs, events] = ["jobs", "events"].map(|what| format!("cellbus.{what}.{tenant}"));
    cluster.broker.make_topics(&[jobs.clone(), events.clone()], 1).await;
    let data = |name: &str| json!({"name": name, "vcpus": 1, "memory_mib": 256, "disk_gib": 1, "image": "debian-12"});
    let kind = "io.cellbus.job.provision.v1";
    let structured = json!({
        "specversion": "1.0", "id": "kcat-1", "source": source, "type": kind,
        "datacontenttype": "application/json", "data": data("kcat-1"),
    });
    produce(kcat, &broker, &jobs, &["content-type=application/cloudevents+json"], &structured)?;
    let (of_source, of_kind) = (format!("ce_source={source}"), format!("ce_type={kind}"));
    let attributes = ["ce_specversion=1.0", "ce_id=kcat-2", &of_source, &of_kind, "content-type=application/json"];
    produce(kcat, &broker, &jobs, &attributes, &data("kcat-2"))?;

    let wanted = [1, 2].map(|number| JobId::derive(tenant, source, &format!("kcat-{number}")).to_string());
    let outcomes = async || -> Result<Result<Vec<Value>, String>> {
        // All that is there, one a line, with its headers.
        let mut reading = Command::new(kcat);
        reading.args(["-C", "-q", "-e", "-J", "-o", "beginning", "-b", &broker, "-t", &events]);
        let read = String::from_utf8(read_all(&mut reading)?)?;
        let mut found = Vec::new();
        for line in read.lines() {
            let message: Value = serde_json::from_str(line)?;
            let event: Value = serde_json::from_str(message["payload"].as_str().context("a text")?)?;
            let headers = message["headers"].as_array().context("headers")?;
            ensure!(headers.iter().any(|header| *header == event["id"]), "its id is a header too: {message}");
            found.push(event);
        }
        let of = |job: &String| found.iter().find(|event| event["data"]["job_id"] == job.as_str()).cloned();
        let outcomes: Option<Vec<Value>> = wanted.iter().map(of).collect();
        Ok(outcomes.ok_or_else(|| format!("{found:?}")))
    };
    let outcomes = wait_for("the outcomes of kcat's jobs", OUTCOMES, outcomes).await?;
    for outcome in outcomes {
        ensure!(outcome["type"] == "io.cellbus.job.succeeded.v1" && outcome["tenant"] == tenant, "{outcome}");
        ensure!(outcome["data"]["vms"][0]["state"] == "running", "{outcome}");
    }
    Ok(())
}

fn produce(kcat: &Path, broker: &str, topic: &str, headers: &[&str], body: &Value) -> Result<()> {
    let mut command = Command::new(kcat);
    command.args(["-P", "-X", "acks=all", "-b", broker, "-t", topic]);
    for header in headers {
        command.args(["-H", header]);
    }
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // A message a line; the end of its input ends it.
    writeln!(child.stdin.take().context("its input")?, "{body}")?;
    let done = child.wait_with_output()?;
    ensure!(done.status.success(), "kcat: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn read_all(command: &mut Command) -> Result<Vec<u8>> {
    let done = command.stdin(Stdio::null()).output()?;
    ensure!(done.status.success(), "kcat: {}", String::from_utf8_lossy(&done.stderr));
    Ok(done.stdout)
}

fn run(python: &Path, program: &Path, brokers: &str) -> Result<Value> {
    let done = Command::new(python).arg(program).arg(brokers).stdin(Stdio::null()).output()?;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "the producer ended with {}:\n{err}", done.status);
    serde_json::from_str(&out).with_context(|| format!("the producer printed {out}\n{err}"))
}
