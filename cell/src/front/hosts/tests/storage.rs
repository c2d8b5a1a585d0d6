use super::*;

fn store(name: &str, total_gib: u64, free_gib: u64, hosts: &[&str]) -> Datastore {
    let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
    Datastore { name: name.to_owned(), total_gib, free_gib, usable: true, hosts }
}
fn network(name: &str, ports_free: Option<u64>, hosts: &[&str]) -> Network {
    Network { name: name.to_owned(), ports_free, hosts: hosts.iter().map(|host| host.parse().unwrap()).collect() }
}
fn of(hosts: &[Host], datastores: Vec<Datastore>) -> Inventory {
    Inventory { hosts: hosts.to_vec(), datastores, ..Inventory::default() }
}
fn made(inventory: &Inventory, networks: &[&str]) -> Hosts {
    let networks: Vec<String> = networks.iter().map(|name| (*name).to_owned()).collect();
    Hosts::new("vc-1".parse().unwrap(), inventory, OverCommit::default(), &networks)
}
fn disk(gib: u64) -> Ask {
    Ask { size: Size { vcpus: 1, memory_mib: 1, disk_gib: gib }, ..Ask::new(1) }
}
/// Places it, and counts it as a create that is under way.
fn put(hosts: &mut Hosts, ask: &Ask) -> Result<(String, Option<String>), Refusal> {
    let place = hosts.choose(&ask.wanted())?;
    hosts.take(place.host, Amount::of(&ask.size), &ask.groups);
    hosts.lay(place.store, ask.size.disk_gib, false);
    hosts.plug();
    let store = place.store.map(|store| hosts.store_at(store).name.clone());
    Ok((hosts.host(place.host).id.to_string(), store))
}

#[test]
fn a_datastore_that_hosts_share_is_filled_once() {
    let listed = [host("a", 64, "g1"), host("b", 64, "g1"), host("c", 64, "g2")];
    let mut all = made(&of(&listed, vec![store("ds-1", 100, 100, &["a", "b", "c"])]), &[]);
    let summary = all.summary();
    let sum = |of: fn(&cellbus_workflows::ClassSummary) -> u64| summary.iter().map(of).sum::<u64>();
    assert_eq!((sum(|c| c.disk_gib_total), sum(|c| c.disk_gib_free)), (100, 100), "once, not once a host");
    assert!(summary.iter().all(|class| class.disk_gib_free_max == 100), "one disk may take all of it: {summary:?}");
    let hosts: Vec<_> = (0..3).map(|_| put(&mut all, &disk(30)).unwrap()).collect();
    assert_eq!(hosts.iter().map(|(host, _)| host.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(hosts.iter().all(|(_, store)| store.as_deref() == Some("ds-1")));
    let refusal = put(&mut all, &disk(30)).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::NoRoom);
    assert_eq!(
        refusal.detail,
        "looked at 3 hosts of vc-1: 3 see no datastore with 30 GiB free (datastore ds-1 has 10)"
    );
    assert!(put(&mut all, &disk(10)).is_ok());
    assert_eq!(all.summary().iter().map(|class| class.disk_gib_free).sum::<u64>(), 0);
    // One goes, and its room may be promised again.
    all.lift(all.store("ds-1"), 30, false);
    assert!(put(&mut all, &disk(31)).is_err());
    assert!(put(&mut all, &disk(30)).is_ok());
}

#[test]
fn what_others_wrote_counts_and_a_closed_datastore_takes_nothing() {
    let listed = [host("a", 64, "g1"), host("b", 64, "g1")];
    let mut half = store("ds-1", 1000, 40, &["a", "b"]);
    let mut all = made(&of(&listed, vec![half.clone()]), &[]);
    // What the manager knew of when it said what is free is not taken off twice.
    all.lay(all.store("ds-1"), 100, true);
    assert!(put(&mut all, &disk(41)).is_err());
    put(&mut all, &disk(30)).unwrap();
    assert!(put(&mut all, &disk(11)).is_err());
    // A local one beside it takes what does not go there.
    let mut both = made(&of(&listed, vec![half.clone(), store("local-b", 500, 500, &["b"])]), &[]);
    assert_eq!(put(&mut both, &disk(50)).unwrap(), ("b".to_owned(), Some("local-b".to_owned())));
    half.usable = false;
    let mut closed = made(&of(&listed, vec![half]), &[]);
    assert_eq!(put(&mut closed, &disk(1)).unwrap_err().reason, RefusalReason::NoRoom);
    assert_eq!(closed.summary()[0].disk_gib_free_max, 0);
}

#[test]
fn a_vm_that_moves_to_a_host_that_sees_its_datastore_takes_no_more_of_it() {
    let listed = [host("a", 64, "g1"), host("b", 64, "g1"), host("c", 64, "g1")];
    let stores = vec![store("ds-1", 100, 100, &["a", "b"]), store("ds-2", 50, 50, &["c"])];
    let mut all = made(&of(&listed, stores), &[]);
    let on = all.store("ds-1");
    all.lay(on, 90, false);
    let index = |name: &str| all.find(&name.parse().unwrap()).unwrap();
    assert_eq!(all.place_for(index("b"), 90, on).map(|(place, gib)| (place.store, gib)), Some((on, 0)));
    assert_eq!(all.place_for(index("c"), 90, on), None);
    assert_eq!(all.place_for(index("c"), 50, on).map(|(_, gib)| gib), Some(50));
    assert_eq!(all.place_for(index("b"), 90, None), None, "another VM needs room for its disk");
}

#[test]
fn a_host_without_the_network_and_a_network_without_ports_take_nothing() {
    let listed = [host("a", 64, "g1"), host("b", 64, "g1")];
    let mut inventory = of(&listed, Vec::new());
    inventory.networks = vec![network("blue", Some(2), &["b"]), network("red", None, &["a", "b"])];
    let mut all = made(&inventory, &["blue", "red"]);
    let summary = all.summary();
    assert_eq!((summary[0].hosts, summary[0].hosts_open, summary[0].vcpus_free), (2, 1, 64));
    assert_eq!(put(&mut all, &disk(1)).unwrap().0, "b");
    let refusal = put(&mut all, &disk(1).require("host", "a")).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::NoMatch);
    assert!(refusal.detail.ends_with("1 are not on network blue"), "{refusal:?}");
    put(&mut all, &disk(1)).unwrap();
    let refusal = put(&mut all, &disk(1)).unwrap_err();
    assert_eq!(
        (refusal.reason, refusal.detail.as_str()),
        (RefusalReason::NoRoom, "network blue of vc-1 has no port free")
    );
    assert_eq!(all.summary()[0].hosts_open, 0);
    let ask = disk(1);
    assert!(all.choose(&Wanted { moves: true, ..ask.wanted() }).is_ok(), "a VM that moves has its port");
    all.unplug();
    assert!(put(&mut all, &disk(1)).is_ok());
    // Nothing is known of a network that is needed: no host is on it.
    assert_eq!(made(&inventory, &["green"]).summary()[0].hosts_open, 0);
}

