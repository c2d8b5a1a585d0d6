//! A cluster behind its HTTP API.

use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use cellbus_bus::Env;
use cellbus_bus::ids::{JobId, VmId};
use cellbus_cell::security;
use reqwest::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::outcome::{Failure, how, outcome};
use super::sse::Parser;
use super::target::{
    Audited, CellSeen, Cluster, Ended, Heard, JobView, ManagerSeen, Refused, Sample, SubmitError, Target, TargetError,
    VmPage,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the server waits for its shards before it answers.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const AUDIT_POLL: Duration = Duration::from_millis(200);
/// A stream that says nothing for so long, keep-alive comments included, is taken to be dead.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Above a page of 1,000 VMs or 10,000 places.
const ANSWER_BYTES_MAX: usize = 64 << 20;
const PAGE: &str = "1000";

/// A cluster behind its HTTP API (ops/docs/interface.md). Cheap to clone.
#[derive(Clone, Debug)]
pub struct HttpTarget {
    http: reqwest::Client,
    base: Url,
    env: Env,
}

impl HttpTarget {
    /// The cluster at `url` (`http://127.0.0.1:7070`).
    ///
    /// # Errors
    /// When that is no address.
    pub fn new(url: &str, env: Env) -> Result<Self, TargetError> {
        security::use_ring();
        Self::with(url, reqwest::Client::builder().tls_certs_only([]), env)
    }

    /// As [`HttpTarget::new`], with a client that knows which CAs to trust and what to sign in with.
    ///
    /// # Errors
    /// When `url` is no address, or the client cannot be made.
    pub fn with(url: &str, client: reqwest::ClientBuilder, env: Env) -> Result<Self, TargetError> {
        let known = |base: &Url| matches!(base.scheme(), "http" | "https") && base.has_host();
        let base = Url::parse(url).ok().filter(known);
        let base = base.ok_or_else(|| {
            failed(format!("{url:?} is no address of a cluster; it looks like http://127.0.0.1:7070"))
        })?;
        // A control plane is reached directly: what HTTP_PROXY says is meant for the web.
        let http = client
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .user_agent(concat!("cellbus-load/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| failed(in_full(&error)))?;
        Ok(Self { http, base, env })
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    /// One call: status, `Retry-After`, body.
    async fn call(&self, request: RequestBuilder) -> Result<(StatusCode, Option<Duration>, Vec<u8>), TargetError> {
        let call = async {
            let mut response = request.send().await.map_err(|error| failed(in_full(&error)))?;
            let (status, after) = (response.status(), retry_after(&response));
            let mut body = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| failed(in_full(&error)))? {
                if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                    return Err(failed("the answer is larger than any of Cellbus's".to_owned()));
                }
                body.extend_from_slice(&chunk);
            }
            Ok((status, after, body.to_vec()))
        };
        let late = || failed(format!("no answer within {} s", CALL_TIMEOUT.as_secs()));
        self.env.timeout(CALL_TIMEOUT, call).await.ok_or_else(late)?
    }

    /// A call whose answer must be a success with JSON.
    async fn json<T: for<'a> Deserialize<'a>>(&self, request: RequestBuilder) -> Result<T, TargetError> {
        let (status, _, body) = self.call(request).await?;
        if !status.is_success() {
            return Err(problem(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| failed(format!("the answer is not what it should be: {error}")))
    }

    async fn listed<T: for<'a> Deserialize<'a>>(&self, path: &[&str]) -> Result<Vec<T>, TargetError> {
        let (mut all, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let mut request = self.http.get(self.url(path)).query(&[("limit", PAGE)]);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let page: Page<T> = self.json(request).await?;
            all.extend(page.items);
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(all),
            }
        }
    }
}

fn failed(detail: String) -> TargetError {
    TargetError { detail, later: false }
}

/// With its cause: the outer error says only that a request failed.
fn in_full(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// The words of a problem document.
fn problem(status: StatusCode, body: &[u8]) -> TargetError {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let words = text("detail").or(text("title")).unwrap_or("no problem document");
    TargetError {
        detail: format!("{status} {}: {words}", text("code").unwrap_or("-")),
        later: matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS),
    }
}

#[derive(Deserialize)]
struct Page<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}
#[derive(Deserialize)]
struct NamedVm {
    id: VmId,
    name: String,
}
#[derive(Deserialize)]
struct ManagerOf {
    name: String,
    hosts: u64,
    circuit: Option<String>,
    #[serde(default)]
    cordoned: bool,
}
#[derive(Deserialize)]
struct CellOf {
    id: String,
    state: Option<String>,
    reachable: Option<bool>,
}
#[derive(Deserialize)]
struct Described {
    info: Info,
}
#[derive(Deserialize)]
struct Info {
    version: String,
}
/// What a submission is answered with, taken or not.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    jobs: Vec<SaidOfJob>,
    code: Option<String>,
    errors: Vec<Member>,
}
#[derive(Deserialize)]
struct SaidOfJob {
    error: Option<Member>,
}
#[derive(Deserialize)]
struct Member {
    index: Option<usize>,
    #[serde(default)]
    code: String,
    #[serde(default)]
    detail: String,
}
impl Member {
    fn of(self, index: usize) -> Refused {
        Refused { index, code: self.code, words: self.detail }
    }
}
#[derive(Deserialize)]
struct JobBody {
    state: String,
    error: Option<Failure>,
}
#[derive(Deserialize)]
struct AuditBody {
    id: uuid::Uuid,
    ended_at: Option<Value>,
    #[serde(default)]
    unreachable: Vec<Value>,
    vms: u64,
    findings_total: u64,
    #[serde(default)]
    findings: Vec<Finding>,
}
#[derive(Deserialize)]
struct Finding {
    kind: String,
}

#[async_trait]
impl Target for HttpTarget {
    async fn submit(&self, events: &[String]) -> Result<Vec<Refused>, SubmitError> {
        let body = format!("[{}]", events.join(","));
        let batch = "application/cloudevents-batch+json";
        let request = self.http.post(self.url(&["v1", "jobs"])).header(CONTENT_TYPE, batch).body(body);
        let later = |after, detail| Err(SubmitError::Later { after, detail });
        let (status, after, body) = match self.call(request).await {
            Ok(answer) => answer,
            Err(error) => return later(None, error.detail),
        };
        let said: Said = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            // Some may be refused by their homes, with the others acknowledged.
            let refused =
                said.jobs.into_iter().enumerate().filter_map(|(index, job)| job.error.map(|error| error.of(index)));
            return Ok(refused.filter(|refused| refused.index < events.len()).collect());
        }
        let words = problem(status, &body).detail;
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return later(after, words);
        }
        // A batch is refused whole and names its bad members; one that names none is bad all over.
        let named = said.errors.into_iter().filter_map(|error| error.index.map(|index| error.of(index)));
        let mut refused: Vec<Refused> = named.filter(|refused| refused.index < events.len()).collect();
        if refused.is_empty() {
            let code = said.code.unwrap_or_else(|| format!("http_{}", status.as_u16()));
            let all = |index| Refused { index, code: code.clone(), words: words.clone() };
            refused = (0..events.len()).map(all).collect();
        }
        Err(SubmitError::Refused(refused))
    }

    async fn listen(&self, after: Option<&str>, heard: &mpsc::Sender<Heard>) -> Result<(), TargetError> {
        let mut request = self.http.get(self.url(&["v1", "events"])).header(ACCEPT, "text/event-stream");
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let opened =
            self.env.timeout(CALL_TIMEOUT, request.send()).await.ok_or_else(|| failed("no answer".to_owned()))?;
        let mut response = opened.map_err(|error| failed(in_full(&error)))?;
        if response.status() != StatusCode::OK {
            return Err(failed(format!("events are answered with {}", response.status())));
        }
        if heard.send(Heard::Connected).await.is_err() {
            return Ok(());
        }
        let mut parser = Parser::default();
        loop {
            let piece = self
                .env
                .timeout(SILENCE_MAX, response.chunk())
                .await
                .ok_or_else(|| failed("the events fell silent".to_owned()))?;
            let Some(piece) = piece.map_err(|error| failed(in_full(&error)))? else {
                return Err(failed("the server closed the stream of events".to_owned()));
            };
            let events = parser.feed(&piece).map_err(|_| failed("what comes is no stream of events".to_owned()))?;
            let last = events.iter().rev().find_map(|event| event.id.clone());
            let ended: Vec<Ended> = events.iter().filter_map(|event| outcome(event.data.as_bytes())).collect();
            if !ended.is_empty() && heard.send(Heard::Ended(ended)).await.is_err() {
                return Ok(());
            }
            // After what it covers, so that a broken connection loses nothing.
            if let Some(last) = last
                && heard.send(Heard::At(last)).await.is_err()
            {
                return Ok(());
            }
        }
    }

    async fn job(&self, job: JobId) -> Result<Option<JobView>, TargetError> {
        let (status, _, body) = self.call(self.http.get(self.url(&["v1", "jobs", &job.to_string()]))).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(problem(status, &body));
        }
        let body: JobBody = serde_json::from_slice(&body)
            .map_err(|error| failed(format!("the job is not what it should be: {error}")))?;
        Ok(Some(JobView { ended: how(&body.state, body.error) }))
    }

    async fn vms(&self, tenant: &str, label: (&str, &str), cursor: Option<&str>) -> Result<VmPage, TargetError> {
        let label = format!("{}={}", label.0, label.1);
        let mut request = self.http.get(self.url(&["v1", "vms"])).query(&[
            ("tenant", tenant),
            ("label", label.as_str()),
            ("limit", PAGE),
        ]);
        if let Some(cursor) = cursor {
            request = request.query(&[("cursor", cursor)]);
        }
        let page: Page<NamedVm> = self.json(request).await?;
        Ok(VmPage { vms: page.items.into_iter().map(|vm| (vm.id, vm.name)).collect(), next: page.next_cursor })
    }

    async fn locate(&self, vms: &[VmId]) -> Result<usize, TargetError> {
        let ids: Vec<u8> = vms.iter().flat_map(|vm| *vm.as_bytes()).collect();
        let request =
            self.http.post(self.url(&["v1", "locate"])).header(CONTENT_TYPE, "application/octet-stream").body(ids);
        let (status, _, body) = self.call(request).await?;
        if !status.is_success() {
            return Err(problem(status, &body));
        }
        found(&body).ok_or_else(|| failed("what comes is no list of places".to_owned()))
    }

    async fn audit(&self) -> Result<Audited, TargetError> {
        let mut audit: AuditBody = self.json(self.http.post(self.url(&["v1", "audit"]))).await?;
        while audit.ended_at.is_none() {
            self.env.sleep(AUDIT_POLL).await;
            audit = self.json(self.http.get(self.url(&["v1", "audit", &audit.id.to_string()]))).await?;
        }
        Ok(Audited {
            vms: audit.vms,
            mismatches: audit.findings_total,
            unread: audit.unreachable.len() as u64,
            duplicates: audit.findings.iter().filter(|finding| finding.kind == "duplicate").count() as u64,
        })
    }

    async fn cluster(&self) -> Result<Cluster, TargetError> {
        let managers: Vec<ManagerOf> = self.listed(&["v1", "managers"]).await?;
        // For the report only: a server that does not describe itself is as good.
        let described = self.json::<Described>(self.http.get(self.url(&["v1", "openapi.json"]))).await;
        Ok(Cluster {
            hosts: managers.iter().map(|manager| manager.hosts).sum(),
            managers: managers.into_iter().map(|manager| manager.name).collect(),
            version: described.ok().map(|described| described.info.version.chars().take(64).collect()),
        })
    }

    async fn sample(&self) -> Result<Sample, TargetError> {
        // All of them at once: this list has no pages.
        let cells: Page<CellOf> = self.json(self.http.get(self.url(&["v1", "cells"]))).await?;
        let cells = cells.items.into_iter().map(|cell| CellSeen {
            id: cell.id,
            state: match cell.reachable {
                Some(false) => "not answering".to_owned(),
                Some(true) | None => cell.state.unwrap_or_default(),
            },
        });
        let (status, _, body) = self.call(self.http.get(self.url(&["metrics"]))).await?;
        let text = if status.is_success() { String::from_utf8_lossy(&body).into_owned() } else { String::new() };
        Ok(Sample {
            cells: cells.collect(),
            rss_mib: rss_mib(&text),
            rss_now_mib: metric(&text, RSS).map(|bytes| bytes / MIB),
            jobs_open: metric(&text, "cellbus_queue_jobs{stage=\"open\"}").map(|jobs| jobs as u64),
        })
    }

    async fn managers(&self) -> Result<Vec<ManagerSeen>, TargetError> {
        let managers: Vec<ManagerOf> = self.listed(&["v1", "managers"]).await?;
        let seen = |of: ManagerOf| ManagerSeen { name: of.name, circuit: of.circuit, cordoned: of.cordoned };
        Ok(managers.into_iter().map(seen).collect())
    }
}

