//! VMs whose host is dead: which of them are started again elsewhere.
//!
//! Who fronts the manager says that the host is dead, once the manager is certain of it, and says it
//! again while VMs are still there. The VM's home alone decides, and has it done as one piece of work
//! in the VM's line: so it is done once, and never beside another operation on the VM.

use std::sync::Arc;

use cellbus_bus::ids::{HostId, JobId, ManagerId, VmId};
use cellbus_bus::job::Labels;
use cellbus_directory::work::Task;
use cellbus_directory::{Record, VmState, Work};

use super::Shard;
use crate::input::Context;

/// The label of a VM that says what comes of it when its host dies.
pub const ON_HOST_FAILURE: &str = "cellbus.io/on-host-failure";
/// Its value for a VM that is started again on another host.
pub const RESTART: &str = "restart";

/// Whether a VM with these labels is started again on another host when its own dies.
#[must_use]
pub fn restarts_elsewhere(labels: &Labels) -> bool {
    labels.get(ON_HOST_FAILURE).is_some_and(|value| value == RESTART)
}

/// Stands for a job where there is none: a VM's line names its work by jobs.
fn no_job() -> JobId {
    JobId::from_uuid(uuid::Uuid::max())
}

/// Whether work under this id is for no job: an inspection, or a failover.
pub(super) fn nobodys(job: &JobId) -> bool {
    job.uuid().is_nil() || *job == no_job()
}

impl Shard {
    /// The VM's host is dead.
    pub(super) fn host_died(&mut self, ctx: &Context<'_>, vm: VmId, manager: ManagerId, from: HostId, to: HostId) {
        let Some(entry) = self.state.vms.get(&vm) else { return };
        let there = entry.vm.home.as_ref().is_some_and(|at| at.manager == manager && at.host.as_ref() == Some(&from));
        let wanted = restarts_elsewhere(&entry.vm.template.labels);
        // What has been said before, and is still to be done, is enough.
        let known = self.soft.admitted.contains(&(vm, no_job()));
        if !there || !wanted || known || entry.vm.settled != VmState::Running {
            return;
        }
        let work = Work {
            vm,
            job: no_job(),
            index: 0,
            tenant: entry.vm.tenant.clone(),
            accepted_at: ctx.now,
            deadline_at: None,
            task: Task::Failover { from, to },
        };
        self.record(ctx, Record::WorkAdmitted { work: Arc::new(work) });
        self.enqueue(vm);
    }
}
