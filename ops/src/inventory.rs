//! Which simulated managers and hosts there are: by size, from a CSV, or as configured.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_cell::config::{Config, ManagerKind};
use cellbus_simulator::managers::Latency;
use cellbus_simulator::{Inventory, ManagerSpec};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::exit::{Error, Result};

/// What `up` makes when nothing else is said: enough to look around in, little enough to start at once.
const HOSTS: u64 = 1_000;
/// Managers over which hosts are spread when their number is not said.
const MANAGERS: u64 = 8;

/// Where a data directory keeps what it was last started with.
const REMEMBERED: &str = "inventory.json";

/// What was said of managers and hosts when a data directory was last used, so that a start without
/// flags finds the managers that hold its VMs.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    hosts: Option<u64>,
    managers: Option<u64>,
    inventory: Option<PathBuf>,
}

/// Managers and hosts, as flags say it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Size {
    /// Make so many hosts of 64 vCPUs, 512 GiB and 10 TiB, in three gear classes
    #[arg(long, value_name = "N", conflicts_with = "inventory")]
    pub(crate) hosts: Option<u64>,
    /// Spread the hosts over so many managers [default: 8]
    #[arg(long, value_name = "N")]
    pub(crate) managers: Option<u64>,
    /// Take the hosts from a CSV with the columns name, cpu_milli, memory_mib, and optionally disk_gib and model
    #[arg(long, value_name = "FILE")]
    pub(crate) inventory: Option<PathBuf>,
    /// How long simulated managers take: none, fast (median 20 ms), realistic, or a median of your own such as 500ms
    #[arg(long, value_name = "KIND", default_value = "fast")]
    pub(crate) latency: Latency,
}

impl Size {
    /// These flags; or, if none says anything and no manager is configured, those of the last start
    /// over this data directory.
    pub(crate) fn or_remembered(self, data: &Path, config: &Config, env: &Env) -> Result<Self> {
        if self.hosts.is_some() || self.managers.is_some() || self.inventory.is_some() || !config.managers.is_empty() {
            return Ok(self);
        }
        let path = data.join(REMEMBERED);
        let shown = path.display();
        let Some(text) = env.disk().read(&path).with_context(|| format!("cannot read {shown}"))? else {
            return Ok(self);
        };
        let Remembered { hosts, managers, inventory } = serde_json::from_slice(&text)
            .with_context(|| format!("{shown} is damaged: say --hosts and --managers, or --inventory, again"))?;
        tracing::info!(?hosts, ?managers, ?inventory, "managers and hosts as at the last start");
        Ok(Self { hosts, managers, inventory, ..self })
    }

    /// Keeps them for the next start.
    pub(crate) fn remember(&self, data: &Path, env: &Env) -> Result<()> {
        let inventory = self.inventory.as_deref().map(std::path::absolute).transpose()?;
        let remembered = Remembered { hosts: self.hosts, managers: self.managers, inventory };
        let text = serde_json::to_vec(&remembered).context("numbers and a path are JSON")?;
        let path = data.join(REMEMBERED);
        Ok(env.disk().replace(&path, &text).with_context(|| format!("cannot write {}", path.display()))?)
    }

    /// The managers that these flags describe, or else those of the configuration, or else some.
    pub(crate) fn inventory(&self, config: &Config) -> Result<Inventory> {
        let managers = self.managers.unwrap_or(MANAGERS);
        if let Some(path) = &self.inventory {
            let file = File::open(path).with_context(|| format!("cannot read the inventory {}", path.display()))?;
            return Ok(Inventory::from_csv(file, managers).with_context(|| path.display().to_string())?);
        }
        if self.hosts.is_none() && self.managers.is_none() && !config.managers.is_empty() {
            return configured(config);
        }
        let hosts = self.hosts.unwrap_or(HOSTS);
        Inventory::generate(hosts, self.managers.unwrap_or(managers.min(hosts.max(1))))
            .map_err(|error| Error::Usage(error.to_string()))
    }
}

/// The managers of the configuration that are simulated in this process.
fn configured(config: &Config) -> Result<Inventory> {
    let mut managers = Vec::new();
    for manager in &config.managers {
        let ManagerKind::Simulated { hosts, host_vcpus, host_memory_mib, host_disk_gib, hosts_per_datastore } =
            manager.kind
        else {
            continue;
        };
        // In the three gear classes of any generated host; the rest is as configured.
        let mut made = match hosts {
            0 => Vec::new(),
            hosts => {
                let made = Inventory::generate(u64::from(hosts), 1).map_err(|error| Error::Usage(error.to_string()))?;
                made.managers.into_iter().flat_map(|manager| manager.hosts).collect()
            }
        };
        for (index, host) in made.iter_mut().enumerate() {
            host.id = format!("{}-h{index:04}", manager.name).parse().map_err(anyhow::Error::from)?;
            (host.vcpus, host.memory_mib, host.disk_gib) = (host_vcpus, host_memory_mib, host_disk_gib);
        }
        let mut made = ManagerSpec { name: manager.name.clone(), hosts: made };
        if hosts_per_datastore > 0 {
            made.share(hosts_per_datastore);
        }
        managers.push(made);
    }
    Ok(Inventory { managers })
}
