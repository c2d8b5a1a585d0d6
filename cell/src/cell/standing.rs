//! What the directory knows on a host, as a manager would hold it.

use cellbus_bus::ids::{HostId, ManagerId};
use cellbus_directory::vm::PowerState;
use cellbus_directory::{Vm, VmFacts, VmFilter, VmState};

use crate::directory::{Directory, Fresh};
use crate::driver::HeldVm;
use crate::gateway::Result;

/// VMs read from the directory at once.
const PAGE: usize = 500;

/// The VMs that were made to their end on the host and are not on their way off it.
///
/// # Errors
/// When the directory gives no answer.
pub(super) async fn on(directory: &Directory, manager: ManagerId, host: HostId) -> Result<Vec<HeldVm>> {
    let filter = VmFilter { manager: Some(manager), host: Some(host.clone()), ..VmFilter::default() };
    let (mut standing, mut from): (_, Option<String>) = (Vec::new(), None);
    loop {
        let page = directory.list(&filter, PAGE, from.as_deref(), Fresh::CaughtUp).await?;
        standing.extend(page.items.into_iter().filter_map(|vm| held(vm, &host)));
        match page.next {
            Some(next) => from = Some(next),
            None => return Ok(standing),
        }
    }
}

fn held(vm: Vm, host: &HostId) -> Option<HeldVm> {
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
    let policy = &vm.template.policy;
    Some(HeldVm {
        id: vm.id,
        affinity: policy.affinity.clone(),
        anti_affinity: policy.anti_affinity.clone(),
        facts: VmFacts { host: host.clone(), power, size: vm.size, snapshots: vm.snapshots },
        tenant: vm.tenant,
        name: vm.name,
        op: vm.op,
        datastore: None,
    })
}