/// How many places a binary answer has: a header of 16 bytes (`CBLO`, version, bytes of a record,
/// records, bytes of names), then the records, whose first byte is 1 where the VM was found.
fn found(answer: &[u8]) -> Option<usize> {
    let (header, rest) = answer.split_at_checked(16)?;
    let record = usize::from(u16::from_be_bytes([header[6], header[7]]));
    let records = u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize;
    let known = header.starts_with(b"CBLO") && record > 0;
    let records = rest.get(..record.checked_mul(records).filter(|_| known)?)?;
    Some(records.chunks_exact(record).filter(|record| record[0] == 1).count())
}

const RSS: &str = "process_resident_memory_bytes";
const MIB: f64 = 1_048_576.0;

/// One value of Prometheus text, not negative.
fn metric(metrics: &str, name: &str) -> Option<f64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<f64>().ok();
    metrics.lines().find_map(value).filter(|value| *value >= 0.0)
}

/// Memory, from Prometheus text: the peak where there is one.
fn rss_mib(metrics: &str) -> u64 {
    let bytes = metric(metrics, "cellbus_process_resident_memory_peak_bytes").or_else(|| metric(metrics, RSS));
    // Not negative, and far below what a u64 holds.
    (bytes.unwrap_or(0.0) / MIB).ceil() as u64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::load::How;

    #[test]
    fn outcomes_are_read_from_events() {
        let job = JobId::derive("t", "s", "e");
        let event = |kind: &str, data: Value| json!({"type": kind, "id": "1", "data": data}).to_string();
        let ended = |text: String| outcome(text.as_bytes()).map(|ended| ended.how);
        assert_eq!(
            ended(event("io.cellbus.job.succeeded.v1", json!({"job_id": job, "vms": []}))),
            Some(How::Succeeded)
        );
        let error = json!({"code": "no_room", "message": "full", "step": null, "retryable": true});
        let failed = event("io.cellbus.job.failed.v1", json!({"job_id": job, "error": error}));
        assert_eq!(ended(failed), Some(How::Failed("no_room".to_owned(), "full".to_owned())));
        assert_eq!(ended(event("io.cellbus.job.cancelled.v1", json!({"job_id": job}))), Some(How::Cancelled));
        for none in [
            event("io.cellbus.job.accepted.v1", json!({"job_id": job})),
            event("io.cellbus.vm.state.v1", json!({"id": job})),
            event("io.cellbus.job.succeeded.v1", json!({})),
            "{".to_owned(),
        ] {
            assert_eq!(outcome(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn places_are_counted_in_a_binary_answer() {
        let mut answer = b"CBLO\0\x01\0\x04\0\0\0\x03\0\0\0\x02".to_vec();
        answer.extend_from_slice(b"\x01aaa\0bbb\x01cccno");
        assert_eq!(found(&answer), Some(2));
        for cut in [0, 15, 16, 27] {
            assert_eq!(found(&answer[..cut]), None, "{cut}");
        }
        assert_eq!(found(b"{\"items\":[],\"missing\":[]}"), None);
    }

    #[test]
    fn memory_is_read_from_metrics() {
        assert_eq!(rss_mib("# HELP x\nprocess_resident_memory_bytes 10485760\n"), 10);
        assert_eq!(
            rss_mib("process_resident_memory_bytes 1\ncellbus_process_resident_memory_peak_bytes 2.097152e6\n"),
            2
        );
        assert_eq!(rss_mib(""), 0);
        let queue = "cellbus_queue_jobs{stage=\"open\"} 12\ncellbus_queue_jobs{stage=\"parked\"} -1\n";
        assert_eq!(metric(queue, "cellbus_queue_jobs{stage=\"open\"}"), Some(12.0));
        assert_eq!(metric(queue, "cellbus_queue_jobs{stage=\"parked\"}"), None);
    }
}
