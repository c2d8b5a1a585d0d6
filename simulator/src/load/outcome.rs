//! What events and answers say of jobs, whatever way they come.

use std::borrow::Cow;

use cellbus_bus::ids::JobId;
use serde::Deserialize;

use super::target::{Ended, How};

#[derive(Deserialize)]
struct OutgoingEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default)]
    data: OutcomeData,
}
#[derive(Default, Deserialize)]
struct OutcomeData {
    job_id: Option<JobId>,
    error: Option<Failure>,
}
#[derive(Deserialize)]
pub(super) struct Failure {
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

/// How a job ended, if it has.
pub(super) fn how(state: &str, error: Option<Failure>) -> Option<How> {
    let failure = || error.map_or_else(|| ("unknown".to_owned(), String::new()), |error| (error.code, error.message));
    match state {
        "succeeded" => Some(How::Succeeded),
        "failed" => {
            let (code, message) = failure();
            Some(How::Failed(code, message))
        }
        "cancelled" => Some(How::Cancelled),
        _ => None,
    }
}

/// The outcome that an event tells, if it tells one.
pub(super) fn outcome(event: &[u8]) -> Option<Ended> {
    let event: OutgoingEvent<'_> = serde_json::from_slice(event).ok()?;
    let state = event.kind.strip_prefix("io.cellbus.job.")?.strip_suffix(".v1")?;
    Some(Ended { job: event.data.job_id?, how: how(state, event.data.error)? })
}

/// The code and words of an answer that refuses a job; `None` of one that takes it.
pub(super) fn refusal(answer: &[u8]) -> Option<(String, String)> {
    let event: OutgoingEvent<'_> = serde_json::from_slice(answer).ok()?;
    let refused = event.kind == "io.cellbus.job.refused.v1";
    refused.then(|| event.data.error.map_or_else(Default::default, |error| (error.code, error.message)))
}
