//! Hosts that share a datastore.

use super::*;
use crate::driver::Datastore;

impl Test {
    /// Reads the manager again: `h0` and `h1` share a datastore of 25 GiB, of which so much is free, and on which
    /// these VMs lie, each with its host.
    fn shares(&mut self, free_gib: u64, vms: &[(u32, &str)]) {
        let bare = |name: &str| Host { disk_gib: 0, ..host(name) };
        let on_it = |(i, host): &(u32, &str)| HeldVm { datastore: Some("ds-1".to_owned()), ..held(*i, host) };
        let hosts = vec![bare("h0"), bare("h1")];
        let sees = hosts.iter().map(|host| host.id.clone()).collect();
        let store = Datastore { name: "ds-1".to_owned(), total_gib: 25, free_gib, usable: true, hosts: sees };
        let (vms, datastores) = (vms.iter().map(on_it).collect(), vec![store]);
        let now = self.desk.holdings.now();
        self.desk.reread(&Inventory { hosts, vms, datastores, ..Inventory::default() }, now);
    }
    fn free(&self) -> u64 {
        let hosts = &self.desk.holdings.hosts;
        hosts.store_at(hosts.store("ds-1").unwrap()).free()
    }
}

#[test]
fn creates_at_the_same_time_do_not_overfill_a_datastore() {
    let mut t = Test::new(2);
    t.shares(25, &[]);
    t.call(0, 1, spec(1));
    t.call(1, 1, spec(1));
    let starts = t.started();
    let at: Vec<_> = starts.iter().map(|start| start.op.host.as_ref().unwrap().as_str()).collect();
    assert_eq!(at, ["h0", "h1"]);
    assert!(starts.iter().all(|start| start.op.datastore.as_deref() == Some("ds-1")));
    assert_eq!(t.free(), 5, "each has taken its own while it is made");
    t.call(2, 1, spec(1));
    t.succeed(&starts[0]);
    let answers = t.answers();
    let refused = answers.iter().find_map(|answer| match answer {
        Answer::Refused(refusal) => Some(refusal),
        _ => None,
    });
    let refused = refused.unwrap_or_else(|| panic!("{answers:?}"));
    assert_eq!(refused.reason, RefusalReason::NoRoom);
    assert!(refused.detail.contains("datastore ds-1 has 5"), "{refused:?}");
    // Of the other it is not known what became: it keeps its room.
    t.end(&starts[1], Err(Error::Unreachable { detail: "no answer".into() }));
    t.answer();
    assert_eq!(t.free(), 5);
    // The manager is read: it knows of one of them, and says what that has left free.
    t.shares(15, &[(0, "h0")]);
    assert_eq!(t.free(), 5, "the other is not in what it said");
    // Somebody else fills it.
    t.shares(3, &[(0, "h0"), (1, "h1")]);
    assert_eq!(t.free(), 3);
    t.call(0, 2, Action::Delete);
    let start = t.start();
    t.end(&start, Ok(None));
    t.answer();
    assert_eq!(t.free(), 13);
}

#[test]
fn a_move_between_hosts_that_share_it_takes_none_of_it_and_a_growth_does() {
    let mut t = Test::new(2);
    t.shares(15, &[(0, "h0"), (1, "h0")]);
    assert_eq!(t.free(), 5, "what is promised counts, though its disks have not grown to it");
    t.call(0, 2, Action::Relocate("h1".parse().unwrap()));
    let moving = t.start();
    assert_eq!((t.free(), moving.op.datastore.as_deref()), (5, Some("ds-1")));
    t.shares(15, &[(0, "h0"), (1, "h0")]);
    assert_eq!((t.free(), t.used()), (5, 3), "read again while it moves");
    t.end(&moving, Ok(Some(VmFacts { size: size(1), ..facts(&moving) })));
    t.answer();
    assert_eq!((t.free(), t.used()), (5, 2));
    let grown = |disk_gib| Action::Resize(Size { disk_gib, ..size(1) });
    t.call(1, 2, grown(16));
    let Answer::Refused(refusal) = t.answer() else { panic!("there is no room") };
    assert!(refusal.detail.contains("its datastore ds-1 has 5 GiB left"), "{refusal:?}");
    t.call(1, 3, grown(15));
    let growing = t.start();
    assert_eq!(t.free(), 0);
    t.end(&growing, Ok(Some(VmFacts { size: Size { disk_gib: 15, ..size(1) }, ..facts(&growing) })));
    t.answer();
    assert_eq!(t.free(), 0);
}

#[test]
fn a_host_that_has_less_room_than_is_known_has_the_manager_read_again() {
    let mut t = Test::new(2);
    t.shares(25, &[]);
    t.call(0, 1, spec(1));
    let start = t.start();
    assert!(!t.desk.outdated);
    t.end(&start, Err(Error::NoRoom { detail: "datastore ds-1 has 3 GiB free, and 10 are wanted".into() }));
    let again = t.start();
    assert_ne!(again.op.host, start.op.host, "another host may see another datastore");
    assert!(t.desk.outdated);
    t.end(&again, Err(Error::NoRoom { detail: "nor here".into() }));
    assert!(matches!(t.answer(), Answer::Refused(_)));
    assert_eq!(t.free(), 25, "nothing is left of it");
}
