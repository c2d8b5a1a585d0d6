//! The driver: sessions, what is remembered between calls, and the trait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, HostId, ManagerName, OpNumber, VmId};
use cellbus_bus::job::Size;
use cellbus_cell::config::Vsphere;
use cellbus_cell::driver::{Change, Driver, Error, ForeignVm, HeldVm, Inventory, Irregular, Limits, Op, RunningTask};
use cellbus_directory::VmFacts;
use tokio::sync::oneshot;

use crate::changes::Listener;
use crate::read::{HostSeen, Hosts};
use crate::session::Session;
use crate::signing::Memory;
use crate::soap::Failure;
use crate::spec::Network;
use crate::tasks::Own;
use crate::vim::Ref;

/// Deleted VMs whose numbers are remembered: a late create is refused meanwhile.
const TOMBSTONES_MAX: usize = 100_000;

/// What a vCenter takes at once before its own queues fill: 8 for each host and 128 for each datastore of
/// its heavy operations, some hundred tasks in all. Hosts and datastores queue what is more.
const LIMITS: Limits = Limits {
    operations_max: 128,
    creates_max: 32,
    relocations_max: 8,
    power_max: 64,
    snapshots_max: 32,
    revokes: true,
};

/// How much of a host is given out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverCommit {
    pub(crate) cpu: f64,
    pub(crate) memory: f64,
}

/// What the calls of one connection share.
pub(crate) struct Inner {
    pub(crate) vsphere: Vsphere,
    manager: ManagerName,
    tls: rustls::ClientConfig,
    env: Env,
    over_commit: OverCommit,
    connected: Mutex<Option<Connected>>,
    hosts: Mutex<Arc<Hosts>>,
    pub(crate) own: Own,
    locks: Mutex<BTreeMap<VmId, Arc<tokio::sync::Mutex<()>>>>,
    deleted: Mutex<Tombstones>,
    /// For each host, held while it is looked at for room.
    reserving: Mutex<BTreeMap<HostId, Arc<tokio::sync::Mutex<()>>>>,
    reserved: Mutex<BTreeMap<VmId, Room>>,
    pub(crate) known: Mutex<Known>,
    memory: Arc<Mutex<Memory>>,
}

/// A session, and who listens in it.
#[derive(Clone)]
struct Connected {
    session: Arc<Session>,
    listener: Arc<Listener>,
}

#[derive(Default)]
struct Tombstones {
    numbers: BTreeMap<VmId, OpNumber>,
    order: VecDeque<VmId>,
}

/// What hardly ever changes, and every create needs. Asked for again once hosts were read anew, or a create
/// has failed.
#[derive(Default)]
pub(crate) struct Known {
    /// The resource pool of what a host belongs to.
    pub(crate) pools: BTreeMap<Ref, Ref>,
    pub(crate) network: Option<Network>,
}

/// What an operation under way takes.
struct Room {
    host: HostId,
    size: Size,
    /// The datastore, and GiB on it, of a disk that is made.
    disk: Option<(Ref, u64)>,
}

/// Room on a host for a VM that is not there yet; given back when dropped.
pub(crate) struct Reserved<'a> {
    inner: &'a Inner,
    vm: VmId,
    pub(crate) host: HostSeen,
    /// GiB free on each of its datastores.
    pub(crate) free: BTreeMap<Ref, u64>,
}
impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        locked(&self.inner.reserved).remove(&self.vm);
    }
}
impl Reserved<'_> {
    /// The datastore for a disk of so many GiB: the one of this name, else the one with most room. What is made
    /// elsewhere meanwhile counts as taken.
    pub(crate) fn lay(&self, wanted: Option<&str>, gib: u64) -> Result<Ref, Failure> {
        let (hosts, host) = (self.inner.hosts(), &self.host.host.id);
        let mut reserved = locked(&self.inner.reserved);
        let left = |(this, free): (&Ref, &u64)| {
            let seen = hosts.datastores.get(this).filter(|seen| seen.usable)?;
            let others = reserved.iter().filter(|(vm, _)| **vm != self.vm).filter_map(|(_, room)| room.disk.as_ref());
            let taken = others.filter(|(on, _)| on == this).map(|(_, gib)| *gib).fold(0, u64::saturating_add);
            Some((free.saturating_sub(taken), this.clone(), seen.name.as_str()))
        };
        let stores: Vec<(u64, Ref, &str)> = self.free.iter().filter_map(left).collect();
        let named = stores.iter().find(|(_, _, name)| Some(*name) == wanted);
        let best = named.or_else(|| stores.iter().max_by_key(|(free, _, _)| *free));
        let refused = |detail: String| Failure::Refused(Error::NoRoom { detail });
        let (free, this, name) = best.ok_or_else(|| refused(format!("{host} has no datastore that takes disks")))?;
        if *free < gib {
            return Err(refused(format!("datastore {name} of {host} has {free} GiB free, and {gib} are wanted")));
        }
        if let Some(room) = reserved.get_mut(&self.vm) {
            room.disk = Some((this.clone(), gib));
        }
        Ok(this.clone())
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds the turn of one VM.
pub(crate) struct Turn<'a> {
    inner: &'a Inner,
    vm: VmId,
    _held: tokio::sync::OwnedMutexGuard<()>,
}
impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut locks = locked(&self.inner.locks);
        // One count is the map's, one the guard's: nobody waits.
        if locks.get(&self.vm).is_some_and(|lock| Arc::strong_count(lock) <= 2) {
            locks.remove(&self.vm);
        }
    }
}

