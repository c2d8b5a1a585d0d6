use super::*;
use crate::driver::{Datastore, Network};
use proptest::prelude::*;

mod storage;

fn host(id: &str, vcpus: u32, gear: &str) -> Host {
    Host {
        id: id.parse().unwrap(),
        vcpus,
        memory_mib: u64::from(vcpus) * 4096,
        disk_gib: 1000,
        labels: Labels::from([("gear".to_owned(), gear.to_owned())]),
        usable: true,
    }
}
fn hosts(listed: &[Host]) -> Hosts {
    let inventory = Inventory { hosts: listed.to_vec(), ..Inventory::default() };
    Hosts::new("vc-1".parse().unwrap(), &inventory, OverCommit::default(), &[])
}
fn size(vcpus: u32) -> Size {
    Size { vcpus, memory_mib: 1024, disk_gib: 10 }
}
fn group(name: &str) -> Option<(TenantId, ShortName)> {
    Some(("acme".parse().unwrap(), name.parse().unwrap()))
}

struct Ask {
    size: Size,
    require: Labels,
    layout: Layout,
    groups: Groups,
}
impl Ask {
    fn new(vcpus: u32) -> Self {
        Self { size: size(vcpus), require: Labels::new(), layout: Layout::Spread, groups: Groups::default() }
    }
    fn require(mut self, key: &str, value: &str) -> Self {
        self.require.insert(key.to_owned(), value.to_owned());
        self
    }
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            size: &self.size,
            require: &self.require,
            layout: self.layout,
            groups: &self.groups,
            host: None,
            moves: false,
            lies: None,
        }
    }
    fn choose(&self, hosts: &Hosts) -> Result<String, Refusal> {
        hosts.choose(&self.wanted()).map(|place| hosts.host(place.host).id.to_string())
    }
    fn put(&self, hosts: &mut Hosts) -> Result<String, Refusal> {
        let chosen = self.choose(hosts)?;
        let index = hosts.find(&chosen.parse().unwrap()).unwrap();
        hosts.take(index, Amount::of(&self.size), &self.groups);
        Ok(chosen)
    }
}

#[test]
fn spread_takes_the_emptiest_and_pack_the_fullest_with_room() {
    let mut all = hosts(&[host("a", 8, "g1"), host("b", 8, "g1"), host("c", 8, "g1")]);
    let spread = Ask::new(2);
    let names: Vec<_> = (0..3).map(|_| spread.put(&mut all).unwrap()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(spread.put(&mut all).unwrap(), "a");
    let pack = Ask { layout: Layout::Pack, ..Ask::new(4) };
    assert_eq!(pack.put(&mut all).unwrap(), "a", "the fullest");
    assert_ne!(pack.put(&mut all).unwrap(), "a", "which is full now");
}

#[test]
fn labels_select_hosts_and_every_host_has_gear_manager_and_host() {
    let all = hosts(&[host("a", 8, "g1"), host("b", 8, "g2")]);
    assert_eq!(Ask::new(1).require("gear", "g2").choose(&all).unwrap(), "b");
    assert_eq!(Ask::new(1).require("host", "b").choose(&all).unwrap(), "b");
    assert_eq!(Ask::new(1).require("manager", "vc-1").choose(&all).unwrap(), "a");
    let refusal = Ask::new(1).require("manager", "vc-2").choose(&all).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::NoMatch);
    assert_eq!(refusal.detail, "looked at 2 hosts of vc-1: 2 lack the labels manager=vc-2");
}

#[test]
fn a_refusal_says_what_was_looked_at_and_why_each_was_ruled_out() {
    let mut listed = vec![host("a", 8, "g1"), host("b", 8, "g2"), host("c", 8, "g1"), host("d", 8, "g1")];
    listed[2].usable = false;
    let mut all = hosts(&listed);
    all.set_cordons(&[Some("d".parse().unwrap())]);
    let refusal = Ask::new(9).require("gear", "g1").choose(&all).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::NoRoom);
    assert_eq!(
        refusal.detail,
        "looked at 4 hosts of vc-1: 1 lack the labels gear=g1, 1 are cordoned, 1 are not usable, 1 have no room for 9 vCPUs, 1024 MiB, 10 GiB"
    );
    all.set_cordons(&[None]);
    assert_eq!(Ask::new(1).choose(&all).unwrap_err().reason, RefusalReason::Cordoned);
    all.set_cordons(&[]);
    assert!(Ask::new(1).choose(&all).is_ok());
}

