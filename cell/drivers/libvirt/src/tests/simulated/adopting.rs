//! Domains that somebody else made are listed and taken in.

use cellbus_bus::ids::ManagerId;
use cellbus_bus::job::Size;
use cellbus_cell::driver::{Change, ForeignVm};
use futures::StreamExt as _;
use uuid::Uuid;
use virt::domain::Domain as Handle;

use super::*;
use crate::tests::{adopt, host_id};

/// A domain with more than Cellbus knows of.
pub(super) fn theirs(name: &str, uuid: Uuid) -> String {
    format!(
        "<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><title>theirs</title>\
         <metadata><app:x xmlns:app='urn:app' kept='yes'/></metadata>\
         <memory unit='MiB'>128</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>"
    )
}
pub(super) fn key(index: u32) -> Uuid {
    Uuid::from_u128(0x4000_8000_0000_0000_0000_0000 | u128::from(index))
}
impl Rig {
    pub(super) fn define(&self, host: usize, document: &str) -> Handle {
        calls::define(&self.manager.hosts.all[host].connected().unwrap(), document).unwrap()
    }
    fn domain(&self, host: usize, uuid: Uuid) -> Option<Handle> {
        calls::lookup(&self.manager.hosts.all[host].connected().unwrap(), uuid).unwrap()
    }
}
/// Two hosts, a domain that runs on the first.
fn rig_with_one() -> Rig {
    let rig = rig(2);
    // A name that begins like ours, and is not.
    rig.define(0, &theirs("cellbus-db", key(0))).create().unwrap();
    rig
}
fn unfit_of<'a>(listed: &'a [ForeignVm], name: &str) -> &'a str {
    listed.iter().find(|vm| vm.name == name).and_then(|vm| vm.unfit.as_deref()).unwrap_or("fit, or not listed")
}

