//! `/v1/shards`.

use axum::Json;
use axum::extract::State;

use super::App;
use super::problem::Problem;
use super::query::Query;
use super::view::{Page, ShardView};

/// Lists every shard, its owner and how far it is.
#[utoipa::path(get, path = "/v1/shards", tag = "cluster",
    responses((status = 200, body = Page<ShardView>), (status = 503, body = Problem)))]
pub(super) async fn list(State(app): State<App>, _: Query) -> Result<Json<Page<ShardView>>, Problem> {
    let items = app.api.shards().await?.into_iter().map(ShardView::from).collect();
    Ok(Json(Page { items, next_cursor: None }))
}
