//! On libvirt's test driver: two hosts in this process, without networks, and without disks, whose
//! resizing it lacks.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, OpNumber, ShortName, VmId};
use cellbus_bus::job::StopMode;
use cellbus_cell::config::{Libvirt, LibvirtDomain, LibvirtHost};
use cellbus_cell::driver::{Driver, Error, Op, conformance};
use cellbus_directory::vm::PowerState;
use cellbus_workflows::{Action, CreateSpec};

use super::{create, env, host_id, op, spec, vm};
use crate::calls;
use crate::driver::{LibvirtDriver, Manager};

mod adopting;
mod fenced;

const NODE: &str = "<node><cpu><mhz>2000</mhz><model>x86_64</model><active>16</active><nodes>1</nodes>\
                    <sockets>1</sockets><cores>16</cores><threads>1</threads></cpu><memory>67108864</memory></node>";

struct Rig {
    manager: Arc<Manager>,
    _dir: tempfile::TempDir,
}

fn rig(hosts: u32) -> Rig {
    rig_with(hosts, |_, _| ())
}
fn rig_with(hosts: u32, change: impl FnOnce(&mut Libvirt, &std::path::Path)) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node.xml");
    std::fs::write(&node, NODE).unwrap();
    let host = |index| LibvirtHost {
        name: format!("h{index}").parse().unwrap(),
        uri: format!("test://{}", node.display()),
        out: false,
        gear: (index == 0).then(|| "g3".parse().unwrap()),
    };
    let mut config = Libvirt {
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
        seed_from: None,
    };
    change(&mut config, dir.path());
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
    async fn stranger(&self) -> bool {
        let there = self.manager.hosts.all[0].connected().unwrap().list_all_domains(0).unwrap().len();
        let index = u32::try_from(there).unwrap();
        self.define(0, &adopting::theirs(&format!("theirs {index}"), adopting::key(index))).create().unwrap();
        true
    }
}

struct Hooks(Arc<Manager>);

