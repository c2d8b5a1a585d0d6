//! `/v1/queue`: what waits.

use axum::Json;
use axum::extract::State;

use super::App;
use super::problem::Problem;
use super::query::Query;
use super::view::QueueView;

/// Shows what waits, over all shards.
#[utoipa::path(get, path = "/v1/queue", tag = "cluster",
    responses((status = 200, body = QueueView), (status = 503, body = Problem)))]
pub(super) async fn show(State(app): State<App>, _: Query) -> Result<Json<QueueView>, Problem> {
    Ok(Json(app.api.queue().await?.into()))
}
