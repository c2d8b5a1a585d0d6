//! `/healthz`, `/readyz`, `/metrics`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::problem::Problem;
use super::query::Query;

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "process", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn alive(_: Query) -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Whether it serves: its shards are open or reported failed, and the directory has caught up.
#[utoipa::path(get, path = "/readyz", tag = "process",
    responses((status = 200, body = serde_json::Value), (status = 503, description = "not_ready, with what is awaited", body = Problem)))]
pub(super) async fn ready(State(app): State<App>, _: Query) -> Result<Json<Value>, Problem> {
    app.api.ready()?;
    Ok(Json(json!({"status": "ready"})))
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "process",
    responses((status = 200, description = "Prometheus text format 0.0.4", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(app): State<App>, _: Query) -> Result<Response, Problem> {
    app.metrics.event_readers(app.settings.http.events_readers_max - app.event_readers.available_permits());
    app.metrics.gather(&*app.api).await;
    match app.metrics.text() {
        Ok(text) => Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()),
        Err(error) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())),
    }
}
