//! A cluster of this process as the load harness sees it: function calls in place of HTTP.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::cloudevent::{self, Limits, TenantFrom, TenantRule, Tenants};
use cellbus_bus::contract::{Member, MemberState, Role};
use cellbus_bus::embedded::Embedded;
use cellbus_bus::ids::{JobId, Seq, VmId};
use cellbus_bus::job::Labels;
use cellbus_bus::{Bus as _, Env};
use cellbus_cell::Gateway;
use cellbus_cell::gateway::Submitted;
use cellbus_directory::Outcome;
use cellbus_directory::record::Operator;
use cellbus_directory::replica::VmFilter;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::load::{
    Audited, CellSeen, Cluster, Ended, Heard, How, JobView, Refused, Sample, SubmitError, Target, TargetError, VmPage,
};

const AUDIT_POLL: Duration = Duration::from_millis(50);
/// Events of one step, so that a reader which is behind does not hold more.
const EVENTS_MAX: usize = 4_096;
const PAGE: usize = 1_000;

/// A cluster of this process.
pub(super) struct Local {
    pub(super) gateway: Gateway,
    pub(super) bus: Arc<Embedded>,
    pub(super) env: Env,
}

/// What there is to know of an outcome.
#[derive(Deserialize)]
struct OutcomeEvent {
    r#type: String,
    data: Data,
}
#[derive(Deserialize)]
struct Data {
    job_id: Option<JobId>,
    error: Option<Failure>,
}
#[derive(Deserialize)]
struct Failure {
    code: String,
    message: String,
}

/// What asking again does not mend.
fn failed(error: &dyn std::error::Error) -> TargetError {
    TargetError { detail: error.to_string(), later: false }
}

fn refused(error: &cellbus_cell::gateway::Error) -> TargetError {
    TargetError { detail: error.to_string(), later: error.retryable() }
}

fn ended(event: &[u8]) -> Option<Ended> {
    let event: OutcomeEvent = serde_json::from_slice(event).ok()?;
    let how = match event.r#type.as_str() {
        "io.cellbus.job.succeeded.v1" => How::Succeeded,
        "io.cellbus.job.cancelled.v1" => How::Cancelled,
        "io.cellbus.job.failed.v1" => match event.data.error {
            Some(Failure { code, message }) => How::Failed(code, message),
            None => How::Failed("unknown".to_owned(), String::new()),
        },
        _ => return None,
    };
    Some(Ended { job: event.data.job_id?, how })
}

#[async_trait]
impl Target for Local {
    async fn submit(&self, events: &[String]) -> Result<Vec<Refused>, SubmitError> {
        let rule = TenantRule { from: TenantFrom::Attribute, known: &Tenants::Any };
        let mut jobs = Vec::with_capacity(events.len());
        let mut refused = Vec::new();
        for (index, event) in events.iter().enumerate() {
            match cloudevent::parse_structured(event.as_bytes(), rule, &Limits::default()) {
                Ok(job) => jobs.push(Arc::new(job)),
                Err(no) => refused.push(Refused { index, code: no.code.to_string(), words: no.message }),
            }
        }
        if !refused.is_empty() {
            return Err(SubmitError::Refused(refused));
        }
        let answers = match self.gateway.submit(jobs).await {
            Ok(answers) => answers,
            Err(error) if error.retryable() => {
                return Err(SubmitError::Later { after: error.retry_after(), detail: error.to_string() });
            }
            Err(error) => {
                let no = |index| Refused { index, code: error.code().to_owned(), words: error.to_string() };
                return Err(SubmitError::Refused((0..events.len()).map(no).collect()));
            }
        };
        let refusal = |(index, answer)| match answer {
            Submitted::Accepted { .. } => None,
            Submitted::Conflict { job } => {
                Some(Refused { index, code: "job_conflict".to_owned(), words: format!("job {job} has this key") })
            }
            Submitted::Refused { code, message, .. } => Some(Refused { index, code, words: message }),
        };
        Ok(answers.into_iter().enumerate().filter_map(refusal).collect())
    }

