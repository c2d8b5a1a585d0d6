//! Cells, shards, managers, hosts, and what waits.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::time;
use crate::gateway::{self, CircuitState, FreeOf, ShardState};

/// One cell.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CellView {
    /// Its id.
    id: String,
    /// Where it is reached.
    address: String,
    /// `active` or `draining`.
    state: &'static str,
    /// When it joined.
    joined_at: String,
    /// Shards that it acts for.
    shards: u32,
    /// Managers that it fronts.
    managers: u32,
    /// Calls to managers under way.
    running: u32,
    /// Calls that wait for their turn.
    waiting: u32,
    /// Whether it answered; the counts are zero if not.
    reachable: bool,
}
impl From<gateway::CellRow> for CellView {
    fn from(row: gateway::CellRow) -> Self {
        use cellbus_bus::contract::MemberState;
        Self {
            id: row.id.to_string(),
            address: row.address,
            state: match row.state {
                MemberState::Active => "active",
                MemberState::Draining => "draining",
            },
            joined_at: time(row.joined_at),
            shards: row.shards,
            managers: row.managers,
            running: row.running,
            waiting: row.waiting,
            reachable: row.reachable,
        }
    }
}

/// One shard.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ShardView {
    /// Its number.
    shard: u16,
    /// The cell that owns it.
    owner: Option<String>,
    /// Under which epoch.
    epoch: u64,
    /// unowned, opening, open, suspended, closing or failed.
    state: &'static str,
    /// Why it could not be opened.
    reason: Option<String>,
    /// How far the jobs queue has been read.
    jobs_read: u64,
    /// How far the control queue has been read.
    control_read: u64,
    /// Jobs not read yet.
    jobs_unread: u64,
    /// Control messages not read yet.
    control_unread: u64,
    /// The last durable log entry.
    log_end: u64,
    /// Bytes of log since the last snapshot.
    tail_bytes: u64,
    /// VMs whose home it is, tombstones not counted.
    vms: u64,
    /// Jobs that have not ended.
    jobs_open: u64,
    /// Work accepted and not started.
    waiting: u64,
    /// Work with a call under way.
    running: u64,
    /// Work that an operator must decide on.
    parked: u64,
}
impl From<gateway::ShardRow> for ShardView {
    fn from(row: gateway::ShardRow) -> Self {
        let (state, reason) = match row.state {
            ShardState::Unowned => ("unowned", None),
            ShardState::Opening => ("opening", None),
            ShardState::Open => ("open", None),
            ShardState::Suspended => ("suspended", None),
            ShardState::Closing => ("closing", None),
            ShardState::Failed { reason, attempts } => ("failed", Some(format!("{reason} (tried {attempts} times)"))),
        };
        Self {
            shard: row.shard.index(),
            owner: row.owner.map(|cell| cell.to_string()),
            epoch: row.epoch.0,
            state,
            reason,
            jobs_read: row.jobs_read.0,
            control_read: row.control_read.0,
            jobs_unread: row.jobs_unread,
            control_unread: row.control_unread,
            log_end: row.log_end.0,
            tail_bytes: row.tail_bytes,
            vms: row.vms,
            jobs_open: row.jobs_open,
            waiting: row.waiting,
            running: row.running,
            parked: row.parked,
        }
    }
}

/// So much of so much.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct FreeView {
    /// Free.
    free: u64,
    /// In all.
    total: u64,
}
impl From<FreeOf> for FreeView {
    fn from(of: FreeOf) -> Self {
        Self { free: of.free, total: of.total }
    }
}

