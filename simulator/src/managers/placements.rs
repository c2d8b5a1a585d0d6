//! On how many managers each VM is, over the whole fleet: a second create is seen as it happens.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cellbus_bus::ids::VmId;
use foldhash::fast::FixedState;

/// Managers work at the same time; they share a part only once in so many operations.
const PARTS: usize = 64;

pub(super) struct Placements {
    parts: Vec<Mutex<HashMap<VmId, u8, FixedState>>>,
    doubles: AtomicU64,
    /// VMs that a backup brought back: where else they have been made since, nobody could know.
    brought_back: Mutex<BTreeSet<VmId>>,
    /// The first of them, for whoever has to find out how.
    first: Mutex<Option<VmId>>,
}

impl Placements {
    pub(super) fn new() -> Self {
        let part = || Mutex::new(HashMap::with_hasher(FixedState::with_seed(0)));
        Self {
            parts: (0..PARTS).map(|_| part()).collect(),
            doubles: AtomicU64::new(0),
            brought_back: Mutex::default(),
            first: Mutex::new(None),
        }
    }

    fn part(&self, vm: VmId) -> MutexGuard<'_, HashMap<VmId, u8, FixedState>> {
        // UUIDs of jobs are hashes, so that any byte spreads them.
        self.parts[usize::from(vm.as_bytes()[15]) % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A manager has made it; only the copy of a migrate may be the second.
    pub(super) fn made(&self, vm: VmId, copy: bool) {
        let mut part = self.part(vm);
        let count = part.entry(vm).or_default();
        *count = count.saturating_add(1);
        let knowable = |vm| !self.brought_back.lock().unwrap_or_else(PoisonError::into_inner).contains(vm);
        if (*count > 2 || (*count == 2 && !copy)) && knowable(&vm) {
            self.doubles.fetch_add(1, Ordering::Relaxed);
            self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(vm);
        }
    }
    /// A manager that was started again had it.
    pub(super) fn restored(&self, vm: VmId) {
        let mut part = self.part(vm);
        let count = part.entry(vm).or_default();
        *count = count.saturating_add(1);
    }
    /// A manager has it again, from a backup.
    pub(super) fn brought_back(&self, vm: VmId) {
        self.brought_back.lock().unwrap_or_else(PoisonError::into_inner).insert(vm);
        self.restored(vm);
    }
    /// A manager no longer has it.
    pub(super) fn removed(&self, vm: VmId) {
        let mut part = self.part(vm);
        if let Some(count) = part.get_mut(&vm) {
            *count -= 1;
            if *count == 0 {
                part.remove(&vm);
            }
        }
    }
    /// The first VM that was made although it was there.
    pub(super) fn first_double(&self) -> Option<VmId> {
        *self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// How often a VM was made that was there already.
    pub(super) fn doubles(&self) -> u64 {
        self.doubles.load(Ordering::Relaxed)
    }
}
