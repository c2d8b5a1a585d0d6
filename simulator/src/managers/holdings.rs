//! What one simulated manager holds, and what each operation does to it. Pure: no time, no I/O.

use std::collections::BTreeMap;

use cellbus_bus::ids::{HostId, OpNumber, ShortName, VmId};
use cellbus_bus::job::Size;
use cellbus_cell::driver::{Datastore, Error, ForeignVm, HeldVm, Host, Inventory, Op};
use cellbus_directory::VmFacts;
use cellbus_directory::vm::PowerState;
use cellbus_workflows::{Action, AdoptSpec, CreateSpec};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::body::Snapshot;
pub(super) use self::body::VmBody;
pub(super) use self::outage::HostState;
use self::room::{HostSlot, Store, Used};
use super::Overcommit;
use crate::inventory::HostSpec;

mod body;
mod outage;
mod room;

/// A VM that no job of ours made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Foreign {
    pub(super) host: HostId,
    pub(super) size: Size,
}

#[derive(Clone, PartialEq)]
pub(super) struct Vm {
    host: u32,
    pub(super) body: VmBody,
}

/// Room that a running task has taken on a host and not yet filled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reservation {
    host: u32,
    size: Size,
}

/// What an operation did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Did {
    /// Nothing that is stored: it was done before, or only reads.
    Nothing,
    /// The VM's record changed.
    Changed,
    /// The VM was made.
    Made,
    /// What was a foreign VM is ours.
    Adopted(Uuid),
    /// The VM is gone, and its tombstone is new.
    Removed,
    /// There was no VM, and its tombstone is new.
    Buried,
}

/// What a manager held of our VMs at one moment.
pub(super) struct Image {
    vms: BTreeMap<VmId, Vm>,
    gone: BTreeMap<VmId, OpNumber>,
}

/// What [`Holdings::put_back`] did to the VMs that are not as they were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// There again.
    pub back: Vec<VmId>,
    /// There no more.
    pub gone: Vec<VmId>,
    /// Another state, or another host.
    pub changed: Vec<VmId>,
}

pub(super) struct Holdings {
    overcommit: Overcommit,
    hosts: Vec<HostSlot>,
    by_name: BTreeMap<HostId, u32>,
    stores: Vec<Store>,
    vms: BTreeMap<VmId, Vm>,
    /// Tombstones: the last operation on VMs that are gone.
    gone: BTreeMap<VmId, OpNumber>,
    foreign: BTreeMap<Uuid, Foreign>,
}

impl Holdings {
    pub(super) fn new(hosts: &[HostSpec], overcommit: Overcommit) -> Self {
        let mut made = Self {
            overcommit,
            hosts: Vec::new(),
            by_name: BTreeMap::new(),
            stores: Vec::new(),
            vms: BTreeMap::new(),
            gone: BTreeMap::new(),
            foreign: BTreeMap::new(),
        };
        for host in hosts {
            made.add_host(host.clone(), HostState::Up);
        }
        made
    }

    fn add_host(&mut self, spec: HostSpec, state: HostState) -> u32 {
        let index = u32::try_from(self.hosts.len()).expect("an inventory has fewer than 2^32 hosts");
        self.by_name.insert(spec.id.clone(), index);
        let store = spec.datastore.as_ref().map(|name| {
            let same = |host: &HostSlot| host.store.filter(|_| host.spec.datastore.as_ref() == Some(name));
            let store = self.hosts.iter().rev().find_map(same).unwrap_or(self.stores.len());
            if store == self.stores.len() {
                self.stores.push(Store::default());
            }
            self.stores[store].total_gib += spec.disk_gib;
            self.stores[store].hosts.push(index);
            store
        });
        self.hosts.push(HostSlot { spec, state, used: Used::default(), store });
        index
    }

    /// The host of this name; one that the inventory no longer has comes back as lost.
    fn host_or_lost(&mut self, id: &HostId) -> u32 {
        if let Some(index) = self.by_name.get(id) {
            return *index;
        }
        let spec = HostSpec {
            id: id.clone(),
            vcpus: 0,
            memory_mib: 0,
            disk_gib: 0,
            datastore: None,
            labels: Default::default(),
        };
        self.add_host(spec, HostState::Lost)
    }

