//! What the cells of one process share: the bus, the way to other cells, and what is known of who
//! owns what.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cellbus_bus::cluster::Mismatch;
use cellbus_bus::contract::{ClusterRecord, Member, Role};
use cellbus_bus::format::Build;
use cellbus_bus::ids::{Epoch, ManagerId, Seq, ShardCount, ShardId};
use cellbus_bus::{Bus, Env};
use cellbus_directory::replica::Replica;
use cellbus_workflows::ManagerNames;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::capacity;
use crate::directory::{Directory, Elsewhere, Here};
use crate::metrics::{self, work};
use crate::pace::Pace;
use crate::pauses;
use crate::peers::{LocalPeers, Peer, Peers, Request, Response, Summary};
use crate::roster::Roster;
use crate::spans::Spans;

/// How often the members and the cluster record are read.
const READ_EVERY: Duration = Duration::from_secs(1);
/// How often it is asked in between what cells of other processes own. A cell hears it from a process of
/// the directory, which has asked it: so it is a second old at the most.
const ASKS: u32 = 2;
/// How long one of them may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// The shared parts of a process, cheap to clone.
#[derive(Clone)]
pub struct Process {
    pub(crate) env: Env,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) local: LocalPeers,
    pub(crate) names: Arc<ManagerNames>,
    pub(crate) count: ShardCount,
    pub(crate) directory: Arc<Directory>,
    pub(crate) board: Arc<Board>,
    pub(crate) routes: Arc<Routes>,
    /// Who is a member.
    pub(crate) roster: Arc<Roster>,
    /// What operators have paused, as far as it is known here.
    pub(crate) pauses: Arc<pauses::Watch>,
    /// How far apart appends begin.
    pub(crate) pace: Arc<Pace>,
    /// Counts what its cells do.
    pub(crate) work: Arc<work::Metrics>,
    /// Where spans of jobs go.
    pub(crate) spans: Spans,
    registry: Registry,
    build: Arc<Build>,
    /// What cells write, as the cluster record last read says, if this build can write it.
    format: Arc<AtomicU16>,
    /// Why this build may not take part any more.
    outdated: Arc<ArcSwapOption<Mismatch>>,
    /// When the bus answered last; zero: never yet.
    heard_ms: Arc<AtomicU64>,
}

