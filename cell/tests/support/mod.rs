//! A cluster in one process, with managers that a test can bend.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part of this")]

mod flaky;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::cloudevent::{Limits as EventLimits, TenantFrom, TenantRule, Tenants, parse_structured};
use cellbus_bus::contract::ClusterRecord;
use cellbus_bus::embedded::{Config as BusConfig, Embedded};
use cellbus_bus::env::{self, Mono};
use cellbus_bus::format::Build;
use cellbus_bus::ids::{CellId, Epoch, HostId, ManagerId, ManagerName, OpNumber, ShardCount, VmId};
use cellbus_bus::job::{Job, Labels, Size};
use cellbus_bus::{Bus, Env};
use cellbus_cell::cell::{self, Cell, Handle};
use cellbus_cell::driver::{Change, Driver, Drivers, Error, HeldVm, Host, Inventory, Limits, Op, RunningTask};
use cellbus_cell::{Gateway, Process, front};
use cellbus_directory::tail::Tail;
use cellbus_directory::{PowerState, Replica, VmFacts};
use cellbus_workflows::{Action, ManagerNames};
use tokio_util::sync::CancellationToken;

/// A manager in memory.
pub struct FakeManager {
    env: Env,
    pub name: ManagerName,
    hosts: Vec<Host>,
    state: Mutex<FakeState>,
    /// Operations never end while this is set.
    pub hangs: AtomicBool,
    gone: AtomicBool,
    /// How long an operation takes.
    pub takes_ms: AtomicU64,
    /// Its account may only read.
    pub forbids: AtomicBool,
    /// Its driver has a fault, which the next operation brings out once it is done.
    pub panics_after_operation: AtomicBool,
    /// The same, which the next change brings out.
    pub panics_at_change: AtomicBool,
    changed: tokio::sync::Notify,
    pub limits: Limits,
}

#[derive(Default)]
struct FakeState {
    epoch: Epoch,
    vms: BTreeMap<VmId, HeldVm>,
    changes: Vec<Change>,
    made: BTreeMap<VmId, u32>,
    overfilled: u32,
    looked_at: u32,
    under_way: u32,
    under_way_max: u32,
    stale: u32,
    /// When a delete of each VM was first begun.
    deletes: BTreeMap<VmId, Mono>,
}

impl FakeManager {
    pub fn new(env: Env, name: &str, hosts: u32, vcpus: u32) -> Arc<Self> {
        let hosts = (0..hosts).map(|i| Host {
            id: format!("{name}-h{i:03}").parse().unwrap(),
            vcpus,
            memory_mib: u64::from(vcpus) * 8192,
            disk_gib: 10_000,
            labels: Labels::from([("gear".to_owned(), format!("g{}", i % 3 + 1))]),
            usable: true,
        });
        Arc::new(Self {
            env,
            name: name.parse().unwrap(),
            hosts: hosts.collect(),
            state: Mutex::default(),
            hangs: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            takes_ms: AtomicU64::new(0),
            forbids: AtomicBool::new(false),
            panics_after_operation: AtomicBool::new(false),
            panics_at_change: AtomicBool::new(false),
            changed: tokio::sync::Notify::new(),
            limits: Limits {
                operations_max: 64,
                creates_max: 16,
                relocations_max: 8,
                power_max: 32,
                snapshots_max: 8,
                revokes: true,
            },
        })
    }
    pub fn id(&self) -> ManagerId {
        ManagerId::derive(self.name.as_str())
    }
    pub fn vms(&self) -> BTreeSet<VmId> {
        self.state.lock().unwrap().vms.keys().copied().collect()
    }
    pub fn facts(&self, vm: &VmId) -> Option<VmFacts> {
        self.state.lock().unwrap().vms.get(vm).map(|vm| vm.facts.clone())
    }
    /// VMs that were made more than once.
    pub fn made_twice(&self) -> usize {
        self.state.lock().unwrap().made.values().filter(|n| **n > 1).count()
    }
    /// When a delete of each VM was first begun.
    pub fn deletes(&self) -> BTreeMap<VmId, Mono> {
        self.state.lock().unwrap().deletes.clone()
    }
    /// How often it was connected to for looking at it alone.
    pub fn looked_at(&self) -> u32 {
        self.state.lock().unwrap().looked_at
    }
    pub fn overfilled(&self) -> u32 {
        self.state.lock().unwrap().overfilled
    }
    pub fn under_way_max(&self) -> u32 {
        self.state.lock().unwrap().under_way_max
    }
    /// Somebody stops a VM behind Cellbus's back.
    pub fn stop_behind_our_back(&self, vm: &VmId) {
        let mut state = self.state.lock().unwrap();
        state.vms.get_mut(vm).unwrap().facts.power = PowerState::Stopped;
        state.changes.push(Change::Vm(*vm));
        drop(state);
        self.changed.notify_one();
    }

