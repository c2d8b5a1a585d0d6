//! What goes wrong for the autoscaler while the cluster is at work, and nothing else does.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cellbus_bus::ids::{CellId, ShardId};
use cellbus_cell::Gateway;
use cellbus_cell::controller::Handle;

use super::{LEASE, World};
use crate::simulate::executor::NodeId;

/// What the launcher says when nothing can be started.
pub(super) const NO_MACHINE: &str = "no machine is left that a cell could run on";
/// So long after it has decided a controller dies: before it has sent that, before it is kept, before it has
/// read that it is, and when cells are on their way.
const AFTER_MS: [u64; 5] = [0, 2, 5, 20, 1_500];
const LOOK: Duration = Duration::from_millis(1);

/// What goes wrong. Times are seconds since the first work could come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Managers are saturated: each has so many operations under way at the most.
    Managers {
        /// How many.
        operations_max: u32,
    },
    /// Of what cells have to do, the controller hears from one cell alone, the owner of the cluster's shard; in
    /// the second half of the time from none.
    Readings {
        /// From when.
        from: f64,
        /// Until when.
        until: f64,
    },
    /// Of two controllers the one that decides dies as it has decided, so often, and another one starts.
    Controllers {
        /// How often; five ways of dying take turns.
        times: usize,
    },
    /// What is wanted of the launcher is not done.
    Launcher {
        /// Until when.
        until: f64,
    },
}

/// A controller that runs.
pub(super) struct Controller {
    pub(super) node: NodeId,
    pub(super) handle: Handle,
}

impl World {
    /// Lets it go wrong, and mends it.
    pub(super) async fn suffer(self: Arc<Self>) {
        match self.config.trouble {
            Trouble::None | Trouble::Managers { .. } => {}
            Trouble::Readings { from, until } => {
                self.until(from).await;
                let owner = self.owner_of_the_cluster().await;
                self.cut_cells(true, |cell| Some(cell) != owner.as_ref());
                self.until(f64::midpoint(from, until)).await;
                self.cut_cells(true, |_| true);
                self.until(until).await;
                self.cut_cells(false, |_| true);
            }
            Trouble::Controllers { times } => {
                for after in AFTER_MS.iter().cycle().take(times) {
                    self.kill_one_that_decides(Duration::from_millis(*after)).await;
                }
            }
            Trouble::Launcher { until } => {
                self.platform_fails.store(true, Ordering::Relaxed);
                self.until(until).await;
                self.platform_fails.store(false, Ordering::Relaxed);
            }
        }
    }

    async fn until(&self, at: f64) {
        self.env.sleep(Duration::from_secs_f64((at - self.at()).max(0.0))).await;
    }

    async fn owner_of_the_cluster(&self) -> Option<CellId> {
        let cell = self.cells.all().into_iter().next()?;
        let ask = |gateway: Gateway| async move { gateway.shards().await };
        let rows = self.cells.ask(&self.env, &cell, Duration::from_secs(5), ask).await?.ok()?;
        let shard = ShardId::of_cluster(self.config.shards);
        rows.into_iter().find(|row| row.shard == shard)?.owner
    }

    /// Between controllers and these cells.
    fn cut_cells(&self, cut: bool, which: impl Fn(&CellId) -> bool) {
        for controller in self.controllers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for cell in self.cells.all().iter().filter(|cell| which(&cell.id)) {
                self.network.cut(controller.node, cell.node, cut);
                self.network.cut(cell.node, controller.node, cut);
            }
        }
    }

    /// Waits until one has decided on another size, which nobody has kept yet, and kills it so long after.
    async fn kill_one_that_decides(self: &Arc<Self>, after: Duration) {
        let (at, decision) = loop {
            self.env.sleep(LOOK).await;
            let controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
            let decided = controllers.iter().enumerate().find_map(|(at, controller)| {
                let decision = controller.handle.status().decision.clone()?;
                (decision.desired != decision.before).then_some((at, decision))
            });
            drop(controllers);
            // What is kept is no news any more.
            if let Some((at, decision)) = decided
                && self.decisions().iter().all(|(_, kept)| **kept != decision)
            {
                break (at, decision);
            }
        };
        self.env.sleep(after).await;
        let gone = self.controllers.lock().unwrap_or_else(PoisonError::into_inner).remove(at);
        self.executor.crash(gone.node);
        self.elapsed().cut_off.push(decision);
        self.control();
        // Nobody decides before the lease has run out.
        self.env.sleep(LEASE).await;
    }
}
