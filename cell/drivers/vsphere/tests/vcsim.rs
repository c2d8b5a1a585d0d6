//! The driver at `vcsim`, the simulator of govmomi (`ops/setup/vcsim`, whose path `CELLBUS_VCSIM` holds):
//! the conformance suite, and what a vCenter has beside. What vcsim cannot show is said in
//! `ops/docs/vsphere.md`.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::VmId;
use cellbus_cell::config::{Config, File, Sources};
use cellbus_cell::driver::{Connect, Driver, Factory as _, conformance};
use cellbus_directory::vm::PowerState;
use cellbus_vsphere::VsphereFactory;
use cellbus_vsphere::vcsim::Vcsim;

#[path = "vcsim/adoption.rs"]
mod adoption;
#[path = "vcsim/ha.rs"]
mod ha;
#[path = "vcsim/looking.rs"]
mod looking;
#[path = "vcsim/own.rs"]
mod own;
#[path = "vcsim/storage.rs"]
mod storage;

fn env() -> Env {
    cellbus_bus::env::real(tokio::runtime::Handle::current())
}

fn manager(vcsim: &Vcsim, more: &str) -> Arc<dyn Connect> {
    connect(vcsim.config("vc", more))
}

fn connect(text: String) -> Arc<dyn Connect> {
    let file = Some(File { name: "cellbus.toml".to_owned(), text });
    let config = Config::load(Sources { file, ..Sources::default() }).unwrap();
    VsphereFactory.manager(&config.managers[0], &env()).unwrap()
}

struct Rig {
    vcsim: Arc<Vcsim>,
    manager: Arc<dyn Connect>,
    strangers: AtomicU32,
}

#[async_trait]
impl conformance::Rig for Rig {
    fn env(&self) -> Env {
        env()
    }
    async fn connect(&self) -> Arc<dyn Driver> {
        self.manager.connect()
    }
    fn faults(&self) -> Option<Arc<dyn conformance::Faults>> {
        Some(Arc::new(Controls(Arc::clone(&self.vcsim))))
    }
    /// It forgets everything: `own::a_vcenter_that_came_back_empty_is_left_alone` is about that.
    async fn restart(&self) -> bool {
        false
    }
    async fn stranger(&self) -> bool {
        let number = self.strangers.fetch_add(1, Ordering::Relaxed);
        let _ = self.vcsim.control(&format!("/stranger?name=theirs-{number}&annotation=by+hand"));
        true
    }
}

struct Controls(Arc<Vcsim>);

#[async_trait]
impl conformance::Faults for Controls {
    async fn slow(&self, by: Duration) {
        let _ = self.0.control(&format!("/slow?ms={}", by.as_millis()));
    }
    async fn lose_next_answer(&self) {
        let _ = self.0.control("/lose");
    }
    async fn fail_next(&self) {
        let _ = self.0.control("/fail?fault=HostCommunication");
    }
    async fn down(&self) {
        let _ = self.0.control("/down");
    }
    async fn heal(&self) {
        let _ = self.0.control("/heal");
    }
    async fn set_power(&self, vm: VmId, power: PowerState) {
        let _ = self.0.control(&format!("/power?vm={vm}&on={}", power == PowerState::Running));
    }
    async fn delete_vm(&self, vm: VmId) {
        let _ = self.0.control(&format!("/delete?vm={vm}"));
    }
    async fn restarts(&self, vm: VmId) -> u32 {
        self.0.control(&format!("/calls?method=ResetVM_Task&vm={vm}")).parse().unwrap()
    }
}

/// At a vcsim of its own, if there is one.
fn rig() -> Option<Rig> {
    let vcsim = Vcsim::start(&[])?;
    let manager = manager(&vcsim, "");
    Some(Rig { vcsim: Arc::new(vcsim), manager, strangers: AtomicU32::new(0) })
}

mod conforms {
    // A vCenter takes no copies of other managers' VMs yet (`own::no_copy_is_pretended`).
    cellbus_cell::driver_conformance!(super::rig(), left_out: [a_copy_brings_its_snapshots]);
}
