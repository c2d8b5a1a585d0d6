//! The hasher of the table of VMs.

use std::hash::{BuildHasher, Hasher};

use cellbus_bus::ids::ShardCount;
use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;

/// Sub-tables of the map, each with its lock. A power of two, as the map wants it.
pub(super) const TABLES: usize = 256;
/// The map takes the sub-table from these bits of a hash: it leaves the highest seven to the
/// tags within a sub-table.
const TABLE_SHIFT: u32 = u64::BITS - 7 - TABLES.ilog2();

/// foldhash over the id, but VMs of one log shard share a sub-table (or a few, where shards are
/// fewer than sub-tables). So loading or folding one shard works on one small table that fits the
/// processor's cache, which makes a start several times faster; look-ups are no slower. The
/// seed is random, so that nobody can choose ids that collide.
#[derive(Clone)]
pub(super) struct ByShard {
    seed: u64,
    count: u64,
    /// Sub-tables a shard, in bits.
    spread: u32,
}

impl ByShard {
    pub(super) fn new(count: ShardCount, seed: u64) -> Self {
        let spread = TABLES.ilog2().saturating_sub(u32::from(count.get()).next_power_of_two().ilog2());
        Self { seed, count: u64::from(count.get()), spread }
    }
    fn remainder(&self, head: u64) -> u64 {
        // 256 is the default, and a division costs a fifth of a look-up.
        if self.count.is_power_of_two() { head & (self.count - 1) } else { head % self.count }
    }
}

impl BuildHasher for ByShard {
    type Hasher = IdHasher;
    fn build_hasher(&self) -> IdHasher {
        IdHasher { scheme: self.clone(), hash: 0 }
    }
}

pub(super) struct IdHasher {
    scheme: ByShard,
    hash: u64,
}

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut hasher = FoldHasher::with_seed(self.scheme.seed, SharedSeed::global_fixed());
        hasher.write(bytes);
        self.hash = hasher.finish();
        if let Some(head) = bytes.first_chunk::<8>() {
            let shard = self.scheme.remainder(u64::from_be_bytes(*head));
            let low = self.hash & ((1 << self.scheme.spread) - 1);
            let table = ((shard << self.scheme.spread) | low) & (TABLES as u64 - 1);
            let mask = (TABLES as u64 - 1) << TABLE_SHIFT;
            self.hash = (self.hash & !mask) | (table << TABLE_SHIFT);
        }
    }
    fn finish(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use cellbus_bus::ids::{JobId, VmId};

    use super::*;

    #[test]
    fn vms_of_one_shard_share_a_table_and_spread_within_it() {
        for count in [1, 2, 5, 256, 300] {
            let count = ShardCount::new(count).unwrap();
            let hasher = ByShard::new(count, 7);
            let mut tables = vec![std::collections::BTreeSet::new(); usize::from(count.get())];
            let mut hashes = std::collections::BTreeSet::new();
            for n in 0..20_000_u32 {
                let id: VmId = JobId::derive("acme", "/", &n.to_string()).vm(0);
                let hash = hasher.hash_one(id);
                tables[usize::from(id.shard(count).index())].insert((hash << 7) >> (64 - TABLES.ilog2()));
                hashes.insert(hash);
            }
            let most = 1 << hasher.spread;
            assert!(tables.iter().all(|t| t.len() <= most), "{count:?}");
            assert!(tables.iter().map(std::collections::BTreeSet::len).sum::<usize>() >= TABLES / 2, "{count:?}");
            assert!(hashes.len() > 19_990);
        }
    }
}
