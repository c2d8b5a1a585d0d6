//! The attributes of a CloudEvent, and the job that event and data make together.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::canonical;
use super::data::{self, plain};
use super::json::{Members, Node};
use super::rejection::{Code, Rejection, nearest, pointer_step, shown};
use super::{TenantRule, Tenants};
use crate::ids::{JobId, TenantId};
use crate::job::{Job, JobKind, Notify};

/// Bytes of `source`.
pub const SOURCE_BYTES_MAX: usize = 512;
/// Bytes of `id`.
pub const ID_BYTES_MAX: usize = 255;
/// Extensions of one event.
pub const EXTENSIONS_MAX: usize = 32;
/// Characters of an extension's name.
pub const EXTENSION_NAME_MAX: usize = 20;
/// Bytes of an extension's value.
pub const EXTENSION_BYTES_MAX: usize = 1_024;

const TYPE_PREFIX: &str = "io.cellbus.job.";
const TYPE_SUFFIX: &str = ".v1";

/// The attributes that are no mere extensions.
const KNOWN: [&str; 12] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "data",
    "tenant",
    "after",
    "notify",
];

/// An event taken apart: attributes by name, and `data` if there is any.
#[derive(Debug, Default)]
pub(super) struct Envelope<'a> {
    specversion: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
    source: Option<Cow<'a, str>>,
    kind: Option<Cow<'a, str>>,
    subject: Option<Cow<'a, str>>,
    time: Option<Cow<'a, str>>,
    datacontenttype: Option<Cow<'a, str>>,
    dataschema: Option<Cow<'a, str>>,
    tenant: Option<Cow<'a, str>>,
    after: Option<Cow<'a, str>>,
    notify: Option<Cow<'a, str>>,
    extensions: BTreeMap<String, String>,
    pub(super) data: Option<Node<'a>>,
}

impl<'a> Envelope<'a> {
    /// From the members of a structured event.
    pub(super) fn of(members: Members<'a>) -> Result<Self, Rejection> {
        let mut envelope = Self::default();
        for (key, value) in members {
            if key == "data" {
                envelope.data = Some(value);
                continue;
            }
            let text = match value {
                Node::Null => continue,
                Node::Text(text) => text,
                // CloudEvents extensions may be booleans and integers too.
                Node::Bool(b) => Cow::Owned(b.to_string()),
                Node::Whole(n) => Cow::Owned(n.to_string()),
                Node::Negative(n) => Cow::Owned(n.to_string()),
                Node::Float(_) | Node::List | Node::Object(_) => {
                    let message =
                        format!("an attribute is text, a whole number or a boolean; this is {}", value.what());
                    return Err(Rejection::new(Code::InvalidAttribute, pointer_step(&key), message));
                }
            };
            envelope.set(&key, text)?;
        }
        Ok(envelope)
    }

    /// Takes one attribute. A second one of the same name is the caller's to refuse.
    pub(super) fn set(&mut self, name: &str, value: Cow<'a, str>) -> Result<(), Rejection> {
        let slot = match name {
            "specversion" => &mut self.specversion,
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.kind,
            "subject" => &mut self.subject,
            "time" => &mut self.time,
            "datacontenttype" => &mut self.datacontenttype,
            "dataschema" => &mut self.dataschema,
            "tenant" => &mut self.tenant,
            "after" => &mut self.after,
            "notify" => &mut self.notify,
            _ => return self.extension(name, value),
        };
        if slot.is_some() {
            return Err(Rejection::new(
                Code::DuplicateKey,
                pointer_step(name),
                "this attribute is there twice; keep one of them",
            ));
        }
        *slot = Some(value);
        Ok(())
    }

