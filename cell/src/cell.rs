//! A cell: membership, the runners of the shards that it owns, and the fronts of their managers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use cellbus_bus::env::Task;
use cellbus_bus::ids::{CellId, Epoch, HostId, ManagerId, OpNumber, ShardId, VmId};
use cellbus_workflows::{Answer, Kept, Later, LaterReason};
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::driver::{Drivers, HeldVm};
use crate::effects::Effects;
use crate::front::{self, Front};
use crate::lease::Lease;
use crate::peers::{Answered, Asked, Peer, Post, Request, Response, Serve};
use crate::process::Process;
use crate::runner::{self, Elsewhere, Ended, Home, LetGo, Runner};
use crate::spans::Spans;

mod handing;
mod ingress;
mod membership;
mod serve;
mod standing;

use membership::View;

/// How long another cell may take to let go of a shard.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

/// How a cell is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which incarnation it is: never used before.
    pub id: CellId,
    /// Where others reach it; [`Config::local`] for one process.
    pub address: String,
    /// How long others wait for a cell of which they hear nothing before they take over.
    pub lease: Duration,
    /// How often it says that it lives: at most a third of the lease.
    pub beat: Duration,
    /// How long this cell waits, after its start, before it takes over from owners that are gone:
    /// one lease, since the bus may have been away; zero where no other process can be alive.
    pub settle: Duration,
    /// How many cells it waits for before it opens its first shard, so that shards do not move
    /// while a cluster starts, and how long at the most.
    pub gather: (usize, Duration),
    /// How its shards are run.
    pub runner: runner::Config,
    /// How many calls its shards have under way at once, all together; `None`: as many as they like.
    pub in_flight_max: Option<u32>,
    /// The managers that it may front.
    pub managers: Vec<front::Config>,
    /// Whether it takes jobs from the bus's ingress, and which tenants there are.
    pub ingress: Option<cellbus_bus::cloudevent::Tenants>,
}

impl Config {
    /// The defaults of a cell in a process of its own bus.
    #[must_use]
    pub fn local(id: CellId, managers: Vec<front::Config>) -> Self {
        Self {
            address: format!("local:{id}"),
            id,
            lease: Duration::from_secs(3),
            beat: Duration::from_secs(1),
            settle: Duration::ZERO,
            gather: (1, Duration::ZERO),
            runner: runner::Config::default(),
            in_flight_max: None,
            managers,
            ingress: None,
        }
    }
}

/// A cell, to be run.
pub struct Cell {
    inner: Arc<Inner>,
}

/// A way to a cell.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    /// Itself, for the fronts that it starts.
    own: Weak<Self>,
    config: Config,
    process: Process,
    me: Arc<Peer>,
    drivers: Arc<dyn Drivers>,
    managers: BTreeMap<ManagerId, front::Config>,
    lease: Arc<Lease>,
    effects: Arc<Effects>,
    permits: Option<Arc<runner::Permits>>,
    view: ArcSwap<View>,
    /// The runners, by shard.
    runners: Vec<ArcSwapOption<runner::Handle>>,
    fronts: ArcSwap<BTreeMap<ManagerId, front::Handle>>,
    tasks: Mutex<Tasks>,
    draining: AtomicBool,
    killed: AtomicBool,
    /// Something that membership should look at has changed.
    poke: Notify,
}

#[derive(Default)]
struct Tasks {
    runners: BTreeMap<ShardId, Task>,
    fronts: BTreeMap<ManagerId, (Epoch, Task)>,
    services: Vec<Task>,
}

impl Cell {
    /// A cell of this process. Nothing runs yet.
    #[must_use]
    pub fn new(config: Config, process: Process, drivers: Arc<dyn Drivers>) -> (Self, Handle) {
        let me = Arc::new(Peer { cell: config.id.clone(), address: config.address.clone() });
        let managers =
            config.managers.iter().map(|manager| (ManagerId::derive(manager.name.as_str()), manager.clone())).collect();
        process.work.limited_to(config.managers.iter().map(|manager| manager.removals_per_minute).sum::<Option<f64>>());
        let inner = Arc::new_cyclic(|own| Inner {
            own: Weak::clone(own),
            view: ArcSwap::from_pointee(View::nothing(process.count)),
            runners: process.count.shards().map(|_| ArcSwapOption::empty()).collect(),
            fronts: ArcSwap::from_pointee(BTreeMap::new()),
            tasks: Mutex::new(Tasks::default()),
            draining: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            poke: Notify::new(),
            lease: Arc::new(Lease::default()),
            effects: Arc::new(Effects::new()),
            permits: config.in_flight_max.map(runner::Permits::new),
            config,
            process,
            me,
            drivers,
            managers,
        });
        (Self { inner: Arc::clone(&inner) }, Handle { inner })
    }

