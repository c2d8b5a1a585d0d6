//! How many operations of each kind a manager has under way, and the fair line of those that wait.

use std::collections::{BTreeMap, VecDeque};

use cellbus_bus::ids::ShardId;
use cellbus_workflows::Action;

use crate::driver::Limits;

/// What kind of load an operation puts on its manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Creates and copies.
    Create,
    /// Moves between hosts.
    Relocate,
    /// Start, stop, restart, suspend, resume.
    Power,
    /// Take, revert to and drop snapshots.
    Snapshot,
    /// Resize, delete, inspect: bounded by the total only.
    Other,
}
impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Create, Self::Relocate, Self::Power, Self::Snapshot, Self::Other];
    /// As in rows and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Relocate => "relocate",
            Self::Power => "power",
            Self::Snapshot => "snapshot",
            Self::Other => "other",
        }
    }
    /// Of an action.
    #[must_use]
    pub const fn of(action: &Action) -> Self {
        match action {
            Action::Create(_) => Self::Create,
            Action::Relocate(_) => Self::Relocate,
            Action::Start | Action::Stop(_) | Action::Restart(_) | Action::Suspend | Action::Resume => Self::Power,
            Action::Snapshot(_) | Action::Revert(_) | Action::SnapshotDelete(_) => Self::Snapshot,
            Action::Resize(_) | Action::Delete | Action::Inspect | Action::Adopt(_) => Self::Other,
        }
    }
}

/// The slots of one manager.
#[derive(Clone, Debug)]
pub struct Slots {
    limits: Limits,
    running: [u32; 5],
}

impl Slots {
    /// All free.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, running: [0; 5] }
    }
    fn max_of(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Create => self.limits.creates_max,
            Kind::Relocate => self.limits.relocations_max,
            Kind::Power => self.limits.power_max,
            Kind::Snapshot => self.limits.snapshots_max,
            Kind::Other => self.limits.operations_max,
        }
        // A limit of zero would hold its callers for ever.
        .max(1)
    }
    /// Takes a slot if one is free.
    #[must_use]
    pub fn take(&mut self, kind: Kind) -> bool {
        let free = self.total() < self.limits.operations_max.max(1) && self.running[kind as usize] < self.max_of(kind);
        if free {
            self.running[kind as usize] += 1;
        }
        free
    }
    /// Gives one back.
    pub fn give_back(&mut self, kind: Kind) {
        self.running[kind as usize] = self.running[kind as usize].saturating_sub(1);
    }
    /// Operations under way.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.running.iter().sum()
    }
    /// Operations of this kind under way.
    #[must_use]
    pub fn running(&self, kind: Kind) -> u32 {
        self.running[kind as usize]
    }
    /// How many may be under way at once.
    #[must_use]
    pub fn operations_max(&self) -> u32 {
        self.limits.operations_max.max(1)
    }
}

/// Those that wait for a slot: each shard that asks has its turn, so that a busy one does not
/// keep the others waiting. Bounded by its user through [`Line::len`].
#[derive(Debug)]
pub struct Line<T> {
    by_shard: BTreeMap<ShardId, VecDeque<T>>,
    turns: VecDeque<ShardId>,
    len: usize,
}
impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { by_shard: BTreeMap::new(), turns: VecDeque::new(), len: 0 }
    }
}
impl<T> Line<T> {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// To the end of its shard's part of the line.
    pub fn push(&mut self, shard: ShardId, item: T) {
        let part = self.by_shard.entry(shard).or_default();
        if part.is_empty() {
            self.turns.push_back(shard);
        }
        part.push_back(item);
        self.len += 1;
    }
    /// The next whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let shard = self.turns.pop_front()?;
        let part = self.by_shard.get_mut(&shard)?;
        let item = part.pop_front()?;
        self.len -= 1;
        if part.is_empty() {
            self.by_shard.remove(&shard);
        } else {
            self.turns.push_back(shard);
        }
        Some(item)
    }
    /// Takes one out of its place in the line.
    pub fn remove(&mut self, shard: ShardId, item: &T)
    where
        T: PartialEq,
    {
        let Some(part) = self.by_shard.get_mut(&shard) else { return };
        let Some(at) = part.iter().position(|other| other == item) else { return };
        part.remove(at);
        self.len -= 1;
        if part.is_empty() {
            self.by_shard.remove(&shard);
            self.turns.retain(|turn| *turn != shard);
        }
    }
    /// All, in turn.
    pub fn drain(&mut self) -> Vec<T> {
        std::iter::from_fn(|| self.pop()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellbus_bus::ids::ShardCount;

    #[test]
    fn each_kind_and_all_together_are_bounded() {
        let mut slots = Slots::new(Limits {
            operations_max: 4,
            creates_max: 2,
            relocations_max: 1,
            power_max: 3,
            snapshots_max: 0,
            revokes: true,
        });
        assert!(slots.take(Kind::Create) && slots.take(Kind::Create) && !slots.take(Kind::Create));
        assert!(slots.take(Kind::Power) && slots.take(Kind::Snapshot));
        assert!(!slots.take(Kind::Other), "four are under way");
        slots.give_back(Kind::Create);
        assert!(slots.take(Kind::Other) && !slots.take(Kind::Create));
        assert_eq!(slots.total(), 4);
    }

    #[test]
    fn a_busy_shard_does_not_keep_another_waiting() {
        let shard = |i| ShardId::new(i, ShardCount::DEFAULT).unwrap();
        let mut line = Line::default();
        (0..1000).for_each(|i| line.push(shard(1), i));
        line.push(shard(2), 5000);
        let first: Vec<i32> = (0..3).filter_map(|_| line.pop()).collect();
        assert_eq!(first, [0, 5000, 1]);
        assert_eq!(line.len(), 998);
        line.push(shard(2), 6000);
        line.remove(shard(2), &7000);
        line.remove(shard(2), &6000);
        line.remove(shard(1), &500);
        assert_eq!(line.len(), 997);
        line.push(shard(1), 500);
        assert_eq!(line.drain().len(), 998);
        assert!(line.is_empty() && line.pop().is_none());
    }
}
