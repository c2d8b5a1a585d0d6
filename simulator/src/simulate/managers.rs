//! The way from cells to the managers: calls travel there and answers back, either may be lost,
//! and what was sent arrives although its sender has died meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::env::Env;
use cellbus_bus::ids::{Epoch, HostId, ManagerId, VmId};
use cellbus_cell::driver::{
    Change, Driver, Drivers, Error, FencedHost, ForeignVm, HeldVm, Inventory, Limits, Op, RunningTask,
};
use cellbus_directory::VmFacts;
use cellbus_workflows::Action;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::oneshot;

use super::executor::{Executor, NodeId};
use super::history::History;
use super::sabotage::Sabotage;
use super::stops::Stops;
use crate::managers::Fleet;

/// How long a cell waits for an answer that was lost, unless it gives up before.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// What calls to managers meet at present.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// How long a call takes at the most, each way.
    pub(super) delay_max: Duration,
    /// How likely it is lost, and its answer.
    pub(super) loss: f64,
    /// How likely it takes seconds, and arrives when nobody waits for it any more.
    pub(super) late: f64,
}

struct State {
    weather: Weather,
    rng: SmallRng,
    cut: BTreeSet<NodeId>,
    /// The newest session of each manager, and when it was opened.
    newest: BTreeMap<ManagerId, (Epoch, u64, Arc<dyn Driver>)>,
    violations: Vec<String>,
    /// Creates that failed and may have left something (for a deliberate bug).
    failed: BTreeSet<VmId>,
    performed: u64,
}

/// Managers, and the ways to them.
pub(super) struct Links {
    executor: Arc<Executor>,
    env: Env,
    fleet: Arc<Fleet>,
    history: Arc<History>,
    sabotage: Option<Sabotage>,
    state: Mutex<State>,
    stops: Mutex<Stops>,
}

impl Links {
    pub(super) fn new(
        executor: &Arc<Executor>,
        env: Env,
        fleet: Arc<Fleet>,
        seed: u64,
        history: Arc<History>,
        sabotage: Option<Sabotage>,
    ) -> Arc<Self> {
        let state = State {
            weather: Weather::default(),
            rng: SmallRng::seed_from_u64(seed ^ 0x11a6),
            cut: BTreeSet::new(),
            newest: BTreeMap::new(),
            violations: Vec::new(),
            failed: BTreeSet::new(),
            performed: 0,
        };
        Arc::new(Self {
            executor: Arc::clone(executor),
            env,
            fleet,
            history,
            sabotage,
            state: Mutex::new(state),
            stops: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// What operators have paused.
    pub(super) fn stops(&self) -> MutexGuard<'_, Stops> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(super) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }
    pub(super) fn cut(&self, node: NodeId, cut: bool) {
        let mut state = self.state();
        if cut {
            state.cut.insert(node);
        } else {
            state.cut.remove(&node);
        }
    }
    pub(super) fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.state().violations)
    }
    /// Operations that arrived at managers.
    pub(super) fn performed(&self) -> u64 {
        self.state().performed
    }
    /// As a node reaches them.
    pub(super) fn of(self: &Arc<Self>, node: NodeId) -> Arc<NodeDrivers> {
        Arc::new(NodeDrivers { links: Arc::clone(self), node })
    }

    /// How long one way takes, and whether what goes it is lost.
    fn way(&self, node: NodeId) -> (Duration, bool) {
        let mut state = self.state();
        let cut = state.cut.contains(&node);
        let State { weather, rng, .. } = &mut *state;
        let mut up_to = |most: Duration| match u64::try_from(most.as_nanos()) {
            Ok(0) | Err(_) => Duration::ZERO,
            Ok(most) => Duration::from_nanos(rng.random_range(0..most)),
        };
        let mut takes = up_to(weather.delay_max);
        let late = up_to(Duration::from_secs(25));
        let mut meets = |rate: f64| rate > 0.0 && rng.random_bool(rate);
        if meets(weather.late) {
            takes += late;
        }
        (takes, cut || meets(weather.loss / 2.0))
    }
}

/// The drivers of a node.
pub(super) struct NodeDrivers {
    links: Arc<Links>,
    node: NodeId,
}
impl Drivers for NodeDrivers {
    fn connect(&self, manager: ManagerId) -> Option<Arc<dyn Driver>> {
        let inner = self.links.fleet.driver(manager)?;
        let epoch = Mutex::default();
        Some(Arc::new(Linked { inner, links: Arc::clone(&self.links), node: self.node, manager, epoch }))
    }
}

struct Linked {
    inner: Arc<dyn Driver>,
    links: Arc<Links>,
    node: NodeId,
    manager: ManagerId,
    epoch: Mutex<Epoch>,
}

fn no_answer() -> Error {
    Error::Unreachable { detail: "no answer came through".to_owned() }
}

impl Linked {
    /// There and back, for what changes nothing.
    async fn read<T: Send>(&self, reading: impl Future<Output = Result<T, Error>> + Send) -> Result<T, Error> {
        let env = &self.links.env;
        let (takes, lost) = self.links.way(self.node);
        env.sleep(takes).await;
        if lost {
            env.sleep(ANSWER_LIMIT).await;
            return Err(no_answer());
        }
        let read = reading.await;
        let (takes, lost) = self.links.way(self.node);
        env.sleep(takes).await;
        if lost {
            env.sleep(ANSWER_LIMIT).await;
            return Err(no_answer());
        }
        read
    }

