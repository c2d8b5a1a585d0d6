//! The hosts of one manager: what each has left, and which one a VM goes on.
//!
//! Pure. One owner chooses hosts for a manager, and what it chooses is reserved at once, so races
//! cannot overfill a host. Hosts with the same labels form a class; in a class they are kept in
//! the order of how full they are, so that a choice looks at a few hosts and not at all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellbus_bus::ids::{HostId, ManagerId, ManagerName, ShortName, TenantId};
use cellbus_bus::job::{Labels, Layout, Policy, Size};
use cellbus_directory::{Refusal, RefusalReason};

use crate::driver::{Host, Inventory};

mod explain;
mod networks;
mod stores;
mod summary;

use networks::Networks;
use stores::Stores;
pub use stores::{StoreIndex, StoreState};

/// How far more than it has may be promised, for each resource.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OverCommit {
    /// vCPUs for each physical one.
    pub cpu: f64,
    /// Memory promised for each MiB.
    pub memory: f64,
}
impl Default for OverCommit {
    fn default() -> Self {
        Self { cpu: 1.0, memory: 1.0 }
    }
}

/// What a VM takes or a host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// vCPUs.
    pub vcpus: u64,
    /// MiB.
    pub memory_mib: u64,
    /// GiB.
    pub disk_gib: u64,
}
impl Amount {
    /// Of a VM of this shape.
    #[must_use]
    pub fn of(size: &Size) -> Self {
        Self { vcpus: u64::from(size.vcpus), memory_mib: size.memory_mib, disk_gib: size.disk_gib }
    }
    /// Whether it fits, its disk aside.
    fn computes(&self, free: &Self) -> bool {
        self.vcpus <= free.vcpus && self.memory_mib <= free.memory_mib
    }
    fn less(&self, other: &Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_gib: self.disk_gib.saturating_sub(other.disk_gib),
        }
    }
    fn more(&self, other: &Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_gib: self.disk_gib.saturating_add(other.disk_gib),
        }
    }
}

/// A host, by its place in the list. Good until the inventory is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostIndex(pub u32);

/// The affinity groups of a VM, in its tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// Shares a host with these.
    pub affinity: Option<(TenantId, ShortName)>,
    /// Shares no host with these.
    pub anti_affinity: Option<(TenantId, ShortName)>,
}
impl Groups {
    /// Of a policy.
    #[must_use]
    pub fn of(tenant: &TenantId, policy: &Policy) -> Self {
        Self {
            affinity: policy.affinity.clone().map(|g| (tenant.clone(), g)),
            anti_affinity: policy.anti_affinity.clone().map(|g| (tenant.clone(), g)),
        }
    }
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.affinity.is_none() && self.anti_affinity.is_none()
    }
}

/// What a host is wanted for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The shape of the VM.
    pub size: &'a Size,
    /// Labels that the host must have; `gear`, `manager` and `host` among those it may name.
    pub require: &'a Labels,
    /// Spread or pack.
    pub layout: Layout,
    /// Its groups.
    pub groups: &'a Groups,
    /// The only host that will do.
    pub host: Option<&'a HostId>,
    /// Whether the VM is there already, and only moves: it has its ports.
    pub moves: bool,
    /// The datastore that its disk lies on already: a host that sees it needs no room for it.
    pub lies: Option<StoreIndex>,
}

/// Where a VM goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// On this host.
    pub host: HostIndex,
    /// Its disk on this datastore; `None`: on the host's own.
    pub store: Option<StoreIndex>,
}

/// One host as it is counted here.
#[derive(Clone, Debug)]
pub struct HostState {
    /// As its manager calls it.
    pub id: HostId,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// The datastores that it sees. With none, its own disk counts.
    pub stores: Vec<StoreIndex>,
    /// Whether its manager lets it take VMs.
    pub usable: bool,
    /// Whether it is on all networks that a new VM needs.
    pub networked: bool,
    /// Whether an operator keeps new VMs off it.
    pub cordoned: bool,
    /// It said that it has no room although we thought so: not asked again before the next inventory.
    pub doubted: bool,
    /// What may be promised, over-commit counted.
    pub total: Amount,
    /// What is promised.
    pub used: Amount,
    /// VMs of ours.
    pub vms: u32,
    class: usize,
}
impl HostState {
    /// What is left; of disk, on its own.
    #[must_use]
    pub fn free(&self) -> Amount {
        self.total.less(&self.used)
    }
    fn open(&self) -> bool {
        self.usable && self.networked && !self.cordoned && !self.doubted
    }
    /// In millionths, of the resource that is used most. Disk counts where it is the host's own: how full a
    /// datastore is says nothing of one of its hosts.
    fn fill(&self) -> u32 {
        let of = |used: u64, total: u64| {
            if total == 0 {
                1_000_000
            } else {
                (u128::from(used) * 1_000_000 / u128::from(total)).min(1_000_000) as u32
            }
        };
        let disk = if self.stores.is_empty() { of(self.used.disk_gib, self.total.disk_gib) } else { 0 };
        of(self.used.vcpus, self.total.vcpus).max(of(self.used.memory_mib, self.total.memory_mib)).max(disk)
    }
    /// Whether any VM at all may still go on it.
    fn candidate(&self) -> bool {
        let free = self.free();
        self.open() && free.vcpus > 0 && free.memory_mib > 0 && (free.disk_gib > 0 || !self.stores.is_empty())
    }
}