proptest! {
    /// However VMs come, go and move over hosts that share datastores in part, no datastore is promised beyond
    /// what it has or what was free, a VM is refused only when no host will do, and the classes add up to what
    /// the datastores have.
    #[test]
    fn no_datastore_is_ever_overfilled(
        wants in proptest::collection::vec((1_u64..40, 0_u8..3, any::<bool>()), 1..120),
        frees in proptest::collection::vec(0_u64..300, 3),
    ) {
        let listed: Vec<Host> =
            (0..5).map(|i| host(&format!("h{i}"), 60, if i % 2 == 0 { "g1" } else { "g2" })).collect();
        // h4 sees none, and has its own disk.
        let sees: [&[&str]; 3] = [&["h0", "h1", "h2"], &["h2", "h3"], &["h3"]];
        let stores = (0..3).map(|i| store(&format!("ds-{i}"), 200, frees[i].min(200), sees[i])).collect();
        let mut all = made(&of(&listed, stores), &[]);
        let mut placed: Vec<(Place, Amount)> = Vec::new();
        let mut laid = [0_u64; 3];
        for (gib, what, second) in wants {
            let at = gib as usize % placed.len().max(1);
            if what == 0 && !placed.is_empty() {
                let (place, amount) = placed.swap_remove(at);
                all.give_back(place.host, amount, &Groups::default());
                all.lift(place.store, amount.disk_gib, false);
                if let Some(store) = place.store { laid[store.0 as usize] -= amount.disk_gib; }
                continue;
            }
            if what == 1 && !placed.is_empty() {
                let (from, amount) = placed[at];
                let target = HostIndex(u32::from(second) * 2 + 1);
                if let Some((to, more)) = all.place_for(target, amount.disk_gib, from.store)
                    && all.may_grow(to, &Amount { disk_gib: more, ..amount })
                {
                    all.give_back(from.host, amount, &Groups::default());
                    all.take(to.host, amount, &Groups::default());
                    all.lift(from.store, amount.disk_gib, false);
                    all.lay(to.store, amount.disk_gib, false);
                    if let Some(store) = from.store { laid[store.0 as usize] -= amount.disk_gib; }
                    if let Some(store) = to.store { laid[store.0 as usize] += amount.disk_gib; }
                    placed[at].0 = to;
                }
                continue;
            }
            let ask = disk(gib);
            let amount = Amount::of(&ask.size);
            match all.choose(&ask.wanted()) {
                Ok(place) => {
                    all.take(place.host, amount, &Groups::default());
                    all.lay(place.store, gib, false);
                    if let Some(store) = place.store { laid[store.0 as usize] += gib; }
                    placed.push((place, amount));
                }
                Err(_) => prop_assert!(!(0..5).any(|i| all.will_do(HostIndex(i), &amount, &ask.wanted()))),
            }
            let mut free = all.hosts.iter().map(|host| host.free().disk_gib).sum::<u64>();
            for (index, store) in all.stores.all() {
                let laid = laid[index.0 as usize];
                prop_assert_eq!(store.used, laid);
                prop_assert!(laid <= frees[index.0 as usize].min(200), "{:?}", store);
                free += store.free();
            }
            prop_assert_eq!(all.summary().iter().map(|class| class.disk_gib_free).sum::<u64>(), free);
        }
    }
}
