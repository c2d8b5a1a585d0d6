//! What the gateway answers: plain data, the same over HTTP and between cells.

use std::collections::BTreeMap;
use std::time::Duration;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{CellId, Epoch, HostId, JobId, ManagerId, Seq, ShardId, TenantId, VmId, VmName};
use cellbus_bus::job::{Labels, Size};
use cellbus_directory::pause::Paused;
use cellbus_directory::{JobState, ManagerMode, RefusalReason, VmState};
use cellbus_workflows::{Health, JobStatus, VmExplanation};
use serde::{Deserialize, Serialize};

use crate::driver::HeldVm;

/// How the submission of one job went.
#[derive(Clone, Debug, PartialEq)]
pub enum Submitted {
    /// It is durable and will reach one outcome.
    Accepted {
        /// Its id.
        job: JobId,
        /// `queued` when its home had not decided in time: it will.
        state: JobState,
    },
    /// The same key was used before with other data: `job_conflict`.
    Conflict {
        /// The job that has the key.
        job: JobId,
    },
    /// It is not taken.
    Refused {
        /// Which.
        job: JobId,
        /// Stable.
        code: String,
        /// What to do.
        message: String,
    },
}

/// Where a VM is, and who answers for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Located {
    /// Which VM.
    pub vm: VmId,
    /// The manager that holds it; `None` while it is being placed, or once it is deleted.
    pub manager: Option<ManagerId>,
    /// The manager's configured name.
    pub manager_name: Option<String>,
    /// The host, once chosen.
    pub host: Option<HostId>,
    /// The VM's home shard.
    pub shard: ShardId,
    /// The cell that fronts the manager (or, without a manager, owns the home shard).
    pub cell: Option<CellId>,
    /// Where that cell is reached.
    pub address: Option<String>,
    /// The epoch under which that cell acts.
    pub epoch: Epoch,
    /// When this was last known to be true.
    pub as_of: WallMs,
}

/// A VM of the unified inventory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmRow {
    /// Which.
    pub id: VmId,
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub name: VmName,
    /// What it is doing.
    pub state: VmState,
    /// The manager that holds it.
    pub manager: Option<ManagerId>,
    /// The manager's configured name.
    pub manager_name: Option<String>,
    /// Its host.
    pub host: Option<HostId>,
    /// Its shape.
    pub size: Size,
    /// Its tags.
    pub labels: Labels,
    /// Its home shard.
    pub shard: ShardId,
    /// When this was last known to be true.
    pub as_of: WallMs,
}

/// A VM as its manager holds it at this moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Which VM.
    pub vm: VmId,
    /// Which manager was asked.
    pub manager: ManagerId,
    /// What it says; `None`: it does not hold it.
    pub held: Option<HeldVm>,
    /// When it said so.
    pub as_of: WallMs,
}

/// Why something is as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// The home shard.
    pub shard: ShardId,
    /// The cell that owns it.
    pub owner: Option<CellId>,
    /// Under which epoch.
    pub epoch: Epoch,
    /// The job, where one was asked about.
    pub job: Option<JobStatus>,
    /// The VM (of the job, where it is about one).
    pub vm: Option<VmExplanation>,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellRow {
    /// Which.
    pub id: CellId,
    /// Where it is reached.
    pub address: String,
    /// `active` or `draining`.
    pub state: cellbus_bus::contract::MemberState,
    /// When it joined.
    pub joined_at: WallMs,
    /// Shards that it acts for.
    pub shards: u32,
    /// Managers that it fronts.
    pub managers: u32,
    /// Calls to managers under way.
    pub running: u32,
    /// Calls that wait for their turn.
    pub waiting: u32,
    /// Whether it answered; the counts are zero if not.
    pub reachable: bool,
}

/// What a shard's owner is doing with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardState {
    /// Nobody says that it owns it.
    Unowned,
    /// Its log is being replayed.
    Opening,
    /// It is open.
    Open,
    /// Its owner's lease has run out: it waits, and resumes without a replay if nobody took over.
    Suspended,
    /// It is handed over.
    Closing,
    /// It could not be opened; it is tried again.
    Failed {
        /// Why.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardRow {
    /// Which.
    pub shard: ShardId,
    /// Who owns it.
    pub owner: Option<CellId>,
    /// Under which epoch.
    pub epoch: Epoch,
    /// What the owner is doing with it.
    pub state: ShardState,
    /// How far the jobs queue has been read.
    pub jobs_read: Seq,
    /// How far the control queue has been read.
    pub control_read: Seq,
    /// Jobs not read yet.
    pub jobs_unread: u64,
    /// Control messages not read yet.
    pub control_unread: u64,
    /// The last durable log entry.
    pub log_end: Seq,
    /// Bytes of log since the last snapshot.
    pub tail_bytes: u64,
    /// VMs whose home it is, tombstones not counted.
    pub vms: u64,
    /// Jobs that have not ended.
    pub jobs_open: u64,
    /// Work accepted and not started.
    pub waiting: u64,
    /// Work with a call under way.
    pub running: u64,
    /// Work that an operator must decide on.
    pub parked: u64,
}

/// Where the circuit to a manager stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Calls go through.
    Closed,
    /// None go through until the next probe.
    Open {
        /// When the next probe may go.
        next_probe_in: Duration,
        /// What was wrong.
        reason: String,
    },
    /// One probe is under way.
    HalfOpen,
}