/// Thousands of domains of others are listed and taken in, each as it is; those that cannot be are named with the
/// reason, and stay as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_domains_of_others_are_taken_in() {
    const VMS: u32 = 3_000;
    let rig = rig(2);
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.perform(&create(VMS, 1, "h0")).await.unwrap();
    for index in 0..VMS {
        let domain = rig.define((index % 2) as usize, &theirs(&format!("Web {index}"), key(index)));
        if index.is_multiple_of(3) {
            domain.create().unwrap();
        }
    }
    let transient = theirs("transient", key(90_001));
    Handle::create_xml(&rig.manager.hosts.all[0].connected().unwrap(), &transient, 0).unwrap();
    rig.define(0, &theirs("twin", key(90_002)));
    rig.define(1, &theirs("twin", key(90_002)));
    rig.define(1, &theirs(&crate::domain::name_of(vm(5)), key(90_003)));
    // As virt-clone makes them: all is the same but the name and the UUID.
    let ours = calls::document(&rig.domain(0, vm(VMS).uuid()).unwrap()).unwrap();
    let copied = ours.replace(&vm(VMS).to_string(), &key(90_004).to_string());
    let copied = copied.replace(&format!("id=\"{}\"", key(90_004)), &format!("id=\"{}\"", vm(VMS)));
    rig.define(0, &copied.replace("cellbus-", "copy-of-"));

    let clock = env();
    let began = clock.mono();
    let listed = driver.foreign().await.unwrap();
    eprintln!("{} domains listed in {:?}", listed.len(), clock.mono().since(began));
    let (fit, unfit): (Vec<_>, Vec<_>) = listed.iter().cloned().partition(|vm| vm.unfit.is_none());
    assert_eq!((fit.len(), unfit.len()), (VMS as usize, 4), "{unfit:?}");
    for (name, why) in [
        ("transient", "transient"),
        ("twin", "are on h0 and h1"),
        (crate::domain::name_of(vm(5)).as_str(), "Cellbus gives"),
        (format!("copy-of-{}", key(90_004)).as_str(), "it is a copy"),
    ] {
        assert!(unfit_of(&listed, name).contains(why), "{name}: {}", unfit_of(&listed, name));
    }
    for vm in &fit {
        let index: u32 = vm.name.strip_prefix("Web ").unwrap().parse().unwrap();
        assert_eq!(vm.key.as_str(), key(index).to_string());
        let (host, power) = (
            host_id(&format!("h{}", index % 2)),
            if index.is_multiple_of(3) { PowerState::Running } else { PowerState::Stopped },
        );
        assert_eq!((&vm.facts.host, vm.facts.power), (&host, power));
        assert_eq!(vm.facts.size, Size { vcpus: 1, memory_mib: 128, disk_gib: 0 });
    }
    for vm in &unfit {
        let refused = driver.perform(&adopt(1, 1, vm.key.as_str())).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{}: {refused:?}", vm.name);
    }

    let manager = ManagerId::derive("racks");
    let began = clock.mono();
    let ops = fit
        .iter()
        .zip(0..)
        .map(|(vm, index)| Op { vm: VmId::adopted(manager, &vm.key), ..adopt(index, 1, vm.key.as_str()) });
    let ops: Vec<Op> = ops.collect();
    let adopted: Vec<_> = futures::stream::iter(&ops).map(|op| driver.perform(op)).buffered(64).collect().await;
    eprintln!("{} domains adopted in {:?}", adopted.len(), clock.mono().since(began));
    for (answer, vm) in adopted.iter().zip(&fit) {
        assert_eq!(answer.as_ref(), Ok(&Some(vm.facts.clone())));
    }
    assert_eq!(driver.foreign().await.unwrap().len(), 4);
    // Another process knows as much from what is written in the domains.
    rig.manager.hosts.all.iter().for_each(|host| host.adopted.forget());
    let newer = rig.driver();
    newer.open(Epoch(2)).await.unwrap();
    let held = newer.inspect(ops[7].vm).await.unwrap().unwrap();
    assert_eq!((held.name.as_str(), held.tenant.as_str(), held.op), ("old-7", "acme", OpNumber(1)));
    let inventory = newer.inventory().await.unwrap();
    assert_eq!((inventory.vms.len(), inventory.foreign_vms), (VMS as usize + 1, 5));
    for index in [0, 1, VMS - 1] {
        let domain = rig.domain((index % 2) as usize, key(index)).unwrap();
        assert_eq!(domain.get_name().unwrap(), format!("Web {index}"));
        let document = calls::document(&domain).unwrap();
        assert!(document.contains("urn:app") && document.contains("<title>theirs</title>"), "{document}");
    }
}

/// Once is once: the same number again changes nothing, an older one is refused, another id does not get it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_is_taken_in_once() {
    let rig = rig_with_one();
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    let (key, run) = (key(0), rig.domain(0, key(0)).unwrap().get_id());
    let facts = driver.perform(&adopt(0, 5, &key.to_string())).await.unwrap();
    assert_eq!(driver.perform(&adopt(0, 5, &key.to_string())).await, Ok(facts.clone()));
    let older = driver.perform(&adopt(0, 4, &key.to_string())).await;
    assert_eq!(older, Err(Error::Superseded { asked: OpNumber(4), last: OpNumber(5) }));
    let other = driver.perform(&adopt(1, 6, &key.to_string())).await;
    assert!(matches!(other, Err(Error::Invalid { .. })), "{other:?}");
    assert_eq!(driver.perform(&adopt(2, 1, &Uuid::nil().to_string())).await, Err(Error::NotFound));
    assert_eq!(driver.perform(&adopt(2, 1, &key.simple().to_string())).await, Err(Error::NotFound));
    // Asked for anew, as another's: nobody else knows of it any more.
    let mut again = adopt(0, 6, &key.to_string());
    let Action::Adopt(spec) = &mut again.action else { panic!("it adopts") };
    Arc::make_mut(spec).tenant = "other".parse().unwrap();
    assert_eq!(driver.perform(&again).await, Ok(facts));
    let held = driver.inspect(vm(0)).await.unwrap().unwrap();
    assert_eq!((held.tenant.as_str(), held.op), ("other", OpNumber(6)));
    assert_eq!(rig.domain(0, key).unwrap().get_id(), run, "it runs on");

    // It was written by somebody who went on without having been seen: the number is found in the domain.
    rig.manager.hosts.all[0].adopted.learn_all(rig.manager.hosts.all[0].adopted.moment(), []);
    assert!(driver.perform(&again).await.unwrap().is_some());
    assert!(driver.inspect(vm(0)).await.unwrap().is_some());
}

