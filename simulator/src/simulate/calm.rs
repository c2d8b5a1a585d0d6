//! A cluster that nothing is wrong with: its bus and network are calm, its managers fast. What runs without
//! faults begins with it, and may spoil it later.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::env::Env;
use cellbus_cell::driver::Limits;

use super::bus::SimulatedBus;
use super::cells::{Cells, Shape};
use super::env;
use super::executor::{Executor, Order, WORLD};
use super::history::History;
use super::managers::{Links, Weather};
use super::nemesis::{BUS_CALM, NETWORK_CALM};
use super::network::Network;
use crate::inventory::Inventory;
use crate::managers::{self, Fleet, Latency};

/// See the module. No cell has been started.
pub(super) struct Calm {
    pub(super) executor: Arc<Executor>,
    /// The world's.
    pub(super) env: Env,
    pub(super) bus: SimulatedBus,
    pub(super) network: Arc<Network>,
    pub(super) cells: Arc<Cells>,
}

/// What it is made of.
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) hosts: u64,
    /// That the hosts are spread over.
    pub(super) managers: u64,
    /// Of each manager; `None`: those of a fast one.
    pub(super) limits: Option<Limits>,
    /// A call on a manager takes up to so long, each way.
    pub(super) way_max: Duration,
    /// Whether the bus keeps every entry there ever was.
    pub(super) shadow: bool,
    /// Of the cells; their managers are filled in.
    pub(super) shape: Shape,
}

impl Calm {
    /// # Panics
    /// With more managers than hosts, or none.
    pub(super) fn new(plan: Plan) -> Self {
        let seed = plan.seed;
        let executor = Executor::new(seed, Order::Fifo);
        let env = env::of(&executor, WORLD, seed);
        let history = Arc::new(History::default());
        let bus = SimulatedBus::new(&executor, env.clone(), seed, Arc::clone(&history), None, plan.shadow);
        bus.set_weather(BUS_CALM);
        let network = Network::new(&executor, env.clone(), seed, Arc::clone(&history), None);
        network.set_weather(NETWORK_CALM);
        let inventory =
            Inventory::generate(plan.hosts, plan.managers).expect("at least one host for each of some managers");
        let names = inventory.managers.iter().map(|manager| manager.name.clone()).collect();
        let fleet = managers::Config {
            latency: Latency::Fast,
            seed: Some(seed),
            limits: plan.limits,
            ..managers::Config::new(inventory)
        };
        let fleet = futures::FutureExt::now_or_never(Fleet::open(fleet, env.clone()))
            .expect("a fleet in memory waits for nothing as it opens")
            .expect("a fleet in memory opens whatever happens");
        let links = Links::new(&executor, env.clone(), fleet, seed, Arc::clone(&history), None);
        links.set_weather(Weather { delay_max: plan.way_max, loss: 0.0, late: 0.0 });
        let shape = Shape { managers: names, ..plan.shape };
        let cells = Cells::new(&executor, seed, shape, bus.clone(), Arc::clone(&network), links, history);
        Self { executor, env, bus, network, cells }
    }
}
