//! A cluster, as the load harness sees it.

use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::ids::{JobId, VmId};
use tokio::sync::mpsc;

/// Where load is put: over HTTP ([`super::HttpTarget`]), or over a bus ([`super::BusTarget`]).
#[async_trait]
pub trait Target: Send + Sync {
    /// Submits CloudEvents, each a JSON object. Returns once all are acknowledged but those given.
    ///
    /// # Errors
    /// [`SubmitError`]; what was refused or unanswered may be submitted again unchanged.
    async fn submit(&self, events: &[String]) -> Result<Vec<Refused>, SubmitError>;
    /// Hears outcomes over one connection, for as long as it holds, and hands them to `heard`:
    /// [`Heard::Connected`] first, from when on nothing is missed. With `after`, from that event on.
    ///
    /// # Errors
    /// Why it has ended; `Ok` if `heard` was closed.
    async fn listen(&self, after: Option<&str>, heard: &mpsc::Sender<Heard>) -> Result<(), TargetError>;
    /// Asks after one job; `None`: not known.
    ///
    /// # Errors
    /// [`TargetError`].
    async fn job(&self, job: JobId) -> Result<Option<JobView>, TargetError>;
    /// A page of the VMs of a tenant that carry a label; the first where `cursor` is `None`.
    ///
    /// # Errors
    /// [`TargetError`].
    async fn vms(&self, tenant: &str, label: (&str, &str), cursor: Option<&str>) -> Result<VmPage, TargetError>;
    /// How many of these VMs (at most 10,000) are found.
    ///
    /// # Errors
    /// [`TargetError`].
    async fn locate(&self, vms: &[VmId]) -> Result<usize, TargetError>;
    /// Compares directory and managers, and waits for the result.
    ///
    /// # Errors
    /// [`TargetError`].
    async fn audit(&self) -> Result<Audited, TargetError>;
    /// What the cluster is made of.
    ///
    /// # Errors
    /// [`TargetError`].
    async fn cluster(&self) -> Result<Cluster, TargetError>;
    /// What changes while it runs: asked once a second.
    ///
    /// # Errors
    /// [`TargetError`].
    async fn sample(&self) -> Result<Sample, TargetError>;
    /// The managers: asked every few seconds. Nothing where that is not told.
    ///
    /// # Errors
    /// [`TargetError`].
    async fn managers(&self) -> Result<Vec<ManagerSeen>, TargetError> {
        Ok(Vec::new())
    }
}

/// Why jobs were not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Not now, or no answer: the same again after a while.
    #[error("not taken for now: {detail}")]
    Later {
        /// Not before.
        after: Option<Duration>,
        /// Why.
        detail: String,
    },
    /// Nothing was taken, because these are refused.
    #[error("{} jobs are refused", .0.len())]
    Refused(Vec<Refused>),
}

/// A job that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its place in what was submitted.
    pub index: usize,
    /// Stable.
    pub code: String,
    /// In words.
    pub words: String,
}

/// No answer, or one that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct TargetError {
    /// What happened.
    pub detail: String,
    /// Whether the cluster says that it can be asked the same again in a moment: it is not ready, or busy.
    pub later: bool,
}

/// What comes out of [`Target::listen`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It hears from now on.
    Connected,
    /// Jobs have ended.
    Ended(Vec<Ended>),
    /// A job that was acknowledged is refused after all: durable on a bus, and then no job.
    Refused(JobId, String, String),
    /// The last event that was heard, to go on from after a broken connection.
    At(String),
}

/// A job has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub job: JobId,
    /// How.
    pub how: How,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// As asked.
    Succeeded,
    /// Not: stable code, words.
    Failed(String, String),
    /// Called off.
    Cancelled,
}

/// What is known of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView {
    /// How it ended; `None` while it has not.
    pub ended: Option<How>,
}

/// Some VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmPage {
    /// Their ids and names.
    pub vms: Vec<(VmId, String)>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// VMs compared.
    pub vms: u64,
    /// Differences.
    pub mismatches: u64,
    /// Managers that could not be read.
    pub unread: u64,
    /// VMs that are on more than one manager, of the differences that are listed.
    pub duplicates: u64,
}

/// What a cluster is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Hosts.
    pub hosts: u64,
    /// The names of its managers.
    pub managers: Vec<String>,
    /// The version of its server, where it says one.
    pub version: Option<String>,
}

/// What changes while it runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Its cells.
    pub cells: Vec<CellSeen>,
    /// Memory of the server, its peak where it says that; 0 where it says nothing.
    pub rss_mib: u64,
    /// Memory of the server now.
    pub rss_now_mib: Option<f64>,
    /// Jobs that it has and has not ended.
    pub jobs_open: Option<u64>,
}

/// A cell, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellSeen {
    /// Which.
    pub id: String,
    /// What it is: `active`, `draining`, or that it does not answer.
    pub state: String,
}

/// A manager, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerSeen {
    /// Its name.
    pub name: String,
    /// `closed`, `open` or `half_open`; `None` when no cell fronts it.
    pub circuit: Option<String>,
    /// Whether new VMs are kept off it.
    pub cordoned: bool,
}
