//! `/v1/forecast`: when room runs out.

use axum::Json;
use axum::extract::State;

use super::App;
use super::problem::Problem;
use super::query::Query;
use super::view::ForecastView;

/// Foretells when vCPUs and memory run out at the growth of the last month: of the cluster, of each gear class, of each manager.
#[utoipa::path(get, path = "/v1/forecast", tag = "cluster",
    responses((status = 200, body = ForecastView), (status = 503, body = Problem)))]
pub(super) async fn show(State(app): State<App>, _: Query) -> Result<Json<ForecastView>, Problem> {
    Ok(Json(ForecastView::of(app.api.as_ref(), app.api.forecast().await?)))
}
