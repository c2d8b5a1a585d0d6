//! The one way in for users: HTTP handlers and the command line in the same process call this.
//!
//! A [`Gateway`] belongs to a process, not to a shard: it puts jobs on the queue of their home,
//! asks whoever owns a shard or fronts a manager (in this process or another), and looks VMs up
//! in the directory replica beside it. It decides nothing about jobs itself.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::{CellId, HostId, JobId, ManagerId, ShardId, TenantId, VmId, VmName};
use cellbus_bus::job::Job;
use cellbus_directory::VmSummary;
use cellbus_directory::record::{DeadLetter, Operator, ParkedDecision};
use cellbus_workflows::{Change, ControlItem, JobStatus};
use uuid::Uuid;

mod error;
mod rows;

pub use error::{Error, Kind, What};
pub use rows::{
    Audit, CellRow, CircuitState, DryRun, Evacuation, Explained, Finding, FreeOf, HostRow, Live, Located, ManagerRow,
    Page, QueueRow, ShardRow, ShardState, Submitted, VmRow,
};

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The most ids that one look-up may name.
pub const LOCATE_MAX: usize = 10_000;

/// A handle on the cluster, cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {}

impl Gateway {
    // ── jobs ──

    /// Puts the jobs on the queues of their homes in one durable step, then waits until each home
    /// has decided, and for operations until the job is in the order of its VM; a job whose home
    /// does not answer in time (5 s) is [`Submitted::Accepted`] as `queued`. One answer a job, in order.
    ///
    /// Dropping the call leaves the jobs submitted or not; submitting them again is safe.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::BusAway`]: nothing was taken. [`Error::NoAnswer`]: submit again.
    pub async fn submit(&self, jobs: Vec<Arc<Job>>) -> Result<Vec<Submitted>> {
        let _ = (&self.inner, jobs);
        unimplemented!()
    }

    /// A job as its home knows it, or as the directory does while the home is away. Of a job that
    /// has succeeded, the VMs are in this process's directory before this returns.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotReady`] while the directory is not complete and the home away.
    pub async fn job(&self, id: JobId) -> Result<JobStatus> {
        let _ = id;
        unimplemented!()
    }

    /// [`Gateway::job`], once it has ended, or as it is when `limit` has passed: look at `row.state`.
    ///
    /// # Errors
    /// As [`Gateway::job`].
    pub async fn wait_job(&self, id: JobId, limit: Duration) -> Result<JobStatus> {
        let _ = (id, limit);
        unimplemented!()
    }

    /// The VMs of a job from its child number `from` on, and the number to go on from.
    ///
    /// # Errors
    /// As [`Gateway::job`].
    pub async fn job_vms(&self, id: JobId, from: u32, limit: usize) -> Result<(Vec<VmSummary>, Option<u32>)> {
        let _ = (id, from, limit);
        unimplemented!()
    }

    /// Calls a job off in an operator's name; gives it as it is a moment later.
    ///
    /// # Errors
    /// As [`Gateway::job`]; [`Error::Conflict`] `not_cancellable` when it has ended.
    pub async fn cancel_job(&self, id: JobId, tenant: Option<TenantId>, by: Operator) -> Result<JobStatus> {
        let _ = (id, tenant, by);
        unimplemented!()
    }

    /// Retries or abandons the parked work of a job.
    ///
    /// # Errors
    /// As [`Gateway::job`]; [`Error::Conflict`] `not_parked`.
    pub async fn unpark_job(&self, id: JobId, decision: ParkedDecision, by: Operator) -> Result<JobStatus> {
        let _ = (id, decision, by);
        unimplemented!()
    }

    /// Puts an item on a shard's control queue. Durable on return.
    ///
    /// # Errors
    /// As [`Gateway::submit`].
    pub async fn control(&self, shard: ShardId, item: ControlItem) -> Result<()> {
        let _ = (shard, item);
        unimplemented!()
    }

    // ── VMs ──

    /// A VM of the inventory. A miss in the directory asks the VM's home.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotReady`].
    pub async fn vm(&self, id: VmId) -> Result<VmRow> {
        let _ = id;
        unimplemented!()
    }

    /// Where a VM is. A miss in the directory asks the VM's home.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotReady`].
    pub async fn locate(&self, id: VmId) -> Result<Located> {
        let _ = id;
        unimplemented!()
    }

    /// Where many VMs are, in order; `None` for those that are not there. At most [`LOCATE_MAX`].
    ///
    /// # Errors
    /// [`Error::Invalid`] `too_many_ids`; [`Error::NotReady`].
    pub async fn locate_many(&self, ids: &[VmId]) -> Result<Vec<Option<Located>>> {
        let _ = ids;
        unimplemented!()
    }

    /// The VM of the tenant with this name.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], [`Error::NotReady`].
    pub async fn resolve(&self, tenant: &TenantId, name: &VmName) -> Result<VmId> {
        let _ = (tenant, name);
        unimplemented!()
    }

    /// A VM as its manager holds it now, through the cell that fronts the manager.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::ManagerAway`].
    pub async fn live(&self, id: VmId) -> Result<Live> {
        let _ = id;
        unimplemented!()
    }

    /// Why a VM is as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ShardAway`].
    pub async fn explain_vm(&self, id: VmId) -> Result<Explained> {
        let _ = id;
        unimplemented!()
    }

    /// Why a job is as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ShardAway`].
    pub async fn explain_job(&self, id: JobId) -> Result<Explained> {
        let _ = id;
        unimplemented!()
    }

    // ── the cluster ──

