//! How many operations a second the simulated managers answer, durable, with no latency and with a
//! median of 20 ms.
//!
//! Bounded by the flush of the store: each covers whatever waited, so more callers mean more
//! operations a flush.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, JobId, OpNumber};
use cellbus_bus::job::{Labels, Policy, Power, Size, StopMode};
use cellbus_cell::driver::{Driver, Op};
use cellbus_directory::vm::Template;
use cellbus_simulator::managers::{Config, Latency};
use cellbus_simulator::{Fleet, Inventory};
use cellbus_workflows::{Action, CreateSpec};

const MANAGERS: u64 = 500;
const VMS: u32 = 200_000;
/// Enough that no manager's limit on creates is met: what is measured is the work, not the wait.
const CALLERS_WITH_LATENCY: u32 = 8_192;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    for callers in [64, 1_024, 8_192] {
        runtime.block_on(run(callers, Latency::None, cellbus_bus::env::real(runtime.handle().clone())));
    }
    runtime.block_on(run(CALLERS_WITH_LATENCY, Latency::Fast, cellbus_bus::env::real(runtime.handle().clone())));
}

async fn run(callers: u32, latency: Latency, env: Env) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let inventory = Inventory::generate(50_000, MANAGERS).expect("an inventory");
    let config = Config { dir: Some(dir.path().to_owned()), latency, ..Config::new(inventory.clone()) };
    let began = env.mono();
    let fleet = Fleet::open(config.clone(), env.clone()).await.expect("a fleet");
    let opened = env.mono().since(began);
    let mut drivers = Vec::new();
    for manager in &inventory.managers {
        let driver = fleet.driver(manager.id()).expect("it is of the inventory");
        driver.open(Epoch(1)).await.expect("a fresh manager opens");
        drivers.push((driver, manager.hosts.iter().map(|host| host.id.clone()).collect::<Vec<_>>()));
    }
    let drivers = Arc::new(drivers);
    let template = Arc::new(Template {
        image: "debian-12".to_owned(),
        labels: Labels::new(),
        require: Labels::new(),
        policy: Policy::default(),
    });
    let create: Arc<dyn Fn(u32) -> Op + Send + Sync> = Arc::new({
        let drivers = Arc::clone(&drivers);
        move |index| {
            let hosts = &drivers[index as usize % drivers.len()].1;
            let spec = CreateSpec {
                tenant: "bench".parse().expect("a tenant"),
                name: format!("vm-{index}").parse().expect("a name"),
                size: Size { vcpus: 1, memory_mib: 1024, disk_gib: 1 },
                template: Arc::clone(&template),
                power: Power::On,
                host: None,
                snapshots: Vec::new(),
                copy_of: None,
            };
            op(
                index,
                1,
                Action::Create(Arc::new(spec)),
                Some(hosts[index as usize / drivers.len() % hosts.len()].clone()),
            )
        }
    });
    let stop = |index| op(index, 2, Action::Stop(StopMode::Hard), None);
    let created = measure(callers, &env, &drivers, create).await;
    let stopped = measure(callers, &env, &drivers, Arc::new(stop)).await;
    assert_eq!(fleet.vms(), VMS as usize);
    fleet.close().await;
    drop((drivers, fleet));
    let began = env.mono();
    let again = Fleet::open(config, env.clone()).await.expect("the fleet again");
    assert_eq!(again.vms(), VMS as usize);
    println!(
        "latency {latency}, {callers:>5} callers: {created:>7.0} creates/s, {stopped:>7.0} stops/s; opening {opened:.2?}, with {VMS} VMs {:.2?}",
        env.mono().since(began),
    );
    again.close().await;
}

fn op(index: u32, number: u64, action: Action, host: Option<cellbus_bus::ids::HostId>) -> Op {
    Op {
        vm: JobId::derive("bench", "managers", "vm").vm(index),
        number: OpNumber(number),
        action,
        host,
        datastore: None,
    }
}

type Drivers = Arc<Vec<(Arc<dyn Driver>, Vec<cellbus_bus::ids::HostId>)>>;

/// Operations a second when `callers` tasks ask at once, each one VM after another.
async fn measure(callers: u32, env: &Env, drivers: &Drivers, make: Arc<dyn Fn(u32) -> Op + Send + Sync>) -> f64 {
    let next = Arc::new(AtomicU32::new(0));
    let (done, mut ended) = tokio::sync::mpsc::channel(1);
    let began = env.mono();
    for _ in 0..callers {
        let (drivers, make, next, done) = (Arc::clone(drivers), Arc::clone(&make), Arc::clone(&next), done.clone());
        env.spawn("caller", async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= VMS {
                    break;
                }
                let driver = &drivers[index as usize % drivers.len()].0;
                driver.perform(&make(index)).await.expect("it succeeds");
            }
            drop(done);
        });
    }
    drop(done);
    let none: Option<()> = ended.recv().await;
    assert_eq!(none, None, "all callers have ended");
    f64::from(VMS) / env.mono().since(began).as_secs_f64()
}
