//! Audit: what the directory says against what the managers hold.
//!
//! ```text
//!  inventory of each manager ─┐
//!  rows of that manager ──────┼─▶ Audit ─▶ Report: findings, and those in doubt ─▶ plan of repairs
//!  any other row ─────────────┘
//! ```
//!
//! Cells gather the inventories; this compares, and changes nothing. A difference about a VM with
//! work under way, or that has changed since its manager was read, is in doubt: it becomes a
//! finding when a second audit sees the same and nothing has moved in between
//! ([`Report::confirm`]). Repairs go the way of everything else, as observations to the VM's home
//! shard, which reads its manager again; what no re-reading can mend is left to a person.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{HostId, ManagerId, OpNumber, ShortName, TenantId, VmId, VmName};
use cellbus_bus::job::Size;
use serde::{Deserialize, Serialize};

use crate::replica::{PAGE_MAX, Replica, VmFilter};
use crate::vm::{Place, PowerState, Vm, VmFacts, VmState};

/// What a manager says it holds: our VMs on it.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// Whose.
    pub manager: ManagerId,
    /// When reading it began. What has changed since may differ without being wrong.
    pub read_at: WallMs,
    /// The VMs.
    pub vms: Vec<(VmId, VmFacts)>,
}

/// How the directory and a manager differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Difference {
    /// The directory has it here, its manager does not: a ghost.
    Missing {
        /// Where the directory has it.
        host: Option<HostId>,
    },
    /// A manager holds it, and the directory does not know it, or only its tombstone.
    Orphan {
        /// Where it is.
        host: HostId,
        /// Whether a job has deleted it.
        deleted: bool,
    },
    /// It is on another manager than the directory says, and only there.
    WrongManager {
        /// Where the directory has it.
        expected: ManagerId,
    },
    /// It is where the directory says, or should be, and on this manager besides.
    Double {
        /// Where the directory has it; `None` for an orphan on several managers.
        expected: Option<ManagerId>,
    },
    /// It is on another host of its manager.
    WrongHost {
        /// What the directory says.
        expected: Option<HostId>,
        /// Where it is.
        found: HostId,
    },
    /// Its power is another.
    WrongPower {
        /// What the directory says.
        expected: VmState,
        /// What it is.
        found: PowerState,
    },
    /// Its shape is another.
    WrongSize {
        /// What the directory says.
        expected: SizeText,
        /// What it is.
        found: SizeText,
    },
    /// Its snapshots are others.
    WrongSnapshots {
        /// What the directory says.
        expected: Vec<ShortName>,
        /// What there is.
        found: Vec<ShortName>,
    },
}

/// A shape, in order and in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SizeText {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// MiB.
    pub memory_mib: u64,
    /// GiB.
    pub disk_gib: u64,
}
impl From<Size> for SizeText {
    fn from(size: Size) -> Self {
        Self { vcpus: size.vcpus, memory_mib: size.memory_mib, disk_gib: size.disk_gib }
    }
}
impl fmt::Display for SizeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} vCPUs, {} MiB, {} GiB", self.vcpus, self.memory_mib, self.disk_gib)
    }
}

impl Difference {
    /// As in JSON and metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing",
            Self::Orphan { .. } => "orphan",
            Self::WrongManager { .. } => "wrong_manager",
            Self::Double { .. } => "double",
            Self::WrongHost { .. } => "wrong_host",
            Self::WrongPower { .. } => "wrong_power",
            Self::WrongSize { .. } => "wrong_size",
            Self::WrongSnapshots { .. } => "wrong_snapshots",
        }
    }
}

/// One difference about one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which VM.
    pub vm: VmId,
    /// At which manager.
    pub manager: ManagerId,
    /// What.
    #[serde(flatten)]
    pub difference: Difference,
    /// Whose, if the directory knows it.
    pub tenant: Option<TenantId>,
    /// Its name, if the directory knows it.
    pub name: Option<VmName>,
    /// The last op number that the directory knows of: it has moved on if this has.
    pub op: Option<OpNumber>,
    /// The directory's `as_of`, likewise.
    pub as_of: Option<WallMs>,
}