#[derive(Clone, Debug)]
struct Class {
    labels: Arc<Labels>,
    hosts: u32,
    /// Candidates, emptiest first.
    order: BTreeSet<(u32, HostIndex)>,
}

type GroupHosts = BTreeMap<(TenantId, ShortName), BTreeMap<HostIndex, u32>>;

/// All hosts of one manager.
#[derive(Clone, Debug)]
pub struct Hosts {
    manager: ManagerId,
    name: ManagerName,
    cordoned: bool,
    hosts: Vec<HostState>,
    by_id: BTreeMap<HostId, HostIndex>,
    classes: Vec<Class>,
    stores: Stores,
    networks: Networks,
    affinity: GroupHosts,
    anti_affinity: GroupHosts,
}

impl Hosts {
    /// From what the manager says, with nothing on them yet. `networks` are those that each new VM needs.
    #[must_use]
    pub fn new(name: ManagerName, inventory: &Inventory, over_commit: OverCommit, networks: &[String]) -> Self {
        let mut listed: Vec<&Host> = inventory.hosts.iter().collect();
        listed.sort_by(|a, b| a.id.cmp(&b.id));
        listed.dedup_by(|a, b| a.id == b.id);
        let (stores, sees) = Stores::new(&inventory.datastores, &listed);
        let mut this = Self {
            manager: ManagerId::derive(name.as_str()),
            name,
            cordoned: false,
            hosts: Vec::with_capacity(listed.len()),
            by_id: BTreeMap::new(),
            classes: Vec::new(),
            stores,
            networks: Networks::new(networks, &inventory.networks),
            affinity: BTreeMap::new(),
            anti_affinity: BTreeMap::new(),
        };
        let mut class_of: BTreeMap<&Labels, usize> = BTreeMap::new();
        for (index, (host, stores)) in listed.into_iter().zip(sees).enumerate() {
            let class = *class_of.entry(&host.labels).or_insert_with(|| {
                this.classes.push(Class { labels: Arc::new(host.labels.clone()), hosts: 0, order: BTreeSet::new() });
                this.classes.len() - 1
            });
            this.classes[class].hosts += 1;
            // A manager has thousands of hosts at the most.
            let index = HostIndex(index as u32);
            this.by_id.insert(host.id.clone(), index);
            this.hosts.push(HostState {
                id: host.id.clone(),
                labels: Arc::clone(&this.classes[class].labels),
                usable: host.usable,
                cordoned: false,
                doubted: false,
                total: Amount {
                    vcpus: scaled(u64::from(host.vcpus), over_commit.cpu),
                    memory_mib: scaled(host.memory_mib, over_commit.memory),
                    disk_gib: if stores.is_empty() { host.disk_gib } else { 0 },
                },
                used: Amount::default(),
                vms: 0,
                class,
                networked: this.networks.missing(&host.id).is_none(),
                stores,
            });
            this.relist(index, None);
        }
        this
    }

    /// Puts a host where it now belongs in its class.
    fn relist(&mut self, index: HostIndex, before: Option<u32>) {
        let host = &self.hosts[index.0 as usize];
        let order = &mut self.classes[host.class].order;
        if let Some(fill) = before {
            order.remove(&(fill, index));
        }
        if host.candidate() {
            order.insert((host.fill(), index));
        }
    }

    fn change(&mut self, index: HostIndex, change: impl FnOnce(&mut HostState)) {
        let host = &mut self.hosts[index.0 as usize];
        let before = host.fill();
        change(host);
        self.relist(index, Some(before));
    }

    /// Keeps new VMs off these: `None` stands for the whole manager. What is not named is let on again.
    pub fn set_cordons(&mut self, cordons: &[Option<HostId>]) {
        self.cordoned = cordons.contains(&None);
        let named: BTreeSet<&HostId> = cordons.iter().flatten().collect();
        for index in 0..self.hosts.len() {
            let cordoned = named.contains(&self.hosts[index].id);
            if self.hosts[index].cordoned != cordoned {
                self.change(HostIndex(index as u32), |host| host.cordoned = cordoned);
            }
        }
    }

