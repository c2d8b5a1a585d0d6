//! One simulated manager: its session, its running tasks, and the way of an operation through it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, HostId, ManagerId, OpNumber, VmId};
use cellbus_cell::driver::{Change, Error, ForeignVm, HeldVm, Inventory, Limits, Op, RunningTask};
use cellbus_directory::VmFacts;
use cellbus_workflows::Action;
use rand::rngs::SmallRng;
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};

use super::changes::{Changes, Cursor};
use super::faults::Trouble;
use super::holdings::{Did, Holdings, HostState, Image, PutBack, Reservation};
use super::latency::Latency;
use super::placements::Placements;
use super::record;
use super::store::{Mark, Store, Write};

/// What an operation gives.
pub(super) type Outcome = Result<Option<VmFacts>, Error>;

/// Counts of what a control plane must not do, or must do only when it could not know better.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) revoked_operations: AtomicU64,
    pub(super) superseded_operations: AtomicU64,
    pub(super) overfill_attempts: AtomicU64,
}
impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) struct Manager {
    pub(super) id: ManagerId,
    pub(super) env: Env,
    pub(crate) limits: Limits,
    pub(super) counters: Counters,
    latency: Latency,
    store: Arc<Store>,
    placements: Arc<Placements>,
    state: Mutex<State>,
    /// Whether [`State::trouble`] says anything: looked at without the lock.
    pub(super) troubled: AtomicBool,
    /// Something changed that a waiting call may wait for: changes, session, faults.
    pub(super) stirred: Notify,
}

pub(super) struct State {
    pub(super) epoch: Option<Epoch>,
    pub(super) holdings: Holdings,
    pub(super) changes: Changes,
    pub(super) trouble: Trouble,
    pub(super) rng: SmallRng,
    running: BTreeMap<VmId, Running>,
    /// The number of the next task.
    next_task: u64,
    under_way: UnderWay,
    /// Everything that was put for this manager is at or before this.
    put: Mark,
}

/// A task under way.
struct Running {
    task: u64,
    op: Op,
    session: Option<Epoch>,
    reservation: Option<Reservation>,
    /// Who wants to hear of its end. Usually one.
    waiting: SmallVec<[oneshot::Sender<Outcome>; 1]>,
}

/// Tasks under way, by what limits them.
#[derive(Default)]
struct UnderWay {
    all: u32,
    of_kind: [u32; 5],
}

/// What limits an operation. The number is its place in [`UnderWay::of_kind`].
#[derive(Clone, Copy)]
enum Kind {
    Create = 0,
    Relocation = 1,
    Power = 2,
    Snapshot = 3,
    Other = 4,
}
impl Kind {
    fn of(action: &Action) -> Self {
        match action {
            Action::Create(_) => Self::Create,
            Action::Relocate(_) => Self::Relocation,
            Action::Start | Action::Stop(_) | Action::Restart(_) | Action::Suspend | Action::Resume => Self::Power,
            Action::Snapshot(_) | Action::Revert(_) | Action::SnapshotDelete(_) => Self::Snapshot,
            Action::Resize(_) | Action::Delete | Action::Inspect | Action::Adopt(_) => Self::Other,
        }
    }
    fn max(self, limits: &Limits) -> u32 {
        match self {
            Self::Create => limits.creates_max,
            Self::Relocation => limits.relocations_max,
            Self::Power => limits.power_max,
            Self::Snapshot => limits.snapshots_max,
            Self::Other => limits.operations_max,
        }
    }
}

/// How far an operation got at once.
enum Begun {
    /// To its end; what it says holds once the mark is durable.
    Done(Outcome, Mark),
    /// It runs, or has been running.
    Runs(oneshot::Receiver<Outcome>),
}

/// What a manager is made of.
pub(super) struct Parts {
    pub(super) id: ManagerId,
    pub(super) holdings: Holdings,
    pub(super) epoch: Option<Epoch>,
    pub(super) latency: Latency,
    pub(super) limits: Limits,
    pub(super) rng: SmallRng,
    pub(super) origin: u32,
}

