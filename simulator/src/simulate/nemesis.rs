//! Whoever makes the faults: one task for each kind, each with its own stream of chance, until the
//! run heals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cellbus_bus::env::Env;
use cellbus_bus::ids::{HostId, ManagerId, VmId};
use cellbus_directory::record::Operator;
use cellbus_directory::vm::PowerState;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::amnesia::Amnesia;
use super::bus::{self, Forgets, SimulatedBus};
use super::cells::Cells;
use super::disk::DiskFault;
use super::executor::{Executor, NodeId};
use super::faults::{FaultKind, Faults};
use super::history::History;
use super::managers::{self, Links};
use super::network::{self, Network};
use super::producers::Producers;
use super::scaling::Scaling;
use crate::managers::{Fault, Fleet};

/// How long an operator waits for an answer.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How it is when nothing is wrong: everything takes a little.
pub(super) const BUS_CALM: bus::Weather =
    bus::Weather { delay_max: Duration::from_micros(1_500), loss: 0.0, full: 0.0, late: 0.0 };
pub(super) const NETWORK_CALM: network::Weather =
    network::Weather { delay_max: Duration::from_micros(1_000), loss: 0.0, duplicates: 0.0, late: 0.0 };
pub(super) const MANAGERS_CALM: managers::Weather =
    managers::Weather { delay_max: Duration::from_micros(1_000), loss: 0.0, late: 0.0 };

/// Everything that can be made to fail.
pub(super) struct Nemesis {
    pub(super) env: Env,
    pub(super) executor: Arc<Executor>,
    pub(super) bus: SimulatedBus,
    pub(super) network: Arc<Network>,
    pub(super) links: Arc<Links>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) cells: Arc<Cells>,
    pub(super) producers: Arc<Producers>,
    pub(super) history: Arc<History>,
    pub(super) amnesia: Amnesia,
    pub(super) scaling: Scaling,
    /// The nodes that cells run on at first.
    pub(super) nodes: Vec<NodeId>,
    pub(super) healing: AtomicBool,
    pub(super) made: AtomicU64,
}

pub(super) fn operator() -> Operator {
    Operator { who: "simulated operator".to_owned(), from: "simulation".to_owned() }
}

/// How long it is between two faults of a kind on average, at the usual rate.
fn every(kind: FaultKind) -> f64 {
    match kind {
        FaultKind::Crash => 18.0,
        FaultKind::Pause => 20.0,
        FaultKind::Clock => 15.0,
        FaultKind::Partition => 20.0,
        FaultKind::Network => 15.0,
        FaultKind::Bus => 20.0,
        FaultKind::Managers => 6.0,
        FaultKind::Hosts => 20.0,
        FaultKind::Behind => 8.0,
        FaultKind::Power => 60.0,
        FaultKind::Operators => 10.0,
        FaultKind::Members => 25.0,
        FaultKind::Disk => 15.0,
        FaultKind::Backup => 40.0,
        FaultKind::Amnesia => 30.0,
        FaultKind::Autoscaler => 6.0,
        FaultKind::Stops => 30.0,
    }
}

impl Nemesis {
    /// Starts a task for each kind of fault.
    pub(super) fn begin(self: &Arc<Self>, faults: &Faults, seed: u64) {
        for kind in faults.kinds() {
            let this = Arc::clone(self);
            let rate = faults.rate(kind);
            let mut rng = SmallRng::seed_from_u64(seed ^ (0xfa17 + kind as u64) << 17);
            self.env.spawn("faults", async move {
                loop {
                    let pause = -(1.0 - rng.random::<f64>()).ln() * every(kind) / rate;
                    this.env.sleep(Duration::from_secs_f64(pause.min(3_600.0))).await;
                    if this.healing() {
                        return;
                    }
                    this.made.fetch_add(1, Ordering::Relaxed);
                    this.executor.note(kind.as_str(), 0);
                    this.one(kind, &mut rng).await;
                }
            });
        }
    }

