//! What there is to do, gathered from all cells once a second.
//!
//! Beside what cells have, the bus says how much of what producers have put on it nobody has taken: cells
//! that do not keep up with it have short queues.
//!
//! A shard that is just moving, or too busy to answer, is taken to be as it was, for as long as that
//! is fresh, and so is what the bus has said; after that it is unknown, and a reading that lacks it holds
//! the size.

use std::collections::BTreeMap;
use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::contract::Member;
use cellbus_bus::ids::ShardId;
use cellbus_workflows::autoscale::{Reading, ShardReading};

use crate::Gateway;
use crate::gateway::Result;

/// How long the bus may take to say how much nobody has taken.
const DEPTH_LIMIT: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Readings {
    fresh: Duration,
    shards: BTreeMap<ShardId, (Mono, ShardReading)>,
    /// What nobody had taken from the bus, and when that was.
    ingress: Option<(Mono, u64)>,
    members: Vec<Member>,
    last: Option<Reading>,
}

impl Readings {
    pub(super) fn new(fresh: Duration) -> Self {
        Self { fresh, shards: BTreeMap::new(), ingress: None, members: Vec::new(), last: None }
    }

    /// Asks all cells. Without an answer the last reading stays, and grows old.
    pub(super) async fn read(&mut self, gateway: &Gateway) -> Result<()> {
        let env = &gateway.process().env;
        let depth = env.timeout(DEPTH_LIMIT, gateway.process().bus.ingress_depth());
        let (load, depth) = futures::join!(gateway.read_load(), depth);
        let load = load?;
        let now = env.mono();
        match depth {
            Some(Ok(depth)) => self.ingress = Some((now, depth)),
            unknown => {
                if let Some(Err(error)) = unknown {
                    tracing::debug!(%error, "how much nobody has taken from the bus could not be read");
                }
                self.ingress = self.ingress.filter(|(at, _)| now.since(*at) <= self.fresh);
            }
        }
        self.shards.extend(load.shards.into_iter().map(|(shard, reading)| (shard, (now, reading))));
        self.shards.retain(|_, (at, _)| now.since(*at) <= self.fresh);
        self.members = load.members;
        self.last = Some(Reading {
            at: now,
            cells_active: load.cells_active,
            cells_draining: load.cells_draining,
            in_flight_max: load.in_flight_max,
            in_line: load.in_line,
            ingress: self.ingress.map(|(_, depth)| depth),
            shards: self.shards.values().map(|(_, reading)| reading.clone()).collect(),
        });
        Ok(())
    }

    pub(super) fn last(&self) -> Option<&Reading> {
        self.last.as_ref()
    }
    /// The cells that were asked.
    pub(super) fn members(&self) -> Vec<Member> {
        self.members.clone()
    }
}
