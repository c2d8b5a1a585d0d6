//! What the HTTP API stands on: everything that a handler asks of the process.
//!
//! [`super::Served`] is the real one; tests have another. Errors are the gateway's, so that a code
//! means the same wherever it comes from.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::contract::EventReader;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{CellId, Epoch, HostId, JobId, ManagerId, Seq, ShardId, TenantId, VmId, VmName};
use cellbus_bus::job::{Job, JobKind, Labels};
use cellbus_directory::pause::Scope;
use cellbus_directory::record::{DeadLetter, Operator, ParkedDecision};
use cellbus_directory::{JobRow, JobState, ManagerMode, VmState, VmSummary};
use cellbus_workflows::{Change, JobStatus, Scale};
use uuid::Uuid;

use crate::gateway::{
    AdoptPlan, AdoptQuery, Adopting, Audit, CellRow, Decommission, Decommissioning, DryRun, Evacuation, Explained,
    Fenced, ForecastRow, HostRow, Live, Located, ManagerRow, Page, PausesShown, QueueRow, RepairPlan, Repairs, Result,
    ScaleChange, ScaleShown, ShardRow, Submitted, Upgrade, VmRow,
};

/// Where a VM is, borrowed from the tables of the directory: nothing is allocated for a look-up.
#[derive(Clone, Copy, Debug)]
pub struct Spot<'a> {
    /// Which VM.
    pub vm: VmId,
    /// The manager that holds it.
    pub manager: Option<ManagerId>,
    /// The manager's configured name.
    pub manager_name: Option<&'a str>,
    /// The host, once chosen.
    pub host: Option<&'a str>,
    /// The VM's home shard.
    pub shard: ShardId,
    /// The cell that fronts the manager (or, without a manager, owns the home shard).
    pub cell: Option<&'a str>,
    /// Where that cell is reached.
    pub address: Option<&'a str>,
    /// The epoch under which that cell acts.
    pub epoch: Epoch,
    /// When this was last known to be true.
    pub as_of: WallMs,
}

impl<'a> Spot<'a> {
    /// Of an owned answer.
    #[must_use]
    pub fn of(located: &'a Located) -> Self {
        Self {
            vm: located.vm,
            manager: located.manager,
            manager_name: located.manager_name.as_deref(),
            host: located.host.as_ref().map(HostId::as_str),
            shard: located.shard,
            cell: located.cell.as_ref().map(CellId::as_str),
            address: located.address.as_deref(),
            epoch: located.epoch,
            as_of: located.as_of,
        }
    }
}

/// Which VMs a list shows. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmQuery {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// In this state; without one, all but deleted ones.
    pub state: Option<VmState>,
    /// Held by this manager.
    pub manager: Option<ManagerId>,
    /// On a host of this name.
    pub host: Option<HostId>,
    /// With all of these labels.
    pub labels: Labels,
}

/// Which jobs a list shows. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobQuery {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// In this state.
    pub state: Option<JobState>,
    /// Of this type.
    pub kind: Option<JobKind>,
}

/// Everything that handlers ask for. Methods are as those of [`crate::Gateway`] of the same name,
/// with the same errors; dropping a call is as safe as there.
#[async_trait]
#[expect(missing_docs, reason = "documented once, at the gateway's method of the same name")]
pub trait Api: Send + Sync {
    // ── jobs ──
    async fn submit(&self, jobs: Vec<Arc<Job>>) -> Result<Vec<Submitted>>;
    async fn job(&self, id: JobId) -> Result<JobStatus>;
    async fn wait_jobs(&self, ids: &[JobId], limit: Duration) -> Result<Vec<Option<JobStatus>>>;
    async fn job_vms(&self, id: JobId, from: u32, limit: usize) -> Result<(Vec<VmSummary>, Option<u32>)>;
    async fn cancel_job(&self, id: JobId, by: Operator) -> Result<JobStatus>;
    async fn unpark_job(&self, id: JobId, decision: ParkedDecision, by: Operator) -> Result<JobStatus>;
    /// A page of jobs, from the directory; `after` is the `next` of the page before.
    async fn jobs(&self, query: &JobQuery, limit: usize, after: Option<&str>) -> Result<Page<JobRow>>;
    fn dry_run(&self, job: &Job) -> Result<DryRun>;