    pub(super) fn healing(&self) -> bool {
        self.healing.load(Ordering::Relaxed)
    }
    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        self.history.add(self.executor.now(), || format!("*fault: {}", what()));
    }
    /// Waits for a while between these, or until it heals.
    pub(super) async fn while_(&self, rng: &mut SmallRng, from: f64, to: f64) {
        let mut left = rng.random_range(from..to);
        while left > 0.0 && !self.healing() {
            self.env.sleep(Duration::from_secs_f64(left.min(1.0))).await;
            left -= 1.0;
        }
    }
    pub(super) fn cell(&self, rng: &mut SmallRng) -> Option<NodeId> {
        self.cells.all().choose(rng).map(|cell| cell.node)
    }
    pub(super) fn manager(&self, rng: &mut SmallRng) -> Option<(ManagerId, HostId)> {
        let manager = self.fleet.inventory().managers.choose(rng)?;
        Some((manager.id(), manager.hosts.choose(rng)?.id.clone()))
    }

    async fn one(&self, kind: FaultKind, rng: &mut SmallRng) {
        match kind {
            FaultKind::Crash => {
                let Some(node) = self.cell(rng) else { return };
                self.cells.crash(node);
                self.while_(rng, 0.05, 20.0).await;
                if self.cells.get(node).is_none() {
                    self.cells.start(node);
                }
            }
            FaultKind::Pause => {
                let Some(node) = self.cell(rng) else { return };
                self.say(|| format!("{node:?} stands still"));
                self.executor.pause(node);
                self.while_(rng, 0.3, 15.0).await;
                self.say(|| format!("{node:?} goes on"));
                self.executor.resume(node);
            }
            FaultKind::Clock => {
                let Some(node) = self.cell(rng) else { return };
                let (ppm, off) = (rng.random_range(-100_000..100_000), rng.random_range(-20_000..20_000));
                let wall = rng.random_bool(0.3);
                self.say(|| format!("{node:?} runs {ppm} ppm fast, wall clock {off} ms off: {wall}"));
                self.executor.set_clock(node, |clock, now| {
                    clock.run_faster_ppm(now, ppm);
                    if wall {
                        clock.set_wall_off_ms(off);
                    }
                });
            }
            FaultKind::Partition => self.partition(rng).await,
            FaultKind::Network => {
                let (loss, duplicates, late) =
                    (rng.random_range(0.0..0.15), rng.random_range(0.0..0.15), rng.random_range(0.0..0.15));
                let delay_max = Duration::from_millis(rng.random_range(1..200));
                self.say(|| format!("network: loss {loss:.2}, copies {duplicates:.2}, late {late:.2}"));
                self.network.set_weather(network::Weather { delay_max, loss, duplicates, late });
                self.links.set_weather(managers::Weather { delay_max, loss: loss / 3.0, late: late / 2.0 });
                self.while_(rng, 2.0, 20.0).await;
                self.network.set_weather(NETWORK_CALM);
                self.links.set_weather(MANAGERS_CALM);
                self.say(|| "network: calm".to_owned());
            }
            FaultKind::Bus => {
                if rng.random_bool(0.5) {
                    let (loss, full, late) =
                        (rng.random_range(0.0..0.2), rng.random_range(0.0..0.2), rng.random_range(0.0..0.3));
                    let delay_max = Duration::from_millis(rng.random_range(1..300));
                    self.say(|| format!("bus: loss {loss:.2}, full {full:.2}, late {late:.2}, {delay_max:?}"));
                    self.bus.set_weather(bus::Weather { delay_max, loss, full, late });
                    self.while_(rng, 2.0, 15.0).await;
                    self.bus.set_weather(BUS_CALM);
                    self.say(|| "bus: calm".to_owned());
                } else {
                    self.say(|| "bus: down".to_owned());
                    self.bus.stop();
                    self.while_(rng, 0.05, 10.0).await;
                    self.bus.start();
                    self.say(|| "bus: up".to_owned());
                }
            }
            FaultKind::Managers => self.trouble_a_manager(rng).await,
            FaultKind::Hosts => {
                let Some((manager, host)) = self.manager(rng) else { return };
                let Some(faults) = self.fleet.faults(manager) else { return };
                match rng.random_range(0..5) {
                    0 => {
                        self.say(|| format!("host {host} is lost"));
                        self.loosen(|at, of| at == manager && *of == host, "its host was lost");
                        faults.lose_host(&host);
                    }
                    1 => {
                        self.say(|| format!("host {host} is in maintenance"));
                        faults.maintain_host(&host);
                    }
                    4 => return self.lose_power_of_host(rng, manager, host, &faults).await,
                    n => {
                        self.say(|| format!("host {host} does not answer"));
                        faults.silence_host(&host);
                        if n == 3 {
                            self.while_(rng, 1.0, 10.0).await;
                            self.say(|| format!("host {host} is off for certain"));
                            self.loosen(|at, of| at == manager && *of == host, "its host was off");
                            faults.fence_host(&host);
                        }
                    }
                }
                self.while_(rng, 2.0, 30.0).await;
                faults.restore_host(&host);
                self.say(|| format!("host {host} is back"));
            }
            FaultKind::Behind => self.change_a_vm(rng),
            FaultKind::Power => self.lose_power(rng).await,
            FaultKind::Operators => self.operate(rng).await,
            FaultKind::Disk => self.trouble_a_disk(rng).await,
            FaultKind::Backup => self.restore_a_manager(rng).await,
            FaultKind::Amnesia => {
                let image = self.bus.image();
                self.while_(rng, 0.2, 15.0).await;
                if self.healing() {
                    return;
                }
                let what = [Forgets::Everything, Forgets::Logs, Forgets::Queues][rng.random_range(0..3)];
                let down_for = (0.05, [0.1, 10.0][rng.random_range(0..2)]);
                self.bus.stop();
                self.amnesia.strike(&self.bus, &self.cells, image, what);
                self.say(|| format!("bus: down, and put back: {what:?}"));
                self.while_(rng, down_for.0, down_for.1).await;
                self.bus.start();
                self.say(|| "bus: up".to_owned());
            }
            FaultKind::Autoscaler => self.autoscale(rng).await,
            FaultKind::Stops => self.stop_work(rng).await,
            FaultKind::Members => {
                if rng.random_bool(0.5) {
                    let node = self.executor.add_node();
                    self.cells.start(node);
                } else if self.cells.all().len() > 1
                    && let Some(cell) = self.cell(rng).and_then(|node| self.cells.get(node))
                {
                    self.say(|| format!("{} drains", cell.id));
                    cell.handle.drain();
                    self.while_(rng, 25.0, 40.0).await;
                    // If it is still that one.
                    if self.cells.get(cell.node).is_some_and(|now| now.id == cell.id) {
                        self.cells.remove(cell.node);
                    }
                    if self.nodes.contains(&cell.node) && self.cells.get(cell.node).is_none() {
                        self.cells.start(cell.node);
                    }
                }
            }
        }
    }

    /// Its cell dies with most of these, since that is when a checkpoint is read.
    async fn trouble_a_disk(&self, rng: &mut SmallRng) {
        let Some(node) = self.cell(rng) else { return };
        let disk = self.cells.disk(node);
        let fault = match rng.random_range(0..4) {
            0 => Some(DiskFault::Fails([0.1, 0.5, 1.0][rng.random_range(0..3)])),
            1 => Some(DiskFault::StopsAfter(rng.random_range(0..20))),
            2 => Some(DiskFault::Lies),
            _ => None,
        };
        self.say(|| format!("the disk of {node:?}: {fault:?}"));
        disk.set_fault(fault);
        self.while_(rng, 1.0, 15.0).await;
        let crashes = fault.is_none() || rng.random_bool(0.8);
        let crashed = crashes && self.cells.get(node).is_some();
        if crashed {
            self.cells.crash(node);
            if fault.is_none() {
                let rotten = (0..rng.random_range(1..4)).filter(|_| disk.rot(rng)).count();
                self.say(|| format!("{rotten} values on the disk of {node:?} rot"));
            }
            self.while_(rng, 0.05, 3.0).await;
        }
        // Some disks are no better when the cell comes back.
        if rng.random_bool(0.8) {
            disk.set_fault(None);
        }
        if crashed && self.cells.get(node).is_none() {
            self.cells.start(node);
        }
    }

    async fn partition(&self, rng: &mut SmallRng) {
        let Some(node) = self.cell(rng) else { return };
        let others: Vec<NodeId> =
            self.cells.all().iter().map(|cell| cell.node).filter(|other| *other != node).collect();
        let (bus, managers) = (rng.random_bool(0.4), rng.random_bool(0.4));
        let (out, back) = (rng.random_bool(0.6), rng.random_bool(0.6));
        let from: Vec<NodeId> = others.into_iter().filter(|_| rng.random_bool(0.7)).collect();
        self.say(|| format!("{node:?} is cut off: bus {bus}, managers {managers}, out {out}, in {back} of {from:?}"));
        let cut = |cut: bool| {
            if bus {
                self.bus.cut(node, cut);
            }
            if managers {
                self.links.cut(node, cut);
            }
            for other in &from {
                if out {
                    self.network.cut(node, *other, cut);
                }
                if back {
                    self.network.cut(*other, node, cut);
                }
            }
        };
        cut(true);
        self.while_(rng, 0.5, 15.0).await;
        cut(false);
        self.say(|| format!("{node:?} is back"));
    }

    async fn trouble_a_manager(&self, rng: &mut SmallRng) {
        let Some((manager, _)) = self.manager(rng) else { return };
        let Some(faults) = self.fleet.faults(manager) else { return };
        let what = rng.random_range(0..6);
        self.say(|| {
            format!(
                "manager {manager}: {}",
                ["errors", "lasting errors", "lost answers", "hangs", "down", "slow"][what]
            )
        });
        match what {
            0 => faults.rate(Fault::Transient, rng.random_range(0.05..0.8)),
            1 => faults.next(Fault::Permanent, rng.random_range(1..3)),
            2 => faults.rate(Fault::AnswerLost, rng.random_range(0.05..0.8)),
            3 => faults.hang(),
            4 => faults.down(),
            _ => faults.slow(Duration::from_secs_f64(rng.random_range(0.1..70.0))),
        }
        self.while_(rng, 0.5, 25.0).await;
        faults.heal();
        self.say(|| format!("manager {manager}: well"));
    }

    /// What becomes of VMs at these hosts can no longer be told from their jobs.
    pub(super) fn loosen(&self, at: impl Fn(ManagerId, &HostId) -> bool, why: &'static str) -> Vec<VmId> {
        let truth = self.fleet.truth();
        let mut pages = self.producers.books.pages();
        let mut there = Vec::new();
        for (manager, vms) in &truth.managers {
            for held in vms.iter().filter(|held| at(*manager, &held.facts.host)) {
                if let Some(vm) = pages.vms.get_mut(&held.id) {
                    vm.loose = Some(why);
                }
                there.push(held.id);
            }
        }
        there
    }

    fn change_a_vm(&self, rng: &mut SmallRng) {
        let truth = self.fleet.truth();
        let held: Vec<(ManagerId, VmId)> =
            truth.managers.iter().flat_map(|(manager, vms)| vms.iter().map(|vm| (*manager, vm.id))).collect();
        let Some((manager, vm)) = held.choose(rng).copied() else { return };
        let Some(faults) = self.fleet.faults(manager) else { return };
        if let Some(known) = self.producers.books.pages().vms.get_mut(&vm) {
            known.loose = Some("it was changed behind our back");
        }
        match rng.random_range(0..4) {
            0 => {
                self.say(|| format!("somebody deletes VM {vm}"));
                faults.delete_vm(vm);
            }
            1 => {
                self.say(|| format!("somebody suspends VM {vm}"));
                faults.set_power(vm, PowerState::Suspended);
            }
            2 => {
                self.say(|| format!("somebody starts VM {vm}"));
                faults.set_power(vm, PowerState::Running);
            }
            _ => {
                self.say(|| format!("somebody stops VM {vm}"));
                faults.set_power(vm, PowerState::Stopped);
            }
        }
    }

    /// It is away meanwhile, or not, as it is with a restore.
    async fn restore_a_manager(&self, rng: &mut SmallRng) {
        let Some((manager, _)) = self.manager(rng) else { return };
        let Some(faults) = self.fleet.faults(manager) else { return };
        let backup = faults.backup();
        self.while_(rng, 1.0, 20.0).await;
        if self.healing() {
            return;
        }
        if rng.random_bool(0.5) {
            faults.down();
            self.while_(rng, 0.5, 5.0).await;
        }
        if self.healing() {
            return faults.heal();
        }
        let did = faults.restore(&backup);
        self.say(|| format!("manager {manager} comes back from a backup: {did:?}"));
        let mut pages = self.producers.books.pages();
        for vm in did.back.iter().chain(&did.gone).chain(&did.changed) {
            if let Some(known) = pages.vms.get_mut(vm) {
                known.loose = Some("its manager came back from a backup");
                known.restored = true;
            }
        }
        drop(pages);
        faults.heal();
    }

    async fn lose_power(&self, rng: &mut SmallRng) {
        // Every third host, from a random one on.
        let from = rng.random_range(0..3_usize);
        let mut domain: Vec<(ManagerId, HostId)> = Vec::new();
        for manager in &self.fleet.inventory().managers {
            let hosts = manager.hosts.iter().skip(from).step_by(3);
            domain.extend(hosts.map(|host| (manager.id(), host.id.clone())));
        }
        self.say(|| format!("{} hosts lose power", domain.len()));
        let hosts: std::collections::BTreeSet<(ManagerId, HostId)> = domain.iter().cloned().collect();
        let vms = self.loosen(|manager, host| hosts.contains(&(manager, host.clone())), "its host lost power");
        for (manager, host) in &domain {
            let Some(faults) = self.fleet.faults(*manager) else { continue };
            faults.maintain_host(host);
            for vm in &vms {
                faults.set_power(*vm, PowerState::Stopped);
            }
        }
        self.while_(rng, 2.0, 30.0).await;
        for (manager, host) in &domain {
            if let Some(faults) = self.fleet.faults(*manager) {
                faults.restore_host(host);
            }
        }
        self.say(|| format!("{} hosts have power again, and {} VMs are to start", domain.len(), vms.len()));
        self.producers.start_all(&vms);
    }

    async fn operate(&self, rng: &mut SmallRng) {
        let Some(cell) = self.cell(rng).and_then(|node| self.cells.get(node)) else { return };
        let Some((manager, host)) = self.manager(rng) else { return };
        match rng.random_range(0..3) {
            0 => {
                self.say(|| format!("host {host} is cordoned"));
                for cordoned in [true, false] {
                    let host = host.clone();
                    let ask = move |gateway: cellbus_cell::Gateway| async move {
                        gateway.cordon_host(manager, host, cordoned, operator()).await.is_ok()
                    };
                    self.cells.ask(&self.env, &cell, ANSWER_LIMIT, ask).await;
                    self.while_(rng, 1.0, 15.0).await;
                }
            }
            1 => {
                self.say(|| format!("manager {manager} is cordoned"));
                for cordoned in [true, false] {
                    let ask = move |gateway: cellbus_cell::Gateway| async move {
                        gateway.cordon_manager(manager, cordoned, operator()).await.is_ok()
                    };
                    self.cells.ask(&self.env, &cell, ANSWER_LIMIT, ask).await;
                    self.while_(rng, 1.0, 10.0).await;
                }
            }
            _ => {
                let Some(job) = self.producers.some_open_job() else { return };
                self.say(|| format!("job {job} is called off by an operator"));
                let ask = move |gateway: cellbus_cell::Gateway| async move {
                    gateway.cancel_job(job, None, operator()).await.is_ok()
                };
                self.cells.ask(&self.env, &cell, ANSWER_LIMIT, ask).await;
            }
        }
    }

    /// Ends every fault: what is broken is mended, whoever is dead is started again.
    pub(super) fn heal(&self) {
        self.healing.store(true, Ordering::Relaxed);
        self.say(|| "everything is mended".to_owned());
        self.executor.note("heal", 0);
        self.scaling.end();
        self.bus.set_weather(BUS_CALM);
        self.bus.hear_again();
        self.bus.start();
        self.network.set_weather(NETWORK_CALM);
        self.network.mend();
        self.links.set_weather(MANAGERS_CALM);
        for manager in &self.fleet.inventory().managers {
            if let Some(faults) = self.fleet.faults(manager.id()) {
                faults.heal();
                manager.hosts.iter().for_each(|host| {
                    faults.restore_host(&host.id);
                });
            }
        }
        let mut nodes: Vec<NodeId> = self.cells.all().iter().map(|cell| cell.node).collect();
        nodes.extend(&self.nodes);
        nodes.sort_unstable();
        nodes.dedup();
        for node in nodes {
            self.cells.disk(node).set_fault(None);
            self.bus.cut(node, false);
            self.links.cut(node, false);
            self.executor.set_clock(node, |clock, now| clock.run_faster_ppm(now, 0));
            if self.executor.paused(node) {
                self.executor.resume(node);
            }
            if self.nodes.contains(&node) && self.cells.get(node).is_none() {
                self.cells.start(node);
            }
        }
    }
}
