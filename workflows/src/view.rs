//! What placement knows of the managers: soft, a second old, and handed in as an argument.

use std::collections::BTreeMap;

use cellbus_bus::ids::{ManagerId, ManagerName};
use cellbus_bus::job::Labels;
use serde::{Deserialize, Serialize};

/// Every manager of the cluster's configuration, in the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapacityView {
    /// Summaries. A configured manager about which nothing is known is there with [`Health::Unknown`].
    pub managers: Vec<ManagerSummary>,
    /// Grows whenever the view changes.
    pub version: u64,
}

/// What the owner of a manager says of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManagerSummary {
    /// Which.
    pub id: ManagerId,
    /// Its configured name.
    pub name: String,
    /// Whether it takes work.
    pub health: Health,
    /// Whether an operator keeps new VMs off it.
    pub cordoned: bool,
    /// Free capacity by class of host: hosts whose labels are the same.
    pub classes: Vec<ClassSummary>,
    /// Operations under way.
    pub running: u32,
    /// Operations that wait for their turn at the manager.
    pub waiting: u32,
    /// How many operations may be under way at once, all kinds together.
    pub running_max: u32,
}

/// Hosts of one manager that have the same labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassSummary {
    /// Their labels, `gear` among them; without `host` and `manager`, which every host has.
    pub labels: Labels,
    /// How many hosts there are.
    pub hosts: u32,
    /// How many of them take new VMs (not cordoned, not failed).
    pub hosts_open: u32,
    /// vCPUs that all of them together may have (over-commit counted), and those still free.
    pub vcpus_total: u64,
    /// Free.
    pub vcpus_free: u64,
    /// MiB, likewise.
    pub memory_mib_total: u64,
    /// Free.
    pub memory_mib_free: u64,
    /// GiB, likewise.
    pub disk_gib_total: u64,
    /// Free.
    pub disk_gib_free: u64,
    /// The largest free vCPUs of any one host.
    pub vcpus_free_max: u64,
    /// The largest free memory of any one host, MiB.
    pub memory_mib_free_max: u64,
    /// The largest free disk of any one host, GiB.
    pub disk_gib_free_max: u64,
}

/// Whether a manager takes work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing has been heard: its owner is still opening it, or there is none.
    Unknown,
    /// It does.
    Healthy,
    /// It fails: the circuit to it is open.
    CircuitOpen,
}

/// Which manager has which name: configuration, the same in every cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManagerNames {
    by_name: BTreeMap<ManagerName, ManagerId>,
    by_id: BTreeMap<ManagerId, ManagerName>,
}

impl ManagerNames {
    /// Of these managers.
    pub fn new(names: impl IntoIterator<Item = ManagerName>) -> Self {
        let by_name: BTreeMap<_, _> = names.into_iter().map(|n| (n.clone(), ManagerId::derive(n.as_str()))).collect();
        let by_id = by_name.iter().map(|(name, id)| (*id, name.clone())).collect();
        Self { by_name, by_id }
    }
    /// The manager of this name.
    #[must_use]
    pub fn id(&self, name: &ManagerName) -> Option<ManagerId> {
        self.by_name.get(name).copied()
    }
    /// The name of this manager.
    #[must_use]
    pub fn name(&self, id: &ManagerId) -> Option<&ManagerName> {
        self.by_id.get(id)
    }
    /// All, in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ManagerName, &ManagerId)> {
        self.by_name.iter()
    }
}
