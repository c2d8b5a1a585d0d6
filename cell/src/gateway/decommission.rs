//! Managers in and out: one is enabled, only looked at, or decommissioned, which is to say that nothing new
//! is put on it and its VMs are moved away, or released.
//!
//! Nothing is remembered of a decommissioning but that the manager is leaving: what is left to be done is
//! read from the directory and the manager each time, so it may be asked for, or begun again, by anybody.

use std::collections::BTreeMap;
use std::sync::Arc;

use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::ids::{JobId, ManagerId, VmId};
use cellbus_bus::job::Job;
use cellbus_directory::record::Operator;
use cellbus_directory::{ManagerMode, Vm, VmFilter, VmState};
use cellbus_workflows::ControlItem;

use super::elsewhere::Elsewhere;
use super::operators::{LISTED_MAX, PAGE};
use super::{Gateway, Page, Result, Stays};
use crate::directory::Fresh;
use crate::peers::{Request, Response};

/// What is left at a manager, what is to come of it, and whether the manager may leave the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Decommission {
    /// Which manager.
    pub manager: ManagerId,
    /// Whether it is used, as its owner has it; `None`: it has none at the moment.
    pub mode: Option<ManagerMode>,
    /// VMs that the directory lists there.
    pub vms: u64,
    /// Of these, those with a step under way.
    pub under_way: u64,
    /// Of these, those that a migrate would move, by the manager that would be asked now.
    pub moves: BTreeMap<ManagerId, u64>,
    /// Of these, those that would be released.
    pub releases: u64,
    /// Of these, those that stay until somebody does something about them: the first 100.
    pub stays: Vec<Stays>,
    /// How many in all.
    pub stays_total: u64,
    /// VMs that it holds and nobody knows: released, or never made by this cluster.
    pub unknown_there: u64,
    /// Whether nothing of ours is left there, so that it may be taken out of the configuration.
    pub may_leave: bool,
    /// What keeps it, in words.
    pub hindered_by: Vec<String>,
}

/// What has been set in motion.
#[derive(Clone, Debug, PartialEq)]
pub struct Decommissioning {
    /// What there was to do.
    pub plan: Decommission,
    /// The migrate jobs, the first 100.
    pub jobs: Vec<JobId>,
    /// How many in all.
    pub jobs_total: u64,
}

/// What comes of a VM.
enum Fate {
    /// Something is under way on it that ends by itself.
    UnderWay,
    Moves(ManagerId),
    Released,
    Stays(String),
}

/// What a manager holds, against the directory.
#[derive(Default)]
struct Left {
    unknown: u64,
    deleted: u64,
    copies: u64,
    doubles: u64,
}

impl Gateway {
    /// Says whether a manager is used. Durable on return; in force within a second.
    ///
    /// # Errors
    /// [`super::Error::NotFound`]; as [`Gateway::submit`].
    pub async fn set_manager_mode(&self, manager: ManagerId, mode: ManagerMode, by: Operator) -> Result<()> {
        self.known(manager)?;
        let item = ControlItem::SetManagerMode { manager, mode, by };
        self.control(manager.shard(self.inner.process.count), item).await
    }