    fn extension(&mut self, name: &str, value: Cow<'a, str>) -> Result<(), Rejection> {
        let reject = |code, message: String| Err(Rejection::new(code, pointer_step(name), message));
        if name == "data_base64" {
            let message = "data in base64 is not taken; put a JSON object into `data`";
            return reject(Code::UnsupportedContentType, message.to_owned());
        }
        let well_formed = (1..=EXTENSION_NAME_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !well_formed {
            let message = format!(
                "`{}` is no attribute: names of extensions are 1 to {EXTENSION_NAME_MAX} of [a-z0-9]{}",
                shown(name),
                nearest(name, KNOWN),
            );
            return reject(Code::InvalidAttribute, message);
        }
        if value.len() > EXTENSION_BYTES_MAX {
            let message =
                format!("{} bytes are more than the {EXTENSION_BYTES_MAX} that an extension may have", value.len());
            return reject(Code::NameTooLong, message);
        }
        if value.chars().any(char::is_control) {
            return reject(Code::ControlCharacter, "there is a control character in it; leave it out".to_owned());
        }
        if self.extensions.len() == EXTENSIONS_MAX {
            return reject(Code::TooLarge, format!("more than {EXTENSIONS_MAX} extensions in one event"));
        }
        if self.extensions.insert(name.to_owned(), value.into_owned()).is_some() {
            return reject(Code::DuplicateKey, "this attribute is there twice; keep one of them".to_owned());
        }
        Ok(())
    }

    /// The job, every bound checked.
    pub(super) fn into_job(self, rule: TenantRule<'_>) -> Result<Job, Rejection> {
        match self.specversion.as_deref() {
            Some("1.0") => {}
            Some(other) => {
                let message = format!("specversion `{}` is not known; send CloudEvents 1.0", shown(other));
                return Err(Rejection::new(Code::UnsupportedSpecversion, "/specversion", message));
            }
            None => return Err(missing("specversion", "`1.0`: a job is a CloudEvent")),
        }
        let id = required("id", self.id, ID_BYTES_MAX, "the sender's own id of the event, 1 to 255 bytes")?;
        let source =
            required("source", self.source, SOURCE_BYTES_MAX, "who sends it, a URI reference of 1 to 512 bytes")?;
        let kind = kind(self.kind.as_deref())?;
        let tenant = tenant(self.tenant.as_deref(), rule)?;
        if let Some(content_type) = self.datacontenttype.as_deref().filter(|t| !is_json(t)) {
            let message = format!("`{}` is not JSON; send `application/json`", shown(content_type));
            return Err(Rejection::new(Code::UnsupportedContentType, "/datacontenttype", message));
        }
        if let Some(time) = self.time.as_deref().filter(|t| t.len() > 64 || t.parse::<jiff::Timestamp>().is_err()) {
            let message = format!("`{}` is no RFC 3339 time such as 2026-11-21T12:00:00Z", shown(time));
            return Err(Rejection::new(Code::InvalidAttribute, "/time", message));
        }
        if let Some(schema) = &self.dataschema {
            plain(schema, 512).map_err(|(code, message)| Rejection::new(code, "/dataschema", message))?;
        }
        let after: Option<JobId> = self.after.as_deref().map(str::parse).transpose().map_err(|error| {
            Rejection::new(Code::InvalidAttribute, "/after", format!("`after` names the job to wait for: {error}"))
        })?;
        let notify = match self.notify.as_deref() {
            None | Some("outcome") => Notify::Outcome,
            Some("accepted") => Notify::Accepted,
            Some(other) => {
                let message = format!("`{}` is not known; `notify` is `accepted` or left out", shown(other));
                return Err(Rejection::new(Code::InvalidAttribute, "/notify", message));
            }
        };
        let (request, deadline) = data::request(kind, self.subject.as_deref(), self.data.as_ref())?;
        let job_id = JobId::derive(tenant.as_str(), &source, &id);
        if after == Some(job_id) {
            return Err(Rejection::new(Code::InvalidAttribute, "/after", "a job cannot wait for itself"));
        }
        Ok(Job {
            id: job_id,
            tenant,
            source: source.into_owned(),
            event_id: id.into_owned(),
            digest: canonical::digest(&request, after.as_ref(), deadline),
            after,
            notify,
            deadline,
            extensions: self.extensions,
            request,
        })
    }
}

fn missing(name: &str, rule: &str) -> Rejection {
    Rejection::new(Code::MissingAttribute, format!("/{name}"), format!("`{name}` is required: {rule}"))
}

fn required<'a>(name: &str, value: Option<Cow<'a, str>>, max: usize, rule: &str) -> Result<Cow<'a, str>, Rejection> {
    let value = value.ok_or_else(|| missing(name, rule))?;
    let reject = |code, message: String| Err(Rejection::new(code, format!("/{name}"), message));
    if value.len() > max {
        reject(Code::NameTooLong, format!("`{name}` has {} bytes; it must be {rule}", value.len()))
    } else if value.chars().any(char::is_control) {
        reject(Code::ControlCharacter, format!("`{name}` has a control character in it; leave it out"))
    } else if value.is_empty() {
        reject(Code::InvalidAttribute, format!("`{name}` is empty; it must be {rule}"))
    } else {
        Ok(value)
    }
}

fn kind(text: Option<&str>) -> Result<JobKind, Rejection> {
    let text = text.ok_or_else(|| missing("type", "such as `io.cellbus.job.provision.v1`"))?;
    let short = text.strip_prefix(TYPE_PREFIX).and_then(|rest| rest.strip_suffix(TYPE_SUFFIX));
    short.and_then(|short| JobKind::ALL.iter().copied().find(|kind| kind.as_str() == short)).ok_or_else(|| {
        let types: Vec<String> = JobKind::ALL.iter().map(|kind| type_of(*kind)).collect();
        let message = format!("`{}` is no job type{}", shown(text), nearest(text, types.iter().map(String::as_str)));
        Rejection::new(Code::UnknownType, "/type", message)
    })
}

/// The CloudEvents type of a job of this kind.
#[must_use]
pub fn type_of(kind: JobKind) -> String {
    format!("{TYPE_PREFIX}{kind}{TYPE_SUFFIX}")
}

fn tenant(attribute: Option<&str>, rule: TenantRule<'_>) -> Result<TenantId, Rejection> {
    let text = match rule.from {
        super::TenantFrom::Sender(tenant) => {
            if let Some(other) = attribute.filter(|a| *a != tenant) {
                let message = format!(
                    "the event says tenant `{}`, and its sender speaks for `{}`; leave the attribute out",
                    shown(other),
                    shown(tenant),
                );
                return Err(Rejection::new(Code::TenantMismatch, "/tenant", message));
            }
            tenant
        }
        super::TenantFrom::Attribute => {
            attribute.ok_or_else(|| missing("tenant", "whose the job is, 1 to 63 of [a-z0-9-]"))?
        }
    };
    let tenant: TenantId =
        data::named(text).map_err(|(code, message)| Rejection::new(code, "/tenant", format!("`tenant`: {message}")))?;
    match rule.known {
        Tenants::Any => Ok(tenant),
        Tenants::Listed(list) if list.contains(&tenant) => Ok(tenant),
        Tenants::Listed(list) => {
            // Near names are told, and never the whole list: it is nobody's business.
            let message =
                format!("there is no tenant `{tenant}` here{}", nearest(text, list.iter().map(TenantId::as_str)));
            Err(Rejection::new(Code::UnknownTenant, "/tenant", message))
        }
    }
}

/// Whether a media type is JSON, parameters aside.
pub(super) fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || essence.eq_ignore_ascii_case("text/json")
        || (essence.len() > 5
            && essence.is_char_boundary(essence.len() - 5)
            && essence[essence.len() - 5..].eq_ignore_ascii_case("+json"))
}