    async fn listen(&self, after: Option<&str>, heard: &mpsc::Sender<Heard>) -> Result<(), TargetError> {
        let after = after.and_then(|text| text.parse().ok()).map(Seq);
        let mut reader = self.bus.read_events(after).await.map_err(|error| failed(&error))?;
        if heard.send(Heard::Connected).await.is_err() {
            return Ok(());
        }
        loop {
            let events = reader.next(EVENTS_MAX).await.map_err(|error| failed(&error))?;
            let ended: Vec<Ended> = events.iter().filter_map(|placed| ended(&placed.event.body)).collect();
            if !ended.is_empty() && heard.send(Heard::Ended(ended)).await.is_err() {
                return Ok(());
            }
            if let Some(last) = events.last()
                && heard.send(Heard::At(last.seq.to_string())).await.is_err()
            {
                return Ok(());
            }
        }
    }

    async fn job(&self, job: JobId) -> Result<Option<JobView>, TargetError> {
        match self.gateway.job(job).await {
            Ok(status) => Ok(Some(JobView {
                ended: status.row.outcome.map(|outcome| match outcome {
                    Outcome::Succeeded => How::Succeeded,
                    Outcome::Failed(failure) => How::Failed(failure.code.to_string(), failure.message),
                    Outcome::Cancelled => How::Cancelled,
                }),
            })),
            Err(cellbus_cell::gateway::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(refused(&error)),
        }
    }

    async fn vms(&self, tenant: &str, label: (&str, &str), cursor: Option<&str>) -> Result<VmPage, TargetError> {
        let filter = VmFilter {
            tenant: Some(tenant.parse().map_err(|error| failed(&error))?),
            labels: Labels::from([(label.0.to_owned(), label.1.to_owned())]),
            ..VmFilter::default()
        };
        let page = self.gateway.vms(&filter, PAGE, cursor).await.map_err(|error| refused(&error))?;
        Ok(VmPage { vms: page.items.into_iter().map(|vm| (vm.id, vm.name.to_string())).collect(), next: page.next })
    }

    async fn locate(&self, vms: &[VmId]) -> Result<usize, TargetError> {
        Ok(match self.gateway.replica() {
            Some(replica) => replica.locate_many(vms).iter().filter(|place| place.is_some()).count(),
            None => {
                let located = self.gateway.locate_many(vms).await.map_err(|error| refused(&error))?;
                located.iter().filter(|place| place.is_some()).count()
            }
        })
    }

    async fn audit(&self) -> Result<Audited, TargetError> {
        let by = Operator { who: "load".to_owned(), from: "this process".to_owned() };
        let id = self.gateway.audit_start(by).await.map_err(|error| refused(&error))?;
        loop {
            let audit = self.gateway.audit(id).map_err(|error| refused(&error))?;
            if audit.ended_at.is_some() {
                return Ok(Audited {
                    vms: audit.vms,
                    mismatches: audit.findings_total,
                    unread: audit.unreachable.len() as u64,
                    duplicates: audit.findings.iter().filter(|finding| finding.kind == "duplicate").count() as u64,
                });
            }
            self.env.sleep(AUDIT_POLL).await;
        }
    }

    async fn cluster(&self) -> Result<Cluster, TargetError> {
        let managers = self.gateway.managers().await.map_err(|error| refused(&error))?;
        Ok(Cluster {
            hosts: managers.iter().map(|manager| u64::from(manager.hosts)).sum(),
            managers: managers.into_iter().map(|manager| manager.name).collect(),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        })
    }

    async fn sample(&self) -> Result<Sample, TargetError> {
        let members = self.bus.members().await.map_err(|error| failed(&error))?;
        let seen = |member: &Member| CellSeen {
            id: member.cell.to_string(),
            state: match member.state {
                MemberState::Active => "active".to_owned(),
                MemberState::Draining => "draining".to_owned(),
            },
        };
        Ok(Sample {
            cells: members.iter().filter(|member| member.role == Role::Cell).map(seen).collect(),
            rss_mib: peak_rss_mib(),
            ..Sample::default()
        })
    }
}

/// The most memory that this process has had, MiB; 0 where the system does not say.
fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib.div_ceil(1024))
}
