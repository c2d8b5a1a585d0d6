//! `/v1/log`: what is logged, changed at run time.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::access::Caller;
use super::extract::json;
use super::problem::Problem;
use super::query::{Query, shown};

/// Changes what is logged. The binary makes it from its subscriber's reload handle.
pub trait LogLevel: Send + Sync {
    /// What is logged now: a level, or directives such as `info,cellbus_cell=debug`.
    fn level(&self) -> String;
    /// Logs this from now on.
    ///
    /// # Errors
    /// Why the text is no level and no directives.
    fn set(&self, level: &str) -> Result<(), String>;
}

/// Where nothing can be changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedLogLevel;
impl LogLevel for FixedLogLevel {
    fn level(&self) -> String {
        "fixed".to_owned()
    }
    fn set(&self, _: &str) -> Result<(), String> {
        Err("this process cannot change what it logs while it runs".to_owned())
    }
}

/// A handle to share.
pub type SharedLogLevel = Arc<dyn LogLevel>;

/// What is logged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogView {
    /// A level (error, warn, info, debug, trace), or directives such as `info,cellbus_cell=debug`.
    level: String,
}

/// Shows what is logged.
#[utoipa::path(get, path = "/v1/log", tag = "process", responses((status = 200, body = LogView)))]
pub(super) async fn show(State(app): State<App>, _: Query) -> Json<LogView> {
    Json(LogView { level: app.log.level() })
}

/// Changes what is logged, in this process, until it ends.
#[utoipa::path(put, path = "/v1/log", tag = "process", request_body = LogView,
    responses((status = 200, body = LogView), (status = 400, body = Problem)))]
pub(super) async fn set(
    State(app): State<App>,
    _: Query,
    by: Caller,
    body: Bytes,
) -> Result<(StatusCode, Json<LogView>), Problem> {
    let LogView { level } = json(&body)?;
    if level.len() > 1_024 {
        return Err(Problem::bad_request("invalid_log_level", "directives have up to 1024 bytes"));
    }
    app.log.set(&level).map_err(|error| {
        Problem::bad_request("invalid_log_level", format!("`{}` is no level and no directives: {error}", shown(&level)))
    })?;
    // The level is changed already; that the note could not be kept must not hide it.
    let what = format!("log level set to {}", shown(&level));
    if let Err(error) = app.api.note_change(by.operator(), what).await {
        tracing::warn!(%error, "a change of the log level was not noted");
    }
    Ok((StatusCode::OK, Json(LogView { level: app.log.level() })))
}
