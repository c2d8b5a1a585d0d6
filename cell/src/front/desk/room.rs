//! Where operations put what they make, and what is counted for them meanwhile.

use cellbus_bus::ids::{HostId, OpNumber, VmId};
use cellbus_directory::{Failure, FailureCode, Refusal, RefusalReason};
use cellbus_workflows::{Answer, CreateSpec};

use super::super::holdings::Held;
use super::super::hosts::{Amount, Groups, Place, Wanted};
use super::{Desk, Pending};

/// What is counted beside what the VM has: the target of a relocation, the growth of a resize.
#[derive(Clone, Copy, Debug)]
pub(in crate::front) struct Extra {
    pub(super) place: Place,
    pub(super) amount: Amount,
    /// GiB on the datastore of the place: none where the disk lies there already.
    pub(super) gib: u64,
}

/// One of them, by names: places change when the inventory is read again.
type Named = (VmId, HostId, Option<String>);

impl Desk {
    pub(super) fn count(&mut self, extra: Option<Extra>) {
        if let Some(extra) = extra {
            self.holdings.hosts.take(extra.place.host, extra.amount, &Groups::default());
            self.holdings.hosts.lay(extra.place.store, extra.gib, false);
        }
    }

    /// The place of a create: the one that it has or had, or one that is chosen and reserved now.
    pub(super) fn place_for(&mut self, vm: VmId, spec: &CreateSpec, op: OpNumber) -> Result<Place, Refusal> {
        if let Some(place) = self.holdings.get(&vm).and_then(Held::place) {
            return Ok(place);
        }
        let groups = Groups::of(&spec.tenant, &spec.template.policy);
        let wanted = Wanted {
            size: &spec.size,
            require: &spec.template.require,
            layout: spec.template.policy.hosts,
            groups: &groups,
            host: spec.host.as_ref(),
            moves: false,
            lies: None,
        };
        // A task of an older session goes on where it was sent.
        let hosts = &self.holdings.hosts;
        let adopted = self.adopted.get(&vm).and_then(|task| task.host.as_ref()).and_then(|host| hosts.find(host));
        let place = match adopted {
            Some(host) => Place { host, store: hosts.store_on(host, None) },
            None => hosts.choose(&wanted)?,
        };
        self.holdings.reserve(vm, place, &spec.size, groups, op);
        Ok(place)
    }

    pub(super) fn target_of(&self, vm: VmId, to: &HostId) -> Result<Option<Extra>, Answer> {
        let hosts = &self.holdings.hosts;
        let Some(target) = hosts.find(to) else {
            return Err(Answer::Failed(Failure::lasting(
                FailureCode::HostNotFound,
                format!("there is no host {to} in this manager"),
            )));
        };
        // A VM that is not counted may be there all the same: the manager will say.
        let Some(held) = self.holdings.get(&vm) else { return Ok(None) };
        if held.host == Some(target) || held.unknown || self.adopted.contains_key(&vm) {
            return Ok(None);
        }
        let state = hosts.host(target);
        if state.cordoned || !state.usable {
            return Err(self.refused(RefusalReason::Cordoned, format!("host {to} is cordoned or not usable")));
        }
        match hosts.place_for(target, held.amount.disk_gib, held.store) {
            Some((place, gib)) if hosts.may_grow(place, &Amount { disk_gib: gib, ..held.amount }) => {
                Ok(Some(Extra { place, amount: held.amount, gib }))
            }
            Some(_) => Err(self.refused(RefusalReason::NoRoom, format!("host {to} has no room for it"))),
            None => {
                let detail = format!("host {to} has no room for its disk of {} GiB", held.amount.disk_gib);
                Err(self.refused(RefusalReason::NoRoom, detail))
            }
        }
    }

    pub(super) fn growth_of(&self, vm: VmId, wanted: &Amount) -> Result<Option<Extra>, Answer> {
        let Some(held) = self.holdings.get(&vm) else { return Ok(None) };
        let Some(place) = held.place() else { return Ok(None) };
        let grows = Amount {
            vcpus: wanted.vcpus.saturating_sub(held.amount.vcpus),
            memory_mib: wanted.memory_mib.saturating_sub(held.amount.memory_mib),
            disk_gib: wanted.disk_gib.saturating_sub(held.amount.disk_gib),
        };
        if grows == Amount::default() {
            return Ok(None);
        }
        let hosts = &self.holdings.hosts;
        if !hosts.may_grow(place, &grows) && !held.unknown {
            let id = &hosts.host(place.host).id;
            let short = place.store.map(|store| hosts.store_at(store)).filter(|store| store.free() < grows.disk_gib);
            let detail = match short {
                Some(store) => format!("its datastore {} has {} GiB left", store.name, store.free()),
                None => format!("its host {id} has no room for it to grow"),
            };
            return Err(self.refused(RefusalReason::NoRoom, detail));
        }
        Ok(Some(Extra { place, amount: grows, gib: grows.disk_gib }))
    }

    /// What is counted beside what VMs have.
    pub(super) fn extras(&self) -> Vec<Named> {
        let hosts = &self.holdings.hosts;
        let place = |(vm, pending): (&VmId, &Pending)| {
            let Place { host, store } = pending.running.as_ref()?.extra?.place;
            Some((*vm, hosts.host(host).id.clone(), store.map(|store| hosts.store_at(store).name.clone())))
        };
        self.pending.iter().filter_map(place).collect()
    }

    /// Counts it anew, after the inventory was read again.
    pub(super) fn count_again(&mut self, extras: Vec<Named>) {
        for (vm, host, store) in extras {
            let found = self.holdings.hosts.find(&host);
            let store = store.and_then(|store| self.holdings.hosts.store(&store));
            let running = self.pending.get_mut(&vm).and_then(|pending| pending.running.as_mut());
            let Some(running) = running else { continue };
            let again = |extra: Extra| Some(Extra { place: Place { host: found?, store }, ..extra });
            running.extra = running.extra.and_then(again);
            let extra = running.extra;
            self.count(extra);
        }
    }
}
