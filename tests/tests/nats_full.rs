//! Streams of NATS that are full: whoever submits is refused and told when to come again, and nothing
//! that was accepted is lost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::Bus as _;
use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::ids::{Seq, ShardCount};
use cellbus_bus::nats::testing::{NatsServer, left_out};
use cellbus_tests::cluster::{Cluster, Shape};
use cellbus_tests::process::{event, wait_for};
use serde_json::{Map, Value, json};

/// Jobs of one request.
const BATCH: usize = 200;

/// Labels of a job, in bytes.
const LABELS: usize = 24 * (8 + 60);

/// A job of some kilobytes.
fn large(name: &str) -> Value {
    let labels: Map<String, Value> =
        (0..24).map(|n| (format!("label-{n:02}"), Value::String("x".repeat(60)))).collect();
    let data =
        json!({"name": name, "vcpus": 1, "memory_mib": 1, "disk_gib": 1, "image": "debian-12", "labels": labels});
    event("provision", name, None, &data)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_stream_is_a_refusal_and_loses_nothing() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let nats = NatsServer::start();
    let section = format!("urls = [\"{}\"]\nlanes = 1\nlane_size_max = \"4MiB\"\n", nats.url());
    let shape = Shape { shards: 8, latency: "none", ..Shape::default() };
    let mut cluster = Cluster::start_on(nats, section, shape, 1, 1).await?;
    // Nobody reads the queues any more, and the directory goes on taking jobs.
    cluster.cells.remove(0).kill()?;
    let server = &cluster.directories[0];

    let http = reqwest::Client::new();
    let (mut accepted, mut sent) = (Vec::new(), 0);
    let refused = loop {
        ensure!(sent < 100 * BATCH, "{sent} jobs of 2 KB fit into 4 MiB");
        let batch: Vec<Value> = (sent..sent + BATCH).map(|n| large(&format!("vm-{n}"))).collect();
        let request = http.post(format!("{}/v1/jobs", server.url));
        let request = request.header("content-type", "application/cloudevents-batch+json");
        let response = request.body(Value::Array(batch).to_string()).send().await?;
        match response.status().as_u16() {
            202 => {
                let answer: Value = response.json().await?;
                for job in answer["jobs"].as_array().context("jobs")? {
                    accepted.push(job["job_id"].as_str().context("a job id")?.to_owned());
                }
                sent += BATCH;
            }
            // A part of it went in: the same is sent again, as the answer asks.
            503 => {
                let problem: Value = response.json().await?;
                ensure!(problem["code"] == "bus_no_answer", "{problem}");
            }
            _ => break response,
        }
    };
    let (status, later) = (refused.status().as_u16(), refused.headers().contains_key("retry-after"));
    let problem: Value = refused.json().await?;
    ensure!(status == 429 && later && problem["code"] == "bus_full", "{status}: {problem}");
    ensure!(accepted.len() >= BATCH, "some were accepted before");

    // What was accepted is there, each once, and what was refused is not.
    let (bus, count) = (cluster.bus().await?, ShardCount::new(8).context("a count")?);
    let mut queued = 0;
    for shard in count.shards() {
        queued += bus.depth(Queue { shard, kind: QueueKind::Jobs }, Seq::ZERO).await?.messages;
    }
    let (least, most) = (accepted.len() as u64, (accepted.len() + BATCH) as u64);
    ensure!((least..most).contains(&queued), "{queued} are queued, and {least} were accepted");
    Ok(())
}

/// Far more is written than the log has room for: its owners take snapshots in time, and it is trimmed
/// before it is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_with_little_room_is_no_end() -> Result<()> {
    // As `lane_size_max`.
    const ROOM: usize = 2 << 20;
    if left_out() {
        return Ok(());
    }
    let nats = NatsServer::start();
    let section = format!("urls = [\"{}\"]\nlanes = 1\nlane_size_max = \"2MiB\"\n", nats.url());
    let shape = Shape { shards: 8, latency: "none", hosts_per_manager: 100, ..Shape::default() };
    let cluster = Cluster::start_on(nats, section, shape, 1, 1).await?;
    let server = &cluster.cells[0];

    let http = reqwest::Client::new();
    let (mut accepted, mut sent) = (Vec::new(), 0);
    // The labels of a job alone are that many bytes, and are in the log.
    while sent * LABELS < 2 * ROOM {
        let batch: Vec<Value> = (sent..sent + BATCH).map(|n| large(&format!("vm-{n}"))).collect();
        let batch = Value::Array(batch).to_string();
        // Its queue is full, or a part of the batch went in: the same is sent again.
        let answer = wait_for("the batch is taken", Duration::from_secs(120), async || {
            let request = http.post(format!("{}/v1/jobs", server.url));
            let request = request.header("content-type", "application/cloudevents-batch+json");
            let response = request.body(batch.clone()).send().await?;
            let (status, body) = (response.status().as_u16(), response.json::<Value>().await?);
            ensure!(matches!(status, 202 | 429 | 503), "{status}: {body}");
            Ok(if status == 202 { Ok(body) } else { Err(body.to_string()) })
        })
        .await?;
        for job in answer["jobs"].as_array().context("jobs")? {
            accepted.push(job["job_id"].as_str().context("a job id")?.to_owned());
        }
        sent += BATCH;
    }
    for job in accepted {
        wait_for("every job has succeeded", Duration::from_secs(120), async || {
            let shown = server.get(&format!("/v1/jobs/{job}")).await?;
            Ok(if shown.body["state"] == "succeeded" { Ok(()) } else { Err(shown.body.to_string()) })
        })
        .await?;
    }
    Ok(())
}
