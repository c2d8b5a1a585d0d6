//! `/v1/upgrade`: which builds take part, what cells write, and raising it.

use axum::Json;
use axum::extract::State;

use super::App;
use super::access::Caller;
use super::problem::Problem;
use super::query::Query;
use super::view::UpgradeView;

/// Shows which builds take part, what cells write, and what keeps it from being raised.
#[utoipa::path(get, path = "/v1/upgrade", tag = "cluster",
    responses((status = 200, body = UpgradeView), (status = 503, body = Problem)))]
pub(super) async fn show(State(app): State<App>, _: Query) -> Result<Json<UpgradeView>, Problem> {
    Ok(Json(app.api.upgrade().await?.into()))
}

/// Has cells write the newest format that every live member reads. No older build takes part from then on.
#[utoipa::path(post, path = "/v1/upgrade/finalize", tag = "cluster",
    responses((status = 200, body = UpgradeView), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn finalize(State(app): State<App>, _: Query, by: Caller) -> Result<Json<UpgradeView>, Problem> {
    Ok(Json(app.api.finalize_upgrade(by.operator()).await?.into()))
}
