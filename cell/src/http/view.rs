//! Rows as JSON: the stable form of what the process answers. Ids are texts, times RFC 3339 in UTC.

use std::collections::BTreeMap;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::ManagerId;
use cellbus_bus::job::Size;
use cellbus_directory::record::{DeadLetter, Operator};
use cellbus_directory::vm::Place;
use cellbus_directory::{Failure, JobRow, Outcome, VmSummary};
use cellbus_workflows::{Change, JobStatus, VmExplanation};
use serde::Serialize;
use utoipa::ToSchema;

use super::api::Api;
use crate::gateway::{self, CircuitState, FreeOf, ShardState};

pub(super) fn time(at: WallMs) -> String {
    at.rfc3339()
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    /// At most `limit` rows.
    pub(super) items: Vec<T>,
    /// Give it back as `cursor`, with the same filters, for the next page; null after the last.
    pub(super) next_cursor: Option<String>,
}

/// Why a job, or a step of it, failed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FailureView {
    /// Stable.
    code: &'static str,
    /// For a person.
    message: String,
    /// The step that failed.
    step: Option<String>,
    /// Whether the same job under a new key may succeed with nothing mended.
    retryable: bool,
}
impl FailureView {
    pub(super) fn of(failure: &Failure) -> Self {
        // A step is a unit variant: as JSON it is its name.
        let step = failure.step.and_then(|step| serde_json::to_value(step).ok()?.as_str().map(str::to_owned));
        Self { code: failure.code.as_str(), message: failure.message.clone(), step, retryable: failure.retryable }
    }
}

/// A VM of a job.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobVm {
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
    pub(super) fn of(api: &dyn Api, vm: &VmSummary) -> Self {
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
pub(super) struct JobView {
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
    pub(super) fn of(row: &JobRow) -> Self {
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
pub(super) struct JobDetail {
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
    pub(super) fn of(api: &dyn Api, status: &JobStatus) -> Self {
        Self {
            job: JobView::of(&status.row),
            vms: status.vms.iter().map(|vm| JobVm::of(api, vm)).collect(),
            vms_ended: status.vms_ended,
            waits_for: status.waits_for.clone(),
            extensions: status.extensions.clone(),
        }
    }
}

/// The shape of a VM.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SizeView {
    /// Whole virtual CPUs.
    vcpus: u32,
    /// MiB.
    memory_mib: u64,
    /// GiB.
    disk_gib: u64,
}
impl SizeView {
    pub(super) fn of(size: Size) -> Self {
        Self { vcpus: size.vcpus, memory_mib: size.memory_mib, disk_gib: size.disk_gib }
    }
}

/// A VM of the unified inventory.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VmView {
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
pub(super) struct LiveView {
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
    pub(super) fn of(api: &dyn Api, live: &gateway::Live) -> Self {
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

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HappenedView {
    /// When.
    at: String,
    /// What, in words.
    what: String,
}

/// What a VM's home shard knows of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VmWhy {
    /// Its id.
    id: String,
    /// Whose.
    tenant: String,
    /// Its name.
    name: String,
    /// What it is doing.
    state: &'static str,
    /// The manager that holds it, by name or id.
    manager: Option<String>,
    /// Its host.
    host: Option<String>,
    /// The other copy's manager, while it moves between managers.
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
    /// Jobs that wait behind it.
    behind: Vec<String>,
}

/// Why something is as it is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ExplainedView {
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
    pub(super) fn of(api: &dyn Api, explained: gateway::Explained) -> Self {
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
    let named = |place: &Place| api.manager_name(&place.manager).unwrap_or_else(|| place.manager.to_string());
    VmWhy {
        id: vm.id.to_string(),
        tenant: vm.tenant.to_string(),
        name: vm.name.to_string(),
        state: vm.state().as_str(),
        manager: vm.home.as_ref().map(named),
        host: vm.home.as_ref().and_then(|home| home.host.as_ref()).map(ToString::to_string),
        other_manager: vm.other.as_ref().map(named),
        step: vm.doing.as_ref().and_then(|doing| serde_json::to_value(doing.step).ok()?.as_str().map(str::to_owned)),
        op: vm.op.0,
        job: explanation.job.map(|job| job.to_string()),
        parked: explanation.parked.as_ref().map(FailureView::of),
        undoing: explanation.undoing,
        attempts: explanation.attempts,
        waits_for: explanation.waits_for.clone(),
        next_retry_at: explanation.next_retry_at.map(time),
        behind: explanation.behind.iter().map(ToString::to_string).collect(),
    }
}

/// One cell.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CellView {
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
pub(super) struct ShardView {
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
pub(super) struct FreeView {
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
pub(super) struct ManagerView {
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
    /// Whether new VMs are kept off it.
    cordoned: bool,
    /// Hosts.
    hosts: u32,
    /// Hosts that take new VMs.
    hosts_open: u32,
    /// VMs of ours that it says it holds.
    vms: u64,
    /// VMs that it holds beside those.
    foreign_vms: u64,
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
            hosts: row.hosts,
            hosts_open: row.hosts_open,
            vms: row.vms,
            foreign_vms: row.foreign_vms,
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
pub(super) struct HostView {
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
    /// VMs of ours on it.
    vms: u32,
    /// vCPUs, over-commit counted.
    vcpus: FreeView,
    /// MiB.
    memory_mib: FreeView,
    /// GiB.
    disk_gib: FreeView,
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
            vms: row.vms,
            vcpus: row.vcpus.into(),
            memory_mib: row.memory_mib.into(),
            disk_gib: row.disk_gib.into(),
        }
    }
}

/// What waits, over all shards.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QueueView {
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

/// Who changed something.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OperatorView {
    /// As authenticated; `anonymous` while authentication is off.
    who: String,
    /// The address that the call came from.
    from: String,
}
impl From<Operator> for OperatorView {
    fn from(by: Operator) -> Self {
        Self { who: by.who, from: by.from }
    }
}

/// Something that an operator changed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChangeView {
    /// When.
    at: String,
    /// Who.
    by: OperatorView,
    /// What, as a sentence.
    what: String,
}
impl From<Change> for ChangeView {
    fn from(change: Change) -> Self {
        Self { at: time(change.at), by: change.by.into(), what: change.what }
    }
}

/// Something that could not be taken.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeadLetterView {
    /// Its id.
    id: String,
    /// When it was put aside.
    at: String,
    /// Whose, if that could be told.
    tenant: Option<String>,
    /// Stable code.
    code: String,
    /// Why, in words.
    reason: String,
    /// Where it came from: `ingress`, `jobs` or `control`.
    from: String,
    /// Its size as it came, or as much as is kept of it.
    original_bytes: usize,
    /// As it came, as text; what is no text is shown as `�`. Left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    original: Option<String>,
}
impl DeadLetterView {
    pub(super) fn of(letter: &DeadLetter, whole: bool) -> Self {
        Self {
            id: letter.id.to_string(),
            at: time(letter.at),
            tenant: letter.tenant.as_ref().map(ToString::to_string),
            code: letter.code.clone(),
            reason: letter.reason.clone(),
            from: letter.from.clone(),
            original_bytes: letter.original.len(),
            original: whole.then(|| String::from_utf8_lossy(&letter.original).into_owned()),
        }
    }
}

/// What an evacuation has set in motion.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EvacuationView {
    /// VMs found there.
    vms: u64,
    /// The migrate jobs, the first 100.
    jobs: Vec<String>,
    /// How many in all.
    jobs_total: u64,
    /// Give it back as `round` to ask again without submitting anything twice.
    round: String,
}
impl EvacuationView {
    pub(super) fn of(evacuation: &gateway::Evacuation, round: &str) -> Self {
        Self {
            vms: evacuation.vms,
            jobs: evacuation.jobs.iter().map(ToString::to_string).collect(),
            jobs_total: evacuation.jobs_total,
            round: round.to_owned(),
        }
    }
}

