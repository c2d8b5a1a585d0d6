//! The cells of a simulated cluster: each a process of its own, with the real code of a cell, of
//! its gateway and of its directory, on a node that can die.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellbus_bus::Bus;
use cellbus_bus::cloudevent::Tenants;
use cellbus_bus::contract::Role;
use cellbus_bus::env::Env;
use cellbus_bus::ids::{CellId, ManagerName, ShardCount};
use cellbus_cell::cell::{self, Cell, Handle};
use cellbus_cell::directory::serve;
use cellbus_cell::peers::LocalPeers;
use cellbus_cell::presence::Presence;
use cellbus_cell::{Gateway, Process, front, runner};
use cellbus_directory::checkpoint::{self, Checkpoint};
use cellbus_directory::replica::Replica;
use cellbus_directory::tail::{self, Tail};
use cellbus_workflows::ManagerNames;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::bus::SimulatedBus;
use super::disk::NodeDisk;
use super::env;
use super::executor::{Executor, NodeId};
use super::history::History;
use super::managers::Links;
use super::network::{Network, NodePeers};

/// How long cells wait for each other when all start together.
const GATHER: Duration = Duration::from_secs(2);

/// How every cell is.
#[derive(Clone)]
pub(super) struct Shape {
    pub(super) shards: ShardCount,
    pub(super) lease: Duration,
    pub(super) runner: runner::Config,
    pub(super) managers: Vec<ManagerName>,
    pub(super) together: usize,
    /// Calls that a cell has under way; `None`: as many as it likes.
    pub(super) in_flight_max: Option<u32>,
    /// For checkpoints of directories, if they have any.
    pub(super) checkpoints: Option<checkpoint::Cluster>,
    /// What rots on disks has the right checksum: a deliberate bug.
    pub(super) unchecked: bool,
    /// The directories are processes of their own, beside the cells, which ask them.
    pub(super) apart: bool,
}

/// Checkpoints that are written often, since runs are short.
fn checkpoints() -> checkpoint::Config {
    checkpoint::Config {
        every: Duration::from_secs(2),
        entries_min: 32,
        at_latest: Duration::from_secs(10),
        threads: 1,
        renew_bytes_min: 64 << 10,
        ..checkpoint::Config::new("checkpoint")
    }
}

/// A cell that runs.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) node: NodeId,
    pub(super) id: CellId,
    pub(super) env: Env,
    pub(super) gateway: Gateway,
    pub(super) replica: Arc<Replica>,
    pub(super) handle: Handle,
    pub(super) tail: tail::Handle,
    /// It has left, or been stopped.
    pub(super) ended: Arc<AtomicBool>,
    address: String,
}

/// Where the cell of a node is reached.
fn address(node: NodeId) -> String {
    format!("sim:{}", node.0)
}

/// Where the directory of a node is reached, if it is apart from the cell.
fn directory_address(node: NodeId) -> String {
    format!("sim:{}:directory", node.0)
}

/// All cells.
pub(super) struct Cells {
    executor: Arc<Executor>,
    seed: u64,
    shape: Shape,
    bus: SimulatedBus,
    network: Arc<Network>,
    links: Arc<Links>,
    history: Arc<History>,
    names: Arc<ManagerNames>,
    running: Mutex<BTreeMap<NodeId, Running>>,
    disks: Mutex<BTreeMap<NodeId, NodeDisk>>,
}

