//! Binary mode: attributes in headers, `data` in the body. And which mode a message is in.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::{RawValue, to_raw_value};

use super::envelope::{Envelope, is_json};
use super::json;
use super::rejection::{Code, Rejection, pointer_step, shown};
use super::{Limits, TenantRule, body_fits, parse_structured};
use crate::job::Job;

/// How an event lies in its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The body is the event.
    Structured,
    /// The body is a list of events.
    Batch,
    /// Headers hold the attributes, the body is `data`.
    Binary,
}

/// Which mode a message is in, by its headers (names in lower case).
///
/// # Errors
/// A content type that is neither JSON nor of CloudEvents.
pub fn mode<N: AsRef<str>, V: AsRef<str>>(headers: &[(N, V)]) -> Result<Mode, Rejection> {
    let content_type =
        headers.iter().find(|(name, _)| name.as_ref() == "content-type").map(|(_, value)| value.as_ref());
    let essence = content_type.map(|t| t.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    match essence.as_deref() {
        Some("application/cloudevents+json") => Ok(Mode::Structured),
        Some("application/cloudevents-batch+json") => Ok(Mode::Batch),
        _ if headers.iter().any(|(name, _)| attribute(name.as_ref()).is_some()) => Ok(Mode::Binary),
        // Plain JSON without `ce-` headers: what curl users and simple producers send.
        None => Ok(Mode::Structured),
        Some(other) if is_json(other) && !other.contains("cloudevents") => Ok(Mode::Structured),
        Some(other) => {
            let message = format!(
                "`{}` is not taken; send application/cloudevents+json, application/cloudevents-batch+json, or \
                 application/json with ce- headers",
                shown(other),
            );
            Err(Rejection::new(Code::UnsupportedContentType, "", message))
        }
    }
}

/// `ce-id` on HTTP and NATS, `ce_id` on Kafka: the attribute's name, and whether its value is
/// percent-encoded (as the HTTP and NATS bindings say, and Kafka's does not).
fn attribute(header: &str) -> Option<(&str, bool)> {
    header.strip_prefix("ce-").map(|name| (name, true)).or_else(|| header.strip_prefix("ce_").map(|name| (name, false)))
}

/// The job of one event in binary mode. Header names are in lower case.
///
/// # Errors
/// As [`parse_structured`].
pub fn parse_binary<N: AsRef<str>, V: AsRef<str>>(
    headers: &[(N, V)],
    body: &[u8],
    tenant: TenantRule<'_>,
    limits: &Limits,
) -> Result<Job, Rejection> {
    body_fits(body, limits)?;
    let mut envelope = Envelope::default();
    for (name, value) in headers {
        if name.as_ref() == "content-type" {
            envelope.set("datacontenttype", Cow::Borrowed(value.as_ref()))?;
        } else if let Some((attribute, encoded)) = attribute(name.as_ref()) {
            if matches!(attribute, "datacontenttype" | "data") {
                let message = "this is not an attribute in binary mode: data is the body, and its type is Content-Type";
                return Err(Rejection::new(Code::InvalidAttribute, pointer_step(attribute), message));
            }
            let value =
                if encoded { percent_decoded(attribute, value.as_ref())? } else { Cow::Borrowed(value.as_ref()) };
            envelope.set(attribute, value)?;
        }
    }
    if !body.is_empty() {
        envelope.data = Some(json::read(body).map_err(|mut rejection| {
            rejection.pointer.insert_str(0, "/data");
            rejection
        })?);
    }
    envelope.into_job(tenant)
}

/// A message in binary mode as one in structured mode, so that its body alone says all. `None` if it
/// is in another mode, or its data is no JSON: then it cannot be a job either way.
pub fn in_one_piece<N: AsRef<str>, V: AsRef<str>>(headers: &[(N, V)], body: &[u8]) -> Option<Vec<u8>> {
    if mode(headers) != Ok(Mode::Binary) {
        return None;
    }
    let mut event: BTreeMap<&str, Box<RawValue>> = BTreeMap::new();
    for (name, value) in headers {
        let (name, value) = match attribute(name.as_ref()) {
            Some((name, true)) => (name, percent_decoded(name, value.as_ref()).ok()?),
            Some((name, false)) => (name, Cow::Borrowed(value.as_ref())),
            None if name.as_ref() == "content-type" => ("datacontenttype", Cow::Borrowed(value.as_ref())),
            None => continue,
        };
        event.insert(name, to_raw_value(&value).ok()?);
    }
    if !body.is_empty() {
        event.insert("data", serde_json::from_slice(body).ok()?);
    }
    serde_json::to_vec(&event).ok()
}

/// The job of one message in structured or binary mode, whichever its headers say.
///
/// # Errors
/// As [`parse_structured`]; a batch is refused, since one message has one fate.
pub fn parse_message<N: AsRef<str>, V: AsRef<str>>(
    headers: &[(N, V)],
    body: &[u8],
    tenant: TenantRule<'_>,
    limits: &Limits,
) -> Result<Job, Rejection> {
    match mode(headers)? {
        Mode::Structured => parse_structured(body, tenant, limits),
        Mode::Binary => parse_binary(headers, body, tenant, limits),
        Mode::Batch => {
            let message = "batches are taken over HTTP only; send one event a message";
            Err(Rejection::new(Code::UnsupportedContentType, "", message))
        }
    }
}

fn percent_decoded<'v>(name: &str, value: &'v str) -> Result<Cow<'v, str>, Rejection> {
    if !value.contains('%') {
        return Ok(Cow::Borrowed(value));
    }
    let bad = || {
        let message =
            "a percent sign in a ce- header begins an escape of UTF-8 bytes, such as %C3%BC; write %25 for itself";
        Rejection::new(Code::InvalidAttribute, pointer_step(name), message)
    };
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(bad);
            let (high, low) = (digit()?, digit()?);
            out.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits"));
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| bad())
}
