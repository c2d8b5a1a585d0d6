//! Calls between cells of several processes, over the HTTP server that each process has.
//!
//! ```text
//!  call ─▶ in this process? ─yes─▶ function call
//!               └no─▶ POST …/call ─▶ answer, or why there is none
//!  post ─▶ in this process? ─yes─▶ function call
//!               └no─▶ outbox of the cell ─▶ one request at a time, with all that waits in it
//! ```
//!
//! Promises, each with a test:
//! - `NotDelivered` is said only of what certainly reached no cell: no connection was made, or the
//!   other process said so. All else that is not an answer is `Unreachable`.
//! - Posts to one cell arrive in order. They are dropped, and counted, when too much waits or the
//!   cell is not there.
//! - Whatever comes back is bounded, and bytes that are no answer are an error.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{Method, Request as HttpRequest, StatusCode, Uri};
use bytes::Bytes;
use cellbus_bus::Env;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioTimer;
use uuid::Uuid;

use super::connect::Connector;
use super::outbox::{Outbox, Refused};
use super::{CallError, LocalPeers, Peer, Peers, Post, Request, Response, wire};
use crate::metrics::peers::Metrics;
use crate::security::MembersTls;

/// How long an answer may take, beyond what the question itself says.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long posts may take to be taken.
const POST_LIMIT: Duration = Duration::from_secs(10);
/// Connections that are kept for the next call, a process. More are made when needed.
const IDLE_CONNECTIONS_MAX: usize = 32;
/// Shorter than a server waits for the head of the next request, unless told otherwise.
const IDLE_CONNECTION: Duration = Duration::from_secs(15);
/// An outbox that was empty for so long is forgotten: cells come and go.
const IDLE_OUTBOX: Duration = Duration::from_secs(30);
/// For so long nothing is posted to a cell that was certainly not there.
const SHUT: Duration = Duration::from_millis(500);
/// Bytes of a refusal.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// A way to the cells of this process and of others. Cheap to clone.
#[derive(Clone)]
pub struct HttpPeers {
    inner: Arc<Inner>,
}

struct Inner {
    local: LocalPeers,
    cluster: HeaderValue,
    env: Env,
    client: Client<Connector, Full<Bytes>>,
    /// What addresses of other processes begin with.
    scheme: &'static str,
    outboxes: Mutex<BTreeMap<Peer, Arc<Outbox>>>,
    metrics: Metrics,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failed {
    /// Nothing reached a cell.
    NotTaken(String),
    /// Something may have.
    Unanswered(String),
}

impl HttpPeers {
    /// Over the cells of this process, in this cluster.
    #[must_use]
    pub fn new(local: LocalPeers, cluster: Uuid, env: Env, metrics: Metrics) -> Self {
        Self::with_tls(local, cluster, env, metrics, None)
    }

    /// As [`HttpPeers::new`], which talks in clear; with certificates of members nothing does.
    #[must_use]
    pub fn with_tls(local: LocalPeers, cluster: Uuid, env: Env, metrics: Metrics, tls: Option<MembersTls>) -> Self {
        let connector = Connector::new(env.clone(), tls);
        let scheme = connector.scheme();
        let client = Client::builder(Executor(env.clone()))
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        let cluster = HeaderValue::from_str(&cluster.to_string()).expect("a UUID is visible ASCII");
        let outboxes = Mutex::default();
        Self { inner: Arc::new(Inner { local, cluster, env, client, scheme, outboxes, metrics }) }
    }
}

impl Inner {
    /// One request and its answer. Cancel safe: what was sent stays sent.
    async fn send(&self, to: &Peer, kind: wire::Kind, body: Bytes, limit: Duration) -> Result<Bytes, Failed> {
        let no_address = |_| Failed::NotTaken(format!("`{}` is no address that other processes reach", to.address));
        let base = to.address.trim_end_matches('/');
        let uri = format!("{base}{}{}/{}", wire::PREFIX, to.cell, kind.as_str());
        let uri: Uri = uri.parse().map_err(|_| no_address(()))?;
        if uri.scheme_str() != Some(self.scheme) {
            return match uri.scheme_str() {
                Some("http" | "https") => Err(Failed::NotTaken(format!(
                    "`{}` does not begin with {}://, which all members of a cluster have, or none",
                    to.address, self.scheme
                ))),
                Some(_) | None => Err(no_address(())),
            };
        }
        if body.len() > wire::REQUEST_BYTES_MAX {
            return Err(Failed::NotTaken(format!("{} bytes are more than one message may have", body.len())));
        }
        let mut request = HttpRequest::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(wire::CLUSTER, self.cluster.clone());
        headers.insert(wire::FORMAT_NAME, HeaderValue::from(wire::FORMAT));
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| {
                let why = innermost(&error);
                if error.is_connect() { Failed::NotTaken(why) } else { Failed::Unanswered(why) }
            })?;
            let (status, body) = (response.status(), response.into_body());
            if status == kind.answered() {
                read(body, wire::ANSWER_BYTES_MAX).await
            } else {
                Err(refused(status, &read(body, REFUSAL_BYTES_MAX).await?))
            }
        };
        let late = || Failed::Unanswered(format!("no answer within {} s", limit.as_secs()));
        self.env.timeout(limit, exchange).await.ok_or_else(late)?
    }

    async fn call(&self, to: &Peer, request: &Request) -> Result<Response, Failed> {
        let body = wire::request(request);
        let answer = self.send(to, wire::Kind::Call, body, ANSWER_LIMIT + request.waits()).await?;
        wire::read_response(&answer)
            .map_err(|error| Failed::Unanswered(format!("its answer cannot be read: {}", innermost(&error))))
    }

    /// Sends what waits for one cell, until nothing has for a while.
    async fn empty(&self, to: &Peer, outbox: &Outbox) {
        loop {
            if self.env.timeout(IDLE_OUTBOX, outbox.filled()).await.is_none() {
                let mut outboxes = self.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
                // What is put in is put in under this lock.
                if outbox.is_empty() {
                    outboxes.remove(to);
                    return;
                }
                continue;
            }
            let batch = outbox.batch();
            let count = batch.len();
            match self.send(to, wire::Kind::Posts, wire::posts(batch), POST_LIMIT).await {
                Ok(_) => self.metrics.sent(count),
                Err(Failed::NotTaken(why)) => {
                    let dropped = count + outbox.shut(self.env.mono().after(SHUT), why.clone());
                    tracing::debug!(cell = %to.cell, why, dropped, "posts were dropped: the cell is not there");
                    self.metrics.dropped("not_there", dropped);
                }
                // They may have been taken: sending them again would put them out of order.
                Err(Failed::Unanswered(why)) => {
                    tracing::debug!(cell = %to.cell, why, dropped = count, "posts were dropped: no answer");
                    self.metrics.dropped("unreachable", count);
                }
            }
        }
    }
}

