//! One process of a cluster: a directory, or cells, or both; and the way to those of other processes.
//!
//! ```text
//!  bus ──┬──▶ Tail ──▶ Replica ◀── Checkpoint ── disk     (alone, or a directory)
//!        ├──▶ Cell, Cell, … ──▶ drivers of managers       (alone, or a cell)
//!        └──▶ Gateway ◀── HTTP server, which members call too
//! ```
//!
//! Every role is this: `cellbus up` has cells and is alone, `cellbus cell` has cells among others,
//! `cellbus directory` has none and says so to the members, and `cellbus controller` has the
//! autoscaler, which is beside the cells where they are alone.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cellbus_bus::cluster::{HASH_SCHEME, Mismatch};
use cellbus_bus::contract::{ClusterRecord, Role};
use cellbus_bus::format::{Build, Formats};
use cellbus_bus::ids::{CellId, ManagerName, ShardCount};
use cellbus_bus::{Bus, Env};
use cellbus_directory::checkpoint::{self, Checkpoint};
use cellbus_directory::replica::Replica;
use cellbus_directory::tail::{self, Tail};
use cellbus_workflows::{Limits, ManagerNames};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cell;
use crate::config::{self, Config};
use crate::controller::{self, Launcher, launcher};
use crate::directory;
use crate::driver::Drivers;
use crate::http::Members;
use crate::metrics;
use crate::peers::{HttpPeers, LocalPeers, Peers};
use crate::presence::Presence;
use crate::security::{MembersTls, Security};
#[cfg(feature = "otlp")]
use crate::spans::Exporter;
use crate::{Gateway, Process, front, runner};

mod cells;

use cells::Cells;

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
    /// Of which build it is.
    pub build: Build,
    /// Whether there are other processes.
    pub reach: Reach,
    /// Certificates of this process.
    pub security: Security,
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
    record: ClusterRecord,
    process: Process,
    gateway: Gateway,
    tail: Option<tail::Handle>,
    cells: Arc<Cells>,
    controller: Option<controller::Handle>,
    /// Ends the controller, and with it what it has started elsewhere.
    stop_controller: CancellationToken,
    controlling: TaskTracker,
    /// Ends what the cells stand on, after them.
    stop_rest: CancellationToken,
    rest: TaskTracker,
}

