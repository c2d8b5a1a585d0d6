//! The driver at `vcsim`, the simulator of govmomi (`ops/setup/vcsim`, whose path `CELLBUS_VCSIM` holds):
//! the conformance suite, and what a vCenter has beside. What vcsim cannot show is said in
//! `ops/docs/vsphere.md`.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::VmId;
use cellbus_cell::config::{Config, File, Sources};
use cellbus_cell::driver::{Connect, Driver, Factory as _, conformance};
use cellbus_directory::vm::PowerState;
use cellbus_vsphere::VsphereFactory;
use cellbus_vsphere::vcsim::Vcsim;

#[path = "vcsim/own.rs"]
mod own;

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

/// Each case of the suite at a vcsim of its own, if there is one.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let Some(vcsim) = Vcsim::start(&[]) else { return };
                let manager = manager(&vcsim, "");
                let rig = Rig { vcsim: Arc::new(vcsim), manager };
                conformance::$case(&rig).await;
            }
        )*
    };
}

mod conforms {
    use super::*;

    // Not here: `a_copy_brings_its_snapshots`, since a vCenter takes no copies of other managers' VMs yet
    // (`own::no_copy_is_pretended`).
    cases!(
        nothing_is_done_before_open,
        a_newer_session_revokes_the_older,
        what_is_made_is_there,
        a_number_is_done_once,
        lower_numbers_are_refused,
        a_delete_leaves_a_tombstone,
        a_delete_of_nothing_leaves_a_tombstone,
        callers_of_one_number_share_its_end,
        a_dropped_call_is_found_again,
        power_follows_the_rules,
        a_restart_happens_once_a_number,
        snapshots_are_kept_with_the_vm,
        disks_only_grow,
        a_vm_moves_between_hosts,
        a_full_host_takes_no_more,
        hosts_that_are_not_there_take_nothing,
        the_id_belongs_to_one_vm,
        what_is_not_there_is_not_found,
        many_vms_are_made_at_once,
        running_tasks_outlive_their_session,
        a_lost_answer_is_found_again,
        a_passing_failure_leaves_nothing,
        a_manager_that_is_down_says_nothing,
        changes_by_others_are_heard,
        a_revoked_listener_is_told,
        what_was_answered_outlives_a_restart,
    );
}
