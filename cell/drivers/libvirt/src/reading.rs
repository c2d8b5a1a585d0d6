//! Reading a manager: all of it, or what it has of one VM.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use cellbus_bus::ids::VmId;
use cellbus_bus::job::Size;
use cellbus_cell::driver::{self, Datastore, Error, HeldVm, Inventory, Network};
use futures::future::join_all;
use uuid::Uuid;
use virt::connect::Connect;

use crate::calls::{self, All, Look};
use crate::driver::Manager;
use crate::hosts::{Host, Seen, Session};
use crate::leftovers::{Claim, judge};
use crate::record::{Record, Tombstone, VmRecord};
use crate::room::{Room, Taken};

/// Tombstones that a host keeps. The oldest go when there are more: a create that is later still is
/// then carried out.
const TOMBSTONES_KEPT: usize = 256;

/// What one host has of a VM.
#[derive(Clone)]
pub(crate) struct Copy {
    pub(crate) host: Arc<Host>,
    pub(crate) look: Look,
    pub(crate) record: VmRecord,
}

impl Copy {
    pub(crate) fn held(&self, datastore: Option<String>) -> HeldVm {
        self.look.held(&self.host.name, &self.record, datastore)
    }
    /// Of several, the one that was changed last counts; of those, the one that runs, then one whose
    /// change was done.
    pub(crate) fn rank(&self) -> (u64, bool, bool) {
        (self.record.last().0, self.look.active, self.record.done == Some(self.record.last()))
    }
}

/// What all hosts have of a VM.
#[derive(Default)]
pub(crate) struct Found {
    /// The best first.
    pub(crate) copies: Vec<Copy>,
    pub(crate) tombstones: Vec<(Arc<Host>, Tombstone)>,
    /// Copies that are older than the newest of those: the VM was deleted while their hosts did not answer.
    pub(crate) outlived: Vec<Copy>,
    /// It was on a host that is called dead, and is nowhere else.
    pub(crate) fenced: Option<HeldVm>,
    /// Why it cannot be said that there is no more.
    pub(crate) unsure: Option<Error>,
}

