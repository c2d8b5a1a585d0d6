//! The limit on destructive operations, as homes of VMs go by it. It is enforced by the owner of each
//! manager; here work is kept from being begun in vain, and from filling the slots of other work.
//!
//! A manager's owner puts a call off when the limit is reached. While such a call waits to be made again,
//! no other destructive work is begun at that manager from here: it stands in line, with the reason.

use std::collections::{BTreeMap, BTreeSet};

use cellbus_bus::ids::{ManagerId, TenantId, VmId};
use cellbus_directory::{Step, StepKind};

use super::Shard;
use super::fair::FairQueue;
use crate::action::{Answer, LaterReason};

/// What waits for the limit of one manager.
#[derive(Debug, Default)]
pub(crate) struct Limited {
    /// Calls that were put off.
    put_off: BTreeSet<VmId>,
    /// Work that has not begun.
    line: FairQueue,
}

/// By manager.
pub(crate) type Limits = BTreeMap<ManagerId, Limited>;

impl Shard {
    /// Whether a step at this manager must stand in line for its limit; it does then.
    pub(super) fn limited(&mut self, tenant: &TenantId, vm: VmId, step: Step, manager: ManagerId) -> bool {
        if step.kind() != StepKind::Removes {
            return false;
        }
        let Some(limited) = self.soft.limited.get_mut(&manager) else { return false };
        limited.line.push(tenant, vm);
        self.soft.places.entry(vm).or_default().1 =
            format!("the limit of destructive operations at manager {manager}, behind others");
        true
    }

    /// A call was answered by the owner of its manager: whether that is still at its limit.
    pub(super) fn limit_answered(&mut self, vm: VmId, manager: ManagerId, answer: &Answer) {
        if matches!(answer, Answer::Later(later) if later.reason == LaterReason::Limited) {
            self.soft.limited.entry(manager).or_default().put_off.insert(vm);
            return;
        }
        let Some(limited) = self.soft.limited.get_mut(&manager) else { return };
        if !limited.put_off.remove(&vm) || !limited.put_off.is_empty() {
            return;
        }
        let Some(mut limited) = self.soft.limited.remove(&manager) else { return };
        while let Some(vm) = limited.line.pop() {
            self.soft.places.remove(&vm);
            if let Some(tenant) = self.state.vms.get(&vm).and_then(|e| e.head()).map(|work| work.tenant.clone()) {
                self.soft.ready.push(&tenant, vm);
            }
        }
    }
}
