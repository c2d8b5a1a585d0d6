//! Hosts that are dead: the homes of VMs there are told, with a host that has room for each.
//!
//! That a host does not answer says nothing: it may run its VMs as before, cut off. Dead is one of which
//! the manager itself is certain, or of which it was told so ([`crate::driver::Driver::dead_hosts`]). It is asked while VMs of ours are
//! on a host that takes none; and the desk begins a failover only while the last answer says so.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::env::Mono;
use cellbus_bus::ids::{HostId, VmId};
use cellbus_bus::job::{Layout, Size};
use cellbus_directory::ManagerMode;

use super::done::Done;
use super::holdings::Holdings;
use super::hosts::{Amount, Groups, Place, Wanted};
use super::{Front, Work, said};
use crate::driver::Error;

/// How often the manager is asked which hosts are dead, while there may be VMs on some.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How often homes are told again of VMs that are still there: their work may have been refused, or they
/// are not to be started elsewhere at all.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// When the manager was asked, and homes were told.
#[derive(Default)]
pub(super) struct Died {
    asking: bool,
    asked_at: Option<Mono>,
    told_at: Option<Mono>,
    told: BTreeSet<HostId>,
}

/// A VM that is on a dead host, and a host that would take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stranded {
    pub(crate) vm: VmId,
    pub(crate) from: HostId,
    pub(crate) to: HostId,
}

impl Front {
    /// Asks which hosts are dead, if that matters and is due.
    pub(super) fn look_for_dead_hosts(&self, work: &mut Work, now: Mono) {
        let hosts = work.desk.holdings.hosts.all();
        let matters = hosts.iter().any(|host| !host.usable && host.vms > 0);
        if !matters || self.orders.mode(&self.config) == ManagerMode::ReadOnly {
            work.died = Died { asking: work.died.asking, ..Died::default() };
            work.desk.dead = BTreeSet::new();
            return;
        }
        let due = work.died.asked_at.is_none_or(|at| now.since(at) >= ASK_EVERY);
        if !due || work.died.asking || !work.desk.circuit.closed() || work.desk.revoked {
            return;
        }
        work.died.asking = true;
        work.died.asked_at = Some(now);
        let (driver, env, limit) = (Arc::clone(&self.driver), self.env.clone(), self.config.read_timeout);
        work.start(None, Box::pin(async move { Done::DeadHosts(said(env.timeout(limit, driver.dead_hosts()).await)) }));
    }

    /// The manager has said which hosts are dead.
    pub(super) fn dead_hosts(&self, work: &mut Work, result: Result<Vec<HostId>, Error>) {
        work.died.asking = false;
        // No answer is no certainty.
        let dead: BTreeSet<HostId> = result.unwrap_or_default().into_iter().collect();
        work.desk.dead.clone_from(&dead);
        let now = self.env.mono();
        let again = work.died.told_at.is_none_or(|at| now.since(at) >= TELL_EVERY);
        if dead.is_empty() || (dead == work.died.told && !again) {
            return;
        }
        let (stranded, without_room) = stranded(&work.desk.holdings, &dead);
        if without_room > 0 {
            tracing::warn!(manager = %self.config.name, vms = without_room, "VMs of dead hosts have no room on others of the same labels");
        }
        if work.died.told != dead {
            let hosts: Vec<&str> = dead.iter().map(HostId::as_str).collect();
            tracing::warn!(manager = %self.config.name, ?hosts, vms = stranded.len(), "hosts are dead");
        }
        (work.died.told_at, work.died.told) = (Some(now), dead);
        if !stranded.is_empty() {
            self.outside.died(self.id(), stranded);
        }
    }
}

