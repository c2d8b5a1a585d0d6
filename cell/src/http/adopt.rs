//! `/v1/adopt`: VMs that stand on managers already are taken into the directory.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use cellbus_bus::cloudevent::{Code, Tenants, check_labels};
use cellbus_bus::ids::TenantId;
use cellbus_bus::job::Labels;
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::access::Caller;
use super::extract::{Name, json};
use super::problem::Problem;
use super::query::Query;
use super::view::{AdoptView, AdoptingView};
use crate::gateway::{ADOPT_MAX, AdoptQuery};

/// Characters of a pattern.
const PATTERN_MAX: usize = 255;

/// Which VMs are to be adopted, and as what.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AdoptBody {
    /// Whose they are to be.
    tenant: String,
    /// Of this manager only, by its name or id.
    manager: Option<String>,
    /// Only those that their manager calls like this: `*` stands for any text, `?` for a character.
    #[serde(rename = "match")]
    pattern: Option<String>,
    /// What their names begin with, before what their managers call them.
    #[serde(default)]
    prefix: String,
    /// Their labels.
    #[serde(default)]
    labels: Labels,
    /// So many at the most: 1 to 10,000, which it is unless said otherwise.
    limit: Option<usize>,
    #[serde(default)]
    mode: AdoptMode,
    /// To apply: how many VMs the plan has named.
    confirm: Option<usize>,
}

/// Say it, or do it.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum AdoptMode {
    /// Only say what would be done.
    #[default]
    Plan,
    /// Do it.
    Apply,
}

/// Plans what VMs of which managers would be adopted as what, or adopts them.
#[utoipa::path(post, path = "/v1/adopt", tag = "adopt", request_body = AdoptBody,
    responses((status = 200, description = "the plan", body = AdoptView), (status = 202, description = "they are being adopted", body = AdoptView),
        (status = 400, body = Problem), (status = 403, description = "unknown_tenant", body = Problem), (status = 404, body = Problem),
        (status = 409, description = "count_differs", body = Problem), (status = 503, body = Problem)))]
pub(super) async fn adopt(
    State(app): State<App>,
    _: Query,
    by: Caller,
    body: Bytes,
) -> Result<(StatusCode, Json<AdoptView>), Problem> {
    let body: AdoptBody = json(&body)?;
    let query = query(&app, &body)?;
    match body.mode {
        AdoptMode::Plan => {
            let plan = app.api.adopt_plan(&query).await?;
            Ok((StatusCode::OK, Json(AdoptView::of(&*app.api, None, &query, plan))))
        }
        AdoptMode::Apply => {
            let confirm = body.confirm.ok_or_else(|| {
                Problem::bad_request("invalid_adoption", "to apply, `confirm` says how many VMs the plan has named")
            })?;
            let (id, plan) = app.api.adopt(&query, confirm, by.operator()).await?;
            Ok((StatusCode::ACCEPTED, Json(AdoptView::of(&*app.api, Some(id), &query, plan))))
        }
    }
}

/// Shows how far an adoption is.
#[utoipa::path(get, path = "/v1/adopt/{id}", tag = "adopt", params(("id" = String, Path, description = "its id")),
    responses((status = 200, body = AdoptingView), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn show(State(app): State<App>, id: Name, _: Query) -> Result<Json<AdoptingView>, Problem> {
    Ok(Json(app.api.adopting(id.uuid()?).await?.into()))
}

fn query(app: &App, body: &AdoptBody) -> Result<AdoptQuery, Problem> {
    let tenant: TenantId = body.tenant.parse().map_err(|error: cellbus_bus::ids::InvalidId| {
        Problem::bad_request(Code::InvalidName.as_str(), format!("`tenant`: {error}"))
    })?;
    if let Tenants::Listed(list) = &app.settings.tenants
        && !list.contains(&tenant)
    {
        let detail = format!("there is no tenant `{tenant}` here");
        return Err(Problem::new(StatusCode::FORBIDDEN, Code::UnknownTenant.as_str(), detail));
    }
    if body.pattern.as_ref().is_some_and(|pattern| pattern.chars().count() > PATTERN_MAX) {
        return Err(Problem::bad_request(
            "invalid_adoption",
            format!("`match` has up to {PATTERN_MAX} characters, `*` and `?` among them"),
        ));
    }
    check_labels(&body.labels)
        .map_err(|(code, message)| Problem::bad_request(code.as_str(), format!("`labels`: {message}")))?;
    Ok(AdoptQuery {
        tenant,
        manager: body.manager.as_ref().map(|text| app.api.find_manager(text)).transpose()?,
        pattern: body.pattern.clone(),
        prefix: body.prefix.clone(),
        labels: body.labels.clone(),
        limit: body.limit.unwrap_or(ADOPT_MAX),
    })
}
