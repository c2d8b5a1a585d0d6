//! The cells of a node: started and taken away while it runs, by whoever holds it and by the
//! autoscaler.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::ids::CellId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Reach, cell_config};
use crate::cell::{self, Cell, Handle};
use crate::config::Config;
use crate::controller::launcher::leaves_next;
use crate::controller::{Launcher, Wanted};
use crate::driver::Drivers;
use crate::{Process, front};

/// How long cells that start together wait for each other, so that shards do not move.
const GATHER: Duration = Duration::from_secs(2);
/// How long a cell that joins a cluster looks who is there before it opens its first shard.
const LOOK_ROUND: Duration = Duration::from_millis(500);
/// Cells of one process at the most: above it they only take each other's processors.
const CELLS_MAX: usize = 256;

/// See the module.
pub(super) struct Cells {
    pub(super) process: Process,
    pub(super) config: Config,
    pub(super) reach: Reach,
    pub(super) fronts: Vec<front::Config>,
    pub(super) drivers: Arc<dyn Drivers>,
    pub(super) running: TaskTracker,
    /// Ends the cells, by draining.
    pub(super) stop: CancellationToken,
    pub(super) state: Mutex<State>,
}

/// What there is of them.
#[derive(Default)]
pub(super) struct State {
    /// In the order started.
    cells: Vec<Handle>,
    leaving: BTreeSet<CellId>,
    incarnations: u32,
    peak: usize,
}

impl Cells {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never used before, in this process or an earlier one.
    pub(super) fn next_id(&self, what: &str) -> CellId {
        let mut state = self.state();
        state.incarnations += 1;
        let id = format!("{what}-{}-{:08x}", state.incarnations, self.process.env.random_u64() as u32);
        id.parse().expect("letters, digits and dashes make a cell id")
    }

    /// Starts one more; `together` is how many start at the same time.
    pub(super) fn start(self: &Arc<Self>, together: usize) -> CellId {
        let id = self.next_id("cell");
        let (gather, settle) = match self.reach {
            Reach::Alone => ((together, GATHER), Duration::ZERO),
            // How many there will be, nobody knows.
            Reach::Http { .. } => ((usize::MAX, LOOK_ROUND), self.config.lease.ttl),
        };
        let config = cell::Config {
            address: self.reach.address(&id),
            gather,
            settle,
            ..cell_config(&self.config, self.process.shard_count(), id.clone(), self.fronts.clone())
        };
        let (cell, handle) = Cell::new(config, self.process.clone(), Arc::clone(&self.drivers));
        let mut state = self.state();
        state.cells.push(handle);
        state.peak = state.peak.max(state.cells.len());
        drop(state);
        let (own, stop, ended) = (Arc::clone(self), self.stop.clone(), id.clone());
        let running = async move {
            cell.run(stop).await;
            own.ended(&ended);
        };
        self.process.env.spawn("cell", self.running.track_future(running));
        id
    }

    fn ended(&self, id: &CellId) {
        let mut state = self.state();
        state.cells.retain(|cell| cell.id() != id);
        state.leaving.remove(id);
    }

    /// Stops the one that has run longest, with no goodbye.
    pub(super) fn kill_oldest(&self) -> Option<CellId> {
        let mut state = self.state();
        let oldest = state.cells.iter().position(|cell| !state.leaving.contains(cell.id()))?;
        let handle = state.cells.remove(oldest);
        drop(state);
        handle.kill();
        Some(handle.id().clone())
    }

    /// Stops all, with no goodbye.
    pub(super) fn kill_all(&self) {
        let cells = std::mem::take(&mut self.state().cells);
        cells.iter().for_each(Handle::kill);
    }

    /// The most that there were at once.
    pub(super) fn peak(&self) -> usize {
        self.state().peak
    }
}

/// Started cells are there at once, so that what there is is counted here; which of them leaves next
/// is asked of the members, as everywhere.
pub(super) struct Embedded(pub(super) Arc<Cells>);

#[async_trait]
impl Launcher for Embedded {
    fn name(&self) -> &'static str {
        "embedded"
    }
    fn want(&self, wanted: Wanted) {
        if self.0.stop.is_cancelled() {
            return;
        }
        let staying = {
            let state = self.0.state();
            state.cells.len() - state.leaving.len()
        };
        for _ in staying..(wanted.desired as usize).min(CELLS_MAX) {
            let id = self.0.start(1);
            tracing::info!(cell = %id, desired = wanted.desired, "cell started");
        }
        let mut state = self.0.state();
        if staying <= wanted.desired as usize || !state.leaving.is_empty() {
            return;
        }
        let own = |id: &CellId| state.cells.iter().any(|cell| cell.id() == id);
        let Some(next) = leaves_next(&wanted, own).cloned() else { return };
        if let Some(cell) = state.cells.iter().find(|cell| *cell.id() == next) {
            tracing::info!(cell = %next, desired = wanted.desired, "cell leaves");
            cell.drain();
            state.leaving.insert(next);
        }
    }
    fn trouble(&self) -> Option<String> {
        None
    }
}
