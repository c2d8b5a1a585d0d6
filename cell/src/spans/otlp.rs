//! Sends spans to a collector: OTLP over HTTP, in protobuf, in batches, each tried a few times.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::ids::JobId;
use futures::StreamExt as _;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span as Encoded;
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Span, Spans, encode};
use crate::Gateway;
use crate::config;
use crate::metrics::spans::{Dropped, Metrics};
use crate::peers::{Peer, Request, Response};
use crate::security::{Security, collector};

/// Spans of one request.
const BATCH_MAX: usize = 512;
/// How long a batch waits for more.
const LINGER: Duration = Duration::from_millis(500);
/// How often a batch is sent before it is dropped.
const TRIES: u32 = 4;
/// Before the second try; doubled each time.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
/// How long a cell may take to say which traces jobs belong to.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// How often the home of a job is asked before its spans are dropped; it may be moving, or busy.
const ASKS: u32 = 10;
/// Spans that wait for an answer of a home.
const HELD_MAX: usize = 4_096;
/// How long the last spans of a process may take to be sent.
const LAST_LIMIT: Duration = Duration::from_secs(3);
/// Bytes of an answer, and of the file with headers.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// See the module.
pub(crate) struct Exporter {
    env: Env,
    config: config::Otlp,
    received: mpsc::Receiver<Span>,
    spans: Spans,
    metrics: Metrics,
    security: Security,
    /// Where there are no certificates for it.
    http: reqwest::Client,
    resource: Resource,
    /// Spans whose trace no home has said yet, and how often it was asked.
    held: Vec<(Span, u32)>,
    /// Whether the last request failed, so that it is said once.
    failing: bool,
}

impl Exporter {
    /// One that gets what is handed to `spans` from now on. `None` if another does, or no client can
    /// be made, which is logged.
    pub(crate) fn open(
        spans: &Spans,
        config: config::Otlp,
        security: Security,
        version: &str,
        env: Env,
    ) -> Option<Self> {
        let http = collector::builder()
            .build()
            .inspect_err(|error| tracing::error!(%error, "no client for the collector of traces: none are sent"))
            .ok()?;
        let received = spans.open(config.ratio, config.queue_max)?;
        let resource = encode::resource(version, env.random_u64());
        let metrics = spans.metrics.clone();
        Some(Self {
            env,
            config,
            received,
            metrics,
            security,
            http,
            resource,
            spans: spans.clone(),
            held: Vec::new(),
            failing: false,
        })
    }