/// One manager.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ManagerView {
    /// Its id.
    id: String,
    /// Its configured name.
    name: String,
    /// The cell that fronts it.
    cell: Option<String>,
    /// Under which slice epoch.
    epoch: u64,
    /// unknown, healthy or circuit_open.
    health: &'static str,
    /// closed, open or half_open; null when it has no front.
    circuit: Option<&'static str>,
    /// When the next probe may go, milliseconds from now, while the circuit is open.
    next_probe_in_ms: Option<u64>,
    /// Why it is not healthy, in words; empty if it is.
    detail: String,
    /// Whether new VMs are kept off it: by a cordon, or as it is read-only or leaving.
    cordoned: bool,
    /// enabled, read-only (only looked at) or leaving (being decommissioned).
    mode: &'static str,
    /// all or destructive: what its owner does not begin, as an operator has paused it; null if nothing.
    paused: Option<&'static str>,
    /// Who has paused it, and why, in words; empty if nothing is paused.
    paused_why: String,
    /// Hosts.
    hosts: u32,
    /// Hosts that take new VMs.
    hosts_open: u32,
    /// VMs of ours that it says it holds.
    vms: u64,
    /// VMs that it holds beside those.
    foreign_vms: u64,
    /// VMs there whose id is not beyond doubt: two of one id, one whose id was changed.
    irregular_vms: u64,
    /// The first of those, in words; empty if there are none.
    irregular_why: String,
    /// Operations under way.
    running: u32,
    /// Operations under way, by kind.
    running_by_kind: BTreeMap<String, u32>,
    /// Operations that wait for their turn.
    waiting: u32,
    /// Operations that wait for their turn, by kind.
    waiting_by_kind: BTreeMap<String, u32>,
    /// vCPUs, over-commit counted.
    vcpus: FreeView,
    /// MiB.
    memory_mib: FreeView,
    /// GiB.
    disk_gib: FreeView,
    /// When this was known.
    as_of: String,
}
impl From<gateway::ManagerRow> for ManagerView {
    fn from(row: gateway::ManagerRow) -> Self {
        use cellbus_workflows::Health;
        let (circuit, next_probe_in_ms) = match &row.circuit {
            None => (None, None),
            Some(CircuitState::Closed) => (Some("closed"), None),
            Some(CircuitState::HalfOpen) => (Some("half_open"), None),
            Some(CircuitState::Open { next_probe_in, .. }) => {
                (Some("open"), Some(u64::try_from(next_probe_in.as_millis()).unwrap_or(u64::MAX)))
            }
        };
        Self {
            id: row.id.to_string(),
            name: row.name,
            cell: row.cell.map(|cell| cell.to_string()),
            epoch: row.epoch.0,
            health: match row.health {
                Health::Unknown => "unknown",
                Health::Healthy => "healthy",
                Health::CircuitOpen => "circuit_open",
            },
            circuit,
            next_probe_in_ms,
            detail: row.detail,
            cordoned: row.cordoned,
            mode: row.mode.as_str(),
            paused: row.paused.map(cellbus_directory::pause::Paused::as_str),
            paused_why: row.paused_why,
            hosts: row.hosts,
            hosts_open: row.hosts_open,
            vms: row.vms,
            foreign_vms: row.foreign_vms,
            irregular_vms: row.irregular_vms,
            irregular_why: row.irregular_why,
            running: row.running.values().sum(),
            running_by_kind: row.running,
            waiting: row.waiting.values().sum(),
            waiting_by_kind: row.waiting,
            vcpus: row.vcpus.into(),
            memory_mib: row.memory_mib.into(),
            disk_gib: row.disk_gib.into(),
            as_of: time(row.as_of),
        }
    }
}

/// One host.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct HostView {
    /// As its manager calls it.
    id: String,
    /// Of which manager.
    manager: String,
    /// The manager's configured name.
    manager_name: String,
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// Connected and not in maintenance, as its manager says.
    usable: bool,
    /// Whether new VMs are kept off it.
    cordoned: bool,
    /// Whether an operator calls it dead: its VMs may be started elsewhere.
    fenced: bool,
    /// VMs of ours on it.
    vms: u32,
    /// vCPUs, over-commit counted.
    vcpus: FreeView,
    /// MiB.
    memory_mib: FreeView,
    /// GiB: on its own disk, or on all datastores that it sees. One that others see too counts for each.
    disk_gib: FreeView,
    /// The datastores that it sees; empty where its own disk counts.
    datastores: Vec<DatastoreView>,
}

/// A datastore that a host sees.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DatastoreView {
    /// As its manager calls it.
    name: String,
    /// GiB that may still be promised to disks, and in all.
    gib: FreeView,
}
impl From<gateway::DatastoreRow> for DatastoreView {
    fn from(row: gateway::DatastoreRow) -> Self {
        Self { name: row.name, gib: row.gib.into() }
    }
}
impl From<gateway::HostRow> for HostView {
    fn from(row: gateway::HostRow) -> Self {
        Self {
            id: row.id.to_string(),
            manager: row.manager.to_string(),
            manager_name: row.manager_name,
            labels: row.labels,
            usable: row.usable,
            cordoned: row.cordoned,
            fenced: row.fenced,
            vms: row.vms,
            vcpus: row.vcpus.into(),
            memory_mib: row.memory_mib.into(),
            disk_gib: row.disk_gib.into(),
            datastores: row.datastores.into_iter().map(DatastoreView::from).collect(),
        }
    }
}

/// What waits, over all shards.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct QueueView {
    /// Jobs in the queues that no owner has read.
    unread: u64,
    /// Control messages that no owner has read.
    control_unread: u64,
    /// Work accepted and not started.
    waiting: u64,
    /// Of that, work that waits because its manager is saturated, failing or not known.
    waiting_for_managers: u64,
    /// Work with a call under way.
    running: u64,
    /// Work that an operator must decide on.
    parked: u64,
    /// Jobs that have not ended.
    jobs_open: u64,
    /// When the oldest work that has not started was accepted.
    oldest_waiting_at: Option<String>,
    /// Work of each tenant that has not started.
    waiting_by_tenant: BTreeMap<String, u64>,
    /// Dead letters kept.
    dead_letters: u64,
    /// Shards that could not be asked: what they hold is missing above.
    shards_unknown: u32,
}
impl From<gateway::QueueRow> for QueueView {
    fn from(row: gateway::QueueRow) -> Self {
        Self {
            unread: row.unread,
            control_unread: row.control_unread,
            waiting: row.waiting,
            waiting_for_managers: row.waiting_for_managers,
            running: row.running,
            parked: row.parked,
            jobs_open: row.jobs_open,
            oldest_waiting_at: row.oldest_waiting_at.map(time),
            waiting_by_tenant: row.waiting_by_tenant.into_iter().map(|(tenant, n)| (tenant.to_string(), n)).collect(),
            dead_letters: row.dead_letters,
            shards_unknown: row.shards_unknown,
        }
    }
}
