//! Jobs: what producers ask for, as types that cannot be wrong.
//!
//! A [`Job`] is made only by [`crate::cloudevent`], which checks every bound once, at the edge. What a
//! producer may write, with bounds and defaults, is the table in `ops/docs/jobs.md`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{HostId, JobId, ManagerName, ShortName, TenantId, VmId, VmName};

/// A validated job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Derived from tenant, source and event id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The CloudEvents `source`.
    pub source: String,
    /// The CloudEvents `id`.
    pub event_id: String,
    /// Of type, subject, `after` and data in canonical form. The same key with another digest is
    /// a conflict.
    pub digest: Digest,
    /// Start only when that job has succeeded.
    pub after: Option<JobId>,
    /// Whether *accepted* and *refused* are wanted as events too.
    pub notify: Notify,
    /// How long it may wait before its first call, counted from acceptance.
    pub deadline: Option<Duration>,
    /// CloudEvents extensions, carried to the outcome unchanged (`traceparent` among them).
    pub extensions: BTreeMap<String, String>,
    /// What is to be done.
    pub request: Request,
}

/// Sixteen bytes of SHA-256: enough to tell two bodies apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        let full = sha2::Sha256::digest(bytes);
        let mut half = [0; 16];
        half.copy_from_slice(&full[..16]);
        Self(half)
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Which events beside the outcome a producer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Notify {
    /// Only the outcome.
    #[default]
    Outcome,
    /// *Accepted* or *refused* as well.
    Accepted,
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make `count` VMs.
    Provision(Provision),
    /// Do something to one VM.
    Operate(Target, Operation),
    /// Stop another job, as far as it can still be stopped.
    Cancel(JobId),
}

impl Request {
    /// The job's type, as in `io.cellbus.job.<type>.v1`.
    #[must_use]
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Provision(_) => JobKind::Provision,
            Self::Operate(_, operation) => operation.kind(),
            Self::Cancel(_) => JobKind::Cancel,
        }
    }
}

macro_rules! kinds {
    ($($variant:ident => $text:literal),* $(,)?) => {
        /// The type of a job.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum JobKind {
            $(#[doc = concat!("`", $text, "`")] $variant,)*
        }
        impl JobKind {
            /// Every type.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// As in `io.cellbus.job.<type>.v1`.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),* } }
        }
    };
}
kinds! {
    Provision => "provision", Start => "start", Stop => "stop", Restart => "restart", Suspend => "suspend",
    Resume => "resume", Resize => "resize", Snapshot => "snapshot", Revert => "revert",
    SnapshotDelete => "snapshot-delete", Migrate => "migrate", Delete => "delete", Cancel => "cancel",
}
impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The VM that a job names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// By id.
    Id(VmId),
    /// By name, which must be that of exactly one VM of the tenant when the job is resolved.
    Name(VmName),
}

/// The shape of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Whole virtual CPUs.
    pub vcpus: u32,
    /// MiB.
    pub memory_mib: u64,
    /// GiB.
    pub disk_gib: u64,
}

/// Make VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provision {
    /// The VM's name; with `count` above one, `name-0`, `name-1`, ...
    pub name: VmName,
    /// 1 to 10,000.
    pub count: u32,
    /// The shape of each.
    pub size: Size,
    /// What it boots from, as its manager knows it.
    pub image: String,
    /// The VM's tags.
    pub labels: Labels,
    /// Labels that its host must have. `gear`, `manager` and `host` are labels of every host.
    pub require: Labels,
    /// Where it is best put.
    pub policy: Policy,
    /// Whether it is left running.
    pub power: Power,
}

impl Provision {
    /// The longest name that leaves room for the number of the last of `count` VMs.
    #[must_use]
    pub fn name_bytes_max(count: u32) -> usize {
        if count <= 1 { 63 } else { 63 - 1 - (count - 1).to_string().len() }
    }

    /// The name of the VM with this index: `name`, or `name-0`, `name-1`, ... where there are several.
    #[must_use]
    pub fn vm_name(&self, index: u32) -> VmName {
        if self.count <= 1 {
            return self.name.clone();
        }
        // Intake refuses names that are too long for their number, see `name_bytes_max`.
        format!("{}-{index}", self.name).parse().unwrap_or_else(|_| self.name.clone())
    }
}

/// Tags: at most 64, keys 1 to 63 of `[A-Za-z0-9._/-]`, values up to 255 characters without controls.
pub type Labels = BTreeMap<String, String>;

/// Whether a new VM is left running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Power {
    /// Running.
    #[default]
    On,
    /// Left off.
    Off,
}

/// Preferences and rules for placement.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// How VMs are laid over hosts: spread (the default) or packed.
    pub hosts: Layout,
    /// How VMs are laid over managers: spread (the default) or packed.
    pub managers: Layout,
    /// VMs of one group share a host. Hard within a manager and within a job, best effort between jobs.
    pub affinity: Option<ShortName>,
    /// No two VMs of one group share a host. Hard within a manager and within a job.
    pub anti_affinity: Option<ShortName>,
}

/// Spread or pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Layout {
    /// The emptiest first.
    #[default]
    Spread,
    /// The fullest that still has room first.
    Pack,
}

/// Graceful asks the guest; hard does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum StopMode {
    /// Ask the guest.
    #[default]
    Graceful,
    /// Pull the plug.
    Hard,
}

/// Where a VM is to be moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MigrateTo {
    /// A host of the manager that holds it.
    Host(HostId),
    /// Another manager, which picks the host.
    Manager(ManagerName),
}

/// What is done to one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Power on.
    Start,
    /// Power off.
    Stop(StopMode),
    /// Reboot.
    Restart(StopMode),
    /// To memory.
    Suspend,
    /// From suspended to running.
    Resume,
    /// Another shape; what is `None` stays.
    Resize {
        /// Virtual CPUs.
        vcpus: Option<u32>,
        /// MiB.
        memory_mib: Option<u64>,
        /// GiB; never less than now.
        disk_gib: Option<u64>,
    },
    /// Take a snapshot.
    Snapshot(ShortName),
    /// Go back to a snapshot.
    Revert(ShortName),
    /// Drop a snapshot.
    SnapshotDelete(ShortName),
    /// Move it.
    Migrate(MigrateTo),
    /// Remove it for good.
    Delete,
}

impl Operation {
    /// The type of the job that asks for this.
    #[must_use]
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Start => JobKind::Start,
            Self::Stop(_) => JobKind::Stop,
            Self::Restart(_) => JobKind::Restart,
            Self::Suspend => JobKind::Suspend,
            Self::Resume => JobKind::Resume,
            Self::Resize { .. } => JobKind::Resize,
            Self::Snapshot(_) => JobKind::Snapshot,
            Self::Revert(_) => JobKind::Revert,
            Self::SnapshotDelete(_) => JobKind::SnapshotDelete,
            Self::Migrate(_) => JobKind::Migrate,
            Self::Delete => JobKind::Delete,
        }
    }
}
