//! What a manager holds, as its owner counts it: hosts and VMs, kept true by what operations
//! answer and by reading the inventory again. Pure.

use std::collections::{BTreeMap, BTreeSet};

use cellbus_bus::ids::{HostId, ManagerName, OpNumber, VmId};
use cellbus_bus::job::{Digest, Size};
use cellbus_directory::VmFacts;
use cellbus_directory::vm::PowerState;

use super::hosts::{Amount, Groups, HostIndex, Hosts, OverCommit, Place, StoreIndex};
use crate::driver::{HeldVm, Inventory};

/// One VM as it is counted.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// The host that it is counted on; `None` if the manager names one that it does not list.
    pub(super) host: Option<HostIndex>,
    /// The datastore that its disk is counted on; `None` if it is the host's own, or nobody knows.
    pub(super) store: Option<StoreIndex>,
    /// What it takes there.
    pub(super) amount: Amount,
    /// Its groups; most have none.
    pub(super) groups: Option<Box<Groups>>,
    /// The last operation that is known to have changed it, or was tried on it.
    pub(super) op: OpNumber,
    /// As last seen; `None` while it is not known to be there.
    pub(super) seen: Option<Seen>,
    /// An operation on it has ended without an answer: it may be there or not, so or otherwise.
    pub(super) unknown: bool,
    /// The count of changes here when it was last touched.
    touched: u64,
}

impl Held {
    /// Whether it was touched after the count of changes was `than`.
    pub(super) fn newer_than(&self, than: u64) -> bool {
        self.touched > than
    }
    /// Where it is counted.
    pub(super) fn place(&self) -> Option<Place> {
        Some(Place { host: self.host?, store: self.store })
    }
}

/// What is said of a VM, beside how it is.
#[derive(Clone, Copy)]
struct Said<'a> {
    /// The datastore with its disk.
    datastore: Option<&'a str>,
    /// Whether what the inventory says is free counts it.
    listed: bool,
}

/// What of a VM is compared with what its manager says later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    power: PowerState,
    size: Size,
    /// Of their names, in order: as many others, as a backup brings back, are news.
    snapshots: Option<Digest>,
}
impl Seen {
    fn of(facts: &VmFacts) -> Self {
        let names = || facts.snapshots.iter().flat_map(|name| [name.as_str(), "/"]).collect::<String>();
        let snapshots = (!facts.snapshots.is_empty()).then(|| Digest::of(names().as_bytes()));
        Self { power: facts.power, size: facts.size, snapshots }
    }
}

/// What a manager holds.
#[derive(Debug)]
pub(super) struct Holdings {
    pub(super) hosts: Hosts,
    vms: BTreeMap<VmId, Held>,
    /// VMs that are known to be there.
    present: u64,
    pub(super) foreign_vms: u64,
    name: ManagerName,
    over_commit: OverCommit,
    /// Those that each new VM needs.
    networks: Vec<String>,
    changes: u64,
    /// When a VM was last forgotten. A reading that began before it may show what is no more there.
    forgot: u64,
}

impl Holdings {
    pub(super) fn new(
        name: ManagerName,
        over_commit: OverCommit,
        networks: Vec<String>,
        inventory: &Inventory,
    ) -> Self {
        let mut this = Self {
            hosts: Hosts::new(name.clone(), inventory, over_commit, &networks),
            vms: BTreeMap::new(),
            present: 0,
            foreign_vms: inventory.foreign_vms,
            name,
            over_commit,
            networks,
            changes: 0,
            forgot: 0,
        };
        for vm in &inventory.vms {
            this.listed(vm);
        }
        this
    }

    /// Whether of any VM it is not known what became of the last operation on it.
    pub(super) fn doubts(&self) -> bool {
        self.vms.values().any(|held| held.unknown)
    }
    pub(super) fn get(&self, vm: &VmId) -> Option<&Held> {
        self.vms.get(vm)
    }
    /// All, in the order of their ids.
    pub(super) fn all(&self) -> impl Iterator<Item = (VmId, &Held)> {
        self.vms.iter().map(|(id, held)| (*id, held))
    }
    pub(super) fn present(&self) -> u64 {
        self.present
    }
    /// A reading of the count of changes, for [`Holdings::reread`].
    pub(super) fn now(&self) -> u64 {
        self.changes
    }

