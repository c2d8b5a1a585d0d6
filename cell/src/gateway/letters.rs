//! Dead letters and the record of who changed what.

use std::sync::Arc;

use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::ids::ShardId;
use cellbus_directory::record::{DeadLetter, Operator};
use cellbus_workflows::{Change, ControlItem};
use uuid::Uuid;

use super::{Error, Gateway, Page, Result, What};
use crate::peers::{Request, Response};

/// Originals that were longer were cut when they were put aside.
const ORIGINAL_BYTES_MAX: usize = 256 << 10;

impl Gateway {
    /// All, oldest first, with the shard that keeps each.
    async fn all_letters(&self) -> Result<Vec<(ShardId, Arc<DeadLetter>)>> {
        let mut letters = Vec::new();
        for (_, answer) in self.ask_all(Request::DeadLetters).await? {
            if let Some(Response::DeadLetters(kept)) = answer {
                letters.extend(kept);
            }
        }
        letters.sort_by_key(|(shard, letter)| (letter.at, letter.id, *shard));
        letters.dedup_by_key(|(shard, letter)| (*shard, letter.id));
        Ok(letters)
    }

    async fn find_letter(&self, id: Uuid) -> Result<(ShardId, Arc<DeadLetter>)> {
        let letters = self.all_letters().await?;
        letters
            .into_iter()
            .find(|(_, letter)| letter.id == id)
            .ok_or_else(|| Error::NotFound { what: What::DeadLetter, id: id.to_string() })
    }

    /// All dead letters, oldest first, a page at a time.
    ///
    /// # Errors
    /// [`Error::Invalid`] `invalid_cursor`.
    pub async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Page<Arc<DeadLetter>>> {
        let bad =
            || Error::Invalid { code: "invalid_cursor", message: "the cursor is not one of this list".to_owned() };
        let after = match after {
            None => None,
            Some(text) => {
                let (at, id) = text.split_once('/').ok_or_else(bad)?;
                Some((cellbus_bus::WallMs(at.parse().map_err(|_| bad())?), Uuid::parse_str(id).map_err(|_| bad())?))
            }
        };
        let letters = self.all_letters().await?;
        let mut rest = letters
            .into_iter()
            .map(|(_, letter)| letter)
            .filter(|letter| after.is_none_or(|after| (letter.at, letter.id) > after));
        let items: Vec<_> = rest.by_ref().take(limit).collect();
        let more = rest.next().is_some();
        let next = items.last().filter(|_| more).map(|last| format!("{}/{}", last.at.0, last.id));
        Ok(Page { items, next })
    }

    /// One dead letter.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn dead_letter(&self, id: Uuid) -> Result<Arc<DeadLetter>> {
        self.find_letter(id).await.map(|(_, letter)| letter)
    }

    /// Sends the original round again, and takes the letter out.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] `cannot_retry` when the original cannot be sent
    /// again as it is (it was cut, or was refused for what it says).
    pub async fn retry_dead_letter(&self, id: Uuid, by: Operator) -> Result<()> {
        let (shard, letter) = self.find_letter(id).await?;
        let cannot = |message: &str| Error::Conflict { code: "cannot_retry", message: message.to_owned() };
        if letter.original.len() >= ORIGINAL_BYTES_MAX {
            return Err(cannot("the original was cut when it was put aside: send it again yourself"));
        }
        let bus = &self.inner.process.bus;
        let original = vec![letter.original.clone()];
        match letter.from.as_str() {
            "jobs" => {
                bus.publish(Queue { shard, kind: QueueKind::Jobs }, original).await?;
            }
            "control" => {
                bus.publish(Queue { shard, kind: QueueKind::Control }, original).await?;
            }
            "ingress" => {
                let Some(tenant) = &letter.tenant else {
                    return Err(cannot("its tenant is not known: send it again yourself"));
                };
                bus.ingress_publish(tenant.as_str(), Vec::new(), letter.original.clone()).await?;
            }
            _ => return Err(cannot("it came by a way that is not known: send it again yourself")),
        }
        self.control(shard, ControlItem::DropDeadLetter { id, at: letter.at, retried: true, by }).await
    }

    /// Takes a letter out.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn drop_dead_letter(&self, id: Uuid, by: Operator) -> Result<()> {
        let (shard, letter) = self.find_letter(id).await?;
        self.control(shard, ControlItem::DropDeadLetter { id, at: letter.at, retried: false, by }).await
    }

    /// Puts aside a message that could not become a job.
    ///
    /// # Errors
    /// As [`Gateway::submit`].
    pub async fn put_dead_letter(&self, letter: DeadLetter) -> Result<()> {
        let shard = ShardId::of(letter.id, self.inner.process.count);
        self.control(shard, ControlItem::DeadLetter(Arc::new(letter))).await
    }

    /// Keeps a note of something that an operator changed, on the cluster's shard.
    ///
    /// # Errors
    /// As [`Gateway::submit`].
    pub async fn note_change(&self, by: Operator, what: String) -> Result<()> {
        self.control(ShardId::of_cluster(self.inner.process.count), ControlItem::Changed { by, what }).await
    }

    /// What operators have changed, newest first.
    ///
    /// # Errors
    /// [`Error::ShardAway`].
    pub async fn changes(&self, limit: usize) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for (_, answer) in self.ask_all(Request::Changes).await? {
            if let Some(Response::Changes(kept)) = answer {
                changes.extend(kept);
            }
        }
        changes.sort_by(|a, b| (b.at, &a.what).cmp(&(a.at, &b.what)));
        changes.truncate(limit);
        Ok(changes)
    }
}