#[async_trait]
impl Peers for HttpPeers {
    async fn call(&self, to: &Peer, request: Request) -> Result<Response, CallError> {
        let inner = &self.inner;
        if inner.local.has(&to.cell) {
            return inner.local.call(to, request).await;
        }
        let answer = inner.call(to, &request).await;
        let cell = || to.cell.clone();
        answer.inspect_err(|_| inner.metrics.failed()).map_err(|failed| match failed {
            Failed::NotTaken(detail) => CallError::NotDelivered { cell: cell(), detail },
            Failed::Unanswered(detail) => CallError::Unreachable { cell: cell(), detail },
        })
    }

    fn post(&self, to: &Peer, post: Post) -> Result<(), CallError> {
        let inner = &self.inner;
        if inner.local.has(&to.cell) {
            return inner.local.post(to, post);
        }
        let post = wire::post(&post);
        let mut outboxes = inner.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
        let put = match outboxes.entry(to.clone()) {
            Entry::Occupied(outbox) => outbox.get().put(post, inner.env.mono()),
            Entry::Vacant(place) => {
                let outbox = Arc::clone(place.insert(Arc::default()));
                let put = outbox.put(post, inner.env.mono());
                let (inner, to) = (Arc::clone(inner), to.clone());
                self.inner.env.spawn("posts to a cell", async move { inner.empty(&to, &outbox).await });
                put
            }
        };
        drop(outboxes);
        put.map_err(|refused| {
            let reason = match &refused {
                Refused::NotThere(_) => "not_there",
                Refused::Full(_) => "full",
            };
            inner.metrics.dropped(reason, 1);
            CallError::NotDelivered { cell: to.cell.clone(), detail: refused.to_string() }
        })
    }
}

async fn read(body: Incoming, bytes_max: usize) -> Result<Bytes, Failed> {
    let too_large = || Err(Failed::Unanswered(format!("its answer has more than {bytes_max} bytes")));
    if hyper::body::Body::size_hint(&body).lower() > bytes_max as u64 {
        return too_large();
    }
    match Limited::new(body, bytes_max).collect().await {
        Ok(read) => Ok(read.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => too_large(),
        Err(error) => Err(Failed::Unanswered(format!("its answer broke off: {}", innermost(&*error)))),
    }
}

/// What the other process said in place of an answer.
fn refused(status: StatusCode, body: &[u8]) -> Failed {
    let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let said = |key: &str| problem.get(key).and_then(serde_json::Value::as_str);
    match (said("code"), said("detail")) {
        (Some(code), Some(detail)) if wire::NOT_TAKEN.contains(&code) => Failed::NotTaken(detail.to_owned()),
        (Some(_), Some(detail)) => Failed::Unanswered(detail.to_owned()),
        (Some(_) | None, _) => Failed::Unanswered(format!("it answered {status}, as no cell does")),
    }
}

/// The outer errors say only that something failed; the innermost says why.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Runs what the client needs beside us.
#[derive(Clone)]
struct Executor(Env);
impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, future: F) {
        self.0.spawn("connection to a cell", future);
    }
}
