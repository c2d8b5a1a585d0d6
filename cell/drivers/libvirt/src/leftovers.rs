//! What hosts have of VMs that are elsewhere by now, or deleted: a host that was called dead, or did not
//! answer, comes back with the domains that it had.
//!
//! Who wins is said by numbers, and what is taken away by more than that: only what a record or a tombstone
//! says was left behind, and only if it does not run. The rest is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellbus_bus::ids::{HostId, OpNumber, VmId};
use cellbus_cell::driver::HeldVm;

use crate::calls;
use crate::driver::Manager;
use crate::hosts::{Host, Session};
use crate::reading::Copy;
use crate::record::{Tombstone, VmRecord};

/// What is said to be a VM: read now, seen before, or told.
pub(crate) enum Claim {
    Read(Copy),
    /// Of a host that does not answer.
    Seen(HeldVm),
    /// Of one that is called dead.
    Told(HeldVm),
}

impl Claim {
    fn vm(&self) -> VmId {
        match self {
            Self::Read(copy) => copy.record.id,
            Self::Seen(vm) | Self::Told(vm) => vm.id,
        }
    }
    fn host(&self) -> &HostId {
        match self {
            Self::Read(copy) => &copy.host.name,
            Self::Seen(vm) | Self::Told(vm) => &vm.facts.host,
        }
    }
    fn last(&self) -> OpNumber {
        match self {
            Self::Read(copy) => copy.record.last(),
            Self::Seen(vm) | Self::Told(vm) => vm.op,
        }
    }
    fn rank(&self) -> (u64, bool, bool) {
        match self {
            Self::Read(copy) => copy.rank(),
            Self::Seen(vm) | Self::Told(vm) => (vm.op.0, false, false),
        }
    }
    fn held(self, datastore: Option<String>) -> HeldVm {
        match self {
            Self::Read(copy) => copy.held(datastore),
            Self::Seen(vm) | Self::Told(vm) => vm,
        }
    }
}

/// A domain that is to be taken away.
pub(crate) struct Leftover {
    pub(crate) host: Arc<Host>,
    pub(crate) record: VmRecord,
}

/// What all claims come to.
#[derive(Default)]
pub(crate) struct Judged {
    pub(crate) vms: Vec<HeldVm>,
    pub(crate) leftovers: Vec<Leftover>,
    /// What a person has to see to, in words.
    pub(crate) irregular: Vec<String>,
    /// VMs whose tombstones are needed as long as something that is older is there.
    pub(crate) outlived: BTreeSet<VmId>,
}

/// Each VM once, and what becomes of the rest.
pub(crate) fn judge(
    claims: Vec<Claim>,
    gone: &BTreeMap<VmId, Tombstone>,
    busy: &BTreeSet<VmId>,
    datastore: Option<&String>,
) -> Judged {
    let mut judged = Judged::default();
    let mut by_vm: BTreeMap<VmId, Vec<Claim>> = BTreeMap::new();
    for claim in claims {
        let vm = claim.vm();
        match gone.get(&vm) {
            Some(deleted) if claim.last() < deleted.op => judged.outlives(claim, deleted, busy),
            // What is only told may be no more than what the delete was asked for.
            Some(deleted) if matches!(claim, Claim::Told(_)) && claim.last() == deleted.op => {}
            Some(_) | None => by_vm.entry(vm).or_default().push(claim),
        }
    }
    for (vm, mut claims) in by_vm {
        if claims.iter().any(|claim| matches!(claim, Claim::Read(_))) {
            claims.retain(|claim| !matches!(claim, Claim::Told(_)));
        }
        // Stable: of those that are alike, the one of the first host.
        claims.sort_by_key(|claim| std::cmp::Reverse(claim.rank()));
        let mut claims = claims.into_iter();
        let Some(first) = claims.next() else { continue };
        let others: Vec<Claim> = claims.collect();
        // One that is being moved is on both for a time.
        if !busy.contains(&vm) {
            for other in &others {
                let takers = std::iter::once(&first).chain(&others).filter(|taker| taker.host() != other.host());
                let taken = takers.filter(|taker| taker.last() >= other.last());
                let left = taken.filter_map(|taker| match taker {
                    Claim::Read(copy) => copy.record.left.as_ref(),
                    Claim::Seen(_) | Claim::Told(_) => None,
                });
                let was_left = left.into_iter().any(|host| host == other.host());
                judged.is_also(&first, other, was_left);
            }
        }
        judged.vms.push(first.held(datastore.cloned()));
    }
    judged
}

