//! Which VMs have a name.

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::sync::{PoisonError, RwLock};

use cellbus_bus::ids::{ShardId, TenantId, VmName};
use foldhash::fast::FixedState;

/// Parts of the index, each with its lock: so many that a part of millions of names is small.
const PARTS: usize = 1024;
const ROW_BITS: u32 = 28;
const SHARD_BITS: u32 = 12;
const HASH_BITS: u32 = 64 - ROW_BITS - SHARD_BITS;

/// Rows by a hash of tenant and name. A hit may be of another name with the same hash: whoever
/// asks compares the row.
pub(super) struct Names {
    hasher: FixedState,
    parts: Vec<RwLock<BTreeSet<u64>>>,
}

impl Names {
    pub(super) fn new(seed: u64) -> Self {
        Self { hasher: FixedState::with_seed(seed), parts: (0..PARTS).map(|_| RwLock::new(BTreeSet::new())).collect() }
    }

    fn place(&self, tenant: &str, name: &str) -> (usize, u64) {
        let hash = self.hasher.hash_one((tenant, name));
        ((hash % PARTS as u64) as usize, hash >> (64 - HASH_BITS))
    }
    fn entry(hash: u64, shard: ShardId, row: u32) -> u64 {
        (hash << (ROW_BITS + SHARD_BITS)) | (u64::from(shard.index()) << ROW_BITS) | u64::from(row)
    }

    pub(super) fn insert(&self, tenant: &TenantId, name: &VmName, shard: ShardId, row: u32) {
        let (part, hash) = self.place(tenant.as_str(), name.as_str());
        let mut entries = self.parts[part].write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(Self::entry(hash, shard, row));
    }

    pub(super) fn remove(&self, tenant: &TenantId, name: &VmName, shard: ShardId, row: u32) {
        let (part, hash) = self.place(tenant.as_str(), name.as_str());
        let mut entries = self.parts[part].write().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&Self::entry(hash, shard, row));
    }

    /// What [`Names::fill`] takes for this row.
    pub(super) fn entry_of(&self, tenant: &str, name: &str, shard: ShardId, row: u32) -> (usize, u64) {
        let (part, hash) = self.place(tenant, name);
        (part, Self::entry(hash, shard, row))
    }

    /// Fills the index, which must be empty, with all rows at once.
    pub(super) fn fill(&self, rows: &mut [(usize, u64)]) {
        rows.sort_unstable();
        for run in rows.chunk_by(|(a, _), (b, _)| a == b) {
            let mut entries = self.parts[run[0].0].write().unwrap_or_else(PoisonError::into_inner);
            *entries = run.iter().map(|(_, entry)| *entry).collect();
        }
    }

    /// Index of the shard, and row, of those that may have the name, at most `max`, from the
    /// one after `after` on.
    pub(super) fn find(
        &self,
        tenant: &TenantId,
        name: &VmName,
        after: Option<(u16, u32)>,
        max: usize,
    ) -> Vec<(u16, u32)> {
        let (part, hash) = self.place(tenant.as_str(), name.as_str());
        let low = hash << (ROW_BITS + SHARD_BITS);
        let high = low | ((1 << (ROW_BITS + SHARD_BITS)) - 1);
        let from = match after {
            None => low,
            Some((shard, row)) => match (low | (u64::from(shard) << ROW_BITS) | u64::from(row)).checked_add(1) {
                Some(next) if next <= high => next,
                Some(_) | None => return Vec::new(),
            },
        };
        let entries = self.parts[part].read().unwrap_or_else(PoisonError::into_inner);
        entries
            .range(from..=high)
            .take(max)
            .map(|entry| {
                (((entry >> ROW_BITS) & ((1 << SHARD_BITS) - 1)) as u16, (entry & ((1 << ROW_BITS) - 1)) as u32)
            })
            .collect()
    }
}
