//! The hasher of the table of VMs.

use std::hash::{BuildHasher, Hasher};

use cellbus_bus::ids::ShardCount;
use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;

/// Sub-tables of the map, each with its lock: a power of two, as the map wants it. Enough for
/// all processors, and no more: large tables can be put on huge pages, small ones can't.
pub(super) fn tables() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (processors * 4).next_power_of_two().clamp(16, 256)
}

/// foldhash over the id, but VMs of one log shard share a sub-table (or a few, where shards are
/// fewer than sub-tables). So loading or folding one shard works on one part of the table, which is
/// still in the processor's caches; look-ups are no slower. The
/// seed is random, so that nobody can choose ids that collide.
#[derive(Clone, Copy)]
pub(super) struct ByShard {
    seed: u64,
    /// All bits but those from which the map takes the sub-table. It leaves the highest seven to
    /// the tags within a sub-table; these lie below them.
    keep: u64,
    shift: u32,
    shards: Shards,
}

/// How a shard's sub-table follows from the first eight bytes of an id.
#[derive(Clone, Copy)]
enum Shards {
    /// These bits of them: shards are a power of two, and no fewer than sub-tables. The default,
    /// and on the path of every look-up, where a division would cost a tenth of it.
    Bits(u64),
    /// The remainder by `count`, and where shards are fewer, `spread` bits of the hash besides.
    Remainder { count: u64, spread: u32, tables: u64 },
}

impl ByShard {
    pub(super) fn new(count: ShardCount, tables: usize, seed: u64) -> Self {
        let shift = u64::BITS - 7 - tables.ilog2();
        let (count, tables) = (u64::from(count.get()), tables as u64);
        let shards = if count.is_power_of_two() && count >= tables {
            Shards::Bits(tables - 1)
        } else {
            Shards::Remainder {
                count,
                spread: tables.ilog2().saturating_sub(count.next_power_of_two().ilog2()),
                tables,
            }
        };
        Self { seed, keep: !((tables - 1) << shift), shift, shards }
    }
}

impl BuildHasher for ByShard {
    type Hasher = IdHasher;
    #[inline(always)]
    fn build_hasher(&self) -> IdHasher {
        IdHasher { scheme: *self, hash: 0 }
    }
}

pub(super) struct IdHasher {
    scheme: ByShard,
    hash: u64,
}

impl Hasher for IdHasher {
    #[inline(always)]
    fn write(&mut self, bytes: &[u8]) {
        let ByShard { seed, keep, shift, shards } = self.scheme;
        let mut hasher = FoldHasher::with_seed(seed, SharedSeed::global_fixed());
        hasher.write(bytes);
        let hash = hasher.finish();
        let head = bytes.first_chunk::<8>().map_or(0, |head| u64::from_be_bytes(*head));
        let table = match shards {
            Shards::Bits(mask) => head & mask,
            Shards::Remainder { count, spread, tables } => {
                (((head % count) << spread) | (hash & ((1 << spread) - 1))) & (tables - 1)
            }
        };
        self.hash = (hash & keep) | (table << shift);
    }
    #[inline(always)]
    fn finish(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use cellbus_bus::ids::{JobId, VmId};

    use super::*;

    const TABLES: usize = 64;

    #[test]
    fn vms_of_one_shard_share_a_table_and_spread_within_it() {
        for count in [1, 2, 5, 256, 300] {
            let count = ShardCount::new(count).unwrap();
            let hasher = ByShard::new(count, TABLES, 7);
            let mut tables = vec![std::collections::BTreeSet::new(); usize::from(count.get())];
            let mut hashes = std::collections::BTreeSet::new();
            for n in 0..20_000_u32 {
                let id: VmId = JobId::derive("acme", "/", &n.to_string()).vm(0);
                let hash = hasher.hash_one(id);
                tables[usize::from(id.shard(count).index())].insert((hash << 7) >> (64 - TABLES.ilog2()));
                hashes.insert(hash);
            }
            let most = TABLES / usize::from(count.get()).next_power_of_two().min(TABLES);
            assert!(tables.iter().all(|t| t.len() <= most), "{count:?}");
            assert!(tables.iter().map(std::collections::BTreeSet::len).sum::<usize>() >= TABLES / 2, "{count:?}");
            assert!(hashes.len() > 19_990);
        }
    }
}
