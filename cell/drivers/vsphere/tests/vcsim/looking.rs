//! A manager that is read-only: an account that may only read is enough, and nothing is left there.

use std::sync::Arc;

use cellbus_bus::ids::Epoch;
use cellbus_bus::job::StopMode;
use cellbus_cell::driver::conformance::op;
use cellbus_cell::driver::{Change, Driver, Error};
use cellbus_workflows::Action;

use super::adoption::adopt;
use super::own::{SOON, create, opened, vm};
use super::{Vcsim, env, manager};

/// Whatever would change something at a vCenter.
fn nothing_was_changed(vcsim: &Vcsim) {
    for method in
        ["CreateFolder", "Rename_Task", "ReconfigVM_Task", "CreateVM_Task", "TerminateSession", "Destroy_Task"]
    {
        assert_eq!(vcsim.control(&format!("/calls?method={method}")), "0", "{method}");
    }
}

#[tokio::test]
async fn an_account_that_may_only_read_is_enough_to_look() {
    // Nor need there be a folder yet.
    let Some(vcsim) = Vcsim::start(&["-vms", "2", "-folder", ""]) else { return };
    let _ = vcsim.control("/forbid");
    let driver = manager(&vcsim, "").connect();
    assert_eq!(driver.look(Epoch(1)).await, Ok(Vec::new()));
    let inventory = driver.inventory().await.unwrap();
    assert_eq!((inventory.hosts.len(), inventory.vms.len(), inventory.foreign_vms), (2, 0, 2));
    let found = driver.foreign().await.unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(driver.inspect(vm(0)).await, Ok(None));
    assert_eq!(driver.tasks().await, Ok(Vec::new()));
    // It is listened to; a session that lapsed is renewed.
    let _ = vcsim.control(&format!("/host?host={}&maintenance=true", inventory.hosts[0].id));
    let told = async { while !driver.changes().await.unwrap().contains(&Change::Hosts) {} };
    env().timeout(SOON, told).await.expect("hosts changed");
    let _ = vcsim.control("/fail?fault=NotAuthenticated&method=CreateContainerView");
    assert_eq!(driver.inventory().await.unwrap().hosts.iter().filter(|host| host.usable).count(), 1);
    // Nothing else.
    for refused in [
        driver.perform(&adopt(vm(0), 1, &found[0])).await.err(),
        driver.perform(&create(0, 1, &inventory.hosts[1].id)).await.err(),
        driver.mark().await.err(),
    ] {
        assert_eq!(refused, Some(Error::Revoked));
    }
    nothing_was_changed(&vcsim);
}

#[tokio::test]
async fn to_use_it_takes_more_which_is_said() {
    let Some(vcsim) = Vcsim::start(&["-vms", "1"]) else { return };
    let _ = vcsim.control("/forbid");
    let driver = manager(&vcsim, "").connect();
    driver.look(Epoch(1)).await.unwrap();
    let found = driver.foreign().await.unwrap();
    let refused = driver.open(Epoch(1)).await;
    let Err(Error::Permanent { detail }) = &refused else { panic!("{refused:?}") };
    for word in ["cellbus may not write into the folder cellbus", "NoPermission", "read-only"] {
        assert!(detail.contains(word), "{detail}");
    }
    // It can be looked at as before.
    assert_eq!(driver.inventory().await.unwrap().foreign_vms, 1);
    let _ = vcsim.control("/forbid?what=nothing");
    driver.open(Epoch(1)).await.unwrap();
    driver.perform(&adopt(vm(0), 1, &found[0])).await.unwrap();
    driver.perform(&op(vm(0), 2, Action::Stop(StopMode::Hard))).await.unwrap();
    let told = async { while !driver.changes().await.unwrap().contains(&Change::Vm(vm(0))) {} };
    env().timeout(SOON, told).await.expect("it is listened to in the new session");
    // Of the session that looked nothing is left.
    assert_eq!(vcsim.control("/calls?method=TerminateSession"), "1");
}

/// Somebody may be at it still, under an older epoch: to end that takes more than looking.
#[tokio::test]
async fn one_that_was_used_is_opened() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let to = manager(&vcsim, "");
    let (old, hosts) = opened(&to, 1).await;
    let next: Arc<dyn Driver> = to.connect();
    next.look(Epoch(2)).await.unwrap();
    assert_eq!(old.perform(&create(0, 1, &hosts[0])).await, Err(Error::Revoked));
    assert_eq!(to.connect().look(Epoch(1)).await, Err(Error::Revoked));
    let _ = vcsim.control("/forbid");
    let refused = to.connect().look(Epoch(3)).await;
    assert!(matches!(&refused, Err(Error::Permanent { detail }) if detail.contains("NoPermission")), "{refused:?}");
}
