//! CloudEvents in, jobs out: the only maker of [`Job`]s, and the writer of every event that goes out.
//!
//! ```text
//!  bytes ─▶ bounded tree (duplicate keys, depth, size) ─▶ attributes ─▶ data of the type ─▶ Job
//!                    └──────────────────┴───────────────────┴──▶ Rejection {code, pointer, message}
//! ```
//!
//! Promises, each with a test:
//! - whatever the bytes, the answer is a [`Job`] within every bound of `ops/docs/jobs.md` or a
//!   [`Rejection`] with a stable code, the place, and what to do; never a panic;
//! - memory stays in proportion to the body, which is refused above [`Limits::body_bytes_max`]
//!   before it is looked at;
//! - the digest depends on what is asked for, not on how it is written.

use crate::ids::TenantId;
use crate::job::Job;

mod batch;
mod binary;
mod canonical;
mod data;
mod envelope;
pub mod fields;
mod json;
mod rejection;
mod write;

pub use batch::parse_batch;
pub use binary::{Mode, in_one_piece, mode, parse_binary, parse_message};
pub use data::check_labels;
pub use envelope::{EXTENSION_BYTES_MAX, EXTENSION_NAME_MAX, EXTENSIONS_MAX, ID_BYTES_MAX, SOURCE_BYTES_MAX, type_of};
pub use rejection::{BatchRejection, Code, Rejection};
pub use write::{ErrorData, EventKind, OutcomeData, OutgoingEvent, VmData, job_event};

#[cfg(test)]
mod tests;

/// What bounds intake as a whole. The bounds of single fields are constants: see [`fields`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one body.
    pub body_bytes_max: usize,
    /// Events of one batch.
    pub batch_max: usize,
}
impl Default for Limits {
    fn default() -> Self {
        Self { body_bytes_max: 4 << 20, batch_max: 10_000 }
    }
}

/// Which tenants there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tenants {
    /// Any well-formed one.
    #[default]
    Any,
    /// These.
    Listed(std::collections::BTreeSet<TenantId>),
}

/// How the tenant of an event is known.
#[derive(Clone, Copy, Debug)]
pub struct TenantRule<'a> {
    /// Where it is read from.
    pub from: TenantFrom<'a>,
    /// Which there are.
    pub known: &'a Tenants,
}

/// Where the tenant is read from.
#[derive(Clone, Copy, Debug)]
pub enum TenantFrom<'a> {
    /// The subject, topic or identity of the sender; another `tenant` attribute is refused.
    Sender(&'a str),
    /// The `tenant` attribute: while nobody is authenticated.
    Attribute,
}

/// The job of one event in structured mode.
///
/// # Errors
/// When it is not a CloudEvent, or breaks a bound; the same event always gives the same answer.
pub fn parse_structured(body: &[u8], tenant: TenantRule<'_>, limits: &Limits) -> Result<Job, Rejection> {
    body_fits(body, limits)?;
    event(json::read(body)?, tenant)
}

fn body_fits(body: &[u8], limits: &Limits) -> Result<(), Rejection> {
    if body.len() > limits.body_bytes_max {
        let message = format!(
            "{} bytes are more than the {} that a body may have; send fewer events at once",
            body.len(),
            limits.body_bytes_max
        );
        return Err(Rejection::new(Code::TooLarge, "", message));
    }
    Ok(())
}

fn event(node: json::Node<'_>, tenant: TenantRule<'_>) -> Result<Job, Rejection> {
    match node {
        json::Node::Object(members) => envelope::Envelope::of(members)?.into_job(tenant),
        other => {
            let message = format!("a job is a CloudEvent, one JSON object; this is {}", other.what());
            Err(Rejection::new(Code::NotAnEvent, "", message))
        }
    }
}
