//! The cells of the process: started and taken away while it runs, by whoever holds it and by the
//! autoscaler.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::{CellId, ShardCount};
use cellbus_cell::Process;
use cellbus_cell::cell::{self, Cell, Handle};
use cellbus_cell::config::Config;
use cellbus_cell::controller::launcher::leaves_next;
use cellbus_cell::controller::{Launcher, Wanted};
use cellbus_cell::front;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::AllDrivers;

/// How long cells wait for each other when all start together, so that shards do not move.
const GATHER: Duration = Duration::from_secs(2);
/// Cells of one process at the most: above it they only take each other's processors.
const CELLS_MAX: usize = 256;

/// See the module.
pub(super) struct Cells {
    pub(super) env: Env,
    pub(super) process: Process,
    pub(super) config: Config,
    pub(super) fronts: Vec<front::Config>,
    pub(super) drivers: Arc<AllDrivers>,
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

    /// Starts one more; `together` is how many start at the same time.
    pub(super) fn start(self: &Arc<Self>, together: usize) -> CellId {
        let mut state = self.state();
        state.incarnations += 1;
        // Never used before, in this process or an earlier one over the same data.
        let id = format!("cell-{}-{:08x}", state.incarnations, self.env.random_u64() as u32);
        let id: CellId = id.parse().expect("letters, digits and dashes make a cell id");
        let count: ShardCount = self.process.shard_count();
        let config = cell::Config {
            gather: (together, GATHER),
            ..super::cell_config(&self.config, count, id.clone(), self.fronts.clone())
        };
        let (cell, handle) = Cell::new(config, self.process.clone(), self.drivers.clone());
        state.cells.push(handle);
        state.peak = state.peak.max(state.cells.len());
        drop(state);
        let (own, stop, ended) = (Arc::clone(self), self.stop.clone(), id.clone());
        let running = async move {
            cell.run(stop).await;
            own.ended(&ended);
        };
        self.env.spawn("cell", self.running.track_future(running));
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
