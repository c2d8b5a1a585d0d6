//! Traces of jobs at a collector of the test's own: one trace from the producer to the hypervisor, also
//! across processes; and a collector that is away, which no job waits for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "it drives the real binary from outside, in real time")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use cellbus_bus::Bus as _;
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::cluster::{Cluster, Shape};
use cellbus_tests::process::{Server, event, wait_for};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Said;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const WAIT: Duration = Duration::from_secs(60);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PRODUCER: &str = "b7ad6b7169203331";

/// Every span that came in, with the process that sent it.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
    /// Answers this to so many requests first.
    refuses: Arc<Mutex<(u16, u32)>>,
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()?;
    match found {
        Said::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if headers.get("content-type").is_none_or(|kind| kind != "application/x-protobuf")
        || headers.get("authorization").is_none_or(|value| value != "Bearer for-spans")
    {
        return StatusCode::BAD_REQUEST;
    }
    {
        let mut refuses = collector.refuses.lock().unwrap();
        if refuses.1 > 0 {
            refuses.1 -= 1;
            return StatusCode::from_u16(refuses.0).unwrap();
        }
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let mut spans = collector.spans.lock().unwrap();
    for of in request.resource_spans {
        let attributes = of.resource.unwrap_or_default().attributes;
        assert_eq!(attribute(&attributes, "service.name").as_deref(), Some("cellbus"));
        let process = attribute(&attributes, "service.instance.id").unwrap();
        spans.extend(of.scope_spans.into_iter().flat_map(|s| s.spans).map(|span| (process.clone(), span)));
    }
    StatusCode::OK
}

impl Collector {
    /// Listens; gives its address.
    async fn start(&self) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let router = Router::new().route("/v1/traces", post(take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(address)
    }
    /// The spans of a trace, by name.
    fn of(&self, trace: &str) -> BTreeMap<String, Vec<(String, Span)>> {
        let mut by_name: BTreeMap<String, Vec<(String, Span)>> = BTreeMap::new();
        for (process, span) in self.spans.lock().unwrap().iter().filter(|(_, span)| hex(&span.trace_id) == trace) {
            by_name.entry(span.name.clone()).or_default().push((process.clone(), span.clone()));
        }
        by_name
    }
}

fn secret(folder: &std::path::Path) -> Result<String> {
    let file = folder.join("headers");
    std::fs::write(&file, "# for the collector\nauthorization: Bearer for-spans\n")?;
    Ok(file.to_str().context("UTF-8")?.to_owned())
}

fn provision(id: &str, count: u32, traceparent: Option<&str>) -> Value {
    let data = json!({"name": "web", "count": count, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x"});
    let mut event = event("provision", id, None, &data);
    if let Some(trace) = traceparent {
        event["traceparent"] = trace.into();
    }
    event
}

async fn metric(server: &Server, name: &str) -> Result<f64> {
    let text = server.text("/metrics").await?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name}"))?.parse()?)
}

/// Every part of the trace hangs together.
fn joined(spans: &BTreeMap<String, Vec<(String, Span)>>) -> Result<()> {
    let one = |name: &str| spans.get(name).and_then(|s| s.first()).map(|(_, span)| span).context(name.to_owned());
    let job = one("job provision")?;
    ensure!(hex(&job.parent_span_id) == PRODUCER, "the producer's span is not its parent");
    for (name, all) in spans {
        for (_, span) in all {
            ensure!(span.start_time_unix_nano <= span.end_time_unix_nano, "{name}");
            ensure!(span.status.is_none(), "{name} failed: {:?}", span.status);
            if name.starts_with("operation ") {
                let step = |(_, of): &(String, Span)| of.span_id == span.parent_span_id && of.name.starts_with("step ");
                ensure!(spans.values().flatten().any(step), "{name} is part of no step");
            } else if !name.starts_with("job ") {
                ensure!(span.parent_span_id == job.span_id, "{name} is no part of the job");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_shows_a_job_from_producer_to_hypervisor() -> Result<()> {
    let (folder, collector) = (tempfile::tempdir()?, Collector::default());
    // One that is full for a moment gets the same again.
    *collector.refuses.lock().unwrap() = (503, 1);
    let endpoint = format!("trace.otlp.endpoint={}", collector.start().await?);
    let headers = format!("trace.otlp.headers_file={}", secret(folder.path())?);
    let arguments = ["--cells", "2", "--hosts", "4", "--managers", "2", "--latency", "none"];
    let more = ["--set", &endpoint, "--set", &headers];
    let server = Server::start(&folder.path().join("data"), &[&arguments[..], &more[..]].concat()).await?;
    let traced = format!("00-{TRACE}-{PRODUCER}-01");
    ensure!(server.submit(&provision("traced", 1, Some(&traced))).await?.status == 202);
    let silent = provision("silent", 1, Some(&format!("00-{}-{PRODUCER}-00", "5".repeat(32))));
    ensure!(server.submit(&silent).await?.status == 202);
    let own = server.submit(&provision("own", 1, None)).await?.body["job_id"].as_str().context("an id")?.to_owned();

    let wanted = ["job provision", "submit", "step create", "operation create", "outcome"];
    let all = |trace: &str| {
        let spans = collector.of(trace);
        let missing: Vec<_> = wanted.iter().filter(|name| !spans.contains_key(**name)).collect();
        if missing.is_empty() { Ok(spans) } else { Err(format!("missing {missing:?} of {:?}", spans.keys())) }
    };
    let spans = wait_for("the whole trace", WAIT, async || Ok(all(TRACE))).await.context(server.log_tail())?;
    joined(&spans)?;
    // A job that brought no trace along has its own, with its own id.
    let of_own = wait_for("its own trace", WAIT, async || Ok(all(&own.replace('-', "")))).await?;
    ensure!(of_own["job provision"][0].1.parent_span_id.is_empty());
    ensure!(collector.of(&"5".repeat(32)).is_empty(), "one that is not sampled is sent");
    ensure!(metric(&server, "cellbus_trace_spans_exported_total").await? >= 10.0);
    ensure!(metric(&server, "cellbus_trace_spans_dropped_total{reason=\"unknown\"}").await? == 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_goes_through_all_processes() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let (folder, collector) = (tempfile::tempdir()?, Collector::default());
    let (address, headers) = (collector.start().await?, secret(folder.path())?);
    let more = format!("[trace.otlp]\nendpoint = \"{address}\"\nheaders_file = \"{headers}\"\n");
    let cluster = Cluster::start(Shape { more, ..Shape::default() }, 2, 1).await?;
    cluster.settled().await?;
    let job = provision("many", 12, Some(&format!("00-{TRACE}-{PRODUCER}-01")));
    let headers = vec![("content-type".to_owned(), "application/cloudevents+json".to_owned())];
    cluster.bus().await?.ingress_publish("acme", headers, Bytes::from(job.to_string())).await?;

    let parts = ["ingress", "job provision", "outcome", "step create", "operation create"];
    let spans = wait_for("the whole trace", WAIT, async || {
        let spans = collector.of(TRACE);
        let counts = parts.map(|name| spans.get(name).map_or(0, Vec::len));
        if counts[..3] == [1, 1, 1] && counts[3] >= 12 && counts[4] >= 12 {
            return Ok(Ok(spans));
        }
        let mut figures = Vec::new();
        for cell in &cluster.cells {
            let text = cell.text("/metrics").await?;
            figures.extend(text.lines().filter(|line| line.starts_with("cellbus_trace")).map(str::to_owned));
        }
        Ok(Err(format!("{counts:?} of {parts:?}; {figures:?}")))
    })
    .await?;
    joined(&spans)?;
    let processes: BTreeSet<&String> = spans.values().flatten().map(|(process, _)| process).collect();
    ensure!(processes.len() >= 2, "{processes:?}");
    // Some hypervisor was asked by another process than the VM's home.
    let step_of = |span: &Span| spans["step create"].iter().find(|(_, step)| step.span_id == span.parent_span_id);
    let crossed = spans["operation create"].iter().filter(|(p, span)| step_of(span).is_some_and(|(home, _)| home != p));
    ensure!(crossed.count() > 0, "every operation was done beside its VM's home");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_holds_nothing_up() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("trace.otlp.endpoint=http://{}", silent.local_addr()?);
    let arguments = ["--cells", "2", "--hosts", "20", "--managers", "2", "--latency", "none"];
    let more = ["--set", &endpoint, "--set", "trace.otlp.queue_max=16"];
    let server = Server::start(&folder.path().join("data"), &[&arguments[..], &more[..]].concat()).await?;
    for number in 0..40 {
        ensure!(server.submit(&provision(&format!("job-{number}"), 1, None)).await?.status == 202);
    }
    wait_for("all jobs to end", WAIT, async || {
        let ended = server.all("/v1/jobs?state=succeeded").await?.len();
        Ok((ended == 40).then_some(()).ok_or(format!("{ended} succeeded")))
    })
    .await?;
    let dropped = "cellbus_trace_spans_dropped_total{reason=\"full\"}";
    ensure!(metric(&server, dropped).await? > 0.0, "nothing was dropped");
    ensure!(metric(&server, "cellbus_trace_spans_exported_total").await? == 0.0);
    // Nor does it hold up the end.
    ensure!(server.terminate(WAIT).await?.success());
    Ok(())
}
