//! What has come of what goes on at the manager.

use std::collections::BTreeSet;

use cellbus_bus::ids::{HostId, VmId};
use cellbus_directory::VmFacts;

use super::{Front, Work};
use crate::driver::{Change, Error, HeldVm, Inventory, RunningTask};

/// What goes on at the manager, as futures of the front's own task.
pub(super) enum Done {
    Op {
        ticket: u64,
        vm: VmId,
        result: Result<Option<VmFacts>, Error>,
    },
    Tasks(Result<Vec<RunningTask>, Error>),
    Probe(Result<(), Error>),
    Inspected {
        vm: VmId,
        began: u64,
        result: Result<Option<HeldVm>, Error>,
    },
    Inventory {
        began: u64,
        result: Result<Inventory, Error>,
    },
    Changes(Result<Vec<Change>, Error>),
    DeadHosts(Result<Vec<HostId>, Error>),
    /// What the directory lists at the manager.
    Listed {
        began: u64,
        result: Result<Vec<HeldVm>, String>,
    },
    /// The driver was told that these are called dead.
    Fenced {
        hosts: BTreeSet<HostId>,
        result: Result<(), Error>,
    },
    Marked(Result<Option<u64>, Error>),
    /// An answer to somebody who asked was sent.
    Told,
}

impl Front {
    pub(super) fn done(&self, work: &mut Work, done: Done) {
        let now = self.env.mono();
        match done {
            Done::Op { ticket, vm, result } => {
                work.aborts.remove(&ticket);
                work.marks.changed();
                // Only errors need randomness.
                let random = if result.is_err() { self.env.random_u64() } else { 0 };
                work.desk.ended(now, random, ticket, vm, result);
                work.changed.extend(&work.desk.unsure);
                work.unsure.extend(work.desk.unsure.drain(..));
                work.dirty = true;
            }
            Done::Tasks(result) => {
                work.asking_tasks = false;
                if let Ok(tasks) = result {
                    let over = work.desk.tasks(&tasks);
                    work.changed.extend(over);
                }
            }
            Done::Probe(result) => {
                work.probing = false;
                match result {
                    Ok(()) => work.desk.circuit.probe_succeeded(),
                    Err(error) => {
                        work.desk.circuit.ill(now, self.env.random_u64(), &error.to_string());
                    }
                }
                self.publish(work);
            }
            Done::Inspected { vm, began, result } => {
                work.inspecting -= 1;
                match result {
                    Ok(found) => {
                        let news = work.desk.inspected(vm, found.as_ref(), began);
                        work.changed.extend(work.desk.read_again.drain(..));
                        // Its home may know less of it than this owner does.
                        if work.unsure.remove(&vm) || news {
                            self.outside.observed(self.id(), vec![vm]);
                            work.dirty = true;
                        }
                    }
                    Err(_) => {
                        work.changed.insert(vm);
                    }
                }
            }
            Done::Inventory { began, result } => {
                work.rereading = false;
                match result {
                    Ok(inventory) => {
                        work.unheard = 0;
                        let news = work.desk.reread(&inventory, began);
                        work.changed.extend(work.desk.read_again.drain(..));
                        if !news.is_empty() {
                            self.outside.observed(self.id(), news);
                        }
                        work.dirty = true;
                    }
                    Err(_) => work.reread_wanted = true,
                }
            }
            Done::Changes(Ok(changes)) => {
                work.changes_awaited = false;
                work.unheard = 0;
                for change in changes {
                    match change {
                        Change::Vm(vm) => {
                            work.changed.insert(vm);
                        }
                        Change::Hosts | Change::Missed => work.reread_wanted = true,
                    }
                }
            }
            // They are awaited again at the next tick, and what was missed is read.
            Done::Changes(Err(Error::Revoked)) => work.desk.revoked = true,
            Done::Changes(Err(error)) => {
                work.reread_wanted = true;
                work.changes_lost = true;
                if matches!(error, Error::Unreachable { .. }) {
                    self.unheard(work, now, &error.to_string());
                }
            }
            Done::DeadHosts(result) => self.dead_hosts(work, result),
            Done::Listed { began, result } => self.listed(work, now, began, result),
            Done::Fenced { hosts, result } => self.fences_told(work, hosts, result),
            Done::Marked(result) => {
                if let Some(mark) = work.marks.left(now, result) {
                    self.outside.marked(self.id(), mark);
                }
            }
            Done::Told => {}
        }
    }

    /// A manager that nothing is asked of would seem well for ever: one that cannot be reached as often
    /// in a row as failures open the circuit has it opened.
    fn unheard(&self, work: &mut Work, now: cellbus_bus::Mono, reason: &str) {
        work.unheard = work.unheard.saturating_add(1);
        if work.unheard < self.config.circuit.failures_max {
            return;
        }
        let circuit = &mut work.desk.circuit;
        if circuit.closed() {
            circuit.open(now, self.env.random_u64(), reason);
            tracing::warn!(manager = %self.config.name, reason, "manager out of reach: circuit open");
            work.dirty = true;
        }
    }
}
