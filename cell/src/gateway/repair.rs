//! Repairs of what an audit has found.
//!
//! | finding | repair |
//! |---|---|
//! | `missing`, `host`, `power`, `size`, `snapshots` | its home reads the VM again: a ghost is shown as lost, drift as it is |
//! | `moved` | its home looks at both managers, and has the VM at the new one from then on |
//! | `unknown` (an orphan) | left alone, unless asked: adopted, or destroyed |
//! | `duplicate` (a double) | left alone, unless asked: what is not at its home is destroyed |
//!
//! Nothing is done here: a repair is work on the VM's own line, and goes the way of all work, with the
//! fences, pauses and limits of that. An orphan is destroyed by being adopted and then deleted by a
//! job; a double only once its home was seen to have the VM.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::ids::{ManagerId, OpNumber, TenantId, VmId};
use cellbus_bus::job::{Job, Labels};
use cellbus_directory::record::Operator;
use cellbus_directory::work::Task;
use cellbus_directory::{Adoption, Vm, Work};
use cellbus_workflows::ControlItem;
use uuid::Uuid;

use super::adopt::{template, work};
use super::operators::own_job;
use super::{Audit, Error, Finding, Gateway, Result};
use crate::driver::HeldVm;

/// VMs put on their way at once.
const PAGE: usize = 1_000;

/// What is to be done about what a person must decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// About VMs with ids of ours that the directory does not know.
    pub orphans: Orphans,
    /// About what other managers have of VMs that are where the directory says.
    pub doubles: Doubles,
    /// Where something is destroyed: how many VMs.
    pub confirm: Option<u64>,
}

/// What becomes of orphans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Orphans {
    /// Nothing.
    #[default]
    Leave,
    /// They are taken into the directory, as the VMs that their notes say.
    Adopt,
    /// They are removed.
    Destroy,
}

/// What becomes of doubles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doubles {
    /// Nothing.
    #[default]
    Leave,
    /// What is not at the VM's home is removed.
    Destroy,
}

/// What a repair comes to, in VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairPlan {
    /// Read again at their homes.
    pub read: u64,
    /// Adopted.
    pub adopted: u64,
    /// Destroyed, copies of VMs among them.
    pub destroyed: u64,
    /// Left for a person.
    pub left: u64,
}

/// What can be done about an audit's findings.
#[derive(Default)]
pub(super) struct Repairable {
    /// To be read again: the VM, and where something of it was seen, or missed.
    read: BTreeSet<(VmId, ManagerId)>,
    orphans: BTreeMap<VmId, Orphan>,
    /// Whose they are, and the last operation on what the manager has.
    doubles: BTreeMap<(VmId, ManagerId), (TenantId, OpNumber)>,
}

/// A VM with an id of ours that the directory does not know.
struct Orphan {
    manager: ManagerId,
    held: HeldVm,
}

impl Repairable {
    /// A finding about a VM that the directory lists at the manager.
    pub(super) fn listed(&mut self, finding: &Finding) {
        self.read.insert((finding.vm, finding.manager));
    }

    /// A finding about a VM that the manager has, and the directory does not list there.
    pub(super) fn unlisted(&mut self, manager: ManagerId, held: &HeldVm, known: Option<&Vm>) {
        match known {
            Some(vm) if !vm.is_deleted() && vm.home.is_some() => {
                self.doubles.insert((vm.id, manager), (vm.tenant.clone(), held.op));
            }
            // It is being made, or its work goes on.
            Some(vm) if !vm.is_deleted() => {}
            Some(_) | None => {
                // Of several, the one that was changed last; the others are doubles of it the next time.
                let newer = self.orphans.get(&held.id).is_none_or(|orphan| held.op > orphan.held.op);
                if newer {
                    self.orphans.insert(held.id, Orphan { manager, held: held.clone() });
                }
            }
        }
    }

    /// Which VMs have moved: another manager has them, and the one that is known does not. `absent`: VMs
    /// that are not where the directory lists them.
    pub(super) fn moved(&mut self, absent: &BTreeSet<VmId>) -> BTreeSet<(VmId, ManagerId)> {
        let moved: BTreeSet<(VmId, ManagerId)> =
            self.doubles.keys().filter(|(vm, _)| absent.contains(vm)).copied().collect();
        for (vm, manager) in &moved {
            self.doubles.remove(&(*vm, *manager));
            // To look where it was would show it as lost for a moment.
            self.read.retain(|(of, at)| of != vm || moved.contains(&(*of, *at)));
            self.read.insert((*vm, *manager));
        }
        moved
    }

    /// What a repair like this comes to.
    pub(super) fn plan(&self, how: &Repairs) -> RepairPlan {
        let (orphans, doubles) = (self.orphans.len() as u64, self.doubles.len() as u64);
        let mut plan = RepairPlan { read: self.read.len() as u64, ..RepairPlan::default() };
        match how.orphans {
            Orphans::Leave => plan.left += orphans,
            Orphans::Adopt => plan.adopted += orphans,
            Orphans::Destroy => plan.destroyed += orphans,
        }
        match how.doubles {
            Doubles::Leave => plan.left += doubles,
            Doubles::Destroy => plan.destroyed += doubles,
        }
        plan
    }

