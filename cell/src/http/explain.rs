//! `/v1/explain`: why a VM or a job is as it is.

use axum::Json;
use axum::extract::State;
use cellbus_bus::ids::{JobId, VmId};

use super::App;
use super::access::Caller;
use super::extract::Name;
use super::owned;
use super::problem::Problem;
use super::query::Query;
use super::view::ExplainedView;
use crate::gateway;

/// Explains a VM or a job: owner, epoch, step, what it waits for, next retry, history.
///
/// VM 0 of a provision has the job's own id: both are then shown.
#[utoipa::path(get, path = "/v1/explain/{id}", tag = "explain",
    params(("id" = String, Path, description = "a VM's or a job's id")),
    responses((status = 200, body = ExplainedView), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn show(
    State(app): State<App>,
    id: Name,
    _: Query,
    caller: Caller,
) -> Result<Json<ExplainedView>, Problem> {
    let (job, vm): (JobId, VmId) = (id.id()?, id.id()?);
    let explained = match app.api.explain_job(job).await {
        Err(gateway::Error::NotFound { .. }) => app.api.explain_vm(vm).await?,
        Ok(mut explained) if explained.vm.is_none() => {
            // The VM's part is a help and not what was asked for: without it the job is shown alone.
            explained.vm = app.api.explain_vm(vm).await.ok().and_then(|other| other.vm);
            explained
        }
        other => other?,
    };
    let explained = owned::explained(&caller, explained, vm)?;
    Ok(Json(ExplainedView::of(&*app.api, explained)))
}
