//! Traces that callers bring along: W3C Trace Context.

use axum::http::HeaderMap;
use cellbus_bus::job::Job;

/// The extension under which a job carries the trace that it belongs to (CloudEvents' Distributed
/// Tracing extension).
const TRACEPARENT: &str = "traceparent";

/// Gives each job the trace that the request belongs to, unless the event names one itself. It is
/// kept with the job, given on in its outcome, and named in the log.
pub(super) fn give(headers: &HeaderMap, jobs: &mut [Job]) {
    if let Some(trace) = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).filter(|text| valid(text)) {
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

/// `version-trace id-parent id-flags`, in lower case hexadecimal. One that is not so is ignored, as
/// the standard says.
fn valid(text: &str) -> bool {
    let hex = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let some = |part: &str| part.bytes().any(|b| b != b'0');
    let mut parts = text.split('-');
    let (Some(version), Some(trace), Some(parent), Some(flags)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    // Later versions may add parts; this one has none.
    let more = parts.next().is_some();
    hex(version, 2)
        && version != "ff"
        && (version != "00" || !more)
        && hex(trace, 32)
        && some(trace)
        && hex(parent, 16)
        && some(parent)
        && hex(flags, 2)
        && text.len() <= 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_standard_allows_is_taken() {
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        assert!(valid(&format!("00-{trace}-{parent}-01")));
        assert!(valid(&format!("01-{trace}-{parent}-01-more")), "a later version");
        for bad in [
            format!("00-{trace}-{parent}-01-more"),
            format!("00-{trace}-{parent}"),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            "00-abc-01".to_owned(),
            String::new(),
        ] {
            assert!(!valid(&bad), "{bad}");
        }
    }
}
