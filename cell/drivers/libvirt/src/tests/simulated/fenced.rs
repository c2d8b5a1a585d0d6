//! Hosts that an operator calls dead: what was on them is brought elsewhere, and what they have when they
//! come back is taken away, or shown.

use cellbus_cell::driver::{Change, FencedHost, HeldVm};
use virt::domain::Domain as Handle;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;

use super::*;
use crate::record::{Record, Tombstone, VmRecord};
use crate::tests::host_id;

/// Hosts whose pool is said to be shared. What one writes there the others do not see: it is shown to them by hand.
fn pooled(hosts: u32) -> Rig {
    rig_with(hosts, |config, dir| {
        const POOL: &str = "<pool type='dir'><name>disks</name><target><path>/disks</path></target></pool>";
        std::fs::write(dir.join("node.xml"), NODE.replace("</node>", &format!("{POOL}</node>"))).unwrap();
        (config.pool, config.shared_storage) = (Some("disks".to_owned()), true);
    })
}

impl Rig {
    fn pool(&self, host: usize) -> StoragePool {
        StoragePool::lookup_by_name(&self.manager.hosts.all[host].connected().unwrap(), "disks").unwrap()
    }
    fn has_disk(&self, host: usize) -> bool {
        StorageVol::lookup_by_name(&self.pool(host), &crate::domain::volume_of(vm(0))).is_ok()
    }
    fn show_disk(&self, host: usize) {
        let volume = crate::domain::volume(&crate::domain::volume_of(vm(0)), 1, None);
        StorageVol::create_xml(&self.pool(host), &volume, 0).unwrap();
    }
    /// Past whatever the host is said to be.
    fn there(&self, host: usize) -> Option<Handle> {
        calls::lookup(&self.manager.hosts.all[host].connected().unwrap(), vm(0).uuid()).unwrap()
    }
    fn record(&self, host: usize) -> Option<Record> {
        let document = calls::document(&self.there(host)?).unwrap();
        crate::domain::read(&document).unwrap().record
    }
    fn vm_record(&self, host: usize) -> VmRecord {
        match self.record(host) {
            Some(Record::Vm(record)) => *record,
            other => panic!("no VM: {other:?}"),
        }
    }
    fn silence(&self, host: usize) {
        self.manager.hosts.trouble.silence(&host_id(&format!("h{host}")));
    }
    /// The VM 0 runs on h0, which is off then, as an operator says to a new owner.
    async fn with_a_dead_host(&self) -> (LibvirtDriver, HeldVm) {
        let driver = self.driver();
        driver.open(Epoch(1)).await.unwrap();
        driver.perform(&create(0, 1, "h0")).await.unwrap();
        let held = driver.inspect(vm(0)).await.unwrap().unwrap();
        (1..self.manager.hosts.all.len()).for_each(|host| self.show_disk(host));
        self.silence(0);
        let newer = self.driver();
        newer.fenced(dead(0, std::slice::from_ref(&held))).await.unwrap();
        newer.open(Epoch(2)).await.unwrap();
        (newer, held)
    }
    /// The host h0 is there again, and nobody calls it dead.
    async fn is_back(&self, driver: &LibvirtDriver) {
        self.manager.hosts.trouble.heal();
        driver.fenced(Vec::new()).await.unwrap();
    }
    /// What is left of the VM on h0 goes, in a task that nobody waits for.
    async fn clears(&self) {
        let clock = env();
        let began = clock.mono();
        while self.there(0).is_some() || !self.manager.reserve([vm(0)]).vms.contains(&vm(0)) {
            assert!(clock.mono().since(began) < Duration::from_secs(120), "{:?} is left", self.record(0));
            clock.sleep(Duration::from_millis(10)).await;
        }
    }
}

fn dead(host: u32, vms: &[HeldVm]) -> Vec<FencedHost> {
    vec![FencedHost { id: host_id(&format!("h{host}")), vms: vms.to_vec() }]
}
fn relocate(number: u64, host: &str) -> Op {
    Op { host: Some(host_id(host)), ..op(0, number, Action::Relocate(host_id(host))) }
}
async fn inventory_of(driver: &LibvirtDriver) -> Vec<(String, PowerState)> {
    let vms = driver.inventory().await.unwrap().vms;
    vms.iter().map(|vm| (vm.facts.host.to_string(), vm.facts.power)).collect()
}