impl Finding {
    fn new(vm: VmId, manager: ManagerId, difference: Difference, row: Option<&Vm>) -> Self {
        Self {
            vm,
            manager,
            difference,
            tenant: row.map(|row| row.tenant.clone()),
            name: row.map(|row| row.name.clone()),
            op: row.map(|row| row.op),
            as_of: row.map(|row| row.as_of),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn repair(&self) -> Repair {
        let observe = |manager| Repair::Observe { vm: self.vm, manager };
        match &self.difference {
            Difference::Missing { .. }
            | Difference::WrongHost { .. }
            | Difference::WrongPower { .. }
            | Difference::WrongSize { .. }
            | Difference::WrongSnapshots { .. } => observe(self.manager),
            Difference::WrongManager { expected } => observe(*expected),
            Difference::Orphan { host, deleted } => Repair::Person {
                vm: self.vm,
                advice: if *deleted {
                    format!("it was deleted, but manager {} holds it on host {host}: remove it there", self.manager)
                } else {
                    format!(
                        "nobody asked for it: find out who made it on host {host} of manager {}, then remove it there",
                        self.manager
                    )
                },
            },
            Difference::Double { expected } => Repair::Person {
                vm: self.vm,
                advice: match expected {
                    Some(home) => format!(
                        "compare the copy on manager {} with the one on {home}, which counts, and remove it",
                        self.manager
                    ),
                    None => format!("several managers hold it, {} among them, and nobody asked for it", self.manager),
                },
            },
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, manager, .. } = self;
        match &self.difference {
            Difference::Missing { host: Some(host) } => {
                write!(f, "{vm}: the directory has it on host {host} of manager {manager}, which does not hold it")
            }
            Difference::Missing { host: None } => {
                write!(f, "{vm}: the directory has it on manager {manager}, which does not hold it")
            }
            Difference::Orphan { host, deleted: true } => {
                write!(f, "{vm}: it was deleted, but host {host} of manager {manager} holds it")
            }
            Difference::Orphan { host, deleted: false } => {
                write!(f, "{vm}: host {host} of manager {manager} holds it, and the directory does not know it")
            }
            Difference::WrongManager { expected } => {
                write!(f, "{vm}: the directory has it on manager {expected}, and manager {manager} holds it")
            }
            Difference::Double { expected: Some(expected) } => {
                write!(f, "{vm}: manager {manager} holds it beside manager {expected}, where the directory has it")
            }
            Difference::Double { expected: None } => {
                write!(f, "{vm}: manager {manager} and others hold it, and the directory does not know it")
            }
            Difference::WrongHost { expected, found } => {
                let expected = expected.as_ref().map_or("no host yet", HostId::as_str);
                write!(f, "{vm}: it is on host {found} of manager {manager}, not on {expected}")
            }
            Difference::WrongPower { expected, found } => {
                let found = power_state(*found);
                write!(f, "{vm}: it is {found} on manager {manager}, not {expected}")
            }
            Difference::WrongSize { expected, found } => {
                write!(f, "{vm}: it has {found} on manager {manager}, not {expected}")
            }
            Difference::WrongSnapshots { expected, found } => {
                write!(
                    f,
                    "{vm}: it has {} snapshots on manager {manager}, not the {} that the directory lists",
                    found.len(),
                    expected.len()
                )
            }
        }
    }
}

/// A repair, as data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "repair", rename_all = "snake_case")]
pub enum Repair {
    /// Tell the VM's home shard that something about it was observed at this manager: it reads
    /// the VM again.
    Observe {
        /// Which VM.
        vm: VmId,
        /// At which manager.
        manager: ManagerId,
    },
    /// Only a person can mend it.
    Person {
        /// Which VM.
        vm: VmId,
        /// What to do.
        advice: String,
    },
}
impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observe { vm, manager } => write!(f, "{vm}: read it again at manager {manager}"),
            Self::Person { vm, advice } => write!(f, "{vm}: by hand: {advice}"),
        }
    }
}

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Managers that were compared.
    pub managers: usize,
    /// Managers that could not be read, and why. Their VMs were not compared.
    pub unread: Vec<(ManagerId, String)>,
    /// VMs that the managers hold.
    pub vms_held: usize,
    /// VMs that the directory has on these managers.
    pub vms_listed: usize,
    /// VMs that the directory knows to be lost, and that are.
    pub vms_lost: usize,
    /// Differences, by VM.
    pub findings: Vec<Finding>,
    /// Differences that may be passing: of VMs with work under way, or changed meanwhile.
    pub in_doubt: Vec<Finding>,
}

