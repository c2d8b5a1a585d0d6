//! The serving side.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cellbus_bus::Env;
use cellbus_bus::ids::ManagerId;
use cellbus_cell::driver::Error;
use cellbus_cell::security::MembersTls;
use cellbus_cell::security::listener::MembersListener;
use futures::stream::{FuturesUnordered, StreamExt as _};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::wire::{
    ChangesAnswer, ChangesRequest, ErrorAnswer, FencedRequest, InspectRequest, ManagerInfo, MayBeFencedRequest,
    OpenAnswer, OpenRequest, PERFORM_MAX, PerformAnswer, PerformRequest, ReadRequest,
};
use crate::managers::{Fleet, Manager};

/// Nothing but operations is large.
const BODY_BYTES_MAX: usize = 256 << 10;
/// An operation names a VM with at most 64 labels: far below 64 KiB.
const PERFORM_BYTES_MAX: usize = PERFORM_MAX * (64 << 10);
/// Shorter than what proxies and clients cut off.
const LISTEN_MAX: Duration = Duration::from_secs(25);

/// Serves a fleet on one address, until it is told to stop.
#[derive(Debug)]
pub struct Service {
    served: Served,
    listener: TcpListener,
    tls: Option<MembersTls>,
}

#[derive(Clone, Debug)]
struct Served {
    fleet: Arc<Fleet>,
    env: Env,
    stop: CancellationToken,
}

impl Service {
    /// Takes the address; port 0 lets the system choose.
    ///
    /// # Errors
    /// What the system says.
    pub async fn bind(fleet: Arc<Fleet>, env: Env, listen: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        Ok(Self { served: Served { fleet, env, stop: CancellationToken::new() }, listener, tls: None })
    }

    /// Serves members alone, by their certificates.
    #[must_use]
    pub fn with_tls(self, tls: Option<MembersTls>) -> Self {
        Self { tls, ..self }
    }

    /// Where it is reached.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`; requests under way are then answered, those that wait for changes at once.
    ///
    /// # Errors
    /// What the system says of the listener.
    pub async fn run(mut self, stop: CancellationToken) -> io::Result<()> {
        self.served.stop = stop.clone();
        let routes = Router::new()
            .route("/sim/v1/managers", get(managers))
            .route("/sim/v1/status", get(status))
            .route("/sim/v1/managers/{id}/open", post(open))
            .route("/sim/v1/perform", post(perform).layer(DefaultBodyLimit::max(PERFORM_BYTES_MAX)))
            .route("/sim/v1/managers/{id}/inventory", post(inventory))
            .route("/sim/v1/managers/{id}/foreign", post(foreign))
            .route("/sim/v1/managers/{id}/tasks", post(tasks))
            .route("/sim/v1/managers/{id}/dead-hosts", post(dead_hosts))
            .route("/sim/v1/managers/{id}/may-be-fenced", post(may_be_fenced))
            .route("/sim/v1/managers/{id}/fenced", post(fenced))
            .route("/sim/v1/managers/{id}/inspect", post(inspect))
            .route("/sim/v1/managers/{id}/changes", post(changes))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self.served.clone());
        let listener = MembersListener::new(self.listener, self.tls, self.served.env);
        axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

/// What is not a success.
struct Refused(Error);
impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error)
    }
}
impl From<JsonRejection> for Refused {
    fn from(rejection: JsonRejection) -> Self {
        Self(Error::Invalid { detail: rejection.body_text() })
    }
}
impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        // For people and proxies: clients of ours read the body.
        let status = match &self.0 {
            Error::Revoked | Error::Superseded { .. } | Error::NoRoom { .. } => StatusCode::CONFLICT,
            Error::Unreachable { .. } => StatusCode::GATEWAY_TIMEOUT,
            Error::Transient { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Error::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Error::NotFound => StatusCode::NOT_FOUND,
            Error::Invalid { .. } => StatusCode::BAD_REQUEST,
            Error::Permanent { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(ErrorAnswer { error: self.0 })).into_response()
    }
}

type Body<T> = Result<Json<T>, JsonRejection>;
type Answer<T> = Result<Json<T>, Refused>;

impl Served {
    fn manager(&self, id: &str) -> Result<&Arc<Manager>, Refused> {
        let found = id.parse::<ManagerId>().ok().and_then(|id| self.fleet.manager(id));
        found.ok_or_else(|| Refused(Error::Invalid { detail: "there is no such manager here".to_owned() }))
    }
}

async fn managers(State(served): State<Served>) -> Json<Vec<ManagerInfo>> {
    let info = served.fleet.inventory().managers.iter().filter_map(|spec| {
        let limits = served.fleet.manager(spec.id())?.limits.clone();
        Some(ManagerInfo { id: spec.id(), name: spec.name.clone(), hosts: spec.hosts.len(), limits })
    });
    Json(info.collect())
}

