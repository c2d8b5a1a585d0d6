//! What a restored shard holds back until the managers have been looked at.
//!
//! A backup is older than what the managers hold: VMs were made, moved and deleted since, for jobs
//! that nobody remembers. So after a restore, work waits at the head of its line:
//!
//! | a step that | waits until |
//! |---|---|
//! | changes a VM | an audit has read its manager |
//! | puts a VM on a manager | an audit has read every manager, as it may be on any of them already |
//! | removes something | an audit of its manager was clean, or a person has seen what it found |
//! | reads | not at all |
//!
//! What an audit finds where the directory has nothing is told to the VM's home first. One that has
//! moved is known there from then on. One that is still to be made is made where it is, which is to
//! say adopted; so is one whose job comes (again) later. All that is here is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{ManagerId, OpNumber, VmId};
use cellbus_directory::record::IntentKey;
use cellbus_directory::vm::Doing;
use cellbus_directory::{Record, Refusal, RefusalReason, Step, StepKind, StepResult};
use serde::{Deserialize, Serialize};

use super::Shard;
use super::run::Run;
use crate::input::Context;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hold {
    /// When the shard was restored; `None` once nothing waits for an audit any more.
    pub(crate) since: Option<WallMs>,
    /// Managers that an audit has read since then.
    pub(crate) read: BTreeSet<ManagerId>,
    /// Those of them at which something may be removed.
    pub(crate) cleared: BTreeSet<ManagerId>,
    /// Whether every manager has been read.
    pub(crate) all_read: bool,
    /// VMs that a manager holds, and that are not known there.
    pub(crate) found: BTreeMap<VmId, ManagerId>,
    /// Operations are numbered above this, also those of VMs that are new here: their managers may have
    /// seen others for them. For good.
    pub(crate) ops_above: OpNumber,
}

/// What a step waits for.
enum Needs {
    Nothing,
    Read,
    AllRead,
    Cleared,
}

fn needs(step: Step) -> Needs {
    match (step.kind(), step) {
        // A migrate goes on only once it is known where both of its ends are.
        (_, Step::Create | Step::Copy | Step::Quiesce | Step::CheckCopy | Step::CheckSource) => Needs::AllRead,
        (StepKind::Reads, _) => Needs::Nothing,
        (StepKind::Changes, _) => Needs::Read,
        (StepKind::Removes, _) => Needs::Cleared,
    }
}

impl Shard {
    /// Whether something is held back here since a restore.
    #[must_use]
    pub fn held_since(&self) -> Option<WallMs> {
        self.state.hold.since
    }

    /// Why a step may not be made yet. `manager`: at which; none if one is still to be chosen.
    pub(super) fn held(&self, step: Step, manager: Option<ManagerId>) -> Option<String> {
        let hold = &self.state.hold;
        hold.since?;
        let (may, what) = match needs(step) {
            Needs::Nothing => (true, ""),
            Needs::Read => (manager.is_some_and(|at| hold.read.contains(&at)), "an audit of its manager"),
            Needs::AllRead => (hold.all_read, "an audit of all managers"),
            Needs::Cleared => (
                manager.is_some_and(|at| hold.cleared.contains(&at)),
                "an audit of its manager that is clean or accepted",
            ),
        };
        (!may).then(|| format!("{what}, as this cluster was restored from a backup"))
    }

    /// The VM's work waits for an audit, or for the end of a pause.
    pub(super) fn hold_back(&mut self, vm: VmId, why: String) {
        self.soft.places.entry(vm).or_default().1 = why;
        self.soft.held.insert(vm);
    }

    /// A call that was under way when the backup was taken, if it may not be made again yet.
    pub(super) fn hold_call_back(&mut self, vm: VmId, doing: &Doing) -> bool {
        match self.held(doing.step, Some(doing.manager)) {
            Some(why) => {
                self.hold_back(vm, why);
                true
            }
            None => false,
        }
    }

