//! What the table of VMs holds for each: twelve bytes beside the sixteen of the id.

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, HostId, ManagerId, ShardId, VmId};

use super::Replica;
use super::row::{place_of, state_of};
use crate::vm::{Place, VmState};

/// The row's index in its shard, the number of its place with its state above it, and the whole
/// seconds of its `as_of`. Manager and host follow from the place, shard and epoch from the id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spot {
    row: u32,
    place_state: u32,
    as_of_seconds: u32,
}

impl Spot {
    pub(super) fn new(row: u32, place_state: u32, as_of: WallMs) -> Self {
        Self { row, place_state, as_of_seconds: u32::try_from(as_of.0 / 1_000).unwrap_or(u32::MAX) }
    }
    pub(super) fn row(self) -> u32 {
        self.row
    }
}

/// Where a VM is. Copying it costs nothing; names are looked up only when asked for.
#[derive(Clone, Copy)]
pub struct Location<'a> {
    replica: &'a Replica,
    vm: VmId,
    spot: Spot,
}

impl<'a> Location<'a> {
    pub(super) fn new(replica: &'a Replica, vm: VmId, spot: Spot) -> Self {
        Self { replica, vm, spot }
    }
    /// Which VM.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.vm
    }
    /// What it is doing. A deleted one is found as long as its tombstone is kept.
    #[must_use]
    pub fn state(&self) -> VmState {
        state_of(self.spot.place_state)
    }
    /// Its manager and host; `None` while it has no manager.
    #[must_use]
    pub fn place(&self) -> Option<&'a Place> {
        self.replica.shared.places.get(place_of(self.spot.place_state))
    }
    /// The manager that holds it.
    #[must_use]
    pub fn manager(&self) -> Option<ManagerId> {
        self.place().map(|place| place.manager)
    }
    /// The host that it is on.
    #[must_use]
    pub fn host(&self) -> Option<&'a HostId> {
        self.place().and_then(|place| place.host.as_ref())
    }
    /// Its home shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.vm.shard(self.replica.shared.count)
    }
    /// The epoch of its home shard, as far as this replica has read.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.replica.epoch(self.shard())
    }
    /// When this was last known to be true, in whole seconds, rounded down. The row itself
    /// ([`Replica::vm`]) has it in milliseconds.
    #[must_use]
    pub fn as_of(&self) -> WallMs {
        WallMs(u64::from(self.spot.as_of_seconds) * 1_000)
    }
}
impl std::fmt::Debug for Location<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Location")
            .field("vm", &self.vm)
            .field("state", &self.state())
            .field("place", &self.place())
            .field("as_of", &self.as_of())
            .finish_non_exhaustive()
    }
}
