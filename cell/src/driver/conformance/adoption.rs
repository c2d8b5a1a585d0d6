//! VMs that somebody else made, and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::ForeignKey;
use cellbus_bus::job::StopMode;
use cellbus_workflows::{Action, AdoptSpec};
use futures::future::join_all;

use super::super::{Error, ForeignVm, Op};
use super::{Opened, Rig, op, short, vm};

fn adopt(index: u32, number: u64, key: &ForeignKey) -> Op {
    let name = format!("vm-{index}").parse().expect("a VM name");
    let spec = AdoptSpec { tenant: "acme".parse().expect("a tenant"), name, foreign: Some(key.clone()) };
    op(vm(index), number, Action::Adopt(Arc::new(spec)))
}

/// So many VMs that are not Cellbus's, and whoever lists them.
async fn strangers(rig: &dyn Rig, many: usize) -> (Opened, Vec<ForeignVm>) {
    for _ in 0..many {
        assert!(rig.stranger().await, "there can be none: a rig for which that is so leaves the case out");
    }
    let it = Opened::by(rig, 1).await;
    let found = listed(&it).await;
    assert_eq!(found.len(), many, "{found:?}");
    (it, found)
}

async fn listed(it: &Opened) -> Vec<ForeignVm> {
    let mut found = it.driver.foreign().await.expect("what is not Cellbus's is listed");
    found.sort_by(|a, b| a.key.cmp(&b.key));
    found
}

/// What others made is listed with what it is; adopted, it is a VM like any other, and nothing of it changed.
pub async fn what_others_made_is_listed_and_adopted(rig: &dyn Rig) {
    let (it, found) = strangers(rig, 2).await;
    assert!(found.iter().all(|vm| vm.unfit.is_none() && it.hosts.contains(&vm.facts.host)), "{found:?}");
    assert_eq!(it.driver.inventory().await.expect("inventory").foreign_vms, 2);
    let ask = adopt(0, 3, &found[0].key);
    assert_eq!(it.done(&ask).await, found[0].facts);
    let held = it.there(vm(0)).await.expect("it is ours");
    assert_eq!((held.tenant.as_str(), held.name.as_str(), held.op), ("acme", "vm-0", ask.number));
    assert_eq!(held.facts, found[0].facts);
    let inventory = it.driver.inventory().await.expect("inventory");
    assert_eq!((inventory.vms, inventory.foreign_vms), (vec![held.clone()], 1));
    assert_eq!(listed(&it).await, found[1..], "the other is as it was");

    // Whoever owns the manager next knows it, and goes on.
    let next = Opened::by(rig, 2).await;
    assert_eq!(next.there(vm(0)).await, Some(held));
    let lower = next.perform(&op(vm(0), 2, Action::Delete)).await;
    assert!(matches!(lower, Err(Error::Superseded { .. })), "{lower:?}");
    next.done(&op(vm(0), 4, Action::Stop(StopMode::Hard))).await;
    assert_eq!(next.done(&op(vm(0), 5, Action::Snapshot(short("one")))).await.snapshots, [short("one")]);
    next.done(&op(vm(0), 6, Action::Start)).await;
    assert_eq!(next.perform(&op(vm(0), 7, Action::Delete)).await, Ok(None));
    assert_eq!(next.there(vm(0)).await, None);
    assert_eq!(listed(&next).await, found[1..]);
}

/// Asked again, at once or later, whatever became of the answer, it is adopted once.
pub async fn an_adoption_is_found_again(rig: &dyn Rig) {
    let (it, found) = strangers(rig, 3).await;
    let asked: Vec<Op> = (0..).zip(&found).map(|(index, vm)| adopt(index, 3, &vm.key)).collect();
    for answer in join_all([it.perform(&asked[0]), it.perform(&asked[0])]).await {
        assert_eq!(answer, Ok(Some(found[0].facts.clone())));
    }
    // Polled once and dropped.
    let _ = rig.env().timeout(Duration::ZERO, it.perform(&asked[1])).await;
    assert_eq!(it.done(&asked[1]).await, found[1].facts);
    if let Some(faults) = rig.faults() {
        faults.lose_next_answer().await;
        let _ = it.perform(&asked[2]).await;
        faults.heal().await;
    }
    let next = Opened::by(rig, 2).await;
    for (op, foreign) in asked.iter().zip(&found) {
        assert_eq!(next.done(op).await, foreign.facts);
    }
    assert_eq!((next.count().await, listed(&next).await), (3, Vec::new()));
    let older = next.perform(&Op { number: cellbus_bus::ids::OpNumber(2), ..asked[0].clone() }).await;
    assert!(matches!(older, Err(Error::Superseded { .. })), "{older:?}");
}

/// What is not there is not adopted, and what is adopted is not adopted as another.
pub async fn adopting_never_makes_a_vm(rig: &dyn Rig) {
    let (it, found) = strangers(rig, 1).await;
    let nothing = "00000000-0000-4000-8000-000000000000".parse().expect("a key");
    assert_eq!(it.perform(&adopt(0, 1, &nothing)).await, Err(Error::NotFound));
    assert_eq!((it.count().await, it.there(vm(0)).await), (0, None));
    it.done(&adopt(0, 2, &found[0].key)).await;
    let other = it.perform(&adopt(1, 1, &found[0].key)).await;
    assert!(matches!(other, Err(Error::NotFound | Error::Invalid { .. })), "{other:?}");
    assert_eq!((it.count().await, it.there(vm(1)).await), (1, None));
}
