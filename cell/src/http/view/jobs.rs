//! Jobs and their VMs.

use std::collections::BTreeMap;

use cellbus_bus::ids::ManagerId;
use cellbus_directory::{JobRow, Outcome, VmSummary};
use cellbus_workflows::JobStatus;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::api::Api;
use super::{FailureView, time};
use crate::gateway;

/// A VM of a job.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct JobVm {
    /// Its id.
    id: String,
    /// Its name.
    name: String,
    /// The manager that holds it.
    manager: Option<String>,
    /// The manager's configured name.
    manager_name: Option<String>,
    /// Its host.
    host: Option<String>,
    /// What it is doing.
    state: &'static str,
}
impl JobVm {
    pub(in crate::http) fn of(api: &dyn Api, vm: &VmSummary) -> Self {
        Self {
            id: vm.id.to_string(),
            name: vm.name.to_string(),
            manager: vm.home.as_ref().map(|home| home.manager.to_string()),
            manager_name: vm.home.as_ref().and_then(|home| api.manager_name(&home.manager)),
            host: vm.home.as_ref().and_then(|home| home.host.as_ref()).map(ToString::to_string),
            state: vm.state.as_str(),
        }
    }
}

/// A job in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct JobView {
    /// Its id.
    job_id: String,
    /// Whose.
    tenant: String,
    /// Its type, such as `provision`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// queued, accepted, waiting, running, parked, succeeded, failed or cancelled.
    state: &'static str,
    /// The CloudEvents `source`.
    source: String,
    /// The CloudEvents `id`.
    event_id: String,
    /// The VM that it is about, where it is about one and that is known.
    vm: Option<String>,
    /// How many VMs it makes or is about.
    vms_total: u32,
    /// When it was accepted.
    accepted_at: String,
    /// When it ended.
    ended_at: Option<String>,
    /// Why it failed.
    error: Option<FailureView>,
}
impl JobView {
    pub(in crate::http) fn of(row: &JobRow) -> Self {
        Self {
            job_id: row.id.to_string(),
            tenant: row.tenant.to_string(),
            kind: row.kind.as_str(),
            state: row.state.as_str(),
            source: row.source.to_string(),
            event_id: row.event_id.to_string(),
            vm: row.vm.map(|vm| vm.to_string()),
            vms_total: row.vms_total,
            accepted_at: time(row.accepted_at),
            ended_at: row.ended_at.map(time),
            error: match &row.outcome {
                Some(Outcome::Failed(failure)) => Some(FailureView::of(failure)),
                Some(Outcome::Succeeded | Outcome::Cancelled) | None => None,
            },
        }
    }
}

/// A job by itself.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct JobDetail {
    #[serde(flatten)]
    job: JobView,
    /// Its VMs, the first 100; `/v1/jobs/{id}/vms` has all.
    vms: Vec<JobVm>,
    /// VMs whose work has ended.
    vms_ended: u32,
    /// What it waits for, in words; empty if for nothing.
    waits_for: String,
    /// CloudEvents extensions of the job.
    extensions: BTreeMap<String, String>,
}
impl JobDetail {
    pub(in crate::http) fn of(api: &dyn Api, status: &JobStatus) -> Self {
        Self {
            job: JobView::of(&status.row),
            vms: status.vms.iter().map(|vm| JobVm::of(api, vm)).collect(),
            // A job for one VM keeps no count of children: its end is its VM's.
            vms_ended: if status.row.state.ended() {
                status.vms_ended.max(status.row.vms_total.min(1))
            } else {
                status.vms_ended
            },
            waits_for: status.waits_for.clone(),
            extensions: status.extensions.clone(),
        }
    }
}

/// Where a provision would go, were it submitted now.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DryRunView {
    /// The id that the job would have.
    job_id: String,
    /// Always true: nothing was submitted.
    dry_run: bool,
    /// The manager that would be asked first, for each of the first 100 VMs; null: none would do.
    managers: Vec<Option<String>>,
    /// Managers looked at.
    looked_at: u32,
    /// How many managers each reason ruled out.
    ruled_out: BTreeMap<&'static str, u32>,
    /// In words.
    detail: String,
}
impl DryRunView {
    pub(in crate::http) fn of(api: &dyn Api, job_id: String, dry_run: gateway::DryRun) -> Self {
        let named = |id: ManagerId| api.manager_name(&id).unwrap_or_else(|| id.to_string());
        Self {
            job_id,
            dry_run: true,
            managers: dry_run.managers.into_iter().map(|id| id.map(named)).collect(),
            looked_at: dry_run.looked_at,
            ruled_out: dry_run.ruled_out.into_iter().map(|(reason, n)| (reason.as_str(), n)).collect(),
            detail: dry_run.detail,
        }
    }
    pub(in crate::http) fn of_other(job_id: String) -> Self {
        Self {
            job_id,
            dry_run: true,
            managers: Vec::new(),
            looked_at: 0,
            ruled_out: BTreeMap::new(),
            detail: "the job is well formed; only a provision is placed".to_owned(),
        }
    }
}
