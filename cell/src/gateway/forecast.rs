//! When room runs out, from the samples that the cluster's shard keeps.

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{ManagerId, ShardId};
use cellbus_directory::capacity::{History, Room, Sample};
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
    /// `vcpus` or `memory_mib`.
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

fn rows(history: &History, managers: impl Iterator<Item = ManagerId>) -> Vec<ForecastRow> {
    let mut rows = Vec::new();
    // Where a manager was not known, there was more than the sample says.
    let whole = |sample: &Sample| (sample.unknown == 0).then_some(sample.whole);
    add(&mut rows, history, &RoomOf::Cluster, whole);
    let gears = history.iter().next_back().map(|(_, sample)| sample.gears.clone()).unwrap_or_default();
    for (gear, _) in gears {
        let of_gear = |sample: &Sample| {
            let found = sample.gears.iter().find(|(name, _)| *name == gear);
            found.filter(|_| sample.unknown == 0).map(|(_, room)| *room)
        };
        add(&mut rows, history, &RoomOf::Gear(gear.clone()), of_gear);
    }
    for manager in managers {
        let of_manager = |sample: &Sample| {
            let found = sample.managers.iter().find(|(id, _)| *id == manager);
            found.map(|(_, room)| *room)
        };
        add(&mut rows, history, &RoomOf::Manager(manager), of_manager);
    }
    rows
}

fn add(rows: &mut Vec<ForecastRow>, history: &History, of: &RoomOf, room: impl Fn(&Sample) -> Option<Room>) {
    let rooms: Vec<(WallMs, Room)> = history.iter().filter_map(|(at, sample)| Some((at, room(sample)?))).collect();
    let last = rooms.last().map(|(_, room)| *room).unwrap_or_default();
    let resources: [(&str, u64, fn(&Room) -> u64); 2] =
        [("vcpus", last.vcpus, |room| room.vcpus_free), ("memory_mib", last.memory_mib, |room| room.memory_mib_free)];
    for (resource, total, free) in resources {
        let points: Vec<(WallMs, u64)> = rooms.iter().map(|(at, room)| (*at, free(room))).collect();
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
        let mut history = History::default();
        for hour in 0..48_u64 {
            let room = |free| Room { vcpus_free: free, vcpus: 1_000, memory_mib_free: 7, memory_mib: 9 };
            let rooms = |gear: &str, free| Some(vec![(gear.to_owned(), room(free))]);
            // The second is not known at first.
            let second = if hour < 40 { None } else { rooms("g2", 500) };
            let sample = Sample::of([(a, rooms("g1", 1_000 - 10 * hour)), (b, second)].into_iter());
            history.add(WallMs(1_700_000_000_000 + hour * 3_600_000), &sample.into());
        }
        let rows = rows(&history, [a, b, ManagerId::derive("c")].into_iter());
        let outlook = |of: RoomOf, resource: &str| {
            let row = rows.iter().find(|row| row.of == of && row.resource == resource).expect("a row");
            (row.total, row.forecast.outlook.clone())
        };
        assert!(matches!(outlook(RoomOf::Manager(a), "vcpus"), (1_000, Outlook::RunsOut { .. })));
        assert!(matches!(outlook(RoomOf::Manager(a), "memory_mib"), (9, Outlook::Lasts { .. })));
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