    fn epoch(&self) -> Epoch {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One operation at the manager itself.
async fn perform(
    links: &Arc<Links>,
    inner: &Arc<dyn Driver>,
    manager: ManagerId,
    epoch: Epoch,
    op: &Op,
) -> Result<Option<VmFacts>, Error> {
    if links.sabotage == Some(Sabotage::DropACompensation)
        && op.action == Action::Delete
        && links.state().failed.contains(&op.vm)
    {
        return Ok(None);
    }
    let began = links.executor.now();
    let mut outcome = inner.perform(op).await;
    if links.sabotage == Some(Sabotage::KeepOldSessions) && outcome == Err(Error::Revoked) {
        let newest = links.state().newest.get(&manager).map(|(_, _, driver)| Arc::clone(driver));
        if let Some(newest) = newest {
            outcome = newest.perform(op).await;
        }
    }
    let now = links.executor.now();
    let mut state = links.state();
    state.performed += 1;
    if let Some((newest, opened, _)) = state.newest.get(&manager)
        && *newest > epoch
        && *opened < began
        && outcome.is_ok()
        && op.action != Action::Inspect
    {
        let said = format!(
            "manager {manager}: {:?} on VM {} was done for epoch {epoch} although epoch {newest} had opened it",
            op.action, op.vm
        );
        state.violations.push(said);
    }
    if matches!(op.action, Action::Create(_)) && matches!(outcome, Err(Error::Permanent { .. })) {
        state.failed.insert(op.vm);
    }
    drop(state);
    links.history.add(now, || {
        format!("manager {manager} epoch {epoch} op {} {:?} on {}: {outcome:?}", op.number, op.action, op.vm)
    });
    outcome
}

#[async_trait]
impl Driver for Linked {
    async fn open(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = epoch;
        let opened = async {
            let tasks = self.inner.open(epoch).await?;
            let now = self.links.executor.now();
            let mut state = self.links.state();
            if state.newest.get(&self.manager).is_none_or(|(newest, ..)| *newest < epoch) {
                state.newest.insert(self.manager, (epoch, now, Arc::clone(&self.inner)));
            }
            drop(state);
            self.links
                .history
                .add(now, || format!("*manager {} opened by {:?} under epoch {epoch}", self.manager, self.node));
            Ok(tasks)
        };
        self.read(opened).await
    }
    async fn inventory(&self) -> Result<Inventory, Error> {
        self.read(self.inner.inventory()).await
    }
    async fn tasks(&self) -> Result<Vec<RunningTask>, Error> {
        self.read(self.inner.tasks()).await
    }
    async fn perform(&self, op: &Op) -> Result<Option<VmFacts>, Error> {
        let (links, inner, op) = (Arc::clone(&self.links), Arc::clone(&self.inner), op.clone());
        let (manager, epoch, node) = (self.manager, self.epoch(), self.node);
        links.stops().begins(links.executor.now(), manager, op.vm, &op.action);
        let (there, lost) = links.way(node);
        let (back, answer) = oneshot::channel();
        // It has been sent: whether its sender lives on is nothing to it.
        self.links.env.spawn("a call to a manager", async move {
            links.env.sleep(there).await;
            if lost || links.state().cut.contains(&node) {
                return;
            }
            let outcome = perform(&links, &inner, manager, epoch, &op).await;
            let (takes, lost) = links.way(node);
            links.env.sleep(takes).await;
            if !lost {
                // The caller may have gone.
                let _ = back.send(outcome);
            }
        });
        match answer.await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.links.env.sleep(ANSWER_LIMIT).await;
                Err(no_answer())
            }
        }
    }
    async fn inspect(&self, vm: VmId) -> Result<Option<HeldVm>, Error> {
        self.read(self.inner.inspect(vm)).await
    }
    async fn changes(&self) -> Result<Vec<Change>, Error> {
        let changes = self.inner.changes().await?;
        if self.links.state().cut.contains(&self.node) {
            return Err(no_answer());
        }
        Ok(changes)
    }
    async fn dead_hosts(&self) -> Result<Vec<HostId>, Error> {
        self.read(self.inner.dead_hosts()).await
    }
    async fn may_be_fenced(&self, host: &HostId) -> Result<(), Error> {
        self.read(self.inner.may_be_fenced(host)).await
    }
    async fn fenced(&self, hosts: Vec<FencedHost>) -> Result<(), Error> {
        self.read(self.inner.fenced(hosts)).await
    }
    async fn foreign(&self) -> Result<Vec<ForeignVm>, Error> {
        self.read(self.inner.foreign()).await
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
}
