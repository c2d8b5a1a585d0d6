//! The simulated bus keeps the contract, in virtual time.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use cellbus_bus::Bus;
use cellbus_bus::conformance::{self, PROMISES, Subject};

use super::super::env;
use super::super::executor::{Order, Stopped, WORLD};
use super::*;

struct Fresh {
    bus: SimulatedBus,
    env: Env,
}

#[async_trait]
impl Subject for Fresh {
    fn bus(&self) -> Arc<dyn Bus> {
        self.bus.client(WORLD)
    }
    fn env(&self) -> Env {
        self.env.clone()
    }
    async fn reopen(&mut self) {
        self.bus.stop();
        self.bus.start();
    }
}

#[test]
fn every_promise_of_the_contract_is_kept() {
    for (number, (name, _)) in PROMISES.iter().enumerate() {
        for delay_max in [Duration::ZERO, Duration::from_millis(2)] {
            let executor = Executor::new(number as u64, Order::Random);
            let env = env::of(&executor, WORLD, 1);
            let bus = SimulatedBus::new(&executor, env.clone(), 1, Arc::default(), None, false);
            bus.state().checks.unread = true;
            bus.set_weather(Weather { delay_max, ..Weather::default() });
            let mut fresh = Fresh { bus, env };
            let kept = Arc::new(AtomicBool::new(false));
            let (checked, name) = (Arc::clone(&kept), *name);
            fresh.env.clone().spawn("conformance", async move {
                conformance::check(name, &mut fresh).await;
                checked.store(true, Ordering::Relaxed);
            });
            let stopped = executor.run(|| kept.load(Ordering::Relaxed));
            assert_eq!((stopped, executor.take_panics()), (Stopped::Done, Vec::new()), "{name}");
            executor.clear();
        }
    }
}
