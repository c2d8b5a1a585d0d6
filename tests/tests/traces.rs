//! One job followed through the log of the real binary: spans with job, VM, shard and manager, and
//! the trace that its caller brought along.

use std::time::Duration;

use anyhow::Result;
use cellbus_tests::process::{Server, event, wait_for};
use futures::StreamExt as _;
use serde_json::{Value, json};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A field of a line or of one of its spans.
fn field<'a>(line: &'a Value, name: &str) -> Option<&'a str> {
    let spans = line["spans"].as_array().into_iter().flatten();
    spans.chain([line]).find_map(|place| place[name].as_str())
}

#[tokio::test]
async fn a_job_can_be_followed_from_request_to_outcome() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let arguments = ["--cells", "2", "--hosts", "4", "--managers", "2", "--latency", "none", "--log-format", "json"];
    let server = Server::start(&folder.path().join("data"), &arguments).await?;
    assert_eq!(server.put("/v1/log", &json!({"level": "info,cellbus_cell=trace"})).await?.status, 200);

    cellbus_cell::security::use_ring();
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?;
    let data = json!({"name": "web", "vcpus": 1, "memory_mib": 512, "disk_gib": 10, "image": "debian-12"});
    let request = http
        .post(format!("{}/v1/jobs?wait=30s", server.url))
        .header("content-type", "application/cloudevents+json")
        .header("traceparent", TRACE)
        .body(event("provision", "traced", None, &data).to_string());
    let job: Value = request.send().await?.json().await?;
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(job["extensions"]["traceparent"], TRACE);
    let id = job["job_id"].as_str().expect("a job has an id");

    // Each line by what it says, with what must be in it or in its spans.
    let steps: &[(&str, &str, &[&str])] = &[
        ("message", "submitted", &["traceparent"]),
        ("record", "job_accepted", &["shard", "traceparent"]),
        ("record", "step_begun", &["shard", "vm", "manager", "traceparent"]),
        ("effect", "call", &["shard", "vm", "manager", "traceparent"]),
        ("message", "the manager is asked", &["shard", "vm", "manager"]),
        ("message", "the manager has done it", &["shard", "vm", "manager"]),
        ("record", "step_ended", &["shard", "vm", "traceparent"]),
        ("record", "job_ended", &["shard", "traceparent"]),
        ("effect", "outcome_event", &["shard", "traceparent"]),
    ];
    wait_for("a line of every step, in order", Duration::from_secs(20), async || {
        let log = server.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for (name, value, fields) in steps {
            let Some(line) = lines.find(|line| line[name] == *value && field(line, "job") == Some(id)) else {
                return Ok(Err(format!("no line with {name} {value}")));
            };
            for wanted in *fields {
                assert!(field(&line, wanted).is_some(), "{wanted} is missing in {line}");
            }
            assert!(field(&line, "traceparent").is_none_or(|trace| trace == TRACE), "{line}");
        }
        Ok(Ok(()))
    })
    .await?;

    // And on to whoever hears of the outcome.
    let events = http.get(format!("{}/v1/events?tenant=acme", server.url)).header("last-event-id", "0").send().await?;
    let (mut events, mut seen) = (events.bytes_stream(), String::new());
    while !seen.contains("io.cellbus.job.succeeded.v1") || !seen.ends_with("\n\n") {
        seen.push_str(std::str::from_utf8(&events.next().await.expect("the stream goes on")?)?);
    }
    assert!(seen.contains(TRACE), "{seen}");
    Ok(())
}
