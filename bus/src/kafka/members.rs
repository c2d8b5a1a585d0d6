//! Members: beats on a topic that keeps the last of each.
//!
//! The topic's own age limit only clears away what is long dead. Whether a member lives is judged by
//! each process with its own clock: a beat counts for as long as its member has said, from when this
//! process first saw it. No two clocks are compared, and a process that has just begun gives everybody
//! one time to live.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::contract::{Error, Member, Result};
use crate::ids::CellId;

use super::Shared;
use super::produce::{Record, To};

/// A beat as it is stored: JSON, since every build that is alive must be able to read it, whatever
/// else it says.
#[derive(Serialize, Deserialize)]
struct Beat {
    member: Member,
    /// How long it counts.
    ttl_ms: u64,
}

impl Shared {
    pub(super) async fn beat(&self, member: Member, ttl: Duration) -> Result<()> {
        let key = Bytes::from(member.cell.as_str().to_owned());
        let beat = Beat { member, ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) };
        let value = serde_json::to_vec(&beat).expect("strings and numbers are JSON");
        self.write_beat(Record { key: Some(key), ..Record::new(value.into()) }).await
    }

    pub(super) async fn leave(&self, cell: &CellId) -> Result<()> {
        let key = Bytes::from(cell.as_str().to_owned());
        self.write_beat(Record { key: Some(key), ..Record::default() }).await
    }

    async fn write_beat(&self, record: Record) -> Result<()> {
        self.write(To::Place(self.layout.members()), record).await.map(drop).map_err(|error| match error {
            // Written or not, the next beat makes up for it.
            Error::Unknown { reason } | Error::Full { reason } => Error::Unavailable { reason },
            other => other,
        })
    }

    pub(super) async fn members(&self) -> Result<Vec<Member>> {
        let rows = self.rows(&self.members, &self.layout.members()).await?;
        let now = self.env.mono();
        let mut live = Vec::with_capacity(rows.len());
        for (key, row) in rows {
            match serde_json::from_slice::<Beat>(&row.body) {
                Ok(Beat { member, ttl_ms }) => {
                    if now.since(row.seen) < Duration::from_millis(ttl_ms) {
                        live.push(member);
                    }
                }
                // A newer build's, or somebody else's: it must not hide the others.
                Err(error) => {
                    tracing::warn!(key = %String::from_utf8_lossy(&key), %error, "a member cannot be read");
                }
            }
        }
        Ok(live)
    }
}