impl Inner {
    fn connected(&self) -> Result<Connected, Failure> {
        locked(&self.connected).clone().ok_or(Failure::Revoked)
    }
    pub(crate) fn session(&self) -> Result<Arc<Session>, Failure> {
        Ok(self.connected()?.session)
    }
    pub(crate) fn hosts(&self) -> Arc<Hosts> {
        Arc::clone(&locked(&self.hosts))
    }
    pub(crate) async fn read_hosts(&self) -> Result<Arc<Hosts>, Failure> {
        let hosts = self.session()?.hosts(self.vsphere.datastore.as_deref()).await?;
        Ok(self.hosts_read(hosts))
    }
    fn hosts_read(&self, hosts: Hosts) -> Arc<Hosts> {
        let hosts = Arc::new(hosts);
        *locked(&self.hosts) = Arc::clone(&hosts);
        self.forget();
        hosts
    }
    /// What is known and may have changed is asked for again.
    pub(crate) fn forget(&self) {
        *locked(&self.known) = Known::default();
    }

    /// Waits for the turn of this VM: operations on one go one after the other.
    pub(crate) async fn one_at_a_time(&self, vm: VmId) -> Turn<'_> {
        let lock = Arc::clone(locked(&self.locks).entry(vm).or_default());
        Turn { inner: self, vm, _held: lock.lock_owned().await }
    }

    /// The number under which it was deleted, if that was here.
    pub(crate) fn deleted(&self, vm: VmId) -> Option<OpNumber> {
        locked(&self.deleted).numbers.get(&vm).copied()
    }
    pub(crate) fn bury(&self, vm: VmId, number: OpNumber) {
        let mut deleted = locked(&self.deleted);
        if deleted.numbers.insert(vm, number).is_none() {
            deleted.order.push_back(vm);
        }
        if deleted.order.len() > TOMBSTONES_MAX
            && let Some(oldest) = deleted.order.pop_front()
        {
            deleted.numbers.remove(&oldest);
        }
    }

    /// Takes room for a VM on a host, which vCenter itself would give out without end: vCPUs and memory. For
    /// its disk see [`Reserved::lay`].
    pub(crate) async fn reserve(&self, host: &HostId, vm: VmId, size: Size) -> Result<Reserved<'_>, Failure> {
        let no_room = |detail: String| Failure::Refused(Error::NoRoom { detail });
        let seen = match self.hosts().get(host).cloned() {
            Some(seen) => seen,
            // It may have come since.
            None => match self.read_hosts().await?.get(host).cloned() {
                Some(seen) => seen,
                None => return Err(no_room(format!("there is no host {host}"))),
            },
        };
        // One look at a host after the other, so that each sees what the one before it took.
        let turn = Arc::clone(locked(&self.reserving).entry(host.clone()).or_default());
        let _one = turn.lock().await;
        let mut pending: BTreeMap<VmId, Size> = locked(&self.reserved)
            .iter()
            .filter(|(_, room)| room.host == *host)
            .map(|(vm, room)| (*vm, room.size))
            .collect();
        pending.insert(vm, size);
        let now = self.session()?.host_now(&seen, &pending.keys().copied().collect()).await?;
        let now = now.ok_or_else(|| no_room(format!("the host {host} is gone")))?;
        if !now.takes_vms || now.free.is_empty() {
            return Err(no_room(format!("{host} takes no VMs: disconnected, in maintenance or without a datastore")));
        }
        let (vcpus, memory) = (now.vcpus, now.memory_mib);
        let wanted = pending.values().fold((vcpus, memory), |(vcpus, memory), size| {
            (vcpus.saturating_add(u64::from(size.vcpus)), memory.saturating_add(size.memory_mib))
        });
        let room = |has: u64, over: f64| has as f64 * over;
        if wanted.0 as f64 > room(u64::from(seen.host.vcpus), self.over_commit.cpu)
            || wanted.1 as f64 > room(seen.host.memory_mib, self.over_commit.memory)
        {
            return Err(no_room(format!("{host} would have {} vCPUs and {} MiB given out", wanted.0, wanted.1)));
        }
        locked(&self.reserved).insert(vm, Room { host: host.clone(), size, disk: None });
        Ok(Reserved { inner: self, vm, host: seen, free: now.free })
    }
}

