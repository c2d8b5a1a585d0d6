//! What producers know: what they asked for, what they were told, and what must follow from it.
//! Nothing here comes from what Cellbus says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cellbus_bus::ids::{JobId, ManagerId, TenantId, VmId};
use cellbus_bus::job::{JobKind, Size};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use serde::Deserialize;

/// What was said of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing yet, or never anything: it may have been taken or not.
    Unknown,
    /// It is durable, and must end.
    Accepted,
    /// It was refused, with this code.
    Refused(String),
}

/// How a job ended, as its event says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ended {
    Succeeded,
    Failed(String),
    Cancelled,
}

/// What is asked of one VM, as far as it changes what must be there in the end.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    Provision { size: Size, on: bool },
    Start,
    Stop,
    Restart,
    Suspend,
    Resume,
    Resize { vcpus: Option<u32>, memory_mib: Option<u64>, disk_gib: Option<u64> },
    Snapshot(String),
    Revert(String),
    SnapshotDelete(String),
    MigrateHost(String),
    MigrateManager(ManagerId),
    Delete,
    Cancel,
}

/// A job that was submitted.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) kind: JobKind,
    pub(super) asked: Asked,
    /// Of a provision: how many VMs.
    pub(super) count: u32,
    pub(super) taken: Taken,
    pub(super) ended: BTreeSet<Ended>,
    /// Whose it is, once it has its place among the jobs of a VM.
    pub(super) placed: Option<TenantId>,
}

/// A VM that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Vm {
    pub(super) tenant: TenantId,
    pub(super) name: String,
    pub(super) job: JobId,
    /// Jobs on it in the order in which they were accepted, its provision first.
    pub(super) jobs: Vec<JobId>,
    /// A job on it whose place in the order is not known yet.
    pub(super) unplaced: bool,
    /// Why what must be there in the end cannot be told from the jobs alone.
    pub(super) loose: Option<&'static str>,
    /// A manager came back from a backup that has another state of it: there may be a copy that only
    /// an audit shows, until an operator removes it.
    pub(super) restored: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Books {
    pages: Mutex<Pages>,
}

#[derive(Default)]
pub(super) struct Pages {
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) vms: BTreeMap<VmId, Vm>,
    /// Those of `jobs` that were acknowledged and have not ended: asked for far too often to look
    /// for them among a million.
    open: BTreeSet<JobId>,
    pub(super) violations: Vec<(String, Vec<String>)>,
    pub(super) events: u64,
}

#[derive(Deserialize)]
struct OutcomeEvent {
    r#type: String,
    data: OutcomeData,
}
#[derive(Deserialize)]
struct OutcomeData {
    job_id: Option<JobId>,
    error: Option<OutcomeError>,
}
#[derive(Deserialize)]
struct OutcomeError {
    code: String,
}

impl Books {
    pub(super) fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event that Cellbus has published.
    pub(super) fn event(&self, body: &[u8]) {
        let mut pages = self.pages();
        pages.events += 1;
        let Ok(event) = serde_json::from_slice::<OutcomeEvent>(body) else {
            pages.violations.push(("an event cannot be read".to_owned(), Vec::new()));
            return;
        };
        let ended = match event.r#type.as_str() {
            "io.cellbus.job.succeeded.v1" => Ended::Succeeded,
            "io.cellbus.job.cancelled.v1" => Ended::Cancelled,
            "io.cellbus.job.failed.v1" => Ended::Failed(event.data.error.map(|error| error.code).unwrap_or_default()),
            _ => return,
        };
        let Some(id) = event.data.job_id else { return };
        let Some(job) = pages.jobs.get_mut(&id) else {
            pages.violations.push((format!("job {id}, which nobody submitted, has ended"), vec![id.to_string()]));
            return;
        };
        job.ended.insert(ended);
        let twice = (job.ended.len() > 1).then(|| format!("job {id} has ended in more than one way: {:?}", job.ended));
        pages.open.remove(&id);
        if let Some(said) = twice {
            pages.violations.push((said, vec![id.to_string()]));
        }
    }
}

impl Pages {
    /// What became of its submission.
    pub(super) fn taken(&mut self, id: JobId, taken: Taken) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.taken = taken;
        if job.taken == Taken::Accepted && job.ended.is_empty() {
            self.open.insert(id);
        } else {
            self.open.remove(&id);
        }
    }
    /// Jobs that were acknowledged and have not ended.
    pub(super) fn open(&self) -> &BTreeSet<JobId> {
        &self.open
    }
    /// One of these.
    pub(super) fn some_open(&self, rng: &mut SmallRng) -> Option<JobId> {
        let open: Vec<JobId> = self.open.iter().copied().collect();
        open.choose(rng).copied()
    }
    /// How the one way of a job's end is called.
    pub(super) fn ended(&self, job: &JobId) -> Option<&Ended> {
        self.jobs.get(job)?.ended.first()
    }
}
