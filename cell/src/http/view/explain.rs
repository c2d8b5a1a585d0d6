//! Why a job or a VM is as it is.

use cellbus_workflows::VmExplanation;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::api::Api;
use super::{FailureView, JobDetail, time};
use crate::gateway;

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct HappenedView {
    /// When.
    at: String,
    /// What, in words.
    what: String,
}

/// What a VM's home shard knows of it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VmWhy {
    /// Its id.
    id: String,
    /// Whose.
    tenant: String,
    /// Its name.
    name: String,
    /// What it is doing.
    state: &'static str,
    /// The id of the manager that holds it.
    manager: Option<String>,
    /// Its configured name.
    manager_name: Option<String>,
    /// Its host.
    host: Option<String>,
    /// The id of the other copy's manager, while it moves between managers.
    other_manager: Option<String>,
    /// The step under way.
    step: Option<String>,
    /// The number of the last operation.
    op: u64,
    /// The job whose work is under way.
    job: Option<String>,
    /// Why that work is parked, if it is.
    parked: Option<FailureView>,
    /// Whether it is being undone.
    undoing: bool,
    /// Calls made for the present step, this one included.
    attempts: u32,
    /// What it waits for, in words.
    waits_for: String,
    /// When it is tried next.
    next_retry_at: Option<String>,
    /// The first hundred jobs that wait behind it.
    behind: Vec<String>,
    /// How many wait behind it.
    behind_total: usize,
}

/// Why something is as it is.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ExplainedView {
    /// The home shard.
    shard: u16,
    /// The cell that owns it.
    owner: Option<String>,
    /// Under which epoch.
    epoch: u64,
    /// What it waits for, in words; empty if for nothing.
    waits_for: String,
    /// When it is tried next.
    next_retry_at: Option<String>,
    /// The job, where one was asked about.
    job: Option<JobDetail>,
    /// The VM, or that of the job.
    vm: Option<VmWhy>,
    /// What has happened, oldest first.
    history: Vec<HappenedView>,
}
impl ExplainedView {
    pub(in crate::http) fn of(api: &dyn Api, explained: gateway::Explained) -> Self {
        let vm = explained.vm.as_ref();
        let job_waits = explained.job.as_ref().map(|job| job.waits_for.as_str()).unwrap_or_default();
        let waits_for = vm.map(|vm| vm.waits_for.as_str()).filter(|w| !w.is_empty()).unwrap_or(job_waits).to_owned();
        let history = vm.into_iter().flat_map(|vm| &vm.history);
        Self {
            shard: explained.shard.index(),
            owner: explained.owner.map(|cell| cell.to_string()),
            epoch: explained.epoch.0,
            waits_for,
            next_retry_at: vm.and_then(|vm| vm.next_retry_at).map(time),
            history: history.map(|(at, what)| HappenedView { at: time(*at), what: what.clone() }).collect(),
            job: explained.job.as_ref().map(|job| JobDetail::of(api, job)),
            vm: vm.map(|vm| why(api, vm)),
        }
    }
}

fn why(api: &dyn Api, explanation: &VmExplanation) -> VmWhy {
    let vm = &explanation.vm;
    VmWhy {
        id: vm.id.to_string(),
        tenant: vm.tenant.to_string(),
        name: vm.name.to_string(),
        state: vm.state().as_str(),
        manager: vm.home.as_ref().map(|home| home.manager.to_string()),
        manager_name: vm.home.as_ref().and_then(|home| api.manager_name(&home.manager)),
        host: vm.home.as_ref().and_then(|home| home.host.as_ref()).map(ToString::to_string),
        other_manager: vm.other.as_ref().map(|other| other.manager.to_string()),
        step: vm.doing.as_ref().and_then(|doing| serde_json::to_value(doing.step).ok()?.as_str().map(str::to_owned)),
        op: vm.op.0,
        job: explanation.job.map(|job| job.to_string()),
        parked: explanation.parked.as_ref().map(FailureView::of),
        undoing: explanation.undoing,
        attempts: explanation.attempts,
        waits_for: explanation.waits_for.clone(),
        next_retry_at: explanation.next_retry_at.map(time),
        behind_total: explanation.behind_total,
        behind: explanation.behind.iter().map(ToString::to_string).collect(),
    }
}
