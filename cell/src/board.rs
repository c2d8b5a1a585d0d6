//! What the fronts say of their managers, gathered for placement: one board a process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, ManagerId, ManagerName};
use cellbus_workflows::{CapacityView, ManagerNames, ManagerSummary};
use tokio::sync::Notify;

use crate::front::unknown_summary;

/// The shortest time between two views. A view may be a second old anyway; what is new after a
/// long silence (a manager that has opened) shows at once.
const GATHER: Duration = Duration::from_millis(250);

/// The board of a process.
pub(crate) struct Board {
    configured: Vec<ManagerName>,
    said: Mutex<BTreeMap<ManagerId, (Epoch, ManagerSummary)>>,
    view: ArcSwap<CapacityView>,
    changed: Notify,
}

impl Board {
    /// On which nothing is known of any manager yet.
    pub(crate) fn new(names: &ManagerNames) -> Self {
        let board = Self {
            configured: names.iter().map(|(name, _)| name.clone()).collect(),
            said: Mutex::new(BTreeMap::new()),
            view: ArcSwap::from_pointee(CapacityView::default()),
            changed: Notify::new(),
        };
        board.gather();
        board
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ManagerId, (Epoch, ManagerSummary)>> {
        // Nothing that can panic runs under this lock.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view as it was gathered last.
    pub(crate) fn view(&self) -> Arc<CapacityView> {
        self.view.load_full()
    }

    /// The owner of a manager under this epoch says so. An older owner is not heard.
    pub(crate) fn publish(&self, epoch: Epoch, summary: ManagerSummary) {
        let mut said = self.lock();
        if said.get(&summary.id).is_none_or(|(known, before)| *known < epoch || (*known == epoch && *before != summary))
        {
            said.insert(summary.id, (epoch, summary));
            drop(said);
            self.changed.notify_one();
        }
    }

    /// The owner under this epoch has gone.
    pub(crate) fn withdraw(&self, manager: &ManagerId, epoch: Epoch) {
        let mut said = self.lock();
        if said.get(manager).is_some_and(|(known, _)| *known <= epoch) {
            said.remove(manager);
            drop(said);
            self.changed.notify_one();
        }
    }

    /// What was said last, to be told to other processes.
    pub(crate) fn said(&self) -> Vec<(Epoch, ManagerSummary)> {
        self.lock().values().cloned().collect()
    }

    /// How many managers nobody has said anything of yet, be it that they do not answer.
    pub(crate) fn silent(&self) -> usize {
        let said = self.lock();
        self.configured.iter().filter(|name| !said.contains_key(&ManagerId::derive(name.as_str()))).count()
    }

    fn gather(&self) {
        let said = self.lock();
        let mut managers: Vec<ManagerSummary> = self
            .configured
            .iter()
            .map(|name| {
                said.get(&ManagerId::derive(name.as_str())).map_or_else(|| unknown_summary(name), |(_, s)| s.clone())
            })
            .collect();
        drop(said);
        managers.sort_by_key(|summary| summary.id);
        let version = self.view.load().version + 1;
        self.view.store(Arc::new(CapacityView { managers, version }));
    }

    /// Makes a new view whenever something has changed.
    pub(crate) async fn run(&self, env: Env) {
        loop {
            self.changed.notified().await;
            self.gather();
            env.sleep(GATHER).await;
        }
    }
}
