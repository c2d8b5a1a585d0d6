//! How much room there was: samples that are kept, from which it is foretold when there is none.
//!
//! Kept on the shard of the cluster's own key, few and small: the last two days in full, older ones
//! thinned out, none above a month.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::ManagerId;
use serde::{Deserialize, Serialize};

/// Between two samples.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(3_600);
/// Samples as old as this are all kept.
const KEPT_WHOLE: Duration = Duration::from_secs(48 * 3_600);
/// Of older ones, one in so much time.
const THINNED_TO: Duration = Duration::from_secs(12 * 3_600);
/// None is kept for longer.
pub const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3_600);

/// So much is free of so much, over-commit counted. Hosts that take nothing new have nothing free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// vCPUs.
    pub vcpus_free: u64,
    /// vCPUs in all.
    pub vcpus: u64,
    /// MiB.
    pub memory_mib_free: u64,
    /// MiB in all.
    pub memory_mib: u64,
}
/// The same of disk: samples of it came later, and lie beside the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// GiB.
    pub gib_free: u64,
    /// GiB in all.
    pub gib: u64,
}

/// Amounts that add up.
pub trait Adds: Copy + Default {
    /// Both together.
    #[must_use]
    fn plus(self, other: Self) -> Self;
}
impl Adds for Disk {
    fn plus(self, other: Self) -> Self {
        Self { gib_free: self.gib_free.saturating_add(other.gib_free), gib: self.gib.saturating_add(other.gib) }
    }
}
impl Adds for Room {
    fn plus(self, other: Self) -> Self {
        Self {
            vcpus_free: self.vcpus_free.saturating_add(other.vcpus_free),
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mib_free: self.memory_mib_free.saturating_add(other.memory_mib_free),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
        }
    }
}

/// How much room there was at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample<R = Room> {
    /// At each manager of which it was known.
    pub managers: Vec<(ManagerId, R)>,
    /// By the label `gear` of hosts, over all of these managers; empty for hosts without one.
    pub gears: Vec<(String, R)>,
    /// At all of them.
    pub whole: R,
    /// Managers of which it was not known: where there are any, gears and the whole say too little.
    pub unknown: u32,
}

impl<R: Adds> Sample<R> {
    /// Of these managers, each with its rooms by gear; `None`: it is not known.
    pub fn of(managers: impl Iterator<Item = (ManagerId, Option<Vec<(String, R)>>)>) -> Self {
        let mut sample = Self { managers: Vec::new(), gears: Vec::new(), whole: R::default(), unknown: 0 };
        let mut gears: BTreeMap<String, R> = BTreeMap::new();
        for (manager, rooms) in managers {
            let Some(rooms) = rooms else {
                sample.unknown += 1;
                continue;
            };
            let mut all = R::default();
            for (gear, room) in rooms {
                all = all.plus(room);
                let of_gear = gears.entry(gear).or_default();
                *of_gear = of_gear.plus(room);
            }
            sample.whole = sample.whole.plus(all);
            sample.managers.push((manager, all));
        }
        sample.gears = gears.into_iter().collect();
        sample
    }
}

/// Samples, oldest first, each with its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History<R = Room>(VecDeque<(WallMs, Arc<Sample<R>>)>);

/// All that is kept of room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histories {
    /// vCPUs and memory.
    pub room: History,
    /// Disk.
    pub disk: History<Disk>,
}

