//! `/v1/events`: server-sent events, from the bus's stream of events.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use bytes::{BufMut, Bytes, BytesMut};
use cellbus_bus::contract::{EventReader, PlacedEvent};
use cellbus_bus::ids::{Seq, TenantId};
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::access::Caller;
use super::problem::Problem;
use super::query::Query;

/// How often a silent stream says that it lives, so that proxies and clients keep it open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events taken from the bus at a time: what one slow reader holds in memory.
const EVENTS_AT_ONCE: usize = 100;

/// Streams events as they come, or from `Last-Event-ID` on.
///
/// Each has its place as `id` and the CloudEvent as `data`. One that is older than what is kept
/// begins with the oldest; the same event may come twice, with the same CloudEvents `id`.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(
        ("tenant" = Option<String>, Query, description = "only of this tenant"),
        ("Last-Event-ID" = Option<String>, Header, description = "the `id` of the last event that was seen"),
    ),
    responses(
        (status = 200, description = "text/event-stream", body = String, content_type = "text/event-stream"),
        (status = 400, body = Problem),
        (status = 429, description = "as many readers as there may be", body = Problem),
        (status = 503, body = Problem),
    ))]
pub(super) async fn stream(
    State(app): State<App>,
    query: Query,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response<Body>, Problem> {
    let tenant = caller.tenant(&query)?;
    let after = match headers.get("last-event-id") {
        None => None,
        Some(value) => {
            let place = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
            let place = place.ok_or_else(|| {
                Problem::bad_request(
                    "invalid_parameter",
                    "Last-Event-ID is not the id of an event of this stream: a whole number",
                )
            })?;
            Some(Seq(place))
        }
    };
    let Ok(permit) = std::sync::Arc::clone(&app.event_readers).try_acquire_owned() else {
        let detail = format!("{} readers of events are there already", app.settings.http.events_readers_max);
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail));
    };
    let reader = app.api.events(after).await?;
    let following = Following { reader, app, caller, tenant, begun: false, _permit: permit };
    let body = Body::from_stream(futures::stream::unfold(following, Following::next));
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

struct Following {
    reader: Box<dyn EventReader>,
    app: App,
    caller: Caller,
    tenant: Option<TenantId>,
    begun: bool,
    _permit: OwnedSemaphorePermit,
}

impl Following {
    /// The next piece of the stream; `None` once the bus gives no more, and the client reconnects.
    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        if !self.begun {
            // At once, so that the client knows that it is heard; and how soon to come back.
            self.begun = true;
            return Some((Ok(Bytes::from_static(b"retry: 1000\n: cellbus\n\n")), self));
        }
        loop {
            // Cancel safe: a dropped `next` takes nothing from the reader.
            let events = tokio::select! {
                biased;
                () = self.app.closing.cancelled() => return None,
                events = self.app.env.timeout(KEEP_ALIVE, self.reader.next(EVENTS_AT_ONCE)) => events,
            };
            // A token that was taken away ends what was begun with it.
            if !self.caller.still_is(&self.app) {
                tracing::info!("a stream of events ends: its token is not in force any more");
                return None;
            }
            let piece = match events {
                None => Bytes::from_static(b": still here\n\n"),
                Some(Ok(events)) => written(&events, self.tenant.as_ref()),
                Some(Err(error)) => {
                    tracing::info!(%error, "a stream of events ends");
                    return None;
                }
            };
            if !piece.is_empty() {
                return Some((Ok(piece), self));
            }
        }
    }
}

fn written(events: &[PlacedEvent], tenant: Option<&TenantId>) -> Bytes {
    let mut out = BytesMut::new();
    for PlacedEvent { seq, event } in events {
        if tenant.is_some_and(|tenant| *tenant != event.tenant) {
            continue;
        }
        out.put_slice(format!("id: {seq}\n").as_bytes());
        // A line break would end the field; our events have none, others' may.
        for line in event.body.split(|byte| *byte == b'\n') {
            out.put_slice(b"data: ");
            out.put_slice(line.strip_suffix(b"\r").unwrap_or(line));
            out.put_u8(b'\n');
        }
        out.put_u8(b'\n');
    }
    out.freeze()
}
