//! What the cells of one process share: the bus, the way to other cells, and what is known of who
//! owns what.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use cellbus_bus::ids::{Epoch, ManagerId, ShardCount, ShardId};
use cellbus_bus::{Bus, Env};
use cellbus_workflows::ManagerNames;

use crate::board::Board;
use crate::peers::{LocalPeers, Peer, Peers};

/// The shared parts of a process, cheap to clone.
#[derive(Clone)]
pub struct Process {
    pub(crate) env: Env,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) local: LocalPeers,
    pub(crate) names: Arc<ManagerNames>,
    pub(crate) count: ShardCount,
    pub(crate) board: Arc<Board>,
    pub(crate) routes: Arc<Routes>,
}

impl Process {
    /// Of these parts. `peers` reaches every cell, those of `local` included. Spawns nothing.
    #[must_use]
    pub fn new(
        env: Env,
        bus: Arc<dyn Bus>,
        peers: Arc<dyn Peers>,
        local: LocalPeers,
        names: Arc<ManagerNames>,
        count: ShardCount,
    ) -> Self {
        let board = Arc::new(Board::new(&names));
        Self { env, bus, peers, local, names, count, board, routes: Arc::new(Routes::new(count)) }
    }
    /// Everything in one process.
    #[must_use]
    pub fn alone(env: Env, bus: Arc<dyn Bus>, names: Arc<ManagerNames>, count: ShardCount) -> Self {
        let local = LocalPeers::default();
        Self::new(env, bus, Arc::new(local.clone()), local, names, count)
    }
    /// The cells of this process.
    #[must_use]
    pub fn local(&self) -> &LocalPeers { &self.local }
    /// Number of shards.
    #[must_use]
    pub fn shard_count(&self) -> ShardCount { self.count }
    /// The configured managers.
    #[must_use]
    pub fn names(&self) -> &ManagerNames { &self.names }
    /// What is known of the managers' room, as placement sees it.
    #[must_use]
    pub fn view(&self) -> Arc<cellbus_workflows::CapacityView> { self.board.view() }
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
}

impl Routes {
    fn new(count: ShardCount) -> Self {
        Self { count, routes: count.shards().map(|_| ArcSwapOption::empty()).collect() }
    }
    /// Of a shard.
    #[must_use]
    pub fn of(&self, shard: ShardId) -> Option<Arc<Route>> { self.routes.get(usize::from(shard.index()))?.load_full() }
    /// Of a manager: that of the shard of its id.
    #[must_use]
    pub fn of_manager(&self, manager: &ManagerId) -> Option<Arc<Route>> { self.of(manager.shard(self.count)) }
    /// Somebody has opened a shard. News of an older epoch is no news.
    pub fn learn(&self, shard: ShardId, peer: &Arc<Peer>, epoch: Epoch) {
        let Some(slot) = self.routes.get(usize::from(shard.index())) else { return };
        slot.rcu(|known| match known {
            Some(route) if route.epoch >= epoch => Some(Arc::clone(route)),
            Some(_) | None => Some(Arc::new(Route { peer: Arc::clone(peer), epoch })),
        });
    }
}
