//! The autoscaler of a run: real controllers, each a process of its own that can die or stand still,
//! over a platform that starts cells and has them leave in order, as launchers do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::env::Env;
use cellbus_bus::ids::{CellId, ShardCount, ShardId};
use cellbus_cell::Gateway;
use cellbus_cell::controller::launcher::leaves_next;
use cellbus_cell::controller::{Config, Handle, Launcher, Service, Wanted};
use cellbus_cell::gateway::ScaleChange;
use cellbus_directory::record::Operator;
use cellbus_directory::scale::{Decision, Direction, Leader, Mode, Settings};
use cellbus_directory::{Entry, Record};
use cellbus_workflows::autoscale::{Pace, Tuning, size_max};
use rand::Rng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use tokio_util::sync::CancellationToken;

use super::bus::SimulatedBus;
use super::cells::{Cells, Running};
use super::checks::Violation;
use super::executor::{Executor, NodeId};
use super::history::History;
use super::nemesis::{ANSWER_LIMIT, Nemesis};
use super::sabotage::Sabotage;

/// Controllers at the most: one decides, one stands by.
const CONTROLLERS_MAX: usize = 2;
/// How long the one that decides may be silent.
const LEASE: Duration = Duration::from_secs(3);
/// A platform takes a process away that has been told to leave and has not by then.
const LEAVES_WITHIN: Duration = Duration::from_secs(60);
/// Cells that there is room for, however many of them come back from the dead.
const CELLS_MAX: usize = 12;

/// One that acts within a run.
fn tuning() -> Tuning {
    Tuning {
        target_utilisation: 0.8,
        out: Pace { window: Duration::from_secs(1), step_max: 2, pause: Duration::from_secs(2) },
        r#in: Pace { window: Duration::from_secs(4), step_max: 1, pause: Duration::from_secs(2) },
        rate_window: Duration::from_secs(2),
        stale_after: Duration::from_secs(5),
        trial: Duration::from_secs(5),
        undo_hold: Duration::from_secs(15),
    }
}

/// In force until an operator of the run sets something.
fn configured(most: u32) -> Settings {
    Settings {
        mode: Mode::Auto,
        cells: 1,
        min: 1,
        max: most,
        drain_target: Duration::from_secs(4),
        latency_objective: Duration::from_secs(1),
    }
}

/// The controllers of a run and what they act through.
pub(super) struct Scaling {
    executor: Arc<Executor>,
    cells: Arc<Cells>,
    platform: Arc<Platform>,
    shards: ShardCount,
    hasty: bool,
    /// Nodes of controllers, and whether one runs there.
    nodes: Mutex<BTreeMap<NodeId, bool>>,
}

