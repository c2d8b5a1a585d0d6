//! Bringing a VM to another host when its own is dead, as an operator says: what it had of the VM cannot be
//! asked for any more, and its disk is where other hosts see it.

use std::sync::Arc;

use cellbus_bus::ids::{HostId, OpNumber};
use cellbus_cell::driver::{Error, HeldVm, Op};
use cellbus_workflows::Action;
use virt::connect::Connect;

use super::{Work, invalid, permanent};
use crate::calls;
use crate::driver::{Manager, Outcome};
use crate::hosts::Session;
use crate::record::{Begun, VmRecord};

/// What comes of an operation, other than a move, on a VM that a host has which is called dead. Nothing was done, and
/// the manager is not ill for it.
pub(super) fn not_before_it_is_moved(action: &Action, host: &HostId) -> Error {
    let detail = format!("host {host} is called dead, and has the VM: move it to another first");
    match action {
        // The line goes on to what has the VM started elsewhere.
        Action::Start
        | Action::Stop(_)
        | Action::Restart(_)
        | Action::Suspend
        | Action::Resume
        | Action::Resize(_)
        | Action::Snapshot(_)
        | Action::Revert(_)
        | Action::SnapshotDelete(_) => invalid(detail),
        Action::Create(_) | Action::Delete | Action::Inspect | Action::Adopt(_) | Action::Relocate(_) => {
            Error::Busy { detail }
        }
    }
}

impl Manager {
    /// The VM is made anew on that host, off, around the disk that it has. The same number again finds it there.
    pub(crate) async fn recover(&self, session: &Session, op: &Op, told: &HeldVm, to: &HostId) -> Outcome {
        let from = &told.facts.host;
        // What is told is the last number that was given, which this may be.
        if op.number < told.op {
            return Err(Error::Superseded { asked: op.number, last: told.op });
        }
        let target = self.hosts.by_name(&session.fences.now(), to)?;
        let Some(pool) = self.datastore() else {
            return Err(permanent(format!(
                "its disk is on the storage of host {from}, which is called dead: it can be had again when that host is back"
            )));
        };
        if !told.facts.snapshots.is_empty() {
            return Err(permanent(format!(
                "what libvirt knows of its snapshots is on host {from}, which is called dead, and would be lost: have that \
                 host back, or take the VM's disk to a new VM by hand"
            )));
        }
        let vm = op.vm;
        let searched = pool.clone();
        let has_disk = move |connection: &Arc<Connect>| calls::has_disk(connection, &searched, vm);
        if !self.hosts.call(target, has_disk).await? {
            return Err(permanent(format!(
                "host {to} has no disk of it in the pool {pool} (one that was adopted has its disks elsewhere): have host \
                 {from} back, or define it on another by hand"
            )));
        }
        // As if the operation before this one was the last that was done.
        let before = OpNumber(op.number.0.saturating_sub(1));
        let record = VmRecord {
            id: vm,
            domain: None,
            done: Some(told.op.min(before)),
            begun: Some(Begun { op: op.number, run: None }),
            tenant: told.tenant.clone(),
            name: told.name.clone(),
            affinity: told.affinity.clone(),
            anti_affinity: told.anti_affinity.clone(),
            epoch: session.epoch,
            disk_gib: told.facts.size.disk_gib,
            left: Some(from.clone()),
        };
        let copy = self.define_new(session, target, record, told.facts.size).await?;
        tracing::warn!(manager = %self.name, %vm, %from, %to, "a VM was taken from a host that is called dead");
        Work { manager: self, session, op, copy, again: true }.finish().await
    }
}
