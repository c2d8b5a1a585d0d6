//! The embedded transport keeps the contract.

use std::sync::Arc;

use async_trait::async_trait;
use cellbus_bus::conformance::Subject;
use cellbus_bus::embedded::{Config, Embedded};
use cellbus_bus::env::real;
use cellbus_bus::{Bus, Env};
use tokio::runtime::Handle;

struct Fresh {
    config: Config,
    env: Env,
    bus: Arc<Embedded>,
    _dir: tempfile::TempDir,
}

async fn fresh_with(change: impl FnOnce(&mut Config)) -> Fresh {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = Config::new(dir.path().join("data"));
    config.free_bytes_min = 1 << 20;
    change(&mut config);
    let env = real(Handle::current());
    let bus = Embedded::open(config.clone(), env.clone()).expect("the store opens");
    Fresh { config, env, bus, _dir: dir }
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
        self.bus = Embedded::open(self.config.clone(), self.env.clone()).expect("the store opens");
    }
}

mod as_it_comes {
    async fn make() -> super::Fresh {
        super::fresh_with(|_| {}).await
    }
    cellbus_bus::bus_conformance!(make);
}

/// The same with nothing held in memory and segments so small that every test rolls and cleans.
mod from_disk {
    async fn make() -> super::Fresh {
        super::fresh_with(|config| {
            config.tail_bytes = 0;
            config.segment_bytes = 4096;
        })
        .await
    }
    cellbus_bus::bus_conformance!(make);
}