impl Report {
    /// Whether directory and managers agree, all managers having been read.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.in_doubt.is_empty() && self.unread.is_empty()
    }

    /// What to do, by VM, each once.
    #[must_use]
    pub fn plan(&self) -> Vec<Repair> {
        self.findings.iter().map(Finding::repair).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Takes those in doubt for findings that an earlier audit had in the same way, with nothing
    /// of the VM changed in between: they stay.
    #[must_use]
    pub fn confirm(mut self, earlier: &Self) -> Self {
        let (stay, pass) = self
            .in_doubt
            .into_iter()
            .partition(|finding| earlier.in_doubt.contains(finding) || earlier.findings.contains(finding));
        self.in_doubt = pass;
        self.findings.extend::<Vec<_>>(stay);
        self.findings.sort_by(|a, b| (a.vm, a.manager, &a.difference).cmp(&(b.vm, b.manager, &b.difference)));
        self
    }
}

/// An audit under way: managers are added one by one, so that no more than one inventory is held.
#[derive(Debug, Default)]
pub struct Audit {
    report: Report,
    read: BTreeMap<ManagerId, WallMs>,
    /// VMs that their manager does not hold.
    missing: BTreeMap<VmId, (Vm, ManagerId)>,
    /// VMs on managers where the directory does not have them.
    strays: BTreeMap<VmId, Stray>,
}

#[derive(Debug)]
struct Stray {
    /// What the directory knows of it.
    row: Option<Vm>,
    /// Where it is: manager, when that was read, host.
    places: Vec<(ManagerId, WallMs, HostId)>,
}

impl Audit {
    /// Nothing compared yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A manager that could not be read.
    pub fn unread(&mut self, manager: ManagerId, why: impl Into<String>) {
        self.report.unread.push((manager, why.into()));
    }

