//! Runs every task of a simulated cluster on one thread, in virtual time, in an order that the
//! seed decides.
//!
//! Tasks belong to nodes. A node is crashed by dropping all its tasks, and paused by not polling
//! them: what they wait for goes on happening, as it does to a process that is stopped. When
//! nothing is ready, time jumps to the next timer. Node 0 is the world around the cells: the bus,
//! the managers, the producers and whoever makes faults. It is never crashed or paused.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use cellbus_bus::env::{BoxFuture, panic_text};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::clock::Clock;
use super::trace::Trace;

/// A machine, or whatever crashes as one. Its number stays over restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(pub(super) u32);

/// Bus, managers, producers.
pub(super) const WORLD: NodeId = NodeId(0);

/// Polls without any time passing after which a run is taken to spin.
const POLLS_AT_ONE_MOMENT_MAX: u64 = 2_000_000;

/// Which of the ready tasks is polled next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The one that has been ready for longest, as in most real runtimes.
    Fifo,
    /// Any.
    Random,
}

/// A task: its place, and a number that is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskId {
    place: u32,
    number: u64,
}

/// The name of a timer: when it is due in world time, and a number.
pub(super) type TimerId = (u64, u64);

struct Slot {
    number: u64,
    node: NodeId,
    name: &'static str,
    /// `None` while it is polled.
    future: Option<BoxFuture<()>>,
    waker: Waker,
    ready: bool,
    aborted: bool,
}

struct Node {
    clock: Clock,
    /// Grows with every crash: what was started under an older one runs no more.
    incarnation: u64,
    paused: bool,
    /// Ready while it is paused.
    parked: Vec<TaskId>,
}

struct Core {
    now: u64,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    ready: VecDeque<TaskId>,
    timers: BTreeMap<TimerId, Waker>,
    nodes: Vec<Node>,
    numbers: u64,
    timer_numbers: u64,
    rng: SmallRng,
    order: Order,
    trace: Trace,
    polls: u64,
    polls_now: u64,
    panics: Vec<String>,
}

/// See the module. Cheap to share; one thread runs it.
pub(super) struct Executor {
    core: Mutex<Core>,
}

struct TaskWaker {
    executor: std::sync::Weak<Executor>,
    task: TaskId,
}
impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(executor) = self.executor.upgrade() {
            executor.core().make_ready(self.task);
        }
    }
}

impl Core {
    fn slot(&mut self, task: TaskId) -> Option<&mut Slot> {
        self.slots.get_mut(task.place as usize)?.as_mut().filter(|slot| slot.number == task.number)
    }

    fn panicked(&mut self, name: &'static str, why: &str) {
        self.panics.push(format!("task {name:?} panicked: {why}"));
    }

    fn make_ready(&mut self, task: TaskId) {
        if let Some(slot) = self.slot(task)
            && !slot.ready
        {
            slot.ready = true;
            self.ready.push_back(task);
        }
    }

    /// Takes the task out of its place. Whoever gets the slot drops it without holding the lock:
    /// what is dropped may wake others.
    fn remove(&mut self, task: TaskId) -> Option<Slot> {
        self.slot(task)?;
        self.free.push(task.place);
        self.slots.get_mut(task.place as usize)?.take()
    }

    fn next_ready(&mut self) -> Option<TaskId> {
        match self.order {
            Order::Fifo => self.ready.pop_front(),
            Order::Random if self.ready.len() > 1 => {
                let place = self.rng.random_range(0..self.ready.len());
                self.ready.swap_remove_back(place)
            }
            Order::Random => self.ready.pop_front(),
        }
    }
}

/// What the run loop came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// What was waited for has come.
    Done,
    /// Nothing will ever happen any more.
    Idle,
    /// Tasks wake each other and no time passes.
    Spins,
}

