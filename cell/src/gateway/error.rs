//! Why the gateway did not do what it was asked.

use std::time::Duration;

use cellbus_bus::contract;
use cellbus_bus::ids::ShardId;
use cellbus_directory::replica::ListError;

/// Every code that [`Error::code`] gives: each has a page in `ops/docs/errors/`.
pub const CODES: &[&str] = &[
    "not_ready",
    "shard_away",
    "manager_away",
    "bus_full",
    "bus_unavailable",
    "bus_no_answer",
    "too_many_requests",
    "job_not_found",
    "vm_not_found",
    "manager_not_found",
    "host_not_found",
    "cell_not_found",
    "dead_letter_not_found",
    "audit_not_found",
    "adoption_not_found",
    "name_ambiguous",
    "internal",
    "too_large",
    "too_many_ids",
    "invalid_cursor",
    "bad_round",
    "invalid_scale",
    "not_a_provision",
    "not_cancellable",
    "not_parked",
    "cannot_retry",
    "audit_running",
    "upgrade_hindered",
    "upgrade_under_way",
    "invalid_pause",
    "pause_not_confirmed",
    "invalid_adoption",
    "count_differs",
    "host_not_dead",
];

/// What kind of answer an error deserves: HTTP maps it to a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense: 400.
    Invalid,
    /// There is no such thing: 404.
    NotFound,
    /// It contradicts what is there: 409.
    Conflict,
    /// Too much at once: 429, with `Retry-After`.
    TooMany,
    /// Not now: 503, with `Retry-After`.
    Unavailable,
    /// A fault of Cellbus: 500.
    Internal,
}

/// Why the gateway did not do what it was asked. Every variant has a stable [`Error::code`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The cell or the directory is still starting.
    #[error("not ready yet: {reason}")]
    NotReady {
        /// What is awaited.
        reason: String,
    },
    /// Nobody acts for the shard at the moment, or its owner did not answer.
    #[error("shard {shard} has no owner that answers: {reason}")]
    ShardAway {
        /// Which.
        shard: ShardId,
        /// Why.
        reason: String,
    },
    /// The manager's owner could not give an answer.
    #[error("the manager gives no answer: {reason}")]
    ManagerAway {
        /// Why.
        reason: String,
    },
    /// The bus takes no more, because it is full or below its free-space threshold.
    #[error("nothing is taken for now: {reason}")]
    Full {
        /// What is full, and what to do.
        reason: String,
    },
    /// The bus cannot be reached.
    #[error("the bus is not available: {reason}")]
    BusAway {
        /// Why.
        reason: String,
    },
    /// The bus did not say whether it has taken it. Sending it again is safe.
    #[error("the bus gave no answer; send the same again: {reason}")]
    NoAnswer {
        /// Why.
        reason: String,
    },
    /// An order to pause or resume is durable, and was not seen to be in force.
    #[error(
        "the order is kept and will be carried out, but is not in force yet: nobody seems to act for the cluster's shard"
    )]
    NotConfirmed,
    /// Too many callers wait already.
    #[error("too many requests wait already: {what}")]
    TooMany {
        /// For what.
        what: String,
    },
    /// There is no such thing.
    #[error("there is no {what} {id}")]
    NotFound {
        /// What was looked for.
        what: What,
        /// Under which name.
        id: String,
    },
    /// The name stands for more than one.
    #[error("{name} stands for more than one {what}: give its id")]
    Ambiguous {
        /// What was looked for.
        what: What,
        /// The name.
        name: String,
    },
    /// The request makes no sense.
    #[error("{message}")]
    Invalid {
        /// Stable.
        code: &'static str,
        /// What to do.
        message: String,
    },
    /// It contradicts what is there.
    #[error("{message}")]
    Conflict {
        /// Stable.
        code: &'static str,
        /// What to do.
        message: String,
    },
    /// A fault of Cellbus.
    #[error("internal fault: {message}")]
    Internal {
        /// What happened.
        message: String,
    },
}

