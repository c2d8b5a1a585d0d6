//! What a manager holds, as its owner counts it: hosts and VMs, kept true by what operations
//! answer and by reading the inventory again. Pure.

use std::collections::BTreeMap;

use cellbus_bus::ids::{HostId, ManagerName, OpNumber, VmId};
use cellbus_bus::job::{Digest, Size};
use cellbus_directory::VmFacts;
use cellbus_directory::vm::PowerState;

use super::hosts::{Amount, Groups, HostIndex, Hosts, OverCommit};
use crate::driver::{HeldVm, Inventory};

/// One VM as it is counted.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// The host that it is counted on; `None` if the manager names one that it does not list.
    pub(super) host: Option<HostIndex>,
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
    changes: u64,
}

impl Holdings {
    pub(super) fn new(name: ManagerName, over_commit: OverCommit, inventory: &Inventory) -> Self {
        let mut this = Self {
            hosts: Hosts::new(name.clone(), &inventory.hosts, over_commit),
            vms: BTreeMap::new(),
            present: 0,
            foreign_vms: inventory.foreign_vms,
            name,
            over_commit,
            changes: 0,
        };
        for vm in &inventory.vms {
            this.observe(vm);
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

    fn touch(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    /// A VM is about to be made on this host.
    pub(super) fn reserve(&mut self, vm: VmId, host: HostIndex, size: &Size, groups: Groups, op: OpNumber) {
        self.forget(&vm);
        let amount = Amount::of(size);
        self.hosts.take(host, amount, &groups);
        let groups = (!groups.is_empty()).then(|| Box::new(groups));
        let touched = self.touch();
        self.vms.insert(vm, Held { host: Some(host), amount, groups, op, seen: None, unknown: false, touched });
    }

    /// The VM is not there.
    pub(super) fn forget(&mut self, vm: &VmId) {
        if let Some(held) = self.vms.remove(vm) {
            self.present -= u64::from(held.seen.is_some());
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

    /// The manager says that the VM is there and so. Whether that is news.
    pub(super) fn facts(&mut self, vm: VmId, facts: &VmFacts, groups: Option<Groups>, op: OpNumber) -> bool {
        let (host, amount, seen) = (self.hosts.find(&facts.host), Amount::of(&facts.size), Seen::of(facts));
        let touched = self.touch();
        if let Some(held) = self.vms.get_mut(&vm) {
            held.touched = touched;
            held.unknown = false;
            let news = held.seen != Some(seen) || held.host != host || op > held.op;
            self.present += u64::from(held.seen.is_none());
            held.seen = Some(seen);
            held.op = held.op.max(op);
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
        let groups = groups.unwrap_or_default();
        if let Some(host) = host {
            self.hosts.take(host, amount, &groups);
        }
        self.present += 1;
        let groups = (!groups.is_empty()).then(|| Box::new(groups));
        self.vms.insert(vm, Held { host, amount, groups, op, seen: Some(seen), unknown: false, touched });
        true
    }

    /// The manager lists the VM. Whether that is news.
    pub(super) fn observe(&mut self, vm: &HeldVm) -> bool {
        let groups = Groups {
            affinity: vm.affinity.clone().map(|g| (vm.tenant.clone(), g)),
            anti_affinity: vm.anti_affinity.clone().map(|g| (vm.tenant.clone(), g)),
        };
        self.facts(vm.id, &vm.facts, Some(groups), vm.op)
    }

    /// The whole inventory was read again, beginning when [`Holdings::now`] was `began`. Gives the
    /// VMs about which it holds news. What was touched meanwhile, or is `busy`, is left alone:
    /// the inventory may show it as it was before.
    pub(super) fn reread(&mut self, inventory: &Inventory, began: u64, busy: impl Fn(&VmId) -> bool) -> Vec<VmId> {
        let cordoned: Vec<Option<HostId>> = self.cordons();
        let mut hosts = Hosts::new(self.name.clone(), &inventory.hosts, self.over_commit);
        hosts.set_cordons(&cordoned);
        let none = Groups::default();
        for held in self.vms.values_mut() {
            held.host = held.host.and_then(|index| hosts.find(&self.hosts.host(index).id));
            if let Some(host) = held.host {
                hosts.take(host, held.amount, held.groups.as_deref().unwrap_or(&none));
            }
        }
        self.hosts = hosts;
        self.foreign_vms = inventory.foreign_vms;
        let mut listed: BTreeMap<VmId, &HeldVm> = inventory.vms.iter().map(|vm| (vm.id, vm)).collect();
        let mut gone = Vec::new();
        let mut news = Vec::new();
        for (id, held) in &self.vms {
            if held.touched > began || busy(id) {
                listed.remove(id);
            } else if !listed.contains_key(id) && !held.unknown {
                gone.push(*id);
            }
        }
        for id in gone {
            self.forget(&id);
            news.push(id);
        }
        for (id, vm) in listed {
            if !busy(&id) && self.observe(vm) {
                news.push(id);
            }
        }
        news
    }

    fn cordons(&self) -> Vec<Option<HostId>> {
        let whole = self.hosts.cordoned().then_some(None);
        let hosts = self.hosts.all().iter().filter(|h| h.cordoned).map(|h| Some(h.id.clone()));
        whole.into_iter().chain(hosts).collect()
    }
}
