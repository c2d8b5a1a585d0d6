//! `/v1/audit`: the directory against the managers.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::access::Caller;
use super::extract::{Name, json_or_default};
use super::problem::Problem;
use super::query::Query;
use super::view::AuditView;
use crate::gateway::{Doubles, Orphans, Repairs};

/// What is to be done about what an audit has found.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RepairBody {
    #[serde(default)]
    mode: RepairMode,
    /// About VMs with ids of Cellbus's that the directory does not know.
    #[serde(default)]
    orphans: OrphansBody,
    /// About what other managers have of VMs that are where the directory says.
    #[serde(default)]
    doubles: DoublesBody,
    /// Where something is destroyed: how many VMs, as the plan says it.
    confirm: Option<u64>,
}

/// What becomes of orphans.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OrphansBody {
    /// Nothing.
    #[default]
    Leave,
    /// They are taken into the directory, as the VMs that their notes say.
    Adopt,
    /// They are removed.
    Destroy,
}

/// What becomes of doubles.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum DoublesBody {
    /// Nothing.
    #[default]
    Leave,
    /// What is not at the VM's home is removed.
    Destroy,
}

/// Say it, or do it.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum RepairMode {
    /// Only say what would be done.
    Plan,
    /// Do it.
    #[default]
    Apply,
}

/// Begins to compare the directory with every manager, in the background.
#[utoipa::path(post, path = "/v1/audit", tag = "audit",
    responses((status = 202, body = AuditView), (status = 429, description = "one runs already", body = Problem), (status = 503, body = Problem)))]
pub(super) async fn start(
    State(app): State<App>,
    _: Query,
    by: Caller,
) -> Result<(StatusCode, Json<AuditView>), Problem> {
    let id = app.api.audit_start(by.operator()).await?;
    Ok((StatusCode::ACCEPTED, Json(AuditView::of(&*app.api, app.api.audit(id)?))))
}

/// Shows how far an audit is, and what it has found.
#[utoipa::path(get, path = "/v1/audit/{id}", tag = "audit", params(("id" = String, Path, description = "its id")),
    responses((status = 200, body = AuditView), (status = 404, body = Problem)))]
pub(super) async fn show(State(app): State<App>, id: Name, _: Query) -> Result<Json<AuditView>, Problem> {
    Ok(Json(AuditView::of(&*app.api, app.api.audit(id.uuid()?)?)))
}

/// Repairs what an audit has found, or says what that would be: the homes of VMs read them again. Orphans and
/// doubles are left alone unless it is said what is to become of them.
#[utoipa::path(post, path = "/v1/audit/{id}/repair", tag = "audit", params(("id" = String, Path, description = "its id")),
    request_body = RepairBody,
    responses((status = 200, body = AuditView), (status = 404, body = Problem),
        (status = 409, description = "audit_running, count_differs", body = Problem), (status = 503, body = Problem)))]
pub(super) async fn repair(
    State(app): State<App>,
    id: Name,
    _: Query,
    by: Caller,
    body: Bytes,
) -> Result<Json<AuditView>, Problem> {
    let id = id.uuid()?;
    let RepairBody { mode, orphans, doubles, confirm } = json_or_default(&body)?;
    let how = Repairs {
        orphans: match orphans {
            OrphansBody::Leave => Orphans::Leave,
            OrphansBody::Adopt => Orphans::Adopt,
            OrphansBody::Destroy => Orphans::Destroy,
        },
        doubles: match doubles {
            DoublesBody::Leave => Doubles::Leave,
            DoublesBody::Destroy => Doubles::Destroy,
        },
        confirm,
    };
    match mode {
        RepairMode::Apply => Ok(Json(AuditView::of(&*app.api, app.api.audit_repair(id, &how, by.operator()).await?))),
        RepairMode::Plan => {
            let (audit, plan) = app.api.audit_repair_plan(id, &how)?;
            let total = audit.findings_total;
            let mut view = AuditView::of(&*app.api, audit);
            view.plan = Some(match total {
                0 => "nothing: directory and managers agree".to_owned(),
                n => format!("{n} findings: {}", plan.in_words()),
            });
            view.repair = Some(plan.into());
            Ok(Json(view))
        }
    }
}

/// Says that a person has seen what an audit found: what waits for an audit since a restore goes on at
/// every manager that this one has compared.
#[utoipa::path(post, path = "/v1/audit/{id}/accept", tag = "audit", params(("id" = String, Path, description = "its id")),
    responses((status = 200, body = AuditView), (status = 404, body = Problem),
        (status = 409, description = "audit_running", body = Problem), (status = 503, body = Problem)))]
pub(super) async fn accept(State(app): State<App>, id: Name, _: Query, by: Caller) -> Result<Json<AuditView>, Problem> {
    Ok(Json(AuditView::of(&*app.api, app.api.audit_accept(id.uuid()?, by.operator()).await?)))
}
