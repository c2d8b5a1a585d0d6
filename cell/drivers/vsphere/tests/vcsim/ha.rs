//! vSphere HA: it starts the VMs of a host that died, and Cellbus follows.

use cellbus_bus::ids::OpNumber;
use cellbus_bus::job::StopMode;
use cellbus_cell::driver::conformance::op;
use cellbus_cell::driver::{Change, Error};
use cellbus_directory::vm::PowerState;
use cellbus_workflows::Action;

use super::own::{SOON, create, opened, vm};
use super::{Vcsim, env, manager};

#[tokio::test]
async fn a_vm_that_ha_started_elsewhere_is_the_same_vm() {
    let Some(vcsim) = Vcsim::start(&["-hosts", "3"]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    for index in 0..2 {
        driver.perform(&create(index, 1, &hosts[0])).await.unwrap();
    }
    let _ = vcsim.control(&format!("/failover?vm={}&to={}", vm(0), hosts[1]));
    let heard = async {
        let (mut moved, mut host) = (false, false);
        while !(moved && host) {
            let changes = driver.changes().await.unwrap();
            moved |= changes.contains(&Change::Vm(vm(0)));
            host |= changes.contains(&Change::Hosts);
        }
        loop {
            let held = driver.inspect(vm(0)).await.unwrap().expect("it is never taken for gone");
            if held.facts.host == hosts[1] && held.facts.power == PowerState::Running {
                return held;
            }
        }
    };
    let held = env().timeout(SOON, heard).await.expect("it is heard where the VM is now");
    assert_eq!(held.op, OpNumber(1), "nothing was done to it by us");

    // The host that does not respond takes nothing, and what is on it still is not moved: it may run.
    let inventory = driver.inventory().await.unwrap();
    assert!(!inventory.hosts.iter().find(|host| host.id == hosts[0]).unwrap().usable);
    assert_eq!(driver.dead_hosts().await, Ok(Vec::new()), "that is the vCenter's to know");
    let refused = driver.may_be_fenced(&hosts[0]).await;
    assert!(matches!(&refused, Err(Error::Invalid { detail }) if detail.contains("vSphere HA")), "{refused:?}");
    let on: Vec<_> = inventory.vms.iter().map(|held| (held.id, held.facts.host.clone())).collect();
    assert!(
        on.len() == 2 && on.contains(&(vm(0), hosts[1].clone())) && on.contains(&(vm(1), hosts[0].clone())),
        "{on:?}"
    );
    assert_eq!(vcsim.control("/calls?method=RelocateVM_Task"), "0");

    // Operations go where it is.
    let facts = driver.perform(&op(vm(0), 2, Action::Stop(StopMode::Hard))).await.unwrap().unwrap();
    assert_eq!((facts.host, facts.power), (hosts[1].clone(), PowerState::Stopped));
    assert_eq!(vcsim.control(&format!("/calls?method=PowerOffVM_Task&vm={}", vm(0))), "1");
}
