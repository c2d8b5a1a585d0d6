//! `/v1/pause`, `/v1/resume`, `/v1/pauses`: the emergency stop.

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use cellbus_directory::pause::{Paused, Scope};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::access::Caller;
use super::extract::json_or_default;
use super::problem::Problem;
use super::query::Query;
use super::view::PausesView;

/// What is to be paused; without a body, all work in the whole cluster.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PauseBody {
    /// At this manager only, by its name or id.
    manager: Option<String>,
    /// Only what removes something.
    #[serde(default)]
    destructive: bool,
    /// Why: up to 300 characters on one line.
    #[serde(default)]
    reason: String,
}

/// Which pause is to be lifted; without a body, that of all work in the whole cluster.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeBody {
    /// As it was paused.
    manager: Option<String>,
    /// As it was paused.
    #[serde(default)]
    destructive: bool,
}

fn scope(app: &App, manager: Option<&String>, destructive: bool) -> Result<Scope, Problem> {
    let manager = manager.map(|text| app.api.find_manager(text)).transpose()?;
    Ok(Scope { manager, paused: if destructive { Paused::Destructive } else { Paused::All } })
}

/// Lists what operators have paused.
#[utoipa::path(get, path = "/v1/pauses", tag = "cluster",
    responses((status = 200, body = PausesView), (status = 503, body = Problem)))]
pub(super) async fn list(State(app): State<App>, _: Query) -> Result<Json<PausesView>, Problem> {
    Ok(Json(PausesView::of(app.api.as_ref(), &app.api.pauses()?)))
}

/// Stops work: all of it, or only what removes something, everywhere or at one manager. What is under way ends.
#[utoipa::path(post, path = "/v1/pause", tag = "cluster", request_body = PauseBody,
    responses((status = 200, body = PausesView), (status = 400, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn pause(
    State(app): State<App>,
    _: Query,
    by: Caller,
    body: Bytes,
) -> Result<Json<PausesView>, Problem> {
    let body: PauseBody = json_or_default(&body)?;
    let scope = scope(&app, body.manager.as_ref(), body.destructive)?;
    let shown = app.api.pause(scope, body.reason, by.operator()).await?;
    Ok(Json(PausesView::of(app.api.as_ref(), &shown)))
}

/// Lets work go on that was paused with the same `manager` and `destructive`. Answers what is still paused.
#[utoipa::path(post, path = "/v1/resume", tag = "cluster", request_body = ResumeBody,
    responses((status = 200, body = PausesView), (status = 400, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn resume(
    State(app): State<App>,
    _: Query,
    by: Caller,
    body: Bytes,
) -> Result<Json<PausesView>, Problem> {
    let body: ResumeBody = json_or_default(&body)?;
    let scope = scope(&app, body.manager.as_ref(), body.destructive)?;
    let shown = app.api.resume(scope, by.operator()).await?;
    Ok(Json(PausesView::of(app.api.as_ref(), &shown)))
}
