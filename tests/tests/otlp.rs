//! Traces of jobs at a collector of the test's own: one trace from the producer to the hypervisor, also
//! across processes, and over the death of the job's home; a collector with a CA of its own that asks who
//! comes; and one that is away, which no job waits for.

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
use cellbus_bus::ids::{JobId, ShardCount};
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::cluster::{Cluster, Shape, rows};
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
        self.serve(listener);
        Ok(address)
    }
    fn serve<L: axum::serve::Listener<Addr: std::fmt::Debug>>(&self, listener: L) {
        let router = Router::new().route("/v1/traces", post(take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
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

/// A job is accepted by a home that dies before anything is done for it: the cell that takes its shard has
/// its trace from the job's record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_on_when_the_home_of_its_job_dies() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let (folder, collector) = (tempfile::tempdir()?, Collector::default());
    let (address, headers) = (collector.start().await?, secret(folder.path())?);
    let more = format!("[trace.otlp]\nendpoint = \"{address}\"\nheaders_file = \"{headers}\"\n");
    let mut cluster = Cluster::start(Shape { more, ..Shape::default() }, 2, 1).await?;
    cluster.settled().await?;
    // What is accepted now waits.
    cluster.cells[1].succeed(&["pause", "--reason", "until its home is gone"])?;

    // A job whose home is the first cell, handed to that cell: nobody else has seen its trace.
    let cells = rows(&cluster.cells[1].get("/v1/cells").await?.body);
    let port = cluster.cells[0].url.rsplit(':').next().context("a port")?.to_owned();
    let first = cells.iter().find(|cell| cell["address"].as_str().is_some_and(|address| address.ends_with(&port)));
    let first = first.context("the first cell is a member")?["id"].clone();
    let traced = format!("00-{TRACE}-{PRODUCER}-01");
    let mut accepted = None;
    for number in 0..64 {
        let job = provision(&format!("taken-over-{number}"), 4, Some(&traced));
        let [source, id] = ["source", "id"].map(|key| job[key].as_str().unwrap_or_default());
        let shard = JobId::derive("acme", source, id).shard(ShardCount::new(cluster.shards()).context("shards")?);
        let shards = rows(&cluster.cells[1].get("/v1/shards").await?.body);
        if shards.iter().any(|row| row["shard"] == shard.index() && row["owner"] == first) {
            let answer = cluster.cells[0].submit(&job).await?;
            ensure!(answer.status == 202, "{answer:?}");
            accepted = answer.body["job_id"].as_str().map(str::to_owned);
            break;
        }
    }
    let job = accepted.context("some job's home is the first cell")?;
    wait_for("its first span", WAIT, async || {
        Ok(collector.of(TRACE).get("submit").map(|_| ()).ok_or("none".to_owned()))
    })
    .await?;
    cluster.cells.remove(0).kill()?;
    cluster.settled().await?;
    cluster.cells[0].succeed(&["resume"])?;
    cluster.cells[0].succeed(&["job", "wait", &job])?;

    let parts = ["submit", "job provision", "outcome", "step create", "operation create"];
    let spans = wait_for("the whole trace", WAIT, async || {
        let spans = collector.of(TRACE);
        let counts = parts.map(|name| spans.get(name).map_or(0, Vec::len));
        Ok(if counts == [1, 1, 1, 4, 4] { Ok(spans) } else { Err(format!("{counts:?} of {parts:?}")) })
    })
    .await
    .with_context(|| cluster.cells[0].log_tail())?;
    joined(&spans)?;
    let [submitted, ended] = ["submit", "job provision"].map(|name| &spans[name][0].0);
    ensure!(submitted != ended, "it ended where it was accepted");
    let dropped = "cellbus_trace_spans_dropped_total{reason=\"unknown\"}";
    ensure!(metric(&cluster.cells[0], dropped).await? == 0.0, "spans whose trace nobody knew");
    Ok(())
}

// ── a collector that asks who comes ──

/// A CA, and what it vouches for.
struct Authority {
    cert: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate()?;
        Ok(Self { cert: params.self_signed(&key)?, issuer: rcgen::Issuer::new(params, key) })
    }
    fn certify(&self, name: &str) -> Result<(rcgen::Certificate, rcgen::KeyPair)> {
        let key = rcgen::KeyPair::generate()?;
        Ok((rcgen::CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.issuer)?, key))
    }
    /// A server of this authority that takes nobody else's clients.
    fn server(&self) -> Result<tokio_rustls::TlsAcceptor> {
        let (cert, key) = self.certify("localhost")?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.cert.der().clone())?;
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&ring)).build()?;
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = rustls::ServerConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![cert.der().clone()], key)?;
        Ok(Arc::new(config).into())
    }
    /// Files for a process that this authority vouches for, put in place one after the other; gives its
    /// certificate.
    fn write(&self, folder: &std::path::Path) -> Result<Vec<u8>> {
        let (cert, key) = self.certify("cellbus")?;
        for (name, pem) in [("ca.pem", self.cert.pem()), ("own.pem", cert.pem()), ("own.key", key.serialize_pem())] {
            let new = folder.join(format!("{name}.new"));
            std::fs::write(&new, pem)?;
            std::fs::rename(&new, folder.join(name))?;
        }
        Ok(cert.der().to_vec())
    }
}