/// It is as any other from then on, until it is deleted; what it had for disks is left, and it can come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_in_is_as_any_other() {
    let before: ShortName = "before".parse().unwrap();
    let one: ShortName = "one".parse().unwrap();
    let prepared = || {
        let rig = rig_with_one();
        let domain = rig.domain(0, key(0)).unwrap();
        virt::domain_snapshot::DomainSnapshot::create_xml(
            &domain,
            &crate::domain::snapshot(&"before".parse().unwrap()),
            0,
        )
        .unwrap();
        rig
    };
    let steps = [
        adopt(0, 1, &key(0).to_string()),
        op(0, 2, Action::Restart(StopMode::Hard)),
        op(0, 3, Action::Suspend),
        op(0, 4, Action::Resume),
        op(0, 5, Action::Snapshot(one.clone())),
        op(0, 6, Action::Stop(StopMode::Graceful)),
        op(0, 7, Action::Revert(one.clone())),
        op(0, 8, Action::SnapshotDelete(one)),
        op(0, 9, Action::SnapshotDelete(before.clone())),
        op(0, 10, Action::Resize(Size { vcpus: 2, memory_mib: 256, disk_gib: 0 })),
        op(0, 11, Action::Delete),
    ];
    let lost = each_lost_answer(&steps, prepared).await;
    assert!(lost >= 2 * steps.len() - 1, "{lost} answers were lost");

    let rig = prepared();
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    let facts = driver.perform(&steps[0]).await.unwrap().unwrap();
    assert_eq!((facts.power, facts.snapshots.as_slice()), (PowerState::Running, std::slice::from_ref(&before)));
    for refused in [Action::Revert(before), Action::Resize(Size { vcpus: 1, memory_mib: 128, disk_gib: 9 })] {
        let answer = driver.perform(&op(0, 2, refused)).await;
        assert!(matches!(answer, Err(Error::Invalid { .. })), "{answer:?}");
    }
    let moved = driver.perform(&Op { host: Some(host_id("h1")), ..op(0, 2, Action::Relocate(host_id("h1"))) }).await;
    assert!(matches!(moved, Err(Error::Permanent { .. })), "{moved:?}");
    assert_eq!(rig.domain(0, key(0)).unwrap().get_name().unwrap(), "cellbus-db", "nothing was done to it");
    assert_eq!(driver.perform(&op(0, 3, Action::Delete)).await, Ok(None));
    assert!(rig.domain(0, key(0)).is_none());
    assert_eq!(driver.foreign().await.unwrap(), []);
    let late = driver.perform(&adopt(0, 2, &key(0).to_string())).await;
    assert_eq!(late, Err(Error::Superseded { asked: OpNumber(2), last: OpNumber(3) }));
    // Somebody defines it again, and has it taken in again.
    rig.define(0, &theirs("cellbus-db", key(0)));
    assert_eq!(driver.foreign().await.unwrap().len(), 1);
    driver.perform(&adopt(0, 4, &key(0).to_string())).await.unwrap();
    let found = driver.manager.find(&driver.session(), vm(0)).await.unwrap();
    assert_eq!((found.copies.len(), found.tombstones.len()), (1, 0));
}

