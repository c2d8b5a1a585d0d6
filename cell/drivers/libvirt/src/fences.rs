//! Hosts that an operator calls dead: they are not spoken to, and what was on them is as it was told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellbus_bus::ids::{HostId, VmId};
use cellbus_cell::driver::{Change, Error, FencedHost, HeldVm};
use virt::connect::Connect;

use crate::driver::Manager;
use crate::errors;
use crate::events;
use crate::hosts::Session;

/// A host that is to be called dead has so long to show that it is not.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What one connection was told of them. Each has its own: what an older owner was told, who may not have
/// heard yet that a host is back, must not make a newer one start the host's VMs elsewhere.
#[derive(Default)]
pub(crate) struct Fences(Mutex<Arc<Fenced>>);

impl Fences {
    fn current(&self) -> MutexGuard<'_, Arc<Fenced>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// As they are now. Whoever asks hosts and then wonders what the others had does so by one of these.
    pub(crate) fn now(&self) -> Arc<Fenced> {
        Arc::clone(&self.current())
    }
    fn replace(&self, with: Fenced) -> Arc<Fenced> {
        std::mem::replace(&mut self.current(), Arc::new(with))
    }
}

/// The hosts that are called dead, each with what it had.
#[derive(Debug, Default)]
pub(crate) struct Fenced(BTreeMap<HostId, BTreeMap<VmId, HeldVm>>);

impl Fenced {
    pub(crate) fn has(&self, host: &HostId) -> bool {
        self.0.contains_key(host)
    }
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &HostId> {
        self.0.keys()
    }
    pub(crate) fn vms_of(&self, host: &HostId) -> impl Iterator<Item = &HeldVm> {
        self.0.get(host).into_iter().flat_map(BTreeMap::values)
    }
    /// The VM, if one of them had it.
    pub(crate) fn held(&self, vm: VmId) -> Option<&HeldVm> {
        self.0.values().find_map(|vms| vms.get(&vm))
    }
}

impl Manager {
    pub(crate) fn fence(&self, fences: &Fences, hosts: Vec<FencedHost>) {
        let mut fenced = Fenced::default();
        for FencedHost { id, vms } in hosts {
            if !self.hosts.all.iter().any(|host| host.name == id && !host.out) {
                tracing::warn!(manager = %self.name, host = %id, "called dead, and the manager has no such host");
                continue;
            }
            let there = |mut vm: HeldVm| {
                vm.facts.host = id.clone();
                (vm.id, vm)
            };
            let vms = vms.into_iter().map(there).collect();
            fenced.0.insert(id, vms);
        }
        let names: Vec<HostId> = fenced.hosts().cloned().collect();
        let before = fences.replace(fenced);
        if before.hosts().eq(&names) {
            return;
        }
        tracing::warn!(manager = %self.name, hosts = ?names, "hosts that are called dead");
        for host in self.hosts.all.iter().filter(|host| before.has(&host.name) || names.contains(&host.name)) {
            host.make_stale();
        }
        self.changes.push(Change::Hosts);
    }

    /// Whether an operator may call the host dead.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it would be of no use, or the host answers.
    pub(crate) async fn may_be_fenced(&self, name: &HostId) -> Result<(), Error> {
        let invalid = |detail: String| Err(Error::Invalid { detail });
        let Some(host) = self.hosts.all.iter().find(|host| host.name == *name && !host.out) else {
            return invalid(format!("the manager has no host {name}, or it is in `libvirt.out`"));
        };
        if self.datastore().is_none() {
            return invalid(
                "its VMs have their disks on the host's own storage, and cannot be brought elsewhere: the manager has no \
                 `libvirt.pool`, or `libvirt.shared_storage` is not set"
                    .to_owned(),
            );
        }
        #[cfg(test)]
        if self.hosts.trouble.before_call_of(name).is_err() {
            return Ok(());
        }
        // By a connection of its own, which waits for nothing: a host that is well may have as many calls under way
        // as it takes, and that is no silence.
        let uri = host.uri().to_owned();
        let asked = self.env.blocking("libvirt call", move || {
            events::start_loop();
            // It takes some words of both sides.
            Connect::open(Some(&uri)).map(drop)
        });
        match self.env.timeout(ANSWER_LIMIT, asked).await {
            Some(Some(Ok(()))) => invalid(format!(
                "host {name} answers: a host that runs cannot be called dead; cordon and evacuate it instead"
            )),
            Some(Some(Err(error))) if errors::was_said(&error) => invalid(format!(
                "host {name} answers, if only to turn us away ({}): a host that runs cannot be called dead",
                error.message()
            )),
            Some(Some(Err(_))) | None => Ok(()),
            Some(None) => Err(Error::Unreachable { detail: "the driver is shutting down".to_owned() }),
        }
    }

    /// A host that is called dead and may have the VM for all that is known: the first of them.
    pub(crate) fn may_be_left_on(&self, session: &Session, fenced: &Fenced, vm: VmId) -> Option<HostId> {
        let dead = self.hosts.all.iter().filter(|host| fenced.has(&host.name));
        dead.filter(|host| !host.cannot_have(session, vm)).map(|host| host.name.clone()).next()
    }
}