#[derive(Serialize)]
struct Status {
    vms: usize,
    violations: crate::managers::Violations,
    /// The ids of VMs that are on more than one manager.
    doubles: Vec<cellbus_bus::ids::VmId>,
}
async fn status(State(served): State<Served>) -> Json<Status> {
    let doubles = served.fleet.truth().doubles().into_iter().map(|(vm, _)| vm).collect();
    Json(Status { vms: served.fleet.vms(), violations: served.fleet.violations(), doubles })
}

async fn open(State(served): State<Served>, Path(id): Path<String>, body: Body<OpenRequest>) -> Answer<OpenAnswer> {
    let (tasks, cursor) = served.manager(&id)?.open(body?.epoch).await?;
    Ok(Json(OpenAnswer { tasks, cursor }))
}
/// Each is answered when it has ended, whatever the others do.
async fn perform(State(served): State<Served>, body: Body<Vec<PerformRequest>>) -> Result<Response, Refused> {
    let Json(requests) = body?;
    if requests.len() > PERFORM_MAX {
        let detail = format!("one request has at most {PERFORM_MAX} operations");
        return Err(Refused(Error::Invalid { detail }));
    }
    let running: FuturesUnordered<_> = requests
        .into_iter()
        .map(|PerformRequest { number, manager, session, op }| {
            let manager = served.fleet.manager(manager).cloned();
            async move {
                let none = || Error::Invalid { detail: "there is no such manager here".to_owned() };
                let result = match manager {
                    Some(manager) => manager.perform(session, &op).await,
                    None => Err(none()),
                };
                PerformAnswer { number, result }
            }
        })
        .collect();
    let lines = running.ready_chunks(PERFORM_MAX).map(|ended| {
        let mut lines = Vec::new();
        for answer in ended {
            serde_json::to_writer(&mut lines, &answer)?;
            lines.push(b'\n');
        }
        Ok::<_, serde_json::Error>(lines)
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], axum::body::Body::from_stream(lines)).into_response())
}
async fn inventory(
    State(served): State<Served>,
    Path(id): Path<String>,
    body: Body<ReadRequest>,
) -> Answer<cellbus_cell::driver::Inventory> {
    Ok(Json(served.manager(&id)?.inventory(body?.session).await?))
}
async fn foreign(
    State(served): State<Served>,
    Path(id): Path<String>,
    body: Body<ReadRequest>,
) -> Answer<Vec<cellbus_cell::driver::ForeignVm>> {
    Ok(Json(served.manager(&id)?.foreign(body?.session).await?))
}
async fn tasks(
    State(served): State<Served>,
    Path(id): Path<String>,
    body: Body<ReadRequest>,
) -> Answer<Vec<cellbus_cell::driver::RunningTask>> {
    Ok(Json(served.manager(&id)?.tasks(body?.session).await?))
}
async fn dead_hosts(
    State(served): State<Served>,
    Path(id): Path<String>,
    body: Body<ReadRequest>,
) -> Answer<Vec<cellbus_bus::ids::HostId>> {
    Ok(Json(served.manager(&id)?.dead_hosts(body?.session).await?))
}
async fn may_be_fenced(
    State(served): State<Served>,
    Path(id): Path<String>,
    body: Body<MayBeFencedRequest>,
) -> Answer<()> {
    Ok(Json(served.manager(&id)?.may_be_fenced(&body?.host).await?))
}
async fn fenced(State(served): State<Served>, Path(id): Path<String>, body: Body<FencedRequest>) -> Answer<()> {
    let Json(FencedRequest { session, hosts }) = body?;
    Ok(Json(served.manager(&id)?.fenced(session, &hosts).await?))
}
async fn inspect(
    State(served): State<Served>,
    Path(id): Path<String>,
    body: Body<InspectRequest>,
) -> Answer<Option<cellbus_cell::driver::HeldVm>> {
    let Json(InspectRequest { session, vm }) = body?;
    Ok(Json(served.manager(&id)?.inspect(session, vm).await?))
}
async fn changes(
    State(served): State<Served>,
    Path(id): Path<String>,
    body: Body<ChangesRequest>,
) -> Answer<ChangesAnswer> {
    let Json(ChangesRequest { session, cursor }) = body?;
    let heard = served.env.timeout(LISTEN_MAX, served.manager(&id)?.changes(session, cursor));
    let (changes, cursor) = tokio::select! {
        biased;
        heard = heard => heard.transpose()?.unwrap_or((Vec::new(), cursor)),
        () = served.stop.cancelled() => (Vec::new(), cursor),
    };
    Ok(Json(ChangesAnswer { changes, cursor }))
}
