//! Request bodies: bounded before they are held, each by itself and all together.
//!
//! A body is read to its end before its request is looked at, so that a refusal does not cut a
//! client off that is still writing. What declares itself too large is refused unread.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::{Bytes, BytesMut};
use cellbus_bus::Env;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;

/// Bytes of one body from a user.
pub(super) const BODY_BYTES_MAX: usize = 4 << 20;
/// What permits are counted in: a request with a small body takes one.
const PERMIT_BYTES: usize = 4 << 10;

/// Room for bodies.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    room: Arc<Semaphore>,
    /// Of one body.
    bytes_max: usize,
    read_timeout: Duration,
}

/// A body that was read; its room is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

/// A refusal, and whether the connection can go on: not with a body that was left unread.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) problem: Problem,
    pub(super) close: bool,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response<Body> {
        let mut response = self.problem.into_response();
        if self.close {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl Bodies {
    /// For bodies of up to `bytes_max`, and all together of `all_bytes_max`.
    pub(super) fn new(bytes_max: usize, all_bytes_max: u64, read_timeout: Duration) -> Self {
        let permits = usize::try_from(all_bytes_max).unwrap_or(usize::MAX) / PERMIT_BYTES;
        // Room for one body at least, and no more than a semaphore can count.
        let permits = permits.clamp(bytes_max / PERMIT_BYTES, Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(permits)), bytes_max, read_timeout }
    }

    /// Reads a body to its end. Waits for room first.
    pub(super) async fn read(&self, env: &Env, headers: &HeaderMap, body: Body) -> Result<Held, Refused> {
        use axum::body::HttpBody as _;
        if body.is_end_stream() {
            return Ok(Held { bytes: Bytes::new(), _room: None });
        }
        let declared = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let most = match declared {
            Some(bytes) if bytes > self.bytes_max as u64 => {
                return Err(Refused { problem: too_large(self.bytes_max), close: true });
            }
            Some(bytes) => usize::try_from(bytes).expect("at most a usize"),
            None => self.bytes_max,
        };
        let permits = u32::try_from(most.div_ceil(PERMIT_BYTES).max(1)).expect("some thousands at most");
        let Some(room) = env.timeout(ROOM_LIMIT, Arc::clone(&self.room).acquire_many_owned(permits)).await else {
            return Err(self.discarded(env, body).await);
        };
        // The semaphore is never closed; without it, the body would only not be counted.
        let room = room.ok();
        match env.timeout(self.read_timeout, collect(body, self.bytes_max, declared.map_or(0, |_| most))).await {
            Some(Ok(bytes)) => Ok(Held { bytes, _room: room }),
            Some(Err(refused)) => Err(refused),
            None => {
                let detail = format!("the body did not arrive within {} s", self.read_timeout.as_secs());
                let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail);
                Err(Refused { problem, close: true })
            }
        }
    }
}

/// How long a body waits for room: longer than a moment's burst, shorter than a client's patience.
const ROOM_LIMIT: Duration = Duration::from_secs(5);

impl Bodies {
    async fn discarded(&self, env: &Env, body: Body) -> Refused {
        let detail = "as many request bodies are held as there is room for; send it again";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail);
        self.drained(env, body, problem).await
    }

    /// Refuses a request before its body is read.
    pub(super) async fn refuse(&self, env: &Env, request: Request<Body>, problem: Problem) -> Refused {
        use axum::body::HttpBody as _;
        let body = request.into_body();
        if body.is_end_stream() {
            return Refused { problem, close: false };
        }
        if body.size_hint().lower() > self.bytes_max as u64 {
            return Refused { problem, close: true };
        }
        self.drained(env, body, problem).await
    }

    /// Reads a body to its end without holding it, so that the client hears why it is refused.
    async fn drained(&self, env: &Env, mut body: Body, problem: Problem) -> Refused {
        let mut left = self.bytes_max;
        let drained = env.timeout(self.read_timeout, async {
            while let Some(Ok(frame)) = body.frame().await {
                match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(less) => left = less,
                    None => return false,
                }
            }
            true
        });
        let close = drained.await != Some(true);
        Refused { problem, close }
    }
}

async fn collect(mut body: Body, bytes_max: usize, expected: usize) -> Result<Bytes, Refused> {
    let mut all = BytesMut::new();
    // A small body mostly comes in one frame, which is then taken as it is.
    let mut first: Option<Bytes> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let detail = format!("the body broke off: {error}");
            Refused { problem: Problem::bad_request("body_broken", detail), close: true }
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + first.as_ref().map_or(0, Bytes::len) + data.len() > bytes_max {
            return Err(Refused { problem: too_large(bytes_max), close: true });
        }
        match (first.take(), all.is_empty()) {
            (None, true) => first = Some(data),
            (Some(before), _) => {
                // Room grows with what has come: a declared length alone takes no memory.
                all.reserve((before.len() + data.len()).max(expected.min(64 << 10)));
                all.extend_from_slice(&before);
                all.extend_from_slice(&data);
            }
            (None, false) => all.extend_from_slice(&data),
        }
    }
    Ok(first.unwrap_or_else(|| all.freeze()))
}

fn too_large(bytes_max: usize) -> Problem {
    let detail = format!("a body has up to {bytes_max} bytes; send fewer events at once");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}