/// Somebody takes our record out: the VM is gone for Cellbus, the domain is not, and a delete does not find it. It can be
/// taken in anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_record_it_is_anothers_again() {
    let rig = rig_with_one();
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.perform(&adopt(0, 1, &key(0).to_string())).await.unwrap();
    let domain = rig.domain(0, key(0)).unwrap();
    let (element, namespace) = (virt_sys::VIR_DOMAIN_METADATA_ELEMENT as i32, Some(crate::record::NAMESPACE));
    domain.set_metadata(element, None, None, namespace, virt_sys::VIR_DOMAIN_AFFECT_CONFIG).unwrap();
    assert_eq!(driver.inspect(vm(0)).await, Ok(None));
    assert_eq!(driver.perform(&op(0, 2, Action::Stop(StopMode::Hard))).await, Err(Error::NotFound));
    assert_eq!(driver.perform(&op(0, 3, Action::Delete)).await, Ok(None));
    assert!(domain.is_active().unwrap(), "nothing was done to it");
    driver.perform(&adopt(0, 4, &key(0).to_string())).await.unwrap();
    assert_eq!(driver.inspect(vm(0)).await.unwrap().unwrap().op, OpNumber(4));
}

/// What somebody does to it is heard; moved by hand to another host, it is found there, under the same id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_do_to_it_is_heard() {
    let rig = rig_with_one();
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    driver.perform(&adopt(0, 1, &key(0).to_string())).await.unwrap();
    let heard = async || {
        let hear = async { while !driver.changes().await.unwrap().contains(&Change::Vm(vm(0))) {} };
        assert!(env().timeout(Duration::from_secs(120), hear).await.is_some(), "nothing was heard");
    };
    let domain = rig.domain(0, key(0)).unwrap();
    domain.destroy().unwrap();
    heard().await;
    assert_eq!(driver.inspect(vm(0)).await.unwrap().unwrap().facts.power, PowerState::Stopped);
    let document = calls::document(&domain).unwrap();
    domain.undefine().unwrap();
    heard().await;
    assert_eq!(driver.inspect(vm(0)).await, Ok(None));
    // Nobody asks for it: that it came is heard all the same.
    rig.define(1, &document);
    heard().await;
    assert_eq!(driver.inspect(vm(0)).await.unwrap().unwrap().facts.host, host_id("h1"));
    driver.perform(&op(0, 2, Action::Start)).await.unwrap();
    assert!(rig.domain(1, key(0)).unwrap().is_active().unwrap());
}

/// The same domain on two hosts is shown to people, and taken for one VM.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_on_two_hosts_is_shown() {
    let rig = rig_with_one();
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.perform(&adopt(0, 1, &key(0).to_string())).await.unwrap();
    driver.inventory().await.unwrap();
    assert_eq!(driver.irregular().vms, 0);
    // Without our record, and then with it.
    let copy = rig.define(1, &theirs("cellbus-db", key(0)));
    driver.inventory().await.unwrap();
    let shown = driver.irregular();
    assert!(shown.vms == 1 && shown.detail.contains("host h1"), "{shown:?}");
    assert_eq!(driver.foreign().await.unwrap(), []);
    copy.undefine().unwrap();
    rig.define(1, &calls::document(&rig.domain(0, key(0)).unwrap()).unwrap());
    let inventory = driver.inventory().await.unwrap();
    assert_eq!((inventory.vms.len(), &inventory.vms[0].facts.host), (1, &host_id("h0")));
    let shown = driver.irregular();
    assert!(shown.vms == 1 && shown.detail.contains("is on h0 and on h1"), "{shown:?}");
}

/// A host that does not answer may have the same domain, unless it was seen not to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_hosts_are_asked_before_a_domain_is_taken_in() {
    let rig = rig_with(2, |config, _| config.hosts[1].uri = "test:///nowhere/at/all.xml".to_owned());
    rig.define(0, &theirs("cellbus-db", key(0)));
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    assert!(matches!(driver.foreign().await, Err(Error::Unreachable { .. })));
    let unsure = driver.perform(&adopt(0, 1, &key(0).to_string())).await;
    assert!(matches!(unsure, Err(Error::Unreachable { .. })), "{unsure:?}");
    let document = calls::document(&rig.domain(0, key(0)).unwrap()).unwrap();
    assert!(!document.contains(crate::record::NAMESPACE), "{document}");
}
