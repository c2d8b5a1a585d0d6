//! `/v1/managers`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use cellbus_directory::ManagerMode;
use serde_json::{Value, json};

use super::App;
use super::access::Caller;
use super::extract::Name;
use super::problem::Problem;
use super::query::Query;
use super::view::{DecommissionView, EvacuationView, ManagerView, Page};

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

/// Lets a manager be used that was read-only, or was leaving: new VMs are placed on it, and all work goes on.
#[utoipa::path(post, path = "/v1/managers/{id}/enable", tag = "cluster",
    params(("id" = String, Path, description = "its name or id")),
    responses((status = 200, body = serde_json::Value), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn enable(State(app): State<App>, id: Name, _: Query, by: Caller) -> Result<Json<Value>, Problem> {
    set_mode(&app, &id, ManagerMode::Enabled, by).await
}

/// Lets a manager only be looked at: nothing is placed on it, and nothing that changes something begins there.
#[utoipa::path(post, path = "/v1/managers/{id}/read-only", tag = "cluster",
    params(("id" = String, Path, description = "its name or id")),
    responses((status = 200, body = serde_json::Value), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn read_only(State(app): State<App>, id: Name, _: Query, by: Caller) -> Result<Json<Value>, Problem> {
    set_mode(&app, &id, ManagerMode::ReadOnly, by).await
}

async fn set_mode(app: &App, id: &Name, mode: ManagerMode, by: Caller) -> Result<Json<Value>, Problem> {
    let manager = app.api.find_manager(&id.0)?;
    app.api.set_manager_mode(manager, mode, by.operator()).await?;
    Ok(Json(json!({"id": manager.to_string(), "mode": mode.as_str()})))
}

/// What is left at a manager, what a decommissioning would do, and whether the manager may leave the
/// configuration. Changes nothing.
#[utoipa::path(get, path = "/v1/managers/{id}/decommission", tag = "cluster",
    params(
        ("id" = String, Path, description = "its name or id"),
        ("release" = Option<bool>, Query, description = "VMs would be released, not moved"),
    ),
    responses((status = 200, body = DecommissionView), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn decommission_plan(
    State(app): State<App>,
    id: Name,
    query: Query,
) -> Result<Json<DecommissionView>, Problem> {
    let manager = app.api.find_manager(&id.0)?;
    let plan = app.api.decommission_plan(manager, query.flag("release")?).await?;
    Ok(Json(DecommissionView::of(app.api.as_ref(), plan)))
}

/// Puts nothing new on a manager from here on, and moves its VMs away, or releases them.
#[utoipa::path(post, path = "/v1/managers/{id}/decommission", tag = "cluster",
    params(
        ("id" = String, Path, description = "its name or id"),
        ("release" = Option<bool>, Query, description = "forget its VMs, and leave them as they are there"),
        ("round" = Option<String>, Query, description = "asking again with the same round submits nothing twice"),
    ),
    responses((status = 202, body = DecommissionView), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn decommission(
    State(app): State<App>,
    id: Name,
    query: Query,
    by: Caller,
) -> Result<(StatusCode, Json<DecommissionView>), Problem> {
    let manager = app.api.find_manager(&id.0)?;
    let round = app.round(&query)?;
    let begun = app.api.decommission(manager, query.flag("release")?, &round, by.operator()).await?;
    Ok((StatusCode::ACCEPTED, Json(DecommissionView::begun(app.api.as_ref(), begun, round))))
}
