//! Hosts of a simulated manager, what they hold, and whether they have room for more.

use cellbus_bus::ids::HostId;
use cellbus_bus::job::Size;
use cellbus_cell::driver::Error;

use super::{Holdings, HostState, Vm, invalid};
use crate::inventory::HostSpec;

pub(super) struct HostSlot {
    pub(super) spec: HostSpec,
    pub(super) state: HostState,
    pub(super) used: Used,
    /// The place of its datastore.
    pub(super) store: Option<usize>,
}

/// Storage that several hosts share. What lies on it is the sum of what their VMs have.
#[derive(Default)]
pub(super) struct Store {
    pub(super) total_gib: u64,
    pub(super) hosts: Vec<u32>,
}

/// Sums over VMs, and over tasks that are about to make one.
#[derive(Clone, Copy, Default)]
pub(super) struct Used {
    pub(super) vcpus: u64,
    pub(super) memory_mib: u64,
    pub(super) disk_gib: u64,
}
impl Used {
    pub(super) fn add(&mut self, size: Size) {
        // Saturating, so that an absurd size is found not to fit instead of wrapping round.
        self.vcpus = self.vcpus.saturating_add(u64::from(size.vcpus));
        self.memory_mib = self.memory_mib.saturating_add(size.memory_mib);
        self.disk_gib = self.disk_gib.saturating_add(size.disk_gib);
    }
    pub(super) fn take(&mut self, size: Size) {
        self.vcpus = self.vcpus.saturating_sub(u64::from(size.vcpus));
        self.memory_mib = self.memory_mib.saturating_sub(size.memory_mib);
        self.disk_gib = self.disk_gib.saturating_sub(size.disk_gib);
    }
}

impl Holdings {
    /// GiB of disks on it, and of those that running tasks are about to make.
    pub(super) fn used_on(&self, store: &Store) -> u64 {
        store.hosts.iter().map(|host| self.hosts[*host as usize].used.disk_gib).fold(0, u64::saturating_add)
    }

    /// Hosts that hold more than they may.
    pub(in crate::managers) fn overfilled(&self) -> impl Iterator<Item = HostId> + '_ {
        self.hosts
            .iter()
            .filter(|host| host.state != HostState::Lost && !self.fits(host, host.used))
            .map(|host| host.spec.id.clone())
    }

    fn fits(&self, host: &HostSlot, used: Used) -> bool {
        // Products of a host's size and a small ratio are exact enough as whole numbers.
        let cap = |have: u64, ratio: f64| (have as f64 * ratio) as u64;
        used.vcpus <= cap(u64::from(host.spec.vcpus), self.overcommit.vcpus)
            && used.memory_mib <= cap(host.spec.memory_mib, self.overcommit.memory)
            && self.disk_fits(host, used.disk_gib)
    }

    /// Whether its datastore, or its own disk, holds so much of its VMs.
    fn disk_fits(&self, host: &HostSlot, gib: u64) -> bool {
        let Some(store) = host.store.map(|store| &self.stores[store]) else { return gib <= host.spec.disk_gib };
        let others = self.used_on(store).saturating_sub(host.used.disk_gib);
        others.saturating_add(gib) <= store.total_gib
    }

    /// The host, if it takes VMs and has room for one of this size.
    pub(super) fn room(&self, host: Option<&HostId>, more: Size) -> Result<u32, Error> {
        let id = host.ok_or_else(|| invalid("no host was given"))?;
        let index = *self.by_name.get(id).ok_or_else(|| Error::NoRoom { detail: format!("there is no host {id}") })?;
        match self.hosts[index as usize].state {
            HostState::Up => self.room_on(index, more, None).map(|()| index),
            HostState::Maintenance => Err(Error::NoRoom { detail: format!("host {id} is in maintenance") }),
            HostState::Lost => Err(Error::NoRoom { detail: format!("host {id} is gone") }),
            HostState::Silent | HostState::Dead | HostState::Dark => {
                Err(Error::NoRoom { detail: format!("host {id} does not answer") })
            }
        }
    }

    /// What a VM that moves takes beside what it has: no disk where the other host sees its datastore.
    pub(super) fn moving(&self, vm: &Vm, to: &HostId) -> Size {
        let store = |index: u32| self.hosts[index as usize].store;
        let stays = self.by_name.get(to).is_some_and(|to| store(*to).is_some() && store(*to) == store(vm.host));
        Size { disk_gib: if stays { 0 } else { vm.body.size.disk_gib }, ..vm.body.size }
    }

    pub(super) fn room_on(&self, index: u32, more: Size, instead_of: Option<Size>) -> Result<(), Error> {
        let slot = &self.hosts[index as usize];
        let mut used = slot.used;
        if let Some(less) = instead_of {
            used.take(less);
        }
        used.add(more);
        if self.fits(slot, used) {
            return Ok(());
        }
        if let Some(name) = slot.spec.datastore.as_deref().filter(|_| !self.disk_fits(slot, used.disk_gib)) {
            return Err(Error::NoRoom { detail: format!("datastore {name} has no room for {} GiB", more.disk_gib) });
        }
        Err(Error::NoRoom {
            detail: format!(
                "host {} would have {} vCPUs, {} MiB and {} GiB of disk in use, of {}, {} and {}",
                slot.spec.id,
                used.vcpus,
                used.memory_mib,
                used.disk_gib,
                slot.spec.vcpus,
                slot.spec.memory_mib,
                slot.spec.disk_gib,
            ),
        })
    }
}
