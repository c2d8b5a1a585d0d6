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
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cellbus_bus::cluster::{FORMAT, HASH_SCHEME, Mismatch};
use cellbus_bus::contract::ClusterRecord;
use cellbus_bus::embedded::{self, Embedded};
use cellbus_bus::ids::{CellId, ManagerId, ManagerName, ShardCount};
use cellbus_bus::{Bus, Env};
use cellbus_cell::cell;
use cellbus_cell::config::{self, Config};
use cellbus_cell::controller::{self, Launcher, launcher};
use cellbus_cell::driver::{Driver, Drivers};
use cellbus_cell::front::{self, hosts::OverCommit};
use cellbus_cell::{Gateway, Process, runner};
use cellbus_directory::checkpoint::{self, Checkpoint};
use cellbus_directory::replica::Replica;
use cellbus_directory::scale::Settings;
use cellbus_directory::tail::{self, Tail};
use cellbus_workflows::{Limits, ManagerNames};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use cells::Cells;

use crate::load::Target;
use crate::managers::{self, Fleet, Latency, Overcommit};
use crate::remote::RemoteFleet;
use crate::{Inventory, remote};

mod cells;
mod local;
#[cfg(test)]
mod tests;

/// Pauses between two looks at whether it is ready.
const READY_POLL: Duration = Duration::from_millis(10);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Where it keeps its data: `bus/`, `managers/` and (unless configured elsewhere) `directory/`.
    pub data: PathBuf,
    /// Everything that can be configured. Of its managers, those in other processes are connected
    /// to, and over-commit and limits count for all.
    pub config: Config,
    /// The managers simulated in this process.
    pub inventory: Inventory,
    /// How long these take.
    pub latency: Latency,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus could not be opened.
    #[error(transparent)]
    Open(#[from] embedded::OpenError),
    /// The bus does not give the cluster record.
    #[error("the cluster record cannot be read")]
    Bus(#[from] cellbus_bus::Error),
    /// The data directory was made for another configuration or build.
    #[error(transparent)]
    Record(#[from] Mismatch),
    /// The simulated managers could not be opened.
    #[error("the simulated managers cannot be opened")]
    Fleet(#[from] managers::Error),
    /// Managers of another process could not be connected to.
    #[error("the managers at {address} cannot be connected to")]
    Remote {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: remote::ConnectError,
    },
    /// A manager is configured at an address that does not serve it.
    #[error("there is no manager {name} at {address}")]
    NoSuchManager {
        /// Which.
        name: ManagerName,
        /// Where.
        address: String,
    },
}

impl Error {
    /// Whether the same may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Bus(error) => error.retryable(),
            Self::Remote { source, .. } => source.retryable(),
            Self::Open(_) | Self::Record(_) | Self::Fleet(_) | Self::NoSuchManager { .. } => false,
        }
    }
}

/// A running cluster. Dropped, its tasks end with the runtime; [`Cluster::stop`] is the orderly end.
pub struct Cluster {
    env: Env,
    bus: Arc<Embedded>,
    fleet: Arc<Fleet>,
    tail: tail::Handle,
    gateway: Gateway,
    cells: Arc<Cells>,
    controller: controller::Handle,
    /// Ends the controller, and with it what it has started elsewhere.
    stop_controller: CancellationToken,
    controlling: TaskTracker,
    /// Ends what the cells stand on, after them.
    stop_rest: CancellationToken,
    rest: TaskTracker,
}

impl Cluster {
    /// Opens everything and starts the cells. It is ready a little later: [`Cluster::ready`].
    ///
    /// # Errors
    /// When the data directory cannot be used, or managers of other processes cannot be reached.
    pub async fn open(parts: Parts, env: Env) -> Result<Self, Error> {
        let Parts { data, config, inventory, latency } = parts;
        let bus = Embedded::open(bus_config(&config, &data), env.clone())?;
        let record = cluster_record(&bus, &env, config.shards).await?;
        let fleet = Fleet::open(
            managers::Config {
                dir: Some(data.join("managers")),
                latency,
                overcommit_of: overcommits(&config),
                ..managers::Config::new(inventory)
            },
            env.clone(),
        )
        .await?;
        let drivers = Arc::new(AllDrivers::of(Arc::clone(&fleet), &config, &env).await?);

        let replica = Arc::new(Replica::new(record.shards, env.random_u64()));
        let checkpoint = Checkpoint::open(
            checkpoint_config(&config),
            checkpoint::Cluster { id: record.cluster_id, shards: record.shards },
            env.clone(),
            Arc::clone(&replica),
        )
        .await;
        let shared_bus: Arc<dyn Bus> = bus.clone();
        let (tail, tail_handle) = Tail::new(Arc::clone(&shared_bus), env.clone(), Arc::clone(&replica));
        let names = drivers.names();
        let fronts = names.iter().map(|name| front_of(&config, &drivers, name)).collect();
        let process = Process::alone(env.clone(), shared_bus, Arc::new(ManagerNames::new(names)), Arc::clone(&replica));

        let (rest, stop_rest) = (TaskTracker::new(), CancellationToken::new());
        let (folding, stop_checkpoint) = (TaskTracker::new(), CancellationToken::new());
        env.spawn("directory tail", rest.track_future(folding.track_future(tail.run(stop_rest.clone()))));
        folding.close();
        env.spawn("directory checkpoint", rest.track_future(checkpoint.run(stop_checkpoint.clone())));
        // The last checkpoint is written when nothing is folded any more.
        env.spawn(
            "directory end",
            rest.track_future(async move {
                folding.wait().await;
                stop_checkpoint.cancel();
            }),
        );
        let (beside, stop) = (process.clone(), stop_rest.clone());
        env.spawn("process", rest.track_future(async move { beside.run(stop).await }));

        let cells = Arc::new(Cells {
            env: env.clone(),
            process: process.clone(),
            config,
            fronts,
            drivers,
            running: TaskTracker::new(),
            stop: CancellationToken::new(),
            state: Mutex::default(),
        });
        let together = cells.config.cells as usize;
        for _ in 0..together {
            cells.start(together);
        }
        let gateway = Gateway::new(process);
        let (service, controller) = controller_of(&cells, &gateway);
        let (controlling, stop_controller) = (TaskTracker::new(), CancellationToken::new());
        env.spawn("controller", controlling.track_future(service.run(stop_controller.clone())));
        controlling.close();
        Ok(Self {
            env,
            bus,
            fleet,
            tail: tail_handle,
            gateway,
            cells,
            controller,
            stop_controller,
            controlling,
            stop_rest,
            rest,
        })
    }

    /// Starts one more cell. The autoscaler takes it away again, unless it is wanted.
    pub fn add_cell(&mut self) -> CellId {
        self.cells.start(1)
    }

    /// The most cells that there were at once.
    #[must_use]
    pub fn cells_peak(&self) -> usize {
        self.cells.peak()
    }
    /// What is configured of its size.
    #[must_use]
    pub fn scale(&self) -> Settings {
        self.cells.config.scale.settings.clone()
    }
    /// What the autoscaler is doing.
    #[must_use]
    pub fn controller(&self) -> &controller::Handle {
        &self.controller
    }

    /// Stops the cell that has run longest, with no goodbye, as a crash would. `None` if there is none.
    pub fn kill_cell(&mut self) -> Option<CellId> {
        self.cells.kill_oldest()
    }

    /// Waits until every shard is open or reported failed and the directory has read every log, or
    /// until `at_most` has passed; then says what is still awaited.
    ///
    /// # Errors
    /// What is still awaited.
    pub async fn ready(&self, at_most: Duration) -> cellbus_cell::gateway::Result<()> {
        let began = self.env.mono();
        loop {
            match self.gateway.ready() {
                Ok(()) => return Ok(()),
                Err(error) if self.env.mono().since(began) >= at_most => return Err(error),
                Err(_) => self.env.sleep(READY_POLL).await,
            }
        }
    }

    /// The way in.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }
    /// As the load harness takes it, by function calls.
    #[must_use]
    pub fn target(&self) -> Arc<dyn Target> {
        Arc::new(local::Local { gateway: self.gateway.clone(), bus: Arc::clone(&self.bus), env: self.env.clone() })
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
    /// How the directory's reading of the logs is doing.
    #[must_use]
    pub fn tail(&self) -> &tail::Handle {
        &self.tail
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
        self.stop_controller.cancel();
        let _ = self.env.timeout(at_most, self.controlling.wait()).await;
        self.cells.stop.cancel();
        self.cells.running.close();
        let drained = self.env.timeout(at_most, self.cells.running.wait()).await.is_some();
        if !drained {
            self.cells.kill_all();
        }
        self.stop_rest.cancel();
        self.rest.close();
        let rested = self.env.timeout(at_most, self.rest.wait()).await.is_some();
        self.fleet.close().await;
        self.bus.close().await;
        drained && rested
    }
}

/// The cluster's record, made if there is none, and whether it fits.
async fn cluster_record(bus: &Embedded, env: &Env, shards: ShardCount) -> Result<ClusterRecord, Error> {
    let bytes = (u128::from(env.random_u64()) << 64 | u128::from(env.random_u64())).to_be_bytes();
    let initial = ClusterRecord {
        cluster_id: uuid::Builder::from_random_bytes(bytes).into_uuid(),
        shards,
        hash_scheme: HASH_SCHEME,
        format: FORMAT,
        created_at: env.wall(),
    };
    let record = bus.cluster(initial).await?;
    record.check(shards)?;
    Ok(record)
}

// ── what is configured, as each part takes it ──

fn bus_config(config: &Config, data: &Path) -> embedded::Config {
    embedded::Config {
        free_bytes_min: config.disk_free_min_bytes,
        events_keep: config.events.keep_max,
        events_bytes_max: config.events.keep_max_bytes,
        ..embedded::Config::new(data.join("bus"))
    }
}

fn checkpoint_config(config: &Config) -> checkpoint::Config {
    checkpoint::Config {
        every: config.directory.checkpoint_interval,
        ..checkpoint::Config::new(&config.directory.checkpoint_dir)
    }
}

fn cell_config(config: &Config, shards: ShardCount, id: CellId, fronts: Vec<front::Config>) -> cell::Config {
    cell::Config {
        lease: config.lease.ttl,
        beat: config.lease.beat,
        runner: runner::Config {
            limits: Some(limits(config, shards)),
            snapshot_bytes_min: config.snapshot.tail_min_bytes,
            ..runner::Config::default()
        },
        in_flight_max: Some(config.in_flight_max),
        ingress: Some(config.tenants.clone()),
        ..cell::Config::local(id, fronts)
    }
}

fn controller_of(cells: &Arc<Cells>, gateway: &Gateway) -> (controller::Service, controller::Handle) {
    let (env, scale) = (&cells.env, &cells.config.scale);
    let launcher: Arc<dyn Launcher> = match &scale.launcher {
        config::scale::Launcher::None => Arc::new(launcher::Advise),
        config::scale::Launcher::Embedded => Arc::new(cells::Embedded(Arc::clone(cells))),
        config::scale::Launcher::Process { command } => launcher::ProcessLauncher::start(env.clone(), command.clone()),
        config::scale::Launcher::Command { command, time_limit } => {
            launcher::CommandLauncher::start(env.clone(), command.clone(), *time_limit)
        }
    };
    let id = format!("controller-{:016x}", env.random_u64());
    let config = controller::Config {
        id: id.parse().expect("letters, digits and dashes make a controller id"),
        configured: scale.settings.clone(),
        tuning: scale.tuning.clone(),
        // The data directory is this process's alone: no other controller can be alive.
        lease: Duration::ZERO,
    };
    controller::Service::new(config, gateway.clone(), launcher)
}

fn overcommits(config: &Config) -> BTreeMap<ManagerName, Overcommit> {
    let of = |manager: &cellbus_cell::config::Manager| Overcommit {
        vcpus: manager.over_commit_cpu,
        memory: manager.over_commit_memory,
    };
    config.managers.iter().map(|manager| (manager.name.clone(), of(manager))).collect()
}

fn front_config(config: &Config, name: &ManagerName) -> front::Config {
    front::Config { circuit: config.circuit, ..front::Config::new(name.clone()) }
}

fn front_of(config: &Config, drivers: &AllDrivers, name: &ManagerName) -> front::Config {
    let front = front_config(config, name);
    match config.managers.iter().find(|manager| manager.name == *name) {
        Some(manager) => front::Config {
            over_commit: OverCommit { cpu: manager.over_commit_cpu, memory: manager.over_commit_memory },
            limits: drivers
                .connect(ManagerId::derive(name.as_str()))
                .map(|driver| manager.limits.over(driver.limits())),
            ..front
        },
        None => front,
    }
}

fn limits(config: &Config, count: ShardCount) -> Limits {
    let own = Limits::for_shards(count);
    Limits {
        accepted_max: config.jobs.accepted_max,
        // The configured number is a bound for few shards; with many, all of them together would
        // only fill the manager's line.
        in_flight_per_manager_max: own.in_flight_per_manager_max.min(config.jobs.in_flight_per_manager_max),
        job_retention: config.jobs.retention,
        remember: config.jobs.remember,
        placement_patience: config.jobs.placement_patience,
        ..own
    }
}

/// Drivers of the managers in this process, and of those in others.
struct AllDrivers {
    fleet: Arc<Fleet>,
    remote: BTreeMap<ManagerId, (ManagerName, Arc<RemoteFleet>)>,
}

impl AllDrivers {
    async fn of(fleet: Arc<Fleet>, config: &Config, env: &Env) -> Result<Self, Error> {
        let mut fleets: BTreeMap<String, Arc<RemoteFleet>> = BTreeMap::new();
        let mut remote = BTreeMap::new();
        for manager in &config.managers {
            let cellbus_cell::config::ManagerKind::Remote { address } = &manager.kind else { continue };
            let connected = match fleets.get(address) {
                Some(connected) => Arc::clone(connected),
                None => {
                    let connected = RemoteFleet::connect(address, env.clone())
                        .await
                        .map_err(|source| Error::Remote { address: address.clone(), source })?;
                    let connected = Arc::new(connected);
                    fleets.insert(address.clone(), Arc::clone(&connected));
                    connected
                }
            };
            let id = ManagerId::derive(manager.name.as_str());
            if connected.driver(id).is_none() {
                return Err(Error::NoSuchManager { name: manager.name.clone(), address: address.clone() });
            }
            remote.insert(id, (manager.name.clone(), connected));
        }
        Ok(Self { fleet, remote })
    }
    fn names(&self) -> Vec<ManagerName> {
        let own = self.fleet.inventory().managers.iter().map(|manager| manager.name.clone());
        own.chain(self.remote.values().map(|(name, _)| name.clone())).collect()
    }
}

impl Drivers for AllDrivers {
    fn connect(&self, manager: ManagerId) -> Option<Arc<dyn Driver>> {
        match self.remote.get(&manager) {
            Some((_, fleet)) => fleet.driver(manager),
            None => self.fleet.driver(manager),
        }
    }
}
