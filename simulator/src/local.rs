//! A whole cluster in one process: embedded bus, simulated managers, directory, and several cells.
//!
//! `cellbus up` and `cellbus demo` are this with an HTTP server in front; benchmarks and tests use
//! it as it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cellbus_bus::contract::ClusterRecord;
use cellbus_bus::embedded::{self, Embedded};
use cellbus_bus::ids::{CellId, ManagerId, ShardCount};
use cellbus_bus::{Bus, Env};
use cellbus_cell::cell::{self, Cell};
use cellbus_cell::driver::{Driver, Drivers};
use cellbus_cell::{Gateway, Process, front, runner};
use cellbus_directory::Replica;
use cellbus_directory::tail::Tail;
use cellbus_workflows::ManagerNames;
use tokio_util::sync::CancellationToken;

use crate::managers::{self, Fleet};

/// The scheme by which keys map to shards, as the cluster record names it.
const HASH_SCHEME: u16 = 1;
/// The format that this build writes.
const FORMAT: u16 = 1;

/// How a local cluster is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The bus and its directory.
    pub bus: embedded::Config,
    /// Shards of a new cluster; an existing one keeps its own, and another number is refused.
    pub shards: ShardCount,
    /// Cells to begin with.
    pub cells: usize,
    /// How long others wait for a cell of which they hear nothing before they take over.
    pub lease: Duration,
    /// The simulated managers.
    pub fleet: managers::Config,
    /// How managers are fronted; those not named here get the defaults.
    pub fronts: Vec<front::Config>,
    /// How shards are run.
    pub runner: runner::Config,
    /// Whether cells take jobs from the bus's ingress, and of which tenants.
    pub ingress: Option<cellbus_bus::cloudevent::Tenants>,
}

impl Config {
    /// The defaults, below this directory.
    #[must_use]
    pub fn new(dir: &Path, fleet: managers::Config) -> Self {
        Self {
            bus: embedded::Config::new(dir.join("bus")),
            shards: ShardCount::DEFAULT,
            cells: 4,
            lease: Duration::from_secs(3),
            fleet: managers::Config { dir: Some(dir.join("managers")), ..fleet },
            fronts: Vec::new(),
            runner: runner::Config::default(),
            ingress: None,
        }
    }
}

/// Why a local cluster could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its bus could not be opened.
    #[error("the bus cannot be opened")]
    Bus(#[from] embedded::OpenError),
    /// Its simulated managers could not be opened.
    #[error("the simulated managers cannot be opened")]
    Managers(#[from] managers::Error),
    /// Its cluster record could not be read or written.
    #[error("the cluster record cannot be read")]
    Record(#[source] cellbus_bus::Error),
    /// The data is that of a cluster with another number of shards.
    #[error(
        "this data directory is of a cluster with {found} shards, not {asked}: leave `shards` out, or give {found}"
    )]
    Shards {
        /// What the record says.
        found: u16,
        /// What was asked for.
        asked: u16,
    },
    /// It did not get ready.
    #[error("not ready after {waited_seconds} s: {state}")]
    NotReady {
        /// How long it was waited for.
        waited_seconds: u64,
        /// What is missing.
        state: String,
    },
}

struct FleetDrivers(Arc<Fleet>);
impl Drivers for FleetDrivers {
    fn connect(&self, manager: ManagerId) -> Option<Arc<dyn Driver>> {
        self.0.driver(manager)
    }
}

/// A running cluster. Dropping it stops nothing: call [`Local::close`].
pub struct Local {
    env: Env,
    bus: Arc<Embedded>,
    record: ClusterRecord,
    fleet: Arc<Fleet>,
    replica: Arc<Replica>,
    process: Process,
    gateway: Gateway,
    lease: Duration,
    fronts: BTreeMap<ManagerId, front::Config>,
    runner: runner::Config,
    ingress: Option<cellbus_bus::cloudevent::Tenants>,
    cells: Mutex<Vec<(cell::Handle, Arc<Ended>)>>,
    born: AtomicU64,
    stop: CancellationToken,
}

/// Set when a cell's task has ended.
#[derive(Default)]
struct Ended {
    token: CancellationToken,
}

