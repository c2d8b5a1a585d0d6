//! A VM of a simulated manager, and what an operation changes of it that needs nothing of the hosts.

use cellbus_bus::ids::{OpNumber, ShortName, TenantId, VmName};
use cellbus_bus::job::{Power, Size};
use cellbus_cell::driver::Error;
use cellbus_directory::PowerState;
use cellbus_workflows::{Action, CreateSpec};
use serde::{Deserialize, Serialize};

use super::invalid;

/// A VM as it is stored, its host aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::managers) struct VmBody {
    pub(in crate::managers) tenant: TenantId,
    pub(in crate::managers) name: VmName,
    pub(in crate::managers) size: Size,
    pub(in crate::managers) power: PowerState,
    /// The number of the last operation.
    pub(in crate::managers) op: OpNumber,
    pub(in crate::managers) affinity: Option<ShortName>,
    pub(in crate::managers) anti_affinity: Option<ShortName>,
    /// How often it was rebooted.
    pub(in crate::managers) restarts: u32,
    /// What few VMs have.
    pub(super) rare: Option<Box<Rare>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rare {
    pub(super) snapshots: Vec<Snapshot>,
    /// The last operation failed for good, and why: its number gives the same again.
    pub(super) failed: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub(super) name: ShortName,
    /// Memory is in the snapshot, so that a revert gives the power of that time back.
    pub(super) power: PowerState,
}

impl VmBody {
    pub(super) fn made(spec: &CreateSpec, op: OpNumber) -> Self {
        let power = power_of(spec.power);
        let mut made = Self {
            tenant: spec.tenant.clone(),
            name: spec.name.clone(),
            size: spec.size,
            power,
            op,
            affinity: spec.template.policy.affinity.clone(),
            anti_affinity: spec.template.policy.anti_affinity.clone(),
            restarts: 0,
            rare: None,
        };
        if !spec.snapshots.is_empty() {
            // The copy of a migrate: memory of its snapshots was copied with the power it is to have.
            let power = spec.copy_of.unwrap_or(power);
            made.rare().snapshots = spec.snapshots.iter().map(|name| Snapshot { name: name.clone(), power }).collect();
        }
        made
    }

    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
    pub(super) fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.rare.iter().flat_map(|rare| &rare.snapshots)
    }
    pub(super) fn failed(&self) -> Option<&str> {
        self.rare.as_ref().and_then(|rare| rare.failed.as_deref())
    }

    /// What an operation changes that needs nothing of the hosts.
    pub(super) fn change(&mut self, action: &Action) -> Result<(), Error> {
        match action {
            Action::Create(spec) if (&spec.tenant, &spec.name) != (&self.tenant, &self.name) => {
                return Err(invalid(format!("a VM with this id is there, and is {} of {}", self.name, self.tenant)));
            }
            // What failed half way is brought to its end; otherwise the VM is left as it is.
            Action::Create(spec) if self.failed().is_some() => self.power = power_of(spec.power),
            Action::Create(_) | Action::Resize(_) | Action::Relocate(_) | Action::Delete | Action::Inspect => {}
            Action::Adopt(spec) => (self.tenant, self.name) = (spec.tenant.clone(), spec.name.clone()),
            Action::Start => self.power = PowerState::Running,
            Action::Stop(_) => self.power = PowerState::Stopped,
            Action::Restart(_) => {
                self.expect(PowerState::Running, "restarted")?;
                self.restarts = self.restarts.saturating_add(1);
            }
            Action::Suspend => match self.power {
                PowerState::Suspended => {}
                PowerState::Running | PowerState::Stopped => {
                    self.expect(PowerState::Running, "suspended")?;
                    self.power = PowerState::Suspended;
                }
            },
            Action::Resume => match self.power {
                PowerState::Running => {}
                PowerState::Suspended | PowerState::Stopped => {
                    self.expect(PowerState::Suspended, "resumed")?;
                    self.power = PowerState::Running;
                }
            },
            Action::Snapshot(name) => {
                if self.snapshots().any(|snapshot| snapshot.name == *name) {
                    return Err(invalid(format!("there is a snapshot {name} already")));
                }
                let power = self.power;
                self.rare().snapshots.push(Snapshot { name: name.clone(), power });
            }
            Action::Revert(name) => {
                let found = self.snapshots().find(|snapshot| snapshot.name == *name).map(|snapshot| snapshot.power);
                self.power = found.ok_or_else(|| invalid(format!("there is no snapshot {name}")))?;
            }
            Action::SnapshotDelete(name) => {
                if let Some(rare) = &mut self.rare {
                    rare.snapshots.retain(|snapshot| snapshot.name != *name);
                }
            }
        }
        Ok(())
    }

    fn expect(&self, power: PowerState, done: &str) -> Result<(), Error> {
        if self.power == power {
            return Ok(());
        }
        let now = match self.power {
            PowerState::Running => "running",
            PowerState::Stopped => "powered off",
            PowerState::Suspended => "suspended",
        };
        Err(invalid(format!("a VM that is {now} cannot be {done}")))
    }
}

fn power_of(asked: Power) -> PowerState {
    match asked {
        Power::On => PowerState::Running,
        Power::Off => PowerState::Stopped,
    }
}
