//! A process that remembers jobs and knows a few VMs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use cellbus_bus::contract::{Event, EventReader, MemberState, PlacedEvent};
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{CellId, Epoch, HostId, JobId, ManagerId, Seq, ShardCount, ShardId, TenantId, VmId, VmName};
use cellbus_bus::job::{Digest, Job, Size};
use cellbus_directory::pause::{Paused, Scope};
use cellbus_directory::record::{DeadLetter, Operator, ParkedDecision};
use cellbus_directory::{JobRow, JobState, ManagerMode, Outcome, Pauses, Record, VmState, VmSummary};
use cellbus_workflows::{Change, Health, JobStatus, Scale, ScaleSet};
use tokio::sync::Notify;
use uuid::Uuid;

use super::*;
use crate::gateway::{
    ADOPT_MAX, AdoptPlan, AdoptQuery, Adopting, Audit, CellRow, Decommission, Decommissioning, DryRun, Error,
    Evacuation, Explained, Fenced, Finding, ForecastRow, FreeOf, HostRow, Live, Located, ManagerRow, Orphans, Page,
    PausesShown, QueueRow, RepairPlan, Repairs, Result, RoomOf, ScaleChange, ScaleShown, ShardRow, ShardState, Stays,
    Submitted, Upgrade, VmRow, What,
};

#[derive(Default)]
pub(super) struct Fake {
    pub(super) jobs: Mutex<BTreeMap<JobId, (Digest, JobStatus)>>,
    pub(super) full: AtomicBool,
    pub(super) not_ready: AtomicBool,
    /// Jobs end as soon as they are waited for.
    pub(super) ends: AtomicBool,
    pub(super) submitted: AtomicUsize,
    pub(super) changes: Mutex<Vec<Change>>,
    /// What was last asked for of VMs.
    pub(super) asked_vms: Mutex<Option<VmQuery>>,
    pub(super) events: Arc<Events>,
    pub(super) scale: Mutex<Scale>,
    pub(super) pauses: Mutex<Pauses>,
}

pub(super) fn manager() -> ManagerId {
    ManagerId::derive("vc-1")
}
/// Known to the directory.
pub(super) fn known(n: u32) -> VmId {
    JobId::derive("acme", "/known", "1").vm(n)
}
/// Known to its home only.
pub(super) fn late() -> VmId {
    JobId::derive("acme", "/late", "1").vm(0)
}
fn is_known(id: VmId) -> bool {
    (0..100).any(|n| known(n) == id)
}
fn not_found(what: What, id: impl ToString) -> Error {
    Error::NotFound { what, id: id.to_string() }
}

impl Fake {
    fn located(id: VmId) -> Located {
        Located {
            vm: id,
            manager: Some(manager()),
            manager_name: Some("vc-1".into()),
            host: Some("host-7".parse().unwrap()),
            shard: id.shard(ShardCount::DEFAULT),
            cell: Some("cell-1".parse().unwrap()),
            address: Some("http://10.0.0.1:7070/\"x\"".into()),
            epoch: Epoch(3),
            as_of: WallMs(1_795_000_000_123),
        }
    }
    fn row(id: VmId) -> VmRow {
        VmRow {
            id,
            tenant: "acme".parse().unwrap(),
            name: "web-0".parse().unwrap(),
            state: VmState::Running,
            manager: Some(manager()),
            manager_name: Some("vc-1".into()),
            host: Some("host-7".parse().unwrap()),
            size: Size { vcpus: 1, memory_mib: 64, disk_gib: 1 },
            labels: BTreeMap::new(),
            shard: id.shard(ShardCount::DEFAULT),
            as_of: WallMs(1_795_000_000_123),
        }
    }
    fn ready_or(&self) -> Result<()> {
        if self.not_ready.load(Ordering::Relaxed) {
            return Err(Error::NotReady { reason: "3 shards are still opening".into() });
        }
        Ok(())
    }
    fn note(&self, by: &Operator, what: &str) {
        self.changes.lock().unwrap().push(Change { at: WallMs(1), by: by.clone(), what: what.to_owned() });
    }
    pub(super) fn event(&self, seq: u64, tenant: &str, body: &str) {
        let event = Event { id: seq.to_string(), tenant: tenant.parse().unwrap(), body: body.to_owned().into() };
        self.events.list.lock().unwrap().push(PlacedEvent { seq: Seq(seq), event });
        self.events.more.notify_waiters();
    }
}