impl Local {
    /// Opens the stores and starts the cells. Not ready yet: see [`Local::ready`].
    ///
    /// # Errors
    /// When a store cannot be opened, or is of another cluster.
    pub async fn start(config: Config, env: Env) -> Result<Self, Error> {
        let bus = Embedded::open(config.bus, env.clone())?;
        let initial = ClusterRecord {
            cluster_id: uuid::Uuid::from_u64_pair(env.random_u64(), env.random_u64()),
            shards: config.shards,
            hash_scheme: HASH_SCHEME,
            format: FORMAT,
            created_at: env.wall(),
        };
        let record = bus.cluster(initial).await.map_err(Error::Record)?;
        if record.shards != config.shards {
            return Err(Error::Shards { found: record.shards.get(), asked: config.shards.get() });
        }
        let fleet = Fleet::open(config.fleet, env.clone()).await?;
        let names = ManagerNames::new(fleet.inventory().managers.iter().map(|manager| manager.name.clone()));
        let mut fronts: BTreeMap<ManagerId, front::Config> =
            names.iter().map(|(name, id)| (*id, front::Config::new(name.clone()))).collect();
        for front in config.fronts {
            fronts.insert(ManagerId::derive(front.name.as_str()), front);
        }
        let replica = Arc::new(Replica::new(record.shards, env.random_u64()));
        let stop = CancellationToken::new();
        let (tail, _) = Tail::new(Arc::clone(&bus) as Arc<dyn Bus>, env.clone(), Arc::clone(&replica));
        env.spawn("directory", tail.run(stop.clone()));
        let process =
            Process::alone(env.clone(), Arc::clone(&bus) as Arc<dyn Bus>, Arc::new(names), Arc::clone(&replica));
        let (running, token) = (process.clone(), stop.clone());
        env.spawn("process", async move { running.run(token).await });
        let local = Self {
            gateway: Gateway::new(process.clone()),
            env,
            bus,
            record,
            fleet,
            replica,
            process,
            lease: config.lease,
            fronts,
            runner: config.runner,
            ingress: config.ingress,
            cells: Mutex::new(Vec::new()),
            born: AtomicU64::new(0),
            stop,
        };
        for _ in 0..config.cells {
            local.add_cell_of(config.cells);
        }
        Ok(local)
    }

    /// Waits until every shard is open (or reported failed) and every manager's inventory is read.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn ready(&self, limit: Duration) -> Result<(), Error> {
        let began = self.env.mono();
        loop {
            match self.gateway.ready() {
                Ok(()) => return Ok(()),
                Err(error) if self.env.mono().since(began) >= limit => {
                    return Err(Error::NotReady { waited_seconds: limit.as_secs(), state: error.to_string() });
                }
                Err(_) => self.env.sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Starts one more cell, which takes its share of the shards.
    pub fn add_cell(&self) -> CellId {
        self.add_cell_of(1)
    }

    fn add_cell_of(&self, gather: usize) -> CellId {
        let number = self.born.fetch_add(1, Ordering::Relaxed) + 1;
        // A cell that restarts is another cell: its id is never used again.
        let incarnation = self.env.random_u64() & 0xffff_ffff;
        let id: CellId = format!("cell-{number}-{incarnation:08x}").parse().expect("letters, digits and hyphens");
        let mut config = cell::Config::local(id.clone(), self.fronts.values().cloned().collect());
        config.lease = self.lease;
        config.gather = (gather, Duration::from_secs(2));
        config.runner = self.runner.clone();
        config.ingress = self.ingress.clone();
        let (cell, handle) = Cell::new(config, self.process.clone(), Arc::new(FleetDrivers(Arc::clone(&self.fleet))));
        let ended = Arc::new(Ended::default());
        let (running, over) = (cell.run(CancellationToken::new()), Arc::clone(&ended));
        self.env.spawn("cell", async move {
            running.await;
            over.token.cancel();
        });
        self.cells().push((handle, ended));
        id
    }

    fn cells(&self) -> std::sync::MutexGuard<'_, Vec<(cell::Handle, Arc<Ended>)>> {
        // Nothing that can panic runs under this lock.
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its cells, oldest first.
    pub fn cell_ids(&self) -> Vec<CellId> {
        self.cells().iter().map(|(handle, _)| handle.id().clone()).collect()
    }

    /// Ends a cell at once, as a crash would. `None` if there is no such cell.
    pub fn kill_cell(&self, id: &CellId) -> Option<()> {
        let mut cells = self.cells();
        let at = cells.iter().position(|(handle, _)| handle.id() == id)?;
        cells.remove(at).0.kill();
        Some(())
    }

    /// Hands its shards over and ends it. `None` if there is no such cell.
    pub async fn drain_cell(&self, id: &CellId) -> Option<()> {
        let (handle, ended) = {
            let mut cells = self.cells();
            let at = cells.iter().position(|(handle, _)| handle.id() == id)?;
            cells.remove(at)
        };
        handle.drain();
        ended.token.cancelled().await;
        Some(())
    }

    /// What HTTP and programs in this process use.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }
    /// The shared parts.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
    /// The simulated managers.
    #[must_use]
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }
    /// The directory.
    #[must_use]
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }
    /// The bus.
    #[must_use]
    pub fn bus(&self) -> &Arc<Embedded> {
        &self.bus
    }
    /// The cluster record.
    #[must_use]
    pub fn record(&self) -> &ClusterRecord {
        &self.record
    }

    /// Stops everything in order: cells let their shards go, then the directory, then the stores.
    /// Cells that take longer than `limit` are ended as they are, which loses nothing.
    pub async fn close(&self, limit: Duration) {
        let cells = std::mem::take(&mut *self.cells());
        for (handle, _) in &cells {
            handle.drain();
        }
        let all = async {
            for (_, ended) in &cells {
                ended.token.cancelled().await;
            }
        };
        if self.env.timeout(limit, all).await.is_none() {
            cells.iter().for_each(|(handle, _)| handle.kill());
        }
        self.stop.cancel();
        self.fleet.close().await;
        self.bus.close().await;
    }
}