impl Scaling {
    pub(super) fn new(
        executor: &Arc<Executor>,
        env: Env,
        bus: SimulatedBus,
        cells: &Arc<Cells>,
        history: Arc<History>,
        base: Vec<NodeId>,
        sabotage: Option<Sabotage>,
    ) -> Self {
        let shards = cells.shards();
        let platform = Platform {
            executor: Arc::clone(executor),
            env,
            bus,
            cells: Arc::clone(cells),
            history,
            shards,
            base,
            off: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            leaving: Mutex::default(),
            found: Mutex::default(),
        };
        Self {
            executor: Arc::clone(executor),
            cells: Arc::clone(cells),
            platform: Arc::new(platform),
            shards,
            hasty: sabotage == Some(Sabotage::ActOnTheUnkept),
            nodes: Mutex::default(),
        }
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, bool>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn most(&self) -> u32 {
        size_max(self.shards)
    }

    /// Starts a controller on a node where nothing runs.
    fn start(&self, node: NodeId) {
        let (process, env, _) = self.cells.process(node);
        let id = format!("controller-{}-{}", node.0, self.executor.incarnation(node));
        let config = Config {
            id: id.parse().expect("letters, digits and dashes make a controller id"),
            member: None,
            configured: configured(self.most()),
            tuning: tuning(),
            lease: LEASE,
        };
        self.platform.say(|| format!("{id} starts"));
        let told = Arc::new(Told {
            who: id,
            platform: Arc::clone(&self.platform),
            last: Mutex::default(),
            decides: OnceLock::new(),
        });
        let launcher = Arc::clone(&told) as Arc<dyn Launcher>;
        let (service, handle) = Service::new(config, Gateway::new(process.clone()), launcher);
        if self.hasty {
            told.decides.get_or_init(|| handle);
        }
        let (beside, stop) = (process, CancellationToken::new());
        let stopped = stop.clone();
        env.spawn("process", async move { beside.run(stopped).await });
        env.spawn("controller", service.run(stop));
        self.nodes().insert(node, true);
    }

    fn crash(&self, node: NodeId) {
        self.platform.say(|| format!("the controller of {node:?} crashes"));
        self.nodes().insert(node, false);
        self.executor.crash(node);
    }

    /// Nobody is to act any more: whoever decides is gone, and cells stay as they are.
    pub(super) fn end(&self) {
        self.platform.off.store(true, Ordering::Relaxed);
        let nodes: Vec<NodeId> = self.nodes().iter().filter(|(_, runs)| **runs).map(|(node, _)| *node).collect();
        nodes.into_iter().for_each(|node| self.crash(node));
    }

    /// What controllers have done that they must not, so far.
    pub(super) fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut *self.platform.found())
    }

    /// How often another controller began to decide, and for more and for fewer cells, as was kept.
    pub(super) fn did(&self) -> (u64, u64, u64) {
        let (mut led, mut more, mut fewer) = (0, 0, 0);
        for record in self.platform.records() {
            if let Record::ScaleDecided { decision, .. } = &record {
                more += u64::from(decision.desired > decision.before);
                fewer += u64::from(decision.desired < decision.before);
            }
            led += u64::from(matches!(record, Record::ScaleLed { .. }));
        }
        (led, more, fewer)
    }
    /// Cells that started or left as controllers wanted.
    pub(super) fn moved(&self) -> u64 {
        self.platform.moved.load(Ordering::Relaxed)
    }

    /// What the log of the cluster's shard says of it.
    pub(super) fn in_the_log(&self) -> Vec<Violation> {
        decided(&self.platform.records(), self.most())
    }
}

/// Where cells run: starts them on free nodes, and takes them away once they have left.
struct Platform {
    executor: Arc<Executor>,
    env: Env,
    bus: SimulatedBus,
    cells: Arc<Cells>,
    history: Arc<History>,
    shards: ShardCount,
    /// Nodes that cells run on at first.
    base: Vec<NodeId>,
    off: AtomicBool,
    moved: AtomicU64,
    leaving: Mutex<BTreeSet<CellId>>,
    found: Mutex<Vec<String>>,
}

impl Platform {
    fn say(&self, what: impl FnOnce() -> String) {
        self.history.add(self.executor.now(), || format!("*autoscaler: {}", what()));
    }
    fn leaving(&self) -> MutexGuard<'_, BTreeSet<CellId>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn found(&self) -> MutexGuard<'_, Vec<String>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that the cluster's shard has ever written.
    fn records(&self) -> Vec<Record> {
        let log = self.bus.shadow_of(ShardId::of_cluster(self.shards));
        log.iter().filter_map(|body| Entry::decode(body).ok()).flat_map(|entry| entry.records).collect()
    }

    /// As a controller says, one cell at a time.
    fn want(self: &Arc<Self>, wanted: &Wanted, who: &str) {
        if self.off.load(Ordering::Relaxed) {
            return;
        }
        let all = self.cells.all();
        let staying: Vec<&Running> = {
            let leaving = self.leaving();
            all.iter().filter(|cell| !leaving.contains(&cell.id)).collect()
        };
        if staying.len() < wanted.desired as usize {
            if all.len() < CELLS_MAX {
                self.moved.fetch_add(1, Ordering::Relaxed);
                let free = self.base.iter().copied().find(|node| self.cells.get(*node).is_none());
                let id = self.cells.start(free.unwrap_or_else(|| self.executor.add_node()));
                self.say(|| format!("{who} wants {} cells: {id} starts", wanted.desired));
            }
        } else if staying.len() > wanted.desired as usize
            && let Some(next) = leaves_next(wanted, |id| staying.iter().any(|cell| cell.id == *id))
            && let Some(cell) = staying.iter().find(|cell| cell.id == *next)
        {
            self.say(|| format!("{who} wants {} cells: {next} leaves", wanted.desired));
            self.moved.fetch_add(1, Ordering::Relaxed);
            self.leaving().insert(next.clone());
            cell.handle.drain();
            self.env.spawn("a cell leaves", Arc::clone(self).gone((*cell).clone()));
        }
    }

