//! When room runs out, from the samples that the cluster's shard keeps.

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{ManagerId, ShardId};
use cellbus_directory::capacity::{Disk, Histories, History, Room, Sample};
use cellbus_workflows::forecast::{Forecast, Outlook, forecast};

use super::{Gateway, Result};
use crate::peers::{Request, Response};

/// Whose room it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomOf {
    /// That of all managers.
    Cluster,
    /// That of the hosts with this label `gear`; empty for those without one.
    Gear(String),
    /// That of one manager.
    Manager(ManagerId),
}

/// What is foretold of one resource somewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct ForecastRow {
    /// Where.
    pub of: RoomOf,
    /// `vcpus`, `memory_mib` or `disk_gib`.
    pub resource: &'static str,
    /// How much there is in all.
    pub total: u64,
    /// What is foretold.
    pub forecast: Forecast,
}

impl Gateway {
    /// When room runs out at today's growth: of the cluster, of each gear class, of each configured manager.
    ///
    /// # Errors
    /// [`super::Error::ShardAway`].
    pub async fn forecast(&self) -> Result<Vec<ForecastRow>> {
        let process = &self.inner.process;
        let shard = ShardId::of_cluster(process.count);
        let history = match self.ask_owner(shard, Request::Capacity).await? {
            Response::Capacity(history) => history,
            _ => return Err(super::confused()),
        };
        Ok(rows(&history, process.names.iter().map(|(_, id)| *id)))
    }
}

/// A resource, how much there is of it in all, and how much is free.
type Resource<R> = (&'static str, fn(&R) -> u64, fn(&R) -> u64);

const ROOM: &[Resource<Room>] = &[
    ("vcpus", |room| room.vcpus, |room| room.vcpus_free),
    ("memory_mib", |room| room.memory_mib, |room| room.memory_mib_free),
];
const DISK: &[Resource<Disk>] = &[("disk_gib", |disk| disk.gib, |disk| disk.gib_free)];

fn rows(kept: &Histories, managers: impl Iterator<Item = ManagerId>) -> Vec<ForecastRow> {
    let gears = kept.room.iter().next_back().map(|(_, sample)| sample.gears.clone()).unwrap_or_default();
    let gears = gears.into_iter().map(|(gear, _)| RoomOf::Gear(gear));
    let mut rows = Vec::new();
    for of in [RoomOf::Cluster].into_iter().chain(gears).chain(managers.map(RoomOf::Manager)) {
        add(&mut rows, &kept.room, &of, ROOM);
        add(&mut rows, &kept.disk, &of, DISK);
    }
    rows
}

/// What a sample says of this room; `None`: nothing.
fn said<R: Copy>(sample: &Sample<R>, of: &RoomOf) -> Option<R> {
    // Where a manager was not known, there was more than the sample says.
    let complete = sample.unknown == 0;
    match of {
        RoomOf::Cluster => complete.then_some(sample.whole),
        RoomOf::Gear(gear) => sample.gears.iter().find(|(name, _)| complete && name == gear).map(|(_, room)| *room),
        RoomOf::Manager(manager) => sample.managers.iter().find(|(id, _)| id == manager).map(|(_, room)| *room),
    }
}

fn add<R: Copy>(rows: &mut Vec<ForecastRow>, history: &History<R>, of: &RoomOf, resources: &[Resource<R>]) {
    let rooms: Vec<(WallMs, R)> = history.iter().filter_map(|(at, sample)| Some((at, said(sample, of)?))).collect();
    for (resource, total, free) in resources {
        let points: Vec<(WallMs, u64)> = rooms.iter().map(|(at, room)| (*at, free(room))).collect();
        let total = rooms.last().map_or(0, |(_, room)| total(room));
        let mut forecast = forecast(&points);
        if points.is_empty() && !history.is_empty() {
            let why = match of {
                RoomOf::Cluster | RoomOf::Gear(_) => "in no sample was every manager known",
                RoomOf::Manager(_) => "it was not known in any sample",
            };
            forecast.outlook = Outlook::Unknown(why.to_owned());
        }
        rows.push(ForecastRow { of: of.clone(), resource, total, forecast });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_manager_gear_and_the_whole_have_their_own_outlook() {
        let (a, b) = (ManagerId::derive("a"), ManagerId::derive("b"));
        let mut kept = Histories::default();
        for hour in 0..48_u64 {
            let at = WallMs(1_700_000_000_000 + hour * 3_600_000);
            let room = |free| Room { vcpus_free: free, vcpus: 1_000, memory_mib_free: 7, memory_mib: 9 };
            let rooms = |gear: &str, free| Some(vec![(gear.to_owned(), room(free))]);
            // The second is not known at first.
            let second = if hour < 40 { None } else { rooms("g2", 500) };
            let sample = Sample::of([(a, rooms("g1", 1_000 - 10 * hour)), (b, second)].into_iter());
            kept.room.add(at, &sample.into());
            // Disk came to be sampled later, and both were known from then on.
            if hour >= 20 {
                let disk = |gear: &str, gib_free| Some(vec![(gear.to_owned(), Disk { gib_free, gib: 5_000 })]);
                let sample = Sample::of([(a, disk("g1", 4_000)), (b, disk("g2", 2_000 - 40 * hour))].into_iter());
                kept.disk.add(at, &sample.into());
            }
        }
        let rows = rows(&kept, [a, b, ManagerId::derive("c")].into_iter());
        let outlook = |of: RoomOf, resource: &str| {
            let row = rows.iter().find(|row| row.of == of && row.resource == resource).expect("a row");
            (row.total, row.forecast.outlook.clone())
        };
        assert!(matches!(outlook(RoomOf::Manager(a), "vcpus"), (1_000, Outlook::RunsOut { .. })));
        assert!(matches!(outlook(RoomOf::Manager(a), "memory_mib"), (9, Outlook::Lasts { .. })));
        assert!(matches!(outlook(RoomOf::Manager(a), "disk_gib"), (5_000, Outlook::Lasts { .. })));
        for of in [RoomOf::Manager(b), RoomOf::Gear("g2".to_owned()), RoomOf::Cluster] {
            let total = if of == RoomOf::Cluster { 10_000 } else { 5_000 };
            assert!(matches!(outlook(of, "disk_gib"), (all, Outlook::RunsOut { .. }) if all == total));
        }
        let unknown = |of: RoomOf| match outlook(of, "vcpus").1 {
            Outlook::Unknown(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(unknown(RoomOf::Manager(b)).starts_with("less than a day of history"));
        assert!(unknown(RoomOf::Cluster).starts_with("less than a day of history"), "as it is known as a whole");
        assert!(unknown(RoomOf::Gear("g1".to_owned())).starts_with("less than a day of history"));
        assert_eq!(unknown(RoomOf::Manager(ManagerId::derive("c"))), "it was not known in any sample");
    }
}