    /// The live cells, by id.
    ///
    /// # Errors
    /// [`Error::BusAway`].
    pub async fn cells(&self) -> Result<Vec<CellRow>> {
        unimplemented!()
    }
    /// Every shard, in order.
    ///
    /// # Errors
    /// [`Error::BusAway`].
    pub async fn shards(&self) -> Result<Vec<ShardRow>> {
        unimplemented!()
    }
    /// Every configured manager, in the order of their names.
    ///
    /// # Errors
    /// [`Error::BusAway`].
    pub async fn managers(&self) -> Result<Vec<ManagerRow>> {
        unimplemented!()
    }
    /// The hosts of one manager, or of all, a page at a time; `after` is the `next` of the page before.
    ///
    /// # Errors
    /// [`Error::BusAway`], [`Error::NotFound`], [`Error::Invalid`] `bad_cursor`.
    pub async fn hosts(&self, manager: Option<ManagerId>, after: Option<&str>, limit: usize) -> Result<Page<HostRow>> {
        let _ = (manager, after, limit);
        unimplemented!()
    }
    /// What waits.
    ///
    /// # Errors
    /// [`Error::BusAway`].
    pub async fn queue(&self) -> Result<QueueRow> {
        unimplemented!()
    }

    /// The manager that an operator means: its id or its configured name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn find_manager(&self, text: &str) -> Result<ManagerId> {
        let _ = text;
        unimplemented!()
    }
    /// The host that an operator means: `manager/host`, or a host's name where only one manager has it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub async fn find_host(&self, text: &str) -> Result<(ManagerId, HostId)> {
        let _ = text;
        unimplemented!()
    }

    // ── operators ──

    /// Asks a cell to hand its shards over and leave.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ShardAway`].
    pub async fn drain_cell(&self, cell: &CellId, by: Operator) -> Result<()> {
        let _ = (cell, by);
        unimplemented!()
    }
    /// Keeps new VMs off a manager, or lets them on again. Durable on return; in force within a second.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Gateway::submit`].
    pub async fn cordon_manager(&self, manager: ManagerId, cordoned: bool, by: Operator) -> Result<()> {
        let _ = (manager, cordoned, by);
        unimplemented!()
    }
    /// Keeps new VMs off a host, or lets them on again. Durable on return; in force within a second.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Gateway::submit`].
    pub async fn cordon_host(&self, manager: ManagerId, host: HostId, cordoned: bool, by: Operator) -> Result<()> {
        let _ = (manager, host, cordoned, by);
        unimplemented!()
    }
    /// Cordons a manager, or one host of it, and submits a migrate job for every VM there. The
    /// jobs' keys follow from the VMs and `round`, so that asking again with the same round
    /// submits nothing twice.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Gateway::submit`].
    pub async fn evacuate(
        &self,
        manager: ManagerId,
        host: Option<HostId>,
        round: &str,
        by: Operator,
    ) -> Result<Evacuation> {
        let _ = (manager, host, round, by);
        unimplemented!()
    }
    /// Keeps a note of something that an operator changed, on the cluster's shard.
    ///
    /// # Errors
    /// As [`Gateway::submit`].
    pub async fn note_change(&self, by: Operator, what: String) -> Result<()> {
        let _ = (by, what);
        unimplemented!()
    }
    /// What operators have changed, newest first.
    ///
    /// # Errors
    /// [`Error::ShardAway`].
    pub async fn changes(&self, limit: usize) -> Result<Vec<Change>> {
        let _ = limit;
        unimplemented!()
    }

    // ── dead letters ──

    /// All dead letters, oldest first, a page at a time.
    ///
    /// # Errors
    /// [`Error::Invalid`] `bad_cursor`.
    pub async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Page<Arc<DeadLetter>>> {
        let _ = (after, limit);
        unimplemented!()
    }
    /// One dead letter.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn dead_letter(&self, id: Uuid) -> Result<Arc<DeadLetter>> {
        let _ = id;
        unimplemented!()
    }
    /// Sends the original round again, and takes the letter out.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] `cannot_retry` when the original cannot be sent
    /// again as it is (it was cut, or was refused for what it says).
    pub async fn retry_dead_letter(&self, id: Uuid, by: Operator) -> Result<()> {
        let _ = (id, by);
        unimplemented!()
    }
    /// Takes a letter out.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn drop_dead_letter(&self, id: Uuid, by: Operator) -> Result<()> {
        let _ = (id, by);
        unimplemented!()
    }
    /// Puts aside a message that could not become a job.
    ///
    /// # Errors
    /// As [`Gateway::submit`].
    pub async fn put_dead_letter(&self, letter: DeadLetter) -> Result<()> {
        let _ = letter;
        unimplemented!()
    }

    // ── audit, placement ──

    /// Begins to compare the directory with every manager, in the background.
    ///
    /// # Errors
    /// [`Error::NotReady`]; [`Error::TooMany`] while one runs.
    pub async fn audit_start(&self, by: Operator) -> Result<Uuid> {
        let _ = by;
        unimplemented!()
    }
    /// How far an audit is, and what it has found. The last 16 are kept, in memory.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn audit(&self, id: Uuid) -> Result<Audit> {
        let _ = id;
        unimplemented!()
    }
    /// Has every VM that an audit found fault with read again at its home.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] `audit_running`; as [`Gateway::submit`].
    pub async fn audit_repair(&self, id: Uuid, by: Operator) -> Result<Audit> {
        let _ = (id, by);
        unimplemented!()
    }
    /// Where a provision would go, were it submitted now. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] `not_a_provision`.
    pub fn dry_run(&self, job: &Job) -> Result<DryRun> {
        let _ = job;
        unimplemented!()
    }

    // ── health ──

    /// Whether this process serves: every shard is open somewhere or reported failed, and the
    /// directory has caught up.
    ///
    /// # Errors
    /// [`Error::NotReady`], with what is awaited.
    pub fn ready(&self) -> Result<()> {
        unimplemented!()
    }
}
