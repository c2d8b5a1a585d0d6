//! The cluster record: the last that counts of a partition of its own, under the same rule as a log. It
//! says which layout the topics have, so that a build that does not know it keeps away.

use crate::codec;
use crate::contract::{ClusterRecord, Error, Result};
use crate::ids::Seq;

use super::Shared;
use super::error::OpenError;
use super::feed::Came;
use super::layout::{LAYOUT, after};

/// The layout that its writer makes, in decimal; without it, the first.
pub(super) const HEADER: &str = "cellbus-layout";

/// The layout of a cluster that has this record, if this build does not know it.
fn newer(record: &Came) -> Option<u32> {
    let said = record.header(HEADER)?;
    // What cannot be read, no build that is known has written.
    let layout = std::str::from_utf8(said).ok().and_then(|said| said.parse().ok()).unwrap_or(u32::MAX);
    (layout > LAYOUT).then_some(layout)
}

impl Shared {
    /// Refuses a cluster that a newer build has laid out.
    pub(super) async fn known_layout(&self) -> std::result::Result<(), OpenError> {
        let failed = |error: Error| OpenError::NoAnswer {
            doing: "for the cluster record".to_owned(),
            reason: error.to_string(),
        };
        let found = self.cluster_latest(self.end_of(&self.layout.cluster()).await.map_err(failed)?).await;
        match found.map_err(failed)?.as_ref().and_then(newer) {
            Some(found) => Err(OpenError::NewerLayout { found }),
            None => Ok(()),
        }
    }

    async fn append_cluster(&self, expected: Seq, record: &ClusterRecord) -> Result<std::result::Result<Seq, Seq>> {
        let header = (HEADER, LAYOUT.to_string().into());
        self.append_at(&self.layout.cluster(), expected, codec::encode(record).into(), Some(header)).await
    }

    pub(super) async fn cluster(&self, initial: ClusterRecord) -> Result<ClusterRecord> {
        if let Some((_, stored)) = self.cluster_stored().await? {
            return Ok(stored);
        }
        match self.append_cluster(Seq::ZERO, &initial).await {
            Ok(Ok(_)) => return Ok(initial),
            Ok(Err(_)) | Err(Error::Unknown { .. }) => {}
            Err(error) => return Err(error),
        }
        match self.cluster_stored().await? {
            Some((_, stored)) => Ok(stored),
            None => Err(Error::Unavailable { reason: "the cluster record is being written; try again".to_owned() }),
        }
    }

    pub(super) async fn replace_cluster(&self, expected: &ClusterRecord, new: ClusterRecord) -> Result<ClusterRecord> {
        let none = || Error::Unavailable { reason: "there is no cluster record".to_owned() };
        let (seq, stored) = self.cluster_stored().await?.ok_or_else(none)?;
        if stored != *expected {
            return Ok(stored);
        }
        match self.append_cluster(seq, &new).await? {
            Ok(_) => Ok(new),
            Err(_) => self.cluster_stored().await?.map(|(_, stored)| stored).ok_or_else(none),
        }
    }

    pub(super) async fn cluster_record(&self) -> Result<Option<ClusterRecord>> {
        Ok(self.cluster_stored().await?.map(|(_, stored)| stored))
    }

    /// Where it is, and what it says.
    async fn cluster_stored(&self) -> Result<Option<(Seq, ClusterRecord)>> {
        let end = self.end_of(&self.layout.cluster()).await?;
        let known = {
            let known = self.cluster_known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            known.clone().filter(|(seq, _)| *seq == end)
        };
        if known.is_some() {
            return Ok(known);
        }
        let Some(found) = self.cluster_latest(end).await? else { return Ok(None) };
        let damaged = |what: String| Error::Damaged { what: format!("the cluster record: {what}") };
        if let Some(layout) = newer(&found) {
            // Both began at once on empty topics.
            return Err(damaged(OpenError::NewerLayout { found: layout }.to_string()));
        }
        let record = codec::decode(&found.body.unwrap_or_default()).map_err(|error| damaged(error.to_string()))?;
        let stored = (end, record);
        *self.cluster_known.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(stored.clone());
        Ok(Some(stored))
    }
    /// The record at its end.
    async fn cluster_latest(&self, end: Seq) -> Result<Option<Came>> {
        if end == Seq::ZERO {
            return Ok(None);
        }
        let found = self.range(&self.layout.cluster(), after(end) - 1, after(end)).await?;
        Ok(found.into_iter().next())
    }
}