    /// Runs until it has been drained ([`Handle::drain`], or `stop`) or killed.
    pub async fn run(self, stop: CancellationToken) {
        let inner = self.inner;
        inner.process.local.join(inner.me.cell.clone(), Arc::clone(&inner) as Arc<dyn Serve>);
        inner.start_services();
        Inner::member(&inner, stop).await;
        inner.stop();
    }
}

impl Handle {
    /// Which.
    #[must_use]
    pub fn id(&self) -> &CellId {
        &self.inner.me.cell
    }
    /// Has it hand its shards over and leave; [`Cell::run`] ends then.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
        self.inner.poke.notify_one();
    }
    /// Stops it at once, with no goodbye, as a crash would: for tests and demonstrations.
    pub fn kill(&self) {
        self.inner.killed.store(true, Ordering::Release);
        self.inner.stop();
        self.inner.poke.notify_one();
    }
    /// Shards that are open here.
    #[must_use]
    pub fn shards_open(&self) -> usize {
        let open = |slot: &&ArcSwapOption<runner::Handle>| {
            slot.load().as_ref().is_some_and(|handle| handle.row().state == crate::gateway::ShardState::Open)
        };
        self.inner.runners.iter().filter(open).count()
    }
}

impl Inner {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        // Nothing that can panic runs under this lock.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_services(self: &Arc<Self>) {
        let env = &self.process.env;
        let mut services = Vec::new();
        let inner = Arc::clone(self);
        services.push(env.spawn("publish items", async move { inner.effects.run_items(&inner.process).await }));
        let inner = Arc::clone(self);
        services.push(env.spawn("publish events", async move { inner.effects.run_events(&inner.process).await }));
        let inner = Arc::clone(self);
        services.push(env.spawn("resolve names", async move { inner.effects.run_names(&inner.process).await }));
        let inner = Arc::clone(self);
        services.push(env.spawn("watch the lease", async move { inner.watch_lease().await }));
        if let Some(tenants) = self.config.ingress.clone() {
            let inner = Arc::clone(self);
            services.push(env.spawn("ingress", async move { ingress::run(inner.process.clone(), &tenants).await }));
        }
        self.tasks().services = services;
    }

    /// Ends everything at once.
    fn stop(&self) {
        self.process.local.leave(&self.me.cell);
        self.lease.end();
        let tasks = std::mem::take(&mut *self.tasks());
        tasks.runners.values().for_each(Task::abort);
        tasks.services.iter().for_each(Task::abort);
        for (manager, (epoch, task)) in &tasks.fronts {
            task.abort();
            self.process.board.withdraw(manager, *epoch);
        }
        self.fronts.store(Arc::default());
        self.runners.iter().for_each(|slot| slot.store(None));
    }

    fn runner(&self, shard: ShardId) -> Option<Arc<runner::Handle>> {
        self.runners.get(usize::from(shard.index()))?.load_full()
    }

    /// Begins to run a shard, unless it is run already.
    fn start_runner(self: &Arc<Self>, shard: ShardId) {
        let Some(slot) = self.runners.get(usize::from(shard.index())) else { return };
        if slot.load().is_some() {
            return;
        }
        let (runner, handle) = Runner::new(
            shard,
            self.config.runner.clone(),
            self.process.clone(),
            Arc::clone(&self.me),
            Arc::clone(&self.lease),
            Arc::clone(self) as Arc<dyn Home>,
            Arc::clone(&self.effects),
            Arc::clone(self) as Arc<dyn Elsewhere>,
            self.permits.clone(),
        );
        slot.store(Some(Arc::new(handle)));
        let inner = Arc::clone(self);
        let mut tasks = self.tasks();
        if self.killed.load(Ordering::Acquire) {
            return;
        }
        let task = self.process.env.spawn("shard", async move {
            let ended = runner.run().await;
            inner.runner_ended(shard, ended);
        });
        tasks.runners.insert(shard, task);
    }

    fn runner_ended(&self, shard: ShardId, ended: Ended) {
        if let Some(slot) = self.runners.get(usize::from(shard.index())) {
            slot.store(None);
        }
        self.tasks().runners.remove(&shard);
        match ended {
            Ended::Released => self.poke.notify_one(),
            // Whether it should be owned here is looked at with the next beat.
            Ended::Fenced => {}
        }
    }

    /// How many shards are run here, open or not.
    fn runners_count(&self) -> usize {
        self.runners.iter().filter(|slot| slot.load().is_some()).count()
    }

    fn calls(&self, from: &Arc<Peer>, calls: Vec<Asked>) {
        let fronts = self.fronts.load();
        let mut by_manager: BTreeMap<ManagerId, Vec<Asked>> = BTreeMap::new();
        for asked in calls {
            by_manager.entry(asked.call.manager).or_default().push(asked);
        }
        for (manager, calls) in by_manager {
            let refused = match fronts.get(&manager) {
                Some(front) => match front.put(front::Message::Calls { from: Arc::clone(from), calls }) {
                    Err(front::Message::Calls { calls, .. }) => {
                        // Not `Busy`: the front has not counted it, so a copy of it would still be taken.
                        Some((calls, LaterReason::CellUnreachable, "its owner has too much to do"))
                    }
                    Ok(()) | Err(_) => None,
                },
                None => Some((calls, LaterReason::NoOwner, "the cell that was asked does not front its manager")),
            };
            if let Some((calls, reason, detail)) = refused {
                let mut by_shard: BTreeMap<ShardId, Vec<Answered>> = BTreeMap::new();
                for asked in calls {
                    let answer = Answer::Later(Later { reason, detail: detail.to_owned(), after: None });
                    by_shard.entry(asked.call.shard).or_default().push(asked.answered(answer));
                }
                for (shard, answers) in by_shard {
                    front::Outside::answers(self, from, shard, answers);
                }
            }
        }
    }
}