impl Process {
    /// Of these parts, with a replica of the directory, which somebody feeds. `peers` reaches every cell,
    /// those of `local` included. Spawns nothing.
    #[must_use]
    pub fn new(
        env: Env,
        bus: Arc<dyn Bus>,
        peers: Arc<dyn Peers>,
        local: LocalPeers,
        names: Arc<ManagerNames>,
        replica: Arc<Replica>,
    ) -> Self {
        let count = replica.shards();
        let directory = Directory::Here(Here::new(replica, Arc::clone(&bus), env.clone()));
        Self::over(env, bus, peers, local, names, count, directory)
    }
    /// As [`Process::new`], with no replica of the directory: it asks those of other processes.
    #[must_use]
    pub fn without_replica(
        env: Env,
        bus: Arc<dyn Bus>,
        peers: Arc<dyn Peers>,
        local: LocalPeers,
        names: Arc<ManagerNames>,
        count: ShardCount,
    ) -> Self {
        let directory = Directory::Elsewhere(Elsewhere::new(env.clone(), Arc::clone(&peers)));
        Self::over(env, bus, peers, local, names, count, directory)
    }
    fn over(
        env: Env,
        bus: Arc<dyn Bus>,
        peers: Arc<dyn Peers>,
        local: LocalPeers,
        names: Arc<ManagerNames>,
        count: ShardCount,
        directory: Directory,
    ) -> Self {
        let board = Arc::new(Board::new(&names));
        let routes = Arc::new(Routes::new(count));
        let registry = Registry::new();
        let work = work::Metrics::new(&registry).expect("a new registry has none of them, and their names are fixed");
        let spans = metrics::spans::Metrics::new(&registry).expect("the same");
        let build = Build::current();
        let format = Arc::new(AtomicU16::new(build.formats.oldest));
        Self {
            env,
            bus,
            peers,
            local,
            names,
            count,
            directory: Arc::new(directory),
            board,
            routes,
            roster: Arc::default(),
            pauses: Arc::default(),
            pace: Arc::default(),
            work: Arc::new(work),
            spans: Spans::new(spans),
            registry,
            build: Arc::new(build),
            format,
            outdated: Arc::default(),
            heard_ms: Arc::default(),
        }
    }
    /// As a process of this build, in the cluster of this record.
    #[must_use]
    pub fn of_build(mut self, build: Build, record: &ClusterRecord) -> Self {
        self.format = Arc::new(AtomicU16::new(build.formats.oldest));
        (self.build, self.outdated) = (Arc::new(build), Arc::default());
        self.read_record(record);
        self
    }
    /// Everything in one process.
    #[must_use]
    pub fn alone(env: Env, bus: Arc<dyn Bus>, names: Arc<ManagerNames>, replica: Arc<Replica>) -> Self {
        let local = LocalPeers::default();
        Self::new(env, bus, Arc::new(local.clone()), local, names, replica)
    }
    /// What runs beside the cells of a process: the capacity board, its samples, what operators have paused, and
    /// learning what the cells of other processes own and how much room there is. Whoever runs the process
    /// also runs the directory's tail.
    pub async fn run(&self, stop: CancellationToken) {
        let board = self.board.run(self.env.clone());
        let others = self.ask_others();
        let pauses = pauses::follow(self);
        let samples = capacity::sample(self);
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = board => {}
            () = others => {}
            never = pauses => match never {},
            never = samples => match never {},
        }
    }

    /// What it finds in the cluster record counts from now on.
    fn read_record(&self, record: &ClusterRecord) {
        match record.check_format(self.build.formats) {
            Ok(()) => {
                if self.format.swap(record.format, Ordering::Relaxed) != record.format {
                    tracing::info!(format = record.format, "what is written from now on, by the cluster record");
                }
            }
            Err(mismatch) => {
                if self.outdated.load().is_none() {
                    let code = mismatch.code();
                    tracing::error!(code, error = %mismatch, "this build may not take part any more: it hands over and leaves");
                }
                self.outdated.store(Some(Arc::new(mismatch)));
            }
        }
    }

    /// Of which build it is.
    #[must_use]
    pub fn build(&self) -> &Build {
        &self.build
    }
    /// What cells write now.
    pub(crate) fn format(&self) -> u16 {
        self.format.load(Ordering::Relaxed)
    }
    /// What cells of this cluster write now, which this build may not know.
    fn cluster_format(&self) -> u16 {
        match self.outdated().as_deref() {
            Some(Mismatch::NewerFormat { stored, .. } | Mismatch::OlderFormat { stored, .. }) => *stored,
            Some(Mismatch::Shards { .. } | Mismatch::Restoring | Mismatch::HashScheme { .. }) | None => self.format(),
        }
    }
    /// Why this build may not take part any more, if so: somebody has raised the format meanwhile.
    #[must_use]
    pub fn outdated(&self) -> Option<Arc<Mismatch>> {
        self.outdated.load_full()
    }
    /// Whether a member may own shards: it reads what cells write.
    pub(crate) fn keeps_up(&self, member: &Member) -> bool {
        member.build.formats.read(self.cluster_format())
    }

    /// Learns what cells outside this process say of themselves, and what the cluster record says.
    async fn ask_others(&self) {
        loop {
            if let Ok(record) = self.bus.cluster_record().await {
                self.heard_ms.store(self.now_ms(), Ordering::Relaxed);
                if let Some(record) = record {
                    self.read_record(&record);
                }
            }
            // One and a half: what a cell of this process asks as often is always new enough.
            let age = self.roster.every(READ_EVERY) * 3 / 2;
            let Ok(members) = self.roster.within(age, &self.bus, &self.env).await else {
                self.env.sleep(READ_EVERY).await;
                continue;
            };
            if let Directory::Elsewhere(elsewhere) = &*self.directory {
                elsewhere.learn(&members);
            }
            for _ in 0..ASKS {
                self.learn_summaries(&members).await;
                self.env.sleep(READ_EVERY / ASKS).await;
            }
        }
    }

    /// From a process of the directory, which asks them all; by one of those, or while none answers, from
    /// each of them.
    async fn learn_summaries(&self, members: &[Member]) {
        if let Directory::Elsewhere(elsewhere) = &*self.directory
            && let Ok(changed) = elsewhere.summaries().await
        {
            for (peer, summary) in changed {
                if !self.local.has(&peer.cell) {
                    self.learn(&Arc::new(peer), summary);
                }
            }
            return;
        }
        let elsewhere = |member: &&Member| member.role == Role::Cell && !self.local.has(&member.cell);
        // All at once, and heard as they come: one that does not answer is not to make the others' news old.
        let asked = members.iter().filter(elsewhere).map(|member| async {
            let peer = Arc::new(Peer { cell: member.cell.clone(), address: member.address.clone() });
            let answer = self.env.timeout(ASK_LIMIT, self.peers.call(&peer, Request::Summary)).await;
            let Some(Ok(Response::Summary(summary))) = answer else { return };
            if let Directory::Here(here) = &*self.directory {
                here.summaries.put(&peer, &summary);
            }
            self.learn(&peer, summary);
        });
        futures::future::join_all(asked).await;
        if let Directory::Here(here) = &*self.directory {
            here.summaries.keep(&members.iter().map(|member| &member.cell).collect());
        }
    }

    fn learn(&self, peer: &Arc<Peer>, summary: Summary) {
        for (shard, epoch, end) in summary.owned {
            self.routes.learn(shard, peer, epoch, end);
        }
        for shard in summary.failed {
            self.routes.failed(shard);
        }
        for (epoch, manager) in summary.managers {
            self.board.publish(epoch, manager);
        }
    }

    fn now_ms(&self) -> u64 {
        // Never zero, which stands for never.
        u64::try_from(self.env.mono().0.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// How long the bus has given no answer here; nothing until it has given the first.
    pub(crate) fn bus_silent(&self) -> Duration {
        match self.heard_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            heard => Duration::from_millis(self.now_ms().saturating_sub(heard)),
        }
    }

    /// Of how many shards the directory beside this process has not read all that their owners, in
    /// other processes, were known to have written; none if it has no directory.
    #[must_use]
    pub fn shards_behind(&self) -> usize {
        let Some(replica) = self.directory.replica() else { return 0 };
        self.count.shards().filter(|shard| replica.applied(*shard) < self.routes.end(*shard)).count()
    }

    /// How many shards cells of this process should own and cannot, being of an older build.
    #[must_use]
    pub fn shards_unreadable(&self) -> usize {
        self.routes.unreadable()
    }

    /// The cells of this process.
    #[must_use]
    pub fn local(&self) -> &LocalPeers {
        &self.local
    }
    /// What operators have paused, as far as it is known here.
    #[must_use]
    pub fn pauses(&self) -> &pauses::Watch {
        &self.pauses
    }
    /// The metrics of what its cells do.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
    /// Number of shards.
    #[must_use]
    pub fn shard_count(&self) -> ShardCount {
        self.count
    }
    /// The configured managers.
    #[must_use]
    pub fn names(&self) -> &ManagerNames {
        &self.names
    }
    /// What is known of the managers' room, as placement sees it.
    #[must_use]
    pub fn view(&self) -> Arc<cellbus_workflows::CapacityView> {
        self.board.view()
    }
}

