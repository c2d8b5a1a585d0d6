//! Domains that others made: listed, and taken in.
//!
//! To take one in is to write our record into its metadata, in one call, beside what others have there.
//! It keeps its UUID, its name and its run; the record says whose id it has from then on.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, PoisonError};

use cellbus_bus::ids::{ForeignKey, HostId, VmId};
use cellbus_bus::job::Size;
use cellbus_cell::driver::{Error, ForeignVm, Op};
use cellbus_directory::VmFacts;
use cellbus_directory::vm::PowerState;
use cellbus_workflows::AdoptSpec;
use futures::future::join_all;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain as Handle;
use virt_sys as sys;

use crate::adopted::Unsettled;
use crate::calls;
use crate::domain;
use crate::driver::{Manager, Outcome};
use crate::errors::{Failure, absent};
use crate::hosts::{Host, Session};
use crate::reading::Found;
use crate::record::{Record, VmRecord};

/// How often a host is read whose connection breaks each time.
const ATTEMPTS_MAX: usize = 3;

fn invalid(detail: impl Into<String>) -> Error {
    Error::Invalid { detail: detail.into() }
}

/// A domain that somebody else made.
struct Stranger {
    vm: ForeignVm,
    /// It was adopted before.
    record: Option<VmRecord>,
}

/// What is known of a domain from lists.
#[derive(Clone, Copy)]
struct Kind {
    transient: bool,
    snapshots: bool,
}

/// Whether it is a name that only domains of Cellbus's own have.
fn is_kept(name: &str) -> bool {
    domain::vm_of(name).is_some() || name == domain::OWNER_NAME
}

/// `None`: it is one that Cellbus keeps.
fn stranger(handle: &Handle, host: &HostId, kind: Kind) -> Result<Option<Stranger>, Failure> {
    let (uuid, name) = (handle.get_uuid()?, handle.get_name()?);
    let document = calls::document(handle)?;
    let (state, reason) = handle.get_state()?;
    let (mut record, mut unfit, size) = match domain::read(&document) {
        Ok(read) => {
            let disk_gib = disk_gib(handle, &document)?;
            (read.record, None, Size { vcpus: read.vcpus, memory_mib: read.memory_mib, disk_gib })
        }
        Err(error) => {
            let info = handle.get_info()?;
            let size = Size { vcpus: info.nr_virt_cpu, memory_mib: info.max_mem >> 10, disk_gib: 0 };
            (None, Some(format!("its description is {error}")), size)
        }
    };
    match &record {
        Some(Record::Gone(_) | Record::Owner(_)) => return Ok(None),
        Some(Record::Vm(of)) if of.uuid() != uuid => {
            unfit = Some(format!(
                "it has the record of VM {}, of which it is a copy: take that out of its metadata first",
                of.id
            ));
            record = None;
        }
        Some(Record::Vm(_)) | None => {}
    }
    if kind.transient {
        unfit.get_or_insert_with(|| {
            "it is transient: libvirt forgets it once it stops, and what is written to it; define it first".to_owned()
        });
    }
    if is_kept(&name) {
        unfit.get_or_insert_with(|| {
            "its name is one that Cellbus gives to domains of its own: rename it first".to_owned()
        });
    }
    let snapshots = if kind.snapshots { calls::snapshots(handle)? } else { Vec::new() };
    let facts = VmFacts { host: host.clone(), power: calls::power(state, reason), size, snapshots };
    let key = uuid.to_string().parse().map_err(|_| invalid("a UUID that is no key"))?;
    let record = match record {
        Some(Record::Vm(record)) => Some(*record),
        _ => None,
    };
    Ok(Some(Stranger { vm: ForeignVm { key, name, facts, unfit }, record }))
}

/// What its disks have in all, as far as libvirt can say.
fn disk_gib(handle: &Handle, document: &str) -> Result<u64, Failure> {
    let disks = domain::belongings(document)?.disks;
    let bytes = disks
        .iter()
        .filter(|disk| !disk.target.contains('\0'))
        .filter_map(|disk| handle.get_block_info(&disk.target, 0).ok())
        .fold(0_u64, |sum, info| sum.saturating_add(info.capacity));
    Ok(bytes.div_ceil(1 << 30))
}

