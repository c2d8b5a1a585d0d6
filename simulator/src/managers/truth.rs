//! What is really so in a simulated fleet: for tests and reports, past every driver.

use std::collections::BTreeMap;

use cellbus_bus::ids::{HostId, ManagerId, VmId};
use cellbus_cell::driver::HeldVm;

/// What managers saw that a control plane must not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Violations {
    /// Operations of a session that was revoked, or never opened. All were refused; where a manager
    /// cannot revoke, each would have been a zombie's.
    pub revoked_operations: u64,
    /// Operations with a lower number than the last on their VM. All were refused.
    pub superseded_operations: u64,
    /// VMs that were made although another manager had them and it was no migrate.
    pub double_creates: u64,
    /// Creates, relocations and resizes that a host had no room for. All were refused; without
    /// foreign VMs and lost hosts, the manager's owner should have known.
    pub overfill_attempts: u64,
    /// Hosts that hold more than they may, now.
    pub overfilled_hosts: u64,
}

/// Everything that every manager holds, at one moment for each manager.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// By manager, in the order of VM ids.
    pub managers: BTreeMap<ManagerId, Vec<HeldVm>>,
    /// How often each VM was rebooted, where it was at all.
    pub restarts: BTreeMap<(ManagerId, VmId), u32>,
    /// Hosts that hold more than they may.
    pub overfilled: Vec<(ManagerId, HostId)>,
}

impl Truth {
    /// How many VMs there are; one that is on two managers counts twice.
    #[must_use]
    pub fn vms(&self) -> usize {
        self.managers.values().map(Vec::len).sum()
    }
    /// Where a VM is.
    pub fn vm(&self, id: VmId) -> impl Iterator<Item = (ManagerId, &HeldVm)> + '_ {
        self.managers.iter().filter_map(move |(manager, vms)| {
            vms.binary_search_by_key(&id, |vm| vm.id).ok().map(|found| (*manager, &vms[found]))
        })
    }
    /// VMs that are on more than one manager, and on which.
    #[must_use]
    pub fn doubles(&self) -> Vec<(VmId, Vec<ManagerId>)> {
        let mut places: BTreeMap<VmId, Vec<ManagerId>> = BTreeMap::new();
        for (manager, vms) in &self.managers {
            for vm in vms {
                places.entry(vm.id).or_default().push(*manager);
            }
        }
        places.into_iter().filter(|(_, managers)| managers.len() > 1).collect()
    }
}