/// The VMs on these hosts, each with another that would take it and has the same labels: whatever was
/// required of the one is true of the other. And how many there is no room for.
fn stranded(holdings: &Holdings, dead: &BTreeSet<HostId>) -> (Vec<Stranded>, usize) {
    let mut hosts = holdings.hosts.clone();
    // Nothing new is put on a manager that is cordoned; these are not new.
    let cordons: Vec<Option<HostId>> =
        hosts.all().iter().filter(|host| host.cordoned).map(|host| Some(host.id.clone())).collect();
    hosts.set_cordons(&cordons);
    let none = Groups::default();
    let on_dead: Vec<(VmId, Place, Amount, Groups)> = holdings
        .all()
        .filter_map(|(vm, held)| {
            let place = held.place().filter(|at| held.seen.is_some() && is_dead(hosts.host(at.host), dead))?;
            Some((vm, place, held.amount, held.groups.as_deref().unwrap_or(&none).clone()))
        })
        .collect();
    for (_, place, amount, groups) in &on_dead {
        hosts.give_back(place.host, *amount, groups);
    }
    let (mut found, mut without_room) = (Vec::new(), 0);
    for (vm, from, amount, groups) in on_dead {
        let labels = Arc::clone(&hosts.host(from.host).labels);
        let size = Size {
            vcpus: u32::try_from(amount.vcpus).unwrap_or(u32::MAX),
            memory_mib: amount.memory_mib,
            disk_gib: amount.disk_gib,
        };
        let wanted = Wanted {
            size: &size,
            require: &labels,
            layout: Layout::Spread,
            groups: &groups,
            host: None,
            moves: true,
            lies: from.store,
        };
        match hosts.choose(&wanted) {
            Ok(to) => {
                hosts.take(to.host, amount, &groups);
                if to.store != from.store {
                    hosts.lay(to.store, amount.disk_gib, false);
                }
                found.push(Stranded { vm, from: hosts.host(from.host).id.clone(), to: hosts.host(to.host).id.clone() });
            }
            Err(_) => without_room += 1,
        }
    }
    (found, without_room)
}

/// Whether the manager says so, in both of the ways in which it says something of its hosts.
pub(super) fn is_dead(host: &super::hosts::HostState, dead: &BTreeSet<HostId>) -> bool {
    !host.usable && dead.contains(&host.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{HeldVm, Host, Inventory};
    use crate::front::hosts::OverCommit;
    use cellbus_bus::ids::{JobId, OpNumber};
    use cellbus_bus::job::Labels;
    use cellbus_directory::{PowerState, VmFacts};

    fn host(id: &str, gear: &str, usable: bool) -> Host {
        let labels = Labels::from([("gear".to_owned(), gear.to_owned())]);
        Host { id: id.parse().unwrap(), vcpus: 4, memory_mib: 4096, disk_gib: 100, labels, usable }
    }
    fn vm(n: u32, host: &str, group: Option<&str>) -> HeldVm {
        let size = Size { vcpus: 1, memory_mib: 1024, disk_gib: 1 };
        HeldVm {
            id: JobId::derive("acme", "/test", "died").vm(n),
            facts: VmFacts { host: host.parse().unwrap(), power: PowerState::Running, size, snapshots: Vec::new() },
            tenant: "acme".parse().unwrap(),
            name: "web".parse().unwrap(),
            op: OpNumber(1),
            affinity: group.map(|group| group.parse().unwrap()),
            anti_affinity: None,
            datastore: None,
        }
    }

    #[test]
    fn each_vm_of_a_dead_host_is_given_one_with_room_and_the_same_labels() {
        let hosts = vec![
            host("a", "g1", false),
            host("b", "g1", true),
            host("c", "g2", true),
            host("d", "g1", true),
            host("e", "g1", false),
        ];
        let vms =
            vec![vm(0, "a", None), vm(1, "a", Some("g")), vm(2, "a", Some("g")), vm(3, "b", None), vm(4, "e", None)];
        let inventory = Inventory { hosts, vms, ..Inventory::default() };
        let mut holdings = Holdings::new("vc-1".parse().unwrap(), OverCommit::default(), Vec::new(), &inventory);
        // A manager that is leaving takes nothing new; these are there already.
        holdings.hosts.set_cordons(&[None]);
        let dead = BTreeSet::from(["a".parse().unwrap(), "b".parse().unwrap()]);
        let (found, without_room) = stranded(&holdings, &dead);
        assert_eq!((found.len(), without_room), (3, 0), "b is said to be dead and well, e may live: {found:?}");
        assert!(
            found.iter().all(|stranded| stranded.from.as_str() == "a" && ["b", "d"].contains(&stranded.to.as_str()))
        );
        let to = |n: u32| found.iter().find(|it| it.vm == vm(n, "a", None).id).unwrap().to.clone();
        assert_eq!(to(1), to(2), "who must share a host does");
    }

    #[test]
    fn what_has_no_room_elsewhere_stays() {
        let hosts = vec![host("a", "g1", false), host("b", "g1", true), host("c", "g2", true)];
        let vms: Vec<HeldVm> = (0..4).map(|n| vm(n, "a", None)).chain((4..6).map(|n| vm(n, "b", None))).collect();
        let inventory = Inventory { hosts, vms, ..Inventory::default() };
        let holdings = Holdings::new("vc-1".parse().unwrap(), OverCommit::default(), Vec::new(), &inventory);
        let (found, without_room) = stranded(&holdings, &BTreeSet::from(["a".parse().unwrap()]));
        assert_eq!((found.len(), without_room), (2, 2), "{found:?}");
    }
}
