//! The NATS transport keeps the contract, on a real server.
#![cfg(feature = "nats")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::conformance::Subject;
use cellbus_bus::env::real;
use cellbus_bus::nats::testing::NatsServer;
use cellbus_bus::nats::{Config, Nats};
use cellbus_bus::{Bus, Env};
use tokio::runtime::Handle;

struct Fresh {
    config: Config,
    env: Env,
    bus: Arc<Nats>,
}

async fn fresh_with(change: impl FnOnce(&mut Config)) -> Fresh {
    let mut config = Config { prefix: NatsServer::prefix(), ..NatsServer::shared().config() };
    // The server sets aside what a stream may take, and many tests share it.
    config.limits.events_bytes_max = 1 << 20;
    change(&mut config);
    let env = real(Handle::current());
    let bus = Nats::open(config.clone(), env.clone()).await.expect("the bus opens");
    Fresh { config, env, bus }
}

#[async_trait]
impl Subject for Fresh {
    fn bus(&self) -> Arc<dyn Bus> {
        self.bus.clone()
    }
    fn env(&self) -> Env {
        self.env.clone()
    }
    async fn reopen(&mut self) {
        self.bus.close().await;
        self.bus = Nats::open(self.config.clone(), self.env.clone()).await.expect("the bus opens again");
    }
}

mod as_it_comes {
    async fn make() -> super::Fresh {
        super::fresh_with(|_| {}).await
    }
    cellbus_bus::bus_conformance!(make, cellbus_bus::nats::testing::left_out);
}

/// The same with one lane, every trim carried out at once, and a server that soon gives a dead
/// cell's messages to others.
mod one_lane_trimmed_at_once {
    async fn make() -> super::Fresh {
        super::fresh_with(|config| {
            config.lanes = 1;
            config.trim_every = super::Duration::ZERO;
            // Above what a dropped message waits for, or it would come from both.
            config.redeliver_after = super::Duration::from_secs(2);
        })
        .await
    }
    cellbus_bus::bus_conformance!(make, cellbus_bus::nats::testing::left_out);
}
