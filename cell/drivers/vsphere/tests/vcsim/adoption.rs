//! VMs that stand at a vCenter already: which are listed, and what becomes of one that is adopted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::{OpNumber, VmId};
use cellbus_bus::job::{Size, StopMode};
use cellbus_cell::driver::conformance::op;
use cellbus_cell::driver::{Change, Driver, Error, ForeignVm, Op};
use cellbus_directory::vm::PowerState;
use cellbus_workflows::{Action, AdoptSpec};
use futures::stream::{self, StreamExt as _};

use super::own::{SOON, create, opened, told, vm};
use super::{Vcsim, env, manager};

pub(super) fn adopt(as_vm: VmId, number: u64, foreign: &ForeignVm) -> Op {
    let spec = AdoptSpec {
        tenant: "acme".parse().unwrap(),
        name: "web-0".parse().unwrap(),
        foreign: Some(foreign.key.clone()),
    };
    op(as_vm, number, Action::Adopt(Arc::new(spec)))
}

async fn called(driver: &Arc<dyn Driver>, name: &str) -> ForeignVm {
    let found = driver.foreign().await.unwrap();
    found.iter().find(|vm| vm.name == name).unwrap_or_else(|| panic!("{name} is not among {found:?}")).clone()
}
/// Its reference, UUID and annotation.
fn says(vcsim: &Vcsim, name: &str) -> (String, String, String) {
    let text = vcsim.control(&format!("/says?vm={name}"));
    let mut parts = text.splitn(3, '\n').map(str::to_owned);
    (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
}

#[tokio::test]
async fn it_keeps_all_but_a_line_in_its_annotation() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    let _ = vcsim.control("/stranger?name=mail&annotation=cost+centre+7%0Acall+Bob");
    let (this, uuid, before) = says(&vcsim, "mail");
    let found = called(&driver, "mail").await;
    assert_eq!((found.key.as_str(), found.unfit.as_deref()), (uuid.as_str(), None));
    assert_eq!(found.facts.size, Size { vcpus: 2, memory_mib: 2048, disk_gib: 0 });

    driver.perform(&adopt(vm(0), 7, &found)).await.unwrap();
    let (this_now, uuid_now, after) = says(&vcsim, "mail");
    assert_eq!((this_now, &uuid_now), (this, &uuid));
    let (note, rest) = after.split_once('\n').unwrap();
    assert!(note.contains(&vm(0).to_string()) && rest == before, "{after}");
    assert_eq!(vcsim.control("/calls?method=ReconfigVM_Task"), "1");
    for method in ["PowerOffVM_Task", "ResetVM_Task", "Destroy_Task", "Rename_Task", "MoveIntoFolder_Task"] {
        assert_eq!(vcsim.control(&format!("/calls?method={method}")), "0", "{method}");
    }

    // What is done to it afterwards leaves that as it is, too.
    driver.perform(&op(vm(0), 8, Action::Stop(StopMode::Hard))).await.unwrap();
    let grown = Size { vcpus: 4, ..found.facts.size };
    assert_eq!(driver.perform(&op(vm(0), 9, Action::Resize(grown))).await.unwrap().unwrap().size, grown);
    let to = hosts.iter().find(|host| **host != found.facts.host).unwrap();
    let relocate = Op { host: Some(to.clone()), ..op(vm(0), 10, Action::Relocate(to.clone())) };
    assert_eq!(driver.perform(&relocate).await.unwrap().unwrap().host, *to);
    assert_eq!(says(&vcsim, "mail").2.split_once('\n').unwrap().1, before);

    // Its owner gives it another name: it is the same VM.
    let _ = vcsim.control("/rename?vm=mail&to=post");
    assert_eq!(says(&vcsim, "post").1, uuid);
    assert_eq!(driver.inspect(vm(0)).await.unwrap().unwrap().op, OpNumber(10));
    assert_eq!(driver.perform(&op(vm(0), 11, Action::Delete)).await, Ok(None));
    assert_eq!(driver.inspect(vm(0)).await.unwrap(), None);
    // Its number is remembered: nothing late brings it back, and it is not there to be adopted again.
    assert!(driver.perform(&adopt(vm(0), 7, &found)).await.is_err());
}

