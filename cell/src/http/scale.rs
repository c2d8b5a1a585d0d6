//! `/v1/scale`: how many cells there are to be. Sizing by itself is not built yet; what is here
//! answers in the form that it will have.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::problem::Problem;
use super::query::Query;
use super::view::Page;

/// How many cells there are to be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ScaleView {
    /// auto, fixed or paused.
    mode: &'static str,
    /// How many there are.
    cells: usize,
    /// The least, in mode auto.
    min: Option<u32>,
    /// The most, in mode auto.
    max: Option<u32>,
    /// Why it is so.
    reason: &'static str,
}

/// Shows how many cells there are to be.
#[utoipa::path(get, path = "/v1/scale", tag = "cluster",
    responses((status = 200, body = ScaleView), (status = 503, body = Problem)))]
pub(super) async fn show(State(app): State<App>, _: Query) -> Result<Json<ScaleView>, Problem> {
    let cells = app.api.cells().await?.len();
    let reason = "this build runs as many cells as its configuration says";
    Ok(Json(ScaleView { mode: "fixed", cells, min: None, max: None, reason }))
}

/// Sets how many cells there are to be. Not available in this build.
#[utoipa::path(put, path = "/v1/scale", tag = "cluster", request_body = serde_json::Value,
    responses((status = 501, description = "not_available", body = Problem)))]
pub(super) async fn set(_: Query) -> Problem {
    let detail = "this build cannot change the number of cells while it runs; set `cells` and start again";
    Problem::new(StatusCode::NOT_IMPLEMENTED, "not_available", detail)
}

/// Lists decisions about the number of cells. There are none in this build.
#[utoipa::path(get, path = "/v1/scale/decisions", tag = "cluster",
    params(
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 if not given"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
    ),
    responses((status = 200, body = Page<serde_json::Value>)))]
pub(super) async fn decisions(query: Query) -> Result<Json<Page<serde_json::Value>>, Problem> {
    query.limit()?;
    Ok(Json(Page { items: Vec::new(), next_cursor: None }))
}