    /// A manager holds the VM, and the directory does not know it there.
    pub(super) fn found_at(&mut self, ctx: &Context<'_>, vm: VmId, manager: ManagerId) {
        // Once every manager was read, VMs move by what is done here, and an audit may see them halfway.
        if self.state.hold.since.is_none() || self.state.hold.all_read {
            return;
        }
        let known = |shard: &Self| {
            let home = shard.state.vms.get(&vm).and_then(|entry| entry.vm.home.as_ref());
            home.is_some_and(|home| home.manager == manager)
        };
        if self.state.hold.found.get(&vm) == Some(&manager) || known(self) {
            return;
        }
        self.record(ctx, Record::VmFound { vm, manager });
        if known(self) {
            // Host, power and shape are read there.
            self.observed(ctx, vm, manager);
        }
    }

    /// An audit has read these managers; at some of them something may be removed.
    pub(super) fn managers_audited(&mut self, ctx: &Context<'_>, read: &[ManagerId], cleared: &[ManagerId]) {
        let hold = &self.state.hold;
        if hold.since.is_none() {
            return;
        }
        let new = |ids: &[ManagerId], known: &BTreeSet<ManagerId>| -> Vec<ManagerId> {
            ids.iter().filter(|id| !known.contains(id)).copied().collect()
        };
        let (read, cleared) = (new(read, &hold.read), new(cleared, &hold.cleared));
        let all = |known: &BTreeSet<ManagerId>, new: &[ManagerId]| {
            ctx.names.iter().all(|(_, id)| known.contains(id) || new.contains(id))
        };
        let (all_read, over) = (all(&hold.read, &read), all(&hold.cleared, &cleared));
        if read.is_empty() && cleared.is_empty() && all_read == hold.all_read {
            return;
        }
        self.record(ctx, Record::ManagersAudited { read, cleared, all_read, over });
        for vm in std::mem::take(&mut self.soft.held) {
            self.look_again(ctx, vm);
        }
    }

    /// Work that was held back may go on, or waits for more.
    pub(super) fn look_again(&mut self, ctx: &Context<'_>, vm: VmId) {
        self.soft.places.remove(&vm);
        let Some(doing) = self.state.vms.get(&vm).and_then(|entry| entry.vm.doing.clone()) else {
            return self.ready_again(vm);
        };
        if self.hold_call_back(vm, &doing) {
            return;
        }
        let elsewhere = self.state.hold.found.get(&vm).copied().filter(|found| *found != doing.manager);
        if let Some(found) = elsewhere {
            // After the backup was taken it was made there, or has moved there: the call is another.
            let refusal = Refusal {
                manager: doing.manager,
                reason: RefusalReason::NotBegun,
                detail: format!("an audit after a restore has found it at manager {found}"),
            };
            self.record(ctx, Record::StepEnded { vm, op: doing.op, result: StepResult::Refused(refusal) });
            self.record(ctx, Record::VmFound { vm, manager: found });
            return self.ready_again(vm);
        }
        let intent = IntentKey::Call(vm, doing.op);
        self.try_again(ctx, &intent, vm, doing.manager);
        self.soft.retries.push(intent);
    }

    fn ready_again(&mut self, vm: VmId) {
        if let Some(tenant) = self.state.vms.get(&vm).and_then(|e| e.head()).map(|work| work.tenant.clone()) {
            self.soft.ready.push(&tenant, vm);
        }
    }

    // ── what the records mean ──

    pub(super) fn vm_found(&mut self, at: WallMs, vm: VmId, manager: ManagerId) {
        let moved = self.state.vms.get_mut(&vm).is_some_and(|entry| {
            let moved = entry.vm.found_at(manager, at);
            if let Some(run) = entry.run.as_deref_mut().filter(|run| moved && !run.moved && run.undoing.is_none()) {
                // What was done was done where it is no more: its work begins again.
                *run = Run { cancel: run.cancel, ..Run::new(Arc::clone(&run.work)) };
            }
            moved
        });
        if moved {
            self.state.hold.found.remove(&vm);
        } else {
            self.state.hold.found.insert(vm, manager);
        }
    }

    pub(super) fn audited(&mut self, read: &[ManagerId], cleared: &[ManagerId], all_read: bool, over: bool) {
        let hold = &mut self.state.hold;
        if over {
            // What was found stays known until its job comes.
            let found = std::mem::take(&mut hold.found);
            *hold = Hold { found, ops_above: hold.ops_above, ..Hold::default() };
        } else {
            hold.read.extend(read);
            hold.cleared.extend(cleared);
            hold.all_read = all_read;
        }
    }
}
