//! Datastores that hosts share, and networks.

use cellbus_bus::ids::HostId;
use cellbus_cell::driver::{Change, Driver, Error, Inventory, Op};

use super::own::{SOON, create, opened, vm};
use super::{Vcsim, env, manager};

fn on(store: &str, create: Op) -> Op {
    Op { datastore: Some(store.to_owned()), ..create }
}
fn seen_by(inventory: &Inventory, store: &str) -> Vec<HostId> {
    let found = inventory.datastores.iter().find(|it| it.name == store);
    found.map(|it| it.hosts.clone()).unwrap_or_default()
}
/// The inventory, once it is told that it has changed and it is so.
async fn until(driver: &dyn Driver, what: &str, so: impl Fn(&Inventory) -> bool) -> Inventory {
    let told = async {
        loop {
            while !driver.changes().await.unwrap().contains(&Change::Hosts) {}
            let inventory = driver.inventory().await.unwrap();
            if so(&inventory) {
                return inventory;
            }
        }
    };
    env().timeout(SOON, told).await.unwrap_or_else(|| panic!("{what}"))
}

#[tokio::test]
async fn datastores_are_listed_once_with_all_hosts_that_see_them() {
    let Some(vcsim) = Vcsim::start(&["-hosts", "3", "-datastores", "2"]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    let inventory = driver.inventory().await.unwrap();
    let names: Vec<&str> = inventory.datastores.iter().map(|store| store.name.as_str()).collect();
    assert_eq!(names, ["LocalDS_0", "LocalDS_1"]);
    for store in &inventory.datastores {
        assert!(store.usable && store.hosts == hosts, "{store:?}");
        // A terabyte for each host.
        assert_eq!((store.total_gib, store.free_gib), (3 << 10, 3 << 10), "{store:?}");
    }
    assert!(inventory.hosts.iter().all(|host| host.disk_gib == 0), "nothing is a host's own");

    // A disk goes where it is sent, and that is told.
    driver.perform(&on("LocalDS_1", create(0, 1, &hosts[0]))).await.unwrap();
    assert_eq!(vcsim.control(&format!("/datastore?vm={}", vm(0))), "LocalDS_1");
    let held = driver.inspect(vm(0)).await.unwrap().unwrap();
    assert_eq!(held.datastore.as_deref(), Some("LocalDS_1"));
    assert_eq!(driver.inventory().await.unwrap().vms[0].datastore.as_deref(), Some("LocalDS_1"));
    // One that has no room for it says so, whoever filled it; with nothing said, the other is taken.
    let _ = vcsim.control("/storage?datastore=LocalDS_1&mode=normal&free_gib=10");
    let refused = driver.perform(&on("LocalDS_1", create(1, 1, &hosts[1]))).await;
    let Err(Error::NoRoom { detail }) = refused else { panic!("{refused:?}") };
    assert!(detail.contains("datastore LocalDS_1") && detail.contains("10 GiB free"), "{detail}");
    driver.perform(&create(1, 1, &hosts[1])).await.unwrap();
    assert_eq!(vcsim.control(&format!("/datastore?vm={}", vm(1))), "LocalDS_0");

    let _ = vcsim.control("/storage?datastore=LocalDS_0&mode=inMaintenance");
    let closed = until(&*driver, "maintenance is told", |it| !it.datastores[0].usable).await;
    assert!(closed.datastores[1].usable);
    let refused = driver.perform(&create(2, 1, &hosts[2])).await;
    assert!(matches!(refused, Err(Error::NoRoom { .. })), "{refused:?}");
    let _ = vcsim.control(&format!("/unmount?host={}&datastore=LocalDS_1", hosts[0]));
    let left = until(&*driver, "a host that lost it is told", |it| seen_by(it, "LocalDS_1").len() == 2).await;
    assert_eq!(seen_by(&left, "LocalDS_1"), hosts[1..]);
    assert_eq!(left.vms.len(), 2, "whatever its host sees, a VM is there");
}

#[tokio::test]
async fn two_creates_at_once_do_not_take_the_same_room_of_a_datastore() {
    let Some(vcsim) = Vcsim::start(&["-hosts", "2"]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    // Each takes 30 GiB, of which a vCenter sees nothing before it is written.
    let _ = vcsim.control("/storage?datastore=LocalDS_0&mode=normal&free_gib=40");
    let _ = vcsim.control("/slow?ms=5000");
    let perform = async |op: Op| {
        let done = driver.perform(&op).await;
        let _ = vcsim.control("/heal");
        done
    };
    let done = futures::join!(perform(create(0, 1, &hosts[0])), perform(create(1, 1, &hosts[1])));
    let done = [done.0, done.1];
    let refused =
        |done: &Result<_, Error>| matches!(done, Err(Error::NoRoom { detail }) if detail.contains("LocalDS_0"));
    assert_eq!(done.iter().filter(|done| refused(done)).count(), 1, "{done:?}");
    assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1, "{done:?}");
}

#[tokio::test]
async fn networks_are_listed_with_their_hosts_and_the_ports_that_are_free() {
    let Some(vcsim) = Vcsim::start(&["-hosts", "2"]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, "vsphere.network = \"DC0_DVPG0\"\n"), 1).await;
    let network = |inventory: &Inventory, name: &str| {
        inventory
            .networks
            .iter()
            .find(|network| network.name == name)
            .cloned()
            .unwrap_or_else(|| panic!("{inventory:?}"))
    };
    let inventory = driver.inventory().await.unwrap();
    let standard = network(&inventory, "VM Network");
    assert_eq!((standard.ports_free, &standard.hosts), (None, &hosts));
    assert_eq!(inventory.networks.iter().filter(|network| network.name == "DC0_DVPG0").count(), 1);
    // vcsim's has one port, and does not grow.
    let group = network(&inventory, "DC0_DVPG0");
    assert_eq!((group.ports_free, &group.hosts), (Some(1), &hosts));
    let _ = vcsim.control(&format!("/unplug?host={}&network=DC0_DVPG0", hosts[0]));
    let after = until(&*driver, "a host that left it is told", |it| network(it, "DC0_DVPG0").hosts.len() == 1).await;
    assert_eq!(network(&after, "DC0_DVPG0").hosts, hosts[1..]);
    assert_eq!(network(&after, "VM Network").hosts, hosts);
}