#[test]
fn groups_are_hard_within_the_manager() {
    let mut all = hosts(&[host("a", 4, "g1"), host("b", 4, "g1")]);
    let apart = Ask { groups: Groups { affinity: None, anti_affinity: group("db") }, ..Ask::new(1) };
    assert_eq!(apart.put(&mut all).unwrap(), "a");
    assert_eq!(apart.put(&mut all).unwrap(), "b");
    assert_eq!(apart.put(&mut all).unwrap_err().reason, RefusalReason::Affinity);
    let together = Ask { groups: Groups { affinity: group("web"), anti_affinity: None }, ..Ask::new(1) };
    let first = together.put(&mut all).unwrap();
    assert_eq!(together.put(&mut all).unwrap(), first);
    assert_eq!(together.put(&mut all).unwrap(), first);
    assert_eq!(together.put(&mut all).unwrap_err().reason, RefusalReason::Affinity, "the other has room, but may not");
    // When the last of a group has gone, the next may go anywhere.
    let index = all.find(&first.parse().unwrap()).unwrap();
    for _ in 0..3 {
        all.give_back(index, Amount::of(&size(1)), &together.groups);
    }
    assert!(together.put(&mut all).is_ok());
}

#[test]
fn over_commit_promises_more_than_there_is() {
    let all = {
        let inventory = Inventory { hosts: vec![host("a", 4, "g1")], ..Inventory::default() };
        Hosts::new("vc-1".parse().unwrap(), &inventory, OverCommit { cpu: 4.0, memory: 1.0 }, &[])
    };
    assert_eq!(all.summary()[0].vcpus_free, 16);
    assert!(Ask::new(16).choose(&all).is_ok());
    assert!(Ask::new(17).choose(&all).is_err());
}

proptest! {
    /// However VMs come and go, no host is promised beyond what it has, the order in each class
    /// is that of fill, and a VM is refused only when in truth no host will do.
    #[test]
    fn no_host_is_ever_overfilled(
        sizes in proptest::collection::vec((1_u32..9, 0_u8..3, 0_u8..4, any::<bool>(), any::<bool>()), 1..200),
    ) {
        let listed: Vec<Host> = (0..7).map(|i| host(&format!("h{i}"), 4 + 4 * (i % 3), if i % 2 == 0 { "g1" } else { "g2" })).collect();
        let mut all = hosts(&listed);
        let mut placed: Vec<(HostIndex, Amount, Groups)> = Vec::new();
        for (vcpus, gear, groups, pack, remove) in sizes {
            if remove && !placed.is_empty() {
                let (index, amount, groups) = placed.swap_remove(vcpus as usize % placed.len());
                all.give_back(index, amount, &groups);
                continue;
            }
            let mut ask = Ask::new(vcpus);
            if gear > 0 { ask = ask.require("gear", &format!("g{gear}")); }
            if pack { ask.layout = Layout::Pack; }
            if groups == 1 { ask.groups.affinity = group("x"); }
            if groups == 2 { ask.groups.anti_affinity = group("y"); }
            let amount = Amount::of(&ask.size);
            let wanted = ask.wanted();
            match all.choose(&wanted) {
                Ok(Place { host: index, .. }) => {
                    prop_assert!(all.will_do(index, &amount, &wanted));
                    all.take(index, amount, &ask.groups);
                    placed.push((index, amount, ask.groups));
                }
                Err(_) => {
                    let any = (0..7).any(|i| all.will_do(HostIndex(i), &amount, &wanted));
                    prop_assert!(!any, "refused although a host would do");
                }
            }
            for host in all.all() {
                prop_assert!(host.used.computes(&host.total) && host.used.disk_gib <= host.total.disk_gib, "{host:?}");
            }
            for class in &all.classes {
                for (fill, index) in &class.order {
                    prop_assert_eq!(*fill, all.host(*index).fill());
                }
            }
        }
    }
}