#[async_trait]
impl Serve for Inner {
    async fn serve(&self, request: Request) -> Response {
        self.answer(request).await
    }

    fn take(&self, post: Post) {
        match post {
            Post::Calls { from, calls } => self.calls(&from, calls),
            // A shard that is not here any more, or has no room, asks again where it is.
            Post::Answers { shard, answers } => {
                if let Some(runner) = self.runner(shard) {
                    let _ = runner.put(runner::Message::Answers(answers));
                }
            }
            Post::StillRunning { shard, calls } => {
                if let Some(runner) = self.runner(shard) {
                    let _ = runner.put(runner::Message::StillRunning(calls));
                }
            }
        }
    }
}

impl front::Outside for Inner {
    fn answers(&self, to: &Arc<Peer>, shard: ShardId, answers: Vec<Answered>) {
        let post = Post::Answers { shard, answers };
        if to.cell == self.me.cell {
            self.take(post);
        } else if let Err(error) = self.process.peers.post(to, post) {
            // Whoever owns the shard now asks again.
            tracing::debug!(%error, %shard, "answers could not be delivered");
        }
    }
    fn still_running(&self, to: &Arc<Peer>, shard: ShardId, calls: Vec<(VmId, OpNumber)>) {
        let post = Post::StillRunning { shard, calls };
        if to.cell == self.me.cell {
            self.take(post);
        } else if let Err(error) = self.process.peers.post(to, post) {
            tracing::debug!(%error, %shard, "a sign of life could not be delivered");
        }
    }
    fn revoked(&self, manager: ManagerId, epoch: Epoch) {
        if let Some(runner) = self.runner(manager.shard(self.process.count)) {
            // One with too much to do is told again.
            let _ = runner.put(runner::Message::Revoked(epoch));
        }
    }
    fn observed(&self, manager: ManagerId, vms: Vec<VmId>) {
        self.effects.observed(&self.process, manager, vms);
    }
    fn died(&self, manager: ManagerId, vms: Vec<front::Stranded>) {
        self.effects.died(&self.process, manager, vms);
    }
    fn listed(&self, manager: ManagerId, host: Option<HostId>) -> BoxFuture<'static, Result<Vec<HeldVm>, String>> {
        let directory = Arc::clone(&self.process.directory);
        Box::pin(async move { standing::at(&directory, manager, host).await.map_err(|error| error.to_string()) })
    }
    fn marked(&self, manager: ManagerId, mark: u64) {
        self.effects.marked(&self.process, manager, mark);
    }
    fn spans(&self) -> &Spans {
        &self.process.spans
    }
}

/// What operators have said of one manager, from what is kept of all of a shard.
fn orders_of(manager: &ManagerId, kept: &Kept) -> front::Orders {
    let cordons = kept.cordons.iter().filter(|(of, _)| of == manager).map(|(_, host)| host.clone());
    let fenced = kept.fenced.iter().filter(|(of, _)| of == manager).map(|(_, host)| host.clone());
    front::Orders { cordons: cordons.collect(), mode: kept.modes.get(manager).copied(), fenced: fenced.collect() }
}

