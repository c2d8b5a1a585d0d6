//! What the directory lists at a manager, as the manager would hold it.

use cellbus_bus::ids::{HostId, ManagerId};
use cellbus_directory::vm::PowerState;
use cellbus_directory::{Vm, VmFacts, VmFilter, VmState};

use crate::directory::{Directory, Fresh};
use crate::driver::HeldVm;
use crate::gateway::Result;

/// The VMs that were made to their end, as far as is known, at the manager or on one host of it.
///
/// # Errors
/// When the directory gives no answer.
pub(super) async fn at(directory: &Directory, manager: ManagerId, host: Option<HostId>) -> Result<Vec<HeldVm>> {
    let filter = VmFilter { manager: Some(manager), host, ..VmFilter::default() };
    Ok(directory.all(&filter, Fresh::CaughtUp).await?.into_iter().filter_map(held).collect())
}

fn held(vm: Vm) -> Option<HeldVm> {
    let power = match vm.settled {
        VmState::Running => PowerState::Running,
        VmState::Stopped => PowerState::Stopped,
        VmState::Suspended => PowerState::Suspended,
        // What is being made is made elsewhere; of the others nobody knows that they are there.
        VmState::Creating
        | VmState::Migrating
        | VmState::Deleting
        | VmState::Deleted
        | VmState::Lost
        | VmState::Unknown => return None,
    };
    let host = vm.home.and_then(|home| home.host)?;
    let policy = &vm.template.policy;
    Some(HeldVm {
        id: vm.id,
        affinity: policy.affinity.clone(),
        anti_affinity: policy.anti_affinity.clone(),
        facts: VmFacts { host, power, size: vm.size, snapshots: vm.snapshots },
        tenant: vm.tenant,
        name: vm.name,
        op: vm.op,
        datastore: None,
    })
}
