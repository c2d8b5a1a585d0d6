//! The Kafka transport keeps the contract, on a real broker; on three; and with many tenants.
#![cfg(feature = "kafka")]

use std::sync::Arc;

use async_trait::async_trait;
use cellbus_bus::conformance::Subject;
use cellbus_bus::env::real;
use cellbus_bus::kafka::testing::KafkaServer;
use cellbus_bus::kafka::{Config, Kafka};
use cellbus_bus::{Bus, Env};
use tokio::runtime::Handle;

#[path = "kafka/replicas.rs"]
mod replicas;
#[path = "kafka/tenants.rs"]
mod tenants;

struct Fresh {
    config: Config,
    env: Env,
    bus: Arc<Kafka>,
}

#[async_trait]
impl Subject for Fresh {
    fn bus(&self) -> Arc<dyn Bus> {
        self.bus.clone()
    }
    fn env(&self) -> Env {
        self.env.clone()
    }
    /// Each is a partition of four topics, and one small broker has those of all tests.
    fn shards(&self) -> u16 {
        self.config.shards
    }
    async fn reopen(&mut self) {
        self.bus.close().await;
        self.bus = Kafka::open(self.config.clone(), self.env.clone()).await.expect("the bus opens again");
    }
}

mod as_it_comes {
    use super::*;

    async fn make() -> Fresh {
        let config = Config { prefix: KafkaServer::prefix(), ..KafkaServer::shared().config() };
        let env = real(Handle::current());
        let bus = Kafka::open(config.clone(), env.clone()).await.expect("the bus opens");
        Fresh { config, env, bus }
    }
    cellbus_bus::bus_conformance!(make, cellbus_bus::kafka::testing::left_out);
}
