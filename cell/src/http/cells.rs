//! `/v1/cells`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::App;
use super::access::Caller;
use super::extract::Name;
use super::problem::Problem;
use super::query::Query;
use super::view::{CellView, Page};

/// Lists the live cells.
#[utoipa::path(get, path = "/v1/cells", tag = "cluster",
    responses((status = 200, body = Page<CellView>), (status = 503, body = Problem)))]
pub(super) async fn list(State(app): State<App>, _: Query) -> Result<Json<Page<CellView>>, Problem> {
    let items = app.api.cells().await?.into_iter().map(CellView::from).collect();
    Ok(Json(Page { items, next_cursor: None }))
}

/// Has a cell hand over all its shards and take no more.
#[utoipa::path(post, path = "/v1/cells/{id}/drain", tag = "cluster",
    params(("id" = String, Path, description = "the cell's id")),
    responses((status = 202, body = serde_json::Value), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn drain(
    State(app): State<App>,
    id: Name,
    _: Query,
    caller: Caller,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let cell = id.id()?;
    app.api.drain_cell(&cell, caller.operator()).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({"cell": cell.as_str(), "state": "draining"}))))
}