    /// Under which epoch it was opened last.
    pub fn epoch(&self) -> Epoch {
        self.state.lock().unwrap().epoch
    }

    /// Its process is away, or there again.
    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
        // Who waits for changes loses the connection.
        self.changed.notify_one();
    }
    fn reached(&self) -> Result<(), Error> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(Error::Unreachable { detail: "nobody listens there".into() });
        }
        Ok(())
    }

    fn do_it(&self, epoch: Epoch, op: &Op) -> Result<Option<VmFacts>, Error> {
        let mut state = self.state.lock().unwrap();
        if epoch < state.epoch {
            state.stale += 1;
            return Err(Error::Revoked);
        }
        let held = state.vms.get(&op.vm).cloned();
        if let Some(held) = &held {
            if op.number < held.op {
                return Err(Error::Superseded { asked: op.number, last: held.op });
            }
            if op.number == held.op {
                return Ok(Some(held.facts.clone()));
            }
        }
        let Some(mut vm) = held else {
            return match &op.action {
                Action::Create(spec) => {
                    let host = op.host.clone().expect("a create has a host");
                    let facts =
                        VmFacts { host: host.clone(), power: PowerState::Running, size: spec.size, snapshots: vec![] };
                    let listed = self
                        .hosts
                        .iter()
                        .find(|h| h.id == host)
                        .ok_or(Error::NoRoom { detail: "no such host".into() })?;
                    let used: u32 =
                        state.vms.values().filter(|v| v.facts.host == host).map(|v| v.facts.size.vcpus).sum();
                    if used + spec.size.vcpus > listed.vcpus {
                        state.overfilled += 1;
                    }
                    *state.made.entry(op.vm).or_default() += 1;
                    state.vms.insert(
                        op.vm,
                        HeldVm {
                            id: op.vm,
                            facts: facts.clone(),
                            tenant: spec.tenant.clone(),
                            name: spec.name.clone(),
                            op: op.number,
                            affinity: spec.template.policy.affinity.clone(),
                            anti_affinity: spec.template.policy.anti_affinity.clone(),
                            datastore: None,
                        },
                    );
                    Ok(Some(facts))
                }
                Action::Delete => Ok(None),
                _ => Err(Error::NotFound),
            };
        };
        vm.op = op.number;
        match &op.action {
            Action::Create(_) | Action::Inspect | Action::Adopt(_) => {}
            Action::Start | Action::Resume | Action::Restart(_) => vm.facts.power = PowerState::Running,
            Action::Stop(_) => vm.facts.power = PowerState::Stopped,
            Action::Suspend => vm.facts.power = PowerState::Suspended,
            Action::Resize(size) => vm.facts.size = *size,
            Action::Snapshot(name) => vm.facts.snapshots.push(name.clone()),
            Action::Revert(_) => {}
            Action::SnapshotDelete(name) => vm.facts.snapshots.retain(|known| known != name),
            Action::Relocate(host) => vm.facts.host = host.clone(),
            Action::Delete => {
                state.vms.remove(&op.vm);
                return Ok(None);
            }
        }
        let facts = vm.facts.clone();
        state.vms.insert(op.vm, vm);
        Ok(Some(facts))
    }
}

struct Session {
    manager: Arc<FakeManager>,
    epoch: Mutex<Epoch>,
}

