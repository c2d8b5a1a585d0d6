//! Why something did not go as asked: stable codes with words.

use std::fmt;

use cellbus_bus::ids::ManagerId;
use serde::{Deserialize, Serialize};

use crate::work::Step;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident => $text:literal),* $(,)?) => {
        /// The stable code of a failed job. Each has a page in `ops/docs/errors/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum FailureCode { $($(#[$doc])* $variant,)* }
        impl FailureCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// As in outcomes and problem documents.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),* } }
        }
    };
}
codes! {
    /// No host of any manager could take the VM.
    NoRoom => "no_room",
    /// The deadline passed before any call was made.
    DeadlineExceeded => "deadline_exceeded",
    /// The job named in `after` did not succeed.
    PredecessorFailed => "predecessor_failed",
    /// There is no such VM in the tenant.
    VmNotFound => "vm_not_found",
    /// The name stands for more than one VM.
    NameAmbiguous => "name_ambiguous",
    /// The VM's state does not allow it (resume of a deleted VM).
    IllegalTransition => "illegal_transition",
    /// There is no such snapshot.
    SnapshotNotFound => "snapshot_not_found",
    /// A snapshot of that name is there already.
    SnapshotExists => "snapshot_exists",
    /// There is no such host in the VM's manager.
    HostNotFound => "host_not_found",
    /// There is no such manager.
    ManagerNotFound => "manager_not_found",
    /// The job to be cancelled is not known.
    JobNotFound => "job_not_found",
    /// The job had ended, or gone too far to be called off.
    NotCancellable => "not_cancellable",
    /// Disks grow only.
    DiskShrink => "disk_shrink",
    /// The manager does not take such a request.
    ManagerRefused => "manager_refused",
    /// The manager tried and failed, and says that trying again is of no use.
    ManagerFailed => "manager_failed",
    /// The manager no longer has the VM.
    VmLost => "vm_lost",
    /// Some VMs of the job failed.
    ChildrenFailed => "children_failed",
    /// An operator gave up on it.
    Abandoned => "abandoned",
    /// The copy of a migrate was lost, and the VM is where it was.
    CopyLost => "copy_lost",
}
impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a job, or a step of it, failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable.
    pub code: FailureCode,
    /// For a person.
    pub message: String,
    /// The step that failed, if it came to one.
    pub step: Option<Step>,
    /// Whether the same job under a new key may succeed with nothing mended.
    pub retryable: bool,
}

impl Failure {
    /// One that trying again does not help, before any step.
    #[must_use]
    pub fn lasting(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), step: None, retryable: false }
    }
    /// One that may go away by itself, before any step.
    #[must_use]
    pub fn passing(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), step: None, retryable: true }
    }
    /// In this step.
    #[must_use]
    pub fn at(mut self, step: Step) -> Self {
        self.step = Some(step);
        self
    }
}
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// A definite refusal by a manager's owner: the call never began, and nothing of it is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Whose.
    pub manager: ManagerId,
    /// Why.
    pub reason: RefusalReason,
    /// What was looked at, in words: how many hosts, and what ruled each out.
    pub detail: String,
}

/// Why a manager's owner does not take a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// No host has room.
    NoRoom,
    /// No host has the labels.
    NoMatch,
    /// Affinity or anti-affinity rules every host out.
    Affinity,
    /// The manager, or every host that would do, is cordoned.
    Cordoned,
    /// The call was never made: the manager did not take calls.
    NotBegun,
}
impl RefusalReason {
    /// As in metrics and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoRoom => "no_room",
            Self::NoMatch => "no_match",
            Self::Affinity => "affinity",
            Self::Cordoned => "cordoned",
            Self::NotBegun => "not_begun",
        }
    }
}
