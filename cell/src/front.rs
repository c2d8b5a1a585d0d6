//! The front of a manager: the one place in the cluster that talks to it.
//!
//! ```text
//!  calls of shards ──▶ mailbox ──▶ desk (one op a VM, host choice, slots, line, circuit)
//!                                   │ start                        ▲ ended
//!                                   ▼                              │
//!                                  driver.perform ─────────────────┘──▶ answers, posted back
//! ```
//!
//! It lives with the shard of the manager's id, under that shard's epoch: opened when the shard
//! is, gone when the shard is. Until it has opened the manager and read its inventory and running
//! tasks it answers nothing but `Later(Opening)` and advertises no room. Each front is a task of
//! its own, so a manager that hangs holds up nobody else.

mod asks;
pub mod circuit;
mod compared;
mod config;
mod desk;
mod died;
mod done;
mod fences;
mod finishing;
mod holdings;
pub mod hosts;
pub mod limits;
mod marks;
mod opening;
mod operation;
mod orders;
mod removals;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use cellbus_bus::Env;
use cellbus_bus::ids::{CellId, Epoch, HostId, ManagerId, OpNumber, ShardId, VmId};
use cellbus_workflows::ManagerNames;
use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::oneshot;

use crate::board::Board;
use crate::driver::{Driver, Error, ForeignVm, HeldVm, Inventory, Irregular, RunningTask};
use crate::gateway::{HostRow, ManagerRow};
use crate::mailbox::Mailbox;
use crate::metrics::work;
use crate::pauses;
use crate::peers::{Answered, Asked, Peer};
use crate::spans::Spans;
use asks::Asks;
use circuit::{Circuit, Verdict};
use compared::Compared;
pub use config::Config;
use desk::Desk;
use died::Died;
pub(crate) use died::Stranded;
use done::Done;
use fences::Fences;
use finishing::Finishing;
use holdings::Holdings;
use marks::Marks;
use opening::Why;
pub(crate) use orders::Orders;
use removals::Removals;
pub(crate) use shown::{unknown_row, unknown_summary};

/// Messages that wait for a front. Each carries the calls of one append of one shard, or one
/// question; all shards at once come to a few hundred.
const MAILBOX_MAX: usize = 4_096;
/// How often a front looks at what is due.
const TICK: Duration = Duration::from_secs(1);
/// The shortest time between two summaries, unless a person or the circuit changed something:
/// short enough that placement does not send everybody to the manager that was emptiest a while ago.
const PUBLISH: Duration = Duration::from_millis(250);
/// Callers of operations that take longer than this are told that they go on.
const LONG: Duration = Duration::from_secs(5);
/// The shortest time between two readings of the inventory because hosts have less room than is known: others
/// fill them, or their datastores. Hosts that have said so are left alone until then.
const OUTDATED: Duration = Duration::from_secs(60);
/// VMs that are read again at once after changes behind our back.
const INSPECTS_MAX: usize = 16;

/// Where answers and observations go: the cell.
pub(crate) trait Outside: Send + Sync {
    /// Sends answers back to the cell that asked.
    fn answers(&self, to: &Arc<Peer>, shard: ShardId, answers: Vec<Answered>);
    /// Tells the cell that asked that these go on.
    fn still_running(&self, to: &Arc<Peer>, shard: ShardId, calls: Vec<(VmId, OpNumber)>);
    /// The manager refuses this epoch of the shard that it is fronted under: it knows a newer one.
    fn revoked(&self, manager: ManagerId, epoch: Epoch);
    /// Tells the homes of these VMs to read them again.
    fn observed(&self, manager: ManagerId, vms: Vec<VmId>);
    /// Tells the homes of these VMs that their hosts are dead.
    fn died(&self, manager: ManagerId, vms: Vec<Stranded>);
    /// The VMs that the directory lists at the manager, or on one host of it.
    fn listed(&self, manager: ManagerId, host: Option<HostId>) -> BoxFuture<'static, Result<Vec<HeldVm>, String>>;
    /// Tells the manager's shard which mark was left there.
    fn marked(&self, manager: ManagerId, mark: u64);
    /// Where spans of its operations go.
    fn spans(&self) -> &Spans;
}

