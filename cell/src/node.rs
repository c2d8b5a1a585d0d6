//! One process of a cluster: a directory, the cells beside it, the way to those of other processes.
//!
//! ```text
//!  bus ──┬──▶ Tail ──▶ Replica ◀── Checkpoint ── disk
//!        ├──▶ Cell, Cell, … ──▶ drivers of managers
//!        └──▶ Gateway ◀── HTTP server, which members call too
//! ```
//!
//! Every role is this: `cellbus up` has cells and is alone, `cellbus cell` has cells among others,
//! `cellbus directory` has none and says so to the members.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::cluster::{FORMAT, HASH_SCHEME, Mismatch};
use cellbus_bus::contract::{ClusterRecord, Role};
use cellbus_bus::ids::{CellId, ManagerName, ShardCount};
use cellbus_bus::{Bus, Env};
use cellbus_directory::checkpoint::{self, Checkpoint};
use cellbus_directory::replica::Replica;
use cellbus_directory::tail::{self, Tail};
use cellbus_workflows::{Limits, ManagerNames};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cell::{self, Cell, Handle};
use crate::config::Config;
use crate::driver::Drivers;
use crate::http::Members;
use crate::metrics;
use crate::security::MembersTls;
use crate::peers::{HttpPeers, LocalPeers, Peers};
use crate::{Gateway, Process, front, runner};

mod presence;

/// How long cells that start together wait for each other, so that shards do not move.
const GATHER: Duration = Duration::from_secs(2);
/// How long a cell that joins a cluster looks who is there before it opens its first shard.
const LOOK_ROUND: Duration = Duration::from_millis(500);
/// Pauses between two looks at whether it is ready.
const READY_POLL: Duration = Duration::from_millis(10);

/// What a node is made of.
pub struct Parts {
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// The cluster's record, from [`cluster_record`].
    pub record: ClusterRecord,
    /// Everything that can be configured.
    pub config: Config,
    /// The managers of the whole cluster, the same in every process.
    pub names: Vec<ManagerName>,
    /// How each of them is fronted.
    pub fronts: Vec<front::Config>,
    /// Connections to them.
    pub drivers: Arc<dyn Drivers>,
    /// What it is there for.
    pub role: Role,
    /// Whether there are other processes.
    pub reach: Reach,
}

/// Whether there are other processes, and how they reach this one.
pub enum Reach {
    /// There are none.
    Alone,
    /// Over HTTP.
    Http {
        /// Where this process is reached: `http://host:port`.
        address: String,
        /// Certificates by which members know each other, if the network is not to be trusted.
        tls: Option<MembersTls>,
        /// Counts what goes to the others.
        metrics: metrics::peers::Metrics,
    },
}

impl Reach {
    fn address(&self, cell: &CellId) -> String {
        match self {
            Self::Alone => format!("local:{cell}"),
            Self::Http { address, .. } => address.clone(),
        }
    }
}

/// A running node. Dropped, its tasks end with the runtime; [`Node::stop`] is the orderly end.
pub struct Node {
    env: Env,
    config: Config,
    shards: ShardCount,
    record: ClusterRecord,
    reach: Reach,
    fronts: Vec<front::Config>,
    drivers: Arc<dyn Drivers>,
    process: Process,
    gateway: Gateway,
    tail: tail::Handle,
    cells: Vec<Handle>,
    incarnations: u32,
    running: TaskTracker,
    /// Ends the cells, by draining.
    stop_cells: CancellationToken,
    /// Ends what the cells stand on, after them.
    stop_rest: CancellationToken,
    rest: TaskTracker,
}

impl Node {
    /// Starts the directory, and as many cells as are configured unless it is to have none. It is
    /// ready a little later: [`Node::ready`].
    pub async fn start(parts: Parts, env: Env) -> Self {
        let Parts { bus, record, config, names, fronts, drivers, role, reach } = parts;
        let replica = Arc::new(Replica::new(record.shards, env.random_u64()));
        let keeps = match (&reach, role) {
            (Reach::Alone, _) | (_, Role::Directory) => true,
            // A cell has nothing of its own: there may be many on one machine.
            (Reach::Http { .. }, Role::Cell) => false,
        };
        let checkpoint = if keeps {
            let cluster = checkpoint::Cluster { id: record.cluster_id, shards: record.shards };
            Some(Checkpoint::open(checkpoint_config(&config), cluster, env.clone(), Arc::clone(&replica)).await)
        } else {
            None
        };
        let (tail, following) = Tail::new(Arc::clone(&bus), env.clone(), Arc::clone(&replica));
        let (local, names) = (LocalPeers::default(), Arc::new(ManagerNames::new(names)));
        let peers: Arc<dyn Peers> = match &reach {
            Reach::Alone => Arc::new(local.clone()),
            Reach::Http { tls, metrics, .. } => {
                let (cluster, metrics) = (record.cluster_id, metrics.clone());
                Arc::new(match tls {
                    Some(tls) => HttpPeers::with_tls(local.clone(), cluster, env.clone(), metrics, tls.clone()),
                    None => HttpPeers::new(local.clone(), cluster, env.clone(), metrics),
                })
            }
        };
        let process = Process::new(env.clone(), Arc::clone(&bus), peers, local, names, replica);

        let (rest, stop_rest) = (TaskTracker::new(), CancellationToken::new());
        let (folding, stop_checkpoint) = (TaskTracker::new(), CancellationToken::new());
        env.spawn("directory tail", rest.track_future(folding.track_future(tail.run(stop_rest.clone()))));
        folding.close();
        if let Some(checkpoint) = checkpoint {
            env.spawn("directory checkpoint", rest.track_future(checkpoint.run(stop_checkpoint.clone())));
        }
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

        let mut node = Self {
            env,
            shards: record.shards,
            record,
            config,
            reach,
            fronts,
            drivers,
            gateway: Gateway::new(process.clone()),
            process,
            tail: following,
            cells: Vec::new(),
            incarnations: 0,
            running: TaskTracker::new(),
            stop_cells: CancellationToken::new(),
            stop_rest,
            rest,
        };
        match role {
            Role::Cell => {
                for _ in 0..node.config.cells {
                    node.start_cell(node.config.cells as usize);
                }
            }
            Role::Directory => node.announce(bus, role),
        }
        node
    }

