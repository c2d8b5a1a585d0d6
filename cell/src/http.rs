//! The HTTP API: jobs in, look-ups and operators' calls, events out. One listener a process.
//!
//! ```text
//!  connection ─▶ bounds (head, URI, body, time) ─▶ route ─▶ handler ─▶ Api ─▶ gateway, directory, bus
//!                     └─────────────┴──── problem+json with a stable code ──┘
//! ```
//!
//! Promises, each with a test:
//! - nothing is held before it is bounded: heads, URIs, bodies (each, and all together), parameters,
//!   connections, readers of events;
//! - a body of up to 4 MiB is read to its end even when its request is refused;
//! - every error is a problem document with a stable code, and 429 and 503 say when to come again;
//! - every route is in `/v1/openapi.json`, refuses parameters that it does not know, and is listed
//!   once, in `routes`, with who may call it;
//! - a tenant's token shows and changes what is that tenant's (`access`, `owned`).
//!
//! Handlers are one file a resource, and stand on [`Api`] alone, which [`Served`] makes of a gateway.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use axum::response::IntoResponse;
use cellbus_bus::Env;
use cellbus_bus::cloudevent::{Limits, Tenants};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::config;
use crate::metrics::Metrics;
use crate::peers::wire;
use crate::security::{Channel, Security};

mod access;
mod adopt;
mod api;
mod audit;
mod body;
mod cells;
mod changes;
mod dead_letters;
mod events;
mod explain;
mod extract;
mod forecast;
mod health;
mod hosts;
mod jobs;
mod locate;
mod log;
mod managers;
mod members;
mod openapi;
mod owned;
mod paced;
mod pauses;
mod problem;
mod query;
mod queue;
mod routes;
mod scale;
mod serve;
mod served;
mod shards;
#[cfg(test)]
mod tests;
mod trace;
mod upgrade;
mod view;
mod vms;

pub use api::{Api, JobQuery, Spot, VmQuery};
pub use log::{FixedLogLevel, LogLevel, SharedLogLevel};
pub use members::Members;
pub use problem::CODES;
pub use serve::serve;
pub use served::Served;

use access::Caller;
use body::Bodies;
use problem::Problem;
use query::Query;

/// Bytes of a URI: a page's cursor and filters are far below.
const URI_BYTES_MAX: usize = 8 << 10;

/// How the API is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[http]`
    pub http: config::Http,
    /// Which tenants there are.
    pub tenants: Tenants,
    /// What bounds intake.
    pub intake: Limits,
    /// What is served to other processes of the cluster, if there are any.
    pub members: Option<Members>,
    /// TLS, tokens, certificates of members.
    pub security: Security,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            http: config::Http::default(),
            tenants: Tenants::Any,
            intake: Limits::default(),
            members: None,
            security: Security::default(),
        }
    }
}

impl Settings {
    /// As configured, without members and with no [`Security`]: that is opened from files.
    #[must_use]
    pub fn of(config: &config::Config) -> Self {
        Self { http: config.http, tenants: config.tenants.clone(), ..Self::default() }
    }
}

/// The API of one process, cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

/// What handlers share.
pub struct Inner {
    api: Arc<dyn Api>,
    env: Env,
    settings: Settings,
    metrics: Arc<Metrics>,
    log: SharedLogLevel,
    bodies: Bodies,
    /// Apart from users' bodies, so that these cannot take the room of members.
    member_bodies: Bodies,
    event_readers: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Cancelled when the server stops: what waits or streams then ends.
    closing: CancellationToken,
}

impl std::ops::Deref for App {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}
impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("App")
    }
}

/// Answers requests: the router and what goes before it. One clone a connection.
#[derive(Clone)]
pub(crate) struct Handler {
    app: App,
    router: Router,
}

impl App {
    /// Over `api`.
    #[must_use]
    pub fn new(api: Arc<dyn Api>, env: Env, settings: Settings, metrics: Arc<Metrics>, log: SharedLogLevel) -> Self {
        let http = settings.http;
        Self(Arc::new(Inner {
            api,
            env,
            metrics,
            log,
            bodies: Bodies::new(body::BODY_BYTES_MAX, http.bodies_max_bytes, http.read_timeout),
            member_bodies: Bodies::new(wire::REQUEST_BYTES_MAX, http.bodies_max_bytes, http.read_timeout),
            event_readers: Arc::new(Semaphore::new(http.events_readers_max)),
            connections: Arc::new(Semaphore::new(http.connections_max)),
            closing: CancellationToken::new(),
            settings,
        }))
    }

    pub(crate) fn handler(&self) -> Handler {
        let router = routes::router(self)
            .fallback(unknown_path)
            .method_not_allowed_fallback(unknown_method)
            // Bodies are bounded before they come here, and axum's own bound is below ours.
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(self.clone());
        Handler { app: self.clone(), router }
    }

