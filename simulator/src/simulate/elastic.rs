//! The autoscaler with a whole cluster at work and nothing wrong but, if so asked, one kind of trouble that
//! is its own: the real controller and cells in virtual time, a load that comes and goes, and for each job
//! how long it took.
//!
//! The same load meets a cluster from which no cell is ever taken away, where that is asked for: what
//! a job took longer than there, it took because cells left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cellbus_bus::Bus as _;
use cellbus_bus::env::{Env, Mono};
use cellbus_bus::ids::{CellId, JobId, Seq, ShardCount, ShardId};
use cellbus_cell::controller::launcher::leaves_next;
use cellbus_cell::controller::{self, Launcher, Service, Wanted};
use cellbus_cell::driver::Limits;
use cellbus_cell::gateway::ShardState;
use cellbus_cell::{Gateway, runner};
use cellbus_directory::scale::{Decision, Mode, Settings};
use cellbus_directory::{Entry, Record};
use cellbus_workflows::autoscale::{Tuning, size_max};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::bus::{Client, SimulatedBus};
use super::calm::{Calm, Plan};
use super::cells::{Cells, Running, Shape};
use super::executor::{Executor, WORLD};
use super::network::Network;
use crate::managers::Latency;

mod trouble;

use trouble::Controller;
pub use trouble::Trouble;

const TENANT: &str = "acme";
const SOURCE: &str = "/elastic";
/// From when a cell is asked for until its process runs.
const START: Duration = Duration::from_secs(2);
/// Between two looks at what is due.
const STEP: Duration = Duration::from_millis(10);
/// Before any work comes: the first cell opens its shards.
const WARM_UP: Duration = Duration::from_secs(20);
/// After the load, the last jobs may take so long.
const REST: Duration = Duration::from_secs(120);
const LEASE: Duration = Duration::from_secs(3);

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Elastic {
    /// What is left to chance follows from it: delays, and ids of cells.
    pub seed: u64,
    /// Hosts.
    pub hosts: u64,
    /// Managers that they are spread over.
    pub managers: u64,
    /// Shards; at most a quarter as many cells.
    pub shards: ShardCount,
    /// A call on a manager takes up to so long, each way.
    pub way_max: Duration,
    /// Calls that a cell has under way.
    pub in_flight_max: u32,
    /// How long work comes.
    pub duration: Duration,
    /// Jobs a second, by the second.
    pub per_second: fn(f64) -> f64,
    /// How long what waits may take to be gone.
    pub drain_target: Duration,
    /// Whether cells are never taken away, whatever is decided.
    pub cells_stay: bool,
    /// What goes wrong meanwhile.
    pub trouble: Trouble,
}

/// What became of one job. Times are seconds since the first work could come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Took {
    /// When it was submitted.
    pub at: f64,
    /// How long until its outcome was heard of; `None`: never.
    pub seconds: Option<f64>,
    /// Whether it succeeded.
    pub succeeded: bool,
}

/// What became of a run. Times are seconds since the first work could come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Elapsed {
    /// Jobs in the order in which they were submitted.
    pub jobs: Vec<Took>,
    /// Every size that was wanted, and from when on.
    pub sizes: Vec<(f64, u32)>,
    /// When each cell beyond the first had opened a shard.
    pub working: Vec<f64>,
    /// When each cell that was taken away was told to leave.
    pub left: Vec<f64>,
    /// What was decided and kept since, in that order.
    pub decisions: Vec<(f64, Arc<Decision>)>,
    /// What controllers had just decided as they died ([`Trouble::Controllers`]).
    pub cut_off: Vec<Decision>,
    /// What panicked.
    pub panics: Vec<String>,
}

impl Elapsed {
    /// When the size turned: more after fewer, or fewer after more.
    #[must_use]
    pub fn turns(&self) -> Vec<f64> {
        let (mut turns, mut direction) = (Vec::new(), None);
        for pair in self.sizes.windows(2) {
            let [(_, before), (at, after)] = pair else { continue };
            if direction.replace(after > before).is_some_and(|last| last != (after > before)) {
                turns.push(*at);
            }
        }
        turns
    }
}

