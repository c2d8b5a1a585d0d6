//! A manager, its sessions, and the operations that are under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, HostId, ManagerName, OpNumber, VmId};
use cellbus_cell::config::Libvirt;
use cellbus_cell::driver::{Change, Driver, Error, ForeignVm, HeldVm, Inventory, Irregular, Limits, Op, RunningTask};
use cellbus_directory::VmFacts;
use futures::future::join_all;
use tokio::sync::watch;

use crate::calls::{self, Ownership};
use crate::changes::Changes;
use crate::hosts::{Hosts, Session};

/// Of VMs that are not as they must be, so many are named.
const IRREGULAR_SHOWN: usize = 5;

/// What an operation gives.
pub(crate) type Outcome = Result<Option<VmFacts>, Error>;

/// A set of hosts, shared by all sessions of this process.
pub(crate) struct Manager {
    pub(crate) name: ManagerName,
    pub(crate) config: Libvirt,
    /// Of CPUs and of memory.
    pub(crate) over_commit: (f64, f64),
    pub(crate) hosts: Hosts,
    pub(crate) changes: Arc<Changes>,
    pub(crate) env: Env,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The newest session that was opened in this process.
    latest: Option<Epoch>,
    running: BTreeMap<VmId, Running>,
    /// What the last reading found that a person has to see to.
    irregular: Irregular,
}

/// An operation under way.
struct Running {
    number: OpNumber,
    host: Option<HostId>,
    epoch: Epoch,
    end: watch::Receiver<Option<Outcome>>,
}