    /// Whether a reading that began when [`Holdings::now`] was `began`, and shows a VM that is not held, may show
    /// one that was removed meanwhile.
    pub(super) fn may_be_gone(&self, vm: &VmId, began: u64) -> bool {
        self.forgot > began && !self.vms.contains_key(vm)
    }

    fn touch(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    /// A VM is about to be made in this place.
    pub(super) fn reserve(&mut self, vm: VmId, place: Place, size: &Size, groups: Groups, op: OpNumber) {
        self.forget(&vm);
        let amount = Amount::of(size);
        self.hosts.take(place.host, amount, &groups);
        self.hosts.lay(place.store, amount.disk_gib, false);
        self.hosts.plug();
        let groups = (!groups.is_empty()).then(|| Box::new(groups));
        let (host, store, touched) = (Some(place.host), place.store, self.touch());
        self.vms.insert(vm, Held { host, store, amount, groups, op, seen: None, unknown: false, touched });
    }

    /// The VM is not there.
    pub(super) fn forget(&mut self, vm: &VmId) {
        if let Some(held) = self.vms.remove(vm) {
            self.forgot = self.touch();
            self.present -= u64::from(held.seen.is_some());
            self.hosts.lift(held.store, held.amount.disk_gib, false);
            self.hosts.unplug();
            if let Some(host) = held.host {
                self.hosts.give_back(host, held.amount, held.groups.as_deref().unwrap_or(&Groups::default()));
            }
        }
    }

    /// An operation is tried.
    pub(super) fn begun(&mut self, vm: &VmId, op: OpNumber) {
        let touched = self.touch();
        if let Some(held) = self.vms.get_mut(vm) {
            held.op = held.op.max(op);
            held.touched = touched;
        }
    }

    /// An operation has ended without an answer.
    pub(super) fn doubtful(&mut self, vm: &VmId) {
        let touched = self.touch();
        if let Some(held) = self.vms.get_mut(vm) {
            held.unknown = true;
            held.touched = touched;
        }
    }

    /// The disk of a VM that moves goes to this datastore.
    pub(super) fn moved_to(&mut self, vm: &VmId, store: Option<StoreIndex>) {
        if let Some(held) = self.vms.get_mut(vm)
            && held.store != store
        {
            self.hosts.lift(held.store, held.amount.disk_gib, false);
            self.hosts.lay(store, held.amount.disk_gib, false);
            held.store = store;
        }
    }

    /// The manager says that the VM is there and so; `stood`: it stood there before it was ours, so that what
    /// is free counts it. Whether that is news.
    pub(super) fn facts(&mut self, vm: VmId, facts: &VmFacts, op: OpNumber, stood: bool) -> bool {
        self.said(vm, facts, Groups::default(), op, Said { datastore: None, listed: stood })
    }

    fn said(&mut self, vm: VmId, facts: &VmFacts, groups: Groups, op: OpNumber, said: Said<'_>) -> bool {
        let (host, amount, seen) = (self.hosts.find(&facts.host), Amount::of(&facts.size), Seen::of(facts));
        let before = self.vms.get(&vm).and_then(|held| held.store);
        let store = match said.datastore {
            Some(name) => self.hosts.store(name),
            // What is on a host that is not listed lies where it lay.
            None => host.map_or(before, |host| self.hosts.store_on(host, before)),
        };
        let touched = self.touch();
        if let Some(held) = self.vms.get_mut(&vm) {
            held.touched = touched;
            held.unknown = false;
            let news = held.seen != Some(seen) || held.host != host || op > held.op;
            self.present += u64::from(held.seen.is_none());
            held.seen = Some(seen);
            held.op = held.op.max(op);
            if (held.store, held.amount.disk_gib) != (store, amount.disk_gib) {
                self.hosts.lift(held.store, held.amount.disk_gib, said.listed);
                self.hosts.lay(store, amount.disk_gib, said.listed);
                held.store = store;
            }
            if held.host != host || held.amount != amount {
                let none = Groups::default();
                let groups = held.groups.as_deref().unwrap_or(&none);
                if let Some(before) = held.host {
                    self.hosts.give_back(before, held.amount, groups);
                }
                if let Some(host) = host {
                    self.hosts.take(host, amount, groups);
                }
                (held.host, held.amount) = (host, amount);
            }
            return news;
        }
        if let Some(host) = host {
            self.hosts.take(host, amount, &groups);
        }
        self.hosts.lay(store, amount.disk_gib, said.listed);
        if !said.listed {
            self.hosts.plug();
        }
        self.present += 1;
        let groups = (!groups.is_empty()).then(|| Box::new(groups));
        self.vms.insert(vm, Held { host, store, amount, groups, op, seen: Some(seen), unknown: false, touched });
        true
    }

    /// The manager says of the VM alone that it is there. Whether that is news.
    pub(super) fn observe(&mut self, vm: &HeldVm) -> bool {
        self.said(vm.id, &vm.facts, groups(vm), vm.op, Said { datastore: vm.datastore.as_deref(), listed: false })
    }

    /// The inventory lists the VM. Whether that is news.
    fn listed(&mut self, vm: &HeldVm) -> bool {
        self.said(vm.id, &vm.facts, groups(vm), vm.op, Said { datastore: vm.datastore.as_deref(), listed: true })
    }

    /// The whole inventory was read again, beginning when [`Holdings::now`] was `began`. Gives the
    /// VMs about which it holds news, and those that must be read once more. What was touched meanwhile, or is
    /// `busy`, is left alone: the inventory may show it as it was before.
    pub(super) fn reread(
        &mut self,
        inventory: &Inventory,
        began: u64,
        busy: impl Fn(&VmId) -> bool,
    ) -> (Vec<VmId>, Vec<VmId>) {
        let cordoned: Vec<Option<HostId>> = self.cordons();
        let mut hosts = Hosts::new(self.name.clone(), inventory, self.over_commit, &self.networks);
        hosts.set_cordons(&cordoned);
        let none = Groups::default();
        let mut listed: BTreeMap<VmId, &HeldVm> = inventory.vms.iter().map(|vm| (vm.id, vm)).collect();
        for (id, held) in &mut self.vms {
            held.host = held.host.and_then(|index| hosts.find(&self.hosts.host(index).id));
            held.store = held.store.and_then(|index| hosts.store(&self.hosts.store_at(index).name));
            if let Some(host) = held.host {
                hosts.take(host, held.amount, held.groups.as_deref().unwrap_or(&none));
            }
            // What is free counts it already, unless it came while that was read.
            let known = held.touched <= began && !busy(id) && listed.contains_key(id);
            hosts.lay(held.store, held.amount.disk_gib, known);
            if !known {
                hosts.plug();
            }
        }
        self.hosts = hosts;
        self.foreign_vms = inventory.foreign_vms;
        let mut gone = Vec::new();
        let mut news = Vec::new();
        for (id, held) in &self.vms {
            if held.touched > began || busy(id) {
                listed.remove(id);
            } else if !listed.contains_key(id) && !held.unknown {
                gone.push(*id);
            }
        }
        let again: Vec<VmId> = listed.keys().filter(|id| !busy(id) && self.may_be_gone(id, began)).copied().collect();
        for id in &again {
            listed.remove(id);
        }
        for id in gone {
            self.forget(&id);
            news.push(id);
        }
        for (id, vm) in listed {
            if !busy(&id) && self.listed(vm) {
                news.push(id);
            }
        }
        (news, again)
    }

    /// The VMs that are not as they are listed elsewhere, are listed and not here, or here and not listed.
    pub(super) fn differ(&self, listed: &[HeldVm]) -> BTreeSet<VmId> {
        let mut rest: BTreeSet<VmId> =
            self.vms.iter().filter(|(_, held)| held.seen.is_some()).map(|(id, _)| *id).collect();
        let mut differ = BTreeSet::new();
        for vm in listed {
            let there = rest.remove(&vm.id);
            let held = self.vms.get(&vm.id).filter(|_| there);
            let alike = held.is_some_and(|held| {
                held.seen == Some(Seen::of(&vm.facts)) && held.host == self.hosts.find(&vm.facts.host)
            });
            if !alike {
                differ.insert(vm.id);
            }
        }
        differ.extend(rest);
        differ
    }

    fn cordons(&self) -> Vec<Option<HostId>> {
        let whole = self.hosts.cordoned().then_some(None);
        let hosts = self.hosts.all().iter().filter(|h| h.cordoned).map(|h| Some(h.id.clone()));
        whole.into_iter().chain(hosts).collect()
    }
}

fn groups(vm: &HeldVm) -> Groups {
    Groups {
        affinity: vm.affinity.clone().map(|g| (vm.tenant.clone(), g)),
        anti_affinity: vm.anti_affinity.clone().map(|g| (vm.tenant.clone(), g)),
    }
}
