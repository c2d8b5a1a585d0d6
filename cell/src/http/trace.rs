//! Traces that callers bring along: W3C Trace Context.

use axum::http::HeaderMap;
use cellbus_bus::job::Job;

use crate::spans::{Context, TRACEPARENT};

/// Gives each job the trace that the request belongs to, unless the event names one itself. It is
/// kept with the job, given on in its outcome, and named in the log.
pub(super) fn give(headers: &HeaderMap, jobs: &mut [Job]) {
    if let Some(trace) =
        headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).filter(|text| Context::parse(text).is_some())
    {
        for job in jobs.iter_mut() {
            job.extensions.entry(TRACEPARENT.to_owned()).or_insert_with(|| trace.to_owned());
        }
    }
    if tracing::enabled!(tracing::Level::TRACE) {
        for job in jobs {
            let _in =
                tracing::trace_span!("request", job = %job.id, traceparent = job.extensions.get(TRACEPARENT)).entered();
            tracing::trace!(kind = job.request.kind().as_str(), tenant = %job.tenant, "submitted");
        }
    }
}
