//! `/v1/dead-letters`: what could not be taken, with reason and original.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::App;
use super::access::Caller;
use super::extract::Name;
use super::problem::Problem;
use super::query::Query;
use super::view::{DeadLetterView, Page};

/// Lists dead letters, oldest first, without their originals.
#[utoipa::path(get, path = "/v1/dead-letters", tag = "dead letters",
    params(
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 if not given"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
    ),
    responses((status = 200, body = Page<DeadLetterView>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn list(State(app): State<App>, query: Query) -> Result<Json<Page<DeadLetterView>>, Problem> {
    let page = app.api.dead_letters(query.cursor(), query.limit()?).await?;
    let items = page.items.iter().map(|letter| DeadLetterView::of(letter, false)).collect();
    Ok(Json(Page { items, next_cursor: page.next }))
}

/// Shows one dead letter, with its original.
#[utoipa::path(get, path = "/v1/dead-letters/{id}", tag = "dead letters", params(("id" = String, Path, description = "its id")),
    responses((status = 200, body = DeadLetterView), (status = 404, body = Problem)))]
pub(super) async fn show(State(app): State<App>, id: Name, _: Query) -> Result<Json<DeadLetterView>, Problem> {
    let letter = app.api.dead_letter(id.uuid()?).await?;
    Ok(Json(DeadLetterView::of(&letter, true)))
}

/// Sends the original round again, and takes the letter out.
#[utoipa::path(post, path = "/v1/dead-letters/{id}/retry", tag = "dead letters", params(("id" = String, Path, description = "its id")),
    responses((status = 202, body = serde_json::Value), (status = 404, body = Problem),
        (status = 409, description = "cannot_retry", body = Problem)))]
pub(super) async fn retry(
    State(app): State<App>,
    id: Name,
    _: Query,
    by: Caller,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let id = id.uuid()?;
    app.api.retry_dead_letter(id, by.operator()).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({"id": id.to_string(), "retried": true}))))
}

/// Takes a dead letter out for good.
#[utoipa::path(delete, path = "/v1/dead-letters/{id}", tag = "dead letters", params(("id" = String, Path, description = "its id")),
    responses((status = 200, body = serde_json::Value), (status = 404, body = Problem)))]
pub(super) async fn remove(State(app): State<App>, id: Name, _: Query, by: Caller) -> Result<Json<Value>, Problem> {
    let id = id.uuid()?;
    app.api.drop_dead_letter(id, by.operator()).await?;
    Ok(Json(json!({"id": id.to_string(), "dropped": true})))
}
