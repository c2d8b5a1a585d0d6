//! The simulated drivers keep the promises of the driver trait: with and without latency, in this
//! process and over HTTP.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, ManagerId, VmId};
use cellbus_bus::job::Size;
use cellbus_cell::driver::{Driver, Error, FencedHost, conformance};
use cellbus_directory::vm::PowerState;
use cellbus_simulator::managers::{Config, Fault, Faults, Latency};
use cellbus_simulator::remote::{RemoteFleet, Service};
use cellbus_simulator::{Fleet, Inventory};
use tokio_util::sync::CancellationToken;

fn env() -> Env {
    cellbus_bus::env::real(tokio::runtime::Handle::current())
}

struct Rig {
    config: Config,
    manager: ManagerId,
    fleet: Mutex<Arc<Fleet>>,
    /// Where the fleet is served, if it is, and what stops that.
    served: Mutex<Option<(String, CancellationToken)>>,
    _dir: tempfile::TempDir,
}

async fn rig(latency: Latency) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        dir: Some(dir.path().join("managers")),
        latency,
        seed: Some(1),
        ..Config::new(Inventory::generate(3, 1).unwrap())
    };
    let fleet = Fleet::open(config.clone(), env()).await.unwrap();
    let manager = config.inventory.managers[0].id();
    Rig { config, manager, fleet: Mutex::new(fleet), served: Mutex::default(), _dir: dir }
}

