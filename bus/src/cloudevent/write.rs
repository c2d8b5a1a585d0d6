//! CloudEvents that go out: outcomes, notices, and jobs as a producer would write them.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::envelope::type_of;
use crate::env::WallMs;
use crate::ids::{HostId, JobId, TenantId, VmId, VmName};
use crate::job::{Job, Labels, Layout, MigrateTo, Notify, Operation, Policy, Power, Request, StopMode, Target};

/// What an event that goes out tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// A job went as asked.
    Succeeded,
    /// A job did not.
    Failed,
    /// A job was called off.
    Cancelled,
    /// A job was accepted.
    Accepted,
    /// A job was not.
    Refused,
    /// A VM changed without a job.
    VmState,
}

impl EventKind {
    /// The CloudEvents type.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "io.cellbus.job.succeeded.v1",
            Self::Failed => "io.cellbus.job.failed.v1",
            Self::Cancelled => "io.cellbus.job.cancelled.v1",
            Self::Accepted => "io.cellbus.job.accepted.v1",
            Self::Refused => "io.cellbus.job.refused.v1",
            Self::VmState => "io.cellbus.vm.state.v1",
        }
    }
}

/// A CloudEvent that goes out, in structured mode. `D` is its `data`.
#[derive(Clone, Debug)]
pub struct OutgoingEvent<'a, D> {
    /// Stable: the same event sent twice has the same id.
    pub id: &'a str,
    /// What it tells.
    pub kind: EventKind,
    /// Whose.
    pub tenant: &'a TenantId,
    /// The job or VM that it is about.
    pub subject: &'a str,
    /// When it happened.
    pub time: WallMs,
    /// The extensions of the job, carried over. Names that the event itself uses are left out.
    pub extensions: &'a BTreeMap<String, String>,
    /// What it says.
    pub data: D,
}

/// The `source` of every event that Cellbus sends.
const SOURCE: &str = "/cellbus";

impl<D: Serialize> OutgoingEvent<'_, D> {
    /// As it is sent.
    ///
    /// # Panics
    /// Only if `D` cannot be JSON (a map whose keys are no texts, an error of its own).
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).expect("data of events is made of texts, numbers and structs"))
    }
}

impl<D: Serialize> Serialize for OutgoingEvent<'_, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const OWN: [&str; 9] =
            ["specversion", "id", "source", "type", "subject", "time", "tenant", "datacontenttype", "data"];
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("specversion", "1.0")?;
        map.serialize_entry("id", self.id)?;
        map.serialize_entry("source", SOURCE)?;
        map.serialize_entry("type", self.kind.as_str())?;
        map.serialize_entry("subject", self.subject)?;
        map.serialize_entry("time", &self.time.rfc3339())?;
        map.serialize_entry("tenant", self.tenant.as_str())?;
        for (name, value) in self.extensions {
            if !OWN.contains(&name.as_str()) {
                map.serialize_entry(name, value)?;
            }
        }
        map.serialize_entry("datacontenttype", "application/json")?;
        map.serialize_entry("data", &self.data)?;
        map.end()
    }
}

/// `data` of an outcome, and of *accepted* and *refused* (then without VMs).
#[derive(Clone, Debug, Serialize)]
pub struct OutcomeData<'a> {
    /// Which job.
    pub job_id: JobId,
    /// Its VMs, the first 100.
    pub vms: Vec<VmData<'a>>,
    /// How many it has.
    pub vms_total: u32,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorData<'a>>,
}

/// A VM in an event; also the `data` of `io.cellbus.vm.state.v1`.
#[derive(Clone, Debug, Serialize)]
pub struct VmData<'a> {
    /// Which.
    pub id: VmId,
    /// What it is called.
    pub name: &'a VmName,
    /// The configured name (or the id, if the name is not known) of the manager that holds it.
    pub manager: Option<String>,
    /// Its host there.
    pub host: Option<&'a HostId>,
    /// Its state, as in the API.
    pub state: &'a str,
}

/// Why a job failed, or was refused.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorData<'a> {
    /// Stable.
    pub code: &'a str,
    /// For a person.
    pub message: &'a str,
    /// The step that failed.
    pub step: Option<String>,
    /// Whether the same job under a new key may succeed with nothing mended.
    pub retryable: bool,
}

