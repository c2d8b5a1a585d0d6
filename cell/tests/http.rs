//! The HTTP API over real cells: what a user does in the first ten minutes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::JobId;
use cellbus_cell::http::{App, FixedLogLevel, Served, Settings, serve};
use cellbus_cell::metrics::Metrics;
use futures::StreamExt as _;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use support::Cluster;
use tokio_util::sync::CancellationToken;

struct Server {
    cluster: Cluster,
    base: String,
    client: Client,
    stop: CancellationToken,
}
impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    async fn start() -> Self {
        let cluster = Cluster::start(2, 16, &[("vc-1", 4, 16), ("vc-2", 4, 16)]).await;
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let served = Arc::new(Served::new(cluster.gateway.clone()));
        let app = App::new(served, cluster.env.clone(), Settings::default(), metrics, Arc::new(FixedLogLevel));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        cluster.env.spawn("http", serve(app, listener, stop.clone()));
        cellbus_cell::security::use_ring();
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        Self { cluster, base, client, stop }
    }
    async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.base)).send().await.unwrap()
    }
    async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }
    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let kind = if body.is_array() && path.starts_with("/v1/jobs") {
            "application/cloudevents-batch+json"
        } else {
            "application/json"
        };
        let request = self.client.post(format!("{}{path}", self.base)).header("content-type", kind);
        let answer = request.body(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

fn event(id: &str, kind: &str, subject: Option<&str>, data: Value) -> Value {
    let mut event = json!({"specversion": "1.0", "id": id, "source": "/t", "tenant": "acme",
        "type": format!("io.cellbus.job.{kind}.v1"), "data": data, "traceparent": "00-abc-01"});
    if let Some(subject) = subject {
        event["subject"] = json!(subject);
    }
    event
}
fn web(count: u32) -> Value {
    json!({"name": "web", "count": count, "vcpus": 1, "memory_mib": 512, "disk_gib": 10, "image": "debian-12",
        "labels": {"app": "shop"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_provision_to_a_clean_audit() {
    let server = Server::start().await;
    assert_eq!(server.get("/readyz").await.status(), 200);
    let mut events = server.get("/v1/events?tenant=acme").await.bytes_stream();
    events.next().await.unwrap().unwrap();

    // Three VMs, waited for; found at once.
    let (status, job) = server.post("/v1/jobs?wait=30s", event("1", "provision", None, web(3))).await;
    assert_eq!((status, &job["state"]), (200, &json!("succeeded")), "{job}");
    let id = JobId::derive("acme", "/t", "1");
    assert_eq!((&job["job_id"], &job["vms_total"]), (&json!(id.to_string()), &json!(3)));
    let vms = server.json(&format!("/v1/jobs/{id}/vms?limit=2")).await;
    assert_eq!(vms["items"].as_array().unwrap().len(), 2);
    let cursor = vms["next_cursor"].as_str().unwrap();
    let rest = server.json(&format!("/v1/jobs/{id}/vms?limit=2&cursor={cursor}")).await;
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));
    let page = server.json("/v1/vms?tenant=acme&label=app%3Dshop&limit=2").await;
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    let cursor = page["next_cursor"].as_str().unwrap();
    let page = server.json(&format!("/v1/vms?tenant=acme&label=app%3Dshop&limit=2&cursor={cursor}")).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    let other_filter = server.get(&format!("/v1/vms?tenant=acme&cursor={cursor}")).await;
    assert_eq!(other_filter.status(), 400);
    assert_eq!(other_filter.json::<Value>().await.unwrap()["code"], "invalid_cursor");

    // The outcome, as an event, with the job's extensions.
    let mut seen = String::new();
    while !seen.contains("io.cellbus.job.succeeded.v1") {
        seen.push_str(std::str::from_utf8(&events.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(seen.contains("00-abc-01") && seen.contains(&id.to_string()), "{seen}");

    // Each VM is located: one by one, many, and in binary, all the same.
    let ids: Vec<String> = (0..3).map(|n| id.vm(n).to_string()).collect();
    let many = server.post("/v1/locate", json!(ids)).await.1;
    assert_eq!(many["missing"], json!([]));
    for (index, vm) in ids.iter().enumerate() {
        let one = server.json(&format!("/v1/locate/{vm}")).await;
        assert_eq!(one, many["items"][index]);
        assert!(one["cell"].is_string() && one["manager_name"].is_string() && one["host"].is_string(), "{one}");
        let row = server.json(&format!("/v1/vms/{vm}")).await;
        assert_eq!((&row["state"], &row["host"]), (&json!("running"), &one["host"]));
    }
    let named = server.json("/v1/vms?tenant=acme&name=web-1").await;
    assert_eq!(named["items"][0]["id"], ids[1]);
    let live = server.json(&format!("/v1/vms/{}/live", ids[0])).await;
    assert_eq!((&live["held"], &live["power"]), (&json!(true), &json!("running")));

    // Operated by name and by id; explained.
    let (status, job) =
        server.post("/v1/jobs?wait=30s", event("2", "stop", Some("web-1"), json!({"mode": "hard"}))).await;
    assert_eq!((status, &job["state"]), (200, &json!("succeeded")), "{job}");
    assert_eq!(server.json(&format!("/v1/vms/{}", ids[1])).await["state"], "stopped");
    let (status, job) =
        server.post("/v1/jobs?wait=30s", event("3", "revert", Some(&ids[0]), json!({"snapshot": "none"}))).await;
    assert_eq!(
        (status, &job["state"], &job["error"]["code"]),
        (200, &json!("failed"), &json!("snapshot_not_found")),
        "{job}"
    );
    let why = server.json(&format!("/v1/explain/{}", ids[1])).await;
    assert!(why["owner"].is_string() && !why["history"].as_array().unwrap().is_empty(), "{why}");
    let failed = server.json("/v1/jobs?tenant=acme&state=failed").await;
    assert_eq!(failed["items"].as_array().unwrap().len(), 1);

    // A VM of another tenant is not there for this one.
    let mut theirs = event("4", "delete", Some(&ids[0]), json!({}));
    theirs["tenant"] = json!("globex");
    let (_, job) = server.post("/v1/jobs?wait=30s", theirs).await;
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("vm_not_found")), "{job}");

    // Nothing is taken of a batch with a conflict inside; a conflict with what was is told.
    let (status, problem) = server.post("/v1/jobs", event("1", "provision", None, web(4))).await;
    assert_eq!((status, &problem["code"]), (409, &json!("job_conflict")));

    // Operators.
    assert_eq!(server.post("/v1/managers/vc-1/cordon", json!({})).await.0, 200);
    let managers = server.json("/v1/managers").await;
    assert_eq!(managers["items"].as_array().unwrap().len(), 2);
    let shards = server.json("/v1/shards").await;
    assert!(shards["items"].as_array().unwrap().iter().all(|s| s["state"] == "open"), "{shards}");
    assert_eq!(server.json("/v1/cells").await["items"].as_array().unwrap().len(), 2);
    let hosts = server.json("/v1/hosts?manager=vc-1").await;
    assert_eq!(hosts["items"].as_array().unwrap().len(), 4);
    assert_eq!(server.json("/v1/queue").await["jobs_open"], 0);
    let changes = server.json("/v1/changes").await;
    assert_eq!(changes["items"][0]["by"]["who"], "anonymous", "{changes}");
    let text = server.get("/metrics").await.text().await.unwrap();
    assert!(text.contains("cellbus_directory_vms{state=\"running\"} 2"), "{text}");
    assert!(text.contains("cellbus_managers{health=\"healthy\"} 2"), "{text}");

    let (status, audit) = server.post("/v1/audit", json!({})).await;
    assert_eq!(status, 202);
    let path = format!("/v1/audit/{}", audit["id"].as_str().unwrap());
    server
        .cluster
        .until("the audit has ended", || async {
            let audit = server.json(&path).await;
            if audit["ended_at"].is_string() { Ok(()) } else { Err(audit.to_string()) }
        })
        .await;
    let audit = server.json(&path).await;
    assert_eq!((&audit["findings_total"], &audit["vms"]), (&json!(0), &json!(3)), "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_and_a_batch() {
    let server = Server::start().await;
    let (status, dry) = server.post("/v1/jobs?dry_run=true", event("1", "provision", None, web(2))).await;
    assert_eq!(status, 200, "{dry}");
    assert_eq!(dry["managers"].as_array().unwrap().len(), 2, "{dry}");
    let mut none = web(1);
    none["require"] = json!({"gear": "g9"});
    let (_, dry) = server.post("/v1/jobs?dry_run=true", event("1", "provision", None, none)).await;
    assert_eq!((&dry["managers"], dry["looked_at"].as_u64()), (&json!([null]), Some(2)), "{dry}");

    let batch: Vec<Value> = (0..20).map(|n| event(&format!("b-{n}"), "provision", None, web(1))).collect();
    let (status, answer) = server.post("/v1/jobs?wait=30s", json!(batch)).await;
    assert_eq!(status, 200, "{answer}");
    let jobs = answer["jobs"].as_array().unwrap();
    assert!(jobs.len() == 20 && jobs.iter().all(|job| job["state"] == "succeeded"), "{answer}");
    assert_eq!(server.cluster.vms().len(), 20);
}