    /// The round of an evacuation: the caller's, or a new one.
    fn round(&self, query: &Query) -> Result<String, Problem> {
        match query.text("round") {
            None => Ok(format!("{:016x}", self.env.random_u64())),
            Some(text) if (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) => {
                Ok(text.to_owned())
            }
            Some(_) => Err(Problem::bad_request("invalid_parameter", "`round` is 1 to 63 visible ASCII characters")),
        }
    }
}

impl Handler {
    /// Answers one request.
    pub(crate) async fn answer(&mut self, request: Request<Body>, peer: SocketAddr, by: Channel) -> Response<Body> {
        let app = self.app.clone();
        let begun = app.env.mono();
        let path = request.uri().path();
        let of_members =
            app.settings.members.as_ref().and_then(|members| Some((members, path.strip_prefix(wire::PREFIX)?)));
        if of_members.is_some() || by == Channel::Member {
            let path = path.to_owned();
            let response = between_members(&app, request, by).await;
            app.metrics.request(&path, response.status().as_u16(), app.env.mono().since(begun));
            return response;
        }
        let caller = match access::identify(&app, path, request.headers(), peer) {
            Ok(caller) => caller,
            Err(problem) => {
                let path = path.to_owned();
                let response = app.bodies.refuse(&app.env, request, problem).await.into_response();
                app.metrics.request(&path, response.status().as_u16(), app.env.mono().since(begun));
                return response;
            }
        };
        // The one call that is made 50,000 times a second takes the short way: no router, no
        // body, no extensions.
        if *request.method() == Method::GET
            && request.uri().query().is_none()
            && let Some(vm) = request.uri().path().strip_prefix("/v1/locate/").and_then(|text| text.parse().ok())
            && axum::body::HttpBody::is_end_stream(request.body())
        {
            let response = locate::find(&app, &caller, vm).await.unwrap_or_else(IntoResponse::into_response);
            app.metrics.request("/v1/locate/", response.status().as_u16(), app.env.mono().since(begun));
            return response;
        }
        let path = request.uri().path().to_owned();
        let response = self.routed(request, caller).await;
        app.metrics.request(&path, response.status().as_u16(), app.env.mono().since(begun));
        response
    }

    async fn routed(&mut self, request: Request<Body>, caller: Caller) -> Response<Body> {
        let app = &self.app;
        let (mut parts, body) = request.into_parts();
        let held = match app.bodies.read(&app.env, &parts.headers, body).await {
            Ok(held) => held,
            Err(refused) => return refused.into_response(),
        };
        if parts.uri.path_and_query().map_or(0, |p| p.as_str().len()) > URI_BYTES_MAX {
            let detail = format!("a path with its parameters has up to {URI_BYTES_MAX} bytes");
            return Problem::new(StatusCode::URI_TOO_LONG, "uri_too_long", detail).into_response();
        }
        parts.extensions.insert(caller);
        let request = Request::from_parts(parts, Body::from(held.bytes.clone()));
        // The router's own error type cannot have a value.
        let response = self.router.call(request).await.unwrap_or_else(|never| match never {});
        // Its room is held until the handler has answered.
        drop(held);
        response
    }
}

/// What came from another process of the cluster, or says so.
async fn between_members(app: &App, request: Request<Body>, by: Channel) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let (members, path) = match (&app.settings.members, path.strip_prefix(wire::PREFIX)) {
        (Some(members), Some(path)) => (members, path),
        (Some(_) | None, _) => {
            let detail = "a member's connection carries what is between members, and nothing else";
            let problem = Problem::new(StatusCode::FORBIDDEN, "forbidden", detail);
            return app.bodies.refuse(&app.env, request, problem).await.into_response();
        }
    };
    // In clear only where there is no TLS at all: the configuration has seen to it that this is meant.
    if by == Channel::Tls || (by == Channel::Clear && app.settings.security.members().is_some()) {
        let detail = "what is between members comes over a connection with a certificate of the members' CA";
        let problem = Problem::new(StatusCode::FORBIDDEN, wire::NOT_VERIFIED, detail);
        return app.bodies.refuse(&app.env, request, problem).await.into_response();
    }
    let (parts, body) = request.into_parts();
    match app.member_bodies.read(&app.env, &parts.headers, body).await {
        Ok(held) => members.answer(&parts.method, path, &parts.headers, &held.bytes).await,
        Err(refused) => refused.into_response(),
    }
}

async fn unknown_path(request: Request<Body>) -> Problem {
    let detail =
        format!("there is nothing at {}; /v1/openapi.json lists what there is", query::shown(request.uri().path()));
    Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
}

async fn unknown_method(request: Request<Body>) -> Problem {
    let detail = format!(
        "{} does not take {}; `Allow` lists what it takes",
        query::shown(request.uri().path()),
        request.method()
    );
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
