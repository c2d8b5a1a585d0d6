//! `/v1/scale`: how many cells there are to be, who says so, and why.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use cellbus_directory::scale::Mode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::access::Caller;
use super::extract::json;
use super::problem::Problem;
use super::query::Query;
use super::view::{DecisionView, Page, ScaleView};
use crate::gateway::ScaleChange;

/// What is to be changed; what is left out stays as it is.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScaleBody {
    /// auto, fixed or paused.
    #[schema(value_type = Option<String>)]
    mode: Option<Mode>,
    /// How many, in mode fixed, which needs it.
    cells: Option<u32>,
    /// The least, in mode auto.
    min: Option<u32>,
    /// The most, in mode auto.
    max: Option<u32>,
    /// How long what waits may take to be gone: 0.1 to 86400.
    drain_target_seconds: Option<f64>,
    /// 99 of 100 jobs are to be started within this: 0.1 to 86400.
    latency_objective_seconds: Option<f64>,
}

impl ScaleBody {
    fn change(&self) -> Result<ScaleChange, Problem> {
        let time = |name: &str, seconds: Option<f64>| match seconds {
            None => Ok(None),
            Some(seconds) => Duration::try_from_secs_f64(seconds).map(Some).map_err(|_| {
                Problem::bad_request("invalid_scale", format!("{name} is {seconds}; it may be 0.1 to 86400"))
                    .at(format!("/{name}"))
            }),
        };
        Ok(ScaleChange {
            mode: self.mode,
            cells: self.cells,
            min: self.min,
            max: self.max,
            drain_target: time("drain_target_seconds", self.drain_target_seconds)?,
            latency_objective: time("latency_objective_seconds", self.latency_objective_seconds)?,
        })
    }
}

/// Shows how many cells there are to be, and why.
#[utoipa::path(get, path = "/v1/scale", tag = "cluster",
    responses((status = 200, body = ScaleView), (status = 503, body = Problem)))]
pub(super) async fn show(State(app): State<App>, _: Query) -> Result<Json<ScaleView>, Problem> {
    Ok(Json(app.api.scale().await?.into()))
}

/// Sets who says how many cells there are to be, and the bounds. Kept, with who did it and when.
#[utoipa::path(put, path = "/v1/scale", tag = "cluster", request_body = ScaleBody,
    responses((status = 200, body = ScaleView), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn set(State(app): State<App>, _: Query, by: Caller, body: Bytes) -> Result<Json<ScaleView>, Problem> {
    let change = json::<ScaleBody>(&body)?.change()?;
    Ok(Json(app.api.set_scale(&change, by.operator()).await?.into()))
}

/// Lists decisions about the number of cells, newest first: the last thousand are kept.
#[utoipa::path(get, path = "/v1/scale/decisions", tag = "cluster",
    params(
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 if not given"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
    ),
    responses((status = 200, body = Page<DecisionView>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn decisions(State(app): State<App>, query: Query) -> Result<Json<Page<DecisionView>>, Problem> {
    let before = match query.cursor() {
        None => None,
        Some(text) => Some(text.parse::<u64>().map_err(|_| {
            Problem::bad_request("invalid_cursor", "the cursor is not one of this list; take `next_cursor` of a page")
        })?),
    };
    let limit = query.limit()?;
    let kept = app.api.scale_decisions(limit, before).await?;
    let numbers = (0..=kept.decided).rev();
    let items: Vec<_> =
        kept.decisions.iter().rev().zip(numbers).map(|(decision, number)| DecisionView::of(number, decision)).collect();
    let oldest = (kept.decided + 1).saturating_sub(items.len() as u64);
    let next_cursor = (items.len() == limit && oldest > 1).then(|| oldest.to_string());
    Ok(Json(Page { items, next_cursor }))
}