#[async_trait]
impl Driver for Session {
    /// Where nothing was ever made there is nobody whose session would have to be ended.
    async fn look(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        {
            let mut state = self.manager.state.lock().unwrap();
            if state.made.is_empty() {
                state.looked_at += 1;
                return Ok(vec![]);
            }
        }
        self.open(epoch).await
    }
    async fn open(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        if self.manager.forbids.load(Ordering::Relaxed) {
            return Err(Error::Permanent { detail: "the account may only read".into() });
        }
        let mut state = self.manager.state.lock().unwrap();
        if epoch < state.epoch {
            return Err(Error::Revoked);
        }
        state.epoch = epoch;
        *self.epoch.lock().unwrap() = epoch;
        Ok(vec![])
    }
    async fn inventory(&self) -> Result<Inventory, Error> {
        self.manager.reached()?;
        let state = self.manager.state.lock().unwrap();
        Ok(Inventory {
            hosts: self.manager.hosts.clone(),
            vms: state.vms.values().cloned().collect(),
            ..Inventory::default()
        })
    }
    async fn tasks(&self) -> Result<Vec<RunningTask>, Error> {
        self.manager.reached()?;
        if self.manager.hangs.load(Ordering::Relaxed) {
            return Err(Error::Unreachable { detail: "hangs".into() });
        }
        Ok(vec![])
    }
    async fn perform(&self, op: &Op) -> Result<Option<VmFacts>, Error> {
        let epoch = *self.epoch.lock().unwrap();
        {
            let mut state = self.manager.state.lock().unwrap();
            state.under_way += 1;
            state.under_way_max = state.under_way_max.max(state.under_way);
            if op.action == Action::Delete {
                let now = self.manager.env.mono();
                state.deletes.entry(op.vm).or_insert(now);
            }
        }
        let _under_way = UnderWay(Arc::clone(&self.manager));
        if self.manager.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let takes = self.manager.takes_ms.load(Ordering::Relaxed);
        if takes > 0 {
            self.manager.env.sleep(Duration::from_millis(takes)).await;
        }
        let done = self.manager.do_it(epoch, op);
        assert!(!self.manager.panics_after_operation.swap(false, Ordering::Relaxed), "an answer that nobody foresaw");
        done
    }
    async fn inspect(&self, vm: VmId) -> Result<Option<HeldVm>, Error> {
        Ok(self.manager.state.lock().unwrap().vms.get(&vm).cloned())
    }
    async fn changes(&self) -> Result<Vec<Change>, Error> {
        loop {
            self.manager.reached()?;
            let changes = std::mem::take(&mut self.manager.state.lock().unwrap().changes);
            if !changes.is_empty() {
                assert!(!self.manager.panics_at_change.swap(false, Ordering::Relaxed), "a change that nobody foresaw");
                return Ok(changes);
            }
            self.manager.changed.notified().await;
        }
    }
    fn limits(&self) -> Limits {
        self.manager.limits.clone()
    }
}

struct UnderWay(Arc<FakeManager>);
impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().under_way -= 1;
    }
}

pub struct FakeDrivers(pub BTreeMap<ManagerId, Arc<FakeManager>>);
impl Drivers for FakeDrivers {
    fn connect(&self, manager: ManagerId) -> Option<Arc<dyn Driver>> {
        let manager = self.0.get(&manager)?;
        Some(Arc::new(Session { manager: Arc::clone(manager), epoch: Mutex::new(Epoch::ZERO) }))
    }
}