    // ── what was stored ──

    pub(super) fn restore_vm(&mut self, id: VmId, host: &HostId, body: VmBody) {
        let host = self.host_or_lost(host);
        self.hosts[host as usize].used.add(body.size);
        self.vms.insert(id, Vm { host, body });
    }
    pub(super) fn restore_gone(&mut self, id: VmId, op: OpNumber) {
        self.gone.insert(id, op);
    }
    pub(super) fn restore_foreign(&mut self, id: Uuid, foreign: Foreign) {
        let host = self.host_or_lost(&foreign.host);
        self.hosts[host as usize].used.add(foreign.size);
        self.foreign.insert(id, foreign);
    }
    pub(super) fn restore_host(&mut self, id: &HostId, state: HostState) {
        let host = self.host_or_lost(id);
        self.hosts[host as usize].state = state;
    }

    // ── what is there ──

    pub(super) fn vm(&self, id: &VmId) -> Option<&Vm> {
        self.vms.get(id)
    }
    pub(super) fn vm_ids(&self) -> impl Iterator<Item = VmId> + '_ {
        self.vms.keys().copied()
    }
    pub(super) fn tombstone(&self, id: &VmId) -> Option<OpNumber> {
        self.gone.get(id).copied()
    }
    pub(super) fn host_of(&self, vm: &Vm) -> &HostId {
        &self.hosts[vm.host as usize].spec.id
    }

    pub(super) fn facts(&self, vm: &Vm) -> VmFacts {
        VmFacts {
            host: self.host_of(vm).clone(),
            power: vm.body.power,
            size: vm.body.size,
            snapshots: vm.body.snapshots().map(|snapshot| snapshot.name.clone()).collect(),
        }
    }
    pub(super) fn held(&self, id: VmId, vm: &Vm) -> HeldVm {
        HeldVm {
            id,
            facts: self.facts(vm),
            tenant: vm.body.tenant.clone(),
            name: vm.body.name.clone(),
            op: vm.body.op,
            affinity: vm.body.affinity.clone(),
            anti_affinity: vm.body.anti_affinity.clone(),
            datastore: self.hosts[vm.host as usize].spec.datastore.as_deref().map(str::to_owned),
        }
    }
    pub(super) fn held_vms(&self) -> impl Iterator<Item = HeldVm> + '_ {
        self.vms.iter().map(|(id, vm)| self.held(*id, vm))
    }

    pub(super) fn inventory(&self) -> Inventory {
        let hosts = self.hosts.iter().filter(|host| host.state != HostState::Lost).map(|host| Host {
            id: host.spec.id.clone(),
            vcpus: host.spec.vcpus,
            memory_mib: host.spec.memory_mib,
            disk_gib: host.spec.disk_gib,
            labels: host.spec.labels.as_ref().clone(),
            usable: host.state == HostState::Up,
        });
        let datastores = self.stores.iter().map(|store| {
            let hosts = || store.hosts.iter().map(|host| &self.hosts[*host as usize]);
            let name = hosts().find_map(|host| host.spec.datastore.as_deref()).unwrap_or_default();
            Datastore {
                name: name.to_owned(),
                total_gib: store.total_gib,
                free_gib: store.total_gib.saturating_sub(self.used_on(store)),
                usable: true,
                hosts: hosts().filter(|host| host.state != HostState::Lost).map(|host| host.spec.id.clone()).collect(),
            }
        });
        Inventory {
            hosts: hosts.collect(),
            vms: self.held_vms().collect(),
            foreign_vms: self.foreign.len() as u64,
            datastores: datastores.collect(),
            networks: Vec::new(),
        }
    }

    /// The VMs that are not ours. All of them run.
    pub(super) fn foreign_vms(&self) -> impl Iterator<Item = ForeignVm> + '_ {
        self.foreign.iter().map(|(id, foreign)| {
            let text = id.to_string();
            let facts = VmFacts {
                host: foreign.host.clone(),
                power: PowerState::Running,
                size: foreign.size,
                snapshots: Vec::new(),
            };
            let name = format!("foreign {}", &text[..8]);
            ForeignVm { key: text.parse().expect("a UUID is a key"), name, facts, unfit: None }
        })
    }
    pub(super) fn has_foreign(&self, id: &Uuid) -> bool {
        self.foreign.contains_key(id)
    }

    // ── operations ──

    /// What the number says: `None` to go on, or what was done under it before.
    pub(super) fn standing(&self, op: &Op) -> Result<Option<Option<VmFacts>>, Error> {
        let last = match (self.vms.get(&op.vm), self.gone.get(&op.vm)) {
            (Some(vm), _) => vm.body.op,
            (None, Some(last)) => *last,
            (None, None) => return Ok(None),
        };
        if op.number > last {
            return Ok(None);
        }
        if op.number < last {
            return Err(Error::Superseded { asked: op.number, last });
        }
        match self.vms.get(&op.vm) {
            Some(vm) => match vm.body.failed() {
                Some(detail) => Err(Error::Permanent { detail: detail.to_owned() }),
                None => Ok(Some(Some(self.facts(vm)))),
            },
            None => match &op.action {
                Action::Delete | Action::Inspect => Ok(Some(None)),
                // It was done, and then the VM was removed behind our back.
                Action::Create(_)
                | Action::Start
                | Action::Stop(_)
                | Action::Restart(_)
                | Action::Suspend
                | Action::Resume
                | Action::Resize(_)
                | Action::Snapshot(_)
                | Action::Revert(_)
                | Action::SnapshotDelete(_)
                | Action::Relocate(_)
                | Action::Adopt(_) => Err(Error::NotFound),
            },
        }
    }

    /// Takes the room that the operation will need, as its task begins.
    pub(super) fn reserve(&mut self, op: &Op) -> Result<Option<Reservation>, Error> {
        let (host, size) = match (&op.action, self.vms.get(&op.vm)) {
            (Action::Create(spec), None) => (self.room(op.host.as_ref(), spec.size)?, spec.size),
            (Action::Relocate(host), Some(vm)) => {
                let host = op.host.as_ref().unwrap_or(host);
                if self.host_of(vm) == host {
                    return Ok(None);
                }
                let more = self.moving(vm, host);
                (self.room(Some(host), more)?, more)
            }
            (Action::Resize(size), Some(vm)) => {
                // What grows is reserved; what shrinks is given back when it is done.
                let now = vm.body.size;
                self.room_on(vm.host, *size, Some(now))?;
                let more = Size {
                    vcpus: size.vcpus.saturating_sub(now.vcpus),
                    memory_mib: size.memory_mib.saturating_sub(now.memory_mib),
                    disk_gib: size.disk_gib.saturating_sub(now.disk_gib),
                };
                (vm.host, more)
            }
            (
                Action::Create(_)
                | Action::Start
                | Action::Stop(_)
                | Action::Restart(_)
                | Action::Suspend
                | Action::Resume
                | Action::Resize(_)
                | Action::Snapshot(_)
                | Action::Revert(_)
                | Action::SnapshotDelete(_)
                | Action::Relocate(_)
                | Action::Delete
                | Action::Inspect
                | Action::Adopt(_),
                Some(_) | None,
            ) => return Ok(None),
        };
        self.hosts[host as usize].used.add(size);
        Ok(Some(Reservation { host, size }))
    }

    /// Gives back what [`Holdings::reserve`] took.
    pub(super) fn release(&mut self, reservation: Reservation) {
        self.hosts[reservation.host as usize].used.take(reservation.size);
    }

    /// Carries the operation out, all of it or nothing. Its number has been checked.
    pub(super) fn apply(&mut self, op: &Op) -> Result<Did, Error> {
        if !self.vms.contains_key(&op.vm) {
            return self.apply_to_none(op);
        }
        self.answers(op)?;
        if let Action::Delete = op.action {
            self.remove(op.vm, op.number);
            return Ok(Did::Removed);
        }
        if let Action::Inspect = op.action {
            return Ok(Did::Nothing);
        }
        if let Action::Relocate(host) = &op.action {
            self.relocate(op.vm, op.host.as_ref().unwrap_or(host))?;
        }
        if let Action::Resize(size) = op.action {
            self.resize(op.vm, size)?;
        }
        let Some(vm) = self.vms.get_mut(&op.vm) else { return Err(Error::NotFound) };
        vm.body.change(&op.action)?;
        vm.body.op = op.number;
        if let Some(rare) = &mut vm.body.rare {
            rare.failed = None;
        }
        Ok(Did::Changed)
    }

    fn apply_to_none(&mut self, op: &Op) -> Result<Did, Error> {
        match &op.action {
            Action::Create(spec) => {
                let host = self.room(op.host.as_ref(), spec.size)?;
                self.hosts[host as usize].used.add(spec.size);
                self.gone.remove(&op.vm);
                self.vms.insert(op.vm, Vm { host, body: VmBody::made(spec, op.number) });
                Ok(Did::Made)
            }
            // A create that is still on its way must find the tombstone.
            Action::Delete => {
                self.gone.insert(op.vm, op.number);
                Ok(Did::Buried)
            }
            Action::Inspect => Ok(Did::Nothing),
            Action::Adopt(spec) => self.adopt(op, spec),
            Action::Start
            | Action::Stop(_)
            | Action::Restart(_)
            | Action::Suspend
            | Action::Resume
            | Action::Resize(_)
            | Action::Snapshot(_)
            | Action::Revert(_)
            | Action::SnapshotDelete(_)
            | Action::Relocate(_) => Err(Error::NotFound),
        }
    }

    /// A foreign VM becomes ours: nothing of it changes but who it belongs to.
    fn adopt(&mut self, op: &Op, spec: &AdoptSpec) -> Result<Did, Error> {
        let id = spec.foreign.as_ref().and_then(|key| key.as_str().parse::<Uuid>().ok()).ok_or(Error::NotFound)?;
        let Foreign { host, size } = self.foreign.remove(&id).ok_or(Error::NotFound)?;
        let host = self.host_or_lost(&host);
        let body = VmBody {
            tenant: spec.tenant.clone(),
            name: spec.name.clone(),
            size,
            power: PowerState::Running,
            op: op.number,
            affinity: None,
            anti_affinity: None,
            restarts: 0,
            rare: None,
        };
        self.gone.remove(&op.vm);
        self.vms.insert(op.vm, Vm { host, body });
        Ok(Did::Adopted(id))
    }

    /// A create that fails half way: the VM is there, off, and the number gives the failure again.
    pub(super) fn half_make(&mut self, op: &Op, spec: &CreateSpec, detail: &str) -> bool {
        let Ok(host) = self.room(op.host.as_ref(), spec.size) else { return false };
        self.hosts[host as usize].used.add(spec.size);
        self.gone.remove(&op.vm);
        let mut body = VmBody::made(spec, op.number);
        body.power = PowerState::Stopped;
        body.rare().failed = Some(detail.to_owned());
        self.vms.insert(op.vm, Vm { host, body });
        true
    }

    fn relocate(&mut self, id: VmId, to: &HostId) -> Result<(), Error> {
        let Some(vm) = self.vms.get(&id) else { return Err(Error::NotFound) };
        if self.host_of(vm) == to {
            return Ok(());
        }
        let (from, size) = (vm.host, vm.body.size);
        let host = self.room(Some(to), self.moving(vm, to))?;
        self.settle(id, from, host, size);
        if self.hosts[from as usize].state == HostState::Dead {
            self.set_power(id, PowerState::Stopped);
        }
        Ok(())
    }

    /// Moves a VM whether or not there is room: its room is taken on the other host.
    fn settle(&mut self, id: VmId, from: u32, to: u32, size: Size) {
        self.hosts[from as usize].used.take(size);
        self.hosts[to as usize].used.add(size);
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.host = to;
        }
    }

    fn resize(&mut self, id: VmId, size: Size) -> Result<(), Error> {
        let Some(vm) = self.vms.get(&id) else { return Err(Error::NotFound) };
        let now = vm.body.size;
        if size.disk_gib < now.disk_gib {
            return Err(invalid(format!("the disk has {} GiB and cannot shrink to {}", now.disk_gib, size.disk_gib)));
        }
        if size.vcpus == 0 || size.memory_mib == 0 {
            return Err(invalid("a VM needs at least one vCPU and one MiB"));
        }
        let host = vm.host;
        if size != now {
            self.room_on(host, size, Some(now))?;
        }
        self.hosts[host as usize].used.take(now);
        self.hosts[host as usize].used.add(size);
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.body.size = size;
        }
        Ok(())
    }

    fn remove(&mut self, id: VmId, op: OpNumber) {
        if let Some(vm) = self.vms.remove(&id) {
            self.hosts[vm.host as usize].used.take(vm.body.size);
        }
        self.gone.insert(id, op);
    }

    // ── behind Cellbus's back ──

    pub(super) fn set_power(&mut self, id: VmId, power: PowerState) -> bool {
        self.vms.get_mut(&id).map(|vm| vm.body.power = power).is_some()
    }
    pub(super) fn move_vm(&mut self, id: VmId, to: &HostId) -> bool {
        let (Some(vm), Some(to)) = (self.vms.get(&id), self.by_name.get(to)) else { return false };
        let (from, to, size) = (vm.host, *to, vm.body.size);
        self.settle(id, from, to, size);
        true
    }
    pub(super) fn delete_vm(&mut self, id: VmId) -> bool {
        let Some(op) = self.vms.get(&id).map(|vm| vm.body.op) else { return false };
        self.remove(id, op);
        true
    }
    pub(super) fn image(&self) -> Image {
        Image { vms: self.vms.clone(), gone: self.gone.clone() }
    }
    /// Our VMs become what they were, except those on hosts that are lost by now. No task may have
    /// room reserved.
    pub(super) fn put_back(&mut self, image: &Image) -> PutBack {
        let mut vms = image.vms.clone();
        vms.retain(|_, vm| self.hosts[vm.host as usize].state != HostState::Lost);
        let mut did = PutBack::default();
        for (id, vm) in &vms {
            match self.vms.get(id) {
                None => did.back.push(*id),
                Some(now) if now != vm => did.changed.push(*id),
                Some(_) => {}
            }
        }
        did.gone.extend(self.vms.keys().filter(|id| !vms.contains_key(id)));
        self.hosts.iter_mut().for_each(|host| host.used = Used::default());
        for foreign in self.foreign.values() {
            if let Some(host) = self.by_name.get(&foreign.host) {
                self.hosts[*host as usize].used.add(foreign.size);
            }
        }
        vms.values().for_each(|vm| self.hosts[vm.host as usize].used.add(vm.body.size));
        (self.vms, self.gone) = (vms, image.gone.clone());
        did
    }
    /// A VM with one of our ids stands here, as this says; whether there is such a host.
    pub(super) fn plant(&mut self, vm: &HeldVm) -> bool {
        let Some(host) = self.by_name.get(&vm.facts.host).copied() else { return false };
        self.remove(vm.id, vm.op);
        self.gone.remove(&vm.id);
        let mut body = VmBody {
            tenant: vm.tenant.clone(),
            name: vm.name.clone(),
            size: vm.facts.size,
            power: vm.facts.power,
            op: vm.op,
            affinity: vm.affinity.clone(),
            anti_affinity: vm.anti_affinity.clone(),
            restarts: 0,
            rare: None,
        };
        if !vm.facts.snapshots.is_empty() {
            let power = body.power;
            let snapshot = |name: &ShortName| Snapshot { name: name.clone(), power };
            body.rare().snapshots = vm.facts.snapshots.iter().map(snapshot).collect();
        }
        self.hosts[host as usize].used.add(body.size);
        self.vms.insert(vm.id, Vm { host, body });
        true
    }
    /// Gives what is to be stored.
    pub(super) fn add_foreign(&mut self, id: Uuid, host: &HostId, size: Size) -> Option<&Foreign> {
        let index = *self.by_name.get(host)?;
        self.hosts[index as usize].used.add(size);
        Some(self.foreign.entry(id).or_insert(Foreign { host: host.clone(), size }))
    }
    /// The VMs on a host.
    pub(super) fn vms_on(&self, id: &HostId) -> Vec<VmId> {
        let Some(index) = self.by_name.get(id) else { return Vec::new() };
        self.vms.iter().filter(|(_, vm)| vm.host == *index).map(|(id, _)| *id).collect()
    }
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::Invalid { detail: detail.into() }
}