    /// Says to the members that this process is there.
    fn announce(&mut self, bus: Arc<dyn Bus>, role: Role) {
        let id = self.next_id("directory");
        let presence = presence::Presence {
            bus,
            env: self.env.clone(),
            address: self.reach.address(&id),
            id,
            role,
            every: self.config.lease.beat,
            ttl: self.config.lease.ttl,
        };
        self.env.spawn("presence", self.running.track_future(presence.run(self.stop_cells.clone())));
    }

    /// Starts one more cell.
    pub fn add_cell(&mut self) -> CellId {
        self.start_cell(1)
    }

    /// Never used before, in this process or an earlier one.
    fn next_id(&mut self, what: &str) -> CellId {
        self.incarnations += 1;
        let id = format!("{what}-{}-{:08x}", self.incarnations, self.env.random_u64() as u32);
        id.parse().expect("letters, digits and dashes make a cell id")
    }

    fn start_cell(&mut self, together: usize) -> CellId {
        let id = self.next_id("cell");
        let (gather, settle) = match self.reach {
            Reach::Alone => ((together, GATHER), Duration::ZERO),
            // How many there will be, nobody knows.
            Reach::Http { .. } => ((usize::MAX, LOOK_ROUND), self.config.lease.ttl),
        };
        let config = cell::Config {
            address: self.reach.address(&id),
            gather,
            settle,
            ..cell_config(&self.config, self.shards, id.clone(), self.fronts.clone())
        };
        let (cell, handle) = Cell::new(config, self.process.clone(), Arc::clone(&self.drivers));
        self.env.spawn("cell", self.running.track_future(cell.run(self.stop_cells.clone())));
        self.cells.push(handle);
        id
    }

    /// Stops the cell that has run longest, with no goodbye, as a crash would. `None` if there is none.
    pub fn kill_cell(&mut self) -> Option<CellId> {
        if self.cells.is_empty() {
            return None;
        }
        let handle = self.cells.remove(0);
        handle.kill();
        Some(handle.id().clone())
    }

    /// Waits until every shard is open or reported failed and the directory has read every log, or
    /// until `at_most` has passed; then says what is still awaited.
    ///
    /// # Errors
    /// What is still awaited.
    pub async fn ready(&self, at_most: Duration) -> crate::gateway::Result<()> {
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
    /// How the directory's reading of the logs is doing.
    #[must_use]
    pub fn tail(&self) -> &tail::Handle {
        &self.tail
    }
    /// What its HTTP server serves to the other processes, if there are any.
    #[must_use]
    pub fn members(&self) -> Option<Members> {
        match self.reach {
            Reach::Alone => None,
            Reach::Http { .. } => {
                Some(Members { cells: self.process.local().clone(), cluster: self.record.cluster_id })
            }
        }
    }

    /// Ends once every cell has: drained by an operator, say.
    pub async fn cells_ended(&self) {
        self.running.close();
        self.running.wait().await;
        self.running.reopen();
    }

    /// Drains the cells and writes the directory's checkpoint. What is not done after `at_most` is
    /// left as a crash would leave it, which loses nothing either; `false` says so.
    pub async fn stop(self, at_most: Duration) -> bool {
        self.stop_cells.cancel();
        self.running.close();
        let drained = self.env.timeout(at_most, self.running.wait()).await.is_some();
        if !drained {
            self.cells.iter().for_each(Handle::kill);
        }
        self.stop_rest.cancel();
        self.rest.close();
        let rested = self.env.timeout(at_most, self.rest.wait()).await.is_some();
        drained && rested
    }
}

/// Why a process may not take part in a cluster.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The bus does not give the cluster record.
    #[error("the cluster record cannot be read")]
    Bus(#[from] cellbus_bus::Error),
    /// The cluster was made for another configuration or build.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

impl RecordError {
    /// Whether the same may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Bus(error) => error.retryable(),
            Self::Mismatch(mismatch) => mismatch.retryable(),
        }
    }
}

/// The cluster's record, made if there is none, if it fits.
///
/// # Errors
/// [`RecordError`].
pub async fn cluster_record(bus: &dyn Bus, env: &Env, shards: ShardCount) -> Result<ClusterRecord, RecordError> {
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

/// As the directory's checkpoint takes it.
#[must_use]
pub fn checkpoint_config(config: &Config) -> checkpoint::Config {
    checkpoint::Config {
        every: config.directory.checkpoint_interval,
        ..checkpoint::Config::new(&config.directory.checkpoint_dir)
    }
}

/// As a cell takes it.
#[must_use]
pub fn cell_config(config: &Config, shards: ShardCount, id: CellId, fronts: Vec<front::Config>) -> cell::Config {
    cell::Config {
        lease: config.lease.ttl,
        beat: config.lease.beat,
        runner: runner::Config {
            limits: Some(limits(config, shards)),
            snapshot_bytes_min: config.snapshot.tail_min_bytes,
            ..runner::Config::default()
        },
        ingress: Some(config.tenants.clone()),
        ..cell::Config::local(id, fronts)
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