#[tokio::test]
async fn an_answer_that_was_lost_is_found_by_whoever_asks_again() {
    let Some(vcsim) = Vcsim::start(&["-vms", "2"]) else { return };
    let to = manager(&vcsim, "");
    let (driver, _) = opened(&to, 1).await;
    let mut found = driver.foreign().await.unwrap();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    for (index, foreign) in (0..).zip(&found) {
        let ask = adopt(vm(index), 4, foreign);
        let _ = vcsim.control("/lose?method=ReconfigVM_Task");
        let lost = driver.perform(&ask).await;
        assert!(matches!(lost, Err(Error::Unreachable { .. })), "{lost:?}");
        // The same owner, or the next one.
        let owner = if index == 0 { Arc::clone(&driver) } else { opened(&to, 2).await.0 };
        assert_eq!(owner.perform(&ask).await, Ok(Some(foreign.facts.clone())));
        assert_eq!(owner.inspect(vm(index)).await.unwrap().unwrap().op, OpNumber(4));
    }
    assert_eq!(vcsim.control("/calls?method=ReconfigVM_Task"), "2");
}

#[tokio::test]
async fn what_its_owner_writes_meanwhile_is_not_lost() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let (driver, _) = opened(&manager(&vcsim, ""), 1).await;
    let _ = vcsim.control("/stranger?name=mail&annotation=old");
    let found = called(&driver, "mail").await;
    // As when it was changed between the look at it and the change.
    let _ = vcsim.control("/fail?fault=ConcurrentAccess&method=ReconfigVM_Task");
    let busy = driver.perform(&adopt(vm(0), 1, &found)).await;
    assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
    assert_eq!(says(&vcsim, "mail").2, "old");
    let _ = vcsim.control("/annotate?vm=mail&to=new");
    driver.perform(&adopt(vm(0), 1, &found)).await.unwrap();
    assert_eq!(says(&vcsim, "mail").2.split_once('\n').unwrap().1, "new");
    let asked = vcsim.control("/body?method=ReconfigVM_Task");
    assert!(asked.contains("<spec><changeVersion>"), "{asked}");
}

#[tokio::test]
async fn what_cannot_be_adopted_is_left_out_or_says_why() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    driver.perform(&create(5, 1, &hosts[0])).await.unwrap();
    for name in ["golden", "busy", "plain", "f44dec3f-0dad-599c-bfc4-bbe000698666"] {
        let _ = vcsim.control(&format!("/stranger?name={name}"));
    }
    let _ = vcsim.control("/template?vm=golden");
    let _ = vcsim.control(&format!("/copy?vm={}&name=copy", vm(5)));
    let unfit = async {
        loop {
            let found = driver.foreign().await.unwrap();
            let unfit: Vec<(String, String)> = found.into_iter().filter_map(|vm| Some((vm.name, vm.unfit?))).collect();
            if unfit.len() == 2 {
                return unfit;
            }
        }
    };
    let mut unfit = env().timeout(SOON, unfit).await.expect("the copy is made");
    unfit.sort();
    assert!(unfit[0].0 == "copy" && unfit[0].1.contains(&vm(5).to_string()), "{unfit:?}");
    assert!(unfit[1].1.contains("rename it"), "{unfit:?}");
    let copy = called(&driver, "copy").await;
    let refused = driver.perform(&adopt(vm(0), 1, &copy)).await;
    assert!(matches!(&refused, Err(Error::Invalid { detail }) if detail.contains("carries the note")), "{refused:?}");

    // One that a task is at is not listed, and is waited for.
    let busy = called(&driver, "busy").await;
    let names = |found: Vec<ForeignVm>| found.into_iter().map(|vm| vm.name).collect::<BTreeSet<String>>();
    let _ = vcsim.control("/slow?ms=8000");
    let _ = vcsim.control("/power?vm=busy&on=false");
    let gone = async {
        while names(driver.foreign().await.unwrap()).contains("busy") {
            env().sleep(Duration::from_millis(20)).await;
        }
    };
    env().timeout(SOON, gone).await.expect("it is left out while it is stopped");
    let _ = vcsim.control("/heal");
    let facts = driver.perform(&adopt(vm(1), 1, &busy)).await.unwrap().unwrap();
    assert_eq!(facts.power, PowerState::Stopped);
    let left = names(driver.foreign().await.unwrap());
    assert!(left.contains("plain") && left.len() == 3, "no template, nothing of ours: {left:?}");
}

