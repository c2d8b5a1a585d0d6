//! The events that go out to producers: CloudEvents 1.0, with ids that stay the same however often
//! they are sent.

use std::collections::BTreeMap;

use bytes::Bytes;
use cellbus_bus::contract::Event;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{HostId, ManagerName, OpNumber, TenantId, VmId, VmName};
use cellbus_bus::job::Job;
use cellbus_directory::vm::Place;
use cellbus_directory::{Failure, JobRow, Outcome, Vm, VmState, VmSummary};
use serde::Serialize;

use crate::view::ManagerNames;

#[derive(Serialize)]
struct CloudEvent<'a, D> {
    specversion: &'static str,
    id: &'a str,
    source: &'static str,
    r#type: &'a str,
    subject: String,
    time: String,
    tenant: &'a TenantId,
    datacontenttype: &'static str,
    /// The job's own extensions, carried through.
    #[serde(flatten)]
    extensions: Option<&'a BTreeMap<String, String>>,
    data: D,
}

#[derive(Serialize)]
struct JobData<'a> {
    job_id: String,
    r#type: &'static str,
    state: &'static str,
    source: &'a str,
    id: &'a str,
    vms: Vec<VmData<'a>>,
    vms_total: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorData<'a>>,
}

#[derive(Serialize)]
struct VmData<'a> {
    id: String,
    name: &'a str,
    manager: Option<String>,
    manager_name: Option<String>,
    host: Option<&'a str>,
    state: &'static str,
}

#[derive(Serialize)]
struct ErrorData<'a> {
    code: &'static str,
    message: &'a str,
    step: Option<cellbus_directory::Step>,
    retryable: bool,
}

impl<'a> From<&'a Failure> for ErrorData<'a> {
    fn from(failure: &'a Failure) -> Self {
        Self {
            code: failure.code.as_str(),
            message: &failure.message,
            step: failure.step,
            retryable: failure.retryable,
        }
    }
}

impl<'a> VmData<'a> {
    fn new(id: VmId, name: &'a VmName, home: Option<&'a Place>, state: VmState, names: &ManagerNames) -> Self {
        Self {
            id: id.to_string(),
            name: name.as_str(),
            manager: home.map(|place| place.manager.to_string()),
            manager_name: home.and_then(|place| names.name(&place.manager)).map(ManagerName::to_string),
            host: home.and_then(|place| place.host.as_ref()).map(HostId::as_str),
            state: state.as_str(),
        }
    }
}

fn event<D: Serialize>(
    id: String,
    kind: &str,
    subject: String,
    at: WallMs,
    tenant: &TenantId,
    job: Option<&Job>,
    data: D,
) -> Event {
    let body = CloudEvent {
        specversion: "1.0",
        id: &id,
        source: "/cellbus",
        r#type: kind,
        subject,
        time: at.rfc3339(),
        tenant,
        datacontenttype: "application/json",
        extensions: job.map(|job| &job.extensions).filter(|e| !e.is_empty()),
        data,
    };
    // Writing to memory fails only for maps whose keys are not text, which these are.
    let body = Bytes::from(serde_json::to_vec(&body).expect("an event is plain text and numbers"));
    Event { id, tenant: tenant.clone(), body }
}

/// `io.cellbus.job.succeeded.v1`, `...failed.v1` or `...cancelled.v1`.
pub(crate) fn outcome(row: &JobRow, job: &Job, vms: &[&VmSummary], names: &ManagerNames) -> Event {
    let error = match &row.outcome {
        Some(Outcome::Failed(failure)) => Some(ErrorData::from(failure)),
        Some(Outcome::Succeeded | Outcome::Cancelled) | None => None,
    };
    let vms = vms.iter().map(|vm| VmData::new(vm.id, &vm.name, vm.home.as_ref(), vm.state, names)).collect();
    let state = row.state.as_str();
    let data = JobData {
        job_id: row.id.to_string(),
        r#type: row.kind.as_str(),
        state,
        source: &row.source,
        id: &row.event_id,
        vms,
        vms_total: row.vms_total,
        error,
    };
    let at = row.ended_at.unwrap_or(row.accepted_at);
    let kind = format!("io.cellbus.job.{state}.v1");
    event(format!("{}/{state}", row.id), &kind, row.id.to_string(), at, &row.tenant, Some(job), data)
}

/// `io.cellbus.job.accepted.v1`.
pub(crate) fn accepted(row: &JobRow, job: &Job) -> Event {
    let data = JobData {
        job_id: row.id.to_string(),
        r#type: row.kind.as_str(),
        state: "accepted",
        source: &row.source,
        id: &row.event_id,
        vms: Vec::new(),
        vms_total: row.vms_total,
        error: None,
    };
    let id = format!("{}/accepted", row.id);
    event(id, "io.cellbus.job.accepted.v1", row.id.to_string(), row.accepted_at, &row.tenant, Some(job), data)
}

/// `io.cellbus.vm.state.v1`: a change that no job made.
pub(crate) fn vm_state(vm: &Vm, op: OpNumber, names: &ManagerNames) -> Event {
    let data = VmData::new(vm.id, &vm.name, vm.home.as_ref(), vm.state(), names);
    let id = format!("{}/state/{op}", vm.id);
    event(id, "io.cellbus.vm.state.v1", vm.id.to_string(), vm.as_of, &vm.tenant, None, data)
}
