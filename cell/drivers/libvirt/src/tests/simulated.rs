//! On libvirt's test driver: two hosts in this process, without networks, and without disks, whose
//! resizing it lacks.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, HostId, JobId, OpNumber, VmId};
use cellbus_bus::job::{Labels, Policy, Power, Size, StopMode};
use cellbus_cell::config::{Libvirt, LibvirtDomain, LibvirtHost};
use cellbus_cell::driver::{Driver, Error, Op, conformance};
use cellbus_directory::VmFacts;
use cellbus_directory::vm::{PowerState, Template};
use cellbus_workflows::{Action, CreateSpec};

use crate::calls;
use crate::driver::{LibvirtDriver, Manager};

const NODE: &str = "<node><cpu><mhz>2000</mhz><model>x86_64</model><active>16</active><nodes>1</nodes>\
                    <sockets>1</sockets><cores>16</cores><threads>1</threads></cpu><memory>67108864</memory></node>";

fn env() -> Env {
    cellbus_bus::env::real(tokio::runtime::Handle::current())
}

pub(super) struct Rig {
    manager: Arc<Manager>,
    _dir: tempfile::TempDir,
}

pub(super) fn rig(hosts: u32) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node.xml");
    std::fs::write(&node, NODE).unwrap();
    let host = |index| LibvirtHost {
        name: format!("h{index}").parse().unwrap(),
        uri: format!("test://{}", node.display()),
        out: false,
    };
    let config = Libvirt {
        hosts: (0..hosts).map(host).collect(),
        domain: LibvirtDomain::Test,
        pool: None,
        images: None,
        network: None,
        boot: None,
        console_dir: None,
        host_disk_gib: 10_240,
        shared_storage: false,
        cold_moves: true,
        stop_grace: Duration::from_secs(60),
    };
    Rig { manager: Arc::new(Manager::new(&"racks".parse().unwrap(), &config, (1.0, 1.0), env())), _dir: dir }
}

impl Rig {
    fn driver(&self) -> LibvirtDriver {
        LibvirtDriver::new(Arc::clone(&self.manager))
    }
}

#[async_trait]
impl conformance::Rig for Rig {
    fn env(&self) -> Env {
        env()
    }
    async fn connect(&self) -> Arc<dyn Driver> {
        Arc::new(self.driver())
    }
    fn faults(&self) -> Option<Arc<dyn conformance::Faults>> {
        Some(Arc::new(Hooks(Arc::clone(&self.manager))))
    }
    /// The test driver forgets everything when its last connection is closed.
    async fn restart(&self) -> bool {
        false
    }
}

struct Hooks(Arc<Manager>);

impl Hooks {
    /// Past the driver, on the host that has the VM.
    fn beside(&self, vm: VmId, change: impl Fn(&virt::domain::Domain)) {
        let at = self.0.hosts.all.iter().find_map(|host| {
            let connection = host.connected().unwrap();
            calls::handle(&connection, vm).ok()
        });
        change(&at.expect("the VM is there"));
    }
}

#[async_trait]
impl conformance::Faults for Hooks {
    async fn slow(&self, by: Duration) {
        self.0.hosts.trouble.slow(by);
    }
    async fn lose_next_answer(&self) {
        self.0.hosts.trouble.lose_after(0);
    }
    async fn fail_next(&self) {
        self.0.hosts.trouble.fail_next();
    }
    async fn down(&self) {
        self.0.hosts.trouble.down();
    }
    async fn heal(&self) {
        self.0.hosts.trouble.heal();
    }
    async fn set_power(&self, vm: VmId, power: PowerState) {
        self.beside(vm, |domain| match power {
            PowerState::Running => drop(domain.create().unwrap()),
            PowerState::Stopped => domain.destroy().unwrap(),
            PowerState::Suspended => drop(domain.suspend().unwrap()),
        });
    }
    async fn delete_vm(&self, vm: VmId) {
        self.beside(vm, |domain| {
            domain.destroy().unwrap();
            domain.undefine().unwrap();
        });
    }
    async fn restarts(&self, vm: VmId) -> u32 {
        self.0.hosts.trouble.restarts(vm)
    }
}

// All but the copies of a migrate between managers, which this driver refuses.
cellbus_cell::driver_conformance!(rig(2);
    nothing_is_done_before_open, a_newer_session_revokes_the_older, what_is_made_is_there,
    a_number_is_done_once, lower_numbers_are_refused, a_delete_leaves_a_tombstone,
    a_delete_of_nothing_leaves_a_tombstone, callers_of_one_number_share_its_end, a_dropped_call_is_found_again,
    power_follows_the_rules, a_restart_happens_once_a_number, snapshots_are_kept_with_the_vm,
    disks_only_grow, a_vm_moves_between_hosts, a_full_host_takes_no_more, hosts_that_are_not_there_take_nothing,
    the_id_belongs_to_one_vm, what_is_not_there_is_not_found,
    many_vms_are_made_at_once, running_tasks_outlive_their_session, a_lost_answer_is_found_again,
    a_passing_failure_leaves_nothing, a_manager_that_is_down_says_nothing, changes_by_others_are_heard,
    a_revoked_listener_is_told, what_was_answered_outlives_a_restart,
);