    /// Sends until it is stopped, and then what is there.
    pub(crate) async fn run(mut self, gateway: Gateway, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = self.received.recv_many(&mut batch, BATCH_MAX) => if count == 0 { break },
                () = self.env.sleep(LINGER), if !self.held.is_empty() => {}
            }
            if batch.len() < BATCH_MAX {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = self.env.sleep(LINGER) => {}
                }
                self.fill(&mut batch);
            }
            let sent = self.deliver(&gateway, std::mem::take(&mut batch));
            tokio::select! {
                biased;
                () = sent => {}
                () = give_up(&stop, &gateway) => return,
            }
        }
        let env = self.env.clone();
        let last = async {
            loop {
                self.fill(&mut batch);
                if batch.is_empty() && self.held.is_empty() {
                    break;
                }
                self.deliver(&gateway, std::mem::take(&mut batch)).await;
            }
        };
        // What is not sent by then is lost: no work waits for it.
        let _ = env.timeout(LAST_LIMIT, last).await;
    }

    /// Adds what is there.
    fn fill(&mut self, batch: &mut Vec<Span>) {
        while batch.len() < BATCH_MAX
            && let Ok(span) = self.received.try_recv()
        {
            batch.push(span);
        }
    }

    async fn deliver(&mut self, gateway: &Gateway, batch: Vec<Span>) {
        let mut batch: Vec<(Span, u32)> = batch.into_iter().map(|span| (span, 0)).collect();
        batch.append(&mut self.held);
        self.ask_homes(gateway, &batch).await;
        let mut spans = Vec::with_capacity(batch.len());
        for (span, asked) in batch {
            let Some(context) = self.spans.trace(&span.job) else {
                if asked + 1 < ASKS && self.held.len() < HELD_MAX {
                    self.held.push((span, asked + 1));
                } else {
                    self.metrics.dropped(Dropped::Unknown, 1);
                }
                continue;
            };
            if context.is_none_or(|context| context.sampled) {
                spans.push(encode::span(&self.env, span, context));
            }
        }
        if !spans.is_empty() {
            self.send(spans).await;
        }
    }

    /// Learns which traces the jobs of these spans belong to, as far as it is not known here: of the
    /// cells that their homes are with.
    async fn ask_homes(&self, gateway: &Gateway, batch: &[(Span, u32)]) {
        let process = gateway.process();
        let unknown = batch.iter().map(|(span, _)| span.job).filter(|job| self.spans.trace(job).is_none());
        let mut by_peer: BTreeMap<Arc<Peer>, Vec<JobId>> = BTreeMap::new();
        for job in unknown.collect::<BTreeSet<_>>() {
            if let Some(route) = process.routes.of(job.shard(process.count)) {
                by_peer.entry(Arc::clone(&route.peer)).or_default().push(job);
            }
        }
        let asked = by_peer.into_iter().map(|(peer, jobs)| async move {
            let answer = process.peers.call(&peer, Request::Traces(jobs.clone()));
            if let Some(Ok(Response::Traces(traces))) = self.env.timeout(ASK_LIMIT, answer).await {
                for (job, trace) in jobs.into_iter().zip(traces) {
                    trace.into_iter().for_each(|context| self.spans.learn_of(job, context));
                }
            }
        });
        futures::future::join_all(asked).await;
    }

    /// Sends one request, a few times if need be.
    async fn send(&mut self, spans: Vec<Encoded>) {
        let count = spans.len();
        let body = bytes::Bytes::from(encode::request(&self.resource, spans).encode_to_vec());
        let mut pause = AGAIN_FIRST;
        for tried in 1..=TRIES {
            let asked = self.env.timeout(self.config.time_limit, self.post(body.clone())).await;
            match asked.unwrap_or_else(|| Err(Failed::passing("no answer in time".to_owned()))) {
                Ok(rejected) => {
                    self.failing = false;
                    self.metrics.exported(count - rejected.min(count));
                    self.metrics.dropped(Dropped::Refused, rejected.min(count));
                    return;
                }
                Err(Failed { why, passing }) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(why, "the collector of traces does not take spans; no work waits for it");
                    }
                    if !passing || tried == TRIES {
                        break;
                    }
                    self.env.sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        self.metrics.dropped(Dropped::Refused, count);
    }

    /// How many spans the collector has not taken of one request.
    async fn post(&self, body: bytes::Bytes) -> Result<usize, Failed> {
        let mut headers = self.headers().await?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        // New certificates count for new connections.
        let http = self.security.collector().map_or_else(|| self.http.clone(), |http| http.as_ref().clone());
        let request = http.post(&self.config.endpoint).headers(headers).body(body);
        let answer = request.send().await.map_err(|error| Failed::passing(error.without_url().to_string()))?;
        let status = answer.status();
        if !status.is_success() {
            let passing = matches!(status.as_u16(), 408 | 429 | 502..=504);
            return Err(Failed { why: format!("it answers {status}"), passing });
        }
        let mut said = Vec::new();
        let mut stream = answer.bytes_stream();
        while let Some(Ok(part)) = stream.next().await {
            if said.len() + part.len() > ANSWER_BYTES_MAX {
                break;
            }
            said.extend_from_slice(&part);
        }
        // One that cannot be read says of no span that it was refused.
        let said = ExportTraceServiceResponse::decode(said.as_slice()).unwrap_or_default();
        let ExportTracePartialSuccess { rejected_spans, error_message } = said.partial_success.unwrap_or_default();
        if rejected_spans > 0 {
            tracing::debug!(rejected_spans, error_message, "the collector of traces refuses some spans");
        }
        Ok(usize::try_from(rejected_spans).unwrap_or(0))
    }

    /// What the file says now: secrets are replaced while a process runs.
    async fn headers(&self) -> Result<HeaderMap, Failed> {
        let Some(file) = self.config.headers_file.clone() else { return Ok(HeaderMap::new()) };
        let shown = file.display().to_string();
        let read = self.env.blocking("headers of the collector", move || read_bounded(file)).await;
        match read {
            Some(Ok(text)) => headers(&text)
                .map_err(|line| Failed { why: format!("line {line} of {shown} is no `name: value`"), passing: false }),
            Some(Err(error)) => Err(Failed::passing(format!("{shown}: {error}"))),
            None => Err(Failed::passing(format!("{shown} could not be read"))),
        }
    }
}

/// Waits until there is no time left to send the batch that is under way when the process stops.
async fn give_up(stop: &CancellationToken, gateway: &Gateway) {
    stop.cancelled().await;
    gateway.process().env.sleep(LAST_LIMIT).await;
}

struct Failed {
    why: String,
    passing: bool,
}
impl Failed {
    fn passing(why: String) -> Self {
        Self { why, passing: true }
    }
}

fn read_bounded(file: PathBuf) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)?.take(ANSWER_BYTES_MAX as u64).read_to_string(&mut text)?;
    Ok(text)
}

/// A header a line; empty lines and comments are skipped. Else the number of the line that is none.
fn headers(text: &str) -> Result<HeaderMap, usize> {
    let mut headers = HeaderMap::new();
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once(':').ok_or(number)?;
        let name: HeaderName = name.trim().parse().map_err(|_| number)?;
        let mut value: HeaderValue = value.trim().parse().map_err(|_| number)?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_line_by_line() {
        let read = headers("# of the collector\n\nauthorization: Bearer a:b\nX-Scope: eu\n").unwrap();
        assert_eq!(read["authorization"], "Bearer a:b");
        assert!(read["authorization"].is_sensitive() && read["x-scope"] == "eu");
        assert_eq!(headers("a: b\nnothing\n"), Err(2));
        assert_eq!(headers("a b: c\n"), Err(1));
    }
}