    fn adoptions(&self, at: cellbus_bus::WallMs) -> Vec<Work> {
        let template = template(Labels::new());
        let adoption = |orphan: &Orphan| {
            let held = &orphan.held;
            let adoption = Adoption {
                name: held.name.clone(),
                size: held.facts.size,
                template: Arc::clone(&template),
                manager: orphan.manager,
                foreign: None,
                op: held.op,
            };
            work(held.id, held.tenant.clone(), at, Task::Adopt(Arc::new(adoption)))
        };
        self.orphans.values().map(adoption).collect()
    }

    fn drops(&self, at: cellbus_bus::WallMs) -> Vec<Work> {
        let dropped = |((vm, manager), (tenant, op)): (&(VmId, ManagerId), &(TenantId, OpNumber))| {
            let task = Task::DropStray { manager: *manager, op: *op };
            // Beside other looks at the VM, and once for each manager.
            let job = Uuid::new_v5(&manager.uuid(), b"drop-stray");
            Work { job: cellbus_bus::ids::JobId::from_uuid(job), ..work(*vm, tenant.clone(), at, task) }
        };
        self.doubles.iter().map(dropped).collect()
    }
}

impl Gateway {
    /// What a repair of what an audit has found comes to. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] `audit_running`.
    pub fn audit_repair_plan(&self, id: Uuid, how: &Repairs) -> Result<(Audit, RepairPlan)> {
        let running = self.find_audit(id)?;
        let state = running.ended()?;
        Ok((state.audit.clone(), state.repairable.plan(how)))
    }

    /// Repairs what an audit has found. Durable on return: from there it goes on by itself. The same again does nothing twice.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] `audit_running`, `count_differs`; [`Error::NotReady`]: a part was not taken; as [`Gateway::submit`].
    pub async fn audit_repair(&self, id: Uuid, how: &Repairs, by: Operator) -> Result<Audit> {
        let running = self.find_audit(id)?;
        let process = &self.inner.process;
        let at = process.env.wall();
        let (plan, read, adoptions, drops) = {
            let state = running.ended()?;
            let it = &state.repairable;
            let adoptions = if how.orphans == Orphans::Leave { Vec::new() } else { it.adoptions(at) };
            let drops = if how.doubles == Doubles::Leave { Vec::new() } else { it.drops(at) };
            (it.plan(how), it.read.iter().copied().collect::<Vec<_>>(), adoptions, drops)
        };
        if plan.destroyed > 0 && how.confirm != Some(plan.destroyed) {
            let message =
                format!("{} VMs would be destroyed, and `confirm` does not say so: nothing was done", plan.destroyed);
            return Err(Error::Conflict { code: "count_differs", message });
        }
        process.bus.accepting()?;
        self.note_change(by, format!("repair what audit {id} found: {}", plan.in_words())).await?;
        for some in read.chunks(PAGE) {
            let item = |(vm, manager): &(VmId, ManagerId)| {
                let item = ControlItem::Observed { vm: *vm, manager: *manager };
                (Queue { shard: vm.shard(process.count), kind: QueueKind::Control }, vec![item.encode()])
            };
            process.bus.publish_all(some.iter().map(item).collect()).await?;
            running.repaired(some.len() as u64);
        }
        let deletes = match how.orphans {
            Orphans::Destroy => adoptions.iter().map(|work| delete_job(work, id)).collect::<Result<Vec<_>>>()?,
            Orphans::Leave | Orphans::Adopt => Vec::new(),
        };
        running.repaired(self.put_work(adoptions.into_iter()).await?);
        // They are on the lines of their VMs behind the adoptions.
        for some in deletes.chunks(PAGE) {
            let refused: Vec<String> =
                self.submit_each(some.to_vec()).await?.into_iter().filter_map(Result::err).collect();
            if let Some(why) = refused.first() {
                let reason = format!("{} deletes of orphans were not taken ({why}): repair again", refused.len());
                return Err(Error::NotReady { reason });
            }
        }
        running.repaired(self.put_work(drops.into_iter()).await?);
        self.audit(id)
    }
}

impl RepairPlan {
    /// As a sentence.
    #[must_use]
    pub fn in_words(&self) -> String {
        let Self { read, adopted, destroyed, left } = self;
        format!("{read} VMs are read again at their homes, {adopted} adopted, {destroyed} destroyed, {left} left alone")
    }
}

fn delete_job(adoption: &Work, audit: Uuid) -> Result<Arc<Job>> {
    let id = format!("{audit}/{}", adoption.vm);
    own_job(&adoption.tenant, "/cellbus/audit", &id, "delete", adoption.vm, None)
        .map(Arc::new)
        .map_err(|message| Error::Internal { message })
}
