//! Managers in and out: what operators have said of a manager, at its shard; and VMs that are released, at
//! their homes.
//!
//! A release forgets a VM, and touches nothing: its manager holds it as before, under its id, as a VM that
//! no directory knows. So it may be taken in again, here or elsewhere. It is forgotten whole, with no
//! tombstone, since a tombstone says that what is found at a manager is left over and may go.

use std::collections::BTreeMap;

use cellbus_bus::ids::{HostId, ManagerId, OpNumber, VmId};
use cellbus_directory::record::{IntentKey, Operator};
use cellbus_directory::{ManagerMode, Record};

use super::Shard;
use crate::input::Context;

/// What a shard keeps of its managers for their owner to go by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Of a host, or of the whole manager.
    pub cordons: Vec<(ManagerId, Option<HostId>)>,
    /// Whether they are used, as far as an operator has said so.
    pub modes: BTreeMap<ManagerId, ManagerMode>,
    /// The newest mark that was left at each.
    pub marks: BTreeMap<ManagerId, u64>,
    /// Hosts that operators call dead.
    pub fenced: Vec<(ManagerId, HostId)>,
}

impl Shard {
    /// What is kept here of managers.
    #[must_use]
    pub fn managers_kept(&self) -> Kept {
        Kept {
            cordons: self.state.cordons.iter().cloned().collect(),
            modes: self.state.modes.clone(),
            marks: self.state.marks.clone(),
            fenced: self.state.fenced.iter().cloned().collect(),
        }
    }

    /// An operator says whether a manager is used.
    pub(super) fn set_manager_mode(&mut self, ctx: &Context<'_>, manager: ManagerId, mode: ManagerMode, by: Operator) {
        if self.state.modes.get(&manager) != Some(&mode) {
            self.record(ctx, Record::ManagerModeSet { manager, mode, by });
        }
    }

    /// An operator calls a host dead, or takes that back.
    pub(super) fn fence_host(
        &mut self,
        ctx: &Context<'_>,
        manager: ManagerId,
        host: HostId,
        fenced: bool,
        by: Operator,
    ) {
        if self.state.fenced.contains(&(manager, host.clone())) != fenced {
            self.record(ctx, Record::HostFenced { manager, host, fenced, by });
        }
    }

    /// Forgets the VM, if nothing is under way or waits that would still have to do with it.
    pub(super) fn release(&mut self, ctx: &Context<'_>, vm: VmId, manager: ManagerId) {
        let Some(entry) = self.state.vms.get(&vm) else { return };
        let there = entry.vm.home.as_ref().is_some_and(|home| home.manager == manager);
        // The other copy of a migrate is somebody's to remove: of an operator, who sees it here.
        if !there || entry.head().is_some() || entry.vm.other.is_some() || entry.vm.is_deleted() {
            return;
        }
        // What is still to be said of it is said of what is known here.
        let events = IntentKey::VmEvent(vm, OpNumber::ZERO)..=IntentKey::VmEvent(vm, OpNumber(u64::MAX));
        if self.state.intents.range(events).next().is_none() {
            self.record(ctx, Record::VmsForgotten { vms: vec![vm] });
        }
    }
}