impl Cells {
    pub(super) fn new(
        executor: &Arc<Executor>,
        seed: u64,
        shape: Shape,
        bus: SimulatedBus,
        network: Arc<Network>,
        links: Arc<Links>,
        history: Arc<History>,
    ) -> Arc<Self> {
        let names = Arc::new(ManagerNames::new(shape.managers.iter().cloned()));
        Arc::new(Self {
            executor: Arc::clone(executor),
            seed,
            shape,
            bus,
            network,
            links,
            history,
            names,
            running: Mutex::default(),
            disks: Mutex::default(),
        })
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<NodeId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk of a node, which stays when its cells go.
    pub(super) fn disk(&self, node: NodeId) -> NodeDisk {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks
            .entry(node)
            .or_insert_with(|| NodeDisk::new(self.seed ^ u64::from(node.0) << 8, self.shape.unchecked))
            .clone()
    }

    /// A process on a node, as it is now, with nothing in it yet.
    pub(super) fn process(&self, node: NodeId) -> (Process, Env, Arc<Replica>) {
        let env = env::of(&self.executor, node, self.seed);
        let bus: Arc<dyn Bus> = self.bus.client(node);
        let own = LocalPeers::default();
        let peers = Arc::new(NodePeers { network: Arc::clone(&self.network), node, own: own.clone() });
        let replica = Arc::new(Replica::new(self.shape.shards, env.random_u64()));
        let names = Arc::clone(&self.names);
        (Process::new(env.clone(), bus, peers, own, names, Arc::clone(&replica)), env, replica)
    }

    fn process_without_replica(&self, node: NodeId, env: &Env) -> Process {
        let (env, bus) = (env.clone(), self.bus.client(node));
        let own = LocalPeers::default();
        let peers = Arc::new(NodePeers { network: Arc::clone(&self.network), node, own: own.clone() });
        Process::without_replica(env, bus, peers, own, Arc::clone(&self.names), self.shape.shards)
    }

    /// Starts a cell on a node where none runs, and a directory beside it.
    pub(super) fn start(&self, node: NodeId) -> CellId {
        let (directory, env, replica) = self.process(node);
        let process = if self.shape.apart { self.process_without_replica(node, &env) } else { directory.clone() };
        let stop = CancellationToken::new();
        let (tail, following) = Tail::new(self.bus.directory_client(node), env.clone(), Arc::clone(&replica));
        let (storage, cluster) = (Arc::new(self.disk(node)), self.shape.checkpoints);
        let (world, rows, stopped) = (env.clone(), Arc::clone(&replica), stop.clone());
        env.spawn("directory", async move {
            if let Some(cluster) = cluster {
                let checkpoint = Checkpoint::open_in(storage, checkpoints(), cluster, world.clone(), rows).await;
                world.spawn("directory checkpoint", checkpoint.run(stopped.clone()));
            }
            tail.run(stopped).await;
        });
        let (beside, stopped) = (process.clone(), stop.clone());
        env.spawn("process", async move { beside.run(stopped).await });
        if self.shape.apart {
            let (address, beside, stopped) = (directory_address(node), directory.clone(), stop.clone());
            self.network.join(address.clone(), node, env.clone(), directory.local().clone());
            env.spawn("process", async move { beside.run(stopped).await });
            let presence = Presence {
                process: directory,
                id: self.member("directory", node),
                address,
                role: Role::Directory,
                every: self.shape.lease / 5,
                ttl: self.shape.lease,
            };
            env.spawn("directory member", serve(presence, following.clone(), stop.clone()));
        }
        let (id, handle, ended) = self.start_cell(node, &env, &process, stop);
        let (address, gateway) = (address(node), Gateway::new(process));
        let running = Running { node, id: id.clone(), env, gateway, replica, handle, tail: following, ended, address };
        self.running().insert(node, running);
        id
    }

    /// Starts a cell that asks the directories of other nodes. It is not among [`Cells::all`].
    pub(super) fn start_alone(&self, node: NodeId) {
        let env = env::of(&self.executor, node, self.seed);
        let (process, stop) = (self.process_without_replica(node, &env), CancellationToken::new());
        let (beside, stopped) = (process.clone(), stop.clone());
        env.spawn("process", async move { beside.run(stopped).await });
        self.start_cell(node, &env, &process, stop);
    }

    fn member(&self, what: &str, node: NodeId) -> CellId {
        let incarnation = self.executor.incarnation(node);
        format!("{what}-{}-{incarnation}", node.0).parse().expect("letters, digits and dashes make a cell id")
    }

    fn start_cell(
        &self,
        node: NodeId,
        env: &Env,
        process: &Process,
        stop: CancellationToken,
    ) -> (CellId, Handle, Arc<AtomicBool>) {
        let (id, address) = (self.member("cell", node), address(node));
        let fronts = self.shape.managers.iter().cloned().map(front::Config::new).collect();
        let config = cell::Config {
            address: address.clone(),
            lease: self.shape.lease,
            settle: self.shape.lease,
            gather: (self.shape.together, GATHER),
            runner: self.shape.runner.clone(),
            in_flight_max: self.shape.in_flight_max,
            ingress: Some(Tenants::Any),
            ..cell::Config::local(id.clone(), fronts)
        };
        let (cell, handle) = Cell::new(config, process.clone(), self.links.of(node));
        let ended = Arc::new(AtomicBool::new(false));
        let left = Arc::clone(&ended);
        env.spawn("cell", async move {
            cell.run(stop).await;
            left.store(true, Ordering::Relaxed);
        });
        self.network.join(address, node, env.clone(), process.local().clone());
        self.history.add(self.executor.now(), || format!("*{id} starts"));
        (id, handle, ended)
    }

    /// The node dies with all that runs on it.
    pub(super) fn crash(&self, node: NodeId) {
        let Some(gone) = self.running().remove(&node) else { return };
        self.network.leave(&gone.address);
        self.network.leave(&directory_address(node));
        self.history.add(self.executor.now(), || format!("*{} crashes", gone.id));
        self.executor.crash(node);
        self.disk(node).crashed();
        drop(gone);
    }

    /// A cell that has drained and ended: its process goes.
    pub(super) fn remove(&self, node: NodeId) {
        self.crash(node);
    }

    pub(super) fn shards(&self) -> ShardCount {
        self.shape.shards
    }
    pub(super) fn all(&self) -> Vec<Running> {
        self.running().values().cloned().collect()
    }
    pub(super) fn get(&self, node: NodeId) -> Option<Running> {
        self.running().get(&node).cloned()
    }
    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *self.running());
        for cell in all.values() {
            self.network.leave(&cell.address);
            self.network.leave(&directory_address(cell.node));
        }
    }

    /// Has something done in the process of a cell; `None` if it dies or takes longer than `limit`.
    pub(super) async fn ask<T, F>(
        &self,
        world: &Env,
        cell: &Running,
        limit: Duration,
        question: impl FnOnce(Gateway) -> F,
    ) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (back, answer) = oneshot::channel();
        let question = question(cell.gateway.clone());
        cell.env.spawn("a request from outside", async move {
            // Whoever asked may have given up.
            let _ = back.send(question.await);
        });
        world.timeout(limit, answer).await?.ok()
    }
}
