//! The HTTP API as commands use it: one call, one answer, or an error that has an exit code.

use std::fmt;
use std::time::Duration;

use reqwest::{ClientBuilder, Method, StatusCode, Url};
use serde::Serialize;
use serde_json::Value;

use crate::exit::{Error, Result};

/// Longer than the longest wait that the server is asked for.
const READ_TIMEOUT: Duration = Duration::from_secs(90);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    /// Whether problem documents are printed where answers would have been.
    echo: bool,
}

/// What the server answered: the text as it came, and what it means.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The body, byte for byte.
    pub(crate) text: String,
    /// The body as JSON; null where it is empty.
    pub(crate) value: Value,
}

/// A refusal: an RFC 9457 problem document.
#[derive(Debug)]
pub(crate) struct Problem {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// The stable code.
    pub(crate) code: String,
    /// In words.
    detail: String,
    /// When trying again makes sense.
    pub(crate) retry_after: Option<Duration>,
    /// The document as it came, where it is to be printed.
    pub(crate) echo: Option<String>,
    /// Bad members of a batch: index, code, words.
    members: Vec<String>,
}

impl std::error::Error for Problem {}
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused ({}): {}", self.code, self.detail)?;
        if let Some(after) = self.retry_after {
            write!(f, " (try again in {} s)", after.as_secs())?;
        }
        self.members.iter().try_for_each(|member| write!(f, "\n  {member}"))
    }
}

impl Problem {
    fn new(status: StatusCode, retry_after: Option<Duration>, text: &str, echo: bool) -> Self {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let said = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let members = value.get("errors").and_then(Value::as_array).into_iter().flatten().map(|member| {
            let part = |key: &str| match member.get(key) {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => "?".to_owned(),
            };
            format!("member {}: {}: {}", part("index"), part("code"), part("detail"))
        });
        Self {
            status,
            code: said("code").unwrap_or_else(|| format!("http_{}", status.as_u16())),
            detail: said("detail")
                .or_else(|| said("title"))
                .unwrap_or_else(|| format!("{status}, without a problem document: is this a Cellbus server?")),
            retry_after,
            members: members.collect(),
            echo: (echo && !value.is_null()).then(|| text.to_owned()),
        }
    }
    /// Whether the same call is worth making again after a while.
    pub(crate) fn passes(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE || self.status == StatusCode::TOO_MANY_REQUESTS
    }
}

impl Client {
    /// For the server at `base`, by a client that trusts and signs in as it should.
    pub(crate) fn new(base: Url, http: ClientBuilder, echo: bool) -> Result<Self> {
        // A control plane is reached directly: what HTTP_PROXY says is meant for the web.
        let http = http
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("cellbus/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::Other(error.into()))?;
        Ok(Self { http, base, echo })
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    /// `GET /v1/<path>?<query>`; the parts of the path are escaped.
    pub(crate) async fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<Answer> {
        self.call(Method::GET, path, query, None).await
    }
    /// `POST` of nothing.
    pub(crate) async fn post(&self, path: &[&str]) -> Result<Answer> {
        self.call(Method::POST, path, &[], None).await
    }
    /// `POST` of nothing, with a query.
    pub(crate) async fn post_with(&self, path: &[&str], query: &[(&str, String)]) -> Result<Answer> {
        self.call(Method::POST, path, query, None).await
    }
    /// `POST` of JSON.
    pub(crate) async fn post_json(&self, path: &[&str], body: &impl Serialize) -> Result<Answer> {
        let text = serde_json::to_string(body).map_err(|error| Error::Other(error.into()))?;
        self.call(Method::POST, path, &[], Some(("application/json", text))).await
    }
    /// `PUT` of JSON.
    pub(crate) async fn put_json(&self, path: &[&str], body: &impl Serialize) -> Result<Answer> {
        let text = serde_json::to_string(body).map_err(|error| Error::Other(error.into()))?;
        self.call(Method::PUT, path, &[], Some(("application/json", text))).await
    }
    /// `DELETE`.
    pub(crate) async fn delete(&self, path: &[&str]) -> Result<Answer> {
        self.call(Method::DELETE, path, &[], None).await
    }
    /// `POST /v1/jobs` of one CloudEvent, or of a batch, as it is written.
    pub(crate) async fn submit(&self, events: String, batch: bool, query: &[(&str, String)]) -> Result<Answer> {
        let kind = if batch { "application/cloudevents-batch+json" } else { "application/cloudevents+json" };
        self.call(Method::POST, &["v1", "jobs"], query, Some((kind, events))).await
    }

    async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<(&str, String)>,
    ) -> Result<Answer> {
        let mut request = self.http.request(method, self.url(path));
        if !query.is_empty() {
            request = request.query(query);
        }
        if let Some((kind, text)) = body {
            request = request.header(reqwest::header::CONTENT_TYPE, kind).body(text);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let text = response.text().await.map_err(|error| self.unreachable(&error))?;
        if !status.is_success() {
            return Err(Error::Refused(Box::new(Problem::new(status, retry_after, &text, self.echo))));
        }
        let value = if text.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).map_err(|error| {
                Error::Failed(format!(
                    "{} answered with something that is not JSON ({error}): is this a Cellbus server?",
                    self.base
                ))
            })?
        };
        Ok(Answer { status, text, value })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        // reqwest's own words name the URL again; the innermost cause says what happened.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let server = self.base.as_str().trim_end_matches('/').to_owned();
        Error::Unreachable { server, reason: cause.to_string() }
    }
}
