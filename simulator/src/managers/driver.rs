//! The driver of a simulated manager in this process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use cellbus_bus::ids::{Epoch, HostId, VmId};
use cellbus_cell::driver::{Change, Driver, Error, FencedHost, ForeignVm, HeldVm, Inventory, Limits, Op, RunningTask};
use cellbus_directory::VmFacts;

use super::changes::Cursor;
use super::manager::Manager;

/// One owner's connection to a manager. It is known by the epoch under which it was opened.
pub(super) struct SimulatedDriver {
    manager: Arc<Manager>,
    session: Mutex<Session>,
}

#[derive(Clone, Copy, Default)]
struct Session {
    epoch: Option<Epoch>,
    /// How far changes have been heard.
    heard: Cursor,
}

impl SimulatedDriver {
    pub(super) fn new(manager: Arc<Manager>) -> Self {
        Self { manager, session: Mutex::default() }
    }
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn epoch(&self) -> Option<Epoch> {
        self.session().epoch
    }
}

#[async_trait]
impl Driver for SimulatedDriver {
    async fn open(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        let (tasks, cursor) = self.manager.open(epoch).await?;
        let mut session = self.session();
        // Opened again under the same epoch, it goes on listening from where it was.
        if session.epoch != Some(epoch) {
            *session = Session { epoch: Some(epoch), heard: cursor };
        }
        Ok(tasks)
    }
    async fn inventory(&self) -> Result<Inventory, Error> {
        self.manager.inventory(self.epoch()).await
    }
    async fn tasks(&self) -> Result<Vec<RunningTask>, Error> {
        self.manager.tasks(self.epoch()).await
    }
    async fn perform(&self, op: &Op) -> Result<Option<VmFacts>, Error> {
        self.manager.perform(self.epoch(), op).await
    }
    async fn inspect(&self, vm: VmId) -> Result<Option<HeldVm>, Error> {
        self.manager.inspect(self.epoch(), vm).await
    }
    async fn changes(&self) -> Result<Vec<Change>, Error> {
        let Session { epoch, heard } = *self.session();
        let (changes, next) = self.manager.changes(epoch, heard).await?;
        // There is no await from here on, so that changes that were taken are given.
        let mut session = self.session();
        if session.epoch == epoch {
            session.heard = next;
        }
        Ok(changes)
    }
    async fn dead_hosts(&self) -> Result<Vec<HostId>, Error> {
        self.manager.dead_hosts(self.epoch()).await
    }
    async fn may_be_fenced(&self, host: &HostId) -> Result<(), Error> {
        self.manager.may_be_fenced(host).await
    }
    async fn fenced(&self, hosts: Vec<FencedHost>) -> Result<(), Error> {
        // Once it is open it is told again.
        let Some(epoch) = self.epoch() else { return Ok(()) };
        let hosts: Vec<HostId> = hosts.into_iter().map(|host| host.id).collect();
        self.manager.fenced(epoch, &hosts).await
    }
    async fn foreign(&self) -> Result<Vec<ForeignVm>, Error> {
        self.manager.foreign(self.epoch()).await
    }
    fn limits(&self) -> Limits {
        self.manager.limits.clone()
    }
}
