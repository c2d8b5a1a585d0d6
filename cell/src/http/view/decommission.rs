//! What is left at a manager that is taken out.

use cellbus_bus::ids::ManagerId;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::api::Api;
use crate::gateway::{self, Decommission, Decommissioning};

/// What is left at a manager, what comes of it, and whether the manager may leave the configuration.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DecommissionView {
    /// Its name, or its id.
    manager: String,
    /// enabled, read-only or leaving; null while nobody fronts it.
    mode: Option<&'static str>,
    /// VMs that the directory lists there.
    vms: u64,
    /// Of these, those with a step under way.
    under_way: u64,
    /// Of these, those to be moved, by where to; where each goes is decided anew when it is moved.
    moves: Vec<MovesView>,
    /// Of these, those to be released.
    releases: u64,
    /// Of these, those that stay until somebody does something about them: the first 100.
    stays: Vec<StaysView>,
    /// How many in all.
    stays_total: u64,
    /// VMs that it holds and nobody knows: released, or never made by this cluster.
    unknown_there: u64,
    /// Whether nothing of ours is left there.
    may_leave: bool,
    /// What keeps it.
    hindered_by: Vec<HinderedView>,
    /// The migrate jobs that were submitted, the first 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs: Option<Vec<String>>,
    /// How many in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs_total: Option<u64>,
    /// Give it back as `round` to ask again without submitting anything twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    round: Option<String>,
}

/// So many to one manager.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct MovesView {
    /// To which, by name or id.
    manager: String,
    /// How many.
    vms: u64,
}

/// What keeps a manager.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct HinderedView {
    /// In words.
    why: String,
}

/// One that stays.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct StaysView {
    /// Its id.
    vm: String,
    /// Its name.
    name: String,
    /// Why, in words.
    why: String,
}

impl From<gateway::Stays> for StaysView {
    fn from(stays: gateway::Stays) -> Self {
        Self { vm: stays.vm.to_string(), name: stays.name.to_string(), why: stays.why }
    }
}

impl DecommissionView {
    pub(in crate::http) fn of(api: &dyn Api, plan: Decommission) -> Self {
        let named = |id: &ManagerId| api.manager_name(id).unwrap_or_else(|| id.to_string());
        let moves = plan.moves.iter().map(|(to, vms)| MovesView { manager: named(to), vms: *vms });
        let stays = plan.stays.into_iter().map(StaysView::from);
        Self {
            manager: named(&plan.manager),
            mode: plan.mode.map(cellbus_directory::ManagerMode::as_str),
            vms: plan.vms,
            under_way: plan.under_way,
            moves: moves.collect(),
            releases: plan.releases,
            stays: stays.collect(),
            stays_total: plan.stays_total,
            unknown_there: plan.unknown_there,
            may_leave: plan.may_leave,
            hindered_by: plan.hindered_by.into_iter().map(|why| HinderedView { why }).collect(),
            jobs: None,
            jobs_total: None,
            round: None,
        }
    }

    pub(in crate::http) fn begun(api: &dyn Api, begun: Decommissioning, round: String) -> Self {
        Self {
            jobs: Some(begun.jobs.iter().map(ToString::to_string).collect()),
            jobs_total: Some(begun.jobs_total),
            round: Some(round),
            ..Self::of(api, begun.plan)
        }
    }
}
