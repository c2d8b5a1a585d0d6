//! `/v1/changes`: who changed what.

use axum::Json;
use axum::extract::State;

use super::App;
use super::problem::Problem;
use super::query::Query;
use super::view::{ChangeView, Page};

/// Lists what operators have changed, newest first.
#[utoipa::path(get, path = "/v1/changes", tag = "cluster",
    params(("limit" = Option<u32>, Query, description = "1 to 1000; 100 if not given")),
    responses((status = 200, body = Page<ChangeView>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn list(State(app): State<App>, query: Query) -> Result<Json<Page<ChangeView>>, Problem> {
    let items = app.api.changes(query.limit()?).await?.into_iter().map(ChangeView::from).collect();
    Ok(Json(Page { items, next_cursor: None }))
}
