//! Managers and hosts by number, and which VMs are on each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock};

use cellbus_bus::ids::{HostId, ManagerId};
use foldhash::fast::FixedState;

use super::grow::Grow;
use super::key::Key;
use crate::vm::Place;

/// Number of "nowhere". Numbers have 28 bits, since a VM's state is kept beside them.
pub(super) const NOWHERE: u32 = (1 << 28) - 1;

/// Every place that a VM was ever on. Places are never dropped: there are as many as managers
/// have hosts, about 100 bytes each.
pub(super) struct Places {
    numbers: RwLock<HashMap<ManagerId, Numbers, FixedState>>,
    /// Managers in the order of their ids.
    ordered: RwLock<BTreeMap<ManagerId, u32>>,
    slots: Grow<Slot>,
    managers: Grow<Manager>,
}

struct Numbers {
    manager: u32,
    hostless: Option<u32>,
    hosts: HashMap<HostId, u32, FixedState>,
}

struct Slot {
    place: Place,
    manager: u32,
}

/// VMs of a manager, by the number of their place: an ordered set of keys for each.
pub(super) type Index = BTreeMap<u32, BTreeSet<Key>>;

struct Manager {
    id: ManagerId,
    /// One lock a manager: a VM that moves between its hosts is seen on one of them, never on
    /// none or both.
    index: RwLock<Index>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            numbers: RwLock::new(HashMap::default()),
            ordered: RwLock::new(BTreeMap::new()),
            slots: Grow::new(),
            managers: Grow::new(),
        }
    }

    /// The number of this place.
    pub(super) fn number(&self, place: &Place) -> u32 {
        if let Some(number) = self.find(place.manager, place.host.as_ref()) {
            return number;
        }
        let mut numbers = self.numbers.write().unwrap_or_else(PoisonError::into_inner);
        let known = numbers.entry(place.manager).or_insert_with(|| {
            let manager = self.managers.push(Manager { id: place.manager, index: RwLock::new(Index::new()) });
            self.ordered.write().unwrap_or_else(PoisonError::into_inner).insert(place.manager, manager);
            Numbers { manager, hostless: None, hosts: HashMap::default() }
        });
        let manager = known.manager;
        let new = || {
            let number = self.slots.push(Slot { place: place.clone(), manager });
            assert!(number < NOWHERE, "2^28 hosts are far beyond what a cluster has");
            number
        };
        match &place.host {
            None => *known.hostless.get_or_insert_with(new),
            Some(host) => *known.hosts.entry(host.clone()).or_insert_with(new),
        }
    }

    /// The number of this place, if a VM was ever there.
    pub(super) fn find(&self, manager: ManagerId, host: Option<&HostId>) -> Option<u32> {
        let numbers = self.numbers.read().unwrap_or_else(PoisonError::into_inner);
        let known = numbers.get(&manager)?;
        match host {
            None => known.hostless,
            Some(host) => known.hosts.get(host).copied(),
        }
    }

    /// The place with this number.
    pub(super) fn get(&self, number: u32) -> Option<&Place> {
        self.slots.get(number).map(|slot| &slot.place)
    }

    fn manager_of(&self, place: u32) -> Option<u32> {
        self.slots.get(place).map(|slot| slot.manager)
    }

    /// Moves a VM from one place to another in the index; either may be [`NOWHERE`].
    pub(super) fn moved(&self, key: Key, from: u32, to: u32) {
        if from == to {
            return;
        }
        let (old, new) = (self.manager_of(from), self.manager_of(to));
        let lock = |manager: Option<u32>| {
            manager
                .and_then(|number| self.managers.get(number))
                .map(|manager| manager.index.write().unwrap_or_else(PoisonError::into_inner))
        };
        if old == new {
            if let Some(mut index) = lock(old) {
                remove(&mut index, from, key);
                index.entry(to).or_default().insert(key);
            }
            return;
        }
        // Both at once, in the order of their numbers: a list over both sees it exactly once.
        let (mut source, mut target) = if old < new {
            let source = lock(old);
            (source, lock(new))
        } else {
            let target = lock(new);
            (lock(old), target)
        };
        if let Some(index) = &mut source {
            remove(index, from, key);
        }
        if let Some(index) = &mut target {
            index.entry(to).or_default().insert(key);
        }
    }

    /// Fills the index, which must be empty, with all VMs at once.
    pub(super) fn fill(&self, vms: &mut [(u32, Key)]) {
        vms.sort_unstable();
        for run in vms.chunk_by(|(a, _), (b, _)| a == b) {
            let place = run[0].0;
            let Some(manager) = self.manager_of(place).and_then(|number| self.managers.get(number)) else { continue };
            let mut index = manager.index.write().unwrap_or_else(PoisonError::into_inner);
            index.insert(place, run.iter().map(|(_, key)| *key).collect());
        }
    }

    /// Whether a VM on this place is on this manager and host.
    pub(super) fn matches(&self, place: u32, manager: Option<ManagerId>, host: Option<&HostId>) -> bool {
        match self.get(place) {
            Some(place) => {
                manager.is_none_or(|manager| place.manager == manager)
                    && host.is_none_or(|host| place.host.as_ref() == Some(host))
            }
            None => manager.is_none() && host.is_none(),
        }
    }

    /// The `count` least keys, from `from` on, of VMs on this manager (any, if none is given) and
    /// host: in order, and the last group whole, so there may be a few more.
    pub(super) fn least(&self, manager: Option<ManagerId>, host: Option<&HostId>, from: Key, count: usize) -> Vec<Key> {
        let buckets: Vec<(u32, Option<u32>)> = {
            let numbers = self.numbers.read().unwrap_or_else(PoisonError::into_inner);
            let managers: Vec<ManagerId> = match manager {
                Some(manager) => vec![manager],
                None => self.ordered.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect(),
            };
            let mut found: Vec<(u32, Option<u32>)> = managers
                .iter()
                .filter_map(|manager| numbers.get(manager))
                .filter_map(|known| match host {
                    None => Some((known.manager, None)),
                    Some(host) => known.hosts.get(host).map(|place| (known.manager, Some(*place))),
                })
                .collect();
            found.sort_unstable();
            found
        };
        // All held together, in the order of their numbers: see `moved`.
        let indexes: Vec<_> = buckets
            .iter()
            .filter_map(|(manager, place)| {
                let manager = self.managers.get(*manager)?;
                Some((manager.index.read().unwrap_or_else(PoisonError::into_inner), *place))
            })
            .collect();
        let mut least = Least::new(count);
        for (index, place) in &indexes {
            match place {
                Some(place) => {
                    if let Some(keys) = index.get(place) {
                        least.add(keys.range(from..).copied());
                    }
                }
                None => index.values().for_each(|keys| least.add(keys.range(from..).copied())),
            }
        }
        least.finish()
    }

    /// Managers on which VMs are or were, by id, each with how many VMs are there.
    pub(super) fn managers(&self) -> Vec<(ManagerId, usize)> {
        (0..self.managers.len())
            .filter_map(|number| self.managers.get(number))
            .map(|manager| (manager.id, manager.count()))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect()
    }

    /// How many VMs each host of a manager has; those that are on no known host under `None`.
    pub(super) fn hosts(&self, manager: ManagerId) -> BTreeMap<Option<HostId>, usize> {
        let number = self.ordered.read().unwrap_or_else(PoisonError::into_inner).get(&manager).copied();
        let Some(manager) = number.and_then(|number| self.managers.get(number)) else { return BTreeMap::new() };
        let index = manager.index.read().unwrap_or_else(PoisonError::into_inner);
        index
            .iter()
            .filter_map(|(place, keys)| self.get(*place).map(|place| (place.host.clone(), keys.len())))
            .collect()
    }

    /// How many VMs a manager has.
    pub(super) fn count(&self, manager: ManagerId) -> usize {
        let number = self.ordered.read().unwrap_or_else(PoisonError::into_inner).get(&manager).copied();
        number.and_then(|number| self.managers.get(number)).map_or(0, Manager::count)
    }

    /// How many VMs a host has.
    pub(super) fn count_on(&self, manager: ManagerId, host: &HostId) -> usize {
        let Some(place) = self.find(manager, Some(host)) else { return 0 };
        let Some(manager) = self.manager_of(place).and_then(|number| self.managers.get(number)) else { return 0 };
        let index = manager.index.read().unwrap_or_else(PoisonError::into_inner);
        index.get(&place).map_or(0, BTreeSet::len)
    }

    /// How many places there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len() as usize
    }
    /// One more than the highest number.
    pub(super) fn len_u32(&self) -> u32 {
        self.slots.len()
    }
}

