//! Which VMs of a host lie in domains that have another UUID than the VM's id: those that were adopted.
//!
//! libvirt finds a domain by its UUID, and not by what its metadata says. So this is remembered, and kept
//! true by what is heard: whichever domain came, went or changed is read again before anybody is answered.
//! Where it leads is looked at each time all the same.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cellbus_bus::ids::VmId;
use uuid::Uuid;

/// Domains that wait to be read again. When there are more, the whole host is.
const UNREAD_MAX: usize = 1_024;

#[derive(Default)]
pub(crate) struct Adopted(Mutex<State>);

#[derive(Default)]
struct State {
    /// `None`: nobody has read the host since its connection was opened.
    known: Option<Known>,
    /// What is to be read again, and when it was heard of.
    unread: BTreeMap<Uuid, u64>,
    /// Counts what is heard.
    clock: u64,
    /// When all that was known was given up last.
    forgotten: u64,
}

#[derive(Default)]
struct Known {
    by_vm: BTreeMap<VmId, Uuid>,
    by_domain: BTreeMap<Uuid, VmId>,
}

/// What has to be read before it can be relied on, as of a moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unsettled {
    /// Nothing.
    Nothing,
    /// All that is on the host.
    All(Moment),
    /// These domains.
    Some(Vec<Uuid>, Moment),
}

/// What was heard after it is not part of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(u64);

impl Adopted {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is known any more: what happened before now may not have been heard of.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        state.clock += 1;
        state.forgotten = state.clock;
        state.known = None;
        state.unread.clear();
    }
    /// Something happened to this domain. Gives the VM that it was, as far as is known.
    pub(crate) fn heard(&self, domain: Uuid) -> Option<VmId> {
        let mut state = self.state();
        state.clock += 1;
        let vm = state.known.as_ref()?.by_domain.get(&domain).copied();
        let now = state.clock;
        state.unread.insert(domain, now);
        if state.unread.len() > UNREAD_MAX {
            state.known = None;
            state.unread.clear();
        }
        vm
    }
    /// Where the VM is, if it is anywhere in a domain of another UUID.
    pub(crate) fn domain_of(&self, vm: VmId) -> Option<Uuid> {
        self.state().known.as_ref()?.by_vm.get(&vm).copied()
    }
    /// The VM is in this domain, or will be in a moment.
    pub(crate) fn put(&self, vm: VmId, domain: Uuid) {
        if let Some(known) = &mut self.state().known {
            known.put(vm, domain);
        }
    }

    pub(crate) fn unsettled(&self) -> Unsettled {
        let state = self.state();
        let now = Moment(state.clock);
        if state.known.is_none() {
            Unsettled::All(now)
        } else if state.unread.is_empty() {
            Unsettled::Nothing
        } else {
            Unsettled::Some(state.unread.keys().copied().collect(), now)
        }
    }
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.state().clock)
    }
    /// All that was on the host at some time after that moment.
    pub(crate) fn learn_all(&self, since: Moment, vms: impl IntoIterator<Item = (VmId, Uuid)>) {
        let mut state = self.state();
        if state.forgotten > since.0 {
            return;
        }
        let mut known = Known::default();
        for (vm, domain) in vms {
            known.put(vm, domain);
        }
        state.known = Some(known);
        state.unread.retain(|_, heard| *heard > since.0);
    }
    /// What these domains were at some time after that moment. Gives the VMs that are new.
    pub(crate) fn learn(&self, since: Moment, domains: Vec<(Uuid, Option<VmId>)>) -> Vec<VmId> {
        let mut state = self.state();
        let State { known: Some(known), unread, .. } = &mut *state else { return Vec::new() };
        let mut new = Vec::new();
        for (domain, vm) in domains {
            if unread.get(&domain).is_none_or(|heard| *heard <= since.0) {
                unread.remove(&domain);
            }
            let before = known.by_domain.get(&domain).copied();
            if before == vm {
                continue;
            }
            if let Some(before) = known.by_domain.remove(&domain) {
                known.by_vm.remove(&before);
            }
            if let Some(vm) = vm {
                known.put(vm, domain);
                new.push(vm);
            }
        }
        new
    }
}

impl Known {
    fn put(&mut self, vm: VmId, domain: Uuid) {
        self.by_vm.insert(vm, domain);
        self.by_domain.insert(domain, vm);
    }
}

#[cfg(test)]
mod tests {
    use cellbus_bus::ids::JobId;

    use super::*;

    fn vm(index: u32) -> VmId {
        JobId::derive("t", "s", "e").vm(index)
    }
    fn domain(index: u128) -> Uuid {
        Uuid::from_u128(index)
    }

    #[test]
    fn what_is_heard_is_read_again() {
        let adopted = Adopted::default();
        assert_eq!(adopted.heard(domain(1)), None);
        let Unsettled::All(since) = adopted.unsettled() else { panic!("nothing is known yet") };
        adopted.learn_all(since, [(vm(1), domain(1))]);
        assert_eq!((adopted.unsettled(), adopted.domain_of(vm(1))), (Unsettled::Nothing, Some(domain(1))));

        assert_eq!((adopted.heard(domain(1)), adopted.heard(domain(2))), (Some(vm(1)), None));
        let Unsettled::Some(domains, since) = adopted.unsettled() else { panic!("two were heard of") };
        assert_eq!(domains, [domain(1), domain(2)]);
        // Heard of again while it is read: what was read may be older.
        adopted.heard(domain(2));
        assert_eq!(adopted.learn(since, vec![(domain(1), None), (domain(2), Some(vm(2)))]), [vm(2)]);
        assert_eq!((adopted.domain_of(vm(1)), adopted.domain_of(vm(2))), (None, Some(domain(2))));
        assert!(matches!(adopted.unsettled(), Unsettled::Some(domains, _) if domains == [domain(2)]));
    }

    #[test]
    fn what_was_read_before_a_connection_broke_does_not_count() {
        let adopted = Adopted::default();
        let since = adopted.moment();
        adopted.forget();
        adopted.learn_all(since, [(vm(1), domain(1))]);
        assert!(matches!(adopted.unsettled(), Unsettled::All(_)));
        adopted.learn_all(adopted.moment(), [(vm(1), domain(1))]);
        adopted.heard(domain(3));
        adopted.learn_all(adopted.moment(), []);
        assert_eq!((adopted.unsettled(), adopted.domain_of(vm(1))), (Unsettled::Nothing, None));
    }

    #[test]
    fn more_than_can_be_remembered_has_all_read() {
        let adopted = Adopted::default();
        adopted.learn_all(adopted.moment(), []);
        for index in 0..=UNREAD_MAX as u128 {
            adopted.heard(domain(index));
        }
        assert!(matches!(adopted.unsettled(), Unsettled::All(_)));
    }
}