impl Node {
    /// Starts the directory, as many cells as are configured unless it is to have none, and the
    /// autoscaler where it belongs. It is ready a little later: [`Node::ready`].
    pub async fn start(parts: Parts, env: Env) -> Self {
        let Parts { bus, record, config, names, fronts, drivers, role, build, reach, security } = parts;
        let (local, names) = (LocalPeers::default(), Arc::new(ManagerNames::new(names)));
        let peers: Arc<dyn Peers> = match &reach {
            Reach::Alone => Arc::new(local.clone()),
            Reach::Http { tls, metrics, .. } => Arc::new(HttpPeers::with_tls(
                local.clone(),
                record.cluster_id,
                env.clone(),
                metrics.clone(),
                tls.clone(),
            )),
        };
        let (rest, stop_rest) = (TaskTracker::new(), CancellationToken::new());
        let keeps = match (&reach, role) {
            (Reach::Alone, _) | (_, Role::Directory) => true,
            // These have nothing of their own, and ask the directory: there may be many of them.
            (Reach::Http { .. }, Role::Cell | Role::Controller) => false,
        };
        let (process, tail) = if keeps {
            let replica = Arc::new(Replica::new(record.shards, env.random_u64()));
            let cluster = checkpoint::Cluster { id: record.cluster_id, shards: record.shards };
            let checkpoint = Checkpoint::open(checkpoint_config(&config), cluster, env.clone(), Arc::clone(&replica));
            let checkpoint = checkpoint.await;
            let (tail, following) = Tail::new(Arc::clone(&bus), env.clone(), Arc::clone(&replica));
            follow(&env, tail.reading(build.formats), checkpoint, &rest, &stop_rest);
            (Process::new(env.clone(), bus, peers, local, names, replica), Some(following))
        } else {
            (Process::without_replica(env.clone(), bus, peers, local, names, record.shards), None)
        };
        let process = process.of_build(build, &record);
        let (beside, stop) = (process.clone(), stop_rest.clone());
        env.spawn("process", rest.track_future(async move { beside.run(stop).await }));

        let alone = matches!(reach, Reach::Alone);
        #[cfg(feature = "otlp")]
        let exporter = config
            .otlp
            .clone()
            .and_then(|otlp| Exporter::open(&process.spans, otlp, security, &process.build().version, env.clone()));
        #[cfg(not(feature = "otlp"))]
        drop(security);
        let cells = Arc::new(Cells {
            process: process.clone(),
            config,
            reach,
            fronts,
            drivers,
            running: TaskTracker::new(),
            stop: CancellationToken::new(),
            state: Mutex::default(),
        });
        let mut node = Self {
            env,
            record,
            gateway: Gateway::new(process.clone()),
            process,
            tail,
            cells,
            controller: None,
            stop_controller: CancellationToken::new(),
            controlling: TaskTracker::new(),
            stop_rest,
            rest,
        };
        #[cfg(feature = "otlp")]
        if let Some(exporter) = exporter {
            let sending = exporter.run(node.gateway.clone(), node.stop_rest.clone());
            node.env.spawn("spans", node.rest.track_future(sending));
        }
        match role {
            Role::Cell => {
                let together = node.cells.config.cells as usize;
                for _ in 0..together {
                    node.cells.start(together);
                }
                if alone {
                    // The data directory is this process's alone: no other controller can be alive.
                    node.control(None, Duration::ZERO);
                }
            }
            Role::Directory => {
                let presence = node.presence(role, "directory");
                if let Some(tail) = node.tail.clone() {
                    let cells = &node.cells;
                    let member = directory::serve(presence, tail, cells.stop.clone());
                    node.env.spawn("directory member", cells.running.track_future(member));
                }
            }
            Role::Controller => {
                let presence = node.presence(role, "controller");
                let member = presence.id.clone();
                let cells = &node.cells;
                node.env.spawn("presence", cells.running.track_future(presence.run(cells.stop.clone())));
                node.control(Some(member), node.cells.config.scale.controller_lease);
            }
        }
        node
    }

    /// As what this process is there among the members.
    fn presence(&self, role: Role, what: &str) -> Presence {
        let cells = &self.cells;
        let id = cells.next_id(what);
        Presence {
            process: self.process.clone(),
            address: cells.reach.address(&id),
            id,
            role,
            every: cells.config.lease.beat,
            ttl: cells.config.lease.ttl,
        }
    }

    /// Starts the autoscaler; `lease` is how long another one may be silent before this one takes over.
    fn control(&mut self, member: Option<CellId>, lease: Duration) {
        let (env, scale) = (&self.env, &self.cells.config.scale);
        let launcher: Arc<dyn Launcher> = match &scale.launcher {
            config::scale::Launcher::None => Arc::new(launcher::Advise),
            config::scale::Launcher::Embedded => Arc::new(cells::Embedded(Arc::clone(&self.cells))),
            config::scale::Launcher::Process { command } => {
                launcher::ProcessLauncher::start(env.clone(), command.clone())
            }
            config::scale::Launcher::Command { command, time_limit } => {
                launcher::command::start(env.clone(), command.clone(), *time_limit)
            }
            #[cfg(feature = "kubernetes")]
            config::scale::Launcher::Kubernetes(of) => launcher::kubernetes::start(env.clone(), of.clone()),
            // The process refuses to start (`Launcher::lacks`).
            #[cfg(not(feature = "kubernetes"))]
            config::scale::Launcher::Kubernetes(_) => Arc::new(launcher::Advise),
        };
        let id = format!("controller-{:016x}", env.random_u64());
        let config = controller::Config {
            id: id.parse().expect("letters, digits and dashes make a controller id"),
            member,
            configured: scale.settings.clone(),
            tuning: scale.tuning.clone(),
            lease,
        };
        let (service, handle) = controller::Service::new(config, self.gateway.clone(), launcher);
        self.env.spawn("controller", self.controlling.track_future(service.run(self.stop_controller.clone())));
        self.controller = Some(handle);
    }

