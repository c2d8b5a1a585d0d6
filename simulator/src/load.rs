//! Load on a cluster, with books of its own: what was acknowledged must end, once, and be there.
//!
//! ```text
//!  workload ──▶ books ──batches──▶ Target::submit ──▶ cluster
//!     ▲           │ ▲                                    │
//!     └ order ────┘ └──── outcomes: Target::listen, and Target::job for what stays silent
//!                 │
//!                 └─▶ what must be there ──▶ VMs, locate, audit ──▶ Report
//! ```
//!
//! [`run`] plays a [`workload`] and gives a [`Report`]. A job is sent again, unchanged, until it is
//! acknowledged or refused, which is safe as its key stays the same. There are two paces
//! ([`Pace`]): a trace goes strictly in its order, with few jobs unanswered; a [`Shape`] is an open
//! loop, whose clock no cluster can slow. Latency counts from when a job was *due*, so that a
//! cluster that falls behind is seen to, and the report says how late the harness itself was.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::ids::TenantId;
use tokio_util::sync::CancellationToken;

pub mod anonymise;
mod arrivals;
mod books;
mod bus;
mod check;
mod compare;
mod http;
mod latencies;
mod marks;
mod order;
mod outcome;
mod page;
mod recording;
mod report;
mod run;
mod series;
mod shape;
mod soak;
mod sse;
mod target;
mod tenants;
mod verdict;
pub mod workload;

pub use arrivals::Arrivals;
pub use books::Counts;
pub use bus::{Answer, BusTarget};
pub use compare::{Comparison, Row, Verdict, compare};
pub use http::HttpTarget;
pub use latencies::Latencies;
pub use marks::Mark;
pub(crate) use page::STYLE as PAGE_STYLE;
pub use recording::{About, Recording};
pub use report::{Details, Failures, LatencyMs, Report, Tally};
pub use series::{Moment, Series};
pub use shape::{Invalid as InvalidShape, Profile, Shape};
pub use soak::Limits as SoakLimits;
pub use target::{
    Audited, CellSeen, Cluster, Ended, Heard, How, JobView, ManagerSeen, Refused, Sample, SubmitError, Target,
    TargetError, VmPage,
};
pub use tenants::{InvalidTenants, Tenants};
pub use verdict::{Check, Outcome};
pub use workload::{Mix, Planned, Speedup, Task, Workload};

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose jobs they are.
    pub tenants: Tenants,
    /// Whether jobs wait for each other.
    pub pace: Pace,
    /// The run's name, of `[a-z0-9]`: part of every id and name, so that runs never meet. Drawn
    /// where it is `None`.
    pub run: Option<String>,
    /// Of choices: which VM an operation meets.
    pub seed: u64,
    /// Jobs without an outcome, at the most.
    pub in_flight: usize,
    /// Jobs of one call, at the most.
    pub batch_max: usize,
    /// Calls at once. One keeps the order of submission to the letter, more keep a slow call from
    /// holding up the next.
    pub senders: usize,
    /// With jobs open and no outcome for so long, the run ends. The checks after it wait no longer for a cluster
    /// that is not ready, nor longer than a minute.
    pub patience: Duration,
    /// After so long without an outcome, a job is asked after.
    pub ask_after: Duration,
    /// For how long look-ups are measured; zero leaves them out.
    pub lookups: Duration,
    /// Whether the cluster's directory is compared with its managers at the end.
    pub audit: bool,
    /// Hold the run against these, as a soak.
    pub soak: Option<SoakLimits>,
    /// What this process has used so far: where that is not told, nothing is.
    pub usage: fn() -> Usage,
}

/// Whether jobs wait for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// Tasks go strictly in their order; one that must wait holds up all that come after it.
    #[default]
    InOrder,
    /// Every task goes when it is due: an open loop. An operation for which no VM is free is a
    /// create instead, and counted as such. Only [`Options::in_flight`] can hold a job up, which
    /// the report tells; it is a bound of the harness's memory, not of the load.
    OnTime,
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time.
    pub cpu: Duration,
    /// Memory that it has resident now.
    pub rss_mib: f64,
}

