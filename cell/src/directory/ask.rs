//! What is asked of a replica of the directory, and what it answers.

use std::time::Duration;

use cellbus_bus::ids::{JobId, Seq, ShardId, TenantId, VmId, VmName};
use cellbus_directory::replica::{JobFilter, ListError, VmFilter};
use cellbus_directory::{JobRow, Vm};
use serde::{Deserialize, Serialize};

use super::{Fresh, Told};
use crate::peers::{Peer, Summary};

/// How long catching up may take where [`Fresh::CaughtUp`] is asked for.
pub(super) const CATCH_UP_LIMIT: Duration = Duration::from_secs(5);

/// A question. The methods of [`super::Directory`] say what each is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ask {
    /// These VMs.
    Vms(Vec<VmId>),
    /// A job.
    Job(JobId),
    /// A page of VMs.
    List {
        /// Which.
        filter: VmFilter,
        /// So many rows at the most.
        limit: usize,
        /// The cursor of the page before.
        after: Option<String>,
        /// How fresh.
        fresh: Fresh,
    },
    /// A page of jobs.
    Jobs {
        /// Which.
        filter: JobFilter,
        /// So many rows at the most.
        limit: usize,
        /// The cursor of the page before.
        after: Option<String>,
    },
    /// Which VMs have these names.
    Names {
        /// Whose, and which.
        names: Vec<(TenantId, VmName)>,
        /// How fresh.
        fresh: Fresh,
    },
    /// Whether these entries are in the rows.
    Shows {
        /// Entries of logs, in groups: each is answered by itself.
        groups: Vec<Vec<(ShardId, Seq)>>,
        /// With [`Fresh::CaughtUp`], all that is in the logs now as well.
        fresh: Fresh,
        /// How long they are waited for.
        limit: Duration,
    },
    /// What cells say of themselves, so far as it has changed since this mark.
    Summaries {
        /// The mark of the answer before.
        since: Option<Told>,
    },
}

impl Ask {
    /// How long the replica may wait before it answers.
    #[must_use]
    pub fn waits(&self) -> Duration {
        let caught_up = |fresh: &Fresh| match fresh {
            Fresh::AsItIs => Duration::ZERO,
            Fresh::CaughtUp => CATCH_UP_LIMIT,
        };
        match self {
            Self::Vms(_) | Self::Job(_) | Self::Jobs { .. } | Self::Summaries { .. } => Duration::ZERO,
            Self::List { fresh, .. } | Self::Names { fresh, .. } => caught_up(fresh),
            Self::Shows { limit, .. } => *limit,
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Ask::Vms`], in order.
    Vms(Vec<Option<Vm>>),
    /// To [`Ask::Job`].
    Job(Option<Box<JobRow>>),
    /// To [`Ask::List`].
    List {
        /// The rows.
        items: Vec<Vm>,
        /// The next page's cursor.
        next: Option<String>,
    },
    /// To [`Ask::Jobs`].
    Jobs {
        /// The rows.
        items: Vec<JobRow>,
        /// The next page's cursor.
        next: Option<String>,
    },
    /// To [`Ask::Names`], in order.
    Names(Vec<Vec<VmId>>),
    /// To [`Ask::Shows`], in order; `false`: not within the limit.
    Shows(Vec<bool>),
    /// To [`Ask::Summaries`].
    Summaries {
        /// Up to here.
        told: Told,
        /// The cells, and what they said.
        cells: Vec<(Peer, Summary)>,
    },
    /// The list cannot be made as it was asked for.
    Refused(ListError),
    /// This replica cannot say: another one may.
    NotReady {
        /// Why.
        reason: String,
    },
}
