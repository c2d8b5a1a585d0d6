//! Hosts that take no VMs, and what becomes of those that are on them.

use cellbus_bus::ids::HostId;
use cellbus_cell::driver::{Error, Op};
use cellbus_workflows::Action;
use serde::{Deserialize, Serialize};

use super::room::HostSlot;
use super::{Holdings, invalid};

/// Whether a host takes VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::managers) enum HostState {
    #[default]
    Up,
    /// It keeps its VMs and takes no new ones.
    Maintenance,
    /// It is gone, and its VMs with it.
    Lost,
    /// It does not answer. What runs on it runs on, which nobody knows.
    Silent,
    /// It is off for certain (fenced), and what ran on it runs nowhere. Its VMs lie on storage that others
    /// reach; what is said of their power is what was last known.
    Dead,
    /// It is off, which nobody knows: it does not answer. Somebody who has seen it can say so.
    Dark,
}

impl Holdings {
    pub(in crate::managers) fn set_host(&mut self, id: &HostId, state: HostState) -> bool {
        let Some(index) = self.by_name.get(id) else { return false };
        self.hosts[*index as usize].state = state;
        true
    }

    /// Hosts that are off for certain.
    pub(in crate::managers) fn dead_hosts(&self) -> Vec<HostId> {
        self.hosts.iter().filter(|host| host.state == HostState::Dead).map(|host| host.spec.id.clone()).collect()
    }

    /// Whether somebody may call the host dead.
    pub(in crate::managers) fn may_be_fenced(&self, host: &HostId) -> Result<(), Error> {
        match self.by_name.get(host).map(|index| self.hosts[*index as usize].state) {
            Some(HostState::Silent | HostState::Dark | HostState::Dead) => Ok(()),
            Some(HostState::Up | HostState::Maintenance) => Err(invalid(format!("host {host} answers"))),
            Some(HostState::Lost) | None => Err(invalid(format!("there is no host {host}"))),
        }
    }
    /// Of these hosts, those that are off, as nobody knew before.
    pub(in crate::managers) fn dark(&self, hosts: &[HostId]) -> Vec<HostId> {
        let dark = |host: &&HostSlot| host.state == HostState::Dark && hosts.contains(&host.spec.id);
        self.hosts.iter().filter(dark).map(|host| host.spec.id.clone()).collect()
    }

    /// Whether the VM's host can do its part.
    pub(super) fn answers(&self, op: &Op) -> Result<(), Error> {
        let Some(vm) = self.vms.get(&op.vm) else { return Ok(()) };
        let host = &self.hosts[vm.host as usize];
        match (host.state, &op.action) {
            (HostState::Up | HostState::Maintenance | HostState::Lost, _)
            | (_, Action::Inspect | Action::Create(_)) => Ok(()),
            (HostState::Silent | HostState::Dark, _) => {
                Err(Error::Transient { detail: format!("host {} does not answer", host.spec.id) })
            }
            // Its record can be taken elsewhere, or away.
            (HostState::Dead, Action::Relocate(_) | Action::Delete) => Ok(()),
            (HostState::Dead, _) => Err(invalid(format!("host {} of the VM is off", host.spec.id))),
        }
    }
}
