//! All of Cellbus in one process: the embedded bus, a directory, cells, over simulated managers.
//!
//! ```text
//!  data/bus ── Embedded ──┬──▶ Tail ──▶ Replica ◀── Checkpoint ── data/directory
//!                         ├──▶ Cell, Cell, … ──▶ drivers ──▶ Fleet ── data/managers
//!  Gateway ───────────────┘
//! ```
//!
//! `cellbus up`, the demo and benchmarks are this, with a listener or a workload on top.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::contract::{ClusterRecord, Role};
use cellbus_bus::embedded::{self, Embedded};
use cellbus_bus::format::{Build, Formats};
use cellbus_bus::ids::{CellId, ManagerName};
use cellbus_cell::config::Config;
use cellbus_cell::driver::Factories;
use cellbus_cell::node::{self, Node, Reach};
use cellbus_cell::security::Security;
use cellbus_cell::{Gateway, controller};
use cellbus_directory::scale::Settings;

use crate::Inventory;
use crate::drivers::{self, AllDrivers};
use crate::load::Target;
use crate::managers::{self, Fleet, Latency, Overcommit};

mod local;
#[cfg(test)]
mod tests;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Everything that can be configured. In its `data_dir` lie `bus/`, `managers/` and (unless it is
    /// configured elsewhere) `directory/`. Of its managers, those in other processes are connected
    /// to, and over-commit and limits count for all.
    pub config: Config,
    /// The managers simulated in this process.
    pub inventory: Inventory,
    /// How long these take.
    pub latency: Latency,
    /// Whether these keep their VMs in `data_dir`, or in memory only, as a benchmark wants it that measures Cellbus
    /// and not them.
    pub managers_durable: bool,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus could not be opened.
    #[error(transparent)]
    Open(#[from] embedded::OpenError),
    /// The data directory was made for another configuration or build, or its record cannot be read.
    #[error(transparent)]
    Record(#[from] node::RecordError),
    /// The simulated managers could not be opened.
    #[error("the simulated managers cannot be opened")]
    Fleet(#[from] managers::Error),
    /// Managers of another process could not be connected to.
    #[error(transparent)]
    Drivers(#[from] drivers::Error),
}

impl Error {
    /// Whether the same may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Record(error) => error.retryable(),
            Self::Drivers(error) => error.retryable(),
            Self::Open(_) | Self::Fleet(_) => false,
        }
    }
}

/// A running cluster. Dropped, its tasks end with the runtime; [`Cluster::stop`] is the orderly end.
pub struct Cluster {
    env: Env,
    bus: Arc<Embedded>,
    fleet: Arc<Fleet>,
    node: Node,
    scale: Settings,
}

impl Cluster {
    /// Opens everything and starts the cells. It is ready a little later: [`Cluster::ready`].
    ///
    /// # Errors
    /// When the data directory cannot be used, or managers of other processes cannot be reached.
    pub async fn open(parts: Parts, env: Env) -> Result<Self, Error> {
        Self::open_with(parts, &Security::default(), &Factories::new(), env).await
    }

    /// As [`Cluster::open`], with the certificates of this process, and
    /// with drivers of real managers.
    ///
    /// # Errors
    /// As [`Cluster::open`].
    pub async fn open_with(parts: Parts, security: &Security, factories: &Factories, env: Env) -> Result<Self, Error> {
        let Parts { config, inventory, latency, managers_durable } = parts;
        let bus = Embedded::open(bus_config(&config), env.clone())?;
        let record = node::cluster_record(bus.as_ref(), &env, config.shards, Formats::KNOWN).await?;
        let fleet = Fleet::open(
            managers::Config {
                dir: managers_durable.then(|| config.data_dir.join("managers")),
                latency,
                overcommit_of: overcommits(&config),
                ..managers::Config::new(inventory)
            },
            env.clone(),
        )
        .await?;
        let drivers = AllDrivers::alone(Arc::clone(&fleet), &config, security.members(), factories, &env).await?;
        let scale = config.scale.settings.clone();
        let parts = node::Parts {
            bus: bus.clone(),
            record,
            names: drivers.names(),
            fronts: drivers.fronts(&config),
            drivers: Arc::new(drivers),
            config,
            role: Role::Cell,
            build: Build::current(),
            reach: Reach::Alone,
            security: security.clone(),
        };
        let node = Node::start(parts, env.clone()).await;
        Ok(Self { env, bus, fleet, node, scale })
    }

    /// Starts one more cell. The autoscaler takes it away again, unless it is wanted.
    pub fn add_cell(&mut self) -> CellId {
        self.node.add_cell()
    }

    /// The most cells that there were at once.
    #[must_use]
    pub fn cells_peak(&self) -> usize {
        self.node.cells_peak()
    }
    /// What is configured of its size.
    #[must_use]
    pub fn scale(&self) -> Settings {
        self.scale.clone()
    }
    /// What the autoscaler is doing.
    #[must_use]
    pub fn controller(&self) -> Option<&controller::Handle> {
        self.node.controller()
    }

    /// Stops the cell that has run longest, with no goodbye, as a crash would. `None` if there is none.
    pub fn kill_cell(&mut self) -> Option<CellId> {
        self.node.kill_cell()
    }

    /// Waits until every shard is open or reported failed and the directory has read every log, or
    /// until `at_most` has passed; then says what is still awaited.
    ///
    /// # Errors
    /// What is still awaited.
    pub async fn ready(&self, at_most: Duration) -> cellbus_cell::gateway::Result<()> {
        self.node.ready(at_most).await
    }

    /// The way in.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        self.node.gateway()
    }
    /// As the load harness takes it, by function calls.
    #[must_use]
    pub fn target(&self) -> Arc<dyn Target> {
        Arc::new(local::Local { gateway: self.gateway().clone(), bus: Arc::clone(&self.bus), env: self.env.clone() })
    }
    /// The bus.
    #[must_use]
    pub fn bus(&self) -> &Arc<Embedded> {
        &self.bus
    }
    /// The managers that are simulated here.
    #[must_use]
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }
    /// The cluster's record.
    #[must_use]
    pub fn record(&self) -> &ClusterRecord {
        self.node.record()
    }
    /// The environment that all of it runs in.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Drains the cells, writes the directory's checkpoint, and closes bus and managers. What is
    /// not done after `at_most` is left as a crash would leave it, which loses nothing either;
    /// `false` says so.
    pub async fn stop(self, at_most: Duration) -> bool {
        let stopped = self.node.stop(at_most).await;
        self.fleet.close().await;
        self.bus.close().await;
        stopped
    }
}

// ── what is configured, as each part takes it ──

/// As the embedded bus takes it.
#[must_use]
pub fn bus_config(config: &Config) -> embedded::Config {
    embedded::Config {
        free_bytes_min: config.disk_free_min_bytes,
        events_keep: config.events.keep_max,
        events_bytes_max: config.events.keep_max_bytes,
        ..embedded::Config::new(config.data_dir.join("bus"))
    }
}

fn overcommits(config: &Config) -> BTreeMap<ManagerName, Overcommit> {
    let of = |manager: &cellbus_cell::config::Manager| Overcommit {
        vcpus: manager.over_commit_cpu,
        memory: manager.over_commit_memory,
    };
    config.managers.iter().map(|manager| (manager.name.clone(), of(manager))).collect()
}