/// One owner's connection to a vCenter.
pub(crate) struct VsphereDriver {
    inner: Arc<Inner>,
    opening: tokio::sync::Mutex<()>,
}

impl VsphereDriver {
    pub(crate) fn new(
        vsphere: Vsphere,
        manager: ManagerName,
        tls: rustls::ClientConfig,
        over_commit: OverCommit,
        memory: Arc<Mutex<Memory>>,
        env: Env,
    ) -> Self {
        let inner = Inner {
            vsphere,
            manager,
            tls,
            env,
            over_commit,
            connected: Mutex::default(),
            hosts: Mutex::default(),
            own: Own::default(),
            locks: Mutex::default(),
            deleted: Mutex::default(),
            reserving: Mutex::default(),
            reserved: Mutex::default(),
            known: Mutex::default(),
            memory,
        };
        Self { inner: Arc::new(inner), opening: tokio::sync::Mutex::default() }
    }

    /// Signs in under this epoch, to use the manager or to look at it alone.
    async fn connect(&self, epoch: Epoch, looks: bool) -> Result<Vec<RunningTask>, Error> {
        let _one = self.opening.lock().await;
        let inner = &self.inner;
        let before = inner.session().ok();
        let there = before.clone().filter(|session| session.opened_as(epoch, looks));
        let session = match there {
            Some(session) => session,
            None => {
                let (vsphere, manager) = (&inner.vsphere, &inner.manager);
                let (tls, memory) = (inner.tls.clone(), Arc::clone(&inner.memory));
                let session = Session::new(vsphere, manager, tls, epoch, memory, inner.env.clone());
                let session = Arc::new(session.map_err(|detail| Error::Transient { detail })?);
                session.open(epoch, looks).await?;
                let listener = Arc::new(Listener::default());
                listener.begin(&session).await?;
                if let Some(before) = before {
                    before.end();
                }
                *locked(&inner.connected) = Some(Connected { session: Arc::clone(&session), listener });
                session
            }
        };
        Ok(session.tasks().await?)
    }
}

#[async_trait]
impl Driver for VsphereDriver {
    async fn open(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        self.connect(epoch, false).await
    }

    async fn look(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        self.connect(epoch, true).await
    }

    async fn inventory(&self) -> Result<Inventory, Error> {
        let (inventory, hosts) = self.inner.session()?.inventory(self.inner.vsphere.datastore.as_deref()).await?;
        self.inner.hosts_read(hosts);
        Ok(inventory)
    }

    async fn tasks(&self) -> Result<Vec<RunningTask>, Error> {
        Ok(self.inner.session()?.tasks().await?)
    }

    async fn perform(&self, op: &Op) -> Result<Option<VmFacts>, Error> {
        // It goes on when its caller does not: what was begun at the vCenter is followed to its end.
        let (inner, op) = (Arc::clone(&self.inner), op.clone());
        let (send, done) = oneshot::channel();
        self.inner.env.spawn("vsphere operation", async move {
            // Its caller may have gone.
            let _ = send.send(inner.perform(&op).await);
        });
        match done.await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Error::Unreachable { detail: "the operation was given up".to_owned() }),
        }
    }

    async fn inspect(&self, vm: VmId) -> Result<Option<HeldVm>, Error> {
        let session = self.inner.session()?;
        let Some(seen) = session.find(vm).await? else {
            session.none_being_made(vm, &self.inner.own).await?;
            return Ok(None);
        };
        match session.held(&seen, &self.inner.hosts()).await? {
            Some(held) => Ok(Some(held)),
            // It is there: that it is not ours any more is not to be concluded.
            None => Err(Error::Transient { detail: format!("the VM {vm} has lost its note (its annotation)") }),
        }
    }

    async fn changes(&self) -> Result<Vec<Change>, Error> {
        let Connected { session, listener } = self.inner.connected()?;
        Ok(listener.changes(&session).await?)
    }

    async fn may_be_fenced(&self, _host: &HostId) -> Result<(), Error> {
        let detail =
            "vSphere HA of its cluster knows when a host is dead, and restarts VMs itself; Cellbus follows them";
        Err(Error::Invalid { detail: detail.to_owned() })
    }

    async fn foreign(&self) -> Result<Vec<ForeignVm>, Error> {
        Ok(self.inner.foreign().await?)
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn expect(&self, mark: u64) {
        let mut memory = self.inner.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.mark = memory.mark.max(Some(mark));
    }

    async fn mark(&self) -> Result<Option<u64>, Error> {
        Ok(Some(self.inner.session()?.mark().await?))
    }

    fn irregular(&self) -> Irregular {
        self.inner.connected().map(|connected| connected.listener.irregular()).unwrap_or_default()
    }
}