    /// Compares a manager with the rows of a replica.
    pub fn compare_with(&mut self, replica: &Replica, inventory: Inventory) {
        let filter = VmFilter { manager: Some(inventory.manager), ..VmFilter::default() };
        let mut rows = Vec::new();
        let mut cursor = None;
        // The limit and the cursor are our own, so there is no error.
        while let Ok(page) = replica.list(&filter, PAGE_MAX, cursor.as_deref()) {
            rows.extend(page.items);
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        self.compare(inventory, rows, |vm| replica.vm(vm));
    }

    /// Compares a manager with `rows`, those that the directory has on it; `look_up` gives any other.
    pub fn compare(
        &mut self,
        inventory: Inventory,
        rows: impl IntoIterator<Item = Vm>,
        look_up: impl Fn(VmId) -> Option<Vm>,
    ) {
        let Inventory { manager, read_at, vms } = inventory;
        self.report.managers += 1;
        self.report.vms_held += vms.len();
        self.read.insert(manager, read_at);
        let mut held: BTreeMap<VmId, VmFacts> = vms.into_iter().collect();
        for row in rows {
            self.report.vms_listed += 1;
            match held.remove(&row.id) {
                Some(facts) => self.compare_one(manager, read_at, &row, &facts),
                None if row.settled == VmState::Lost && row.doing.is_none() => self.report.vms_lost += 1,
                None => {
                    self.missing.insert(row.id, (row, manager));
                }
            }
        }
        for (vm, facts) in held {
            let row = look_up(vm);
            // It has come here since the rows were read, or was listed on no page for that reason.
            if let Some(row) = row.as_ref().filter(|row| home(row) == Some(manager)) {
                self.report.vms_listed += 1;
                self.compare_one(manager, read_at, row, &facts);
                continue;
            }
            // The copy of a migrate is known to both ends.
            if row.as_ref().is_some_and(|row| row.other.as_ref().is_some_and(|other| other.manager == manager)) {
                continue;
            }
            let stray = self.strays.entry(vm).or_insert_with(|| Stray { row, places: Vec::new() });
            stray.places.push((manager, read_at, facts.host));
        }
    }

    fn compare_one(&mut self, manager: ManagerId, read_at: WallMs, row: &Vm, facts: &VmFacts) {
        let expected_host = row.home.as_ref().and_then(|place| place.host.as_ref());
        let mut differences = Vec::new();
        if expected_host != Some(&facts.host) {
            differences.push(Difference::WrongHost { expected: expected_host.cloned(), found: facts.host.clone() });
        }
        if row.settled != power_state(facts.power) {
            differences.push(Difference::WrongPower { expected: row.settled, found: facts.power });
        }
        if row.size != facts.size {
            differences.push(Difference::WrongSize { expected: row.size.into(), found: facts.size.into() });
        }
        if row.snapshots != facts.snapshots {
            let (expected, found) = (row.snapshots.clone(), facts.snapshots.clone());
            differences.push(Difference::WrongSnapshots { expected, found });
        }
        for difference in differences {
            self.add(Finding::new(row.id, manager, difference, Some(row)), Some(row), read_at);
        }
    }

    fn add(&mut self, finding: Finding, row: Option<&Vm>, read_at: WallMs) {
        let passing = row.is_some_and(|row| under_way(row) || row.as_of > read_at);
        if passing { self.report.in_doubt.push(finding) } else { self.report.findings.push(finding) }
    }

    /// What was found, once all managers were compared.
    #[must_use]
    pub fn finish(mut self) -> Report {
        for (vm, Stray { row, places }) in std::mem::take(&mut self.strays) {
            let live = row.as_ref().filter(|row| !row.is_deleted());
            let several = places.len() > 1;
            for (manager, read_at, host) in places {
                let difference = match live.map(home) {
                    None if several => Difference::Double { expected: None },
                    // Not placed yet, as far as the directory knows.
                    None | Some(None) => Difference::Orphan { host, deleted: live.is_none() && row.is_some() },
                    Some(Some(expected)) => match self.missing.remove(&vm) {
                        Some(_) => Difference::WrongManager { expected },
                        None if self.read.contains_key(&expected) => Difference::Double { expected: Some(expected) },
                        None => Difference::WrongManager { expected },
                    },
                };
                self.add(Finding::new(vm, manager, difference, row.as_ref()), row.as_ref(), read_at);
            }
        }
        for (vm, (row, manager)) in std::mem::take(&mut self.missing) {
            let read_at = self.read.get(&manager).copied().unwrap_or_default();
            let host = row.home.as_ref().and_then(|place| place.host.clone());
            self.add(Finding::new(vm, manager, Difference::Missing { host }, Some(&row)), Some(&row), read_at);
        }
        let order = |a: &Finding, b: &Finding| (a.vm, a.manager, &a.difference).cmp(&(b.vm, b.manager, &b.difference));
        self.report.findings.sort_by(order);
        self.report.in_doubt.sort_by(order);
        self.report
    }
}

fn home(row: &Vm) -> Option<ManagerId> {
    row.home.as_ref().map(|Place { manager, .. }| *manager)
}

/// Whether a workflow may be changing it: a step is under way, a migrate is between its two
/// ends, or it is still being made.
fn under_way(row: &Vm) -> bool {
    row.doing.is_some() || row.other.is_some() || row.settled == VmState::Creating
}

fn power_state(power: PowerState) -> VmState {
    match power {
        PowerState::Running => VmState::Running,
        PowerState::Stopped => VmState::Stopped,
        PowerState::Suspended => VmState::Suspended,
    }
}

#[cfg(test)]
mod tests;
