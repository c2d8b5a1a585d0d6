//! The directory, as a process of the cluster reaches it.
//!
//! ```text
//!  Gateway, names ─▶ Directory ─┬─ Here: the replica beside it follows the logs
//!                               └─ Elsewhere ─▶ a process of the directory ─▶ its Here
//! ```
//!
//! A process of the directory has a replica beside it, and so has a process that is alone. Cells and
//! controllers of a cluster have none: each further reader of all logs costs the bus, and a directory
//! of millions of VMs costs memory, once a process. They ask a replica, always the same one as long
//! as it answers, so that what one question has seen the next one sees too; a replica that is still
//! loading, cut off from the bus or gone is left for another. What cells say of themselves (their
//! shards, the room at their managers) comes the same way.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::{Epoch, JobId, Seq, ShardId, TenantId, VmId, VmName};
use cellbus_directory::replica::{JobFilter, Replica, VmFilter};
use cellbus_directory::{JobRow, Vm};
use serde::{Deserialize, Serialize};

use crate::gateway::{Error, Page, Result};

mod ask;
mod elsewhere;
mod here;
mod round;
mod served;
mod summaries;

pub use ask::{Answer, Ask};
pub(crate) use elsewhere::Elsewhere;
pub(crate) use here::Here;
pub use served::serve;
pub use summaries::Told;
#[cfg(test)]
mod tests;

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fresh {
    /// As the replica has it.
    AsItIs,
    /// All that was in the logs when it was asked.
    CaughtUp,
}

/// Rows of one answer where all are asked for.
const ALL_PAGE: usize = 500;

/// See the module.
pub(crate) enum Directory {
    /// A replica is beside this process.
    Here(Here),
    /// Other processes have it.
    Elsewhere(Elsewhere),
}

impl Directory {
    /// The replica beside this process, if it has one.
    pub(crate) fn replica(&self) -> Option<&Arc<Replica>> {
        match self {
            Self::Here(here) => Some(&here.replica),
            Self::Elsewhere(_) => None,
        }
    }

    /// The last entry of the shard's log that is in the rows here; nothing where there are none.
    pub(crate) fn applied(&self, shard: ShardId) -> Option<Seq> {
        self.replica().map(|replica| replica.applied(shard))
    }

    // ── a bus that has lost something ──

    /// The newest epoch of the shard that was ever read here.
    pub(crate) fn epoch_seen(&self, shard: ShardId) -> Epoch {
        self.replica().map_or(Epoch::ZERO, |replica| replica.epoch_seen(shard))
    }
    /// The bus was found to have lost what it had acknowledged. Whoever finds it also says so in the log.
    pub(crate) fn note_loss(&self, shard: ShardId) {
        match self {
            Self::Here(here) => here.replica.note_loss(shard),
            Self::Elsewhere(elsewhere) => elsewhere.note_loss(),
        }
    }
    /// How often that was found in this process.
    pub(crate) fn losses(&self) -> u64 {
        match self {
            Self::Here(here) => here.replica.shards().shards().map(|shard| here.replica.losses(shard)).sum(),
            Self::Elsewhere(elsewhere) => elsewhere.losses(),
        }
    }

    // ── questions ──

    async fn ask(&self, ask: Ask) -> Result<Answer> {
        match self {
            Self::Here(here) => Ok(here.answer(ask).await),
            Self::Elsewhere(elsewhere) => elsewhere.ask(ask).await,
        }
    }

    /// These VMs, in order; `None` for those that it does not know: their homes may know more.
    pub(crate) async fn vms(&self, ids: Vec<VmId>) -> Result<Vec<Option<Vm>>> {
        let asked = ids.len();
        match self.ask(Ask::Vms(ids)).await? {
            Answer::Vms(vms) if vms.len() == asked => Ok(vms),
            other => Err(unanswered(other)),
        }
    }
    /// One VM.
    pub(crate) async fn vm(&self, id: VmId) -> Result<Option<Vm>> {
        Ok(self.vms(vec![id]).await?.pop().flatten())
    }
    /// A job.
    pub(crate) async fn job(&self, id: JobId) -> Result<Option<JobRow>> {
        match self.ask(Ask::Job(id)).await? {
            Answer::Job(row) => Ok(row.map(|row| *row)),
            other => Err(unanswered(other)),
        }
    }
    /// A page of VMs.
    pub(crate) async fn list(
        &self,
        filter: &VmFilter,
        limit: usize,
        after: Option<&str>,
        fresh: Fresh,
    ) -> Result<Page<Vm>> {
        let (filter, after) = (filter.clone(), after.map(str::to_owned));
        match self.ask(Ask::List { filter, limit, after, fresh }).await? {
            Answer::List { items, next } => Ok(Page { items, next }),
            other => Err(unanswered(other)),
        }
    }
    /// All VMs of the filter: of a manager or a host, which hold thousands of them and not millions.
    pub(crate) async fn all(&self, filter: &VmFilter, fresh: Fresh) -> Result<Vec<Vm>> {
        let (mut all, mut from): (_, Option<String>) = (Vec::new(), None);
        loop {
            let page = self.list(filter, ALL_PAGE, from.as_deref(), fresh).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(all),
            }
        }
    }
    /// A page of jobs.
    pub(crate) async fn jobs(&self, filter: &JobFilter, limit: usize, after: Option<&str>) -> Result<Page<JobRow>> {
        let (filter, after) = (filter.clone(), after.map(str::to_owned));
        match self.ask(Ask::Jobs { filter, limit, after }).await? {
            Answer::Jobs { items, next } => Ok(Page { items, next }),
            other => Err(unanswered(other)),
        }
    }
    /// For each name the VMs that have it and are not deleted, two at the most.
    pub(crate) async fn names(&self, names: Vec<(TenantId, VmName)>, fresh: Fresh) -> Result<Vec<Vec<VmId>>> {
        let asked = names.len();
        match self.ask(Ask::Names { names, fresh }).await? {
            Answer::Names(found) if found.len() == asked => Ok(found),
            other => Err(unanswered(other)),
        }
    }
    /// Waits until all these entries of the logs are in the rows, and with [`Fresh::CaughtUp`] all that is
    /// in the logs now; says of which groups that is so, when `limit` has passed at the latest.
    pub(crate) async fn shows(
        &self,
        groups: Vec<Vec<(ShardId, Seq)>>,
        fresh: Fresh,
        limit: Duration,
    ) -> Result<Vec<bool>> {
        let asked = groups.len();
        match self.ask(Ask::Shows { groups, fresh, limit }).await? {
            Answer::Shows(shows) if shows.len() == asked => Ok(shows),
            other => Err(unanswered(other)),
        }
    }
}

fn unanswered(answer: Answer) -> Error {
    match answer {
        Answer::NotReady { reason } => Error::NotReady { reason },
        Answer::Refused(error) => error.into(),
        Answer::Vms(_)
        | Answer::Job(_)
        | Answer::List { .. }
        | Answer::Jobs { .. }
        | Answer::Names(_)
        | Answer::Summaries { .. }
        | Answer::Shows(_) => {
            Error::Internal { message: "the directory answered another question than was asked".to_owned() }
        }
    }
}
