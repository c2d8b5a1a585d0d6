//! What the table of VMs holds for each: eight bytes beside the sixteen of the id.

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, HostId, ManagerId, ShardId, VmId};

use super::Replica;
use super::row::{place_of, state_of};
use crate::vm::{Place, VmState};

/// The row's index in its shard, and the number of its place with its state above it. Manager and
/// host follow from the place, shard and epoch from the id; `as_of` is in the row, where only
/// those look who ask for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spot {
    row: u32,
    place_state: u32,
}

impl Spot {
    #[inline(always)]
    pub(super) fn new(row: u32, place_state: u32) -> Self {
        Self { row, place_state }
    }
    #[inline(always)]
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
    #[inline(always)]
    pub(super) fn new(replica: &'a Replica, vm: VmId, spot: Spot) -> Self {
        Self { replica, vm, spot }
    }
    /// Which VM.
    #[must_use]
    #[inline(always)]
    pub fn vm(&self) -> VmId {
        self.vm
    }
    /// What it is doing. A deleted one is found as long as its tombstone is kept.
    #[must_use]
    #[inline(always)]
    pub fn state(&self) -> VmState {
        state_of(self.spot.place_state)
    }
    /// Its manager and host; `None` while it has no manager.
    #[must_use]
    #[inline(always)]
    pub fn place(&self) -> Option<&'a Place> {
        self.replica.shared.places.get(place_of(self.spot.place_state))
    }
    /// The manager that holds it.
    #[must_use]
    #[inline(always)]
    pub fn manager(&self) -> Option<ManagerId> {
        self.place().map(|place| place.manager)
    }
    /// The host that it is on.
    #[must_use]
    #[inline(always)]
    pub fn host(&self) -> Option<&'a HostId> {
        self.place().and_then(|place| place.host.as_ref())
    }
    /// Its home shard.
    #[must_use]
    #[inline(always)]
    pub fn shard(&self) -> ShardId {
        self.vm.shard(self.replica.shared.count)
    }
    /// The epoch of its home shard, as far as this replica has read.
    #[must_use]
    #[inline(always)]
    pub fn epoch(&self) -> Epoch {
        self.replica.epoch(self.shard())
    }
    /// When this was last known to be true. A second look-up, in the row; zero if the VM's
    /// tombstone has been dropped since.
    #[must_use]
    pub fn as_of(&self) -> WallMs {
        self.replica.as_of(self.vm, self.spot.row())
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