/// All of a host that have no name of ours.
fn strangers(connection: &Connect, host: &HostId) -> Result<Vec<Stranger>, Failure> {
    let with_snapshots = calls::those(connection, sys::VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT)?;
    let transient = calls::those(connection, sys::VIR_CONNECT_LIST_DOMAINS_TRANSIENT)?;
    let mut listed = Vec::new();
    for handle in connection.list_all_domains(0)? {
        let uuid = handle.get_uuid()?;
        let kind = Kind { transient: transient.contains(&uuid), snapshots: with_snapshots.contains(&uuid) };
        match stranger(&handle, host, kind) {
            // A VM that Cellbus made has its id for a UUID.
            Ok(Some(Stranger { record: Some(record), .. })) if !record.adopted() => {}
            Ok(Some(stranger)) => listed.push(stranger),
            Ok(None) => {}
            Err(Failure::Libvirt(error)) if absent(&error) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(listed)
}

fn stranger_at(connection: &Connect, host: &HostId, uuid: Uuid) -> Result<Option<Stranger>, Failure> {
    let Some(handle) = calls::lookup(connection, uuid)? else { return Ok(None) };
    let read = || {
        let snapshots = !calls::snapshots(&handle)?.is_empty();
        stranger(&handle, host, Kind { transient: !handle.is_persistent()?, snapshots })
    };
    match read() {
        Err(Failure::Libvirt(error)) if absent(&error) => Ok(None),
        other => other,
    }
}

/// Whose id a domain has, if it was adopted.
fn adopted_as(handle: &Handle) -> Result<Option<VmId>, Failure> {
    let uuid = handle.get_uuid()?;
    let document = match calls::document(handle) {
        Err(error) if absent(&error) => return Ok(None),
        other => other?,
    };
    // What cannot be read is no VM.
    Ok(match domain::read(&document).ok().and_then(|read| read.record) {
        Some(Record::Vm(record)) if record.adopted() && record.uuid() == uuid => Some(record.id),
        _ => None,
    })
}

impl Manager {
    /// The domains of all hosts that are not Cellbus's; not those of hosts that are called dead.
    ///
    /// # Errors
    /// Those of a host: of one that does not answer nobody knows what is there.
    pub(crate) async fn foreign(&self, session: &Session) -> Result<Vec<ForeignVm>, Error> {
        let read = join_all(self.hosts.asked(&session.fences.now()).into_iter().map(|host| {
            let name = host.name.clone();
            self.hosts.call(host, move |connection| strangers(connection, &name))
        }))
        .await;
        let mut listed: BTreeMap<ForeignKey, Stranger> = BTreeMap::new();
        for read in read {
            for stranger in read? {
                match listed.entry(stranger.vm.key.clone()) {
                    Entry::Vacant(free) => {
                        free.insert(stranger);
                    }
                    Entry::Occupied(mut same) => same.get_mut().is_also(stranger),
                }
            }
        }
        let foreign = listed.into_values().filter(|stranger| stranger.record.is_none());
        Ok(foreign.map(|stranger| stranger.vm).collect())
    }

    /// Takes a domain in that nobody has taken in under this id.
    pub(crate) async fn take_in(&self, session: &Session, op: &Op, spec: &AdoptSpec, found: &Found) -> Outcome {
        let key = spec.foreign.as_ref().map_or("", |key| key.as_str());
        // As it is listed, and not in another of the ways to write a UUID: the VM's id follows from it.
        let uuid = key.parse::<Uuid>().ok().filter(|uuid| uuid.to_string() == key).ok_or(Error::NotFound)?;
        let hosts = self.hosts.asked(&session.fences.now());
        let answers = join_all(hosts.iter().map(|host| {
            let name = host.name.clone();
            self.hosts.call(host, move |connection| stranger_at(connection, &name, uuid))
        }))
        .await;
        let mut there = Vec::new();
        for (host, answer) in hosts.into_iter().zip(answers) {
            match answer {
                Ok(Some(stranger)) => there.push((host, stranger)),
                Ok(None) => {}
                Err(Error::Unreachable { .. }) if host.had_no_domain(session, uuid) => {}
                Err(error) => return Err(error),
            }
        }
        let (host, stranger) = match <[_; 1]>::try_from(there) {
            Ok([one]) => one,
            Err(none) if none.is_empty() => return Err(Error::NotFound),
            Err(several) => {
                let hosts: Vec<&str> = several.iter().map(|(host, _)| host.name.as_str()).collect();
                return Err(invalid(format!(
                    "domains with this UUID are on {}: nobody knows which it is",
                    hosts.join(" and ")
                )));
            }
        };
        if let Some(before) = &stranger.record {
            if before.id != op.vm {
                return Err(invalid(format!("it is VM {} already", before.id)));
            }
            // By somebody who was slower than we were looking for it. To write the same again changes nothing.
            host.adopted.put(op.vm, uuid);
            if op.number < before.last() {
                return Err(Error::Superseded { asked: op.number, last: before.last() });
            }
        }
        if let Some(unfit) = stranger.vm.unfit {
            return Err(invalid(unfit));
        }
        let size = stranger.vm.facts.size;
        let record = VmRecord {
            id: op.vm,
            domain: Some(uuid),
            done: Some(op.number),
            begun: None,
            tenant: spec.tenant.clone(),
            name: spec.name.clone(),
            affinity: None,
            anti_affinity: None,
            epoch: session.epoch,
            disk_gib: size.disk_gib,
            left: None,
        };
        host.sending(op.vm);
        let written = record.clone();
        let taken_in = self
            .hosts
            .change(host, session, move |connection| {
                calls::write(&calls::handle(connection, uuid)?, &written)?;
                calls::look(connection, uuid)
            })
            .await;
        // Written it may be, whatever was answered.
        host.adopted.put(op.vm, uuid);
        let look = taken_in?.ok_or(Error::NotFound)?;
        if let Some(taken) = host.taken.lock().await.as_mut() {
            taken.0.insert(uuid, size);
        }
        self.unbury(session, &found.tombstones, None).await;
        tracing::info!(manager = %self.name, host = %host.name, vm = %op.vm, domain = stranger.vm.name, "a domain was adopted");
        Ok(Some(look.facts(&host.name, &record)))
    }

    /// Has what others did on the hosts looked at. What cannot be read now is read when it is asked for.
    pub(crate) fn listen(self: &Arc<Self>, session: &Session) {
        for host in self.hosts.asked(&session.fences.now()) {
            // A task of its own, as one host that hangs may not keep others from being heard. One is enough.
            if matches!(host.adopted.unsettled(), Unsettled::Some(..)) && host.settling.try_lock().is_ok() {
                let (manager, host) = (Arc::clone(self), Arc::clone(host));
                self.env.spawn("libvirt reading", async move {
                    for _ in 0..ATTEMPTS_MAX {
                        if let Err(error) = manager.settle(&host).await {
                            tracing::debug!(host = %host.name, %error, "what was heard of it was not looked at yet");
                            return;
                        }
                    }
                });
            }
        }
    }

    /// Makes what is known of a host's adopted VMs true again. Those that are new there are told as changes.
    pub(crate) async fn settle(&self, host: &Arc<Host>) -> Result<(), Error> {
        if host.adopted.unsettled() == Unsettled::Nothing {
            return Ok(());
        }
        let _one = host.settling.lock().await;
        for _ in 0..ATTEMPTS_MAX {
            match host.adopted.unsettled() {
                Unsettled::Nothing => return Ok(()),
                Unsettled::Some(domains, since) => {
                    let read = move |connection: &Arc<Connect>| {
                        let one = |uuid: Uuid| {
                            let handle = calls::lookup(connection, uuid)?;
                            Ok((uuid, handle.as_ref().map(adopted_as).transpose()?.flatten()))
                        };
                        domains.into_iter().map(one).collect::<Result<Vec<_>, Failure>>()
                    };
                    let read = self.hosts.call(host, read).await?;
                    for vm in host.adopted.learn(since, read) {
                        self.changes.push(cellbus_cell::driver::Change::Vm(vm));
                    }
                    if !matches!(host.adopted.unsettled(), Unsettled::All(_)) {
                        return Ok(());
                    }
                }
                Unsettled::All(since) => {
                    let read = |connection: &Arc<Connect>| {
                        let mut vms = Vec::new();
                        for handle in connection.list_all_domains(0)? {
                            if !is_kept(&handle.get_name()?)
                                && let Some(vm) = adopted_as(&handle)?
                            {
                                vms.push((vm, handle.get_uuid()?));
                            }
                        }
                        Ok(vms)
                    };
                    host.adopted.learn_all(since, self.hosts.call(host, read).await?);
                }
            }
        }
        Err(Error::Unreachable { detail: format!("host {}: its connection does not last", host.name) })
    }
}

impl Stranger {
    /// Another host has a domain of this UUID too.
    fn is_also(&mut self, other: Self) {
        let hosts = format!("{} and {}", self.vm.facts.host, other.vm.facts.host);
        // The one that runs is shown, or the one that is ours.
        let better = |one: &Self| (one.record.is_some(), one.vm.facts.power == PowerState::Running);
        if better(&other) > better(self) {
            *self = other;
        }
        self.vm.unfit = Some(format!("domains with this UUID are on {hosts}: nobody knows which it is"));
    }
}

impl Host {
    /// Whether it is certain without asking that it has no such domain of others: this session has seen it.
    fn had_no_domain(&self, session: &Session, uuid: Uuid) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref().is_some_and(|seen| seen.epoch == session.epoch && !seen.foreign.contains(&uuid))
    }
}