    /// Takes its process away once it has left.
    async fn gone(self: Arc<Self>, cell: Running) {
        let began = self.env.mono();
        let lives = || self.cells.get(cell.node).is_some_and(|now| now.id == cell.id);
        while lives() && !cell.ended.load(Ordering::Relaxed) && self.env.mono().since(began) < LEAVES_WITHIN {
            self.env.sleep(Duration::from_millis(200)).await;
        }
        if lives() {
            self.cells.remove(cell.node);
        }
        self.leaving().remove(&cell.id);
        // Everything is mended by now: as many cells as in the beginning are to be there.
        if self.off.load(Ordering::Relaxed) && self.base.contains(&cell.node) && self.cells.get(cell.node).is_none() {
            self.cells.start(cell.node);
        }
    }
}

/// The platform as one controller knows it.
struct Told {
    who: String,
    platform: Arc<Platform>,
    last: Mutex<Option<u32>>,
    /// What its controller has decided is acted on at once, kept or not: a deliberate bug.
    decides: OnceLock<Handle>,
}

#[async_trait]
impl Launcher for Told {
    fn name(&self) -> &'static str {
        "simulated"
    }
    fn want(&self, mut wanted: Wanted) {
        if let Some(decision) = self.decides.get().and_then(|handle| handle.status().decision.clone()) {
            wanted.desired = decision.desired;
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).replace(wanted.desired);
        if last != Some(wanted.desired) {
            let kept = |record: &Record| matches!(record, Record::ScaleDecided { decision, .. } if decision.desired == wanted.desired);
            if !self.platform.records().iter().any(kept) {
                let what = format!("{} acts on {} cells, which was never kept", self.who, wanted.desired);
                self.platform.found().push(what);
            }
        }
        self.platform.want(&wanted, &self.who);
    }
    fn trouble(&self) -> Option<String> {
        None
    }
}

impl Nemesis {
    /// Something happens to the autoscaler, or it gets something to do.
    pub(super) async fn autoscale(&self, rng: &mut SmallRng) {
        let scaling = &self.scaling;
        let running: Vec<NodeId> = scaling.nodes().iter().filter(|(_, runs)| **runs).map(|(node, _)| *node).collect();
        let Some(node) = running.choose(rng).copied() else {
            for _ in 0..rng.random_range(1..=CONTROLLERS_MAX) {
                scaling.start(self.executor.add_node());
            }
            return;
        };
        match rng.random_range(0..10) {
            0 => {
                scaling.crash(node);
                self.while_(rng, 0.05, 10.0).await;
                if !self.healing() {
                    scaling.start(node);
                }
            }
            1 => {
                self.say(|| format!("the controller of {node:?} stands still"));
                self.executor.pause(node);
                self.while_(rng, 0.3, 15.0).await;
                self.say(|| format!("the controller of {node:?} goes on"));
                self.executor.resume(node);
            }
            2 => {
                let (bus, others) = (rng.random_bool(0.7), rng.random_bool(0.7));
                self.say(|| format!("the controller of {node:?} is cut off: bus {bus}, cells {others}"));
                let cells: Vec<NodeId> = self.cells.all().iter().map(|cell| cell.node).collect();
                for cut in [true, false] {
                    if bus {
                        self.bus.cut(node, cut);
                    }
                    for cell in cells.iter().filter(|_| others) {
                        self.network.cut(node, *cell, cut);
                    }
                    if cut {
                        self.while_(rng, 0.5, 12.0).await;
                    }
                }
            }
            3 if running.len() < CONTROLLERS_MAX => scaling.start(self.executor.add_node()),
            3..=5 => {
                let vms = self.fleet.truth().managers.values().flatten().map(|vm| vm.id).collect::<Vec<_>>();
                self.say(|| format!("{} VMs are to start at once", vms.len()));
                for _ in 0..rng.random_range(1..5) {
                    self.producers.start_all(&vms);
                }
            }
            6 | 7 => {
                self.say(|| "nobody asks for anything".to_owned());
                self.producers.set_quiet(true);
                self.while_(rng, 8.0, 20.0).await;
                self.producers.set_quiet(false);
            }
            _ => self.set_size(rng).await,
        }
    }