impl Manager {
    /// Asks every host.
    pub(crate) async fn find(&self, session: &Session, vm: VmId) -> Result<Found, Error> {
        let fenced = session.fences.now();
        let hosts = self.hosts.asked(&fenced);
        let settled = join_all(hosts.iter().map(|host| self.settle(host))).await;
        // Of any host: it may just be on its way from one to another.
        let adopted = hosts.iter().find_map(|host| host.adopted.domain_of(vm));
        let looked = hosts.iter().zip(settled).map(|(host, settled)| async move {
            settled?;
            self.look_for(host, vm, adopted).await
        });
        let answers = join_all(looked).await;
        let mut found = Found::default();
        for (host, answer) in hosts.into_iter().zip(answers) {
            match answer {
                Ok(None) => {}
                Ok(Some(look)) => match look.record.clone() {
                    Record::Vm(record) if record.id == vm => {
                        found.copies.push(Copy { host: Arc::clone(host), look, record: *record });
                    }
                    Record::Gone(tombstone) => found.tombstones.push((Arc::clone(host), tombstone)),
                    Record::Vm(_) | Record::Owner(_) => {
                        return Err(Error::Permanent {
                            detail: format!("host {}: another has the UUID of {vm}", host.name),
                        });
                    }
                },
                Err(error @ Error::Unreachable { .. }) => {
                    if !host.cannot_have(session, vm) {
                        found.unsure = Some(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        found.copies.sort_by_key(|copy| std::cmp::Reverse(copy.rank()));
        found.tombstones.sort_by_key(|(_, tombstone)| std::cmp::Reverse(tombstone.op));
        let deleted = found.tombstones.first().map(|(_, tombstone)| tombstone.op);
        if let Some(deleted) = deleted {
            let older = |copy: &Copy| copy.record.last() < deleted;
            (found.outlived, found.copies) = found.copies.into_iter().partition(older);
        }
        let told = fenced.held(vm).filter(|told| found.copies.is_empty() && deleted.is_none_or(|op| op < told.op));
        found.fenced = told.cloned();
        if found.copies.len() > 1 {
            let hosts: Vec<&str> = found.copies.iter().map(|copy| copy.host.name.as_str()).collect();
            tracing::warn!(manager = %self.name, %vm, ?hosts, "a VM is there more than once; the first counts");
        }
        Ok(found)
    }

    /// What a host has under this UUID.
    pub(crate) async fn look(&self, host: &Arc<Host>, uuid: Uuid) -> Result<Option<Look>, Error> {
        self.hosts.call(host, move |connection| calls::look(connection, uuid)).await
    }
    /// What a host has of a VM: in the domain that was adopted as it, else under its id.
    async fn look_for(&self, host: &Arc<Host>, vm: VmId, adopted: Option<Uuid>) -> Result<Option<Look>, Error> {
        let looked = move |connection: &Arc<Connect>| {
            let is_it = |look: &Look| matches!(&look.record, Record::Vm(record) if record.id == vm);
            let adopted = adopted.map(|uuid| calls::look(connection, uuid)).transpose()?.flatten();
            match adopted.filter(is_it) {
                Some(look) => Ok(Some(look)),
                None => calls::look(connection, vm.uuid()),
            }
        };
        self.hosts.call(host, looked).await
    }

    pub(crate) async fn inspect(&self, session: &Session, vm: VmId) -> Result<Option<HeldVm>, Error> {
        let found = self.find(session, vm).await?;
        match (found.copies.first(), found.fenced, found.unsure) {
            (Some(copy), ..) => {
                let held = copy.held(self.datastore());
                // An operation under way says better where it is.
                if !self.busy().contains(&vm) {
                    self.note_place(session, vm, Some((&copy.host, &held)));
                }
                Ok(Some(held))
            }
            (None, Some(told), _) => Ok(Some(told)),
            (None, None, Some(error)) => Err(error),
            (None, None, None) => Ok(None),
        }
    }

    /// Where the VM is by what this session has just seen or done, or that it is nowhere: it counts should its host not
    /// answer later.
    pub(crate) fn note_place(&self, session: &Session, vm: VmId, at: Option<(&Arc<Host>, &HeldVm)>) {
        for host in &self.hosts.all {
            let mut seen = host.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(seen) = seen.as_mut().filter(|seen| seen.epoch == session.epoch) else { continue };
            match at {
                Some((there, held)) if Arc::ptr_eq(there, host) => {
                    seen.vms.insert(vm, held.clone());
                }
                Some(_) | None => {
                    // What was left of it there may be there still.
                    if seen.vms.remove(&vm).is_some() {
                        seen.sent.insert(vm);
                    }
                }
            }
        }
    }

    /// Reads every host. One that does not answer counts with what this session saw on it last; if
    /// that is nothing, nobody can say what the manager has. One that is called dead counts with what was told of it.
    pub(crate) async fn inventory(self: &Arc<Self>, session: &Session) -> Result<Inventory, Error> {
        let fenced = session.fences.now();
        let asked = self.hosts.asked(&fenced);
        let read = join_all(asked.into_iter().map(|host| self.read(host, session))).await;
        // With no host at all, what was seen before says nothing of the manager.
        let any = read.iter().any(Result::is_ok);
        let mut inventory = Inventory::default();
        let (mut claims, mut irregular) = (Vec::new(), Vec::new());
        let (mut shared, mut on_network) = (None, Vec::new());
        let (mut adopted, mut foreign) = (BTreeMap::new(), Vec::new());
        let mut tombstones: Vec<(&Arc<Host>, Vec<Tombstone>)> = Vec::new();
        let mut read = read.into_iter();
        for host in self.hosts.all.iter().filter(|host| !host.out) {
            let (cpus, memory_mib) = host.physical();
            if fenced.has(&host.name) {
                claims.extend(fenced.vms_of(&host.name).cloned().map(Claim::Told));
                inventory.hosts.push(host.shown(cpus, memory_mib, host.disk_gib(), false));
                continue;
            }
            match read.next().unwrap_or_else(|| Err(Error::Unreachable { detail: format!("host {}", host.name) })) {
                Ok(all) => {
                    shared = least(shared, all.pool);
                    on_network.extend(all.networked.then(|| host.name.clone()));
                    inventory.foreign_vms += all.foreign.len() as u64;
                    irregular.extend(all.irregular.into_iter().map(|what| format!("host {}: {what}", host.name)));
                    foreign.extend(all.foreign.iter().map(|(uuid, _)| (*uuid, host.name.clone())));
                    tombstones.push((host, all.tombstones));
                    for (record, look) in all.vms {
                        if record.adopted() {
                            adopted.insert(record.uuid(), record.id);
                        }
                        claims.push(Claim::Read(Copy { host: Arc::clone(host), look, record }));
                    }
                    inventory.hosts.push(host.shown(all.cpus, all.memory_mib, host.disk_gib(), true));
                }
                Err(error) => {
                    let seen = host.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some(seen) = seen.as_ref().filter(|seen| any && seen.epoch == session.epoch) else {
                        return Err(error);
                    };
                    tracing::warn!(manager = %self.name, host = %host.name, %error, "host not read: what it had counts on");
                    claims.extend(seen.vms.values().cloned().map(Claim::Seen));
                    inventory.hosts.push(host.shown(cpus, memory_mib, host.disk_gib(), false));
                }
            }
        }
        let mut gone: BTreeMap<VmId, Tombstone> = BTreeMap::new();
        for tombstone in tombstones.iter().flat_map(|(_, those)| those) {
            if gone.get(&tombstone.id).is_none_or(|other| other.op < tombstone.op) {
                gone.insert(tombstone.id, tombstone.clone());
            }
        }
        let judged = judge(claims, &gone, &self.busy(), self.datastore().as_ref());
        irregular.extend(judged.irregular);
        inventory.vms = judged.vms;
        self.clear_away(session, judged.leftovers);
        let were_read = tombstones.iter().map(|(host, _)| host.name.clone()).collect();
        join_all(
            tombstones
                .into_iter()
                .map(|(host, those)| self.prune(host, session, self.spare(those, &were_read, &judged.outlived))),
        )
        .await;
        for (uuid, host) in foreign {
            if let Some(vm) = adopted.get(&uuid) {
                irregular.push(format!(
                    "host {host}: a domain has the UUID of that of VM {vm}, which was adopted elsewhere"
                ));
            }
        }
        self.note_irregular(irregular);
        if let (Some(name), Some((total_gib, free_gib))) = (self.datastore(), shared) {
            let hosts = self.hosts.all.iter().filter(|host| !host.out).map(|host| host.name.clone()).collect();
            inventory.datastores.push(Datastore { name, total_gib, free_gib, usable: true, hosts });
        }
        if let Some(name) = self.config.network.clone() {
            inventory.networks.push(Network { name, ports_free: None, hosts: on_network });
        }
        Ok(inventory)
    }

    /// The pool that all hosts share, if they do.
    pub(crate) fn datastore(&self) -> Option<String> {
        self.config.pool.clone().filter(|_| self.config.shared_storage)
    }

    /// Reads one host, and counts anew what is given out of it.
    async fn read(&self, host: &Arc<Host>, session: &Session) -> Result<All, Error> {
        // Nothing is defined meanwhile, so that the count is that of a moment.
        let mut taken = host.taken.lock().await;
        host.was_stale();
        let all = self.read_with(host, &mut taken).await?;
        drop(taken);
        let held = |(record, look): &(VmRecord, Look)| (record.id, look.held(&host.name, record, self.datastore()));
        let seen = Seen {
            epoch: session.epoch,
            vms: all.vms.iter().map(held).collect(),
            foreign: all.foreign.iter().map(|(uuid, _)| *uuid).collect(),
            sent: BTreeSet::new(),
        };
        *host.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(all)
    }

    async fn read_with(&self, host: &Arc<Host>, taken: &mut Option<Taken>) -> Result<All, Error> {
        let (pool, network) = (self.config.pool.clone(), self.config.network.clone());
        let read = move |connection: &Arc<Connect>| calls::all(connection, pool.as_deref(), network.as_deref());
        let settling = host.settling.lock().await;
        let since = host.adopted.moment();
        let all = self.hosts.call(host, read).await;
        let all = all.inspect_err(|_| host.make_stale())?;
        let adopted = all.vms.iter().map(|(record, _)| record).filter(|record| record.adopted());
        host.adopted.learn_all(since, adopted.map(|record| (record.id, record.uuid())));
        drop(settling);
        let vms = all.vms.iter().map(|(record, look)| (record.uuid(), look.facts(&host.name, record).size));
        *taken = Some(Taken(vms.chain(all.foreign.iter().copied()).collect::<BTreeMap<Uuid, Size>>()));
        let disk_gib = all.pool.map_or(self.config.host_disk_gib, |(gib, _)| gib);
        host.set_room(all.cpus, all.memory_mib, disk_gib);
        Ok(all)
    }

    /// What is given out of a host, counted if that is not known.
    ///
    /// # Errors
    /// As [`crate::hosts::Hosts::call`].
    pub(crate) async fn count<'a>(
        &self,
        host: &Arc<Host>,
        taken: &'a mut Option<Taken>,
    ) -> Result<(&'a mut Taken, Room), Error> {
        if host.was_stale() || taken.is_none() {
            self.read_with(host, taken).await?;
        }
        let (cpus, memory_mib) = host.physical();
        // Products of a host's size and a small ratio are exact enough as whole numbers.
        let scaled = |have: u64, ratio: f64| (have as f64 * ratio) as u64;
        let room = Room {
            vcpus: scaled(u64::from(cpus), self.over_commit.0),
            memory_mib: scaled(memory_mib, self.over_commit.1),
            disk_gib: host.disk_gib(),
        };
        Ok((taken.get_or_insert_default(), room))
    }

    /// Drops the oldest tombstones where a host has too many. If it fails, the next reading does it.
    async fn prune(&self, host: &Arc<Host>, session: &Session, tombstones: Vec<Tombstone>) {
        let Some(excess) = tombstones.len().checked_sub(TOMBSTONES_KEPT).filter(|excess| *excess > 0) else { return };
        let mut oldest = tombstones;
        oldest.sort_by_key(|tombstone| tombstone.at_ms);
        oldest.truncate(excess);
        let pruned = self
            .hosts
            .change(host, session, move |connection| {
                oldest.into_iter().try_for_each(|tombstone| calls::unbury(connection, tombstone))
            })
            .await;
        if let Err(error) = pruned {
            tracing::warn!(host = %host.name, %error, "old tombstones were not dropped");
        }
    }
}

/// What two hosts say of storage that they share: each has seen it at another time.
fn least(one: Option<(u64, u64)>, other: Option<(u64, u64)>) -> Option<(u64, u64)> {
    match (one, other) {
        (Some(one), Some(other)) => Some((one.0.min(other.0), one.1.min(other.1))),
        (one, other) => one.or(other),
    }
}

impl Host {
    fn shown(&self, vcpus: u32, memory_mib: u64, disk_gib: u64, usable: bool) -> driver::Host {
        driver::Host { id: self.name.clone(), vcpus, memory_mib, disk_gib, labels: self.labels(), usable }
    }
    fn set_room(&self, cpus: u32, memory_mib: u64, disk_gib: u64) {
        let room = Room { vcpus: u64::from(cpus), memory_mib, disk_gib };
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = Some(room);
    }
    fn known(&self) -> Room {
        self.room.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_default()
    }
    fn physical(&self) -> (u32, u64) {
        let room = self.known();
        (u32::try_from(room.vcpus).unwrap_or(u32::MAX), room.memory_mib)
    }
    fn disk_gib(&self) -> u64 {
        self.known().disk_gib
    }

    /// Whether it is certain without asking that it does not have the VM: this session has read it, so
    /// that no older one may change it any more, did not find it, and has sent nothing there since.
    pub(crate) fn cannot_have(&self, session: &Session, vm: VmId) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref()
            .is_some_and(|seen| seen.epoch == session.epoch && !seen.vms.contains_key(&vm) && !seen.sent.contains(&vm))
    }
    /// The VM may be there from now on.
    pub(crate) fn sending(&self, vm: VmId) {
        if let Some(seen) = self.seen.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            seen.sent.insert(vm);
        }
    }
}
