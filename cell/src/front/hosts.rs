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
use cellbus_workflows::ClassSummary;

use crate::driver::Host;

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
    fn fits(&self, free: &Self) -> bool {
        self.vcpus <= free.vcpus && self.memory_mib <= free.memory_mib && self.disk_gib <= free.disk_gib
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
}

/// One host as it is counted here.
#[derive(Clone, Debug)]
pub struct HostState {
    /// As its manager calls it.
    pub id: HostId,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Whether its manager lets it take VMs.
    pub usable: bool,
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
    /// What is left.
    #[must_use]
    pub fn free(&self) -> Amount {
        self.total.less(&self.used)
    }
    fn open(&self) -> bool {
        self.usable && !self.cordoned && !self.doubted
    }
    /// In millionths, of the resource that is used most.
    fn fill(&self) -> u32 {
        let of = |used: u64, total: u64| {
            if total == 0 {
                1_000_000
            } else {
                (u128::from(used) * 1_000_000 / u128::from(total)).min(1_000_000) as u32
            }
        };
        of(self.used.vcpus, self.total.vcpus)
            .max(of(self.used.memory_mib, self.total.memory_mib))
            .max(of(self.used.disk_gib, self.total.disk_gib))
    }
    /// Whether any VM at all may still go on it.
    fn candidate(&self) -> bool {
        let free = self.free();
        self.open() && free.vcpus > 0 && free.memory_mib > 0 && free.disk_gib > 0
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
    affinity: GroupHosts,
    anti_affinity: GroupHosts,
}

impl Hosts {
    /// From what the manager says, with nothing on them yet.
    #[must_use]
    pub fn new(name: ManagerName, listed: &[Host], over_commit: OverCommit) -> Self {
        let mut listed: Vec<&Host> = listed.iter().collect();
        listed.sort_by(|a, b| a.id.cmp(&b.id));
        listed.dedup_by(|a, b| a.id == b.id);
        let mut this = Self {
            manager: ManagerId::derive(name.as_str()),
            name,
            cordoned: false,
            hosts: Vec::with_capacity(listed.len()),
            by_id: BTreeMap::new(),
            classes: Vec::new(),
            affinity: BTreeMap::new(),
            anti_affinity: BTreeMap::new(),
        };
        let mut class_of: BTreeMap<&Labels, usize> = BTreeMap::new();
        for (index, host) in listed.into_iter().enumerate() {
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
                    disk_gib: host.disk_gib,
                },
                used: Amount::default(),
                vms: 0,
                class,
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

    /// Counts a VM on a host, whether it fits or not: it is there, or is about to be.
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

    /// Whether a VM on this host may grow by so much.
    #[must_use]
    pub fn may_grow(&self, index: HostIndex, by: &Amount) -> bool {
        by.fits(&self.host(index).free())
    }

    /// The host that the VM goes on. Nothing is counted yet: see [`Hosts::take`].
    ///
    /// # Errors
    /// When none will do: how many hosts were looked at, and how many each reason ruled out.
    pub fn choose(&self, wanted: &Wanted<'_>) -> Result<HostIndex, Refusal> {
        if self.cordoned {
            return Err(self.refusal(RefusalReason::Cordoned, format!("manager {} is cordoned", self.name)));
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
                    amount.fits(&self.host(*index).free()) && apart.is_none_or(|hosts| !hosts.contains_key(index))
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
        chosen.ok_or_else(|| self.explain(&amount, wanted))
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
            && amount.fits(&host.free())
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

    fn refusal(&self, reason: RefusalReason, detail: String) -> Refusal {
        Refusal { manager: self.manager, reason, detail }
    }

    /// Looks at every host, to say why none will do.
    fn explain(&self, amount: &Amount, wanted: &Wanted<'_>) -> Refusal {
        let named = wanted.host.map(HostId::as_str).or_else(|| wanted.require.get("host").map(String::as_str));
        let (mut unlabelled, mut cordoned, mut unusable, mut grouped, mut full) = (0_u32, 0_u32, 0_u32, 0_u32, 0_u32);
        for host in &self.hosts {
            if named.is_some_and(|name| name != host.id.as_str()) || !self.has_labels(&host.labels, wanted.require) {
                unlabelled += 1;
            } else if host.cordoned {
                cordoned += 1;
            } else if !host.usable {
                unusable += 1;
            } else if !amount.fits(&host.free()) {
                full += 1;
            } else {
                // All else would do, so it must be the groups (or a doubted host, which is full).
                if host.doubted { full += 1 } else { grouped += 1 }
            }
        }
        let reason = if grouped > 0 {
            RefusalReason::Affinity
        } else if full > 0 || self.hosts.is_empty() {
            RefusalReason::NoRoom
        } else if cordoned + unusable > 0 {
            RefusalReason::Cordoned
        } else {
            RefusalReason::NoMatch
        };
        let mut parts = Vec::new();
        let mut part = |count: u32, text: String| {
            if count > 0 {
                parts.push(format!("{count} {text}"));
            }
        };
        part(
            unlabelled,
            match named {
                Some(name) => format!("are not host {name} or lack its labels"),
                None => format!(
                    "lack the labels {}",
                    wanted.require.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
                ),
            },
        );
        part(cordoned, "are cordoned".to_owned());
        part(unusable, "are not usable".to_owned());
        part(grouped, "are ruled out by affinity".to_owned());
        part(
            full,
            format!("have no room for {} vCPUs, {} MiB, {} GiB", amount.vcpus, amount.memory_mib, amount.disk_gib),
        );
        let why = if parts.is_empty() { "it has none".to_owned() } else { parts.join(", ") };
        self.refusal(reason, format!("looked at {} hosts of {}: {why}", self.hosts.len(), self.name))
    }

    /// What is free, by class.
    #[must_use]
    pub fn summary(&self) -> Vec<ClassSummary> {
        let mut classes: Vec<ClassSummary> = self
            .classes
            .iter()
            .map(|class| ClassSummary {
                labels: class.labels.as_ref().clone(),
                hosts: class.hosts,
                hosts_open: 0,
                vcpus_total: 0,
                vcpus_free: 0,
                memory_mib_total: 0,
                memory_mib_free: 0,
                disk_gib_total: 0,
                disk_gib_free: 0,
                vcpus_free_max: 0,
                memory_mib_free_max: 0,
                disk_gib_free_max: 0,
            })
            .collect();
        for host in &self.hosts {
            let class = &mut classes[host.class];
            class.vcpus_total += host.total.vcpus;
            class.memory_mib_total += host.total.memory_mib;
            class.disk_gib_total += host.total.disk_gib;
            if !host.open() {
                // What is free on a host that takes nothing is not free for anybody.
                continue;
            }
            let free = host.free();
            class.hosts_open += 1;
            class.vcpus_free += free.vcpus;
            class.memory_mib_free += free.memory_mib;
            class.disk_gib_free += free.disk_gib;
            class.vcpus_free_max = class.vcpus_free_max.max(free.vcpus);
            class.memory_mib_free_max = class.memory_mib_free_max.max(free.memory_mib);
            class.disk_gib_free_max = class.disk_gib_free_max.max(free.disk_gib);
        }
        classes
    }
}

fn scaled(amount: u64, ratio: f64) -> u64 {
    // Ratios are small positive numbers from the configuration; the product is far below 2^53.
    (amount as f64 * ratio) as u64
}

#[cfg(test)]
mod tests;
