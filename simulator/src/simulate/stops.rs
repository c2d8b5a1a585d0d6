//! Operators who pause work and let it go on, and what must hold meanwhile: no destructive operation
//! begins after the order was answered and the bound has passed, whatever becomes of cells, their
//! clocks and the bus. One cell may not be told by the bus what the log of pauses holds.

use std::collections::BTreeMap;
use std::time::Duration;

use cellbus_bus::ids::{ManagerId, ShardId, VmId};
use cellbus_cell::pauses::KNOWN_FOR;
use cellbus_directory::pause::{Paused, Scope};
use cellbus_workflows::Action;
use rand::Rng as _;
use rand::rngs::SmallRng;

use super::nemesis::{Nemesis, operator};

/// How long an operator waits for an order to be answered: longer than a cell does.
const ORDER_LIMIT: Duration = Duration::from_secs(20);

/// The bound by a clock that runs a tenth too slow, as the slowest here do.
fn bound_ns() -> u64 {
    let bound = KNOWN_FOR.mul_f64(1.0 / 0.9) + Duration::from_millis(1);
    u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX)
}

/// Orders that were answered, and what was begun against them.
#[derive(Debug, Default)]
pub(super) struct Stops {
    /// When each was answered, in the world's time.
    in_force: BTreeMap<Scope, u64>,
    violations: Vec<String>,
}

impl Stops {
    pub(super) fn ordered(&mut self, scope: Scope, now: u64) {
        self.in_force.insert(scope, now);
    }
    /// It may be lifted from now on.
    pub(super) fn lifted(&mut self, scope: &Scope) {
        self.in_force.remove(scope);
    }
    /// A cell begins an operation.
    pub(super) fn begins(&mut self, now: u64, manager: ManagerId, vm: VmId, action: &Action) {
        let removes = match action {
            Action::Delete | Action::Revert(_) | Action::SnapshotDelete(_) => true,
            Action::Create(_)
            | Action::Start
            | Action::Stop(_)
            | Action::Restart(_)
            | Action::Suspend
            | Action::Resume
            | Action::Resize(_)
            | Action::Snapshot(_)
            | Action::Relocate(_)
            | Action::Inspect
            | Action::Adopt(_) => false,
        };
        if !removes {
            return;
        }
        let here = |scope: &Scope| scope.manager.is_none_or(|of| of == manager);
        let broken = self.in_force.iter().find(|(scope, since)| here(scope) && now > **since + bound_ns());
        if let Some((scope, since)) = broken {
            let after = Duration::from_nanos(now - since).as_secs_f64();
            let what = scope.in_words(None);
            let said =
                format!("manager {manager}: {action:?} on VM {vm} was begun {after:.3} s after {what} was paused");
            self.violations.push(said);
        }
    }
    pub(super) fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }
}

impl Nemesis {
    pub(super) async fn stop_work(&self, rng: &mut SmallRng) {
        let deaf = if rng.random_bool(0.6) { self.cell(rng) } else { None };
        let log = ShardId::of_cluster(self.cells.shards());
        if let Some(node) = deaf {
            self.say(|| format!("{node:?} is not told what is in the log of pauses"));
            self.bus.deafen(node, log, true);
        }
        let manager = if rng.random_bool(0.3) { self.manager(rng).map(|(manager, _)| manager) } else { None };
        let paused = if rng.random_bool(0.7) { Paused::Destructive } else { Paused::All };
        let scope = Scope { manager, paused };
        let asked = self.cells.all().into_iter().find(|cell| Some(cell.node) != deaf);
        if let Some(cell) = asked {
            let order = move |gateway: cellbus_cell::Gateway| async move {
                gateway.pause(scope, "simulated".to_owned(), operator()).await.is_ok()
            };
            let in_force = self.cells.ask(&self.env, &cell, ORDER_LIMIT, order).await == Some(true);
            self.say(|| format!("{} is paused, in force: {in_force}", scope.in_words(None)));
            if in_force {
                self.links.stops().ordered(scope, self.executor.now());
                self.while_(rng, 8.0, 30.0).await;
                self.links.stops().lifted(&scope);
            }
        }
        self.resume(scope).await;
        if let Some(node) = deaf {
            self.bus.deafen(node, log, false);
            self.say(|| format!("{node:?} is told again what is in the log of pauses"));
        }
    }

    async fn resume(&self, scope: Scope) {
        let Some(cell) = self.cells.all().into_iter().next() else { return };
        let order =
            move |gateway: cellbus_cell::Gateway| async move { gateway.resume(scope, operator()).await.is_ok() };
        let done = self.cells.ask(&self.env, &cell, ORDER_LIMIT, order).await;
        self.say(|| format!("{} goes on: {done:?}", scope.in_words(None)));
    }

    /// Whatever is still paused goes on: an order that nobody saw answered may have come late.
    pub(super) async fn resume_all(&self) {
        let Some(cell) = self.cells.all().into_iter().next() else { return };
        let look = |gateway: cellbus_cell::Gateway| async move { gateway.pauses().ok() };
        let shown = self.cells.ask(&self.env, &cell, ORDER_LIMIT, look).await.flatten();
        for (scope, _) in shown.iter().flat_map(|shown| shown.pauses.iter()) {
            self.resume(*scope).await;
        }
    }
}
