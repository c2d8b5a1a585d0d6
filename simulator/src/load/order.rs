//! The event that asks for a job. It is written with no tree in between: a run at full speed has a
//! core in common with the cluster that it measures.

use std::collections::BTreeMap;

use cellbus_bus::cloudevent::type_of;
use cellbus_bus::ids::VmId;
use cellbus_bus::job::{JobKind, Size};
use serde::Serialize;

/// A job, and whose.
pub(super) struct Order<'a> {
    pub(super) id: &'a str,
    pub(super) source: &'a str,
    pub(super) tenant: &'a str,
    pub(super) kind: JobKind,
    /// The VM that it is for.
    pub(super) subject: Option<VmId>,
    pub(super) data: Data,
}

/// What is asked for in particular.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Data {
    Provision {
        name: String,
        #[serde(flatten)]
        size: Size,
        image: &'static str,
        labels: BTreeMap<&'static str, String>,
    },
    Resize {
        disk_gib: u64,
    },
    Snapshot {
        snapshot: String,
    },
    Migrate {
        manager: String,
    },
    Nothing {},
}

#[derive(Serialize)]
struct Event<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    kind: String,
    tenant: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<VmId>,
    datacontenttype: &'static str,
    data: Data,
}

impl Order<'_> {
    /// As a CloudEvent in structured mode.
    pub(super) fn event(self) -> String {
        let event = Event {
            specversion: "1.0",
            id: self.id,
            source: self.source,
            kind: type_of(self.kind),
            tenant: self.tenant,
            subject: self.subject,
            datacontenttype: "application/json",
            data: self.data,
        };
        serde_json::to_string(&event).expect("text, numbers and maps by text are JSON")
    }
}
