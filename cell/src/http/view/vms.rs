//! VMs: of the inventory, and as their managers hold them.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::super::api::Api;
use super::{SizeView, time};
use crate::gateway;

/// A VM of the unified inventory.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VmView {
    /// Its id.
    id: String,
    /// Whose.
    tenant: String,
    /// Its name.
    name: String,
    /// What it is doing.
    state: &'static str,
    /// The manager that holds it.
    manager: Option<String>,
    /// The manager's configured name.
    manager_name: Option<String>,
    /// Its host.
    host: Option<String>,
    /// Its shape.
    size: SizeView,
    /// Its tags.
    labels: BTreeMap<String, String>,
    /// Its home shard.
    shard: u16,
    /// When this was last known to be true.
    as_of: String,
}
impl From<gateway::VmRow> for VmView {
    fn from(row: gateway::VmRow) -> Self {
        Self {
            id: row.id.to_string(),
            tenant: row.tenant.to_string(),
            name: row.name.to_string(),
            state: row.state.as_str(),
            manager: row.manager.map(|id| id.to_string()),
            manager_name: row.manager_name,
            host: row.host.map(|host| host.to_string()),
            size: SizeView::of(row.size),
            labels: row.labels,
            shard: row.shard.index(),
            as_of: time(row.as_of),
        }
    }
}

/// A VM as its manager holds it at this moment.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct LiveView {
    /// Which VM.
    vm: String,
    /// Which manager was asked.
    manager: String,
    /// Its configured name.
    manager_name: Option<String>,
    /// Whether it holds the VM. What follows is null if not.
    held: bool,
    /// Its name there.
    name: Option<String>,
    /// Whose, as the manager has noted.
    tenant: Option<String>,
    /// Its host.
    host: Option<String>,
    /// `running`, `stopped` or `suspended`.
    power: Option<&'static str>,
    /// Its shape.
    size: Option<SizeView>,
    /// Its snapshots, oldest first.
    snapshots: Vec<String>,
    /// The number of the last operation that changed it.
    op: Option<u64>,
    /// When the manager said so.
    as_of: String,
}
impl LiveView {
    pub(in crate::http) fn of(api: &dyn Api, live: &gateway::Live) -> Self {
        use cellbus_directory::PowerState;
        let held = live.held.as_ref();
        Self {
            vm: live.vm.to_string(),
            manager: live.manager.to_string(),
            manager_name: api.manager_name(&live.manager),
            held: held.is_some(),
            name: held.map(|vm| vm.name.to_string()),
            tenant: held.map(|vm| vm.tenant.to_string()),
            host: held.map(|vm| vm.facts.host.to_string()),
            power: held.map(|vm| match vm.facts.power {
                PowerState::Running => "running",
                PowerState::Stopped => "stopped",
                PowerState::Suspended => "suspended",
            }),
            size: held.map(|vm| SizeView::of(vm.facts.size)),
            snapshots: held.map(|vm| vm.facts.snapshots.iter().map(ToString::to_string).collect()).unwrap_or_default(),
            op: held.map(|vm| vm.op.0),
            as_of: time(live.as_of),
        }
    }
}