    /// An operator says how many cells there are, and later that the policy does.
    async fn set_size(&self, rng: &mut SmallRng) {
        let most = self.scaling.most();
        let min = rng.random_range(1..=most);
        let change = match rng.random_range(0..4) {
            0 | 1 => ScaleChange { mode: Some(Mode::Fixed), cells: Some(min), ..ScaleChange::default() },
            2 => ScaleChange { mode: Some(Mode::Paused), ..ScaleChange::default() },
            _ => ScaleChange { min: Some(min), max: Some(rng.random_range(min..=most)), ..ScaleChange::default() },
        };
        let auto = ScaleChange { mode: Some(Mode::Auto), min: Some(1), max: Some(most), ..ScaleChange::default() };
        for change in [change, auto] {
            let Some(cell) = self.cell(rng).and_then(|node| self.cells.get(node)) else { return };
            self.say(|| format!("an operator sets {change:?}"));
            let by = Operator { who: "simulated operator".to_owned(), from: "simulation".to_owned() };
            let ask =
                move |gateway: Gateway| async move { gateway.set_scale(&configured(most), &change, by).await.is_ok() };
            self.cells.ask(&self.env, &cell, ANSWER_LIMIT, ask).await;
            self.while_(rng, 2.0, 12.0).await;
        }
    }
}

/// What must hold of the records of the cluster's shard, in order.
fn decided(records: &[Record], most: u32) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut leader: Option<&Leader> = None;
    let mut say = |what: String| found.push((what, Vec::new()));
    for record in records {
        if let Record::ScaleLed { leader: next } = record {
            if leader.is_some_and(|leader| next.term <= leader.term) {
                say(format!("{next:?} decides after {leader:?}: terms must grow"));
            }
            leader = Some(next);
        }
        let Record::ScaleDecided { term, decision } = record else { continue };
        if leader.is_none_or(|leader| leader.term != *term) {
            say(format!("a decision of term {term} was kept while {leader:?} decided"));
        }
        if !allowed(decision, most) {
            say(format!("{decision:?} is not what its settings allow"));
        }
    }
    found
}

/// Whether it is within what operators had set.
fn allowed(decision: &Decision, most: u32) -> bool {
    let settings = &decision.inputs.settings;
    let (min, max) = (settings.min.min(most), settings.max.min(most));
    let holds = decision.desired == decision.before;
    let by_mode = match settings.mode {
        Mode::Auto => holds || (min..=max).contains(&decision.desired),
        Mode::Fixed => decision.desired == settings.cells.min(most),
        Mode::Paused => holds,
    };
    by_mode && (1..=most).contains(&decision.desired) && holds == (decision.direction == Direction::Hold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellbus_bus::ids::Term;
    use cellbus_bus::{Mono, WallMs};
    use cellbus_workflows::autoscale::{Now, Policy};

    fn led(controller: &str, term: u64) -> Record {
        Record::ScaleLed { leader: Leader { controller: controller.parse().unwrap(), term: Term(term) } }
    }
    fn says(term: u64, change: impl FnOnce(&mut Decision)) -> Record {
        let shards = ShardCount::new(32).unwrap();
        let settings = Settings { mode: Mode::Fixed, cells: 3, ..configured(8) };
        let now = Now { mono: Mono(Duration::ZERO), wall: WallMs(0) };
        let mut decision = Policy::new(tuning(), shards, Some(2)).decide(now, &settings, None);
        change(&mut decision);
        Record::ScaleDecided { term: Term(term), decision: decision.into() }
    }

    #[test]
    fn what_must_not_be_in_the_log_is_found() {
        let right = [led("a", 1), says(1, |_| {}), led("b", 2), says(2, |_| {})];
        assert_eq!(decided(&right, 8), []);
        let wrong = [
            vec![says(1, |_| {})],
            vec![led("a", 1), led("b", 1)],
            vec![led("a", 1), led("b", 2), says(1, |_| {})],
            vec![led("a", 1), says(1, |decision| decision.desired = 4)],
            vec![led("a", 1), says(1, |decision| decision.direction = Direction::Hold)],
            vec![led("a", 1), says(1, |decision| decision.inputs.settings.mode = Mode::Paused)],
            vec![
                led("a", 1),
                says(1, |decision| {
                    decision.inputs.settings = Settings { max: 2, ..configured(8) };
                }),
            ],
        ];
        for records in wrong {
            assert_eq!(decided(&records, 8).len(), 1, "{records:?}");
        }
    }
}