impl<R> Default for History<R> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<R> History<R> {
    /// Adds one, and lets go of what is not to be kept any more. One that is older than the last is not added.
    pub fn add(&mut self, at: WallMs, sample: &Arc<Sample<R>>) {
        if self.0.back().is_some_and(|(last, _)| *last > at) {
            return;
        }
        self.0.push_back((at, Arc::clone(sample)));
        let mut kept: Option<u64> = None;
        self.0.retain(|(then, _)| {
            let age = at.since(*then);
            if age <= KEPT_WHOLE {
                return true;
            }
            let part = then.0 / u64::try_from(THINNED_TO.as_millis()).unwrap_or(u64::MAX);
            age <= KEPT_FOR && kept.replace(part) != Some(part)
        });
    }
    /// Whether another is due.
    #[must_use]
    pub fn due(&self, now: WallMs) -> bool {
        // Who takes them does so by a clock of its own: a little early is on time.
        self.0.back().is_none_or(|(last, _)| now.since(*last) >= SAMPLE_EVERY - SAMPLE_EVERY / 20)
    }
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (WallMs, &Sample<R>)> {
        self.0.iter().map(|(at, sample)| (*at, sample.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_month_is_kept_in_about_a_hundred_samples() {
        let mut history: History = History::default();
        let sample = Arc::new(Sample::default());
        for hour in 0..24 * 60 {
            assert!(history.due(WallMs(hour * HOUR)));
            history.add(WallMs(hour * HOUR), &sample);
            assert!(!history.due(WallMs(hour * HOUR + HOUR / 2)));
        }
        let now = (24 * 60 - 1) * HOUR;
        let ages: Vec<u64> = history.iter().map(|(at, _)| (now - at.0) / HOUR).collect();
        assert!((90..120).contains(&ages.len()), "{}", ages.len());
        assert!((24 * 29..=24 * 30).contains(&ages[0]), "{}", ages[0]);
        assert_eq!(ages.iter().filter(|age| **age <= 48).count(), 49);
        assert!(ages.windows(2).all(|pair| pair[0] - pair[1] <= 24));
        history.add(WallMs(5), &sample);
        assert_eq!(history.iter().count(), ages.len(), "a clock that was set back adds nothing");
    }

    #[test]
    fn a_sample_adds_up_what_is_known() {
        let room = |vcpus| Room { vcpus_free: vcpus, vcpus: 10, memory_mib_free: 1, memory_mib: 2 };
        let of = |name: &str, rooms: Option<Vec<(&str, u64)>>| {
            let rooms = rooms.map(|rooms| rooms.into_iter().map(|(gear, v)| (gear.to_owned(), room(v))).collect());
            (ManagerId::derive(name), rooms)
        };
        let managers =
            [of("a", Some(vec![("g1", 1), ("g2", 2)])), of("b", None), of("c", Some(vec![("g2", 4), ("", 8)]))];
        let sample = Sample::of(managers.into_iter());
        let free: Vec<_> = sample.gears.iter().map(|(gear, room)| (gear.as_str(), room.vcpus_free)).collect();
        assert_eq!(free, [("", 8), ("g1", 1), ("g2", 6)]);
        assert_eq!((sample.whole.vcpus_free, sample.whole.vcpus, sample.unknown), (15, 40, 1));
        assert_eq!(sample.managers.iter().map(|(_, room)| room.vcpus_free).collect::<Vec<_>>(), [3, 12]);
    }

    /// What is written today must be read for ever: these bytes never change.
    #[test]
    fn the_bytes_of_the_record_are_pinned() {
        let room = Room { vcpus_free: 1, vcpus: 2, memory_mib_free: 3, memory_mib: 4 };
        let manager = ManagerId::derive("vc-1");
        let sample =
            Sample { managers: vec![(manager, room)], gears: vec![("g1".to_owned(), room)], whole: room, unknown: 5 };
        let bytes = cellbus_bus::codec::encode(&Record::CapacitySampled { sample: sample.into() });
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "012901105c8dde815a5b5830ba87a42e6d7496000102030401026731010203040102030405");

        let disk = Disk { gib_free: 1, gib: 2 };
        let sample =
            Sample { managers: vec![(manager, disk)], gears: vec![("g1".to_owned(), disk)], whole: disk, unknown: 5 };
        let bytes = cellbus_bus::codec::encode(&Record::DiskSampled { sample: sample.into() });
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "012b01105c8dde815a5b5830ba87a42e6d7496000102010267310102010205");
    }
}