/// One manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManagerRow {
    /// Which.
    pub id: ManagerId,
    /// Its configured name.
    pub name: String,
    /// The cell that fronts it.
    pub cell: Option<CellId>,
    /// Under which slice epoch.
    pub epoch: Epoch,
    /// Whether it takes work.
    pub health: Health,
    /// The circuit; `None` when it has no front.
    pub circuit: Option<CircuitState>,
    /// Why it is not healthy, in words; empty if it is.
    pub detail: String,
    /// Whether new VMs are kept off it: by a cordon, or as it is not [`ManagerMode::Enabled`].
    pub cordoned: bool,
    /// Whether it is used.
    pub mode: ManagerMode,
    /// Which operations its owner does not begin, as an operator has paused them.
    pub paused: Option<Paused>,
    /// Who has paused them, and why, in words; empty if nothing is paused.
    pub paused_why: String,
    /// Hosts.
    pub hosts: u32,
    /// Hosts that take new VMs.
    pub hosts_open: u32,
    /// VMs of ours that it says it holds.
    pub vms: u64,
    /// VMs that it holds beside those.
    pub foreign_vms: u64,
    /// VMs there whose id is not beyond doubt.
    pub irregular_vms: u64,
    /// The first of those, in words; empty if there are none.
    pub irregular_why: String,
    /// Operations under way, by kind (`create`, `relocate`, `power`, `snapshot`, `other`).
    pub running: BTreeMap<String, u32>,
    /// Operations that wait for their turn, by kind.
    pub waiting: BTreeMap<String, u32>,
    /// Free and total vCPUs, over-commit counted.
    pub vcpus: FreeOf,
    /// Free and total MiB.
    pub memory_mib: FreeOf,
    /// Free and total GiB.
    pub disk_gib: FreeOf,
    /// When this was known.
    pub as_of: WallMs,
}

/// So much of so much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeOf {
    /// Free.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostRow {
    /// As its manager calls it.
    pub id: HostId,
    /// Of which manager.
    pub manager: ManagerId,
    /// The manager's configured name.
    pub manager_name: String,
    /// Its labels.
    pub labels: Labels,
    /// Connected and not in maintenance, as its manager says.
    pub usable: bool,
    /// Whether new VMs are kept off it.
    pub cordoned: bool,
    /// Whether an operator calls it dead.
    pub fenced: bool,
    /// VMs of ours on it.
    pub vms: u32,
    /// vCPUs, over-commit counted.
    pub vcpus: FreeOf,
    /// MiB.
    pub memory_mib: FreeOf,
    /// GiB: on its own disk, or on all datastores that it sees. One that others see too counts for each.
    pub disk_gib: FreeOf,
    /// The datastores that it sees.
    pub datastores: Vec<DatastoreRow>,
}

/// A datastore that a host sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatastoreRow {
    /// As its manager calls it.
    pub name: String,
    /// GiB that may still be promised to disks, and in all.
    pub gib: FreeOf,
}

/// What waits, over all shards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueRow {
    /// Jobs in the queues that no owner has read.
    pub unread: u64,
    /// Control messages that no owner has read.
    pub control_unread: u64,
    /// Work accepted and not started.
    pub waiting: u64,
    /// Of that, work that waits because its manager is saturated, failing or not known.
    pub waiting_for_managers: u64,
    /// Work with a call under way.
    pub running: u64,
    /// Work that an operator must decide on.
    pub parked: u64,
    /// Jobs that have not ended.
    pub jobs_open: u64,
    /// When the oldest work that has not started was accepted.
    pub oldest_waiting_at: Option<WallMs>,
    /// Work of each tenant that has not started.
    pub waiting_by_tenant: BTreeMap<TenantId, u64>,
    /// Dead letters kept.
    pub dead_letters: u64,
    /// Shards that could not be asked: what they hold is missing above.
    pub shards_unknown: u32,
}

/// What an evacuation has set in motion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evacuation {
    /// VMs found there.
    pub vms: u64,
    /// The migrate jobs, the first 100.
    pub jobs: Vec<JobId>,
    /// How many in all.
    pub jobs_total: u64,
    /// VMs that stay until somebody does something about them: the first 100.
    pub stays: Vec<Stays>,
    /// How many in all.
    pub stays_total: u64,
}

/// A VM that nothing is done about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stays {
    /// Which.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// Why, in words.
    pub why: String,
}

/// Where a provision would go, were it submitted now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DryRun {
    /// The manager that would be asked first, for each of the first 100 VMs; `None`: none would do.
    pub managers: Vec<Option<ManagerId>>,
    /// Managers looked at.
    pub looked_at: u32,
    /// How many managers each reason ruled out, by reason.
    pub ruled_out: BTreeMap<RefusalReason, u32>,
    /// In words.
    pub detail: String,
}

/// An audit of the directory against the managers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// Which.
    pub id: uuid::Uuid,
    /// When it began.
    pub started_at: WallMs,
    /// When it ended; `None` while it runs.
    pub ended_at: Option<WallMs>,
    /// Managers compared.
    pub managers_done: u32,
    /// Managers in all.
    pub managers_total: u32,
    /// Managers that could not be read.
    pub unreachable: Vec<ManagerId>,
    /// VMs compared.
    pub vms: u64,
    /// Differences found.
    pub findings_total: u64,
    /// The first 1,000.
    pub findings: Vec<Finding>,
    /// How many there are of each kind, once it has ended.
    pub kinds: BTreeMap<String, u64>,
    /// Repairs asked for, in VMs.
    pub repairs: u64,
}

/// One difference between the directory and a manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Which VM.
    pub vm: VmId,
    /// At which manager.
    pub manager: ManagerId,
    /// `missing` (a ghost), `unknown` (an orphan), `duplicate` (a double), `moved`, `host`, `power`, `size`, `snapshots`.
    pub kind: String,
    /// In words.
    pub detail: String,
}

/// A page of something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// At most as many as asked for.
    pub items: Vec<T>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<String>,
}