/// A host that answers cannot be called dead, nor one whose VMs could not be brought anywhere. It is found out before
/// the manager is open, which a dead host may keep from being opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_host_that_does_not_answer_may_be_called_dead() {
    // It takes connections, and says nothing.
    let dir = tempfile::tempdir().unwrap();
    let mute = dir.path().join("mute");
    let listener = std::os::unix::net::UnixListener::bind(&mute).unwrap();
    let uri = format!("qemu+unix:///session?socket={}", mute.display());
    let rig = pooled(2);
    let driver = rig.driver();
    let refused = async |driver: &LibvirtDriver, host: &str, why: &str| {
        let refused = driver.may_be_fenced(&host_id(host)).await;
        assert!(matches!(&refused, Err(Error::Invalid { detail }) if detail.contains(why)), "{host}: {refused:?}");
    };
    refused(&driver, "h0", "cordon and evacuate it").await;
    refused(&driver, "h9", "no host h9").await;
    // As many calls as it takes are under way, which is no silence.
    let (hold, held) = std::sync::mpsc::sync_channel::<()>(1);
    let held = Arc::new(std::sync::Mutex::new(held));
    for _ in 0..8 {
        let (manager, held) = (Arc::clone(&rig.manager), Arc::clone(&held));
        env().spawn("a long call", async move {
            let work = move |_: &Arc<virt::connect::Connect>| {
                let _ = held.lock().unwrap().recv();
                Ok(())
            };
            let _ = manager.hosts.call(&manager.hosts.all[0], work).await;
        });
    }
    refused(&driver, "h0", "cordon and evacuate it").await;
    drop(hold);
    rig.silence(1);
    assert_eq!(driver.may_be_fenced(&host_id("h1")).await, Ok(()));

    let mut config = rig.manager.config.clone();
    config.hosts[0].uri = uri;
    config.hosts[1].out = true;
    let of = |config: &Libvirt| {
        LibvirtDriver::new(Arc::new(Manager::new(&"racks".parse().unwrap(), config, (1.0, 1.0), env())))
    };
    refused(&of(&config), "h1", "libvirt.out").await;
    assert_eq!(of(&config).may_be_fenced(&host_id("h0")).await, Ok(()));
    drop(listener);
    assert_eq!(of(&config).may_be_fenced(&host_id("h0")).await, Ok(()));
    config.shared_storage = false;
    refused(&of(&config), "h0", "libvirt.shared_storage").await;
}