impl Executor {
    pub(super) fn new(seed: u64, order: Order) -> Arc<Self> {
        let core = Core {
            now: 0,
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            timers: BTreeMap::new(),
            nodes: Vec::new(),
            numbers: 0,
            timer_numbers: 0,
            rng: SmallRng::seed_from_u64(seed ^ 0x5c4e_d01e_0000_0001),
            order,
            trace: Trace::new(seed),
            polls: 0,
            polls_now: 0,
            panics: Vec::new(),
        };
        let executor = Arc::new(Self { core: Mutex::new(core) });
        executor.add_node();
        executor
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // Nothing that can panic runs under this lock.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ── nodes ──

    pub(super) fn add_node(&self) -> NodeId {
        let mut core = self.core();
        core.nodes.push(Node { clock: Clock::default(), incarnation: 0, paused: false, parked: Vec::new() });
        NodeId(u32::try_from(core.nodes.len() - 1).expect("fewer than 2^32 nodes"))
    }

    /// Drops every task of the node, in the order of their places. Gives how many.
    pub(super) fn crash(&self, node: NodeId) -> usize {
        let dropped = {
            let mut core = self.core();
            let at = node.0 as usize;
            core.nodes[at].incarnation += 1;
            core.nodes[at].paused = false;
            core.nodes[at].parked.clear();
            let of_node: Vec<TaskId> = core
                .slots
                .iter()
                .enumerate()
                .filter_map(|(place, slot)| {
                    let slot = slot.as_ref().filter(|slot| slot.node == node)?;
                    Some(TaskId { place: place as u32, number: slot.number })
                })
                .collect();
            let mut dropped = Vec::new();
            for task in of_node {
                if core.slot(task).is_some_and(|slot| slot.future.is_none()) {
                    // It is the one that runs now: it ends with this poll.
                    if let Some(slot) = core.slot(task) {
                        slot.aborted = true;
                    }
                } else {
                    dropped.extend(core.remove(task));
                }
            }
            core.trace.event("crash", u64::from(node.0));
            dropped
        };
        dropped.len()
    }

    pub(super) fn pause(&self, node: NodeId) {
        let mut core = self.core();
        core.nodes[node.0 as usize].paused = true;
        core.trace.event("pause", u64::from(node.0));
    }
    pub(super) fn resume(&self, node: NodeId) {
        let mut core = self.core();
        let state = &mut core.nodes[node.0 as usize];
        state.paused = false;
        let parked = std::mem::take(&mut state.parked);
        core.ready.extend(parked);
        core.trace.event("resume", u64::from(node.0));
    }
    pub(super) fn paused(&self, node: NodeId) -> bool {
        self.core().nodes[node.0 as usize].paused
    }
    pub(super) fn incarnation(&self, node: NodeId) -> u64 {
        self.core().nodes[node.0 as usize].incarnation
    }
    /// Changes a node's clocks.
    pub(super) fn set_clock(&self, node: NodeId, change: impl FnOnce(&mut Clock, u64)) {
        let mut core = self.core();
        let now = core.now;
        change(&mut core.nodes[node.0 as usize].clock, now);
    }

    // ── tasks ──

    /// Starts a task of a node, unless it has crashed since `incarnation`.
    pub(super) fn spawn(
        self: &Arc<Self>,
        node: NodeId,
        incarnation: u64,
        name: &'static str,
        future: BoxFuture<()>,
    ) -> Option<TaskId> {
        let mut core = self.core();
        if core.nodes[node.0 as usize].incarnation != incarnation {
            drop(core);
            drop(future);
            return None;
        }
        core.numbers += 1;
        let number = core.numbers;
        let place = core.free.pop().unwrap_or_else(|| {
            core.slots.push(None);
            u32::try_from(core.slots.len() - 1).expect("fewer than 2^32 tasks")
        });
        let task = TaskId { place, number };
        let waker = Waker::from(Arc::new(TaskWaker { executor: Arc::downgrade(self), task }));
        core.slots[place as usize] =
            Some(Slot { number, node, name, future: Some(future), waker, ready: true, aborted: false });
        core.ready.push_back(task);
        Some(task)
    }

    pub(super) fn abort(&self, task: TaskId) {
        let dropped = {
            let mut core = self.core();
            match core.slot(task) {
                Some(slot) if slot.future.is_none() => {
                    slot.aborted = true;
                    None
                }
                Some(_) => core.remove(task),
                None => None,
            }
        };
        drop(dropped);
    }

    // ── time ──

    /// World time, in nanoseconds since the run began.
    pub(super) fn now(&self) -> u64 {
        self.core().now
    }
    /// A node's own clocks: monotonic nanoseconds, and wall milliseconds.
    pub(super) fn clocks(&self, node: NodeId) -> (u64, u64) {
        let core = self.core();
        let clock = &core.nodes[node.0 as usize].clock;
        (clock.mono(core.now), clock.wall_ms(core.now))
    }

    /// Whether the node's monotonic clock has come to `until`; if not, `waker` is woken when it has.
    pub(super) fn due(&self, node: NodeId, until: u64, timer: &mut Option<TimerId>, waker: &Waker) -> bool {
        let mut core = self.core();
        let clock = &core.nodes[node.0 as usize].clock;
        if clock.mono(core.now) >= until {
            if let Some(id) = timer.take() {
                core.timers.remove(&id);
            }
            return true;
        }
        let at = clock.world_time_of(until).max(core.now + 1);
        if let Some(id) = *timer {
            match core.timers.get_mut(&id) {
                Some(known) if id.0 == at => {
                    known.clone_from(waker);
                    return false;
                }
                Some(_) | None => {
                    core.timers.remove(&id);
                }
            }
        }
        if at < u64::MAX / 2 {
            core.timer_numbers += 1;
            let id = (at, core.timer_numbers);
            core.timers.insert(id, waker.clone());
            *timer = Some(id);
        }
        false
    }
    pub(super) fn forget(&self, timer: TimerId) {
        let forgotten = self.core().timers.remove(&timer);
        drop(forgotten);
    }

    // ── running ──

    /// Runs until `done` says so (looked at whenever time is about to pass), or nothing is left to do.
    pub(super) fn run(&self, mut done: impl FnMut() -> bool) -> Stopped {
        loop {
            if let Some(stopped) = self.poll_ready() {
                return stopped;
            }
            if done() {
                return Stopped::Done;
            }
            let due = {
                let mut core = self.core();
                let Some((&(at, _), _)) = core.timers.first_key_value() else { return Stopped::Idle };
                core.now = at;
                core.polls_now = 0;
                let mut due = Vec::new();
                while let Some(entry) = core.timers.first_entry()
                    && entry.key().0 <= at
                {
                    due.push(entry.remove());
                }
                core.trace.event("time", at);
                due
            };
            due.into_iter().for_each(Waker::wake);
        }
    }

    /// Polls what is ready until nothing is.
    fn poll_ready(&self) -> Option<Stopped> {
        loop {
            let (task, mut future, waker) = {
                let mut core = self.core();
                let task = core.next_ready()?;
                let Some((node, number)) = core.slot(task).map(|slot| (slot.node, slot.number)) else { continue };
                let state = &mut core.nodes[node.0 as usize];
                if state.paused {
                    state.parked.push(task);
                    continue;
                }
                core.polls += 1;
                core.polls_now += 1;
                if core.polls_now > POLLS_AT_ONE_MOMENT_MAX {
                    return Some(Stopped::Spins);
                }
                core.trace.poll(number);
                let Some(slot) = core.slot(task) else { continue };
                slot.ready = false;
                let Some(future) = slot.future.take() else { continue };
                (task, future, slot.waker.clone())
            };
            let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
            let finished = {
                let mut core = self.core();
                if let Err(panic) = &polled {
                    let name = core.slot(task).map_or("?", |slot| slot.name);
                    core.panicked(name, panic_text(&**panic));
                }
                match core.slot(task) {
                    Some(slot) if matches!(polled, Ok(Poll::Pending)) && !slot.aborted => {
                        slot.future = Some(future);
                        None
                    }
                    Some(_) | None => Some((future, core.remove(task))),
                }
            };
            drop(finished);
        }
    }

    // ── what became of it ──

    /// Notes something in the trace.
    pub(super) fn note(&self, what: &'static str, value: u64) {
        self.core().trace.event(what, value);
    }
    /// The hash of all that has happened.
    pub(super) fn trace_hash(&self) -> u64 {
        self.core().trace.hash()
    }
    /// Polls so far.
    pub(super) fn polls(&self) -> u64 {
        self.core().polls
    }
    /// A part of a task of this name panicked, and was caught by it.
    pub(super) fn panicked(&self, name: &'static str, why: &str) {
        self.core().panicked(name, why);
    }
    /// Tasks that panicked since this was last asked.
    pub(super) fn take_panics(&self) -> Vec<String> {
        std::mem::take(&mut self.core().panics)
    }
    /// Drops every task, for the end of a run: tasks and what they hold refer to each other.
    pub(super) fn clear(&self) {
        let nodes = self.core().nodes.len();
        for node in 0..nodes {
            self.crash(NodeId(node as u32));
        }
        let timers = std::mem::take(&mut self.core().timers);
        drop(timers);
    }
}

/// World time as a duration.
pub(super) fn duration(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn counting(count: &Arc<AtomicU64>) -> BoxFuture<()> {
        let count = Arc::clone(count);
        Box::pin(async move {
            loop {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        })
    }

    #[test]
    fn a_paused_node_stands_still_and_a_crashed_one_is_gone() {
        let executor = Executor::new(1, Order::Fifo);
        let node = executor.add_node();
        let held = Arc::new(());
        let (kept, paused) = (Arc::clone(&held), Arc::new(AtomicU64::new(0)));
        let seen = Arc::clone(&paused);
        let env = super::super::env::of(&executor, node, 7);
        let sleeping = env.clone();
        env.spawn("ticks", async move {
            let _kept = kept;
            loop {
                sleeping.sleep(Duration::from_secs(1)).await;
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
        let until = |seconds: u64| executor.run(|| executor.now() >= seconds * 1_000_000_000);
        until(10);
        assert_eq!(paused.load(Ordering::Relaxed), 10);
        executor.pause(node);
        executor.spawn(
            WORLD,
            0,
            "keeps time going",
            Box::pin({
                let world = super::super::env::of(&executor, WORLD, 7);
                async move {
                    for _ in 0..100 {
                        world.sleep(Duration::from_secs(1)).await;
                    }
                }
            }),
        );
        until(20);
        assert_eq!(paused.load(Ordering::Relaxed), 10, "nothing runs");
        executor.resume(node);
        until(21);
        assert_eq!(paused.load(Ordering::Relaxed), 12, "one tick was due, and the next came a second after it");
        executor.crash(node);
        assert_eq!(Arc::strong_count(&held), 1, "all that it held is dropped");
        until(30);
        assert_eq!(paused.load(Ordering::Relaxed), 12);
    }

    #[test]
    fn what_spins_is_seen() {
        let executor = Executor::new(1, Order::Fifo);
        executor.spawn(WORLD, 0, "spins", counting(&Arc::default()));
        assert_eq!(executor.run(|| false), Stopped::Spins);
    }
}