#[tokio::test]
async fn one_whose_note_was_taken_away_is_not_taken_for_gone() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let (driver, _) = opened(&manager(&vcsim, ""), 1).await;
    let _ = vcsim.control("/stranger?name=mail");
    driver.perform(&adopt(vm(0), 1, &called(&driver, "mail").await)).await.unwrap();
    let heard = async { while !driver.changes().await.unwrap().contains(&Change::Vm(vm(0))) {} };
    env().timeout(SOON, heard).await.expect("that it is ours now is heard");
    let _ = vcsim.control("/annotate?vm=mail&to=mine");
    let has_none = format!("{} has no note", vm(0));
    told(&driver, |irregular| irregular.detail.contains(&has_none)).await;
    let said = driver.inspect(vm(0)).await;
    assert!(matches!(&said, Err(Error::Transient { detail }) if detail.contains("lost its note")), "{said:?}");
    for action in [Action::Delete, Action::Stop(StopMode::Hard)] {
        let refused = driver.perform(&op(vm(0), 2, action)).await;
        assert!(matches!(refused, Err(Error::Permanent { .. })), "{refused:?}");
    }
    assert_eq!(vcsim.control("/calls?method=Destroy_Task"), "0");
    // For an owner that never saw it otherwise it is somebody's VM, which can be adopted.
    let (next, _) = opened(&manager(&vcsim, ""), 2).await;
    assert_eq!(next.inspect(vm(0)).await.unwrap(), None);
    assert_eq!(next.perform(&op(vm(0), 2, Action::Delete)).await, Ok(None));
    next.perform(&adopt(vm(0), 3, &called(&next, "mail").await)).await.unwrap();
    assert_eq!(vcsim.control("/calls?method=Destroy_Task"), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_are_listed_in_pages_and_adopted_one_call_each() {
    const VMS: usize = 1_000;
    let Some(vcsim) = Vcsim::start(&["-vms", "1000", "-hosts", "4"]) else { return };
    let (driver, _) = opened(&manager(&vcsim, ""), 1).await;
    let reads = || -> u32 {
        ["RetrievePropertiesEx", "ContinueRetrievePropertiesEx"]
            .map(|method| vcsim.control(&format!("/calls?method={method}")).parse::<u32>().unwrap())
            .iter()
            .sum()
    };
    let before = reads();
    let found = driver.foreign().await.unwrap();
    let asked = reads() - before;
    assert_eq!(found.iter().map(|vm| &vm.key).collect::<BTreeSet<_>>().len(), VMS);
    assert!(found.iter().all(|vm| vm.unfit.is_none() && vm.facts.size.disk_gib == 10), "{:?}", found[0]);
    assert!(asked < 12, "{asked} questions for {VMS} VMs");
    stream::iter((0..).zip(&found))
        .for_each_concurrent(16, |(index, foreign)| {
            let driver = &driver;
            async move { assert_eq!(driver.perform(&adopt(vm(index), 1, foreign)).await, Ok(Some(foreign.facts.clone()))) }
        })
        .await;
    let inventory = driver.inventory().await.unwrap();
    assert_eq!((inventory.vms.len(), inventory.foreign_vms), (VMS, 0));
    assert_eq!(driver.foreign().await.unwrap(), Vec::new());
    assert_eq!(vcsim.control("/calls?method=ReconfigVM_Task"), VMS.to_string());
}