    /// What is left at a manager and what a decommissioning would do, or has still to do. Changes nothing.
    /// `release`: VMs would be released, not moved.
    ///
    /// # Errors
    /// [`super::Error::NotFound`]; as [`Gateway::vms`].
    pub async fn decommission_plan(&self, manager: ManagerId, release: bool) -> Result<Decommission> {
        self.known(manager)?;
        let mut plan = self.nothing_left(manager).await?;
        let mut elsewhere = self.elsewhere(manager);
        let mut from = None;
        loop {
            let page = self.left_at(manager, from.as_deref()).await?;
            for vm in &page.items {
                plan.count(vm, fate(vm, release, &mut elsewhere));
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        self.may_leave(&mut plan).await?;
        Ok(plan)
    }

    /// Takes the manager out: nothing new is put on it from here on, its VMs are moved by migrate jobs, or
    /// released. It may be asked again at any time, for what is left. Keys of jobs follow from the VMs and
    /// `round`, so that the same round submits nothing twice.
    ///
    /// # Errors
    /// [`super::Error::NotFound`], [`super::Error::Invalid`] `bad_round`; as [`Gateway::submit`].
    pub async fn decommission(
        &self,
        manager: ManagerId,
        release: bool,
        round: &str,
        by: Operator,
    ) -> Result<Decommissioning> {
        self.set_manager_mode(manager, ManagerMode::Leaving, by.clone()).await?;
        let how = if release { "releasing its VMs" } else { "moving its VMs" };
        self.note_change(by, format!("decommission manager {manager}, {how}, round {round}")).await?;
        let process = &self.inner.process;
        let mut plan = self.nothing_left(manager).await?;
        let (mut jobs, mut jobs_total) = (Vec::new(), 0);
        let mut elsewhere = self.elsewhere(manager);
        let mut from = None;
        loop {
            let page = self.left_at(manager, from.as_deref()).await?;
            let (mut migrates, mut moving, mut released) = (Vec::new(), Vec::new(), Vec::new());
            for vm in &page.items {
                let fate = fate(vm, release, &mut elsewhere);
                match &fate {
                    Fate::Moves(to) => {
                        if let Some(job) = self.moved_to(vm, *to, round)? {
                            migrates.push(job);
                            moving.push((vm, *to));
                        }
                    }
                    Fate::Released => {
                        let queue = Queue { shard: vm.id.shard(process.count), kind: QueueKind::Control };
                        released.push((queue, vec![ControlItem::Release { vm: vm.id, manager }.encode()]));
                    }
                    Fate::UnderWay | Fate::Stays(_) => {}
                }
                plan.count(vm, fate);
            }
            if !released.is_empty() {
                process.bus.publish_all(released).await?;
            }
            for (answer, (vm, to)) in self.submit_each(migrates).await?.into_iter().zip(moving) {
                match answer {
                    Ok(job) => {
                        jobs_total += 1;
                        if jobs.len() < LISTED_MAX {
                            jobs.push(job);
                        }
                    }
                    Err(why) => plan.not_taken(vm, to, why),
                }
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        self.may_leave(&mut plan).await?;
        Ok(Decommissioning { plan, jobs, jobs_total })
    }

    fn moved_to(&self, vm: &Vm, to: ManagerId, round: &str) -> Result<Option<Arc<Job>>> {
        let Some(name) = self.manager_name(&to) else { return Ok(None) };
        Ok(Some(Arc::new(self.migrate_job(vm, "manager", &name, round)?)))
    }

    async fn left_at(&self, manager: ManagerId, from: Option<&str>) -> Result<Page<Vm>> {
        let filter = VmFilter { manager: Some(manager), ..VmFilter::default() };
        self.directory().list(&filter, PAGE, from, Fresh::CaughtUp).await
    }

    async fn nothing_left(&self, manager: ManagerId) -> Result<Decommission> {
        let row = self.managers().await?.into_iter().find(|row| row.id == manager);
        Ok(Decommission {
            manager,
            mode: row.filter(|row| row.cell.is_some()).map(|row| row.mode),
            vms: 0,
            under_way: 0,
            moves: BTreeMap::new(),
            releases: 0,
            stays: Vec::new(),
            stays_total: 0,
            unknown_there: 0,
            may_leave: false,
            hindered_by: Vec::new(),
        })
    }

    /// Says of a plan whether its manager may leave the configuration.
    async fn may_leave(&self, plan: &mut Decommission) -> Result<()> {
        let mut hindered_by = Vec::new();
        match plan.mode {
            Some(ManagerMode::Leaving) => {}
            Some(mode) => hindered_by.push(format!("it is {mode}, not leaving: something may be put on it")),
            None => hindered_by.push("nobody fronts it at the moment".to_owned()),
        }
        if plan.vms > 0 {
            hindered_by.push(format!("{} VMs are listed there", plan.vms));
        }
        match self.held_beside(plan.manager).await {
            Ok(left) => {
                plan.unknown_there = left.unknown;
                let mut say = |count: u64, what: &str| {
                    if count > 0 {
                        hindered_by.push(format!("{count} {what}"));
                    }
                };
                say(left.copies, "VMs that have moved still have their source there");
                say(left.deleted, "VMs that were deleted are still there: cellbus audit");
                say(left.doubles, "VMs are there that are listed elsewhere: cellbus audit");
            }
            Err(why) => hindered_by.push(format!("what it still holds cannot be read: {why}")),
        }
        plan.may_leave = hindered_by.is_empty();
        plan.hindered_by = hindered_by;
        Ok(())
    }

    /// What a manager holds that is not listed there.
    async fn held_beside(&self, manager: ManagerId) -> Result<Left, String> {
        let route = self.inner.process.routes.of_manager(&manager).ok_or("nobody fronts it at the moment")?;
        let inventory = match self.ask(&route.peer, Request::Inventory(manager)).await? {
            Response::Inventory(inventory) => inventory,
            Response::Failed { detail } => return Err(detail),
            _ => return Err("its owner is changing".to_owned()),
        };
        let ids: Vec<VmId> = inventory.vms.iter().map(|vm| vm.id).collect();
        let mut left = Left::default();
        for some in ids.chunks(PAGE) {
            let known = self.directory().vms(some.to_vec()).await.map_err(|error| error.to_string())?;
            for vm in known {
                let at =
                    |place: &Option<cellbus_directory::Place>| place.as_ref().is_some_and(|p| p.manager == manager);
                match vm {
                    None => left.unknown += 1,
                    Some(vm) if vm.is_deleted() => left.deleted += 1,
                    Some(vm) if at(&vm.home) => {}
                    Some(vm) if at(&vm.other) => left.copies += 1,
                    Some(_) => left.doubles += 1,
                }
            }
        }
        Ok(left)
    }
}

impl Decommission {
    /// A migrate that was counted is not taken.
    fn not_taken(&mut self, vm: &Vm, to: ManagerId, why: String) {
        if let Some(moves) = self.moves.get_mut(&to) {
            *moves = moves.saturating_sub(1);
        }
        self.vms = self.vms.saturating_sub(1);
        self.count(vm, Fate::Stays(why));
    }

    fn count(&mut self, vm: &Vm, fate: Fate) {
        self.vms += 1;
        match fate {
            Fate::UnderWay => self.under_way += 1,
            Fate::Moves(to) => *self.moves.entry(to).or_default() += 1,
            Fate::Released => self.releases += 1,
            Fate::Stays(why) => {
                self.stays_total += 1;
                if self.stays.len() < LISTED_MAX {
                    self.stays.push(Stays { vm: vm.id, name: vm.name.clone(), why });
                }
            }
        }
    }
}

fn fate(vm: &Vm, release: bool, elsewhere: &mut Elsewhere<'_>) -> Fate {
    if vm.doing.is_some() {
        return Fate::UnderWay;
    }
    match vm.settled {
        VmState::Creating | VmState::Migrating | VmState::Deleting | VmState::Deleted => Fate::UnderWay,
        _ if release => Fate::Released,
        VmState::Lost => Fate::Stays("its manager no longer has it: delete it, or release it".to_owned()),
        VmState::Suspended => {
            Fate::Stays("its memory cannot move between managers: resume, stop or release it".to_owned())
        }
        VmState::Running | VmState::Stopped | VmState::Unknown => match elsewhere.place(vm) {
            Ok(manager) => Fate::Moves(manager),
            Err(why) => Fate::Stays(why),
        },
    }
}
