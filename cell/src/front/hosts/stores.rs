//! The datastores of one manager: what is promised on each, and what its manager last said is free.
//!
//! A disk takes the room that it may grow to. What is left is the less of two: what no disk of ours is
//! promised, and what the manager said was free, less what was promised since. The second counts what others
//! have written.

use std::collections::{BTreeMap, BTreeSet};

use crate::driver::{Datastore, Host};

/// A datastore, by its place in the list. Good until the inventory is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreIndex(pub u32);

/// One datastore as it is counted here.
#[derive(Clone, Debug)]
pub struct StoreState {
    /// As its manager calls it.
    pub name: String,
    /// GiB.
    pub total: u64,
    /// GiB promised to disks of ours.
    pub used: u64,
    usable: bool,
    /// GiB that were free when it was read.
    seen_free: u64,
    /// GiB promised since then, and given back since then.
    taken: u64,
    given: u64,
}
impl StoreState {
    /// GiB that may still be promised.
    #[must_use]
    pub fn free(&self) -> u64 {
        if !self.usable {
            return 0;
        }
        let seen = self.seen_free.saturating_add(self.given).saturating_sub(self.taken);
        self.total.saturating_sub(self.used).min(seen)
    }
}

/// All datastores of one manager.
#[derive(Clone, Debug, Default)]
pub(super) struct Stores {
    all: Vec<StoreState>,
    by_name: BTreeMap<String, StoreIndex>,
}

impl Stores {
    /// From what the manager says, and which of them each of these hosts sees.
    pub(super) fn new(listed: &[Datastore], hosts: &[&Host]) -> (Self, Vec<Vec<StoreIndex>>) {
        let mut this = Self::default();
        let mut sees = vec![BTreeSet::new(); hosts.len()];
        let mut listed: Vec<&Datastore> = listed.iter().collect();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        listed.dedup_by(|a, b| a.name == b.name);
        for (index, store) in listed.into_iter().enumerate() {
            // A manager has hundreds of them at the most.
            let index = StoreIndex(index as u32);
            this.by_name.insert(store.name.clone(), index);
            this.all.push(StoreState {
                name: store.name.clone(),
                total: store.total_gib,
                used: 0,
                usable: store.usable,
                seen_free: store.free_gib,
                taken: 0,
                given: 0,
            });
            for host in &store.hosts {
                // Both are sorted by name.
                if let Ok(place) = hosts.binary_search_by(|other| other.id.cmp(host)) {
                    sees[place].insert(index);
                }
            }
        }
        (this, sees.into_iter().map(|stores| stores.into_iter().collect()).collect())
    }

    pub(super) fn find(&self, name: &str) -> Option<StoreIndex> {
        self.by_name.get(name).copied()
    }
    pub(super) fn get(&self, index: StoreIndex) -> &StoreState {
        &self.all[index.0 as usize]
    }
    pub(super) fn all(&self) -> impl Iterator<Item = (StoreIndex, &StoreState)> {
        self.all.iter().enumerate().map(|(index, store)| (StoreIndex(index as u32), store))
    }

    /// A disk lies there, or is about to. `seen`: the manager knew of it when it said what is free.
    pub(super) fn lay(&mut self, index: StoreIndex, gib: u64, seen: bool) {
        let store = &mut self.all[index.0 as usize];
        store.used = store.used.saturating_add(gib);
        if !seen {
            store.taken = store.taken.saturating_add(gib);
        }
    }

    /// A disk is taken away again. `seen`: the manager knew that it is gone when it said what is free.
    pub(super) fn lift(&mut self, index: StoreIndex, gib: u64, seen: bool) {
        let store = &mut self.all[index.0 as usize];
        store.used = store.used.saturating_sub(gib);
        if !seen {
            store.given = store.given.saturating_add(gib);
        }
    }

    /// Of these, the one with most room.
    pub(super) fn emptiest(&self, of: &[StoreIndex]) -> Option<StoreIndex> {
        of.iter().copied().max_by_key(|index| (self.get(*index).free(), std::cmp::Reverse(*index)))
    }
}
