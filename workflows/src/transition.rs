//! Which operation is legal on a VM in which state. Decided here and nowhere else.

use cellbus_bus::ids::ManagerId;
use cellbus_bus::job::{MigrateTo, Operation};
use cellbus_directory::{Failure, FailureCode, Step, Vm, VmState};

/// What an operation comes to, given the VM as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The VM is already as asked: the job succeeds without a call.
    Nothing,
    /// This call.
    Do(Step),
    /// A migrate to this manager, in several steps.
    MoveTo(ManagerId),
    /// Not allowed.
    Illegal(Failure),
}

/// Decides. `target` is the manager that a migrate names, if it is known.
#[must_use]
pub fn verdict(operation: &Operation, vm: &Vm, target: Option<ManagerId>) -> Verdict {
    if let Some(verdict) = unusual(operation, vm) {
        return verdict;
    }
    let illegal = |why: &str| {
        Verdict::Illegal(Failure::lasting(
            FailureCode::IllegalTransition,
            format!("{} of a VM that is {} is not possible: {why}", operation.kind(), vm.settled),
        ))
    };
    match (operation, vm.settled) {
        (Operation::Start, VmState::Running)
        | (Operation::Stop(_), VmState::Stopped)
        | (Operation::Suspend, VmState::Suspended)
        | (Operation::Resume, VmState::Running) => Verdict::Nothing,
        // A suspended VM is powered on by resuming it; starting it afresh would lose its memory.
        (Operation::Start, VmState::Suspended) => Verdict::Do(Step::Resume),
        (Operation::Start, _) => Verdict::Do(Step::Start),
        (Operation::Stop(_), _) => Verdict::Do(Step::Stop),
        (Operation::Restart(_), VmState::Stopped) => illegal("start it instead"),
        (Operation::Restart(_), VmState::Suspended) => illegal("resume or stop it first"),
        (Operation::Restart(_), _) => Verdict::Do(Step::Restart),
        (Operation::Suspend, VmState::Stopped) => illegal("it is off"),
        (Operation::Suspend, _) => Verdict::Do(Step::Suspend),
        (Operation::Resume, VmState::Stopped) => illegal("start it instead"),
        (Operation::Resume, _) => Verdict::Do(Step::Resume),
        (Operation::Resize { .. }, VmState::Suspended) => illegal("resume or stop it first"),
        (Operation::Resize { vcpus, memory_mib, disk_gib }, _) => {
            if let Some(asked) = disk_gib.filter(|asked| *asked < vm.size.disk_gib) {
                return Verdict::Illegal(Failure::lasting(
                    FailureCode::DiskShrink,
                    format!("its disk has {} GiB and cannot shrink to {asked}; disks only grow", vm.size.disk_gib),
                ));
            }
            let same = vcpus.is_none_or(|v| v == vm.size.vcpus)
                && memory_mib.is_none_or(|m| m == vm.size.memory_mib)
                && disk_gib.is_none_or(|d| d == vm.size.disk_gib);
            if same { Verdict::Nothing } else { Verdict::Do(Step::Resize) }
        }
        (Operation::Snapshot(name), _) => {
            if vm.snapshots.contains(name) {
                Verdict::Illegal(Failure::lasting(
                    FailureCode::SnapshotExists,
                    format!("it has a snapshot {name} already; delete that first or choose another name"),
                ))
            } else {
                Verdict::Do(Step::Snapshot)
            }
        }
        (Operation::Revert(name), _) => with_snapshot(vm, name, Step::Revert),
        (Operation::SnapshotDelete(name), _) => with_snapshot(vm, name, Step::SnapshotDelete),
        (Operation::Migrate(MigrateTo::Host(host)), _) => {
            if vm.home.as_ref().and_then(|home| home.host.as_ref()) == Some(host) {
                Verdict::Nothing
            } else {
                Verdict::Do(Step::Relocate)
            }
        }
        (Operation::Migrate(MigrateTo::Manager(name)), settled) => match target {
            None => Verdict::Illegal(Failure::lasting(
                FailureCode::ManagerNotFound,
                format!("there is no manager {name}; `cellbus managers` lists them"),
            )),
            Some(target) if vm.home.as_ref().is_some_and(|home| home.manager == target) => Verdict::Nothing,
            Some(_) if settled == VmState::Suspended => {
                illegal("its memory cannot move between managers; resume or stop it first")
            }
            Some(target) => Verdict::MoveTo(target),
        },
        (Operation::Delete, _) => Verdict::Do(Step::Delete),
    }
}

fn with_snapshot(vm: &Vm, name: &cellbus_bus::ids::ShortName, step: Step) -> Verdict {
    if vm.snapshots.contains(name) {
        Verdict::Do(step)
    } else {
        Verdict::Illegal(Failure::lasting(
            FailureCode::SnapshotNotFound,
            format!(
                "it has no snapshot {name}; it has {}",
                if vm.snapshots.is_empty() {
                    "none".to_owned()
                } else {
                    vm.snapshots.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                }
            ),
        ))
    }
}

/// VMs that are gone, or not there where they should be.
fn unusual(operation: &Operation, vm: &Vm) -> Option<Verdict> {
    match (vm.settled, operation) {
        (VmState::Deleted, Operation::Delete) => Some(Verdict::Nothing),
        (VmState::Deleted, _) => Some(Verdict::Illegal(Failure::lasting(
            FailureCode::IllegalTransition,
            format!("{} of a deleted VM is not possible", operation.kind()),
        ))),
        // A delete makes sure, wherever it was last.
        (VmState::Lost, Operation::Delete) if vm.home.is_some() => Some(Verdict::Do(Step::Delete)),
        (VmState::Lost, Operation::Delete) => Some(Verdict::Nothing),
        (VmState::Lost, _) => Some(Verdict::Illegal(Failure::lasting(
            FailureCode::VmLost,
            "its manager no longer has it; delete it, or bring it back and run an audit",
        ))),
        (
            VmState::Creating
            | VmState::Running
            | VmState::Stopped
            | VmState::Suspended
            | VmState::Migrating
            | VmState::Deleting
            | VmState::Unknown,
            _,
        ) => None,
    }
}