impl Manager {
    pub(crate) fn new(name: &ManagerName, config: &Libvirt, over_commit: (f64, f64), env: Env) -> Self {
        let changes = Arc::new(Changes::default());
        Self {
            name: name.clone(),
            config: config.clone(),
            over_commit,
            hosts: Hosts::new(&config.hosts, &changes, env.clone()),
            changes,
            env,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, epoch: Epoch) -> Session {
        let owner = Ownership { manager: self.name.to_string(), epoch, domain: self.config.domain.as_str() };
        Session { epoch, owner }
    }

    /// VMs with an operation under way.
    pub(crate) fn busy(&self) -> BTreeSet<VmId> {
        self.state().running.keys().copied().collect()
    }
    pub(crate) fn note_irregular(&self, irregular: Vec<String>) {
        let detail = irregular.iter().take(IRREGULAR_SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
        let noted = Irregular { vms: irregular.len() as u64, detail };
        let before = std::mem::replace(&mut self.state().irregular, noted.clone());
        if noted != before && noted.vms > 0 {
            tracing::warn!(manager = %self.name, vms = noted.vms, why = noted.detail, "VMs whose id is not beyond doubt");
        }
    }

    /// Takes every host that answers. One that does not is taken when it is changed first.
    async fn open(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        if self.state().latest.is_some_and(|latest| latest > epoch) {
            return Err(Error::Revoked);
        }
        let session = self.session(epoch);
        let taken = join_all(self.hosts.asked().map(|host| {
            let (once, again) = (session.owner.clone(), session.owner.clone());
            self.hosts.call(host, move |connection| {
                calls::own(connection, once)?;
                // Two that open at once overwrite each other: the second look tells the older one.
                calls::own(connection, again)
            })
        }))
        .await;
        if taken.contains(&Err(Error::Revoked)) {
            return Err(Error::Revoked);
        }
        let mut refused = None;
        for (host, result) in self.hosts.asked().zip(&taken) {
            if let Err(error) = result {
                tracing::warn!(manager = %self.name, host = %host.name, %error, "host not opened");
                refused = Some(error.clone());
            }
        }
        if let Some(error) = refused
            && taken.iter().all(Result::is_err)
        {
            return Err(match error {
                Error::Unreachable { detail } => Error::Unreachable { detail },
                other => Error::Transient { detail: other.to_string() },
            });
        }
        let tasks = {
            let mut state = self.state();
            if state.latest.is_some_and(|latest| latest > epoch) {
                return Err(Error::Revoked);
            }
            state.latest = Some(epoch);
            state.tasks()
        };
        // Whoever listens under an older session hears that it is over.
        self.changes.stirred.notify_waiters();
        Ok(tasks)
    }

    fn admit(&self, epoch: Option<Epoch>) -> Result<Session, Error> {
        match epoch {
            Some(epoch) if self.state().latest == Some(epoch) => Ok(self.session(epoch)),
            Some(_) | None => Err(Error::Revoked),
        }
    }

    async fn perform(self: &Arc<Self>, epoch: Option<Epoch>, op: &Op) -> Outcome {
        loop {
            let session = self.admit(epoch)?;
            let (mut end, theirs) = self.begin(&session, op)?;
            let ended = end.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
            match ended {
                // An older session began it and was stopped in it: it is ours now.
                Some(Err(Error::Revoked)) if theirs < session.epoch => {}
                Some(outcome) => return outcome,
                None => return Err(Error::Unreachable { detail: "the driver is shutting down".to_owned() }),
            }
        }
    }

    /// Joins the operation, or starts it; with the epoch of the session that started it.
    fn begin(self: &Arc<Self>, session: &Session, op: &Op) -> Result<(watch::Receiver<Option<Outcome>>, Epoch), Error> {
        let mut state = self.state();
        if let Some(running) = state.running.get(&op.vm) {
            return match op.number.cmp(&running.number) {
                std::cmp::Ordering::Equal => Ok((running.end.clone(), running.epoch)),
                std::cmp::Ordering::Less => Err(Error::Superseded { asked: op.number, last: running.number }),
                std::cmp::Ordering::Greater => {
                    Err(Error::Busy { detail: format!("operation {} on this VM is still under way", running.number) })
                }
            };
        }
        if state.running.len() >= LIMITS.operations_max as usize {
            return Err(Error::Busy { detail: format!("{} operations are under way", state.running.len()) });
        }
        let (send, end) = watch::channel(None);
        let running = Running { number: op.number, host: op.host.clone(), epoch: session.epoch, end: end.clone() };
        state.running.insert(op.vm, running);
        drop(state);
        let (manager, session, op) = (Arc::clone(self), session.clone(), op.clone());
        let epoch = session.epoch;
        // A task of its own: a caller that is dropped leaves it running, and is found to be.
        self.env.spawn("libvirt operation", async move {
            let outcome = manager.carry_out(&session, &op).await;
            manager.state().running.remove(&op.vm);
            // Nobody may wait any more.
            let _ = send.send(Some(outcome));
        });
        Ok((end, epoch))
    }
}

impl State {
    fn tasks(&self) -> Vec<RunningTask> {
        let task = |(vm, running): (&VmId, &Running)| RunningTask {
            vm: *vm,
            number: running.number,
            host: running.host.clone(),
        };
        self.running.iter().map(task).collect()
    }
}

/// Until `limits` of the manager says otherwise. A host's libvirt does 5 things of one connection at once.
const LIMITS: Limits = Limits {
    operations_max: 256,
    creates_max: 16,
    relocations_max: 4,
    power_max: 32,
    snapshots_max: 8,
    // A call that has passed its look at the owner is carried out, whoever comes meanwhile.
    revokes: false,
};

/// One owner's connection.
pub(crate) struct LibvirtDriver {
    pub(crate) manager: Arc<Manager>,
    own: Mutex<Own>,
}

#[derive(Clone, Copy, Default)]
struct Own {
    epoch: Option<Epoch>,
    heard: u64,
}

impl LibvirtDriver {
    pub(crate) fn new(manager: Arc<Manager>) -> Self {
        Self { manager, own: Mutex::default() }
    }
    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn epoch(&self) -> Option<Epoch> {
        self.own().epoch
    }
    #[cfg(test)]
    pub(crate) fn session(&self) -> Session {
        self.manager.admit(self.epoch()).unwrap()
    }
}

#[async_trait]
impl Driver for LibvirtDriver {
    async fn open(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        let heard = self.manager.changes.end();
        let tasks = self.manager.open(epoch).await?;
        let mut own = self.own();
        // Opened again under the same epoch, it goes on listening from where it was.
        if own.epoch != Some(epoch) {
            *own = Own { epoch: Some(epoch), heard };
        }
        Ok(tasks)
    }
    async fn inventory(&self) -> Result<Inventory, Error> {
        let session = self.manager.admit(self.epoch())?;
        self.manager.inventory(&session).await
    }
    async fn tasks(&self) -> Result<Vec<RunningTask>, Error> {
        #[cfg(test)]
        self.manager.hosts.trouble.before_call()?;
        self.manager.admit(self.epoch())?;
        Ok(self.manager.state().tasks())
    }
    async fn perform(&self, op: &Op) -> Result<Option<VmFacts>, Error> {
        self.manager.perform(self.epoch(), op).await
    }
    async fn inspect(&self, vm: VmId) -> Result<Option<HeldVm>, Error> {
        let session = self.manager.admit(self.epoch())?;
        self.manager.inspect(&session, vm).await
    }
    async fn changes(&self) -> Result<Vec<Change>, Error> {
        loop {
            let mut stirred = std::pin::pin!(self.manager.changes.stirred.notified());
            // Before looking, so that what happens in between is not missed.
            stirred.as_mut().enable();
            let Own { epoch, heard } = *self.own();
            self.manager.admit(epoch)?;
            #[cfg(test)]
            self.manager.hosts.trouble.before_call()?;
            let (changes, next) = self.manager.changes.after(heard);
            if !changes.is_empty() {
                // There is no await from here on, so that changes that were taken are given.
                self.own().heard = next;
                return Ok(changes);
            }
            // Among what others did, VMs may have been moved here. What is found is heard of in the next round.
            self.manager.listen();
            stirred.await;
        }
    }
    async fn foreign(&self) -> Result<Vec<ForeignVm>, Error> {
        self.manager.admit(self.epoch())?;
        self.manager.foreign().await
    }
    fn limits(&self) -> Limits {
        LIMITS
    }
    fn irregular(&self) -> Irregular {
        self.manager.state().irregular.clone()
    }
}