impl Manager {
    fn count(&self) -> usize {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.values().map(BTreeSet::len).sum()
    }
}

fn remove(index: &mut Index, place: u32, key: Key) {
    if let Some(keys) = index.get_mut(&place) {
        keys.remove(&key);
        if keys.is_empty() {
            index.remove(&place);
        }
    }
}

/// The least keys of many ordered runs.
struct Least {
    keys: Vec<Key>,
    count: usize,
    /// The group of the last key wanted so far: later ones need not be looked at.
    bound: u64,
}

impl Least {
    fn new(count: usize) -> Self {
        Self { keys: Vec::new(), count: count.max(1), bound: u64::MAX }
    }
    fn add(&mut self, run: impl Iterator<Item = Key>) {
        for key in run {
            if key.group() > self.bound {
                return;
            }
            self.keys.push(key);
            if self.keys.len() >= self.count * 2 {
                self.cut();
            }
        }
    }
    fn cut(&mut self) {
        if self.keys.len() > self.count {
            let (_, last, _) = self.keys.select_nth_unstable(self.count - 1);
            let bound = last.group();
            self.bound = bound;
            self.keys.retain(|key| key.group() <= bound);
        }
    }
    fn finish(mut self) -> Vec<Key> {
        self.cut();
        self.keys.sort_unstable();
        self.keys
    }
}
