//! The cluster record: a key in the bucket of state, written only where the last revision is known.

use crate::codec;
use crate::contract::{ClusterRecord, Error, Result};

use super::publish::{self, Conditional};
use super::{Shared, kept};

/// Its key.
const KEY: &str = "cluster";

fn read(body: &[u8]) -> Result<ClusterRecord> {
    codec::decode(body).map_err(|error| Error::Damaged { what: format!("the cluster record: {error}") })
}

impl Shared {
    pub(super) async fn cluster(&self, initial: ClusterRecord) -> Result<ClusterRecord> {
        let message = publish::message(codec::encode(&initial).into());
        match self.publish_if(self.layout.state_subject(KEY), message, 0).await {
            Ok(Conditional::Written(_)) => return Ok(initial),
            Ok(Conditional::Refused) | Err(Error::Unknown { .. }) => {}
            Err(error) => return Err(error),
        }
        match self.cluster_decided().await? {
            Some((_, stored)) => Ok(stored),
            None => Err(Error::Unavailable { reason: "the cluster record is being written; try again".to_owned() }),
        }
    }

    /// As any replica has it: every process asks once a second.
    pub(super) async fn cluster_record(&self) -> Result<Option<ClusterRecord>> {
        let latest = self.latest(&self.layout.state(), self.layout.state_subject(KEY)).await?;
        latest.first().map(|latest| read(&latest.body)).transpose()
    }

    pub(super) async fn replace_cluster(&self, expected: &ClusterRecord, new: ClusterRecord) -> Result<ClusterRecord> {
        let none = || Error::Unavailable { reason: "there is no cluster record".to_owned() };
        let (revision, stored) = self.cluster_decided().await?.ok_or_else(none)?;
        if stored != *expected {
            return Ok(stored);
        }
        let message = publish::message(codec::encode(&new).into());
        let lost = match self.publish_if(self.layout.state_subject(KEY), message, revision).await {
            Ok(Conditional::Written(_)) => return Ok(new),
            Ok(Conditional::Refused) => Error::Unavailable { reason: "another write is on its way".to_owned() },
            Err(error @ Error::Unknown { .. }) => error,
            Err(error) => return Err(error),
        };
        match self.cluster_decided().await {
            Ok(Some((now, stored))) if now != revision => Ok(stored),
            // It may come yet.
            Ok(_) | Err(_) => Err(lost),
        }
    }

    /// Revision and content, from whoever decides writes.
    async fn cluster_decided(&self) -> Result<Option<(u64, ClusterRecord)>> {
        let last = kept::last(&self.state_stream, &self.layout.state_subject(KEY)).await?;
        last.map(|last| Ok((last.seq, read(&last.body)?))).transpose()
    }
}
