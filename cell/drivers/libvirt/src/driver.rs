//! A manager, its sessions, and the operations that are under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, HostId, ManagerName, OpNumber, VmId};
use cellbus_cell::config::Libvirt;
use cellbus_cell::driver::{
    Change, Driver, Error, FencedHost, ForeignVm, HeldVm, Inventory, Irregular, Limits, Op, RunningTask,
};
use cellbus_directory::VmFacts;
use futures::future::join_all;
use tokio::sync::watch;

use crate::calls::{self, Ownership};
use crate::changes::Changes;
use crate::fences::Fences;
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
    /// VMs that no operation may begin on just now ([`Reserved`]).
    reserved: BTreeSet<VmId>,
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

    /// VMs with an operation under way.
    pub(crate) fn busy(&self) -> BTreeSet<VmId> {
        self.state().running.keys().copied().collect()
    }
    /// Those of these VMs that nothing is under way on, which stays so until what is given is dropped.
    pub(crate) fn reserve(self: &Arc<Self>, vms: impl IntoIterator<Item = VmId>) -> Reserved {
        let mut state = self.state();
        let free = |vm: &VmId| !state.running.contains_key(vm) && !state.reserved.contains(vm);
        let vms: BTreeSet<VmId> = vms.into_iter().filter(free).collect();
        state.reserved.extend(&vms);
        drop(state);
        Reserved { manager: Arc::clone(self), vms }
    }
    /// Whether no newer session was opened in this process.
    pub(crate) fn is_latest(&self, session: &Session) -> bool {
        self.state().latest == Some(session.epoch)
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
    async fn open(&self, session: &Session) -> Result<Vec<RunningTask>, Error> {
        let epoch = session.epoch;
        if self.state().latest.is_some_and(|latest| latest > epoch) {
            return Err(Error::Revoked);
        }
        let hosts = self.hosts.asked(&session.fences.now());
        let taken = join_all(hosts.iter().map(|host| {
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
        for (host, result) in hosts.iter().zip(&taken) {
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

    async fn perform(self: &Arc<Self>, admit: impl Fn() -> Result<Session, Error>, op: &Op) -> Outcome {
        loop {
            let session = admit()?;
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
        if state.reserved.contains(&op.vm) {
            return Err(Error::Busy { detail: "what a host had of it still is being taken away there".to_owned() });
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

/// VMs that no operation begins on.
pub(crate) struct Reserved {
    manager: Arc<Manager>,
    pub(crate) vms: BTreeSet<VmId>,
}
impl Drop for Reserved {
    fn drop(&mut self) {
        let mut state = self.manager.state();
        state.reserved.retain(|vm| !self.vms.contains(vm));
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
    fences: Arc<Fences>,
}

#[derive(Clone, Copy, Default)]
struct Own {
    epoch: Option<Epoch>,
    heard: u64,
    looks: bool,
}

impl LibvirtDriver {
    pub(crate) fn new(manager: Arc<Manager>) -> Self {
        Self { manager, own: Mutex::default(), fences: Arc::default() }
    }
    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn session_of(&self, epoch: Epoch, looks: bool) -> Session {
        let manager = &self.manager;
        let owner = Ownership { manager: manager.name.to_string(), epoch, domain: manager.config.domain.as_str() };
        Session { epoch, owner, fences: Arc::clone(&self.fences), looks }
    }
    /// # Errors
    /// [`Error::Revoked`]: it was not opened, or a newer one was.
    fn admit(&self) -> Result<Session, Error> {
        let Own { epoch, looks, .. } = *self.own();
        let session = self.session_of(epoch.ok_or(Error::Revoked)?, looks);
        if self.manager.is_latest(&session) { Ok(session) } else { Err(Error::Revoked) }
    }
    async fn open_to(&self, epoch: Epoch, looks: bool) -> Result<Vec<RunningTask>, Error> {
        let heard = self.manager.changes.end();
        let tasks = self.manager.open(&self.session_of(epoch, looks)).await?;
        let mut own = self.own();
        // Opened again under the same epoch, it goes on listening from where it was.
        let heard = if own.epoch == Some(epoch) { own.heard } else { heard };
        *own = Own { epoch: Some(epoch), heard, looks };
        Ok(tasks)
    }
    #[cfg(test)]
    pub(crate) fn session(&self) -> Session {
        self.admit().unwrap()
    }
}

#[async_trait]
impl Driver for LibvirtDriver {
    async fn open(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        self.open_to(epoch, false).await
    }
    async fn look(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        self.open_to(epoch, true).await
    }
    async fn inventory(&self) -> Result<Inventory, Error> {
        let session = self.admit()?;
        self.manager.inventory(&session).await
    }
    async fn tasks(&self) -> Result<Vec<RunningTask>, Error> {
        #[cfg(test)]
        self.manager.hosts.trouble.before_call()?;
        self.admit()?;
        Ok(self.manager.state().tasks())
    }
    async fn perform(&self, op: &Op) -> Result<Option<VmFacts>, Error> {
        self.manager.perform(|| self.admit(), op).await
    }
    async fn inspect(&self, vm: VmId) -> Result<Option<HeldVm>, Error> {
        let session = self.admit()?;
        self.manager.inspect(&session, vm).await
    }
    async fn changes(&self) -> Result<Vec<Change>, Error> {
        loop {
            let mut stirred = std::pin::pin!(self.manager.changes.stirred.notified());
            // Before looking, so that what happens in between is not missed.
            stirred.as_mut().enable();
            let session = self.admit()?;
            let heard = self.own().heard;
            #[cfg(test)]
            self.manager.hosts.trouble.before_call()?;
            let (changes, next) = self.manager.changes.after(heard);
            if !changes.is_empty() {
                // There is no await from here on, so that changes that were taken are given.
                self.own().heard = next;
                return Ok(changes);
            }
            // Among what others did, VMs may have been moved here. What is found is heard of in the next round.
            self.manager.listen(&session);
            stirred.await;
        }
    }
    async fn dead_hosts(&self) -> Result<Vec<HostId>, Error> {
        self.admit()?;
        Ok(self.fences.now().hosts().cloned().collect())
    }
    async fn may_be_fenced(&self, host: &HostId) -> Result<(), Error> {
        self.manager.may_be_fenced(host).await
    }
    async fn fenced(&self, hosts: Vec<FencedHost>) -> Result<(), Error> {
        self.manager.fence(&self.fences, hosts);
        Ok(())
    }
    async fn foreign(&self) -> Result<Vec<ForeignVm>, Error> {
        self.manager.foreign(&self.admit()?).await
    }
    fn limits(&self) -> Limits {
        LIMITS
    }
    fn irregular(&self) -> Irregular {
        self.manager.state().irregular.clone()
    }
}