#[derive(Default)]
pub(super) struct Events {
    list: Mutex<Vec<PlacedEvent>>,
    more: Notify,
}

struct Reader {
    events: Arc<Events>,
    after: Seq,
}
#[async_trait]
impl EventReader for Reader {
    async fn next(&mut self, max: usize) -> cellbus_bus::Result<Vec<PlacedEvent>> {
        loop {
            let more = self.events.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            let found: Vec<PlacedEvent> =
                self.events.list.lock().unwrap().iter().filter(|e| e.seq > self.after).take(max).cloned().collect();
            if let Some(last) = found.last() {
                self.after = last.seq;
                return Ok(found);
            }
            more.await;
        }
    }
}

#[async_trait]
impl Api for Fake {
    async fn submit(&self, jobs: Vec<Arc<Job>>) -> Result<Vec<Submitted>> {
        if self.full.load(Ordering::Relaxed) {
            return Err(Error::Full { reason: "the disk has 5 MiB left; make room".into() });
        }
        self.submitted.fetch_add(jobs.len(), Ordering::Relaxed);
        let mut known = self.jobs.lock().unwrap();
        let decided = jobs.into_iter().map(|job| match known.get(&job.id) {
            Some((digest, _)) if *digest != job.digest => Submitted::Conflict { job: job.id },
            Some((_, status)) => Submitted::Accepted { job: job.id, state: status.row.state },
            None => {
                let status = JobStatus {
                    row: JobRow::accepted(&job, WallMs(5)),
                    digest: job.digest,
                    ended_seq: None,
                    vms: Vec::new(),
                    vms_ended: 0,
                    waits_for: String::new(),
                    extensions: job.extensions.clone(),
                };
                known.insert(job.id, (job.digest, status));
                Submitted::Accepted { job: job.id, state: JobState::Accepted }
            }
        });
        Ok(decided.collect())
    }
    async fn job(&self, id: JobId) -> Result<JobStatus> {
        self.ready_or()?;
        let jobs = self.jobs.lock().unwrap();
        jobs.get(&id).map(|(_, status)| status.clone()).ok_or_else(|| not_found(What::Job, id))
    }
    async fn wait_jobs(&self, ids: &[JobId], _: Duration) -> Result<Vec<Option<JobStatus>>> {
        let mut jobs = self.jobs.lock().unwrap();
        let ends = self.ends.load(Ordering::Relaxed);
        let waited = ids.iter().map(|id| {
            let (_, status) = jobs.get_mut(id)?;
            if ends {
                status.row.ended(&Outcome::Succeeded, WallMs(9));
            }
            Some(status.clone())
        });
        Ok(waited.collect())
    }
    async fn job_vms(&self, id: JobId, from: u32, limit: usize) -> Result<(Vec<VmSummary>, Option<u32>)> {
        self.job(id).await?;
        let end = (from + u32::try_from(limit).unwrap()).min(10);
        let vms = (from..end).map(|n| VmSummary {
            id: id.vm(n),
            name: format!("web-{n}").parse().unwrap(),
            home: None,
            state: VmState::Creating,
            seq: Seq(1),
        });
        Ok((vms.collect(), (end < 10).then_some(end)))
    }
    async fn cancel_job(&self, id: JobId, by: Operator) -> Result<JobStatus> {
        let status = self.job(id).await?;
        if status.row.state.ended() {
            return Err(Error::Conflict { code: "not_cancellable", message: "the job has ended".into() });
        }
        self.note(&by, "cancel");
        Ok(status)
    }
    async fn unpark_job(&self, id: JobId, _: ParkedDecision, _: Operator) -> Result<JobStatus> {
        self.job(id).await?;
        Err(Error::Conflict { code: "not_parked", message: "no work of the job is parked".into() })
    }
    async fn jobs(&self, query: &JobQuery, limit: usize, after: Option<&str>) -> Result<Page<JobRow>> {
        if after.is_some_and(|text| text != "page-2") {
            return Err(Error::Invalid {
                code: "invalid_cursor",
                message: "the cursor is not one of this list".into(),
            });
        }
        let jobs = self.jobs.lock().unwrap();
        let rows = jobs.values().map(|(_, status)| status.row.clone());
        let rows = rows.filter(|row| query.tenant.as_ref().is_none_or(|t| *t == row.tenant));
        Ok(Page { items: rows.take(limit).collect(), next: Some("page-2".into()) })
    }
    fn dry_run(&self, _: &Job) -> Result<DryRun> {
        Ok(DryRun {
            managers: vec![Some(manager()), None],
            looked_at: 2,
            ruled_out: BTreeMap::new(),
            detail: "room".into(),
        })
    }