/// What was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A job.
    Job,
    /// A VM.
    Vm,
    /// A manager.
    Manager,
    /// A host.
    Host,
    /// A cell.
    Cell,
    /// A dead letter.
    DeadLetter,
    /// An audit.
    Audit,
    /// An adoption.
    Adoption,
}
impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Job => "job",
            Self::Vm => "VM",
            Self::Manager => "manager",
            Self::Host => "host",
            Self::Cell => "cell",
            Self::DeadLetter => "dead letter",
            Self::Audit => "audit",
            Self::Adoption => "adoption",
        })
    }
}

impl Error {
    /// The stable code of problem documents.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotReady { .. } => "not_ready",
            Self::ShardAway { .. } => "shard_away",
            Self::ManagerAway { .. } => "manager_away",
            Self::Full { .. } => "bus_full",
            Self::BusAway { .. } => "bus_unavailable",
            Self::NoAnswer { .. } => "bus_no_answer",
            Self::NotConfirmed => "pause_not_confirmed",
            Self::TooMany { .. } => "too_many_requests",
            Self::NotFound { what, .. } => match what {
                What::Job => "job_not_found",
                What::Vm => "vm_not_found",
                What::Manager => "manager_not_found",
                What::Host => "host_not_found",
                What::Cell => "cell_not_found",
                What::DeadLetter => "dead_letter_not_found",
                What::Audit => "audit_not_found",
                What::Adoption => "adoption_not_found",
            },
            Self::Ambiguous { .. } => "name_ambiguous",
            Self::Invalid { code, .. } | Self::Conflict { code, .. } => code,
            Self::Internal { .. } => "internal",
        }
    }
    /// What kind of answer it deserves.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotReady { .. }
            | Self::ShardAway { .. }
            | Self::ManagerAway { .. }
            | Self::BusAway { .. }
            | Self::NoAnswer { .. }
            | Self::NotConfirmed => Kind::Unavailable,
            Self::TooMany { .. } | Self::Full { .. } => Kind::TooMany,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Ambiguous { .. } | Self::Conflict { .. } => Kind::Conflict,
            Self::Invalid { .. } => Kind::Invalid,
            Self::Internal { .. } => Kind::Internal,
        }
    }
    /// Whether the same request may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self.kind(), Kind::TooMany | Kind::Unavailable)
    }
    /// For `Retry-After`: present exactly for [`Kind::TooMany`] and [`Kind::Unavailable`].
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotReady { .. }
            | Self::ShardAway { .. }
            | Self::BusAway { .. }
            | Self::NoAnswer { .. }
            | Self::NotConfirmed
            | Self::TooMany { .. } => Some(Duration::from_secs(1)),
            Self::ManagerAway { .. } => Some(Duration::from_secs(5)),
            Self::Full { .. } => Some(Duration::from_secs(10)),
            Self::NotFound { .. }
            | Self::Ambiguous { .. }
            | Self::Invalid { .. }
            | Self::Conflict { .. }
            | Self::Internal { .. } => None,
        }
    }
}

impl From<ListError> for Error {
    fn from(error: ListError) -> Self {
        Self::Invalid { code: error.code(), message: error.to_string() }
    }
}
impl From<contract::Error> for Error {
    fn from(error: contract::Error) -> Self {
        use contract::Error as Bus;
        match error {
            Bus::Full { reason } => Self::Full { reason },
            Bus::Unavailable { reason } => Self::BusAway { reason },
            Bus::Unknown { reason } => Self::NoAnswer { reason },
            Bus::TooLarge { bytes, max } => Self::Invalid {
                code: "too_large",
                message: format!("{bytes} bytes are more than the {max} that one message may have"),
            },
            Bus::Fenced { .. } | Bus::Damaged { .. } | Bus::Trimmed { .. } => {
                Self::Internal { message: error.to_string() }
            }
        }
    }
}