/// Who owns a shard, as far as it is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The cell that opened it last.
    pub peer: Arc<Peer>,
    /// Under which epoch.
    pub epoch: Epoch,
}

/// Who owns which shard, as far as it is known in this process: learned from the shards that open
/// here, from other cells, and from the logs that the directory follows. It may be out of date;
/// who is asked in vain says so.
#[derive(Debug)]
pub struct Routes {
    count: ShardCount,
    routes: Vec<ArcSwapOption<Route>>,
    /// For each shard: whether it could not be opened when it was last tried.
    failed: Vec<AtomicBool>,
    /// For each shard: whether it holds what the build of this process does not know, and a cell of it
    /// should own it.
    unreadable: Vec<AtomicBool>,
    /// For each shard: the last entry of its log when it was first known to be open.
    opened_at: Vec<AtomicU64>,
    /// For each shard: the last entry of its log that is known of.
    ends: Vec<AtomicU64>,
    /// Grows with every change.
    version: AtomicU64,
}

impl Routes {
    fn new(count: ShardCount) -> Self {
        Self {
            count,
            routes: count.shards().map(|_| ArcSwapOption::empty()).collect(),
            failed: count.shards().map(|_| AtomicBool::new(false)).collect(),
            unreadable: count.shards().map(|_| AtomicBool::new(false)).collect(),
            opened_at: count.shards().map(|_| AtomicU64::new(0)).collect(),
            ends: count.shards().map(|_| AtomicU64::new(0)).collect(),
            version: AtomicU64::new(0),
        }
    }
    /// Of a shard.
    #[must_use]
    pub fn of(&self, shard: ShardId) -> Option<Arc<Route>> {
        self.routes.get(usize::from(shard.index()))?.load_full()
    }
    /// Of a manager: that of the shard of its id.
    #[must_use]
    pub fn of_manager(&self, manager: &ManagerId) -> Option<Arc<Route>> {
        self.of(manager.shard(self.count))
    }
    /// How many shards nobody is known to have opened, and nobody has reported as failed.
    #[must_use]
    pub fn missing(&self) -> usize {
        let known = |(route, failed): &(&ArcSwapOption<Route>, &AtomicBool)| {
            route.load().is_some() || failed.load(Ordering::Relaxed)
        };
        self.routes.len() - self.routes.iter().zip(&self.failed).filter(known).count()
    }
    /// The last entry of the shard's log when this process first heard that it is open.
    #[must_use]
    pub fn opened_at(&self, shard: ShardId) -> Seq {
        Seq(self.opened_at.get(usize::from(shard.index())).map_or(0, |at| at.load(Ordering::Relaxed)))
    }
    /// The last entry of the shard's log that this process has heard of from its owner.
    #[must_use]
    pub fn end(&self, shard: ShardId) -> Seq {
        Seq(self.ends.get(usize::from(shard.index())).map_or(0, |end| end.load(Ordering::Relaxed)))
    }
    /// Grows with every change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
    /// A shard could not be opened.
    pub(crate) fn failed(&self, shard: ShardId) {
        if let Some(failed) = self.failed.get(usize::from(shard.index())) {
            failed.store(true, Ordering::Relaxed);
        }
    }
    /// Whether a cell of this process should own it and cannot, being of an older build.
    pub(crate) fn set_unreadable(&self, shard: ShardId, so: bool) {
        if let Some(unreadable) = self.unreadable.get(usize::from(shard.index())) {
            unreadable.store(so, Ordering::Relaxed);
        }
    }
    fn unreadable(&self) -> usize {
        self.unreadable.iter().filter(|unreadable| unreadable.load(Ordering::Relaxed)).count()
    }
    /// Somebody has opened a shard, when its log ended there. News of an older epoch is no news.
    pub fn learn(&self, shard: ShardId, peer: &Arc<Peer>, epoch: Epoch, end: Seq) {
        let Some(slot) = self.routes.get(usize::from(shard.index())) else { return };
        if let Some(at) = self.opened_at.get(usize::from(shard.index())) {
            // Only the first counts: it is asked for when a process starts.
            let _ = at.compare_exchange(0, end.0, Ordering::Relaxed, Ordering::Relaxed);
        }
        if let Some(known) = self.ends.get(usize::from(shard.index())) {
            known.fetch_max(end.0, Ordering::Relaxed);
        }
        let before = slot.rcu(|known| match known {
            Some(route) if route.epoch >= epoch => Some(Arc::clone(route)),
            Some(_) | None => Some(Arc::new(Route { peer: Arc::clone(peer), epoch })),
        });
        if before.is_none_or(|route| route.epoch < epoch) {
            self.version.fetch_add(1, Ordering::AcqRel);
        }
    }
}