#[async_trait]
impl Elsewhere for Inner {
    async fn let_go(&self, shard: ShardId, opened_before: bool, last: Option<&Peer>) -> LetGo {
        let view = self.view.load_full();
        if self.draining.load(Ordering::Acquire) || view.assignment.owner(shard) != Some(&self.me.cell) {
            return LetGo::NotMine;
        }
        if !opened_before {
            return LetGo::Free { idle: false };
        }
        let last = last.cloned().or_else(|| self.process.routes.of(shard).map(|route| route.peer.as_ref().clone()));
        let asked: Vec<Peer> = match last {
            Some(last) if last.cell == self.me.cell => return LetGo::Free { idle: false },
            Some(last) => view.live.get(&last.cell).map(|_| last).into_iter().collect(),
            // Its log begins after the record that says who has it: everybody is asked.
            None => view.live.values().filter(|peer| peer.cell != self.me.cell).cloned().collect(),
        };
        if asked.is_empty() && self.process.env.mono() < view.takeover_from {
            return LetGo::NotYet;
        }
        let mut idle = !asked.is_empty();
        for peer in asked {
            let request = Request::Release { shard, to: self.me.cell.clone() };
            let answer = self.process.env.timeout(RELEASE_LIMIT, self.process.peers.call(&peer, request)).await;
            match answer {
                Some(Ok(Response::ReleasedIdle)) => {}
                Some(Ok(Response::Released | Response::NotMine)) => idle = false,
                // It lives, so it may act: it is asked again until it lets go, or is gone.
                Some(Ok(_) | Err(_)) | None => return LetGo::NotYet,
            }
        }
        LetGo::Free { idle }
    }
}

/// The cell as its runners see it.
impl Home for Inner {
    fn opened(&self, shard: ShardId, epoch: Epoch, kept: &Kept, idle: bool) {
        let managers = self.managers.iter().filter(|(id, _)| id.shard(self.process.count) == shard);
        for (id, config) in managers {
            let Some(driver) = self.drivers.connect(*id) else {
                tracing::error!(manager = %config.name, "there is no driver for this manager: it is not fronted");
                continue;
            };
            // Gone only with the cell itself.
            let Some(outside) = self.own.upgrade() else { return };
            let (front, handle) = Front::new(
                config.clone(),
                self.process.env.clone(),
                epoch,
                driver,
                outside,
                self.me.cell.clone(),
                front::Found { orders: orders_of(id, kept), mark: kept.marks.get(id).copied(), idle },
                front::Shared {
                    board: Arc::clone(&self.process.board),
                    pauses: Arc::clone(&self.process.pauses),
                    names: Arc::clone(&self.process.names),
                    work: Arc::clone(&self.process.work),
                },
            );
            let mut tasks = self.tasks();
            if self.killed.load(Ordering::Acquire) {
                return;
            }
            if let Some((_, before)) = tasks.fronts.remove(id) {
                before.abort();
            }
            let task = self.process.env.spawn("front", front.run());
            tasks.fronts.insert(*id, (epoch, task));
            drop(tasks);
            self.fronts.rcu(|fronts| {
                let mut fronts = BTreeMap::clone(fronts);
                fronts.insert(*id, handle.clone());
                fronts
            });
        }
    }

    fn kept(&self, shard: ShardId, kept: &Kept) {
        for (id, front) in self.fronts.load().iter().filter(|(id, _)| id.shard(self.process.count) == shard) {
            if front.put(front::Message::Orders(orders_of(id, kept))).is_err() {
                tracing::warn!(manager = %id, "an operator's order reaches its front only when it opens again");
            }
        }
    }

    fn closed(&self, shard: ShardId) {
        let ids: Vec<ManagerId> =
            self.managers.keys().filter(|id| id.shard(self.process.count) == shard).copied().collect();
        let mut tasks = self.tasks();
        let closed: Vec<(ManagerId, Epoch)> = ids
            .into_iter()
            .filter_map(|id| {
                let (epoch, task) = tasks.fronts.remove(&id)?;
                task.abort();
                Some((id, epoch))
            })
            .collect();
        drop(tasks);
        if closed.is_empty() {
            return;
        }
        self.fronts.rcu(|fronts| {
            let mut fronts = BTreeMap::clone(fronts);
            closed.iter().for_each(|(id, _)| {
                fronts.remove(id);
            });
            fronts
        });
        closed.iter().for_each(|(id, epoch)| self.process.board.withdraw(id, *epoch));
    }
}
