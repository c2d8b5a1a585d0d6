//! The cluster record: the last that counts of a partition of its own, under the same rule as a log.

use crate::codec;
use crate::contract::{ClusterRecord, Error, Result};
use crate::ids::Seq;

use super::Shared;
use super::layout::after;

impl Shared {
    pub(super) async fn cluster(&self, initial: ClusterRecord) -> Result<ClusterRecord> {
        if let Some((_, stored)) = self.cluster_stored().await? {
            return Ok(stored);
        }
        let entry = codec::encode(&initial).into();
        match self.append_at(&self.layout.cluster(), Seq::ZERO, entry).await {
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
        match self.append_at(&self.layout.cluster(), seq, codec::encode(&new).into()).await? {
            Ok(_) => Ok(new),
            Err(_) => self.cluster_stored().await?.map(|(_, stored)| stored).ok_or_else(none),
        }
    }

    pub(super) async fn cluster_record(&self) -> Result<Option<ClusterRecord>> {
        Ok(self.cluster_stored().await?.map(|(_, stored)| stored))
    }

    /// Where it is, and what it says.
    async fn cluster_stored(&self) -> Result<Option<(Seq, ClusterRecord)>> {
        let place = self.layout.cluster();
        let end = self.end_of(&place).await?;
        if end == Seq::ZERO {
            return Ok(None);
        }
        let known = {
            let known = self.cluster_known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            known.clone().filter(|(seq, _)| *seq == end)
        };
        if known.is_some() {
            return Ok(known);
        }
        let found = self.range(&place, after(end) - 1, after(end)).await?;
        let body = found.into_iter().next().and_then(|came| came.body).unwrap_or_default();
        let record =
            codec::decode(&body).map_err(|error| Error::Damaged { what: format!("the cluster record: {error}") })?;
        let stored = (end, record);
        *self.cluster_known.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(stored.clone());
        Ok(Some(stored))
    }
}