    /// Whether new VMs are kept off the whole manager.
    #[must_use]
    pub fn cordoned(&self) -> bool {
        self.cordoned
    }

    /// The host of this name.
    #[must_use]
    pub fn find(&self, id: &HostId) -> Option<HostIndex> {
        self.by_id.get(id).copied()
    }
    /// A host.
    #[must_use]
    pub fn host(&self, index: HostIndex) -> &HostState {
        &self.hosts[index.0 as usize]
    }
    /// All, in the order of their names.
    #[must_use]
    pub fn all(&self) -> &[HostState] {
        &self.hosts
    }

    fn indexed(&self) -> impl Iterator<Item = (HostIndex, &HostState)> {
        self.hosts.iter().enumerate().map(|(index, host)| (HostIndex(index as u32), host))
    }
    /// The datastore of this name.
    #[must_use]
    pub fn store(&self, name: &str) -> Option<StoreIndex> {
        self.stores.find(name)
    }
    /// A datastore.
    #[must_use]
    pub fn store_at(&self, index: StoreIndex) -> &StoreState {
        self.stores.get(index)
    }
    /// GiB of the largest disk that would still go on a host.
    fn disk_free_max(&self, index: HostIndex) -> u64 {
        let host = self.host(index);
        let stores = host.stores.iter().map(|store| self.stores.get(*store).free());
        stores.max().unwrap_or_else(|| host.free().disk_gib)
    }

    /// Where a disk of a VM on this host lies, if nobody says it: on `lay` if the host sees that, else on the
    /// datastore with most room.
    #[must_use]
    pub fn store_on(&self, index: HostIndex, lay: Option<StoreIndex>) -> Option<StoreIndex> {
        let stores = &self.host(index).stores;
        lay.filter(|store| stores.contains(store)).or_else(|| self.stores.emptiest(stores))
    }

    /// Where a disk of this size goes on a host, and how many GiB it takes there: none on a datastore that it
    /// lies on already. `None`: there is no room.
    #[must_use]
    pub fn place_for(&self, index: HostIndex, gib: u64, lies: Option<StoreIndex>) -> Option<(Place, u64)> {
        let host = self.host(index);
        let store = self.store_on(index, lies);
        let need = if store.is_some() && store == lies { 0 } else { gib };
        let free = store.map_or_else(|| host.free().disk_gib, |store| self.stores.get(store).free());
        (need <= free).then_some((Place { host: index, store }, need))
    }

    /// Counts a disk of a VM on a datastore. `seen`: the manager knew of it when the inventory was read.
    pub fn lay(&mut self, store: Option<StoreIndex>, gib: u64, seen: bool) {
        if let Some(store) = store {
            self.stores.lay(store, gib, seen);
        }
    }
    /// Takes a disk off a datastore again. `seen`: the manager knew that it is gone.
    pub fn lift(&mut self, store: Option<StoreIndex>, gib: u64, seen: bool) {
        if let Some(store) = store {
            self.stores.lift(store, gib, seen);
        }
    }
    /// A VM that the inventory does not show takes its ports.
    pub fn plug(&mut self) {
        self.networks.plug();
    }
    /// A VM that the inventory shows has left its ports.
    pub fn unplug(&mut self) {
        self.networks.unplug();
    }

    /// Counts a VM on a host, whether it fits or not: it is there, or is about to be. Its disk is counted there
    /// where it is the host's own; see [`Hosts::lay`] for datastores.
    pub fn take(&mut self, index: HostIndex, amount: Amount, groups: &Groups) {
        self.change(index, |host| {
            host.used = host.used.more(&amount);
            host.vms += 1;
        });
        if let Some(group) = &groups.affinity {
            *self.affinity.entry(group.clone()).or_default().entry(index).or_insert(0) += 1;
        }
        if let Some(group) = &groups.anti_affinity {
            *self.anti_affinity.entry(group.clone()).or_default().entry(index).or_insert(0) += 1;
        }
    }

    /// Takes a VM off a host again.
    pub fn give_back(&mut self, index: HostIndex, amount: Amount, groups: &Groups) {
        self.change(index, |host| {
            host.used = host.used.less(&amount);
            host.vms = host.vms.saturating_sub(1);
        });
        for (kept, group) in [(&mut self.affinity, &groups.affinity), (&mut self.anti_affinity, &groups.anti_affinity)]
        {
            let Some(group) = group else { continue };
            let Some(hosts) = kept.get_mut(group) else { continue };
            if let Some(vms) = hosts.get_mut(&index) {
                *vms -= 1;
                if *vms == 0 {
                    hosts.remove(&index);
                }
            }
            if hosts.is_empty() {
                kept.remove(group);
            }
        }
    }

    /// The host said that it has no room: it is left alone until the next inventory.
    pub fn doubt(&mut self, index: HostIndex) {
        self.change(index, |host| host.doubted = true);
    }