/// A new owner opens the manager without the dead host, knows what was on it, does nothing to that but bring it
/// elsewhere, and takes what the host has away when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_of_a_dead_host_is_brought_to_another() {
    let rig = pooled(3);
    let (driver, held) = rig.with_a_dead_host().await;
    let unknowing = rig.driver();
    unknowing.open(Epoch(2)).await.unwrap();
    assert!(matches!(unknowing.inventory().await, Err(Error::Unreachable { .. })), "it is silent and was never read");
    assert_eq!(unknowing.dead_hosts().await, Ok(Vec::new()), "each owner goes by what it was told");

    let mut told = dead(0, std::slice::from_ref(&held));
    told.extend(dead(9, &[]));
    driver.fenced(told).await.unwrap();
    assert_eq!(driver.dead_hosts().await, Ok(vec![host_id("h0")]), "there is no h9");
    let inventory = driver.inventory().await.unwrap();
    assert_eq!(inventory.vms, std::slice::from_ref(&held));
    let usable: Vec<bool> = inventory.hosts.iter().map(|host| host.usable).collect();
    assert_eq!(usable, [false, true, true]);
    assert_eq!(driver.inspect(vm(0)).await, Ok(Some(held.clone())));
    assert_eq!(driver.foreign().await, Ok(Vec::new()));
    // What cannot be done ends, so that the VM's line goes on to what brings it elsewhere; what must be done waits. For
    // neither is the manager ill.
    for action in [Action::Start, Action::Stop(StopMode::Hard)] {
        let answer = driver.perform(&op(0, 2, action.clone())).await;
        assert!(
            matches!(&answer, Err(Error::Invalid { detail }) if detail.contains("h0 is called dead")),
            "{action:?}: {answer:?}"
        );
    }
    let delete = driver.perform(&op(0, 2, Action::Delete)).await;
    assert!(matches!(&delete, Err(Error::Busy { detail }) if detail.contains("h0 is called dead")), "{delete:?}");
    assert_eq!(driver.perform(&op(0, 2, Action::Inspect)).await, Ok(Some(held.facts.clone())));
    let late = driver.perform(&relocate(0, "h1")).await;
    assert_eq!(late, Err(Error::Superseded { asked: OpNumber(0), last: OpNumber(1) }));
    let to_the_dead = driver.perform(&relocate(2, "h0")).await;
    assert!(matches!(to_the_dead, Err(Error::NoRoom { .. })), "{to_the_dead:?}");

    assert_eq!(driver.perform(&relocate(2, "h1")).await.unwrap().unwrap().power, PowerState::Stopped);
    assert_eq!(inventory_of(&driver).await, [("h1".to_owned(), PowerState::Stopped)]);
    assert_eq!(driver.perform(&op(0, 3, Action::Start)).await.unwrap().unwrap().power, PowerState::Running);
    let now = driver.inspect(vm(0)).await.unwrap().unwrap();
    assert_eq!((now.op, &now.facts.size, &now.name), (OpNumber(3), &held.facts.size, &held.name));
    assert_eq!((&now.affinity, &now.anti_affinity), (&held.affinity, &held.anti_affinity));
    assert_eq!((driver.irregular().vms, rig.vm_record(1).left), (0, Some(host_id("h0"))));
    // Told again before that is known, and with a number that was only given: what is there counts.
    driver.fenced(dead(0, &[HeldVm { op: OpNumber(9), ..held.clone() }])).await.unwrap();
    assert_eq!(inventory_of(&driver).await, [("h1".to_owned(), PowerState::Running)]);
    assert_eq!(driver.inspect(vm(0)).await, Ok(Some(now)));
    // What is on a host that it was not taken from is nobody's to take away.
    let old = calls::document(&rig.there(0).unwrap()).unwrap();
    let copied = rig.define(2, &old);
    driver.inventory().await.unwrap();
    let shown = driver.irregular();
    assert!(shown.vms == 1 && shown.detail.contains("is on h1 and on h2"), "{shown:?}");
    env().sleep(Duration::from_millis(300)).await;
    driver.inventory().await.unwrap();
    copied.undefine().unwrap();
    // Moved on, it is still known where it was left.
    driver.perform(&relocate(4, "h2")).await.unwrap();
    assert_eq!(rig.vm_record(2).left, Some(host_id("h0")));
    assert_eq!(inventory_of(&driver).await, [("h2".to_owned(), PowerState::Running)]);

    // It comes back, and somebody there has started what it had.
    while env().timeout(Duration::from_millis(200), driver.changes()).await.is_some() {}
    rig.is_back(&driver).await;
    let told = env().timeout(Duration::from_secs(120), driver.changes()).await;
    assert!(told.is_some_and(|told| told.unwrap().contains(&Change::Hosts)));
    assert_eq!(driver.dead_hosts().await, Ok(Vec::new()));
    for _ in 0..2 {
        assert_eq!(inventory_of(&driver).await, [("h2".to_owned(), PowerState::Running)]);
        let shown = driver.irregular();
        assert!(shown.vms == 1 && shown.detail.contains("runs on h0, from which it was taken"), "{shown:?}");
    }
    // Nor is it, or another than was seen, taken away by what was found out before.
    let connection = rig.manager.hosts.all[0].connected().unwrap();
    let other = VmRecord { epoch: Epoch(7), ..rig.vm_record(0) };
    assert!(!calls::clear_away(&connection, &rig.vm_record(0)).unwrap());
    rig.there(0).unwrap().destroy().unwrap();
    // Not while something is under way on the VM, nor does anything begin while it is.
    let reserved = rig.manager.reserve([vm(0), vm(1)]);
    assert_eq!(reserved.vms.len(), 2);
    driver.inventory().await.unwrap();
    env().sleep(Duration::from_millis(300)).await;
    let busy = driver.perform(&op(0, 5, Action::Suspend)).await;
    assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
    assert!(rig.manager.reserve([vm(1)]).vms.is_empty());
    assert!(!calls::clear_away(&connection, &other).unwrap() && rig.there(0).is_some());
    drop(reserved);
    // Who only looks changes nothing.
    let looking = rig.driver();
    looking.look(Epoch(2)).await.unwrap();
    looking.inventory().await.unwrap();
    assert!(rig.there(0).is_some() && rig.manager.reserve([vm(0)]).vms.contains(&vm(0)));
    assert_eq!(inventory_of(&driver).await, [("h2".to_owned(), PowerState::Running)]);
    rig.clears().await;
    assert!(rig.has_disk(0), "its disk is what it has elsewhere");
    assert_eq!(inventory_of(&driver).await, [("h2".to_owned(), PowerState::Running)]);
    assert_eq!((driver.irregular().vms, driver.inventory().await.unwrap().hosts[0].usable), (0, true));
    // Back on the host, it is nothing that was left there.
    driver.perform(&relocate(6, "h0")).await.unwrap();
    assert_eq!(rig.vm_record(0).left, None);
    assert_eq!(inventory_of(&driver).await, [("h0".to_owned(), PowerState::Running)]);
}