impl Hooks {
    /// Past the driver, on the host that has the VM.
    fn beside(&self, vm: VmId, change: impl Fn(&virt::domain::Domain)) {
        let at = self.0.hosts.all.iter().find_map(|host| {
            let connection = host.connected().unwrap();
            calls::handle(&connection, vm.uuid()).ok()
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

// A migrate's copy between managers is refused.
cellbus_cell::driver_conformance!(Some(rig(2)), left_out: [a_copy_brings_its_snapshots]);

/// Whichever answer of whichever operation is lost, the same number finds how far it came, and brings
/// it to the end that it would have had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_lost_anywhere_is_made_up_for() {
    let one: ShortName = "one".parse().unwrap();
    let steps = [
        create(0, 1, "h0"),
        op(0, 2, Action::Restart(StopMode::Hard)),
        op(0, 3, Action::Suspend),
        op(0, 4, Action::Resume),
        op(0, 5, Action::Snapshot(one.clone())),
        op(0, 6, Action::Stop(StopMode::Graceful)),
        op(0, 7, Action::Revert(one.clone())),
        op(0, 8, Action::SnapshotDelete(one)),
        Op { host: Some(super::host_id("h1")), ..op(0, 9, Action::Relocate(super::host_id("h1"))) },
        op(0, 10, Action::Resize(cellbus_bus::job::Size { vcpus: 2, memory_mib: 256, disk_gib: 3 })),
        op(0, 11, Action::Delete),
    ];
    let lost = each_lost_answer(&steps, || rig(2)).await;
    assert!(lost >= 2 * steps.len(), "{lost} answers were lost");
}

/// Loses the answer of each change of each of these operations on the VM 0 in turn, each on a manager of its own on
/// which all before it went well. Gives how many were lost.
async fn each_lost_answer(steps: &[Op], rig: impl Fn() -> Rig) -> usize {
    let sound = rig();
    let driver = sound.driver();
    driver.open(Epoch(1)).await.unwrap();
    let mut expected = Vec::new();
    for step in steps {
        expected.push(driver.perform(step).await.unwrap_or_else(|error| panic!("{step:?}: {error}")));
    }
    let mut lost = 0;
    for (index, step) in steps.iter().enumerate() {
        for at in 0.. {
            let lossy = rig();
            let driver = lossy.driver();
            driver.open(Epoch(1)).await.unwrap();
            for before in &steps[..index] {
                driver.perform(before).await.unwrap();
            }
            lossy.manager.hosts.trouble.lose_after(at);
            let answer = driver.perform(step).await;
            if lossy.manager.hosts.trouble.lost_nothing() {
                assert_eq!(answer.as_ref(), Ok(&expected[index]), "{step:?}");
                break;
            }
            assert!(matches!(answer, Err(Error::Unreachable { .. })), "{step:?}, change {at}: {answer:?}");
            lost += 1;
            let again = driver.perform(step).await;
            assert_eq!(again.as_ref(), Ok(&expected[index]), "{step:?}, change {at}");
            assert!(lossy.manager.hosts.trouble.restarts(vm(0)) <= 1);
            let vms = usize::from(expected[index].is_some());
            assert_eq!(driver.inventory().await.unwrap().vms.len(), vms);
            let there = driver.manager.find(&driver.session(), vm(0)).await.unwrap();
            assert_eq!(there.copies.len(), vms, "{step:?}, change {at}: it is there once");
        }
    }
    lost
}

/// Another process with a newer session stops an older one at its next change, and another manager
/// does not get the host at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_says_who_owns_it() {
    let rig = rig(1);
    let driver = rig.driver();
    driver.open(Epoch(5)).await.unwrap();
    driver.perform(&create(0, 1, "h0")).await.unwrap();
    let claim = |manager: &str, epoch| {
        let owner = calls::Ownership { manager: manager.to_owned(), epoch: Epoch(epoch), domain: "test" };
        calls::own(&rig.manager.hosts.all[0].connected().unwrap(), owner)
    };
    assert!(claim("others", 9).is_err(), "it belongs to another manager");
    assert!(claim("racks", 4).is_err(), "an older session");
    driver.perform(&op(0, 2, Action::Suspend)).await.unwrap();
    claim("racks", 6).unwrap();
    assert_eq!(driver.perform(&op(0, 3, Action::Resume)).await, Err(Error::Revoked));
    assert_eq!(driver.open(Epoch(5)).await, Err(Error::Revoked));
    let newer = rig.driver();
    newer.open(Epoch(7)).await.unwrap();
    assert_eq!(newer.inspect(vm(0)).await.unwrap().unwrap().op, OpNumber(2));
    newer.perform(&op(0, 3, Action::Resume)).await.unwrap();
}

/// It would be an empty disk under the name of a copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_from_other_managers_are_refused() {
    let rig = rig(1);
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    let copy = CreateSpec { copy_of: Some(PowerState::Running), ..spec() };
    let refused = driver.perform(&Op { action: Action::Create(Arc::new(copy)), ..create(0, 1, "h0") }).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    assert_eq!(driver.inventory().await.unwrap().vms, []);
}

/// A host that does not answer holds up a create only while it may have the VM.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_away_may_have_what_was_not_seen_elsewhere() {
    let mut rig = rig(2);
    let manager = Arc::get_mut(&mut rig.manager).unwrap();
    let mut config = manager.config.clone();
    config.hosts[1].uri = "test:///nowhere/at/all.xml".to_owned();
    rig.manager = Arc::new(Manager::new(&"racks".parse().unwrap(), &config, (1.0, 1.0), env()));
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    let unsure = driver.perform(&create(0, 1, "h0")).await;
    assert!(matches!(unsure, Err(Error::Unreachable { .. })), "{unsure:?}");
    assert!(matches!(driver.inventory().await, Err(Error::Unreachable { .. })));
    assert!(matches!(driver.inspect(vm(0)).await, Err(Error::Unreachable { .. })));
    // An operator says that it is gone for good.
    config.hosts[1].out = true;
    rig.manager = Arc::new(Manager::new(&"racks".parse().unwrap(), &config, (1.0, 1.0), env()));
    let driver = rig.driver();
    driver.open(Epoch(2)).await.unwrap();
    driver.perform(&create(0, 1, "h0")).await.unwrap();
    assert_eq!(driver.inventory().await.unwrap().hosts.len(), 1);
}

/// What was made, moved and deleted since a host was read counts too once it does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_falls_silent_has_what_it_was_last_known_to_have() {
    let rig = rig(2);
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    assert_eq!(driver.inventory().await.unwrap().vms, []);
    for index in 0..3 {
        driver.perform(&create(index, 1, "h0")).await.unwrap();
    }
    driver.perform(&op(1, 2, Action::Delete)).await.unwrap();
    let away = Op { host: Some(host_id("h1")), ..op(2, 2, Action::Relocate(host_id("h1"))) };
    driver.perform(&away).await.unwrap();
    let mut has = vec![(vm(0), "h0"), (vm(2), "h1")];
    has.sort_unstable();
    for silent in ["h0", "h1"] {
        rig.manager.hosts.trouble.silence(&host_id(silent));
        let inventory = driver.inventory().await.unwrap();
        let usable = inventory.hosts.iter().filter(|host| host.usable).map(|host| host.id.as_str());
        assert_eq!(usable.collect::<Vec<_>>(), [if silent == "h0" { "h1" } else { "h0" }]);
        let mut there: Vec<_> = inventory.vms.iter().map(|held| (held.id, held.facts.host.as_str())).collect();
        there.sort_unstable();
        assert_eq!(there, has, "{silent} is silent");
        rig.manager.hosts.trouble.heal();
    }
}