    /// Whether a VM in this place may grow by so much.
    #[must_use]
    pub fn may_grow(&self, place: Place, by: &Amount) -> bool {
        let free = self.host(place.host).free();
        let disk = place.store.map_or(free.disk_gib, |store| self.stores.get(store).free());
        by.computes(&free) && by.disk_gib <= disk
    }

    fn fits(&self, index: HostIndex, amount: &Amount, lies: Option<StoreIndex>) -> bool {
        amount.computes(&self.host(index).free()) && self.place_for(index, amount.disk_gib, lies).is_some()
    }

    /// The place that the VM goes to. Nothing is counted yet: see [`Hosts::take`] and [`Hosts::lay`].
    ///
    /// # Errors
    /// When none will do: how many hosts were looked at, and how many each reason ruled out.
    pub fn choose(&self, wanted: &Wanted<'_>) -> Result<Place, Refusal> {
        if self.cordoned {
            return Err(self.refusal(RefusalReason::Cordoned, format!("manager {} is cordoned", self.name)));
        }
        if let Some(network) = self.networks.full().filter(|_| !wanted.moves) {
            let detail = format!("network {network} of {} has no port free", self.name);
            return Err(self.refusal(RefusalReason::NoRoom, detail));
        }
        let amount = Amount::of(wanted.size);
        let named = wanted.host.map(HostId::as_str).or_else(|| wanted.require.get("host").map(String::as_str));
        let together =
            wanted.groups.affinity.as_ref().and_then(|g| self.affinity.get(g)).filter(|hosts| !hosts.is_empty());
        let chosen = match (named, together) {
            (Some(name), _) => self.index_of(name).filter(|index| self.will_do(*index, &amount, wanted)),
            (None, Some(hosts)) => {
                let fitting = hosts.keys().copied().filter(|index| self.will_do(*index, &amount, wanted));
                self.best(fitting, wanted.layout)
            }
            (None, None) => {
                let apart = wanted.groups.anti_affinity.as_ref().and_then(|g| self.anti_affinity.get(g));
                let fits = |index: &HostIndex| {
                    self.fits(*index, &amount, wanted.lies) && apart.is_none_or(|hosts| !hosts.contains_key(index))
                };
                let of_each_class =
                    self.classes.iter().filter(|class| self.has_labels(&class.labels, wanted.require)).filter_map(
                        |class| {
                            let mut hosts = class.order.iter().map(|(_, index)| *index);
                            match wanted.layout {
                                Layout::Spread => hosts.find(fits),
                                Layout::Pack => hosts.rfind(fits),
                            }
                        },
                    );
                self.best(of_each_class, wanted.layout)
            }
        };
        let placed = chosen.and_then(|index| self.place_for(index, amount.disk_gib, wanted.lies));
        placed.map(|(place, _)| place).ok_or_else(|| self.explain(&amount, wanted))
    }

    fn index_of(&self, name: &str) -> Option<HostIndex> {
        name.parse().ok().and_then(|id: HostId| self.find(&id))
    }

    fn best(&self, hosts: impl Iterator<Item = HostIndex>, layout: Layout) -> Option<HostIndex> {
        match layout {
            Layout::Spread => hosts.min_by_key(|index| (self.host(*index).fill(), *index)),
            Layout::Pack => hosts.max_by_key(|index| (self.host(*index).fill(), *index)),
        }
    }

    /// Every rule, for one host.
    fn will_do(&self, index: HostIndex, amount: &Amount, wanted: &Wanted<'_>) -> bool {
        let host = self.host(index);
        host.open()
            && self.has_labels(&host.labels, wanted.require)
            && self.groups_allow(index, wanted.groups)
            && self.fits(index, amount, wanted.lies)
    }

    fn groups_allow(&self, index: HostIndex, groups: &Groups) -> bool {
        let together = groups.affinity.as_ref().and_then(|g| self.affinity.get(g));
        let apart = groups.anti_affinity.as_ref().and_then(|g| self.anti_affinity.get(g));
        together.is_none_or(|hosts| hosts.is_empty() || hosts.contains_key(&index))
            && apart.is_none_or(|hosts| !hosts.contains_key(&index))
    }

    /// Whether a host of these labels has what is required. `host` is looked at by its own rule.
    fn has_labels(&self, labels: &Labels, require: &Labels) -> bool {
        require.iter().all(|(key, value)| match key.as_str() {
            "host" => true,
            "manager" => value == self.name.as_str(),
            _ => labels.get(key) == Some(value),
        })
    }
}

fn scaled(amount: u64, ratio: f64) -> u64 {
    // Ratios are small positive numbers from the configuration; the product is far below 2^53.
    (amount as f64 * ratio) as u64
}

#[cfg(test)]
mod tests;