/// Where a provision would go, were it submitted now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DryRunView {
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
    pub(super) fn of(api: &dyn Api, job_id: String, dry_run: gateway::DryRun) -> Self {
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
    pub(super) fn of_other(job_id: String) -> Self {
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

/// An audit of the directory against the managers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditView {
    /// Its id.
    id: String,
    /// When it began.
    started_at: String,
    /// When it ended; null while it runs.
    ended_at: Option<String>,
    /// Managers compared.
    managers_done: u32,
    /// Managers in all.
    managers_total: u32,
    /// Managers that could not be read, by name or id.
    unreachable: Vec<String>,
    /// VMs compared.
    vms: u64,
    /// Differences found.
    findings_total: u64,
    /// The first 1,000.
    findings: Vec<FindingView>,
    /// Repairs asked for.
    repairs: u64,
    /// What a repair would do, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) plan: Option<String>,
}

/// One difference between the directory and a manager.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FindingView {
    /// Which VM.
    vm: String,
    /// At which manager, by name or id.
    manager: String,
    /// missing, unknown, duplicate, host, power or size.
    kind: String,
    /// In words.
    detail: String,
}
impl AuditView {
    pub(super) fn of(api: &dyn Api, audit: gateway::Audit) -> Self {
        let named = |id: &ManagerId| api.manager_name(id).unwrap_or_else(|| id.to_string());
        Self {
            id: audit.id.to_string(),
            started_at: time(audit.started_at),
            ended_at: audit.ended_at.map(time),
            managers_done: audit.managers_done,
            managers_total: audit.managers_total,
            unreachable: audit.unreachable.iter().map(named).collect(),
            vms: audit.vms,
            findings_total: audit.findings_total,
            findings: audit
                .findings
                .into_iter()
                .map(|f| FindingView {
                    vm: f.vm.to_string(),
                    manager: named(&f.manager),
                    kind: f.kind,
                    detail: f.detail,
                })
                .collect(),
            repairs: audit.repairs,
            plan: None,
        }
    }
}