impl Judged {
    /// A VM that was deleted is there.
    fn outlives(&mut self, claim: Claim, deleted: &Tombstone, busy: &BTreeSet<VmId>) {
        self.outlived.insert(claim.vm());
        let Claim::Read(copy) = claim else { return };
        if busy.contains(&copy.record.id) {
            return;
        }
        let was_left = deleted.left.as_ref() == Some(&copy.host.name) && !copy.record.adopted();
        if copy.look.active || !was_left {
            let (vm, host) = (copy.record.id, &copy.host.name);
            let is = if copy.look.active { "runs" } else { "is" };
            self.irregular.push(format!("VM {vm} {is} on {host}, and was deleted by its operation {}", deleted.op));
        } else {
            self.leftovers.push(Leftover { host: copy.host, record: copy.record });
        }
    }

    /// A VM is in a second place.
    fn is_also(&mut self, first: &Claim, other: &Claim, was_left: bool) {
        let (vm, at, on) = (first.vm(), first.host(), other.host());
        match other {
            Claim::Read(copy) if was_left && !copy.record.adopted() => {
                if copy.look.active {
                    self.irregular.push(format!(
                        "VM {vm} runs on {on}, from which it was taken while {on} was called dead, and is on {at}"
                    ));
                } else {
                    self.leftovers.push(Leftover { host: Arc::clone(&copy.host), record: copy.record.clone() });
                }
            }
            // It is taken away, or shown, when that host answers.
            Claim::Seen(_) if was_left => {}
            Claim::Read(_) | Claim::Seen(_) => self.irregular.push(format!("VM {vm} is on {at} and on {on}")),
            Claim::Told(_) => {}
        }
    }
}

impl Manager {
    /// Has domains taken away, in tasks of their own. What is not done is tried again when hosts are read next.
    pub(crate) fn clear_away(self: &Arc<Self>, session: &Session, leftovers: Vec<Leftover>) {
        if leftovers.is_empty() || session.looks {
            return;
        }
        let reserved = Arc::new(self.reserve(leftovers.iter().map(|leftover| leftover.record.id)));
        let mut by_host: BTreeMap<HostId, (Arc<Host>, Vec<VmRecord>)> = BTreeMap::new();
        for Leftover { host, record } in leftovers {
            if reserved.vms.contains(&record.id) {
                by_host.entry(host.name.clone()).or_insert_with(|| (host, Vec::new())).1.push(record);
            }
        }
        for (host, records) in by_host.into_values() {
            let (manager, session, reserved) = (Arc::clone(self), session.clone(), Arc::clone(&reserved));
            self.env.spawn("libvirt leftovers", async move {
                let cleared = manager.hosts.change(&host, &session, move |connection| {
                    let mut failed = None;
                    let mut cleared = Vec::new();
                    for record in &records {
                        match calls::clear_away(connection, record) {
                            Ok(true) => cleared.push(record.id),
                            Ok(false) => {}
                            // One that is stuck does not keep the others.
                            Err(failure) => failed = Some(failure),
                        }
                    }
                    failed.map_or(Ok(cleared), Err)
                });
                match cleared.await {
                    Ok(vms) => tracing::info!(
                        host = %host.name, ?vms,
                        "domains were taken away, whose VMs are elsewhere or deleted; their disks were not touched"
                    ),
                    Err(error) => {
                        tracing::warn!(host = %host.name, %error, "domains of VMs that are elsewhere were left")
                    }
                }
                host.make_stale();
                drop(reserved);
            });
        }
    }

    /// Of tombstones, those that may be dropped to make room: not those that a host which was not read, or a domain
    /// that is there still, may need.
    pub(crate) fn spare(
        &self,
        tombstones: Vec<Tombstone>,
        read: &BTreeSet<HostId>,
        outlived: &BTreeSet<VmId>,
    ) -> Vec<Tombstone> {
        let is_needed = |tombstone: &Tombstone| {
            let left = tombstone.left.as_ref();
            let left = left.filter(|left| self.hosts.all.iter().any(|host| !host.out && host.name == **left));
            outlived.contains(&tombstone.id) || left.is_some_and(|left| !read.contains(left))
        };
        tombstones.into_iter().filter(|tombstone| !is_needed(tombstone)).collect()
    }
}
