//! `/v1/hosts`. A host is named `manager/host` (escaped in the path), or by its own name where only
//! one manager has it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::App;
use super::access::Caller;
use super::extract::Name;
use super::problem::Problem;
use super::query::Query;
use super::view::{EvacuationView, HostView, Page};

/// Lists hosts.
#[utoipa::path(get, path = "/v1/hosts", tag = "cluster",
    params(
        ("manager" = Option<String>, Query, description = "only of this manager (name or id)"),
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 if not given"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
    ),
    responses((status = 200, body = Page<HostView>), (status = 400, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn list(State(app): State<App>, query: Query) -> Result<Json<Page<HostView>>, Problem> {
    let limit = query.limit()?;
    let manager = query.text("manager").map(|text| app.api.find_manager(text)).transpose()?;
    let page = app.api.hosts(manager, query.cursor(), limit).await?;
    Ok(Json(Page { items: page.items.into_iter().map(HostView::from).collect(), next_cursor: page.next }))
}

/// Keeps new VMs off a host.
#[utoipa::path(post, path = "/v1/hosts/{id}/cordon", tag = "cluster",
    params(("id" = String, Path, description = "manager/host, or a host's name where only one manager has it")),
    responses((status = 200, body = serde_json::Value), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn cordon(State(app): State<App>, id: Name, _: Query, by: Caller) -> Result<Json<Value>, Problem> {
    set(&app, &id, true, by).await
}

/// Lets new VMs on it again.
#[utoipa::path(post, path = "/v1/hosts/{id}/uncordon", tag = "cluster",
    params(("id" = String, Path, description = "manager/host, or a host's name where only one manager has it")),
    responses((status = 200, body = serde_json::Value), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn uncordon(State(app): State<App>, id: Name, _: Query, by: Caller) -> Result<Json<Value>, Problem> {
    set(&app, &id, false, by).await
}

async fn set(app: &App, id: &Name, cordoned: bool, by: Caller) -> Result<Json<Value>, Problem> {
    let (manager, host) = app.api.find_host(&id.0).await?;
    app.api.cordon_host(manager, host.clone(), cordoned, by.operator()).await?;
    Ok(Json(json!({"manager": manager.to_string(), "id": host.as_str(), "cordoned": cordoned})))
}

/// Cordons a host and moves its VMs elsewhere.
#[utoipa::path(post, path = "/v1/hosts/{id}/evacuate", tag = "cluster",
    params(
        ("id" = String, Path, description = "manager/host, or a host's name where only one manager has it"),
        ("round" = Option<String>, Query, description = "asking again with the same round submits nothing twice"),
    ),
    responses((status = 202, body = EvacuationView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn evacuate(
    State(app): State<App>,
    id: Name,
    query: Query,
    by: Caller,
) -> Result<(StatusCode, Json<EvacuationView>), Problem> {
    let (manager, host) = app.api.find_host(&id.0).await?;
    let round = app.round(&query)?;
    let evacuation = app.api.evacuate(manager, Some(host), &round, by.operator()).await?;
    Ok((StatusCode::ACCEPTED, Json(EvacuationView::of(&evacuation, &round))))
}

/// Calls a host dead, which is off and stays off until that is taken back: nothing is put on it, and VMs there with
/// the label `cellbus.io/on-host-failure: restart` that ran are started elsewhere. A host that answers is refused.
#[utoipa::path(post, path = "/v1/hosts/{id}/fenced", tag = "cluster",
    params(
        ("id" = String, Path, description = "manager/host, or a host's name where only one manager has it"),
        ("it_is_off" = bool, Query, description = "must be true: whoever says so has seen to it that the host is off, or cannot reach the disks of its VMs, and stays so"),
    ),
    responses((status = 200, body = serde_json::Value), (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn fenced(State(app): State<App>, id: Name, query: Query, by: Caller) -> Result<Json<Value>, Problem> {
    if !query.flag("it_is_off")? {
        let detail = "say `it_is_off=true`: VMs of the host are started elsewhere, and one that it still runs would \
                      run twice. Power it off first, and see to it that it stays off until `unfenced`";
        return Err(Problem::bad_request("fence_not_confirmed", detail.to_owned()));
    }
    let (manager, host) = app.api.find_host_to_fence(&id.0).await?;
    let known = app.api.fence_host(manager, host.clone(), by.operator()).await?;
    let (vms, restarts) = (known.map(|known| known.vms), known.map(|known| known.restarts));
    let id = host.as_str();
    Ok(Json(json!({"manager": manager.to_string(), "id": id, "fenced": true, "vms": vms, "restarts": restarts})))
}

/// Takes back that a host is dead: it is spoken to again, and takes VMs if it is not cordoned.
#[utoipa::path(post, path = "/v1/hosts/{id}/unfenced", tag = "cluster",
    params(("id" = String, Path, description = "manager/host, or a host's name where only one manager has it")),
    responses((status = 200, body = serde_json::Value), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn unfenced(State(app): State<App>, id: Name, _: Query, by: Caller) -> Result<Json<Value>, Problem> {
    let (manager, host) = app.api.find_host_to_fence(&id.0).await?;
    app.api.unfence_host(manager, host.clone(), by.operator()).await?;
    Ok(Json(json!({"manager": manager.to_string(), "id": host.as_str(), "fenced": false})))
}
