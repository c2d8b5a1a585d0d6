//! What a tenant asks for by id: another tenant's is answered as one that is not there, word for word.

use cellbus_bus::ids::{JobId, TenantId, VmId};
use cellbus_workflows::JobStatus;

use super::App;
use super::access::Caller;
use crate::gateway::{Error, Explained, Result, VmRow, What};

fn is_theirs(caller: &Caller, tenant: &TenantId) -> bool {
    caller.scope().is_none_or(|own| own == tenant)
}

/// A job.
pub(super) async fn job(app: &App, caller: &Caller, id: JobId) -> Result<JobStatus> {
    let status = app.api.job(id).await?;
    if is_theirs(caller, &status.row.tenant) {
        Ok(status)
    } else {
        Err(Error::NotFound { what: What::Job, id: id.to_string() })
    }
}

/// That a job is the caller's to ask about, where what follows does not tell by itself.
pub(super) async fn check_job(app: &App, caller: &Caller, id: JobId) -> Result<()> {
    // Whoever may see all need not ask twice.
    if caller.scope().is_some() { job(app, caller, id).await.map(drop) } else { Ok(()) }
}

/// A VM.
pub(super) async fn vm(app: &App, caller: &Caller, id: VmId) -> Result<VmRow> {
    let row = app.api.vm(id).await?;
    if is_theirs(caller, &row.tenant) { Ok(row) } else { Err(Error::NotFound { what: What::Vm, id: id.to_string() }) }
}

/// As [`check_job`].
pub(super) async fn check_vm(app: &App, caller: &Caller, id: VmId) -> Result<()> {
    if caller.scope().is_some() { vm(app, caller, id).await.map(drop) } else { Ok(()) }
}

/// What of an explanation is the caller's.
pub(super) fn explained(caller: &Caller, mut found: Explained, id: VmId) -> Result<Explained> {
    found.job = found.job.filter(|job| is_theirs(caller, &job.row.tenant));
    found.vm = found.vm.filter(|vm| is_theirs(caller, &vm.vm.tenant));
    if found.job.is_none() && found.vm.is_none() {
        return Err(Error::NotFound { what: What::Vm, id: id.to_string() });
    }
    Ok(found)
}
