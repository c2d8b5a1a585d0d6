//! The simulated driver keeps the promises of the driver trait, with and without latency.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::{ManagerId, VmId};
use cellbus_cell::driver::Driver;
use cellbus_cell::driver::conformance;
use cellbus_directory::vm::PowerState;
use cellbus_simulator::managers::{Config, Fault, Faults, Latency};
use cellbus_simulator::{Fleet, Inventory};

fn env() -> Env { cellbus_bus::env::real(tokio::runtime::Handle::current()) }

struct Rig {
    config: Config,
    manager: ManagerId,
    fleet: Mutex<Arc<Fleet>>,
    _dir: tempfile::TempDir,
}

async fn rig(latency: Latency) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        dir: Some(dir.path().join("managers")), latency, seed: Some(1), ..Config::new(Inventory::generate(3, 1).unwrap())
    };
    let fleet = Fleet::open(config.clone(), env()).await.unwrap();
    let manager = config.inventory.managers[0].id();
    Rig { config, manager, fleet: Mutex::new(fleet), _dir: dir }
}

impl Rig {
    fn fleet(&self) -> Arc<Fleet> { Arc::clone(&self.fleet.lock().unwrap()) }
}

#[async_trait]
impl conformance::Rig for Rig {
    fn env(&self) -> Env { env() }
    async fn connect(&self) -> Arc<dyn Driver> { self.fleet().driver(self.manager).unwrap() }
    fn faults(&self) -> Option<Arc<dyn conformance::Faults>> {
        let fleet = self.fleet();
        Some(Arc::new(Hooks { faults: fleet.faults(self.manager).unwrap(), fleet, manager: self.manager }))
    }
    async fn restart(&self) -> bool {
        self.fleet().close().await;
        let again = Fleet::open(self.config.clone(), env()).await.unwrap();
        *self.fleet.lock().unwrap() = again;
        true
    }
}

struct Hooks {
    fleet: Arc<Fleet>,
    faults: Faults,
    manager: ManagerId,
}

#[async_trait]
impl conformance::Faults for Hooks {
    async fn slow(&self, by: Duration) { self.faults.slow(by); }
    async fn lose_next_answer(&self) { self.faults.next(Fault::AnswerLost, 1); }
    async fn fail_next(&self) { self.faults.next(Fault::Transient, 1); }
    async fn down(&self) { self.faults.down(); }
    async fn heal(&self) { self.faults.heal(); }
    async fn set_power(&self, vm: VmId, power: PowerState) { assert!(self.faults.set_power(vm, power)); }
    async fn delete_vm(&self, vm: VmId) { assert!(self.faults.delete_vm(vm)); }
    async fn restarts(&self, vm: VmId) -> u32 { self.fleet.truth().restarts.get(&(self.manager, vm)).copied().unwrap_or(0) }
}

mod without_latency {
    use super::*;
    cellbus_cell::driver_conformance!(rig(Latency::None).await);
}

mod with_latency {
    use super::*;
    cellbus_cell::driver_conformance!(rig(Latency::Fast).await);
}
