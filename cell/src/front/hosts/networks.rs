//! The networks that each new VM of a manager is put on: which hosts have them, and how many ports are free.

use std::collections::BTreeSet;

use cellbus_bus::ids::HostId;

use crate::driver::Network;

/// One network that every new VM needs.
#[derive(Clone, Debug)]
struct Needed {
    name: String,
    hosts: BTreeSet<HostId>,
    /// Ports that were free when it was read; `None`: it has no limit.
    seen_free: Option<u64>,
    /// VMs put on it since, and taken off.
    taken: u64,
    given: u64,
}
impl Needed {
    fn full(&self) -> bool {
        self.seen_free.is_some_and(|free| free.saturating_add(self.given) <= self.taken)
    }
}

/// Those that are needed. With none, any host will do.
#[derive(Clone, Debug, Default)]
pub(super) struct Networks(Vec<Needed>);

impl Networks {
    pub(super) fn new(needed: &[String], listed: &[Network]) -> Self {
        let of = |name: &String| {
            let found = listed.iter().find(|network| network.name == *name);
            Needed {
                name: name.clone(),
                hosts: found.map(|network| network.hosts.iter().cloned().collect()).unwrap_or_default(),
                seen_free: found.and_then(|network| network.ports_free),
                taken: 0,
                given: 0,
            }
        };
        Self(needed.iter().map(of).collect())
    }

    /// The first that this host is not on.
    pub(super) fn missing(&self, host: &HostId) -> Option<&str> {
        self.0.iter().find(|needed| !needed.hosts.contains(host)).map(|needed| needed.name.as_str())
    }

    /// The first that has no port free.
    pub(super) fn full(&self) -> Option<&str> {
        self.0.iter().find(|needed| needed.full()).map(|needed| needed.name.as_str())
    }

    /// A VM is about to be put on them.
    pub(super) fn plug(&mut self) {
        self.0.iter_mut().for_each(|needed| needed.taken += 1);
    }

    /// A VM has gone from them.
    pub(super) fn unplug(&mut self) {
        self.0.iter_mut().for_each(|needed| needed.given += 1);
    }
}
