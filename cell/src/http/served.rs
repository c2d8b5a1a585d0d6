//! The API over the real thing: the gateway of a process, and the directory and bus beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::contract::EventReader;
use cellbus_bus::ids::{CellId, HostId, JobId, ManagerId, ManagerName, Seq, TenantId, VmId, VmName};
use cellbus_bus::job::Job;
use cellbus_directory::pause::Scope;
use cellbus_directory::record::{DeadLetter, Operator, ParkedDecision};
use cellbus_directory::replica::{JobFilter, VmFilter};
use cellbus_directory::scale::Settings;
use cellbus_directory::{JobRow, ManagerMode, VmState, VmSummary};
use cellbus_workflows::{Change, JobStatus, Scale};
use uuid::Uuid;

use super::api::{Api, JobQuery, Spot, VmQuery};
use crate::Gateway;
use crate::gateway::{
    AdoptPlan, AdoptQuery, Adopting, Audit, CellRow, Decommission, Decommissioning, DryRun, Evacuation, Explained,
    Fenced, ForecastRow, HostRow, Live, Located, ManagerRow, Page, PausesShown, QueueRow, RepairPlan, Repairs, Result,
    ScaleChange, ScaleShown, ShardRow, Submitted, Upgrade, VmRow,
};

/// What the HTTP API of a process stands on.
#[derive(Clone)]
pub struct Served {
    gateway: Gateway,
    /// Whether the directory has been complete once. From then on lists are answered whatever
    /// becomes of cells: what is in the directory is true as of each row's time.
    complete: Arc<AtomicBool>,
    /// How many cells there are to be until an operator says something else.
    scale: Arc<Settings>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Served")
    }
}

impl Served {
    /// Over the gateway of a process.
    #[must_use]
    pub fn new(gateway: Gateway) -> Self {
        let scale = Arc::new(crate::config::scale::Scale::default().settings);
        Self { gateway, complete: Arc::new(AtomicBool::new(false)), scale }
    }
    /// With what is configured of the cluster's size.
    #[must_use]
    pub fn scaled(self, configured: Settings) -> Self {
        Self { scale: Arc::new(configured), ..self }
    }