/// Connections by the acceptor of the moment, and whom it has let in.
struct Guarded {
    listener: TcpListener,
    acceptor: Arc<Mutex<tokio_rustls::TlsAcceptor>>,
    came: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl axum::serve::Listener for Guarded {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = std::net::SocketAddr;
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.listener.accept().await else { continue };
            let acceptor = self.acceptor.lock().unwrap().clone();
            // Whoever is not let in goes away.
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            self.came.lock().unwrap().extend(shown.map(|cert| cert.to_vec()));
            return (stream, address);
        }
    }
    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// CA, certificate and key are those of the files, also when there are new ones; and a process that shows
/// no certificate, or does not know the CA, delivers nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_is_known_by_its_own_ca_and_knows_who_comes() -> Result<()> {
    let (folder, collector) = (tempfile::tempdir()?, Collector::default());
    let (old, new) = (Authority::new("old")?, Authority::new("new")?);
    let own = old.write(folder.path())?;
    let (acceptor, came) = (Arc::new(Mutex::new(old.server()?)), Arc::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("trace.otlp.endpoint=https://localhost:{}", listener.local_addr()?.port());
    collector.serve(Guarded { listener, acceptor: Arc::clone(&acceptor), came: Arc::clone(&came) });
    let headers = format!("trace.otlp.headers_file={}", secret(folder.path())?);
    let set = |name: &str, file: &str| format!("trace.otlp.{name}={}", folder.path().join(file).display());
    let (ca, cert, key) = (set("ca", "ca.pem"), set("cert", "own.pem"), set("key", "own.key"));
    let arguments = ["--cells", "1", "--hosts", "4", "--managers", "2", "--latency", "none"];
    let up = async |data: &str, settings: &[&str]| {
        let common = [endpoint.as_str(), &headers, "security.reload_interval=50ms"];
        let settings = common.iter().chain(settings).flat_map(|set| ["--set", *set]);
        let all: Vec<&str> = arguments.into_iter().chain(settings).collect();
        Server::start(&folder.path().join(data), &all).await
    };
    let own_trace = async |server: &Server, id: &str| -> Result<String> {
        let answer = server.submit(&provision(id, 1, None)).await?;
        ensure!(answer.status == 202, "{answer:?}");
        Ok(answer.body["job_id"].as_str().context("an id")?.replace('-', ""))
    };
    let arrives = async |server: &Server, trace: &str| -> Result<()> {
        let seen = async || Ok(collector.of(trace).get("job provision").map(|_| ()).ok_or("nothing".to_owned()));
        wait_for("the trace", WAIT, seen).await.with_context(|| server.log_tail())
    };

    // Who does not know its CA does not go on; who shows nothing is not let in.
    for (data, settings) in [("strange", &[][..]), ("nobody", &[ca.as_str()][..])] {
        let stranger = up(data, settings).await?;
        own_trace(&stranger, "in-vain").await?;
        let refused = "cellbus_trace_spans_dropped_total{reason=\"refused\"}";
        wait_for("its spans to be refused", WAIT, async || {
            let count = metric(&stranger, refused).await?;
            Ok((count > 0.0).then_some(()).ok_or(format!("{count}")))
        })
        .await?;
    }
    ensure!(collector.spans.lock().unwrap().is_empty(), "it takes from anybody");

    let server = up("data", &[&ca, &cert, &key]).await?;
    let trace = own_trace(&server, "first").await?;
    arrives(&server, &trace).await?;
    ensure!(came.lock().unwrap().last() == Some(&own), "it comes as somebody else");

    // Both ends get certificates of another CA.
    *acceptor.lock().unwrap() = new.server()?;
    let own = new.write(folder.path())?;
    let read = "cellbus_security_files_read_total{files=\"collector\"}";
    wait_for("the new files to be read", WAIT, async || {
        let text = server.text("/metrics").await?;
        Ok(text.lines().any(|line| line == format!("{read} 1")).then_some(()).ok_or(server.log_tail()))
    })
    .await?;
    let trace = own_trace(&server, "second").await?;
    arrives(&server, &trace).await?;
    ensure!(came.lock().unwrap().last() == Some(&own), "it comes with its old certificate");

    // What is no certificate changes nothing, and is said.
    std::fs::write(folder.path().join("own.pem"), "nothing")?;
    wait_for("the broken file to be told", WAIT, async || {
        let broken = metric(&server, "cellbus_security_file_broken{files=\"collector\"}").await?;
        Ok((broken == 1.0).then_some(()).ok_or(format!("{broken}")))
    })
    .await?;
    let trace = own_trace(&server, "third").await?;
    arrives(&server, &trace).await
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
