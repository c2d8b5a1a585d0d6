//! VMs that are adopted.

use cellbus_bus::ids::ManagerId;
use cellbus_directory::PowerState;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::super::api::Api;
use super::{SizeView, time};
use crate::gateway::{AdoptPlan, AdoptQuery, Adopting, Candidate};

/// VMs that are to be adopted, or would be.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AdoptView {
    /// Names what was asked for; null of a plan.
    id: Option<String>,
    /// Whose they become.
    tenant: String,
    /// How many: what `confirm` has to say.
    total: usize,
    /// Each of them, by manager and by what it is called there.
    items: Vec<CandidateView>,
    /// Those that cannot be adopted as they are, with the reason.
    unfit: Vec<CandidateView>,
    /// Those above `limit`, for the next time.
    left_out: u64,
    /// Managers that were not read.
    unread: Vec<UnreadView>,
}

/// A VM that stands on a manager, and that the directory does not know.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CandidateView {
    /// The id that it gets: always the same for the same VM there.
    vm: String,
    /// Where it stands.
    manager: String,
    /// That manager's configured name.
    manager_name: Option<String>,
    /// What its manager knows it by.
    key: String,
    /// What it is called there.
    called: String,
    /// The name that it gets.
    name: String,
    /// Its host.
    host: String,
    /// `running`, `stopped` or `suspended`.
    state: &'static str,
    /// Its shape.
    size: SizeView,
    /// Why it cannot be adopted.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// A manager that was not read.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct UnreadView {
    /// By name or id.
    manager: String,
    /// Why.
    reason: String,
}

impl AdoptView {
    pub(in crate::http) fn of(api: &dyn Api, id: Option<Uuid>, query: &AdoptQuery, plan: AdoptPlan) -> Self {
        let named = |id: &ManagerId| api.manager_name(id).unwrap_or_else(|| id.to_string());
        let view = |candidate: &Candidate| CandidateView {
            vm: candidate.vm.to_string(),
            manager: candidate.manager.to_string(),
            manager_name: api.manager_name(&candidate.manager),
            key: candidate.key.to_string(),
            called: candidate.called.clone(),
            name: candidate.name.to_string(),
            host: candidate.facts.host.to_string(),
            state: match candidate.facts.power {
                PowerState::Running => "running",
                PowerState::Stopped => "stopped",
                PowerState::Suspended => "suspended",
            },
            size: SizeView::of(candidate.facts.size),
            problem: candidate.unfit.clone(),
        };
        Self {
            id: id.map(|id| id.to_string()),
            tenant: query.tenant.to_string(),
            total: plan.items.len(),
            items: plan.items.iter().map(view).collect(),
            unfit: plan.unfit.iter().map(view).collect(),
            left_out: plan.left_out,
            unread: plan
                .unread
                .into_iter()
                .map(|(manager, reason)| UnreadView { manager: named(&manager), reason })
                .collect(),
        }
    }
}

/// How far an adoption is.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AdoptingView {
    /// Its id.
    id: String,
    /// When it was asked for.
    started_at: String,
    /// VMs in all.
    total: u64,
    /// Those that are taken in.
    adopted: u64,
    /// Those that are not yet.
    under_way: u64,
    /// Those that cannot be: each is a dead letter, with the reason.
    failed: u64,
}
impl From<Adopting> for AdoptingView {
    fn from(far: Adopting) -> Self {
        let Adopting { id, started_at, total, adopted, under_way, failed } = far;
        Self { id: id.to_string(), started_at: time(started_at), total, adopted, under_way, failed }
    }
}