/// A job as the event that makes it: what dead letters show, and what the load harness and the
/// command line send. Parsing it gives the same job.
#[must_use]
pub fn job_event(job: &Job) -> Value {
    let mut event = Map::new();
    let mut put = |name: &str, value: Value| event.insert(name.to_owned(), value);
    put("specversion", json!("1.0"));
    put("id", json!(job.event_id));
    put("source", json!(job.source));
    put("type", json!(type_of(job.request.kind())));
    put("tenant", json!(job.tenant.as_str()));
    if let Some(after) = job.after {
        put("after", json!(after.to_string()));
    }
    match job.notify {
        Notify::Outcome => {}
        Notify::Accepted => {
            put("notify", json!("accepted"));
        }
    }
    for (name, value) in &job.extensions {
        put(name, json!(value));
    }
    let mut data = Map::new();
    match &job.request {
        Request::Provision(p) => {
            data.insert("name".into(), json!(p.name.as_str()));
            data.insert("count".into(), json!(p.count));
            data.insert("vcpus".into(), json!(p.size.vcpus));
            data.insert("memory_mib".into(), json!(p.size.memory_mib));
            data.insert("disk_gib".into(), json!(p.size.disk_gib));
            data.insert("image".into(), json!(p.image));
            put_labels(&mut data, "labels", &p.labels);
            put_labels(&mut data, "require", &p.require);
            let policy = policy(&p.policy);
            if !policy.is_empty() {
                data.insert("policy".into(), Value::Object(policy));
            }
            match p.power {
                Power::On => {}
                Power::Off => {
                    data.insert("power".into(), json!("off"));
                }
            }
        }
        Request::Operate(target, operation) => {
            put(
                "subject",
                match target {
                    Target::Id(id) => json!(id.to_string()),
                    Target::Name(name) => json!(name.as_str()),
                },
            );
            put_operation(&mut data, operation);
        }
        Request::Cancel(target) => {
            put("subject", json!(target.to_string()));
        }
    }
    if let Some(deadline) = job.deadline {
        data.insert("deadline_seconds".into(), json!(deadline.as_secs()));
    }
    put("data", Value::Object(data));
    Value::Object(event)
}

fn put_labels(data: &mut Map<String, Value>, name: &str, labels: &Labels) {
    if !labels.is_empty() {
        data.insert(name.to_owned(), json!(labels));
    }
}

fn policy(policy: &Policy) -> Map<String, Value> {
    let mut out = Map::new();
    match (policy.managers, policy.hosts) {
        (Layout::Spread, Layout::Spread) => {}
        (Layout::Pack, Layout::Spread) => {
            out.insert("pack".into(), json!("manager"));
        }
        (Layout::Spread, Layout::Pack) => {
            out.insert("pack".into(), json!("host"));
        }
        // One `pack` names one of the two, so no event asks for both.
        (Layout::Pack, Layout::Pack) => {
            out.insert("pack".into(), json!("host"));
        }
    }
    if let Some(group) = &policy.affinity {
        out.insert("affinity".into(), json!(group.as_str()));
    }
    if let Some(group) = &policy.anti_affinity {
        out.insert("anti_affinity".into(), json!(group.as_str()));
    }
    out
}

fn put_operation(data: &mut Map<String, Value>, operation: &Operation) {
    match operation {
        Operation::Start | Operation::Suspend | Operation::Resume | Operation::Delete => {}
        Operation::Stop(mode) | Operation::Restart(mode) => match mode {
            StopMode::Graceful => {}
            StopMode::Hard => {
                data.insert("mode".into(), json!("hard"));
            }
        },
        Operation::Resize { vcpus, memory_mib, disk_gib } => {
            for (name, value) in [("vcpus", vcpus.map(u64::from)), ("memory_mib", *memory_mib), ("disk_gib", *disk_gib)]
            {
                if let Some(value) = value {
                    data.insert(name.into(), json!(value));
                }
            }
        }
        Operation::Snapshot(name) | Operation::Revert(name) | Operation::SnapshotDelete(name) => {
            data.insert("snapshot".into(), json!(name.as_str()));
        }
        Operation::Migrate(MigrateTo::Host(host)) => {
            data.insert("host".into(), json!(host.as_str()));
        }
        Operation::Migrate(MigrateTo::Manager(manager)) => {
            data.insert("manager".into(), json!(manager.as_str()));
        }
    }
}