impl Options {
    /// For traces: 256 in flight, one call at a time.
    #[must_use]
    pub fn new(tenant: TenantId) -> Self {
        Self {
            tenants: Tenants::one(tenant),
            pace: Pace::InOrder,
            run: None,
            seed: 0,
            in_flight: 256,
            batch_max: 500,
            senders: 1,
            patience: Duration::from_secs(120),
            ask_after: Duration::from_secs(10),
            lookups: Duration::from_secs(2),
            audit: true,
            soak: None,
            usage: Usage::default,
        }
    }
    /// For an open loop: each job goes when it is due. As many calls at once as keep a cluster that
    /// takes a second for each of them supplied, and a bound on jobs that only one which has stopped
    /// altogether reaches.
    #[must_use]
    pub fn on_time(tenant: TenantId) -> Self {
        Self { pace: Pace::OnTime, in_flight: 100_000, senders: 64, ..Self::new(tenant) }
    }
    /// For as many jobs as the cluster takes: 20,000 in flight, eight calls at once.
    #[must_use]
    pub fn flood(tenant: TenantId) -> Self {
        Self { in_flight: 20_000, senders: 8, ..Self::new(tenant) }
    }
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Asking what the cluster is made of.
    Connecting,
    /// Jobs are sent and end.
    Running,
    /// The VMs that must be there are listed.
    Checking,
    /// VMs are located, as fast as it goes.
    LookingUp,
    /// Directory and managers are compared.
    Auditing,
}

/// Is told how a run goes. Called from the run itself: what takes long holds it up.
pub trait Progress: Send + Sync {
    /// A phase begins.
    fn phase(&self, phase: Phase) {
        let _ = phase;
    }
    /// The books now, ten times a second while running: sums, and how many jobs have not ended.
    fn counts(&self, counts: &Counts, open: usize) {
        let _ = (counts, open);
    }
}
impl Progress for () {}

/// Why there was no run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The cluster does not answer.
    #[error("the cluster gives no answer")]
    NoCluster(#[source] TargetError),
    /// The run's name is none.
    #[error("the name of a run must be 1 to 32 of [a-z0-9]")]
    RunName,
}

impl Error {
    /// Whether the same may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::NoCluster(_) => true,
            Self::RunName => false,
        }
    }
}

/// Plays a workload against a cluster and says what came of it. `stop` breaks it off and gives the
/// report so far.
///
/// # Errors
/// When the cluster cannot be reached at the start. What goes wrong later is in the report.
pub async fn run(
    workload: Workload,
    target: Arc<dyn Target>,
    options: Options,
    progress: Arc<dyn Progress>,
    stop: CancellationToken,
    env: Env,
) -> Result<Report, Error> {
    let run = match &options.run {
        Some(run) => run.clone(),
        None => format!("{:08x}", env.random_u64() as u32),
    };
    if !(1..=32).contains(&run.len()) || !run.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
        return Err(Error::RunName);
    }
    progress.phase(Phase::Connecting);
    let cluster = target.cluster().await.map_err(Error::NoCluster)?;
    progress.phase(Phase::Running);
    let managers = cluster.managers.clone();
    let played = run::play(workload, &target, &options, &run, managers, &progress, &stop, &env).await;
    let mut report = played.report;
    report.hosts = cluster.hosts;
    report.managers = cluster.managers.len() as u64;
    report.server_version = cluster.version;
    let (mut listed, mut audited) = (false, false);
    if !report.interrupted {
        let check = check::Check { target: &*target, options: &options, progress: &*progress, stop: &stop, env: &env };
        (listed, audited) = check.all(&run, &played.expected, &mut report).await;
    }
    // The peak of all that came after, too.
    if let Ok(last) = target.sample().await {
        report.rss_mib = report.rss_mib.max(last.rss_mib);
        report.cells_peak = report.cells_peak.max(last.cells.len() as u64);
    }
    report.checks = verdict::checks(&report, audited, listed);
    if let Some(limits) = &options.soak {
        report.checks.extend(soak::checks(&report, limits));
    }
    Ok(report)
}
