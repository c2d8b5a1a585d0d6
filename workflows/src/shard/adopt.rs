//! VMs that are taken in: when that may begin, what their tombstones become, and what is made of one
//! that cannot be taken in. And those that another manager has too.
//!
//! An adoption is work on the VM's own line, put there by a gateway. No job waits for its end: one that
//! fails is put aside as a dead letter, with the reason, and a person who has mended that sends it round
//! again.

use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::ManagerId;
use cellbus_bus::job::Digest;
use cellbus_directory::record::DeadLetter;
use cellbus_directory::work::Task;
use cellbus_directory::{Adoption, Record, Step, Vm, VmState, Work};

use super::Shard;
use crate::input::Context;
use crate::item::JobItem;

/// VMs on two managers that an owner remembers; of others an audit tells.
const STRAYS_MAX: usize = 10_000;

impl Shard {
    /// Whether the VM is to be taken in: not if it is known here. Sent again, it is taken in once.
    pub(super) fn may_adopt(&mut self, ctx: &Context<'_>, work: &Arc<Work>, adoption: &Adoption) -> bool {
        let Some(entry) = self.state.vms.get(&work.vm) else { return true };
        if entry.vm.is_deleted() && entry.head().is_none() {
            return true;
        }
        let (tenant, name) = (entry.vm.tenant.clone(), entry.vm.name.clone());
        if (&tenant, &name) != (&work.tenant, &adoption.name) || entry.vm.is_deleted() {
            self.not_adopted(ctx, work, "already_adopted", &format!("it is {name} of tenant {tenant} already"));
        }
        false
    }

    /// Keeps it for a person.
    pub(super) fn not_adopted(&mut self, ctx: &Context<'_>, work: &Arc<Work>, code: &str, reason: &str) {
        let original: Bytes = JobItem::Work(Arc::clone(work)).encode();
        let letter = DeadLetter {
            id: uuid::Uuid::from_bytes(Digest::of(&original).0),
            at: ctx.now,
            tenant: Some(work.tenant.clone()),
            code: code.to_owned(),
            reason: format!("VM {} is not taken in: {reason}", work.vm),
            from: "jobs".to_owned(),
            original,
        };
        self.record(ctx, Record::DeadLettered { letter: letter.into() });
    }

    /// The work is about to end. Of a VM that was on two managers, and is gone from its home now: the
    /// other, where it may be. Somebody who moves a registration may make the new one first.
    pub(super) fn look_for_strays(&mut self, work: &Work) -> Option<ManagerId> {
        let entry = self.state.vms.get(&work.vm)?;
        match &work.task {
            Task::Rehome { manager } => {
                let run = entry.run.as_deref()?;
                let both =
                    run.has_done(Step::CheckStray) && run.has_begun(Step::CheckHome) && !run.has_done(Step::CheckHome);
                if both && self.soft.strays.len() < STRAYS_MAX {
                    self.soft.strays.insert(work.vm, *manager);
                }
                None
            }
            Task::Inspect if entry.vm.settled == VmState::Lost => self.soft.strays.remove(&work.vm),
            Task::Inspect
            | Task::Create { .. }
            | Task::Operate(_)
            | Task::Failover { .. }
            | Task::Adopt(_)
            | Task::DropStray { .. } => None,
        }
    }

    // ── what the record means ──

    /// It is known from here on, in the place of its tombstone if there is one.
    pub(super) fn adopted(&mut self, at: WallMs, work: &Work, adoption: &Adoption) {
        let vm = Vm::adopted(work, adoption, at);
        let Some(entry) = self.state.vms.get_mut(&vm.id) else { return self.add_vm(vm) };
        if entry.vm.is_deleted() {
            self.state.tombstones.retain(|(_, buried)| *buried != vm.id);
            entry.vm = Vm { op: vm.op.max(entry.vm.op), ..vm };
            self.soft.vms_live += 1;
        }
    }
}
