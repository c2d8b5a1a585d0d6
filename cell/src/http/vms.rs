//! `/v1/vms`: the unified inventory.

use axum::Json;
use axum::extract::State;
use cellbus_bus::ids::{ManagerId, VmName};
use cellbus_directory::VmState;

use super::App;
use super::access::Caller;
use super::api::VmQuery;
use super::extract::Name;
use super::owned;
use super::problem::Problem;
use super::query::Query;
use super::view::{LiveView, Page, VmView};

/// Lists VMs. Deleted ones are listed only with `state=deleted`.
#[utoipa::path(get, path = "/v1/vms", tag = "vms",
    params(
        ("tenant" = Option<String>, Query, description = "only of this tenant"),
        ("state" = Option<String>, Query, description = "only in this state"),
        ("manager" = Option<String>, Query, description = "only of this manager (name or id)"),
        ("host" = Option<String>, Query, description = "only on a host of this name"),
        ("name" = Option<String>, Query, description = "only of this name; needs `tenant` and no other filter but `state`"),
        ("label" = Option<Vec<String>>, Query, description = "only with this label (key=value); may be repeated"),
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 if not given"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
    ),
    responses((status = 200, body = Page<VmView>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn list(State(app): State<App>, query: Query, caller: Caller) -> Result<Json<Page<VmView>>, Problem> {
    let limit = query.limit()?;
    let manager: Option<ManagerId> = match query.text("manager") {
        None => None,
        // A list of what a manager that is not there holds is empty in no useful way: say so.
        Some(text) => Some(app.api.find_manager(text)?),
    };
    let filter = VmQuery {
        tenant: caller.tenant(&query)?,
        state: query.choice("state", VmState::ALL, VmState::as_str)?,
        manager,
        host: query.id("host")?,
        labels: query.labels()?,
    };
    if let Some(name) = query.id::<VmName>("name")? {
        return named(&app, &filter, &name, query.cursor()).await;
    }
    let page = app.api.vms(&filter, limit, query.cursor()).await?;
    Ok(Json(Page { items: page.items.into_iter().map(VmView::from).collect(), next_cursor: page.next }))
}

/// Names are looked up, not searched for: at most two rows, which tells whether the name is unique.
async fn named(
    app: &App,
    filter: &VmQuery,
    name: &VmName,
    cursor: Option<&str>,
) -> Result<Json<Page<VmView>>, Problem> {
    let Some(tenant) = &filter.tenant else {
        return Err(Problem::bad_request("invalid_parameter", "`name` is looked up in a tenant: give `tenant` too"));
    };
    if filter.manager.is_some() || filter.host.is_some() || !filter.labels.is_empty() || cursor.is_some() {
        let detail = "`name` goes with `tenant`, `state` and `limit` only";
        return Err(Problem::bad_request("invalid_parameter", detail));
    }
    let rows = app.api.by_name(tenant, name).await?;
    let rows = rows.into_iter().filter(|row| filter.state.is_none_or(|state| row.state == state));
    Ok(Json(Page { items: rows.map(VmView::from).collect(), next_cursor: None }))
}

/// Shows a VM.
#[utoipa::path(get, path = "/v1/vms/{id}", tag = "vms", params(("id" = String, Path, description = "the VM's id")),
    responses((status = 200, body = VmView), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn show(State(app): State<App>, id: Name, _: Query, caller: Caller) -> Result<Json<VmView>, Problem> {
    Ok(Json(owned::vm(&app, &caller, id.id()?).await?.into()))
}

/// Shows what the manager itself says of a VM, now, through the cell that fronts it.
#[utoipa::path(get, path = "/v1/vms/{id}/live", tag = "vms", params(("id" = String, Path, description = "the VM's id")),
    responses((status = 200, body = LiveView), (status = 404, body = Problem),
        (status = 503, description = "manager_away: it gives no answer", body = Problem)))]
pub(super) async fn live(
    State(app): State<App>,
    id: Name,
    _: Query,
    caller: Caller,
) -> Result<Json<LiveView>, Problem> {
    let id = id.id()?;
    owned::check_vm(&app, &caller, id).await?;
    let live = app.api.live(id).await?;
    Ok(Json(LiveView::of(&*app.api, &live)))
}
