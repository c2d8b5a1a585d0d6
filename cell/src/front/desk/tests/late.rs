//! Readings of the manager that come late.

use super::*;

#[test]
fn a_reading_that_is_older_than_a_removal_brings_nothing_back() {
    let mut t = Test::new(2);
    t.call(0, 1, spec(1));
    let start = t.start();
    t.succeed(&start);
    t.answers();
    let began = t.desk.holdings.now();
    let found = held(0, "h0");
    t.call(0, 2, Action::Delete);
    let start = t.start();
    t.end(&start, Ok(None));
    assert_eq!((t.desk.holdings.present(), t.used()), (0, 0));
    // What was read as the VM was still there comes late.
    assert!(!t.desk.inspected(vm(0), Some(&found), began));
    let inventory = Inventory { hosts: vec![host("h0"), host("h1")], vms: vec![found.clone()], ..Inventory::default() };
    assert_eq!(t.desk.reread(&inventory, began), []);
    assert_eq!(t.desk.holdings.present(), 0, "it is gone");
    assert_eq!(std::mem::take(&mut t.desk.read_again), [vm(0), vm(0)]);
    // One that was read since is there.
    assert!(t.desk.inspected(vm(0), Some(&found), t.desk.holdings.now()));
    assert_eq!(t.desk.holdings.present(), 1);
}

#[test]
fn a_vm_that_is_there_on_a_host_that_is_not_known_yet_is_not_refused_to_be_made_elsewhere() {
    let mut t = Test::new(1);
    // Somebody made it for an older owner, on a host that was gone as the inventory was read.
    assert!(t.desk.inspected(vm(0), Some(&held(0, "h7")), t.desk.holdings.now()));
    t.call(0, 1, spec(100));
    assert_eq!(later(&t.answer()), LaterReason::Opening, "no host here has the room, and it needs none");
    assert!(std::mem::take(&mut t.desk.outdated), "the manager is read again");
    let inventory = Inventory { hosts: vec![host("h0"), host("h7")], vms: vec![held(0, "h7")], ..Inventory::default() };
    t.desk.reread(&inventory, t.desk.holdings.now());
    t.call(0, 1, spec(100));
    assert_eq!(t.start().op.host.unwrap().as_str(), "h7");
}