    /// Starts one more cell. The autoscaler takes it away again, unless it is wanted.
    pub fn add_cell(&self) -> CellId {
        self.cells.start(1)
    }

    /// Stops the cell that has run longest, with no goodbye, as a crash would. `None` if there is none.
    pub fn kill_cell(&self) -> Option<CellId> {
        self.cells.kill_oldest()
    }

    /// The most cells that there were at once.
    #[must_use]
    pub fn cells_peak(&self) -> usize {
        self.cells.peak()
    }

    /// What the autoscaler is doing, if there is one in this process.
    #[must_use]
    pub fn controller(&self) -> Option<&controller::Handle> {
        self.controller.as_ref()
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
    /// The cluster's record, as it was at the start.
    #[must_use]
    pub fn record(&self) -> &ClusterRecord {
        &self.record
    }
    /// How the directory's reading of the logs is doing, if it is in this process.
    #[must_use]
    pub fn tail(&self) -> Option<&tail::Handle> {
        self.tail.as_ref()
    }
    /// What its HTTP server serves to the other processes, if there are any.
    #[must_use]
    pub fn members(&self) -> Option<Members> {
        match self.cells.reach {
            Reach::Alone => None,
            Reach::Http { .. } => {
                Some(Members { cells: self.process.local().clone(), cluster: self.record.cluster_id })
            }
        }
    }

    /// Why its build may not take part any more, if so: then it hands over and ends.
    #[must_use]
    pub fn outdated(&self) -> Option<Arc<Mismatch>> {
        self.process.outdated()
    }

    /// Ends once every cell has: drained by an operator, say. Without cells, once the build may not
    /// take part any more.
    pub async fn cells_ended(&self) {
        let running = &self.cells.running;
        running.close();
        running.wait().await;
        running.reopen();
    }

    /// Drains the cells and writes the directory's checkpoint. What is not done after `at_most` is
    /// left as a crash would leave it, which loses nothing either; `false` says so.
    pub async fn stop(self, at_most: Duration) -> bool {
        self.stop_controller.cancel();
        self.controlling.close();
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
        drained && rested
    }
}

/// Has a replica follow the logs until `stop`; its last checkpoint is written when nothing is folded any
/// more.
fn follow(env: &Env, tail: Tail, checkpoint: Checkpoint, running: &TaskTracker, stop: &CancellationToken) {
    let (folding, stop_checkpoint) = (TaskTracker::new(), CancellationToken::new());
    env.spawn("directory tail", running.track_future(folding.track_future(tail.run(stop.clone()))));
    folding.close();
    env.spawn("directory checkpoint", running.track_future(checkpoint.run(stop_checkpoint.clone())));
    env.spawn(
        "directory end",
        running.track_future(async move {
            folding.wait().await;
            stop_checkpoint.cancel();
        }),
    );
}

/// Why a process may not take part in a cluster.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The bus does not give the cluster record.
    #[error("the cluster record cannot be read")]
    Bus(#[from] cellbus_bus::Error),
    /// The cluster was made for another configuration or build.
    #[error("{code}: {0}", code = .0.code())]
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

/// The cluster's record, made if there is none, if it fits: a new cluster writes the newest of the
/// formats that the build knows which makes it.
///
/// # Errors
/// [`RecordError`].
pub async fn cluster_record(
    bus: &dyn Bus,
    env: &Env,
    shards: ShardCount,
    formats: Formats,
) -> Result<ClusterRecord, RecordError> {
    let bytes = (u128::from(env.random_u64()) << 64 | u128::from(env.random_u64())).to_be_bytes();
    let initial = ClusterRecord {
        cluster_id: uuid::Builder::from_random_bytes(bytes).into_uuid(),
        shards,
        hash_scheme: HASH_SCHEME,
        format: formats.newest,
        created_at: env.wall(),
    };
    let record = bus.cluster(initial).await?;
    record.check(shards, formats)?;
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
        in_flight_max: Some(config.in_flight_max),
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