/// A cluster in one process.
pub struct Cluster {
    pub env: Env,
    pub bus: Arc<Embedded>,
    pub managers: Vec<Arc<FakeManager>>,
    pub gateway: Gateway,
    pub cells: Vec<Handle>,
    pub process: Process,
    pub lease: Duration,
    /// Whose jobs the ingress of cells takes that are added from now on.
    pub tenants: Tenants,
    /// Jobs that a shard of cells started from now on takes before it has started any; the default if not set.
    pub accepted_max: Option<usize>,
    stop: CancellationToken,
    drivers: Arc<FakeDrivers>,
    incarnations: u32,
    snapshot_bytes_min: u64,
    names: Arc<ManagerNames>,
    flaky: Arc<flaky::Flaky>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    pub async fn start(cells: usize, shards: u16, managers: &[(&str, u32, u32)]) -> Self {
        Self::start_with(cells, shards, managers, 1 << 20).await
    }
    pub async fn start_with(cells: usize, shards: u16, managers: &[(&str, u32, u32)], snapshot_bytes_min: u64) -> Self {
        Self::start_leased(cells, shards, managers, snapshot_bytes_min, Duration::from_millis(900)).await
    }
    pub async fn start_leased(
        cells: usize,
        shards: u16,
        managers: &[(&str, u32, u32)],
        snapshot_bytes_min: u64,
        lease: Duration,
    ) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let env = env::real(tokio::runtime::Handle::current());
        let dir = tempfile::tempdir().unwrap();
        let mut config = BusConfig::new(dir.path());
        config.free_bytes_min = 1 << 20;
        let bus = Embedded::open(config, env.clone()).unwrap();
        let count = ShardCount::new(shards).unwrap();
        let managers: Vec<_> =
            managers.iter().map(|(name, hosts, vcpus)| FakeManager::new(env.clone(), name, *hosts, *vcpus)).collect();
        let names = Arc::new(ManagerNames::new(managers.iter().map(|m| m.name.clone())));
        let replica = Arc::new(Replica::new(count, 7));
        let stop = CancellationToken::new();
        let flaky = Arc::new(flaky::Flaky {
            inner: bus.clone() as Arc<dyn Bus>,
            members_away: AtomicBool::new(false),
            logs_silent: Arc::default(),
            depths: flaky::Depths::default(),
        });
        let (tail, _) = Tail::new(bus.clone() as Arc<dyn Bus>, env.clone(), Arc::clone(&replica));
        env.spawn("tail", tail.run(stop.clone()));
        let process = Process::alone(env.clone(), flaky.clone() as Arc<dyn Bus>, names.clone(), replica);
        let (running, token) = (process.clone(), stop.clone());
        env.spawn("process", async move { running.run(token).await });
        let drivers = Arc::new(FakeDrivers(managers.iter().map(|m| (m.id(), Arc::clone(m))).collect()));
        let gateway = Gateway::new(process.clone());
        let mut cluster = Self {
            env,
            bus,
            managers,
            gateway,
            cells: vec![],
            process,
            lease,
            tenants: Tenants::Any,
            accepted_max: None,
            stop,
            drivers,
            incarnations: 0,
            snapshot_bytes_min,
            names,
            flaky,
            _dir: dir,
        };
        for _ in 0..cells {
            cluster.add_cell_of(cells);
        }
        if cells == 0 {
            return cluster;
        }
        cluster.until("ready", || async { cluster.gateway.ready().map_err(|e| e.to_string()) }).await;
        cluster
    }

    pub fn add_cell(&mut self) -> Handle {
        self.add_cell_of(1)
    }
    /// Starts a cell of another build, as in a process of its own that found this record, with a
    /// directory of its own. Its gateway is the cluster's from now on.
    pub fn add_cell_of_build(&mut self, build: Build, record: &ClusterRecord) -> Handle {
        let (env, stop) = (&self.env, &self.stop);
        let replica = Arc::new(Replica::new(self.process.shard_count(), 8));
        let (tail, _) = Tail::new(self.bus.clone() as Arc<dyn Bus>, env.clone(), Arc::clone(&replica));
        env.spawn("tail", tail.reading(build.formats).run(stop.clone()));
        let local = self.process.local().clone();
        let (bus, peers) = (self.flaky.clone() as Arc<dyn Bus>, Arc::new(local.clone()));
        let process = Process::new(env.clone(), bus, peers, local, self.names.clone(), replica).of_build(build, record);
        let (running, token) = (process.clone(), stop.clone());
        env.spawn("process", async move { running.run(token).await });
        self.gateway = Gateway::new(process.clone());
        self.add_cell_to(process, 1)
    }
    fn add_cell_of(&mut self, gather: usize) -> Handle {
        self.add_cell_to(self.process.clone(), gather)
    }
    fn add_cell_to(&mut self, process: Process, gather: usize) -> Handle {
        self.incarnations += 1;
        let id: CellId = format!("cell-{}", self.incarnations).parse().unwrap();
        let managers = self.managers.iter().map(|m| {
            let mut config = front::Config::new(m.name.clone());
            config.operation_timeout = Duration::from_secs(2);
            config
        });
        let mut config = cell::Config::local(id, managers.collect());
        config.lease = self.lease;
        config.runner.snapshot_bytes_min = self.snapshot_bytes_min;
        config.gather = (gather, Duration::from_secs(2));
        config.ingress = Some(self.tenants.clone());
        config.runner.limits = self.accepted_max.map(|accepted_max| {
            let defaults = cellbus_workflows::Limits::for_shards(self.process.shard_count());
            cellbus_workflows::Limits { accepted_max, ..defaults }
        });
        let (cell, handle) = Cell::new(config, process, self.drivers.clone());
        self.env.spawn("cell", cell.run(self.stop.clone()));
        self.cells.push(handle.clone());
        handle
    }

    /// Waits for a condition, and tells the last state when it does not come about.
    pub async fn until<F: Future<Output = Result<(), String>>>(&self, what: &str, mut check: impl FnMut() -> F) {
        let mut last = String::new();
        for _ in 0..1500 {
            match check().await {
                Ok(()) => return,
                Err(state) => last = state,
            }
            self.env.sleep(Duration::from_millis(20)).await;
        }
        panic!("{what}: still {last}");
    }

    /// The most questions for depths that were under way at once since this was last asked.
    pub fn depths_at_once(&self) -> usize {
        self.flaky.depths.most.swap(0, Ordering::SeqCst)
    }
    /// Takes membership away, or gives it back.
    pub fn members_away(&self, away: bool) {
        self.flaky.members_away.store(away, Ordering::Relaxed);
    }
    /// The bus does not say any more what is in logs, or says it again.
    pub fn logs_silent(&self, silent: bool) {
        self.flaky.logs_silent.store(silent, Ordering::Relaxed);
    }
    /// The way in of another process, which has no trouble with the bus.
    pub fn elsewhere(&self) -> Gateway {
        let replica = Arc::new(Replica::new(self.process.shard_count(), 9));
        let process = Process::alone(self.env.clone(), self.bus.clone() as Arc<dyn Bus>, self.names.clone(), replica);
        let (running, token) = (process.clone(), self.stop.clone());
        self.env.spawn("process", async move { running.run(token).await });
        Gateway::new(process)
    }
    pub fn vms(&self) -> BTreeSet<VmId> {
        self.managers.iter().flat_map(|m| m.vms()).collect()
    }
    pub fn made_twice(&self) -> usize {
        self.managers.iter().map(|m| m.made_twice()).sum()
    }
}

pub fn job(kind: &str, id: &str, subject: Option<&str>, data: serde_json::Value) -> Arc<Job> {
    let mut event = serde_json::json!({
        "specversion": "1.0", "id": id, "source": "/test", "type": format!("io.cellbus.job.{kind}.v1"), "tenant": "acme",
        "datacontenttype": "application/json", "data": data,
    });
    if let Some(subject) = subject {
        event["subject"] = subject.into();
    }
    let rule = TenantRule { from: TenantFrom::Attribute, known: &Tenants::Any };
    Arc::new(parse_structured(event.to_string().as_bytes(), rule, &EventLimits::default()).unwrap())
}

pub fn provision(id: &str) -> Arc<Job> {
    job(
        "provision",
        id,
        None,
        serde_json::json!({"name": "web", "vcpus": 1, "memory_mib": 1024, "disk_gib": 10, "image": "debian-12"}),
    )
}

pub fn size(vcpus: u32) -> Size {
    Size { vcpus, memory_mib: 1024, disk_gib: 10 }
}
pub fn host(name: &str) -> HostId {
    name.parse().unwrap()
}
pub fn op(n: u64) -> OpNumber {
    OpNumber(n)
}