pub(crate) enum Message {
    Calls {
        from: Arc<Peer>,
        calls: Vec<Asked>,
    },
    Orders(Orders),
    Hosts(oneshot::Sender<Vec<HostRow>>),
    Live(VmId, oneshot::Sender<Result<Option<HeldVm>, String>>),
    Inventory(oneshot::Sender<Result<Inventory, String>>),
    Foreign(oneshot::Sender<Result<Vec<ForeignVm>, String>>),
    MayBeFenced(HostId, oneshot::Sender<Result<(), String>>),
    /// Its shard is about to be let go, for another cell: nothing more begins. The sender is told once
    /// what has begun has ended; and whether nothing of ours is left under way at the manager.
    Finish(oneshot::Sender<bool>),
}

/// A way to a front.
#[derive(Clone)]
pub(crate) struct Handle {
    mailbox: Arc<Mailbox<Message>>,
    row: Arc<ArcSwap<ManagerRow>>,
    /// VMs that it holds now: the row is made now and then only.
    held: Arc<AtomicU64>,
}

impl Handle {
    /// # Errors
    /// When too much waits already; the message is given back.
    pub(crate) fn put(&self, message: Message) -> Result<(), Message> {
        self.mailbox.put(message).map_err(|full| full.0)
    }
    pub(crate) fn row(&self) -> ManagerRow {
        ManagerRow { vms: self.held.load(Ordering::Acquire), ..self.row.load().as_ref().clone() }
    }
}

type Doing = Pin<Box<dyn Future<Output = Done> + Send>>;

/// A front, to be run.
pub(crate) struct Front {
    config: Config,
    env: Env,
    epoch: Epoch,
    driver: Arc<dyn Driver>,
    outside: Arc<dyn Outside>,
    cell: CellId,
    mailbox: Arc<Mailbox<Message>>,
    row: Arc<ArcSwap<ManagerRow>>,
    held: Arc<AtomicU64>,
    orders: Orders,
    idle: bool,
    /// Whether the manager was connected to for looking at it alone ([`Driver::look`]).
    looks: bool,
    /// The hosts of which its driver was told, before it was opened, that they are called dead.
    fenced_at_opening: BTreeSet<HostId>,
    asks: Asks,
    shared: Shared,
}

/// What its shard and the owner before know of the manager.
pub(crate) struct Found {
    /// What operators have said of it.
    pub(crate) orders: Orders,
    /// The newest mark that was left there.
    pub(crate) mark: Option<u64>,
    /// Whether nothing of ours is under way there, as the owner before has said.
    pub(crate) idle: bool,
}

/// What the fronts of a process have in common.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) board: Arc<Board>,
    pub(crate) pauses: Arc<pauses::Watch>,
    pub(crate) names: Arc<ManagerNames>,
    pub(crate) work: Arc<work::Metrics>,
}

/// What a front has to do with beside its desk, once the manager is open.
struct Work {
    desk: Desk,
    doing: FuturesUnordered<Abortable<Doing>>,
    aborts: BTreeMap<u64, AbortHandle>,
    /// VMs that changed at the manager and are to be read again.
    changed: BTreeSet<VmId>,
    /// Of these, those whose homes are told whether or not it is news here: an operation on them
    /// failed for good.
    unsure: BTreeSet<VmId>,
    inspecting: usize,
    reread_wanted: bool,
    reread_at: cellbus_bus::Mono,
    rereading: bool,
    probing: bool,
    asking_tasks: bool,
    changes_awaited: bool,
    /// Waiting for them failed: it is begun anew at the next tick, not at once.
    changes_lost: bool,
    /// How often in a row the manager was out of reach when changes were waited for, and nothing else
    /// was heard of it.
    unheard: u32,
    /// As shown last.
    irregular: Irregular,
    marks: Marks,
    dirty: bool,
    published_at: cellbus_bus::Mono,
    finishing: Option<Finishing>,
    died: Died,
    fences: Fences,
    compared: Compared,
}

