//! The snapshot of a shard: what a new owner and a new directory replica start from.

use bytes::Bytes;
use cellbus_bus::codec;
use cellbus_bus::contract::Position;
use cellbus_bus::ids::{Epoch, HostId, ManagerId, Seq};
use serde::{Deserialize, Serialize};

use crate::job::JobRow;
use crate::vm::Vm;

/// A shard's state after the log entry `seq`. Rows are in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSnapshot {
    /// State up to and with this entry.
    pub seq: Seq,
    /// The epoch of the last `Opened` in it.
    pub epoch: Epoch,
    /// How far the jobs queue had been read.
    pub jobs_read: Position,
    /// How far the control queue had been read.
    pub control_read: Position,
    /// VMs, tombstones included. All that a directory needs of them.
    pub vms: Vec<Vm>,
    /// Jobs. All that a directory needs of them.
    pub jobs: Vec<JobRow>,
    /// Managers (`None`) and hosts that are cordoned here, in order.
    pub cordons: Vec<(ManagerId, Option<HostId>)>,
    /// The rest of the owner's state (work under way, intents, keys), for the state machine only.
    pub machine: Bytes,
}

impl ShardSnapshot {
    /// As every build reads it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(codec::encode(self))
    }
    /// As it is stored, in the format of the cluster record ([`cellbus_bus::format`]).
    #[must_use]
    pub fn encode_as(&self, format: u16) -> Bytes {
        Bytes::from(codec::encode_as(format, self))
    }
    /// From what is stored. Whether this build may read its format is asked before, of
    /// [`cellbus_bus::format::Formats::admit`].
    ///
    /// # Errors
    /// When it is damaged or written by a newer build.
    pub fn decode(bytes: &[u8]) -> Result<Self, codec::Error> {
        codec::decode_any_snapshot(bytes)
    }
}