    // ── VMs ──
    async fn vm(&self, id: VmId) -> Result<VmRow>;
    /// A page of VMs, from the directory; `after` is the `next` of the page before.
    async fn vms(&self, query: &VmQuery, limit: usize, after: Option<&str>) -> Result<Page<VmRow>>;
    /// The VMs of a tenant with this name, two at the most.
    async fn by_name(&self, tenant: &TenantId, name: &VmName) -> Result<Vec<VmRow>>;
    /// Calls `each` with the index and place of every one of `ids` that this process's directory
    /// knows, in order, and blocks for a fraction of a microsecond each. The others' homes may
    /// know more: ask [`Api::locate`].
    fn locate_known(&self, ids: &[VmId], each: &mut dyn FnMut(usize, &Spot<'_>)) -> Result<()>;
    /// Whose VMs these are, in order, as far as the directory says.
    async fn tenants_of(&self, ids: &[VmId]) -> Vec<Option<TenantId>>;
    async fn locate(&self, id: VmId) -> Result<Located>;
    /// For those that [`Api::locate_known`] did not find.
    async fn locate_many(&self, ids: &[VmId]) -> Result<Vec<Option<Located>>>;
    async fn live(&self, id: VmId) -> Result<Live>;
    async fn explain_vm(&self, id: VmId) -> Result<Explained>;
    async fn explain_job(&self, id: JobId) -> Result<Explained>;

    // ── the cluster ──
    async fn cells(&self) -> Result<Vec<CellRow>>;
    async fn shards(&self) -> Result<Vec<ShardRow>>;
    async fn managers(&self) -> Result<Vec<ManagerRow>>;
    async fn hosts(&self, manager: Option<ManagerId>, after: Option<&str>, limit: usize) -> Result<Page<HostRow>>;
    async fn queue(&self) -> Result<QueueRow>;
    fn find_manager(&self, text: &str) -> Result<ManagerId>;
    async fn find_host(&self, text: &str) -> Result<(ManagerId, HostId)>;
    /// The configured name of a manager.
    fn manager_name(&self, id: &ManagerId) -> Option<String>;
    /// VMs in each state, as this process's directory has them; nothing if it has none.
    fn vm_counts(&self) -> Vec<(VmState, usize)>;
    /// How often this process found that the bus had lost what it had acknowledged.
    fn bus_losses(&self) -> u64;
    /// How long the bus has given this process no answer.
    fn bus_silent(&self) -> Duration;
    /// Whether a cell is one of this process.
    fn is_here(&self, cell: &CellId) -> bool;
    /// Of how many shards this process's directory is behind what their owners have written.
    fn shards_behind(&self) -> usize;
    /// How many shards this process's cells should own and cannot, being of an older build.
    fn shards_unreadable(&self) -> usize;

    // ── operators ──
    async fn drain_cell(&self, cell: &CellId, by: Operator) -> Result<()>;
    async fn cordon_manager(&self, manager: ManagerId, cordoned: bool, by: Operator) -> Result<()>;
    async fn cordon_host(&self, manager: ManagerId, host: HostId, cordoned: bool, by: Operator) -> Result<()>;
    async fn find_host_to_fence(&self, text: &str) -> Result<(ManagerId, HostId)>;
    async fn fence_host(&self, manager: ManagerId, host: HostId, by: Operator) -> Result<Option<Fenced>>;
    async fn unfence_host(&self, manager: ManagerId, host: HostId, by: Operator) -> Result<()>;
    async fn set_manager_mode(&self, manager: ManagerId, mode: ManagerMode, by: Operator) -> Result<()>;
    async fn decommission_plan(&self, manager: ManagerId, release: bool) -> Result<Decommission>;
    async fn decommission(
        &self,
        manager: ManagerId,
        release: bool,
        round: &str,
        by: Operator,
    ) -> Result<Decommissioning>;
    async fn evacuate(&self, manager: ManagerId, host: Option<HostId>, round: &str, by: Operator)
    -> Result<Evacuation>;
    async fn note_change(&self, by: Operator, what: String) -> Result<()>;
    async fn changes(&self, limit: usize) -> Result<Vec<Change>>;

    // ── the emergency stop ──
    fn pauses(&self) -> Result<PausesShown>;
    async fn pause(&self, scope: Scope, reason: String, by: Operator) -> Result<PausesShown>;
    async fn resume(&self, scope: Scope, by: Operator) -> Result<PausesShown>;

    // ── how many cells ──
    async fn scale(&self) -> Result<ScaleShown>;
    async fn set_scale(&self, change: &ScaleChange, by: Operator) -> Result<ScaleShown>;
    /// [`crate::Gateway::scale`].
    async fn scale_decisions(&self, limit: usize, before: Option<u64>) -> Result<Scale>;

    // ── how long room lasts ──
    async fn forecast(&self) -> Result<Vec<ForecastRow>>;

    // ── which builds take part ──
    async fn upgrade(&self) -> Result<Upgrade>;
    async fn finalize_upgrade(&self, by: Operator) -> Result<Upgrade>;

    // ── adoption ──
    async fn adopt_plan(&self, query: &AdoptQuery) -> Result<AdoptPlan>;
    async fn adopt(&self, query: &AdoptQuery, confirm: usize, by: Operator) -> Result<(Uuid, AdoptPlan)>;
    async fn adopting(&self, id: Uuid) -> Result<Adopting>;

    // ── dead letters, audit ──
    async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Page<Arc<DeadLetter>>>;
    async fn dead_letter(&self, id: Uuid) -> Result<Arc<DeadLetter>>;
    async fn retry_dead_letter(&self, id: Uuid, by: Operator) -> Result<()>;
    async fn drop_dead_letter(&self, id: Uuid, by: Operator) -> Result<()>;
    async fn audit_start(&self, by: Operator) -> Result<Uuid>;
    fn audit(&self, id: Uuid) -> Result<Audit>;
    fn audit_repair_plan(&self, id: Uuid, how: &Repairs) -> Result<(Audit, RepairPlan)>;
    async fn audit_repair(&self, id: Uuid, how: &Repairs, by: Operator) -> Result<Audit>;
    async fn audit_accept(&self, id: Uuid, by: Operator) -> Result<Audit>;

    // ── events, health ──
    /// A reader of events after this place; `None`: only those that come from now on.
    async fn events(&self, after: Option<Seq>) -> Result<Box<dyn EventReader>>;
    fn ready(&self) -> Result<()>;
}