/// What would be lost is not brought: snapshots, and disks that the other host does not see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_brought_is_refused() {
    let rig = pooled(2);
    let (driver, held) = rig.with_a_dead_host().await;
    let refused = async |why: &str| {
        let refused = driver.perform(&relocate(2, "h1")).await;
        assert!(matches!(&refused, Err(Error::Permanent { detail }) if detail.contains(why)), "{why}: {refused:?}");
        assert!(rig.there(1).is_none());
    };
    let mut with_snapshot = held.clone();
    with_snapshot.facts.snapshots = vec!["before".parse().unwrap()];
    driver.fenced(dead(0, &[with_snapshot])).await.unwrap();
    refused("snapshots is on host h0").await;
    let mut large = held.clone();
    large.facts.size.vcpus = 17;
    driver.fenced(dead(0, &[large])).await.unwrap();
    let full = driver.perform(&relocate(2, "h1")).await;
    assert!(matches!(full, Err(Error::NoRoom { .. })), "{full:?}");
    driver.fenced(dead(0, std::slice::from_ref(&held))).await.unwrap();
    StorageVol::lookup_by_name(&rig.pool(1), &crate::domain::volume_of(vm(0))).unwrap().delete(0).unwrap();
    refused("has no disk of it in the pool disks").await;
    rig.show_disk(1);
    driver.perform(&relocate(2, "h1")).await.unwrap();

    // A host's own storage is dead with it.
    let own = rig_with(2, |_, _| ());
    let driver = own.driver();
    driver.fenced(dead(0, &[held])).await.unwrap();
    driver.open(Epoch(1)).await.unwrap();
    let refused = driver.perform(&relocate(2, "h1")).await;
    assert!(
        matches!(&refused, Err(Error::Permanent { detail }) if detail.contains("storage of host h0")),
        "{refused:?}"
    );
}

/// The word counts until the VM is made anew, and not only when that was begun; and not from an older owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_word_that_was_taken_back_counts_no_more() {
    let rig = pooled(2);
    let (driver, held) = rig.with_a_dead_host().await;
    let to = host_id("h1");
    let recover = async |session| rig.manager.recover(&session, &relocate(2, "h1"), &held, &to).await;
    let (session, old) = (driver.session(), driver.session());
    driver.fenced(Vec::new()).await.unwrap();
    let late = recover(session).await;
    assert!(
        matches!(&late, Err(Error::Unreachable { detail }) if detail.contains("not called dead any more")),
        "{late:?}"
    );
    driver.fenced(dead(0, std::slice::from_ref(&held))).await.unwrap();
    rig.driver().open(Epoch(3)).await.unwrap();
    assert_eq!(recover(old).await, Err(Error::Revoked));
    assert_eq!(driver.dead_hosts().await, Err(Error::Revoked));
    assert!(rig.there(1).is_none());
}

/// Whichever answer is lost, the same number finds how far it came; also where the owner was told of that very number
/// by then, and where it is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_while_a_vm_is_brought_is_made_up_for() {
    let mut lost = 0;
    for at in 0.. {
        let rig = pooled(2);
        let (driver, mut held) = rig.with_a_dead_host().await;
        held.op = OpNumber(2);
        driver.fenced(dead(0, std::slice::from_ref(&held))).await.unwrap();
        rig.manager.hosts.trouble.lose_after(at);
        let answer = driver.perform(&relocate(2, "h1")).await;
        let nothing = rig.manager.hosts.trouble.lost_nothing();
        if !nothing {
            assert!(matches!(answer, Err(Error::Unreachable { .. })), "change {at}: {answer:?}");
            lost += 1;
        }
        let newer = rig.driver();
        newer.fenced(dead(0, &[held])).await.unwrap();
        newer.open(Epoch(3)).await.unwrap();
        let again = newer.perform(&relocate(2, "h1")).await.unwrap().unwrap();
        assert_eq!((again.host.as_str(), again.power), ("h1", PowerState::Stopped), "change {at}");
        let found = newer.manager.find(&newer.session(), vm(0)).await.unwrap();
        let [copy] = &found.copies[..] else { panic!("change {at}: it is there once") };
        assert_eq!((copy.record.done, copy.record.begun), (Some(OpNumber(2)), None));
        assert_eq!(inventory_of(&newer).await, [("h1".to_owned(), PowerState::Stopped)]);
        if nothing {
            break;
        }
    }
    assert_eq!(lost, 2);
}

