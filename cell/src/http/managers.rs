//! `/v1/managers`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::App;
use super::access::Caller;
use super::extract::Name;
use super::problem::Problem;
use super::query::Query;
use super::view::{EvacuationView, ManagerView, Page};

/// Lists the managers, in the order of their names.
#[utoipa::path(get, path = "/v1/managers", tag = "cluster",
    params(
        ("limit" = Option<u32>, Query, description = "1 to 1000; 1000 if not given"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
    ),
    responses((status = 200, body = Page<ManagerView>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn list(State(app): State<App>, query: Query) -> Result<Json<Page<ManagerView>>, Problem> {
    // Managers are few, and a person wants all of them: a full page unless told otherwise.
    let limit = if query.text("limit").is_some() { query.limit()? } else { super::query::LIMIT_MAX };
    let mut rows = app.api.managers().await?;
    if let Some(after) = query.cursor() {
        rows.retain(|row| row.name.as_str() > after);
    }
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = rows.last().filter(|_| more).map(|row| row.name.clone());
    Ok(Json(Page { items: rows.into_iter().map(ManagerView::from).collect(), next_cursor }))
}

/// Keeps new VMs off a manager.
#[utoipa::path(post, path = "/v1/managers/{id}/cordon", tag = "cluster",
    params(("id" = String, Path, description = "its name or id")),
    responses((status = 200, body = serde_json::Value), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn cordon(State(app): State<App>, id: Name, _: Query, by: Caller) -> Result<Json<Value>, Problem> {
    set(&app, &id, true, by).await
}

/// Lets new VMs on it again.
#[utoipa::path(post, path = "/v1/managers/{id}/uncordon", tag = "cluster",
    params(("id" = String, Path, description = "its name or id")),
    responses((status = 200, body = serde_json::Value), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn uncordon(State(app): State<App>, id: Name, _: Query, by: Caller) -> Result<Json<Value>, Problem> {
    set(&app, &id, false, by).await
}

async fn set(app: &App, id: &Name, cordoned: bool, by: Caller) -> Result<Json<Value>, Problem> {
    let manager = app.api.find_manager(&id.0)?;
    app.api.cordon_manager(manager, cordoned, by.operator()).await?;
    Ok(Json(json!({"id": manager.to_string(), "cordoned": cordoned})))
}

/// Cordons a manager and moves its VMs elsewhere.
#[utoipa::path(post, path = "/v1/managers/{id}/evacuate", tag = "cluster",
    params(
        ("id" = String, Path, description = "its name or id"),
        ("round" = Option<String>, Query, description = "asking again with the same round submits nothing twice"),
    ),
    responses((status = 202, body = EvacuationView), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn evacuate(
    State(app): State<App>,
    id: Name,
    query: Query,
    by: Caller,
) -> Result<(StatusCode, Json<EvacuationView>), Problem> {
    let manager = app.api.find_manager(&id.0)?;
    let round = app.round(&query)?;
    let evacuation = app.api.evacuate(manager, None, &round, by.operator()).await?;
    Ok((StatusCode::ACCEPTED, Json(EvacuationView::of(&evacuation, &round))))
}