impl Front {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part of what a front needs; a struct would be this list again"
    )]
    pub(crate) fn new(
        config: Config,
        env: Env,
        epoch: Epoch,
        driver: Arc<dyn Driver>,
        outside: Arc<dyn Outside>,
        cell: CellId,
        found: Found,
        shared: Shared,
    ) -> (Self, Handle) {
        let Found { orders, mark, idle } = found;
        if let Some(mark) = mark {
            driver.expect(mark);
        }
        let row = unknown_row(&config.name, Some(cell.clone()), epoch, "its owner is opening it");
        let row = Arc::new(ArcSwap::from_pointee(orders.shown(&config, row)));
        let mailbox = Arc::new(Mailbox::new(MAILBOX_MAX));
        let held = Arc::new(AtomicU64::new(0));
        let handle = Handle { mailbox: Arc::clone(&mailbox), row: Arc::clone(&row), held: Arc::clone(&held) };
        let asks = Asks::new(epoch);
        let (looks, fenced_at_opening) = (false, BTreeSet::new());
        let front = Self {
            config,
            env,
            epoch,
            driver,
            outside,
            cell,
            mailbox,
            row,
            held,
            orders,
            idle,
            looks,
            fenced_at_opening,
            asks,
            shared,
        };
        (front, handle)
    }

    fn id(&self) -> ManagerId {
        ManagerId::derive(self.config.name.as_str())
    }

    /// Runs until it is dropped: its cell stops acting for the shard of the manager.
    pub(crate) async fn run(mut self) {
        let env = self.env.clone();
        let fronted = env.caught("front", async {
            while let Some((tasks, inventory)) = self.open().await {
                self.front(tasks, inventory).await;
            }
        });
        match fronted.await {
            Ok(()) => self.refuse_all(Why::Revoked).await,
            Err(why) => self.refuse_all(Why::Fault(why)).await,
        }
    }

    /// Fronts the manager for as long as it need not be opened anew.
    async fn front(&mut self, tasks: Vec<RunningTask>, inventory: Inventory) {
        tracing::debug!(manager = %self.config.name, hosts = inventory.hosts.len(), vms = inventory.vms.len(), tasks = tasks.len(), "manager open");
        let holdings =
            Holdings::new(self.config.name.clone(), self.config.over_commit, self.config.networks.clone(), &inventory);
        drop(inventory);
        let limits = self.config.limits.clone().unwrap_or_else(|| self.driver.limits());
        let desk = Desk::new(
            &self.config.name,
            holdings,
            Circuit::new(self.config.circuit),
            limits,
            Removals::new(self.config.removals_per_minute),
            self.config.line_max,
            tasks,
            std::mem::replace(&mut self.asks, Asks::new(self.epoch)),
        );
        let mut work = Work {
            desk,
            doing: FuturesUnordered::new(),
            aborts: BTreeMap::new(),
            changed: BTreeSet::new(),
            unsure: BTreeSet::new(),
            inspecting: 0,
            // What changed behind our back before the session was open is not told.
            reread_wanted: self.idle,
            reread_at: self.env.mono(),
            rereading: false,
            probing: false,
            asking_tasks: false,
            changes_awaited: false,
            changes_lost: false,
            unheard: 0,
            irregular: Irregular::default(),
            marks: Marks::default(),
            dirty: true,
            published_at: cellbus_bus::Mono::default(),
            finishing: None,
            died: Died::default(),
            fences: Fences::told(&self.fenced_at_opening),
            compared: Compared::in_a_while(self.env.mono()),
        };
        self.obey(&mut work);
        self.look_at_pauses(&mut work);
        self.publish(&mut work);
        let mut tick = self.env.sleep(TICK);
        while !self.must_open(&work) {
            if !work.changes_awaited && !work.desk.revoked {
                work.changes_awaited = true;
                let driver = Arc::clone(&self.driver);
                work.start(None, Box::pin(async move { Done::Changes(driver.changes().await) }));
            }
            tokio::select! {
                biased;
                Some(done) = work.doing.next() => {
                    self.look_at_pauses(&mut work);
                    if let Ok(done) = done {
                        self.done(&mut work, done);
                    }
                }
                () = self.mailbox.ready() => {
                    self.look_at_pauses(&mut work);
                    for message in self.mailbox.take() {
                        self.message(&mut work, message);
                    }
                }
                () = &mut tick => {
                    tick = self.env.sleep(TICK);
                    self.look_at_pauses(&mut work);
                    self.tick(&mut work);
                }
            }
            self.settle(&mut work).await;
            if work.dirty && self.env.mono().since(work.published_at) >= PUBLISH {
                self.publish(&mut work);
            }
        }
        self.leave_off(&mut work).await;
    }

    // ── at work ──

    /// What operators have paused counts from the moment that it is known here.
    fn look_at_pauses(&self, work: &mut Work) {
        if self.shared.pauses.refresh(&mut work.desk.gate, &self.shared.names) {
            work.desk.gate_changed(self.env.mono());
            work.dirty = true;
        }
    }

    fn message(&mut self, work: &mut Work, message: Message) {
        match message {
            Message::Calls { from, calls } => {
                let now = self.env.mono();
                for call in calls {
                    work.desk.call(now, &from, call);
                }
                work.dirty = true;
            }
            Message::Orders(orders) => {
                self.orders = orders;
                self.obey(work);
                self.publish(work);
            }
            Message::Finish(told) => self.finish(work, told),
            Message::Hosts(back) => {
                // Whoever asked may have gone.
                let _ = back.send(self.host_rows(work));
            }
            Message::MayBeFenced(host, back) => self.may_be_fenced(host, back),
            Message::Live(vm, back) => self.tell(work, back, move |driver| async move { driver.inspect(vm).await }),
            Message::Foreign(back) => self.tell(work, back, |driver| async move { driver.foreign().await }),
            Message::Inventory(back) => self.tell(work, back, |driver| async move { driver.inventory().await }),
        }
    }

    /// Has the manager read, and tells whoever asked, who may have gone.
    fn tell<T: Send + 'static, F: Future<Output = Result<T, Error>> + Send>(
        &self,
        work: &mut Work,
        back: oneshot::Sender<Result<T, String>>,
        read: impl FnOnce(Arc<dyn Driver>) -> F + Send + 'static,
    ) {
        let (driver, env, limit) = (Arc::clone(&self.driver), self.env.clone(), self.config.read_timeout);
        let told = async move {
            let answer = said(env.timeout(limit, read(driver)).await);
            let _ = back.send(answer.map_err(|error| error.to_string()));
            Done::Told
        };
        work.start(None, Box::pin(told));
    }

    fn tick(&self, work: &mut Work) {
        let now = self.env.mono();
        for ticket in work.desk.overdue(now, self.env.random_u64(), self.config.operation_timeout) {
            if let Some(abort) = work.aborts.remove(&ticket) {
                abort.abort();
            }
        }
        type GoingOn = BTreeMap<(Arc<Peer>, ShardId), Vec<(VmId, OpNumber)>>;
        let mut long = GoingOn::new();
        for (to, shard, vm, op) in work.desk.long(now, LONG) {
            long.entry((to, shard)).or_default().push((vm, op));
        }
        for ((to, shard), calls) in long {
            self.outside.still_running(&to, shard, calls);
        }
        if work.desk.revoked {
            self.outside.revoked(self.id(), self.epoch);
        }
        work.go_on(now);
        let (driver, env, limit) = (&self.driver, &self.env, self.config.read_timeout);
        if work.desk.circuit.verdict(now) == Verdict::Probe && !work.probing {
            work.probing = true;
            work.desk.circuit.probing();
            let (driver, env) = (Arc::clone(driver), env.clone());
            work.start(
                None,
                Box::pin(async move { Done::Probe(said(env.timeout(limit, driver.tasks()).await).map(|_| ())) }),
            );
        }
        let well = work.desk.circuit.closed() && !work.desk.revoked;
        if std::mem::take(&mut work.changes_lost) {
            work.changes_awaited = false;
        }
        if well && work.desk.adopted() && !work.asking_tasks {
            work.asking_tasks = true;
            let (driver, env) = (Arc::clone(driver), env.clone());
            work.start(None, Box::pin(async move { Done::Tasks(said(env.timeout(limit, driver.tasks()).await)) }));
        }
        work.reread_wanted |= work.desk.outdated && now.since(work.reread_at) >= OUTDATED;
        if well && work.reread_wanted && !work.rereading {
            (work.reread_wanted, work.rereading, work.desk.outdated) = (false, true, false);
            work.reread_at = now;
            let (driver, env, began) = (Arc::clone(driver), env.clone(), work.desk.holdings.now());
            work.start(
                None,
                Box::pin(async move {
                    Done::Inventory { began, result: said(env.timeout(limit, driver.inventory()).await) }
                }),
            );
        }
        self.look_at_fences(work, now);
        self.compare_with_directory(work, now);
        self.look_for_dead_hosts(work, now);
        let mut not_yet = Vec::new();
        while well && work.inspecting < INSPECTS_MAX {
            let Some(vm) = work.changed.pop_first() else { break };
            if work.desk.busy(&vm) {
                // What the operation answers is newer than any inspection begun now, if it comes
                // to one.
                not_yet.extend((work.desk.unread(&vm) || work.unsure.contains(&vm)).then_some(vm));
                continue;
            }
            work.inspecting += 1;
            let (driver, env, began) = (Arc::clone(driver), env.clone(), work.desk.holdings.now());
            work.start(
                None,
                Box::pin(async move {
                    Done::Inspected { vm, began, result: said(env.timeout(limit, driver.inspect(vm)).await) }
                }),
            );
        }
        work.changed.extend(not_yet);
        self.look_at_ids(work);
        if well && !self.looks && work.marks.due(now) {
            let (driver, env) = (Arc::clone(driver), env.clone());
            work.start(None, Box::pin(async move { Done::Marked(said(env.timeout(limit, driver.mark()).await)) }));
        }
        if work.dirty || !work.desk.circuit.closed() {
            self.publish(work);
        }
    }

    /// Starts what the desk wants done, and sends what it answers.
    async fn settle(&self, work: &mut Work) {
        // An operation that ends at once may free a slot for the next.
        while !work.desk.starts.is_empty() {
            for start in std::mem::take(&mut work.desk.starts) {
                let ticket = start.ticket;
                let mut doing = self.perform(start);
                // Most managers take their time; those that do not need no slot among the futures.
                match futures::poll!(&mut doing) {
                    std::task::Poll::Ready(done) => self.done(work, done),
                    std::task::Poll::Pending => work.start(Some(ticket), doing),
                }
            }
        }
        self.shared.work.removals(std::mem::take(&mut work.desk.removed), std::mem::take(&mut work.desk.put_off));
        // Before anybody hears of an outcome: whoever does finds it counted.
        self.held.store(work.desk.holdings.present(), Ordering::Release);
        if work.desk.replies.is_empty() {
            return work.finished();
        }
        let mut replies = std::mem::take(&mut work.desk.replies);
        // Stable: the answers of one shard stay in order.
        replies.sort_by(|a, b| (a.shard, &a.to).cmp(&(b.shard, &b.to)));
        let mut replies = replies.into_iter().peekable();
        while let Some(first) = replies.next() {
            let mut answers = vec![first.answered];
            while let Some(next) = replies.next_if(|next| next.shard == first.shard && next.to == first.to) {
                answers.push(next.answered);
            }
            self.outside.answers(&first.to, first.shard, answers);
        }
        work.finished();
    }
}

impl Work {
    fn start(&mut self, ticket: Option<u64>, doing: Doing) {
        let (abort, registration) = AbortHandle::new_pair();
        if let Some(ticket) = ticket {
            self.aborts.insert(ticket, abort);
        }
        self.doing.push(Abortable::new(doing, registration));
    }
}

/// What the manager said; no answer in time is no answer.
fn said<T>(answer: Option<Result<T, Error>>) -> Result<T, Error> {
    answer.unwrap_or_else(|| Err(Error::Unreachable { detail: "no answer in time".to_owned() }))
}