    async fn vm(&self, id: VmId) -> Result<VmRow> {
        self.ready_or()?;
        if is_known(id) { Ok(Self::row(id)) } else { Err(not_found(What::Vm, id)) }
    }
    async fn vms(&self, query: &VmQuery, limit: usize, _: Option<&str>) -> Result<Page<VmRow>> {
        *self.asked_vms.lock().unwrap() = Some(query.clone());
        self.ready_or()?;
        let all = (0..u32::try_from(limit).unwrap().min(3)).map(|n| Self::row(known(n)));
        let shown = query.labels.is_empty() && query.state.is_none_or(|s| s == VmState::Running);
        Ok(Page { items: all.filter(|_| shown).collect(), next: None })
    }
    async fn by_name(&self, _: &TenantId, name: &VmName) -> Result<Vec<VmRow>> {
        Ok(if name.as_str() == "web-0" { vec![Self::row(known(0))] } else { Vec::new() })
    }
    fn locate_known(&self, ids: &[VmId], each: &mut dyn FnMut(usize, &Spot<'_>)) -> Result<()> {
        self.ready_or()?;
        for (index, id) in ids.iter().enumerate() {
            if is_known(*id) {
                each(index, &Spot::of(&Self::located(*id)));
            }
        }
        Ok(())
    }
    async fn tenants_of(&self, ids: &[VmId]) -> Vec<Option<TenantId>> {
        ids.iter().map(|id| is_known(*id).then(|| Self::row(*id).tenant)).collect()
    }
    async fn locate(&self, id: VmId) -> Result<Located> {
        if id == late() { Ok(Self::located(id)) } else { Err(not_found(What::Vm, id)) }
    }
    async fn locate_many(&self, ids: &[VmId]) -> Result<Vec<Option<Located>>> {
        Ok(ids.iter().map(|id| (*id == late()).then(|| Self::located(*id))).collect())
    }
    async fn live(&self, id: VmId) -> Result<Live> {
        if id == known(1) {
            return Err(Error::ManagerAway { reason: "vc-1 has not answered for 10 s".into() });
        }
        Ok(Live { vm: id, manager: manager(), held: None, as_of: WallMs(7) })
    }
    async fn explain_vm(&self, id: VmId) -> Result<Explained> {
        Err(not_found(What::Vm, id))
    }
    async fn explain_job(&self, id: JobId) -> Result<Explained> {
        let job = self.job(id).await?;
        Ok(Explained {
            shard: id.shard(ShardCount::DEFAULT),
            owner: Some("cell-1".parse().unwrap()),
            epoch: Epoch(2),
            job: Some(job),
            vm: None,
        })
    }

    async fn cells(&self) -> Result<Vec<CellRow>> {
        Ok(vec![CellRow {
            id: "cell-1".parse().unwrap(),
            address: "local:cell-1".into(),
            state: MemberState::Active,
            joined_at: WallMs(0),
            shards: 256,
            managers: 1,
            running: 0,
            waiting: 0,
            reachable: true,
        }])
    }
    async fn shards(&self) -> Result<Vec<ShardRow>> {
        Ok(vec![ShardRow {
            shard: ShardId::new(7, ShardCount::DEFAULT).unwrap(),
            owner: None,
            epoch: Epoch(1),
            state: ShardState::Failed { reason: "damaged".into(), attempts: 3 },
            jobs_read: Seq(1),
            control_read: Seq(2),
            jobs_unread: 3,
            control_unread: 4,
            log_end: Seq(5),
            tail_bytes: 6,
            vms: 7,
            jobs_open: 8,
            waiting: 9,
            running: 10,
            parked: 11,
        }])
    }
    async fn managers(&self) -> Result<Vec<ManagerRow>> {
        let row = |name: &str| ManagerRow {
            id: ManagerId::derive(name),
            name: name.into(),
            cell: None,
            epoch: Epoch(1),
            health: Health::Healthy,
            circuit: None,
            detail: String::new(),
            cordoned: false,
            mode: ManagerMode::Enabled,
            paused: Some(Paused::Destructive),
            paused_why: "destructive work paused by ada".into(),
            hosts: 1,
            hosts_open: 1,
            vms: 1,
            foreign_vms: 0,
            irregular_vms: 1,
            irregular_why: "2 VMs have the id f44dec3f-0dad-599c-bfc4-bbe000698666".into(),
            running: BTreeMap::from([("create".into(), 2), ("power".into(), 1)]),
            waiting: BTreeMap::new(),
            vcpus: FreeOf::default(),
            memory_mib: FreeOf::default(),
            disk_gib: FreeOf::default(),
            as_of: WallMs(0),
        };
        Ok(vec![row("vc-1"), row("vc-2"), row("vc-3")])
    }
    async fn hosts(&self, manager: Option<ManagerId>, after: Option<&str>, limit: usize) -> Result<Page<HostRow>> {
        assert!(after.is_none_or(|a| a == "n"));
        let row = HostRow {
            id: "host-7".parse().unwrap(),
            manager: manager.unwrap_or_else(self::manager),
            manager_name: "vc-1".into(),
            labels: BTreeMap::new(),
            usable: true,
            cordoned: false,
            fenced: false,
            vms: 0,
            vcpus: FreeOf::default(),
            memory_mib: FreeOf::default(),
            disk_gib: FreeOf::default(),
            datastores: Vec::new(),
        };
        Ok(Page { items: vec![row; limit.min(1)], next: Some("n".into()) })
    }
    async fn queue(&self) -> Result<QueueRow> {
        Ok(QueueRow {
            unread: 3,
            waiting_by_tenant: BTreeMap::from([("acme".parse().unwrap(), 2)]),
            ..QueueRow::default()
        })
    }
    fn find_manager(&self, text: &str) -> Result<ManagerId> {
        if text == "vc-1" || text == manager().to_string() {
            Ok(manager())
        } else {
            Err(not_found(What::Manager, text))
        }
    }
    async fn find_host(&self, text: &str) -> Result<(ManagerId, HostId)> {
        match text {
            "vc-1/host-7" => Ok((manager(), "host-7".parse().unwrap())),
            "host-1" => Err(Error::Ambiguous { what: What::Host, name: text.into() }),
            other => Err(not_found(What::Host, other)),
        }
    }
    fn manager_name(&self, id: &ManagerId) -> Option<String> {
        (*id == manager()).then(|| "vc-1".to_owned())
    }
    fn bus_losses(&self) -> u64 {
        2
    }
    fn bus_silent(&self) -> Duration {
        Duration::from_millis(1_500)
    }
    fn is_here(&self, cell: &CellId) -> bool {
        cell.as_str() == "cell-1"
    }
    fn shards_behind(&self) -> usize {
        4
    }
    fn shards_unreadable(&self) -> usize {
        0
    }
    fn vm_counts(&self) -> Vec<(VmState, usize)> {
        vec![(VmState::Running, 3)]
    }

    async fn drain_cell(&self, cell: &CellId, by: Operator) -> Result<()> {
        if cell.as_str() != "cell-1" {
            return Err(not_found(What::Cell, cell));
        }
        self.note(&by, "drain");
        Ok(())
    }
    async fn cordon_manager(&self, _: ManagerId, cordoned: bool, by: Operator) -> Result<()> {
        self.note(&by, if cordoned { "cordon" } else { "uncordon" });
        Ok(())
    }
    async fn cordon_host(&self, _: ManagerId, host: HostId, cordoned: bool, by: Operator) -> Result<()> {
        self.note(&by, &format!("{host} {cordoned}"));
        Ok(())
    }
    async fn evacuate(&self, _: ManagerId, _: Option<HostId>, round: &str, by: Operator) -> Result<Evacuation> {
        self.note(&by, &format!("evacuate {round}"));
        let stays =
            Stays { vm: JobId::derive("a", "b", "c").vm(0), name: "web".parse().unwrap(), why: "no room".into() };
        let jobs = vec![JobId::derive("a", "b", "c")];
        Ok(Evacuation { vms: 4, jobs, jobs_total: 3, stays: vec![stays], stays_total: 1 })
    }
    async fn find_host_to_fence(&self, text: &str) -> Result<(ManagerId, HostId)> {
        self.find_host(text).await
    }
    async fn fence_host(&self, _: ManagerId, host: HostId, by: Operator) -> Result<Option<Fenced>> {
        self.note(&by, &format!("{host} is dead"));
        Ok(Some(Fenced { vms: 5, restarts: 2 }))
    }
    async fn unfence_host(&self, _: ManagerId, host: HostId, by: Operator) -> Result<()> {
        self.note(&by, &format!("{host} is back"));
        Ok(())
    }
    async fn set_manager_mode(&self, _: ManagerId, mode: ManagerMode, by: Operator) -> Result<()> {
        self.note(&by, mode.as_str());
        Ok(())
    }
    async fn decommission_plan(&self, manager: ManagerId, release: bool) -> Result<Decommission> {
        let stays =
            Stays { vm: JobId::derive("a", "b", "c").vm(0), name: "web".parse().unwrap(), why: "no room".into() };
        Ok(Decommission {
            manager,
            mode: Some(ManagerMode::Leaving),
            vms: 3,
            under_way: 0,
            moves: if release { BTreeMap::new() } else { BTreeMap::from([(manager, 2)]) },
            releases: if release { 3 } else { 0 },
            stays: if release { Vec::new() } else { vec![stays] },
            stays_total: u64::from(!release),
            unknown_there: 1,
            may_leave: false,
            hindered_by: vec!["3 VMs are listed there".into()],
        })
    }
    async fn decommission(
        &self,
        manager: ManagerId,
        release: bool,
        round: &str,
        by: Operator,
    ) -> Result<Decommissioning> {
        self.note(&by, &format!("decommission {round}"));
        let plan = self.decommission_plan(manager, release).await?;
        Ok(Decommissioning { plan, jobs: vec![JobId::derive("a", "b", "c")], jobs_total: 2 })
    }
    async fn forecast(&self) -> Result<Vec<ForecastRow>> {
        let (at, hour) = (1_700_000_000_000, 3_600_000);
        let points: Vec<_> = (0..48).map(|n| (WallMs(at + n * hour), 1_000 - 10 * n)).collect();
        let row = |of, points: &[(WallMs, u64)]| ForecastRow {
            of,
            resource: "vcpus",
            total: 2_000,
            forecast: cellbus_workflows::forecast::forecast(points),
        };
        Ok(vec![row(RoomOf::Cluster, &points), row(RoomOf::Manager(manager()), &points[40..])])
    }
    fn pauses(&self) -> Result<PausesShown> {
        Ok(PausesShown { pauses: Arc::new(self.pauses.lock().unwrap().clone()), known_ago: Duration::from_millis(250) })
    }
    async fn pause(&self, scope: Scope, reason: String, by: Operator) -> Result<PausesShown> {
        if self.not_ready.load(Ordering::Relaxed) {
            return Err(Error::NotConfirmed);
        }
        self.note(&by, &format!("pause {}", scope.in_words(None)));
        self.pauses.lock().unwrap().apply(WallMs(1), &Record::Paused { scope, reason, by });
        self.pauses()
    }
    async fn resume(&self, scope: Scope, by: Operator) -> Result<PausesShown> {
        self.note(&by, &format!("resume {}", scope.in_words(None)));
        self.pauses.lock().unwrap().apply(WallMs(2), &Record::Resumed { scope, by });
        self.pauses()
    }
    async fn note_change(&self, by: Operator, what: String) -> Result<()> {
        self.note(&by, &what);
        Ok(())
    }
    async fn changes(&self, limit: usize) -> Result<Vec<Change>> {
        Ok(self.changes.lock().unwrap().iter().rev().take(limit).cloned().collect())
    }

    async fn upgrade(&self) -> Result<Upgrade> {
        use cellbus_bus::contract::{ClusterRecord, Member, MemberState, Role};
        use cellbus_bus::format::{Build, Formats};
        let record = ClusterRecord {
            cluster_id: Uuid::nil(),
            shards: cellbus_bus::ids::ShardCount::DEFAULT,
            hash_scheme: 1,
            format: 1,
            created_at: WallMs(0),
        };
        let member = |cell: &str, newest| Member {
            cell: cell.parse().unwrap(),
            role: Role::Cell,
            address: format!("http://{cell}"),
            state: MemberState::Active,
            joined_at: WallMs(0),
            beat: 1,
            build: Build { version: format!("0.{newest}.0"), formats: Formats { oldest: 1, newest } },
        };
        Ok(Upgrade::of(&record, vec![member("new", 2), member("old", 1)]))
    }
    async fn finalize_upgrade(&self, _: Operator) -> Result<Upgrade> {
        Err(Error::Conflict { code: "upgrade_hindered", message: "format 2 is not read by old".to_owned() })
    }

    async fn scale(&self) -> Result<ScaleShown> {
        let kept = self.scale.lock().unwrap().newest(1, None);
        let configured = crate::config::scale::Scale::default().settings;
        let settings = kept.set.as_ref().map_or(configured, |set| set.settings.clone());
        Ok(ScaleShown { settings, kept, cells_active: 1, cells_draining: 0 })
    }
    async fn set_scale(&self, change: &ScaleChange, by: Operator) -> Result<ScaleShown> {
        if change.max == Some(99) {
            return Err(Error::Invalid { code: "invalid_scale", message: "max is 99; it may be 1 to 64".into() });
        }
        self.note(&by, "scale");
        let mut settings = self.scale().await?.settings;
        (settings.mode, settings.cells) =
            (change.mode.unwrap_or(settings.mode), change.cells.unwrap_or(settings.cells));
        settings.drain_target = change.drain_target.unwrap_or(settings.drain_target);
        self.scale.lock().unwrap().set = Some(ScaleSet { settings, at: WallMs(0), by });
        self.scale().await
    }
    async fn scale_decisions(&self, limit: usize, before: Option<u64>) -> Result<Scale> {
        Ok(self.scale.lock().unwrap().newest(limit, before))
    }

    async fn dead_letters(&self, _: Option<&str>, _: usize) -> Result<Page<Arc<DeadLetter>>> {
        Ok(Page { items: vec![self.dead_letter(Uuid::from_u128(1)).await?], next: None })
    }
    async fn dead_letter(&self, id: Uuid) -> Result<Arc<DeadLetter>> {
        if id != Uuid::from_u128(1) {
            return Err(not_found(What::DeadLetter, id));
        }
        Ok(Arc::new(DeadLetter {
            id,
            at: WallMs(0),
            tenant: None,
            code: "not_json".into(),
            reason: "the body is not JSON".into(),
            from: "ingress".into(),
            original: (&b"\xffabc"[..]).into(),
        }))
    }
    async fn retry_dead_letter(&self, id: Uuid, _: Operator) -> Result<()> {
        self.dead_letter(id).await?;
        Err(Error::Conflict { code: "cannot_retry", message: "it was refused for what it says".into() })
    }
    async fn drop_dead_letter(&self, id: Uuid, _: Operator) -> Result<()> {
        self.dead_letter(id).await.map(|_| ())
    }
    async fn adopt_plan(&self, query: &AdoptQuery) -> Result<AdoptPlan> {
        if query.limit > ADOPT_MAX {
            return Err(Error::Invalid { code: "invalid_adoption", message: "too many".into() });
        }
        let unread = vec![(manager(), "its driver has no adoption".to_owned())];
        Ok(AdoptPlan { left_out: 7, unread, ..AdoptPlan::default() })
    }
    async fn adopt(&self, query: &AdoptQuery, confirm: usize, _: Operator) -> Result<(Uuid, AdoptPlan)> {
        if confirm != 0 {
            return Err(Error::Conflict { code: "count_differs", message: "0 VMs would be adopted".into() });
        }
        Ok((Uuid::from_u128(1), self.adopt_plan(query).await?))
    }
    async fn adopting(&self, id: Uuid) -> Result<Adopting> {
        if id != Uuid::from_u128(1) {
            return Err(not_found(What::Adoption, id));
        }
        Ok(Adopting { id, started_at: WallMs(0), total: 3, adopted: 1, under_way: 1, failed: 1 })
    }
    async fn audit_start(&self, _: Operator) -> Result<Uuid> {
        if self.not_ready.load(Ordering::Relaxed) {
            return Err(Error::TooMany { what: "an audit runs already".into() });
        }
        Ok(Uuid::from_u128(1))
    }
    fn audit(&self, id: Uuid) -> Result<Audit> {
        if id != Uuid::from_u128(1) {
            return Err(not_found(What::Audit, id));
        }
        let finding = Finding { vm: known(0), manager: manager(), kind: "missing".into(), detail: "not held".into() };
        Ok(Audit {
            id,
            started_at: WallMs(0),
            ended_at: Some(WallMs(1)),
            managers_done: 1,
            managers_total: 1,
            unreachable: vec![manager()],
            vms: 5,
            findings_total: 1,
            findings: vec![finding],
            kinds: BTreeMap::from([("missing".into(), 1)]),
            repairs: 0,
        })
    }
    fn audit_repair_plan(&self, id: Uuid, how: &Repairs) -> Result<(Audit, RepairPlan)> {
        let destroyed = u64::from(how.orphans == Orphans::Destroy);
        Ok((self.audit(id)?, RepairPlan { read: 1, destroyed, ..RepairPlan::default() }))
    }
    async fn audit_repair(&self, id: Uuid, how: &Repairs, _: Operator) -> Result<Audit> {
        if how.orphans == Orphans::Destroy && how.confirm != Some(1) {
            return Err(Error::Conflict { code: "count_differs", message: "1 VMs would be destroyed".into() });
        }
        Ok(Audit { repairs: 1, ..self.audit(id)? })
    }
    async fn audit_accept(&self, id: Uuid, _: Operator) -> Result<Audit> {
        self.audit(id)
    }

    async fn events(&self, after: Option<Seq>) -> Result<Box<dyn EventReader>> {
        let last = self.events.list.lock().unwrap().last().map_or(Seq(0), |e| e.seq);
        Ok(Box::new(Reader { events: Arc::clone(&self.events), after: after.unwrap_or(last) }))
    }
    fn ready(&self) -> Result<()> {
        self.ready_or()
    }
}