/// A few thousand domains are read at once, those of others among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_domains_are_read() {
    const VMS: u32 = 3_000;
    let rig = rig(2);
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    for host in &rig.manager.hosts.all {
        let connection = host.connected().unwrap();
        for index in (0..VMS).filter(|index| host.name.as_str() == format!("h{}", index % 2)) {
            let record = crate::record::VmRecord { id: vm(index), begun: None, ..crate::record::tests::vm() };
            let machine = crate::domain::Machine {
                domain: "test",
                record: &record,
                vcpus: 1,
                memory_mib: 1,
                disk: None,
                shared_storage: false,
                network: None,
                boot: None,
                console: None,
                seed_from: None,
            };
            calls::define(&connection, &crate::domain::machine(&machine)).unwrap();
        }
        let others = "<domain type='test'><name>theirs</name><memory>4096</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>";
        calls::define(&connection, others).unwrap();
    }
    let clock = env();
    let began = clock.mono();
    let inventory = driver.inventory().await.unwrap();
    eprintln!("{} VMs read in {:?}", inventory.vms.len(), clock.mono().since(began));
    assert_eq!((inventory.vms.len(), inventory.foreign_vms), (VMS as usize, 2));
    let gears: Vec<_> = inventory.hosts.iter().map(|host| host.labels.get("gear").map(String::as_str)).collect();
    assert_eq!(gears, [Some("g3"), None]);
    let full = driver.perform(&create(VMS, 1, "h0")).await;
    assert!(matches!(full, Err(Error::NoRoom { .. })), "{full:?}");
    // More tombstones than are kept.
    driver.perform(&op(0, 9, Action::Delete)).await.unwrap();
    assert_eq!(driver.inventory().await.unwrap().vms.len(), VMS as usize - 1);
}

/// Storage that both hosts share counts once; a host that has not the network, or has it switched off, is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_pool_is_one_datastore_and_networks_are_listed_with_their_hosts() {
    const POOL: &str = "<pool type='dir'><name>disks</name><target><path>/disks</path></target></pool>";
    const BLUE: &str = "<network><name>blue</name></network>";
    let nodes = |config: &mut Libvirt, dir: &std::path::Path| {
        for (host, network) in config.hosts.iter_mut().zip([BLUE, ""]) {
            let node = dir.join(format!("{}.xml", host.name));
            std::fs::write(&node, NODE.replace("</node>", &format!("{network}{POOL}</node>"))).unwrap();
            host.uri = format!("test://{}", node.display());
        }
        (config.pool, config.network) = (Some("disks".to_owned()), Some("blue".to_owned()));
    };
    let shared = rig_with(2, |config, dir| {
        nodes(config, dir);
        config.shared_storage = true;
    });
    let driver = shared.driver();
    driver.open(Epoch(1)).await.unwrap();
    let inventory = driver.inventory().await.unwrap();
    let [store] = &inventory.datastores[..] else { panic!("{inventory:?}") };
    let hosts: Vec<&str> = store.hosts.iter().map(|host| host.as_str()).collect();
    assert_eq!((store.name.as_str(), hosts, store.usable), ("disks", vec!["h0", "h1"], true));
    // What the test driver gives a pool.
    assert_eq!((store.total_gib, store.free_gib), (100, 100));
    let [blue] = &inventory.networks[..] else { panic!("{inventory:?}") };
    assert_eq!((blue.name.as_str(), blue.ports_free), ("blue", None));
    assert_eq!(blue.hosts.iter().map(|host| host.as_str()).collect::<Vec<_>>(), ["h0"]);
    driver.perform(&create(0, 1, "h0")).await.unwrap();
    assert_eq!(driver.inspect(vm(0)).await.unwrap().unwrap().datastore.as_deref(), Some("disks"));
    let after = driver.inventory().await.unwrap();
    assert_eq!(after.vms[0].datastore.as_deref(), Some("disks"));

    let own = rig_with(2, nodes);
    let driver = own.driver();
    driver.open(Epoch(1)).await.unwrap();
    let inventory = driver.inventory().await.unwrap();
    assert!(inventory.datastores.is_empty());
    assert!(inventory.hosts.iter().all(|host| host.disk_gib == 100), "{:?}", inventory.hosts);
}