impl Manager {
    pub(super) fn new(parts: Parts, store: Arc<Store>, placements: Arc<Placements>, env: Env) -> Self {
        Self {
            id: parts.id,
            env,
            limits: parts.limits,
            counters: Counters::default(),
            latency: parts.latency,
            store,
            placements,
            state: Mutex::new(State {
                epoch: parts.epoch,
                holdings: parts.holdings,
                changes: Changes::new(parts.origin),
                trouble: Trouble::default(),
                rng: parts.rng,
                running: BTreeMap::new(),
                next_task: 0,
                under_way: UnderWay::default(),
                put: Mark::default(),
            }),
            troubled: AtomicBool::new(false),
            stirred: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a record to the store.
    pub(super) fn put(&self, state: &mut State, write: Write) {
        state.put = self.store.put(write);
    }

    /// Hands the VM's record to the store, as it is now.
    pub(super) fn put_vm(&self, state: &mut State, id: VmId) {
        let write = match (state.holdings.vm(&id), state.holdings.tombstone(&id)) {
            (Some(vm), _) => record::vm(self.id, id, state.holdings.host_of(vm), &vm.body),
            (None, Some(op)) => record::gone(self.id, id, op),
            (None, None) => return,
        };
        self.put(state, write);
    }

    async fn durable(&self, mark: Mark) -> Result<(), Error> {
        self.store.durable(mark).await.map_err(|_| Error::Unreachable {
            detail: self.store.failure().unwrap_or("the simulated manager is shutting down").to_owned(),
        })
    }

    // ── sessions and reading ──

    pub(crate) async fn open(&self, epoch: Epoch) -> Result<(Vec<RunningTask>, Cursor), Error> {
        self.pause(|latency, rng| latency.of_read(rng)).await?;
        let (tasks, cursor, mark) = {
            let mut state = self.state();
            match state.epoch {
                Some(now) if epoch < now => return Err(Error::Revoked),
                Some(now) if epoch == now => {}
                Some(_) | None => {
                    state.epoch = Some(epoch);
                    self.put(&mut state, record::epoch(self.id, epoch));
                }
            }
            (state.tasks(), state.changes.end(), state.put)
        };
        // Whoever waits under an older session hears that it is over.
        self.stirred.notify_waiters();
        self.durable(mark).await?;
        Ok((tasks, cursor))
    }

    pub(crate) async fn inventory(&self, session: Option<Epoch>) -> Result<Inventory, Error> {
        self.pause(|latency, rng| latency.of_inventory(rng)).await?;
        // Whoever has not opened it may read it; whoever had and was revoked may not.
        let session = session.or(self.state().epoch);
        self.read(session, |state| state.holdings.inventory()).await
    }
    pub(crate) async fn tasks(&self, session: Option<Epoch>) -> Result<Vec<RunningTask>, Error> {
        self.pause(|latency, rng| latency.of_read(rng)).await?;
        self.read(session, |state| state.tasks()).await
    }
    pub(crate) async fn dead_hosts(&self, session: Option<Epoch>) -> Result<Vec<HostId>, Error> {
        self.pause(|latency, rng| latency.of_read(rng)).await?;
        self.read(session, |state| state.holdings.dead_hosts()).await
    }
    pub(crate) async fn may_be_fenced(&self, host: &HostId) -> Result<(), Error> {
        self.pause(|latency, rng| latency.of_read(rng)).await?;
        let session = self.state().epoch;
        self.read(session, |state| state.holdings.may_be_fenced(host)).await?
    }
    /// Somebody has seen that these hosts are off. Of those that run nothing is believed.
    pub(crate) async fn fenced(&self, session: Epoch, hosts: &[HostId]) -> Result<(), Error> {
        self.pause(|latency, rng| latency.of_read(rng)).await?;
        let mark = {
            let mut state = self.state();
            state.admit(Some(session))?;
            for host in state.holdings.dark(hosts) {
                state.holdings.set_host(&host, HostState::Dead);
                self.put(&mut state, record::host(self.id, &host, HostState::Dead));
                self.changed_behind(&mut state, Change::Hosts);
            }
            state.put
        };
        self.durable(mark).await
    }
    pub(crate) async fn foreign(&self, session: Option<Epoch>) -> Result<Vec<ForeignVm>, Error> {
        self.pause(|latency, rng| latency.of_inventory(rng)).await?;
        self.read(session, |state| state.holdings.foreign_vms().collect()).await
    }
    pub(super) fn tasks_running(&self) -> usize {
        self.state().running.len()
    }
    pub(crate) async fn inspect(&self, session: Option<Epoch>, vm: VmId) -> Result<Option<HeldVm>, Error> {
        self.pause(|latency, rng| latency.of_read(rng)).await?;
        self.read(session, |state| state.holdings.vm(&vm).map(|found| state.holdings.held(vm, found))).await
    }

    /// Reads something, and gives it once all of it is durable: what was seen is never undone.
    async fn read<T>(&self, session: Option<Epoch>, look: impl FnOnce(&State) -> T) -> Result<T, Error> {
        let (seen, mark) = {
            let state = self.state();
            state.admit(session)?;
            (look(&state), state.put)
        };
        self.durable(mark).await?;
        Ok(seen)
    }

    /// What changed after `cursor`, once something has.
    pub(crate) async fn changes(&self, session: Option<Epoch>, cursor: Cursor) -> Result<(Vec<Change>, Cursor), Error> {
        loop {
            let mut stirred = std::pin::pin!(self.stirred.notified());
            // Before looking, so that what happens in between is not missed.
            stirred.as_mut().enable();
            {
                let mut state = self.state();
                state.admit(session)?;
                state.trouble.reachable()?;
                if !state.trouble.hanging() {
                    let (changes, next) = state.changes.after(cursor);
                    if !changes.is_empty() {
                        return Ok((changes, next));
                    }
                }
            }
            stirred.await;
        }
    }

    /// The time that a reading takes, and the troubles that it meets.
    async fn pause(&self, draw: impl FnOnce(Latency, &mut SmallRng) -> Duration) -> Result<(), Error> {
        if self.troubled.load(Ordering::Acquire) {
            self.healed().await?;
            self.state().trouble_of_a_reading()?;
        }
        if self.latency == Latency::None {
            return Ok(());
        }
        let takes = draw(self.latency, &mut self.state().rng);
        if !takes.is_zero() {
            self.env.sleep(takes).await;
        }
        Ok(())
    }

    /// Waits while the manager hangs; an error while it is down.
    pub(super) async fn healed(&self) -> Result<(), Error> {
        loop {
            let mut stirred = std::pin::pin!(self.stirred.notified());
            stirred.as_mut().enable();
            {
                let state = self.state();
                state.trouble.reachable()?;
                if !state.trouble.hanging() {
                    return Ok(());
                }
            }
            stirred.await;
        }
    }

    // ── operations ──

    /// Carries an operation out to its end. With no trouble about: in trouble, `faults.rs` comes first.
    pub(super) async fn carry_out(self: &Arc<Self>, session: Option<Epoch>, op: &Op) -> Outcome {
        match self.begin(session, op) {
            Begun::Done(outcome, mark) => self.durable(mark).await.and(outcome),
            // The task is dropped with its runtime only.
            Begun::Runs(end) => {
                end.await.unwrap_or_else(|_| Err(Error::Unreachable { detail: "the task was abandoned".to_owned() }))
            }
        }
    }

    fn begin(self: &Arc<Self>, session: Option<Epoch>, op: &Op) -> Begun {
        let mut state = self.state();
        if let Err(error) = state.admit(session) {
            Counters::add(&self.counters.revoked_operations);
            return Begun::Done(Err(error), Mark::default());
        }
        if let Some(running) = state.running.get_mut(&op.vm) {
            return match op.number.cmp(&running.op.number) {
                std::cmp::Ordering::Equal => {
                    let (send, receive) = oneshot::channel();
                    running.waiting.push(send);
                    Begun::Runs(receive)
                }
                std::cmp::Ordering::Less => {
                    let last = running.op.number;
                    let mark = state.put;
                    Begun::Done(self.superseded(op.number, last), mark)
                }
                std::cmp::Ordering::Greater => {
                    let detail = format!("operation {} on this VM is still under way", running.op.number);
                    Begun::Done(Err(Error::Busy { detail }), state.put)
                }
            };
        }
        match state.holdings.standing(op) {
            Ok(None) => {}
            Ok(Some(before)) => return Begun::Done(Ok(before), state.put),
            Err(Error::Superseded { asked, last }) => {
                let mark = state.put;
                return Begun::Done(self.superseded(asked, last), mark);
            }
            Err(error) => return Begun::Done(Err(error), state.put),
        }
        let takes = self.latency.of(&op.action, &mut state.rng) + state.trouble.slow();
        if takes.is_zero() {
            let outcome = self.apply(&mut state, op);
            return Begun::Done(outcome, state.put);
        }
        match self.start(&mut state, session, op) {
            Ok((task, end)) => {
                drop(state);
                self.run(op, task, takes);
                Begun::Runs(end)
            }
            Err(error) => Begun::Done(Err(error), state.put),
        }
    }

    fn superseded(&self, asked: OpNumber, last: OpNumber) -> Outcome {
        Counters::add(&self.counters.superseded_operations);
        Err(Error::Superseded { asked, last })
    }

    /// Begins a task: its slot and its room are taken.
    fn start(
        &self,
        state: &mut State,
        session: Option<Epoch>,
        op: &Op,
    ) -> Result<(u64, oneshot::Receiver<Outcome>), Error> {
        let kind = Kind::of(&op.action);
        if state.under_way.all >= self.limits.operations_max
            || state.under_way.of_kind[kind as usize] >= kind.max(&self.limits)
        {
            return Err(Error::Busy { detail: format!("{} operations are under way", state.under_way.all) });
        }
        let reservation = state.holdings.reserve(op).inspect_err(|error| self.count(op, error))?;
        state.under_way.all += 1;
        state.under_way.of_kind[kind as usize] += 1;
        let (send, receive) = oneshot::channel();
        let waiting = SmallVec::from_buf([send]);
        let task = state.next_task;
        state.next_task += 1;
        state.running.insert(op.vm, Running { task, op: op.clone(), session, reservation, waiting });
        Ok((task, receive))
    }

    fn run(self: &Arc<Self>, op: &Op, task: u64, takes: Duration) {
        let (manager, vm) = (Arc::clone(self), op.vm);
        self.env.spawn("simulated manager's task", async move {
            manager.env.sleep(takes).await;
            let Some((task, outcome, mark)) = manager.end(vm, task) else { return };
            let outcome = manager.durable(mark).await.and(outcome);
            let mut heard = false;
            for waiting in task.waiting {
                heard |= waiting.send(outcome.clone()).is_ok();
            }
            let mut state = manager.state();
            if !heard || state.epoch != task.session {
                // Nobody who counts has heard of it: the present owner must look.
                state.changes.push(Change::Vm(vm));
                drop(state);
                manager.stirred.notify_waiters();
            }
        });
    }

    /// Ends the task on this VM: gives its slot and its room back, and does what was asked.
    fn end(&self, vm: VmId, task: u64) -> Option<(Running, Outcome, Mark)> {
        let mut state = self.state();
        // It may have been forgotten, and another begun.
        state.running.get(&vm).filter(|running| running.task == task)?;
        let task = state.running.remove(&vm)?;
        state.under_way.all -= 1;
        state.under_way.of_kind[Kind::of(&task.op.action) as usize] -= 1;
        if let Some(reservation) = task.reservation {
            state.holdings.release(reservation);
        }
        let outcome = self.apply(&mut state, &task.op);
        Some((task, outcome, state.put))
    }

    fn apply(&self, state: &mut State, op: &Op) -> Outcome {
        let did = state.holdings.apply(op).inspect_err(|error| self.count(op, error))?;
        match did {
            Did::Nothing => {}
            Did::Made => {
                let copy = matches!(&op.action, Action::Create(spec) if spec.copy_of.is_some());
                self.placements.made(op.vm, copy);
                self.put_vm(state, op.vm);
            }
            Did::Adopted(id) => {
                self.placements.made(op.vm, false);
                self.put(state, record::foreign_no_more(self.id, id));
                self.put_vm(state, op.vm);
            }
            Did::Removed => {
                self.placements.removed(op.vm);
                self.put_vm(state, op.vm);
            }
            Did::Changed | Did::Buried => self.put_vm(state, op.vm),
        }
        Ok(state.holdings.vm(&op.vm).map(|vm| state.holdings.facts(vm)))
    }

    /// Leaves a create half done, if it can be begun at all; what was asked gives `detail` from now on.
    pub(super) fn half_make(&self, session: Option<Epoch>, op: &Op, detail: &str) {
        let Action::Create(spec) = &op.action else { return };
        let mut state = self.state();
        let fresh = state.admit(session).is_ok()
            && !state.running.contains_key(&op.vm)
            && state.holdings.vm(&op.vm).is_none()
            && state.holdings.standing(op) == Ok(None);
        if fresh && state.holdings.half_make(op, spec, detail) {
            self.placements.made(op.vm, spec.copy_of.is_some());
            self.put_vm(&mut state, op.vm);
        }
    }

    fn count(&self, op: &Op, error: &Error) {
        let wanted_room = match &op.action {
            Action::Create(_) | Action::Relocate(_) | Action::Resize(_) => true,
            Action::Start
            | Action::Stop(_)
            | Action::Restart(_)
            | Action::Suspend
            | Action::Resume
            | Action::Snapshot(_)
            | Action::Revert(_)
            | Action::SnapshotDelete(_)
            | Action::Delete
            | Action::Inspect
            | Action::Adopt(_) => false,
        };
        if wanted_room && matches!(error, Error::NoRoom { .. }) {
            Counters::add(&self.counters.overfill_attempts);
        }
    }

    /// Comes back as it was: tasks under way are forgotten, and nobody hears of their ends.
    pub(super) fn put_back(&self, image: &Image) -> PutBack {
        let mut state = self.state();
        let forgotten = std::mem::take(&mut state.running);
        state.under_way = UnderWay::default();
        let did = state.holdings.put_back(image);
        did.back.iter().for_each(|vm| self.placements.brought_back(*vm));
        did.gone.iter().for_each(|vm| self.placements.removed(*vm));
        for vm in did.back.iter().chain(&did.gone).chain(&did.changed) {
            if state.holdings.vm(vm).is_none() && state.holdings.tombstone(vm).is_none() {
                // As if there had never been one.
                self.put(&mut state, record::gone(self.id, *vm, OpNumber(0)));
            } else {
                self.put_vm(&mut state, *vm);
            }
        }
        state.changes.forget();
        drop(state);
        drop(forgotten);
        self.stirred.notify_waiters();
        did
    }
    /// A VM changed that no operation of ours changed.
    pub(super) fn changed_behind(&self, state: &mut State, change: Change) {
        state.changes.push(change);
        self.stirred.notify_waiters();
    }
    pub(super) fn planted(&self, vm: VmId) {
        self.placements.brought_back(vm);
    }
    pub(super) fn removed_behind(&self, state: &mut State, vm: VmId) {
        self.placements.removed(vm);
        self.put_vm(state, vm);
        self.changed_behind(state, Change::Vm(vm));
    }
}

impl State {
    /// Whether this session is the present one.
    fn admit(&self, session: Option<Epoch>) -> Result<(), Error> {
        if session.is_some() && session == self.epoch { Ok(()) } else { Err(Error::Revoked) }
    }

    fn tasks(&self) -> Vec<RunningTask> {
        let task =
            |running: &Running| RunningTask { vm: running.op.vm, number: running.op.number, host: running.goes_to() };
        self.running.values().map(task).collect()
    }

    fn trouble_of_a_reading(&mut self) -> Result<(), Error> {
        self.trouble.of_a_reading(&mut self.rng)
    }
}

impl Running {
    fn goes_to(&self) -> Option<HostId> {
        match &self.op.action {
            Action::Create(_) => self.op.host.clone(),
            Action::Relocate(host) => Some(self.op.host.as_ref().unwrap_or(host).clone()),
            Action::Start
            | Action::Stop(_)
            | Action::Restart(_)
            | Action::Suspend
            | Action::Resume
            | Action::Resize(_)
            | Action::Snapshot(_)
            | Action::Revert(_)
            | Action::SnapshotDelete(_)
            | Action::Delete
            | Action::Inspect
            | Action::Adopt(_) => None,
        }
    }
}
