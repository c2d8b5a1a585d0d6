//! One run: a workload and faults, then healing, then a deadline to come to rest, and what must
//! hold looked at all along.

mod rest;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cellbus_bus::env::Env;
use cellbus_bus::ids::ShardCount;
use cellbus_cell::gateway::ShardState;
use cellbus_cell::runner;
use cellbus_directory::checkpoint;
use cellbus_directory::record::{Operator, ParkedDecision};
use cellbus_workflows::{Health, Limits};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::amnesia::Amnesia;
use super::bus::SimulatedBus;
use super::cells::{Cells, Shape};
use super::checks::Violation;
use super::env;
use super::executor::{Executor, Order, Stopped, WORLD, duration};
use super::faults::{FaultKind, Faults};
use super::history::History;
use super::managers::Links;
use super::nemesis::{BUS_CALM, MANAGERS_CALM, NETWORK_CALM, Nemesis};
use super::network::Network;
use super::producers::{Plan, Producers};
use super::sabotage::Sabotage;
use super::scaling::Scaling;
use crate::inventory::Inventory;
use crate::managers::{self, Fleet, Latency};

/// How long a question in the end may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked at what must always hold.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Violations that are kept of a run: what follows the first few follows from them.
const VIOLATIONS_MAX: usize = 20;
/// Bytes for which each log has room in some of the runs: some entries of this many jobs.
const LOG_ROOM: u64 = 64 << 10;

/// What is to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// Hosts of 64 vCPUs, 512 GiB and 10 TiB.
    pub hosts: u64,
    /// Managers that they are spread over.
    pub managers: u64,
    /// VMs that are asked for at the most.
    pub vms: u64,
    /// Cells to begin with.
    pub cells: u32,
    /// Shards.
    pub shards: ShardCount,
    /// How long there are jobs and faults, in virtual time.
    pub duration: Duration,
    /// Jobs a second of virtual time.
    pub jobs_per_second: f64,
    /// Of 100 jobs, how many are provisions while there may be more VMs.
    pub provisions_percent: u32,
    /// Which faults, and how often.
    pub faults: Faults,
    /// After the last fault, everything must have come to rest within this.
    pub rest_within: Duration,
    /// A deliberate bug, for tests of the simulation itself.
    pub sabotage: Option<Sabotage>,
    /// Whether the history of what a violation is about is told.
    pub history: bool,
}

impl Config {
    /// A small cluster for two minutes, with every fault.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        Self {
            seed,
            hosts: 12,
            managers: 3,
            vms: 60,
            cells: 3,
            shards: ShardCount::new(8).expect("eight is a number of shards"),
            duration: Duration::from_secs(90),
            jobs_per_second: 2.0,
            provisions_percent: 40,
            faults: Faults::all(),
            rest_within: Duration::from_secs(900),
            sabotage: None,
            history: false,
        }
    }
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Report {
    /// Of the run.
    pub seed: u64,
    /// Of all that happened, in hexadecimal: the same for the same seed and build.
    pub trace: String,
    /// What must not be and was, in words; empty for a good run.
    pub violations: Vec<String>,
    /// What happened to those that the first violation is about, where that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<String>,
    /// How long it was, in virtual time.
    pub virtual_seconds: f64,
    /// How much of that after the last fault.
    pub rest_seconds: f64,
    /// Jobs that were submitted.
    pub jobs_submitted: u64,
    /// Of these, those that succeeded.
    pub jobs_succeeded: u64,
    /// Of these, those that failed.
    pub jobs_failed: u64,
    /// Of these, those that were called off.
    pub jobs_cancelled: u64,
    /// VMs that there are in the end.
    pub vms: u64,
    /// VMs whose end was checked against their jobs, of all that were asked for.
    pub vms_checked: u64,
    /// Faults that were made.
    pub faults: u64,
    /// Times that another controller began to decide.
    pub controllers_led: u64,
    /// Decisions for more cells that were kept.
    pub scaled_out: u64,
    /// And for fewer.
    pub scaled_in: u64,
    /// Cells that started or left as controllers wanted.
    pub cells_moved: u64,
    /// Operations that arrived at managers.
    pub operations: u64,
    /// Entries appended to logs, and records in them.
    pub appends: u64,
    /// See `appends`.
    pub records: u64,
    /// Tasks polled.
    pub polls: u64,
}

