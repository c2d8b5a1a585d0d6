//! Who should own which shard: a pure function of the live members, the same in every cell.
//!
//! Rendezvous hashing gives every pair of shard and cell a score; each shard goes to the cell that
//! scores highest, as far as no cell gets more than its bound. With one order of scores for both
//! sides there is exactly one assignment in which no shard and cell would both rather have each
//! other (a stable matching), so the order of the members does not matter, and few shards move
//! when one comes or goes.
//!
//! This says who *should* own a shard. Who *does* is said by the last `Opened` in its log alone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use cellbus_bus::ids::{CellId, ShardCount, ShardId};

/// How far above the even share a cell's load may be, in percent. Lower is more even and moves
/// more shards at each change of members.
const SLACK_PERCENT: usize = 10;

/// Which cell should own each shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    owners: Vec<Option<CellId>>,
}

impl Assignment {
    /// Over these members: those that live and take shards, in any order.
    #[must_use]
    pub fn over(count: ShardCount, members: &[CellId]) -> Self {
        let mut members = members.to_vec();
        members.sort_unstable();
        members.dedup();
        let shards = usize::from(count.get());
        if members.is_empty() {
            return Self { owners: vec![None; shards] };
        }
        let bound = bound(shards, members.len());
        let seeds: Vec<u64> = members.iter().map(|cell| fnv1a(cell.as_str().as_bytes())).collect();

        // Deferred acceptance: a shard asks cells from its highest score down; a cell that has
        // too many lets go of the one that scores lowest with it, which asks on.
        let mut held: Vec<BinaryHeap<Reverse<(u64, usize)>>> = vec![BinaryHeap::new(); members.len()];
        let mut asked: Vec<Option<(u64, usize)>> = vec![None; shards];
        let mut asking: Vec<usize> = (0..shards).rev().collect();
        while let Some(shard) = asking.pop() {
            let next = seeds
                .iter()
                .enumerate()
                .map(|(cell, seed)| (score(*seed, shard), cell))
                .filter(|candidate| asked[shard].is_none_or(|last| *candidate < last))
                .max();
            // The bounds add up to at least all shards, so a shard never runs out of cells.
            let Some((score, cell)) = next else { continue };
            asked[shard] = Some((score, cell));
            held[cell].push(Reverse((score, shard)));
            if held[cell].len() > bound
                && let Some(Reverse((_, let_go))) = held[cell].pop()
            {
                asking.push(let_go);
            }
        }
        let mut owners = vec![None; shards];
        for (cell, shards) in held.into_iter().enumerate() {
            for Reverse((_, shard)) in shards {
                owners[shard] = Some(members[cell].clone());
            }
        }
        Self { owners }
    }

    /// Who should own this shard; `None` without members.
    #[must_use]
    pub fn owner(&self, shard: ShardId) -> Option<&CellId> {
        self.owners.get(usize::from(shard.index())).and_then(Option::as_ref)
    }

    /// How many shards each cell should own.
    #[must_use]
    pub fn loads(&self) -> BTreeMap<&CellId, usize> {
        let mut loads = BTreeMap::new();
        for owner in self.owners.iter().flatten() {
            *loads.entry(owner).or_insert(0) += 1;
        }
        loads
    }
}

/// The most shards that one of `members` cells may get.
fn bound(shards: usize, members: usize) -> usize {
    (shards * (100 + SLACK_PERCENT)).div_ceil(members * 100).max(shards.div_ceil(members))
}

// The hashes are written out because every build of every cell must agree on them for ever.

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn score(seed: u64, shard: usize) -> u64 {
    // The finaliser of SplitMix64: every bit of cell and shard reaches every bit of the score.
    let mut x = seed ^ (shard as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cells(n: usize) -> Vec<CellId> {
        (0..n).map(|i| format!("cell-{i}").parse().unwrap()).collect()
    }
    fn count(n: u16) -> ShardCount {
        ShardCount::new(n).unwrap()
    }

    #[test]
    fn nobody_owns_anything_without_members() {
        let none = Assignment::over(count(8), &[]);
        assert!(count(8).shards().all(|s| none.owner(s).is_none()));
    }

    #[test]
    fn the_assignment_is_pinned() {
        // Cells of different builds must agree: this may never change for given members.
        let four = Assignment::over(ShardCount::DEFAULT, &cells(4));
        let first: Vec<&str> = ShardCount::DEFAULT.shards().take(12).map(|s| four.owner(s).unwrap().as_str()).collect();
        assert_eq!(first, PINNED);
    }
    const PINNED: [&str; 12] = [
        "cell-3", "cell-3", "cell-3", "cell-2", "cell-2", "cell-3", "cell-2", "cell-2", "cell-0", "cell-1", "cell-3",
        "cell-3",
    ];

    #[test]
    fn one_that_goes_leaves_the_others_mostly_alone() {
        let before = Assignment::over(ShardCount::DEFAULT, &cells(8));
        let after = Assignment::over(ShardCount::DEFAULT, &cells(7));
        let gone: CellId = "cell-7".parse().unwrap();
        let moved = ShardCount::DEFAULT
            .shards()
            .filter(|s| before.owner(*s) != Some(&gone) && before.owner(*s) != after.owner(*s))
            .count();
        assert!(moved <= 26, "{moved} of 256 shards moved between cells that stayed");
    }

    proptest! {
        #[test]
        fn every_shard_has_an_owner_within_the_bound(shards in 1_u16..600, members in 1_usize..40) {
            let assignment = Assignment::over(count(shards), &cells(members));
            prop_assert!(count(shards).shards().all(|s| assignment.owner(s).is_some()));
            let bound = bound(usize::from(shards), members);
            for (cell, load) in assignment.loads() {
                prop_assert!(load <= bound, "{cell} has {load} of {shards}, bound {bound}");
            }
        }

        #[test]
        fn the_order_of_members_does_not_matter(members in proptest::sample::subsequence(cells(12), 1..12).prop_shuffle()) {
            let mut sorted = members.clone();
            sorted.sort();
            prop_assert_eq!(Assignment::over(count(64), &members), Assignment::over(count(64), &sorted));
        }

        #[test]
        fn a_newcomer_takes_little_more_than_its_share(members in 1_usize..20) {
            let before = Assignment::over(count(256), &cells(members));
            let after = Assignment::over(count(256), &cells(members + 1));
            let moved = count(256).shards().filter(|s| before.owner(*s) != after.owner(*s)).count();
            // Its own bound, and what the tighter bound of the others pushes about.
            prop_assert!(moved <= bound(256, members + 1) + 256 / 6, "{moved} moved at {} members", members + 1);
        }
    }
}