/// Makes a run, on a thread of its own.
///
/// # Panics
/// When the configuration makes no sense: more managers than hosts, or none.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "one thread, which is waited for: nothing runs beside it")]
pub fn elastic(config: &Elastic) -> Elapsed {
    std::thread::scope(|scope| {
        let made = std::thread::Builder::new().spawn_scoped(scope, || World::new(*config).run());
        match made.expect("the system gives a thread").join() {
            Ok(elapsed) => elapsed,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

struct World {
    config: Elastic,
    executor: Arc<Executor>,
    env: Env,
    cells: Arc<Cells>,
    ingress: Arc<Client>,
    bus: SimulatedBus,
    network: Arc<Network>,
    platform: Mutex<PlatformState>,
    /// The platform starts nothing and has nothing leave.
    platform_fails: AtomicBool,
    controllers: Mutex<Vec<Controller>>,
    began: Mutex<Option<Mono>>,
    numbers: Mutex<BTreeMap<JobId, usize>>,
    elapsed: Mutex<Elapsed>,
    over: AtomicBool,
}

impl World {
    fn new(config: Elastic) -> Arc<Self> {
        let limits = match config.trouble {
            Trouble::Managers { operations_max } => Some(Limits { operations_max, ..Latency::Fast.limits() }),
            _ => None,
        };
        let Calm { executor, env, bus, network, cells } = Calm::new(Plan {
            seed: config.seed,
            hosts: config.hosts,
            managers: config.managers,
            limits,
            way_max: config.way_max,
            shadow: true,
            shape: Shape {
                shards: config.shards,
                lease: LEASE,
                runner: runner::Config::default(),
                managers: Vec::new(),
                together: 1,
                in_flight_max: Some(config.in_flight_max),
                apart: false,
                checkpoints: None,
                unchecked: false,
            },
        });
        Arc::new(Self {
            config,
            executor,
            env,
            cells,
            ingress: bus.client(WORLD),
            bus,
            network,
            platform: Mutex::default(),
            platform_fails: AtomicBool::new(false),
            controllers: Mutex::default(),
            began: Mutex::default(),
            numbers: Mutex::default(),
            elapsed: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    fn elapsed(&self) -> MutexGuard<'_, Elapsed> {
        self.elapsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn numbers(&self) -> MutexGuard<'_, BTreeMap<JobId, usize>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Seconds since the first work could come; before it, none.
    fn at(&self) -> f64 {
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        began.map_or(0.0, |began| self.env.mono().since(began).as_secs_f64())
    }

    fn run(self: Arc<Self>) -> Elapsed {
        let this = Arc::clone(&self);
        self.env.spawn("the run", async move {
            this.course().await;
            this.over.store(true, Ordering::Relaxed);
        });
        let _ = self.executor.run(|| self.over.load(Ordering::Relaxed));
        let decisions = self.decisions();
        self.elapsed().decisions = decisions;
        self.elapsed().panics = self.executor.take_panics();
        self.cells.clear();
        self.executor.clear();
        std::mem::take(&mut *self.elapsed())
    }

    async fn course(self: &Arc<Self>) {
        self.cells.start(self.executor.add_node());
        self.env.spawn("outcomes", Arc::clone(self).listen());
        self.control();
        if let Trouble::Controllers { .. } = self.config.trouble {
            self.control();
        }
        self.env.sleep(WARM_UP).await;
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.env.mono());
        self.env.spawn("cells that work", Arc::clone(self).watch());
        self.env.spawn("what goes wrong", Arc::clone(self).suffer());
        let began = self.env.mono();
        let mut number = 0;
        // Not left to chance, nor to what a publish takes, so that two runs have the same.
        let mut due = 0.0;
        let mut at = Duration::ZERO;
        while at < self.config.duration {
            self.env.sleep(began.after(at).since(self.env.mono())).await;
            due += (self.config.per_second)(at.as_secs_f64()).max(0.0) * STEP.as_secs_f64();
            while due >= 1.0 {
                due -= 1.0;
                self.submit(number).await;
                number += 1;
            }
            at += STEP;
        }
        let rest = self.env.mono().after(REST);
        while self.env.mono() < rest && self.elapsed().jobs.iter().any(|job| job.seconds.is_none()) {
            self.env.sleep(Duration::from_millis(500)).await;
        }
    }

    async fn submit(&self, number: usize) {
        let id = format!("j{number}");
        let data = json!({"name": format!("vm-{number}"), "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x",
            "power": "off"});
        let event = json!({"specversion": "1.0", "id": id, "source": SOURCE, "tenant": TENANT,
            "type": "io.cellbus.job.provision.v1", "datacontenttype": "application/json", "data": data});
        self.numbers().insert(JobId::derive(TENANT, SOURCE, &id), number);
        self.elapsed().jobs.push(Took { at: self.at(), seconds: None, succeeded: false });
        let headers = vec![("content-type".to_owned(), "application/cloudevents+json".to_owned())];
        let body = Bytes::from(event.to_string());
        while self.ingress.ingress_publish(TENANT, headers.clone(), body.clone()).await.is_err() {
            self.env.sleep(Duration::from_millis(10)).await;
        }
    }

    /// Hears outcomes for ever.
    async fn listen(self: Arc<Self>) {
        let mut heard = Seq::ZERO;
        loop {
            let Ok(mut reader) = self.ingress.read_events(Some(heard)).await else {
                self.env.sleep(Duration::from_millis(10)).await;
                continue;
            };
            while let Ok(events) = reader.next(1_024).await {
                for placed in events {
                    heard = placed.seq;
                    self.outcome(&placed.event.body);
                }
            }
        }
    }

    fn outcome(&self, body: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Value>(body) else { return };
        let job = event["data"]["job_id"].as_str().and_then(|id| id.parse::<JobId>().ok());
        let Some(number) = job.and_then(|job| self.numbers().get(&job).copied()) else { return };
        let now = self.at();
        if let Some(took) = self.elapsed().jobs.get_mut(number)
            && took.seconds.is_none()
        {
            took.seconds = Some(now - took.at);
            took.succeeded = event["type"] == "io.cellbus.job.succeeded.v1";
        }
    }

    /// Notes when each further cell has opened a shard.
    async fn watch(self: Arc<Self>) {
        let mut known: BTreeSet<CellId> = self.cells.all().into_iter().take(1).map(|cell| cell.id).collect();
        loop {
            self.env.sleep(Duration::from_millis(500)).await;
            let all = self.cells.all();
            let Some(first) = all.first().filter(|_| all.iter().any(|cell| !known.contains(&cell.id))) else {
                continue;
            };
            let ask = |gateway: Gateway| async move { gateway.shards().await };
            let Some(Ok(rows)) = self.cells.ask(&self.env, first, Duration::from_secs(5), ask).await else { continue };
            for row in rows.into_iter().filter(|row| row.state == ShardState::Open) {
                if row.owner.is_some_and(|owner| known.insert(owner)) {
                    let at = self.at();
                    self.elapsed().working.push(at);
                }
            }
        }
    }

    /// What was decided since the first work could come.
    fn decisions(&self) -> Vec<(f64, Arc<Decision>)> {
        let began = self.env.wall().0 as f64 / 1_000.0 - self.at();
        let log = self.bus.shadow_of(ShardId::of_cluster(self.config.shards));
        let records = log.iter().filter_map(|body| Entry::decode(body).ok()).flat_map(|entry| entry.records);
        let decided = records.filter_map(|record| match record {
            Record::ScaleDecided { decision, .. } => Some((decision.at.0 as f64 / 1_000.0 - began, decision)),
            _ => None,
        });
        decided.filter(|(at, _)| *at >= 0.0).collect()
    }

    /// Starts a controller, in a process of its own.
    fn control(self: &Arc<Self>) {
        let node = self.executor.add_node();
        let (process, env, _) = self.cells.process(node);
        let configured = Settings {
            mode: Mode::Auto,
            cells: 1,
            min: 1,
            max: size_max(self.config.shards),
            drain_target: self.config.drain_target,
            latency_objective: Duration::from_secs(5),
        };
        let config = controller::Config {
            id: format!("controller-{}", node.0).parse().expect("letters, digits and dashes make a controller id"),
            member: None,
            configured,
            tuning: Tuning::default(),
            lease: LEASE,
        };
        let platform = Platform { world: Arc::clone(self) };
        let (service, handle) = Service::new(config, Gateway::new(process.clone()), Arc::new(platform));
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner).push(Controller { node, handle });
        let stop = CancellationToken::new();
        let (beside, stopped) = (process, stop.clone());
        env.spawn("process", async move { beside.run(stopped).await });
        env.spawn("controller", service.run(stop));
    }

    /// Its process goes once it has left.
    async fn gone(self: Arc<Self>, cell: Running) {
        while !cell.ended.load(Ordering::Relaxed) {
            self.env.sleep(Duration::from_millis(100)).await;
        }
        self.cells.remove(cell.node);
    }
}

/// Starts cells, each on a node of its own, and has them leave.
struct Platform {
    world: Arc<World>,
}

#[derive(Default)]
struct PlatformState {
    starting: Arc<Mutex<u32>>,
    leaving: BTreeSet<CellId>,
    last: Option<u32>,
}

#[async_trait]
impl Launcher for Platform {
    fn name(&self) -> &'static str {
        "simulated"
    }
    fn want(&self, wanted: Wanted) {
        let (world, mut state) = (&self.world, self.world.platform.lock().unwrap_or_else(PoisonError::into_inner));
        if state.last.replace(wanted.desired) != Some(wanted.desired) {
            let at = world.at();
            world.elapsed().sizes.push((at, wanted.desired));
        }
        if world.platform_fails.load(Ordering::Relaxed) {
            return;
        }
        let all = world.cells.all();
        let staying: Vec<&Running> = all.iter().filter(|cell| !state.leaving.contains(&cell.id)).collect();
        let mut starting = state.starting.lock().unwrap_or_else(PoisonError::into_inner);
        let there = staying.len() + *starting as usize;
        for _ in there..wanted.desired as usize {
            *starting += 1;
            let (world, starting) = (Arc::clone(world), Arc::clone(&state.starting));
            self.world.env.spawn("a cell starts", async move {
                world.env.sleep(START).await;
                world.cells.start(world.executor.add_node());
                *starting.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            });
        }
        drop(starting);
        if there > wanted.desired as usize
            && !world.config.cells_stay
            && let Some(next) = leaves_next(&wanted, |id| staying.iter().any(|cell| cell.id == *id))
            && let Some(cell) = staying.into_iter().find(|cell| cell.id == *next)
        {
            let at = world.at();
            world.elapsed().left.push(at);
            cell.handle.drain();
            world.env.spawn("a cell leaves", Arc::clone(world).gone(cell.clone()));
            state.leaving.insert(next.clone());
        }
    }
    fn trouble(&self) -> Option<String> {
        self.world.platform_fails.load(Ordering::Relaxed).then(|| trouble::NO_MACHINE.to_owned())
    }
}
