//! One connection to a vCenter: a request, its answer or fault, the cookie of the session.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cellbus_bus::Env;
use reqwest::header::{CONTENT_TYPE, COOKIE, HeaderValue, SET_COOKIE, USER_AGENT};

use crate::vim::Ref;
use crate::xml::{self, Element};

/// Bytes of one answer. Inventories are read in pages of some hundred objects, a few KiB each.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// To connect, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// Whom SOAP is for: calls of the oldest version still in use, which newer ones take too.
const VERSION: &str = "urn:vim25/6.7";

/// Why a call gave no result.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No answer, or none that makes sense: what was asked may have been done.
    #[error("{0}")]
    NoAnswer(String),
    /// The vCenter says that it failed.
    #[error("{0}")]
    Fault(Fault),
    /// A newer owner has opened this manager.
    #[error("a newer owner has opened this manager")]
    Revoked,
    /// What was asked for is not as it must be; nothing was done.
    #[error("{0}")]
    Refused(cellbus_cell::driver::Error),
}

/// A fault of vSphere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}{}{message}", if message.is_empty() { "" } else { ": " })]
pub(crate) struct Fault {
    /// Its kind, such as `InvalidPowerState`.
    pub(crate) kind: String,
    /// In words.
    pub(crate) message: String,
    /// What more there is.
    pub(crate) detail: Box<Element>,
}

impl Fault {
    /// From an element whose `xsi:type` says which fault it is.
    pub(crate) fn of(detail: &Element, message: &str) -> Self {
        let privilege = detail.text_of("privilegeId");
        let message = if privilege.is_empty() { message.to_owned() } else { format!("{message} ({privilege})") };
        // Whatever a vCenter says is told in a line of bearable length.
        let message = message.trim().chars().filter(|c| !c.is_control()).take(500).collect();
        Self { kind: detail.kind.clone(), message, detail: Box::new(detail.clone()) }
    }
}

/// A connection. Calls may go out at the same time.
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    env: Env,
    cookie: Mutex<Option<HeaderValue>>,
    agent: HeaderValue,
}

impl Client {
    /// # Errors
    /// When there can be no client at all.
    pub(crate) fn new(address: &str, tls: rustls::ClientConfig, agent: &str, env: Env) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|error| error.to_string())?;
        let agent = HeaderValue::from_str(agent).map_err(|error| error.to_string())?;
        Ok(Self { http, url: format!("{address}/sdk"), env, cookie: Mutex::default(), agent })
    }

    pub(crate) fn env(&self) -> &Env {
        &self.env
    }

    /// A connection to the same vCenter that is not signed in.
    pub(crate) fn signed_out(&self) -> Self {
        let (http, url, env) = (self.http.clone(), self.url.clone(), self.env.clone());
        Self { http, url, env, cookie: Mutex::default(), agent: self.agent.clone() }
    }

    /// Goes on in the session that `other` has signed in to.
    pub(crate) fn adopt(&self, other: &Self) {
        let cookie = other.cookie().clone();
        *self.cookie() = cookie;
    }

    fn cookie(&self) -> std::sync::MutexGuard<'_, Option<HeaderValue>> {
        self.cookie.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a method of an object with what is `within`; gives the element of the answer.
    ///
    /// # Errors
    /// [`Failure::NoAnswer`], [`Failure::Fault`].
    pub(crate) async fn call(
        &self,
        method: &str,
        this: &Ref,
        within: &[String],
        limit: Duration,
    ) -> Result<Element, Failure> {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope \
             xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" \
             xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body><{method} xmlns=\"urn:vim25\">{}{}\
             </{method}></soapenv:Body></soapenv:Envelope>",
            this.xml("_this"),
            within.concat(),
        );
        let asked = self.env.timeout(limit, self.exchange(body)).await;
        let late = || Failure::NoAnswer(format!("{method}: no answer within {} s", limit.as_secs()));
        let (status, answer) = asked.ok_or_else(late)?.map_err(|why| Failure::NoAnswer(format!("{method}: {why}")))?;
        let garbled = |why: String| Failure::NoAnswer(format!("{method}: HTTP {status}, and {why}"));
        let envelope = xml::parse(&answer).map_err(garbled)?;
        let body = envelope.child("Body").and_then(|body| body.children.first());
        let Some(body) = body else { return Err(garbled("no SOAP answer".to_owned())) };
        if body.name != "Fault" {
            return Ok(body.clone());
        }
        let detail = body.child("detail").and_then(|detail| detail.children.first());
        let fault = Fault::of(detail.unwrap_or(&Element::default()), body.text_of("faultstring"));
        Err(Failure::Fault(fault))
    }

    async fn exchange(&self, body: String) -> Result<(u16, String), String> {
        let mut request = self
            .http
            .post(&self.url)
            .header(CONTENT_TYPE, "text/xml; charset=utf-8")
            .header("SOAPAction", VERSION)
            .header(USER_AGENT, self.agent.clone())
            .body(body);
        if let Some(cookie) = self.cookie().clone() {
            request = request.header(COOKIE, cookie);
        }
        let mut response = request.send().await.map_err(|error| chain(&error))?;
        let status = response.status().as_u16();
        let session = response.headers().get_all(SET_COOKIE).iter().filter_map(|set| set.to_str().ok());
        let session =
            session.filter_map(|set| set.split(';').next()).find(|set| set.starts_with("vmware_soap_session="));
        if let Some(session) = session {
            *self.cookie() = HeaderValue::from_str(session).ok().map(|mut cookie| {
                cookie.set_sensitive(true);
                cookie
            });
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
            if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(format!("the answer is longer than {} MiB", ANSWER_BYTES_MAX >> 20));
            }
            answer.extend_from_slice(&chunk);
        }
        Ok((status, String::from_utf8(answer).map_err(|_| "the answer is not UTF-8".to_owned())?))
    }
}

/// With its causes: the outermost says only that a request failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
