//! Rows as JSON: the stable form of what the process answers. Ids are texts, times RFC 3339 in UTC.

use cellbus_bus::env::WallMs;
use cellbus_bus::job::Size;
use cellbus_directory::Failure;
use serde::Serialize;
use utoipa::ToSchema;

mod adopt;
mod cluster;
mod decommission;
mod explain;
mod forecast;
mod jobs;
mod operators;
mod pauses;
mod scale;
mod upgrade;
mod vms;

pub(super) use adopt::{AdoptView, AdoptingView};
pub(super) use cluster::{CellView, HostView, ManagerView, QueueView, ShardView};
pub(super) use decommission::DecommissionView;
pub(super) use explain::ExplainedView;
pub(super) use forecast::ForecastView;
pub(super) use jobs::{DryRunView, JobDetail, JobView, JobVm};
pub(super) use operators::{AuditView, ChangeView, DeadLetterView, EvacuationView, OperatorView};
pub(super) use pauses::PausesView;
pub(super) use scale::{DecisionView, ScaleView};
pub(super) use upgrade::UpgradeView;
pub(super) use vms::{LiveView, VmView};

fn time(at: WallMs) -> String {
    at.rfc3339()
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    /// At most `limit` rows.
    pub(super) items: Vec<T>,
    /// Give it back as `cursor`, with the same filters, for the next page; null after the last.
    pub(super) next_cursor: Option<String>,
}

/// Why a job, or a step of it, failed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FailureView {
    /// Stable.
    code: &'static str,
    /// For a person.
    message: String,
    /// The step that failed.
    step: Option<String>,
    /// Whether the same job under a new key may succeed with nothing mended.
    retryable: bool,
}
impl FailureView {
    pub(super) fn of(failure: &Failure) -> Self {
        // A step is a unit variant: as JSON it is its name.
        let step = failure.step.and_then(|step| serde_json::to_value(step).ok()?.as_str().map(str::to_owned));
        Self { code: failure.code.as_str(), message: failure.message.clone(), step, retryable: failure.retryable }
    }
}

/// The shape of a VM.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SizeView {
    /// Whole virtual CPUs.
    vcpus: u32,
    /// MiB.
    memory_mib: u64,
    /// GiB.
    disk_gib: u64,
}
impl SizeView {
    pub(super) fn of(size: Size) -> Self {
        Self { vcpus: size.vcpus, memory_mib: size.memory_mib, disk_gib: size.disk_gib }
    }
}