impl Rig {
    fn fleet(&self) -> Arc<Fleet> {
        Arc::clone(&self.fleet.lock().unwrap())
    }
    async fn serve(&self) {
        let service = Service::bind(self.fleet(), env(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (url, stop) = (format!("http://{}", service.address().unwrap()), CancellationToken::new());
        *self.served.lock().unwrap() = Some((url, stop.clone()));
        env().spawn("simulated managers", async move { service.run(stop).await.unwrap() });
    }
}

async fn served_rig(latency: Latency) -> Rig {
    let rig = rig(latency).await;
    rig.serve().await;
    rig
}

#[async_trait]
impl conformance::Rig for Rig {
    fn env(&self) -> Env {
        env()
    }
    async fn connect(&self) -> Arc<dyn Driver> {
        let url = self.served.lock().unwrap().as_ref().map(|(url, _)| url.clone());
        match url {
            Some(url) => RemoteFleet::connect(&url, env()).await.unwrap().driver(self.manager).unwrap(),
            None => self.fleet().driver(self.manager).unwrap(),
        }
    }
    fn faults(&self) -> Option<Arc<dyn conformance::Faults>> {
        let fleet = self.fleet();
        Some(Arc::new(Hooks { faults: fleet.faults(self.manager).unwrap(), fleet, manager: self.manager }))
    }
    async fn restart(&self) -> bool {
        self.fleet().close().await;
        let again = Fleet::open(self.config.clone(), env()).await.unwrap();
        *self.fleet.lock().unwrap() = again;
        let served = self.served.lock().unwrap().take();
        if let Some((_, stop)) = served {
            stop.cancel();
            self.serve().await;
        }
        true
    }
    async fn stranger(&self) -> bool {
        let host = self.config.inventory.managers[0].hosts[0].id.clone();
        let faults = self.fleet().faults(self.manager).unwrap();
        faults.create_foreign(&host, Size { vcpus: 1, memory_mib: 1024, disk_gib: 8 })
    }
}

struct Hooks {
    fleet: Arc<Fleet>,
    faults: Faults,
    manager: ManagerId,
}

#[async_trait]
impl conformance::Faults for Hooks {
    async fn slow(&self, by: Duration) {
        self.faults.slow(by);
    }
    async fn lose_next_answer(&self) {
        self.faults.next(Fault::AnswerLost, 1);
    }
    async fn fail_next(&self) {
        self.faults.next(Fault::Transient, 1);
    }
    async fn down(&self) {
        self.faults.down();
    }
    async fn heal(&self) {
        self.faults.heal();
    }
    async fn set_power(&self, vm: VmId, power: PowerState) {
        assert!(self.faults.set_power(vm, power));
    }
    async fn delete_vm(&self, vm: VmId) {
        assert!(self.faults.delete_vm(vm));
    }
    async fn restarts(&self, vm: VmId) -> u32 {
        self.fleet.truth().restarts.get(&(self.manager, vm)).copied().unwrap_or(0)
    }
}

mod without_latency {
    use super::*;
    cellbus_cell::driver_conformance!(rig(Latency::None).await);
}

mod with_latency {
    use super::*;
    cellbus_cell::driver_conformance!(rig(Latency::Fast).await);
}

mod over_http {
    use super::*;
    cellbus_cell::driver_conformance!(served_rig(Latency::Fast).await);

    #[tokio::test]
    async fn a_server_that_is_gone_is_unreachable() {
        let rig = served_rig(Latency::None).await;
        let driver = conformance::Rig::connect(&rig).await;
        driver.open(Epoch(1)).await.unwrap();
        let (url, stop) = rig.served.lock().unwrap().take().unwrap();
        let (heard, ()) = futures::join!(driver.changes(), async { stop.cancel() });
        assert!(matches!(heard, Err(Error::Unreachable { .. })), "{heard:?}");
        assert!(matches!(driver.open(Epoch(1)).await, Err(Error::Unreachable { .. })));
        let refused = RemoteFleet::connect(&url, env()).await.unwrap_err();
        assert!(refused.retryable(), "{refused}");
        assert!(!RemoteFleet::connect("ftp://x", env()).await.unwrap_err().retryable());
    }

    #[tokio::test]
    async fn nonsense_is_refused_and_not_held() {
        let rig = served_rig(Latency::None).await;
        let (url, _) = rig.served.lock().unwrap().clone().unwrap();
        cellbus_cell::security::use_ring();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let perform = format!("{url}/sim/v1/perform");
        let many = format!("[{}]", vec!["{}"; 100_000].join(","));
        for body in ["", "{", "{}", "[{\"session\":1}]", &many, &format!("\"{}\"", "x".repeat(20 << 20))] {
            let answer =
                http.post(&perform).header("content-type", "application/json").body(body.to_owned()).send().await;
            // A body that is too large may be cut off before it was sent.
            let Ok(answer) = answer else { continue };
            assert_eq!(answer.status(), 400, "{}", &body[..body.len().min(40)]);
            assert!(answer.text().await.unwrap().contains("Invalid"));
        }
        let nobody = format!("{url}/sim/v1/managers/{}/tasks", VmId::from_uuid(uuid::Uuid::nil()));
        let answer =
            http.post(nobody).header("content-type", "application/json").body("{\"session\":1}").send().await.unwrap();
        assert_eq!(answer.status(), 400);
        let status = http.get(format!("{url}/sim/v1/status")).send().await.unwrap().text().await.unwrap();
        assert!(status.contains("\"vms\":0"), "{status}");
    }
}

/// In this process and over the network: what is off without anybody's knowing it is dead once somebody has said so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_dead_as_somebody_says_who_has_seen_it() {
    for rig in [rig(Latency::None).await, served_rig(Latency::None).await] {
        let driver = conformance::Rig::connect(&rig).await;
        let host = rig.config.inventory.managers[0].hosts[0].id.clone();
        let faults = rig.fleet().faults(rig.manager).unwrap();
        let word = || vec![FencedHost { id: host.clone(), vms: Vec::new() }];
        driver.open(Epoch(1)).await.unwrap();
        assert!(matches!(driver.may_be_fenced(&host).await, Err(Error::Invalid { .. })), "it answers");
        // Of one that runs nobody is believed.
        assert!(faults.silence_host(&host));
        driver.may_be_fenced(&host).await.unwrap();
        driver.fenced(word()).await.unwrap();
        assert_eq!(driver.dead_hosts().await.unwrap(), []);
        assert!(faults.cut_power_of_host(&host));
        assert_eq!(driver.dead_hosts().await.unwrap(), [], "nobody has said so since");
        driver.fenced(word()).await.unwrap();
        assert_eq!(driver.dead_hosts().await.unwrap(), std::slice::from_ref(&host));
        // What an owner before says is not heard.
        let newer = conformance::Rig::connect(&rig).await;
        newer.open(Epoch(2)).await.unwrap();
        assert_eq!(driver.fenced(word()).await, Err(Error::Revoked));
    }
}
