//! A VM's and a job's row in a tight form.

use std::num::NonZeroU32;
use std::sync::Arc;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{JobId, OpNumber, Seq, ShardId, ShortName, VmId};
use cellbus_bus::job::{JobKind, Size};

use super::slab::Slab;
use crate::failure::Failure;
use crate::job::{JobState, Plan};
use crate::vm::{Doing, Place, VmState};

/// Milliseconds since 1970 in six bytes: enough until the year 10889.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Ms48([u8; 6]);

impl Ms48 {
    pub(super) fn of(at: WallMs) -> Self {
        let [_, _, rest @ ..] = at.0.min((1 << 48) - 1).to_be_bytes();
        Self(rest)
    }
    pub(super) fn wall(self) -> WallMs {
        let [a, b, c, d, e, f] = self.0;
        WallMs(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }
}

/// Texts that do not fit into a row.
pub(super) type LongTexts = Slab<Box<str>>;

/// A short text in sixteen bytes, or the index of a longer one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Text([u8; 16]);

const LONG: u8 = 0xff;

impl Text {
    pub(super) fn new(text: &str, long: &mut LongTexts) -> Self {
        let mut bytes = [0; 16];
        if text.len() <= 15 {
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            bytes[15] = text.len() as u8;
        } else {
            bytes[..4].copy_from_slice(&long.insert(text.into()).to_le_bytes());
            bytes[15] = LONG;
        }
        Self(bytes)
    }
    fn index(&self) -> Option<u32> {
        let [a, b, c, d, .., tag] = self.0;
        (tag == LONG).then_some(u32::from_le_bytes([a, b, c, d]))
    }
    pub(super) fn get<'a>(&'a self, long: &'a LongTexts) -> &'a str {
        match self.index() {
            Some(index) => long.get(index).map_or("", AsRef::as_ref),
            None => std::str::from_utf8(&self.0[..usize::from(self.0[15])]).unwrap_or_default(),
        }
    }
    pub(super) fn free(self, long: &mut LongTexts) {
        if let Some(index) = self.index() {
            long.remove(index);
        }
    }
}

/// What all but a few VMs are without.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct VmExtra {
    pub(super) doing: Option<Doing>,
    pub(super) other: Option<Place>,
    pub(super) snapshots: Vec<ShortName>,
    /// A shape or an op number that does not fit into the row.
    pub(super) size: Option<Size>,
    pub(super) op: Option<OpNumber>,
}

/// A VM: 80 bytes. Numbers are those of the interners and of the places; `None` in `extra` and
/// `job` are the usual case: nothing special, and made by a job for one VM, whose id it has.
#[derive(Clone, Copy)]
pub(super) struct VmRow {
    pub(super) id: VmId,
    pub(super) name: Text,
    pub(super) created_at: Ms48,
    pub(super) as_of: Ms48,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) disk_gib: u32,
    pub(super) tenant: NonZeroU32,
    pub(super) template: NonZeroU32,
    pub(super) job: Option<NonZeroU32>,
    pub(super) op: u32,
    /// Number of the place, 28 bits; above it, the settled state.
    pub(super) place_state: u32,
    pub(super) extra: Option<NonZeroU32>,
}

const _: () = assert!(size_of::<Option<VmRow>>() == 80);

/// A place and a state in one number.
pub(super) fn place_state(place: u32, state: VmState) -> u32 {
    place | (state_number(state) << 28)
}
pub(super) fn place_of(both: u32) -> u32 {
    both & ((1 << 28) - 1)
}
#[inline(always)]
pub(super) fn state_of(both: u32) -> VmState {
    match both >> 28 {
        0 => VmState::Creating,
        1 => VmState::Running,
        2 => VmState::Stopped,
        3 => VmState::Suspended,
        4 => VmState::Migrating,
        5 => VmState::Deleting,
        6 => VmState::Deleted,
        7 => VmState::Lost,
        _ => VmState::Unknown,
    }
}
/// The state's place in [`VmState::ALL`].
pub(super) fn state_number(state: VmState) -> u32 {
    match state {
        VmState::Creating => 0,
        VmState::Running => 1,
        VmState::Stopped => 2,
        VmState::Suspended => 3,
        VmState::Migrating => 4,
        VmState::Deleting => 5,
        VmState::Deleted => 6,
        VmState::Lost => 7,
        VmState::Unknown => 8,
    }
}
pub(super) fn job_state_number(state: JobState) -> usize {
    match state {
        JobState::Queued => 0,
        JobState::Accepted => 1,
        JobState::Waiting => 2,
        JobState::Running => 3,
        JobState::Parked => 4,
        JobState::Succeeded => 5,
        JobState::Failed => 6,
        JobState::Cancelled => 7,
    }
}

/// The three numbers of a shape, if they fit into a row.
pub(super) fn small_size(size: &Size) -> Option<(u32, u32, u32)> {
    Some((size.vcpus, u32::try_from(size.memory_mib).ok()?, u32::try_from(size.disk_gib).ok()?))
}

/// What all but a few jobs are without.
#[derive(Clone, Debug, Default)]
pub(super) struct JobExtra {
    pub(super) failure: Option<Failure>,
    pub(super) plan: Option<Arc<Plan>>,
    /// How far other shards must have been read before its end may be shown: until then its VMs
    /// are not listed as its outcome says.
    pub(super) behind: Vec<(ShardId, Seq)>,
}

/// A job: 84 bytes.
#[derive(Clone, Copy)]
pub(super) struct JobSlot {
    pub(super) id: JobId,
    pub(super) event_id: Text,
    /// Only if `has_vm`.
    pub(super) vm: VmId,
    pub(super) accepted_at: Ms48,
    /// Only if `has_ended_at`.
    pub(super) ended_at: Ms48,
    pub(super) tenant: NonZeroU32,
    pub(super) source: NonZeroU32,
    pub(super) vms_total: u32,
    pub(super) extra: Option<NonZeroU32>,
    pub(super) kind: JobKind,
    pub(super) state: JobState,
    pub(super) has_vm: bool,
    pub(super) has_ended_at: bool,
}

const _: () = assert!(size_of::<Option<JobSlot>>() == 80);

/// The index of a slab as a number that is never zero, and back.
pub(super) fn number(index: u32) -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(index)
}
pub(super) fn index(number: NonZeroU32) -> u32 {
    number.get() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let mut long = LongTexts::new();
        for text in ["", "a", "exactly-fifteen", "sixteen-and-more", &"x".repeat(300)] {
            let packed = Text::new(text, &mut long);
            assert_eq!(packed.get(&long), text);
            packed.free(&mut long);
        }
        assert_eq!(long.len(), 0);
        for at in [0, 1, 1_700_000_000_123, (1 << 48) - 1] {
            assert_eq!(Ms48::of(WallMs(at)).wall(), WallMs(at));
        }
        assert_eq!(Ms48::of(WallMs(u64::MAX)).wall(), WallMs((1 << 48) - 1), "the end of time is cut, not wrapped");
        for (number, state) in VmState::ALL.iter().enumerate() {
            let both = place_state(12_345, *state);
            assert_eq!((place_of(both), state_of(both), state_number(*state) as usize), (12_345, *state, number));
        }
        for (number, state) in JobState::ALL.iter().enumerate() {
            assert_eq!(job_state_number(*state), number);
        }
    }
}
