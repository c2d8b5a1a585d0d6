//! What operators change, look through and mend.

use std::collections::BTreeMap;

use cellbus_bus::ids::ManagerId;
use cellbus_directory::record::{DeadLetter, Operator};
use cellbus_workflows::Change;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::api::Api;
use super::decommission::StaysView;
use super::time;
use crate::gateway;

/// Who changed something.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OperatorView {
    /// As authenticated; `anonymous` while authentication is off.
    who: String,
    /// The address that the call came from.
    from: String,
}
impl From<Operator> for OperatorView {
    fn from(by: Operator) -> Self {
        Self { who: by.who, from: by.from }
    }
}

/// Something that an operator changed.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChangeView {
    /// When.
    at: String,
    /// Who.
    by: OperatorView,
    /// What, as a sentence.
    what: String,
}
impl From<Change> for ChangeView {
    fn from(change: Change) -> Self {
        Self { at: time(change.at), by: change.by.into(), what: change.what }
    }
}

/// Something that could not be taken.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DeadLetterView {
    /// Its id.
    id: String,
    /// When it was put aside.
    at: String,
    /// Whose, if that could be told.
    tenant: Option<String>,
    /// Stable code.
    code: String,
    /// Why, in words.
    reason: String,
    /// Where it came from: `ingress`, `jobs` or `control`.
    from: String,
    /// Its size as it came, or as much as is kept of it.
    original_bytes: usize,
    /// As it came, as text; what is no text is shown as `�`. Left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    original: Option<String>,
}
impl DeadLetterView {
    pub(in crate::http) fn of(letter: &DeadLetter, whole: bool) -> Self {
        Self {
            id: letter.id.to_string(),
            at: time(letter.at),
            tenant: letter.tenant.as_ref().map(ToString::to_string),
            code: letter.code.clone(),
            reason: letter.reason.clone(),
            from: letter.from.clone(),
            original_bytes: letter.original.len(),
            original: whole.then(|| String::from_utf8_lossy(&letter.original).into_owned()),
        }
    }
}

/// What an evacuation has set in motion.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct EvacuationView {
    /// VMs found there.
    vms: u64,
    /// The migrate jobs, the first 100.
    jobs: Vec<String>,
    /// How many in all.
    jobs_total: u64,
    /// VMs that stay until somebody does something about them: the first 100.
    stays: Vec<StaysView>,
    /// How many in all.
    stays_total: u64,
    /// Give it back as `round` to ask again without submitting anything twice.
    round: String,
}
impl EvacuationView {
    pub(in crate::http) fn of(evacuation: &gateway::Evacuation, round: &str) -> Self {
        Self {
            vms: evacuation.vms,
            jobs: evacuation.jobs.iter().map(ToString::to_string).collect(),
            jobs_total: evacuation.jobs_total,
            stays: evacuation.stays.iter().cloned().map(StaysView::from).collect(),
            stays_total: evacuation.stays_total,
            round: round.to_owned(),
        }
    }
}

/// An audit of the directory against the managers.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AuditView {
    /// Its id.
    id: String,
    /// When it began.
    started_at: String,
    /// When it ended; null while it runs.
    ended_at: Option<String>,
    /// Managers compared.
    managers_done: u32,
    /// Managers in all.
    managers_total: u32,
    /// Managers that could not be read, by name or id.
    unreachable: Vec<String>,
    /// VMs compared.
    vms: u64,
    /// Differences found.
    findings_total: u64,
    /// The first 1,000.
    findings: Vec<FindingView>,
    /// How many there are of each kind, once it has ended.
    kinds: BTreeMap<String, u64>,
    /// Repairs asked for, in VMs.
    repairs: u64,
    /// What a repair would do, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) plan: Option<String>,
    /// The same, in VMs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) repair: Option<RepairView>,
}

/// What a repair comes to, in VMs.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RepairView {
    /// Read again at their homes.
    read: u64,
    /// Adopted.
    adopted: u64,
    /// Destroyed, copies of VMs among them: what `confirm` has to say.
    destroyed: u64,
    /// Left for a person.
    left: u64,
}
impl From<gateway::RepairPlan> for RepairView {
    fn from(plan: gateway::RepairPlan) -> Self {
        let gateway::RepairPlan { read, adopted, destroyed, left } = plan;
        Self { read, adopted, destroyed, left }
    }
}

/// One difference between the directory and a manager.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct FindingView {
    /// Which VM.
    vm: String,
    /// At which manager, by name or id.
    manager: String,
    /// missing (a ghost), unknown (an orphan), duplicate (a double), moved, host, power, size or snapshots.
    kind: String,
    /// In words.
    detail: String,
}
impl AuditView {
    pub(in crate::http) fn of(api: &dyn Api, audit: gateway::Audit) -> Self {
        let named = |id: &ManagerId| api.manager_name(id).unwrap_or_else(|| id.to_string());
        Self {
            id: audit.id.to_string(),
            started_at: time(audit.started_at),
            ended_at: audit.ended_at.map(time),
            managers_done: audit.managers_done,
            managers_total: audit.managers_total,
            unreachable: audit.unreachable.iter().map(named).collect(),
            vms: audit.vms,
            findings_total: audit.findings_total,
            findings: audit
                .findings
                .into_iter()
                .map(|f| FindingView {
                    vm: f.vm.to_string(),
                    manager: named(&f.manager),
                    kind: f.kind,
                    detail: f.detail,
                })
                .collect(),
            kinds: audit.kinds,
            repairs: audit.repairs,
            plan: None,
            repair: None,
        }
    }
}