    /// An error until the directory has been complete once: a list must not lack what is there.
    fn listing(&self) -> Result<()> {
        if !self.complete.load(Ordering::Relaxed) {
            self.gateway.ready()?;
            self.complete.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[async_trait]
impl Api for Served {
    async fn submit(&self, jobs: Vec<Arc<Job>>) -> Result<Vec<Submitted>> {
        self.gateway.submit(jobs).await
    }
    async fn job(&self, id: JobId) -> Result<JobStatus> {
        self.gateway.job(id).await
    }
    async fn wait_jobs(&self, ids: &[JobId], limit: Duration) -> Result<Vec<Option<JobStatus>>> {
        self.gateway.wait_jobs(ids, limit).await
    }
    async fn job_vms(&self, id: JobId, from: u32, limit: usize) -> Result<(Vec<VmSummary>, Option<u32>)> {
        self.gateway.job_vms(id, from, limit).await
    }
    async fn cancel_job(&self, id: JobId, by: Operator) -> Result<JobStatus> {
        self.gateway.cancel_job(id, None, by).await
    }
    async fn unpark_job(&self, id: JobId, decision: ParkedDecision, by: Operator) -> Result<JobStatus> {
        self.gateway.unpark_job(id, decision, by).await
    }
    async fn jobs(&self, query: &JobQuery, limit: usize, after: Option<&str>) -> Result<Page<JobRow>> {
        self.listing()?;
        let filter = JobFilter { tenant: query.tenant.clone(), state: query.state, open: false, kind: query.kind };
        self.gateway.jobs(filter, limit, after).await
    }
    fn dry_run(&self, job: &Job) -> Result<DryRun> {
        self.gateway.dry_run(job)
    }

    async fn vm(&self, id: VmId) -> Result<VmRow> {
        self.gateway.vm(id).await
    }
    async fn vms(&self, query: &VmQuery, limit: usize, after: Option<&str>) -> Result<Page<VmRow>> {
        self.listing()?;
        let filter = VmFilter {
            tenant: query.tenant.clone(),
            state: query.state,
            manager: query.manager,
            host: query.host.clone(),
            labels: query.labels.clone(),
        };
        self.gateway.vms(&filter, limit, after).await
    }
    async fn by_name(&self, tenant: &TenantId, name: &VmName) -> Result<Vec<VmRow>> {
        self.listing()?;
        self.gateway.by_name(tenant, name).await
    }
    fn locate_known(&self, ids: &[VmId], each: &mut dyn FnMut(usize, &Spot<'_>)) -> Result<()> {
        let Some(replica) = self.gateway.replica() else { return Ok(()) };
        let process = self.gateway.process();
        for (index, id) in ids.iter().enumerate() {
            let Some(location) = replica.locate(*id) else { continue };
            // A tombstone is nowhere, whatever it was on last.
            let place = location.place().filter(|_| location.state() != VmState::Deleted);
            let manager = place.map(|place| place.manager);
            let route = match &manager {
                Some(manager) => process.routes.of_manager(manager),
                None => process.routes.of(location.shard()),
            };
            each(
                index,
                &Spot {
                    vm: *id,
                    manager,
                    manager_name: manager.and_then(|id| process.names().name(&id)).map(ManagerName::as_str),
                    host: place.and_then(|place| place.host.as_ref()).map(HostId::as_str),
                    shard: location.shard(),
                    cell: route.as_ref().map(|route| route.peer.cell.as_str()),
                    address: route.as_ref().map(|route| route.peer.address.as_str()),
                    epoch: route.as_ref().map(|route| route.epoch).unwrap_or_default(),
                    as_of: location.as_of(),
                },
            );
        }
        Ok(())
    }
    async fn tenants_of(&self, ids: &[VmId]) -> Vec<Option<TenantId>> {
        let known = self.gateway.directory().vms(ids.to_vec()).await;
        let known = known.unwrap_or_else(|_| vec![None; ids.len()]);
        known.into_iter().map(|vm| vm.map(|vm| vm.tenant)).collect()
    }
    async fn locate(&self, id: VmId) -> Result<Located> {
        self.gateway.locate(id).await
    }
    async fn locate_many(&self, ids: &[VmId]) -> Result<Vec<Option<Located>>> {
        self.gateway.locate_many(ids).await
    }
    async fn live(&self, id: VmId) -> Result<Live> {
        self.gateway.live(id).await
    }
    async fn explain_vm(&self, id: VmId) -> Result<Explained> {
        self.gateway.explain_vm(id).await
    }
    async fn explain_job(&self, id: JobId) -> Result<Explained> {
        self.gateway.explain_job(id).await
    }

    async fn cells(&self) -> Result<Vec<CellRow>> {
        self.gateway.cells().await
    }
    async fn shards(&self) -> Result<Vec<ShardRow>> {
        self.gateway.shards().await
    }
    async fn managers(&self) -> Result<Vec<ManagerRow>> {
        self.gateway.managers().await
    }
    async fn hosts(&self, manager: Option<ManagerId>, after: Option<&str>, limit: usize) -> Result<Page<HostRow>> {
        self.gateway.hosts(manager, after, limit).await
    }
    async fn queue(&self) -> Result<QueueRow> {
        self.gateway.queue().await
    }
    fn find_manager(&self, text: &str) -> Result<ManagerId> {
        self.gateway.find_manager(text)
    }
    async fn find_host(&self, text: &str) -> Result<(ManagerId, HostId)> {
        self.gateway.find_host(text).await
    }
    fn manager_name(&self, id: &ManagerId) -> Option<String> {
        self.gateway.manager_name(id)
    }
    fn bus_losses(&self) -> u64 {
        self.gateway.directory().losses()
    }
    fn bus_silent(&self) -> Duration {
        self.gateway.process().bus_silent()
    }
    fn is_here(&self, cell: &CellId) -> bool {
        self.gateway.process().local().has(cell)
    }
    fn shards_behind(&self) -> usize {
        self.gateway.process().shards_behind()
    }
    fn shards_unreadable(&self) -> usize {
        self.gateway.process().shards_unreadable()
    }
    fn vm_counts(&self) -> Vec<(VmState, usize)> {
        self.gateway.replica().map(|replica| replica.stats().vms).unwrap_or_default()
    }

    async fn drain_cell(&self, cell: &CellId, by: Operator) -> Result<()> {
        self.gateway.drain_cell(cell, by).await
    }
    async fn cordon_manager(&self, manager: ManagerId, cordoned: bool, by: Operator) -> Result<()> {
        self.gateway.cordon_manager(manager, cordoned, by).await
    }
    async fn cordon_host(&self, manager: ManagerId, host: HostId, cordoned: bool, by: Operator) -> Result<()> {
        self.gateway.cordon_host(manager, host, cordoned, by).await
    }
    async fn find_host_to_fence(&self, text: &str) -> Result<(ManagerId, HostId)> {
        self.gateway.find_host_to_fence(text).await
    }
    async fn fence_host(&self, manager: ManagerId, host: HostId, by: Operator) -> Result<Option<Fenced>> {
        self.gateway.fence_host(manager, host, by).await
    }
    async fn unfence_host(&self, manager: ManagerId, host: HostId, by: Operator) -> Result<()> {
        self.gateway.unfence_host(manager, host, by).await
    }
    async fn set_manager_mode(&self, manager: ManagerId, mode: ManagerMode, by: Operator) -> Result<()> {
        self.gateway.set_manager_mode(manager, mode, by).await
    }
    async fn decommission_plan(&self, manager: ManagerId, release: bool) -> Result<Decommission> {
        self.gateway.decommission_plan(manager, release).await
    }
    async fn decommission(
        &self,
        manager: ManagerId,
        release: bool,
        round: &str,
        by: Operator,
    ) -> Result<Decommissioning> {
        self.gateway.decommission(manager, release, round, by).await
    }
    async fn forecast(&self) -> Result<Vec<ForecastRow>> {
        self.gateway.forecast().await
    }
    fn pauses(&self) -> Result<PausesShown> {
        self.gateway.pauses()
    }
    async fn pause(&self, scope: Scope, reason: String, by: Operator) -> Result<PausesShown> {
        self.gateway.pause(scope, reason, by).await
    }
    async fn resume(&self, scope: Scope, by: Operator) -> Result<PausesShown> {
        self.gateway.resume(scope, by).await
    }
    async fn evacuate(
        &self,
        manager: ManagerId,
        host: Option<HostId>,
        round: &str,
        by: Operator,
    ) -> Result<Evacuation> {
        self.gateway.evacuate(manager, host, round, by).await
    }
    async fn note_change(&self, by: Operator, what: String) -> Result<()> {
        self.gateway.note_change(by, what).await
    }
    async fn changes(&self, limit: usize) -> Result<Vec<Change>> {
        self.gateway.changes(limit).await
    }

    async fn upgrade(&self) -> Result<Upgrade> {
        self.gateway.upgrade().await
    }
    async fn finalize_upgrade(&self, by: Operator) -> Result<Upgrade> {
        self.gateway.finalize_upgrade(by).await
    }

    async fn scale(&self) -> Result<ScaleShown> {
        self.gateway.scale_shown(&self.scale).await
    }
    async fn set_scale(&self, change: &ScaleChange, by: Operator) -> Result<ScaleShown> {
        self.gateway.set_scale(&self.scale, change, by).await
    }
    async fn scale_decisions(&self, limit: usize, before: Option<u64>) -> Result<Scale> {
        self.gateway.scale(limit, before).await
    }

    async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Page<Arc<DeadLetter>>> {
        self.gateway.dead_letters(after, limit).await
    }
    async fn dead_letter(&self, id: Uuid) -> Result<Arc<DeadLetter>> {
        self.gateway.dead_letter(id).await
    }
    async fn retry_dead_letter(&self, id: Uuid, by: Operator) -> Result<()> {
        self.gateway.retry_dead_letter(id, by).await
    }
    async fn drop_dead_letter(&self, id: Uuid, by: Operator) -> Result<()> {
        self.gateway.drop_dead_letter(id, by).await
    }
    async fn adopt_plan(&self, query: &AdoptQuery) -> Result<AdoptPlan> {
        self.gateway.adopt_plan(query).await
    }
    async fn adopt(&self, query: &AdoptQuery, confirm: usize, by: Operator) -> Result<(Uuid, AdoptPlan)> {
        self.gateway.adopt(query, confirm, by).await
    }
    async fn adopting(&self, id: Uuid) -> Result<Adopting> {
        self.gateway.adopting(id).await
    }
    async fn audit_start(&self, by: Operator) -> Result<Uuid> {
        self.gateway.audit_start(by).await
    }
    fn audit(&self, id: Uuid) -> Result<Audit> {
        self.gateway.audit(id)
    }
    fn audit_repair_plan(&self, id: Uuid, how: &Repairs) -> Result<(Audit, RepairPlan)> {
        self.gateway.audit_repair_plan(id, how)
    }
    async fn audit_repair(&self, id: Uuid, how: &Repairs, by: Operator) -> Result<Audit> {
        self.gateway.audit_repair(id, how, by).await
    }
    async fn audit_accept(&self, id: Uuid, by: Operator) -> Result<Audit> {
        self.gateway.audit_accept(id, by).await
    }

    async fn events(&self, after: Option<Seq>) -> Result<Box<dyn EventReader>> {
        Ok(self.gateway.process().bus.read_events(after).await?)
    }
    fn ready(&self) -> Result<()> {
        self.gateway.ready()
    }
}