impl Report {
    /// Whether all that must hold held.
    #[must_use]
    pub fn good(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Makes a run, on a thread of its own: with a runtime of tokio about, what yields would wait for
/// that one's next turn.
///
/// # Panics
/// When the configuration makes no sense: more managers than hosts, or none.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "one thread, which is waited for: nothing runs beside it")]
pub fn run(config: &Config) -> Report {
    std::thread::scope(|scope| {
        let made =
            std::thread::Builder::new().name("simulation".to_owned()).spawn_scoped(scope, || World::new(config).run());
        match made.expect("the system gives a thread").join() {
            Ok(report) => report,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// What goes on around the cells.
struct World {
    config: Config,
    executor: Arc<Executor>,
    env: Env,
    history: Arc<History>,
    bus: SimulatedBus,
    links: Arc<Links>,
    fleet: Arc<Fleet>,
    cells: Arc<Cells>,
    producers: Arc<Producers>,
    nemesis: Arc<Nemesis>,
    limits: Limits,
    violations: Mutex<Vec<Violation>>,
    healed_at: AtomicU64,
    over: AtomicBool,
}

impl World {
    fn new(config: &Config) -> Arc<Self> {
        let seed = config.seed;
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x0107);
        let order = if rng.random_bool(0.5) { Order::Fifo } else { Order::Random };
        let executor = Executor::new(seed, order);
        let env = env::of(&executor, WORLD, seed);
        let history = Arc::new(if config.history { History::kept() } else { History::default() });
        let sabotage = config.sabotage;
        let shadow = config.vms <= 10_000;
        let bus = SimulatedBus::new(&executor, env.clone(), seed, Arc::clone(&history), sabotage, shadow);
        bus.set_weather(BUS_CALM);
        if seed % 6 == 5 {
            bus.set_log_room(LOG_ROOM);
        }
        let network = Network::new(&executor, env.clone(), seed, Arc::clone(&history), sabotage);
        network.set_weather(NETWORK_CALM);
        let mut inventory =
            Inventory::generate(config.hosts, config.managers).expect("at least one host for each of some managers");
        // In every third run hosts share datastores, across gear classes.
        if seed % 3 == 1 {
            inventory.managers.iter_mut().for_each(|manager| manager.share(2));
        }
        let names = inventory.managers.iter().map(|manager| manager.name.clone()).collect();
        let fleet_config = managers::Config {
            latency: if rng.random_bool(0.8) { Latency::Fast } else { Latency::Realistic },
            seed: Some(seed),
            ..managers::Config::new(inventory.clone())
        };
        let fleet = futures::FutureExt::now_or_never(Fleet::open(fleet_config, env.clone()))
            .expect("a fleet in memory waits for nothing as it opens")
            .expect("a fleet in memory opens whatever happens");
        let links = Links::new(&executor, env.clone(), Arc::clone(&fleet), seed, Arc::clone(&history), sabotage);
        links.set_weather(MANAGERS_CALM);
        let forgets = sabotage == Some(Sabotage::ForgetDedupe);
        let usual = Limits::for_shards(config.shards);
        let limits = Limits {
            job_retention: if forgets { Duration::ZERO } else { usual.job_retention },
            remember: if forgets { Duration::ZERO } else { usual.remember },
            // Small enough that queues fill up in some runs.
            accepted_max: if config.vms <= 1_000 && rng.random_bool(0.3) { 8 } else { 200_000 },
            ..usual
        };
        let snapshot_bytes_min =
            if config.vms <= 1_000 { [4 << 10, 64 << 10, 1 << 20][rng.random_range(0..3)] } else { 1 << 20 };
        let shape = Shape {
            shards: config.shards,
            lease: Duration::from_secs(3),
            runner: runner::Config { limits: Some(limits.clone()), snapshot_bytes_min, ..runner::Config::default() },
            managers: names,
            together: config.cells as usize,
            in_flight_max: None,
            unchecked: sabotage == Some(Sabotage::UncheckedCheckpoint),
            // Both ways to lay a cluster out, in turn.
            apart: seed % 2 == 1,
            // Large runs have memory for one copy of it all.
            checkpoints: (config.vms <= 10_000)
                .then(|| checkpoint::Cluster { id: uuid::Uuid::from_u64_pair(seed, 1), shards: config.shards }),
        };
        let cells = Cells::new(
            &executor,
            seed,
            shape,
            bus.clone(),
            Arc::clone(&network),
            Arc::clone(&links),
            Arc::clone(&history),
        );
        let plan = Plan {
            jobs_per_second: config.jobs_per_second,
            vms_max: config.vms,
            provisions_percent: config.provisions_percent,
        };
        let producers = Producers::new(
            env.clone(),
            Arc::clone(&executor),
            Arc::clone(&cells),
            bus.client(WORLD),
            inventory,
            Arc::clone(&history),
            plan,
            seed,
        );
        let nodes: Vec<_> = (0..config.cells).map(|_| executor.add_node()).collect();
        let (at, base) = (Arc::clone(&history), nodes.clone());
        let scaling = Scaling::new(&executor, env.clone(), bus.clone(), &cells, at, base, sabotage);
        let nemesis = Arc::new(Nemesis {
            env: env.clone(),
            executor: Arc::clone(&executor),
            bus: bus.clone(),
            network: Arc::clone(&network),
            links: Arc::clone(&links),
            fleet: Arc::clone(&fleet),
            cells: Arc::clone(&cells),
            producers: Arc::clone(&producers),
            history: Arc::clone(&history),
            amnesia: Amnesia::default(),
            scaling,
            nodes,
            healing: AtomicBool::new(false),
            made: AtomicU64::new(0),
        });
        Arc::new(Self {
            config: config.clone(),
            executor,
            env,
            history,
            bus,
            links,
            fleet,
            cells,
            producers,
            nemesis,
            limits,
            violations: Mutex::default(),
            healed_at: AtomicU64::new(0),
            over: AtomicBool::new(false),
        })
    }

    fn run(self: Arc<Self>) -> Report {
        let this = Arc::clone(&self);
        self.env.spawn("the run", async move {
            this.course().await;
            this.over.store(true, Ordering::Relaxed);
        });
        let stopped = self.executor.run(|| self.over.load(Ordering::Relaxed));
        match stopped {
            Stopped::Done => {}
            Stopped::Idle => {
                self.violated("nothing will ever happen any more, and the run is not over".to_owned(), Vec::new())
            }
            Stopped::Spins => {
                self.violated("tasks wake each other for ever, and no time passes".to_owned(), Vec::new())
            }
        }
        self.look();
        let report = self.report();
        self.cells.clear();
        self.executor.clear();
        report
    }

    fn violated(&self, what: String, about: Vec<String>) {
        let mut violations = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        if violations.len() < VIOLATIONS_MAX && !violations.iter().any(|(known, _)| *known == what) {
            self.history.add(self.executor.now(), || format!("*violation: {what}"));
            violations.push((what, about));
        }
    }
    fn any_violation(&self) -> bool {
        !self.violations.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What must hold at every moment.
    fn look(&self) {
        let seen = self.fleet.violations();
        let forgot = self.nemesis.amnesia.happened();
        if let Some(vm) = self.fleet.first_double().filter(|_| !forgot) {
            self.violated(format!("VM {vm} was made although it was there already"), vec![vm.to_string()]);
        }
        if seen.overfilled_hosts > 0 {
            self.violated(format!("{} hosts hold more than they may", seen.overfilled_hosts), Vec::new());
        }
        self.bus.take_violations().into_iter().for_each(|what| self.violated(what, Vec::new()));
        self.links.take_violations().into_iter().for_each(|what| self.violated(what, Vec::new()));
        self.executor.take_panics().into_iter().for_each(|what| self.violated(what, Vec::new()));
        let of_stops = self.links.stops().take_violations();
        if !forgot {
            of_stops.into_iter().for_each(|what| self.violated(what, Vec::new()));
        }
        let of_scaling = self.nemesis.scaling.take_violations();
        if !forgot {
            of_scaling.into_iter().for_each(|what| self.violated(what, Vec::new()));
        }
        let of_books = std::mem::take(&mut self.producers.books.pages().violations);
        if !forgot {
            of_books.into_iter().for_each(|(what, about)| self.violated(what, about));
        }
    }

    // ── the course of a run ──

    async fn course(self: &Arc<Self>) {
        self.nemesis.nodes.iter().for_each(|node| {
            self.cells.start(*node);
        });
        self.env.spawn("outcomes", Arc::clone(&self.producers).listen());
        self.env.sleep(Duration::from_millis(10)).await;
        self.env.spawn("producers", Arc::clone(&self.producers).run());
        self.nemesis.begin(&self.config.faults, self.config.seed);
        let until = self.env.mono().after(self.config.duration);
        while self.env.mono() < until {
            self.env.sleep(LOOK_EVERY).await;
            self.look();
            if self.any_violation() {
                return;
            }
        }
        self.producers.stop();
        self.nemesis.heal();
        self.healed_at.store(self.executor.now(), Ordering::Relaxed);
        if self.nemesis.amnesia.happened() {
            return self.noticed().await;
        }
        let healed = self.env.mono();
        let (mut asked_for_parked, mut rounds) = (healed, 0);
        loop {
            self.env.sleep(LOOK_EVERY).await;
            self.look();
            if self.any_violation() {
                return;
            }
            if self.at_rest() {
                break;
            }
            if self.config.faults.rate(FaultKind::Stops) > 0.0 {
                self.nemesis.resume_all().await;
            }
            let now = self.env.mono();
            if now.since(asked_for_parked) > Duration::from_secs(30) {
                asked_for_parked = now;
                rounds += 1;
                // What a retry does not help is given up on in the end.
                let decision = if rounds <= 4 { ParkedDecision::Retry } else { ParkedDecision::Abandon };
                self.unpark(decision).await;
            }
            if now.since(healed) > self.config.rest_within {
                self.not_at_rest().await;
                return;
            }
        }
        self.in_the_end().await;
    }

    /// The bus has lost what it had acknowledged: whoever knew better notices, and all shards and
    /// managers are served again.
    async fn noticed(&self) {
        let healed = self.env.mono();
        loop {
            self.env.sleep(LOOK_EVERY).await;
            self.look();
            if self.any_violation() {
                return;
            }
            let mut wrong = self.nemesis.amnesia.unnoticed(&self.cells);
            wrong.extend(self.not_served().await);
            if wrong.is_empty() {
                return;
            }
            if self.env.mono().since(healed) > self.config.rest_within {
                wrong.into_iter().for_each(|(what, about)| self.violated(what, about));
                return;
            }
        }
    }

    /// Cells that are not ready, shards that nobody has open, managers that nobody fronts.
    async fn not_served(&self) -> Vec<Violation> {
        let cells = self.cells.all();
        let unready = cells.iter().filter(|cell| cell.gateway.ready().is_err());
        let mut wrong: Vec<Violation> = unready.map(|cell| (format!("{} is not ready", cell.id), Vec::new())).collect();
        let Some(cell) = cells.first() else { return wrong };
        let ask = |gateway: cellbus_cell::Gateway| async move { (gateway.shards().await, gateway.managers().await) };
        let Some((Ok(shards), Ok(managers))) = self.cells.ask(&self.env, cell, ANSWER_LIMIT, ask).await else {
            wrong.push((format!("{} does not answer", cell.id), Vec::new()));
            return wrong;
        };
        let closed = shards.into_iter().filter(|row| row.state != ShardState::Open);
        wrong.extend(closed.map(|row| {
            (format!("shard {} is {:?}", row.shard, row.state), vec![format!("shard {} epoch", row.shard)])
        }));
        let unknown = managers.into_iter().filter(|row| row.health == Health::Unknown);
        wrong.extend(unknown.map(|row| (format!("manager {} is not fronted: {:?}", row.name, row), Vec::new())));
        wrong
    }

    fn at_rest(&self) -> bool {
        let ready = self.cells.all().iter().all(|cell| cell.gateway.ready().is_ok());
        ready
            && self.producers.at_rest()
            && self.bus.ingress_open() == 0
            && self.producers.books.pages().open().is_empty()
    }

    /// An operator has parked work tried again, or gives it up.
    async fn unpark(&self, decision: ParkedDecision) {
        let Some(cell) = self.cells.all().into_iter().next() else { return };
        let open = self.producers.books.pages().open().clone();
        for job in open {
            let ask = move |gateway: cellbus_cell::Gateway| async move {
                let by = Operator { who: "simulated operator".to_owned(), from: "simulation".to_owned() };
                // Jobs that are not parked refuse it.
                let _ = gateway.unpark_job(job, decision, by).await;
            };
            self.cells.ask(&self.env, &cell, ANSWER_LIMIT, ask).await;
        }
    }

    fn report(&self) -> Report {
        let violations = std::mem::take(&mut *self.violations.lock().unwrap_or_else(PoisonError::into_inner));
        let about: Vec<String> = violations.iter().flat_map(|(_, about)| about.iter().cloned()).take(8).collect();
        // What is about nobody is about what happened last.
        let history = match (violations.is_empty(), about.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => self.history.last(200),
            (false, false) => self.history.about(&about),
        };
        let (controllers_led, scaled_out, scaled_in) = self.nemesis.scaling.did();
        let pages = self.producers.books.pages();
        let mut report = Report {
            seed: self.config.seed,
            trace: format!("{:016x}", self.executor.trace_hash()),
            violations: violations.into_iter().map(|(what, _)| what).collect(),
            history,
            virtual_seconds: duration(self.executor.now()).as_secs_f64(),
            rest_seconds: match self.healed_at.load(Ordering::Relaxed) {
                0 => 0.0,
                at => duration(self.executor.now() - at).as_secs_f64(),
            },
            jobs_submitted: pages.jobs.len() as u64,
            jobs_succeeded: 0,
            jobs_failed: 0,
            jobs_cancelled: 0,
            vms: self.fleet.vms() as u64,
            vms_checked: pages.vms.values().filter(|vm| vm.loose.is_none()).count() as u64,
            faults: self.nemesis.made.load(Ordering::Relaxed),
            controllers_led,
            scaled_out,
            scaled_in,
            cells_moved: self.nemesis.scaling.moved(),
            operations: self.links.performed(),
            appends: self.bus.appended().0,
            records: self.bus.appended().1,
            polls: self.executor.polls(),
        };
        for job in pages.jobs.values() {
            match job.ended.first() {
                Some(super::books::Ended::Succeeded) => report.jobs_succeeded += 1,
                Some(super::books::Ended::Failed(_)) => report.jobs_failed += 1,
                Some(super::books::Ended::Cancelled) => report.jobs_cancelled += 1,
                None => {}
            }
        }
        report
    }
}