/// Deleted while its old host is dead, it does not come back with that: it is no VM, whatever is there, and what is
/// there is taken away once it does not run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_was_deleted_does_not_come_back_with_its_host() {
    let rig = pooled(2);
    let (driver, _) = rig.with_a_dead_host().await;
    driver.perform(&relocate(2, "h1")).await.unwrap();
    assert_eq!(driver.perform(&op(0, 3, Action::Delete)).await, Ok(None));
    assert_eq!(inventory_of(&driver).await, [], "what was told of it is older");
    assert_eq!(driver.inspect(vm(0)).await, Ok(None));
    // Nobody remembers it, and many are deleted after it: its tombstone is needed longer than those.
    let host = &rig.manager.hosts.all[1];
    for index in 1..=300 {
        let tombstone = Tombstone { id: vm(index), op: OpNumber(1), at_ms: u64::MAX - u64::from(index), left: None };
        calls::bury(&host.connected().unwrap(), "test", tombstone, &[]).unwrap();
    }
    let tombstones = || {
        let all = calls::all(&host.connected().unwrap(), None, None).unwrap().tombstones;
        (all.len(), all.iter().any(|tombstone| tombstone.id == vm(0)))
    };
    driver.fenced(dead(0, &[])).await.unwrap();
    driver.inventory().await.unwrap();
    assert_eq!(tombstones(), (257, true));

    rig.is_back(&driver).await;
    for _ in 0..2 {
        assert_eq!(inventory_of(&driver).await, []);
        let shown = driver.irregular();
        assert!(shown.vms == 1 && shown.detail.contains("runs on h0, and was deleted"), "{shown:?}");
        assert_eq!(tombstones(), (257, true));
    }
    assert_eq!(driver.inspect(vm(0)).await, Ok(None));
    assert_eq!(driver.perform(&op(0, 4, Action::Start)).await, Err(Error::NotFound));
    assert_eq!(driver.perform(&op(0, 3, Action::Delete)).await, Ok(None));
    let late = driver.perform(&create(0, 1, "h0")).await;
    assert_eq!(late, Err(Error::Superseded { asked: OpNumber(1), last: OpNumber(3) }));
    let anew = driver.perform(&create(0, 5, "h1")).await;
    assert!(matches!(&anew, Err(Error::Permanent { detail }) if detail.contains("still runs on h0")), "{anew:?}");
    rig.there(0).unwrap().destroy().unwrap();
    assert_eq!(inventory_of(&driver).await, []);
    rig.clears().await;
    assert!(rig.has_disk(0), "somebody may want it back");
    // Nothing needs the tombstone from the next reading on, and it is the oldest.
    driver.inventory().await.unwrap();
    assert_eq!((tombstones(), driver.irregular().vms), ((256, false), 0));
}

/// Who defines a VM that was deleted has it shown, on a host that was never called dead, and keeps what was defined.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_and_is_defined_again_is_shown() {
    let rig = pooled(2);
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.perform(&create(0, 1, "h1")).await.unwrap();
    let document = calls::document(&rig.there(1).unwrap()).unwrap();
    driver.perform(&op(0, 2, Action::Delete)).await.unwrap();
    let again = rig.define(0, &document);
    for _ in 0..2 {
        assert_eq!(inventory_of(&driver).await, []);
        let shown = driver.irregular();
        assert!(shown.vms == 1 && shown.detail.contains("is on h0, and was deleted by its operation 2"), "{shown:?}");
        env().sleep(Duration::from_millis(300)).await;
    }
    again.undefine().unwrap();
}

/// A create that was on its way to the host when that died is made elsewhere, and what it had come to there is taken
/// away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_a_host_died_in_is_made_elsewhere() {
    let rig = pooled(2);
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    rig.manager.hosts.trouble.lose_after(0);
    let lost = driver.perform(&create(0, 1, "h0")).await;
    assert!(matches!(lost, Err(Error::Unreachable { .. })), "{lost:?}");
    rig.silence(0);
    driver.fenced(dead(0, &[])).await.unwrap();
    let dead = driver.perform(&create(0, 1, "h0")).await;
    assert!(matches!(dead, Err(Error::NoRoom { .. })), "{dead:?}");
    driver.perform(&create(0, 1, "h1")).await.unwrap();
    driver.perform(&create(1, 1, "h1")).await.unwrap();
    assert_eq!(rig.vm_record(1).left, Some(host_id("h0")));
    rig.is_back(&driver).await;
    assert!(rig.there(0).is_some());
    assert_eq!(inventory_of(&driver).await.len(), 2);
    rig.clears().await;
    assert_eq!((inventory_of(&driver).await.len(), driver.irregular().vms), (2, 0));
    assert!(rig.there(1).unwrap().is_active().unwrap());
}
