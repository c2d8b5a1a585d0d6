//! Faults of simulated managers do what they say, and what must not happen is counted.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, HostId, JobId, ManagerId, OpNumber, VmId};
use cellbus_bus::job::{Size, StopMode};
use cellbus_cell::driver::{Change, Driver, Error, Limits, Op, conformance};
use cellbus_directory::vm::PowerState;
use cellbus_simulator::managers::{self, Config, Fault, Latency, Overcommit, Violations};
use cellbus_simulator::{Fleet, Inventory};
use cellbus_workflows::{Action, CreateSpec};

fn env() -> Env {
    cellbus_bus::env::real(tokio::runtime::Handle::current())
}
fn vm(index: u32) -> VmId {
    JobId::derive("t", "s", "e").vm(index)
}
fn op(index: u32, number: u64, action: Action) -> Op {
    Op { vm: vm(index), number: OpNumber(number), action, host: None, datastore: None }
}
fn create(index: u32, number: u64, host: &HostId, copy_of: Option<PowerState>) -> Op {
    let size = Size { vcpus: 4, memory_mib: 1024, disk_gib: 1 };
    let spec = CreateSpec { size, copy_of, ..conformance::spec(index) };
    Op { host: Some(host.clone()), ..op(index, number, Action::Create(Arc::new(spec))) }
}

struct Setup {
    fleet: Arc<Fleet>,
    managers: Vec<ManagerId>,
    hosts: Vec<Vec<HostId>>,
}
impl Setup {
    async fn of(config: Config) -> Self {
        let managers = config.inventory.managers.iter().map(managers_id).collect();
        let hosts = config.inventory.managers.iter().map(|m| m.hosts.iter().map(|h| h.id.clone()).collect()).collect();
        Self { fleet: Fleet::open(config, env()).await.unwrap(), managers, hosts }
    }
    async fn with(latency: Latency) -> Self {
        Self::of(Config { latency, seed: Some(5), ..Config::new(Inventory::generate(4, 2).unwrap()) }).await
    }
    async fn open(&self, manager: usize, epoch: u64) -> Arc<dyn Driver> {
        let driver = self.fleet.driver(self.managers[manager]).unwrap();
        driver.open(Epoch(epoch)).await.unwrap();
        driver
    }
    fn faults(&self, manager: usize) -> managers::Faults {
        self.fleet.faults(self.managers[manager]).unwrap()
    }
}
fn managers_id(spec: &cellbus_simulator::ManagerSpec) -> ManagerId {
    spec.id()
}

#[tokio::test]
async fn what_a_zombie_asks_late_is_refused_and_counted() {
    let it = Setup::with(Latency::None).await;
    let zombie = it.open(0, 1).await;
    zombie.perform(&create(0, 1, &it.hosts[0][0], None)).await.unwrap();
    it.faults(0).hang();
    let delete = op(0, 2, Action::Delete);
    assert!(env().timeout(Duration::from_millis(20), zombie.perform(&delete)).await.is_none(), "it hangs");
    assert!(env().timeout(Duration::from_millis(20), zombie.inventory()).await.is_none(), "readings hang too");
    let next = it.fleet.driver(it.managers[0]).unwrap();
    let (opened, ()) = futures::join!(next.open(Epoch(2)), async { it.faults(0).heal() });
    opened.unwrap();
    // Either the delete was done before the newer session opened, or never.
    let there = next.inspect(vm(0)).await.unwrap().is_some();
    assert_eq!(zombie.perform(&op(0, 3, Action::Delete)).await, Err(Error::Revoked));
    assert!(it.fleet.violations().revoked_operations >= 1);
    assert_eq!(next.inspect(vm(0)).await.unwrap().is_some(), there);
}

#[tokio::test]
async fn what_was_asked_while_it_hung_is_done_although_nobody_waits() {
    let it = Setup::with(Latency::None).await;
    let driver = it.open(0, 1).await;
    it.faults(0).hang();
    assert!(
        env().timeout(Duration::from_millis(5), driver.perform(&create(0, 1, &it.hosts[0][0], None))).await.is_none()
    );
    it.faults(0).heal();
    let heard =
        env().timeout(Duration::from_secs(20), driver.changes()).await.expect("its owner is told to look").unwrap();
    assert_eq!(heard, [Change::Vm(vm(0))]);
    assert!(driver.inspect(vm(0)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_vm_made_on_two_managers_is_counted_unless_it_is_a_migrate() {
    let it = Setup::with(Latency::None).await;
    let (one, two) = (it.open(0, 1).await, it.open(1, 1).await);
    one.perform(&create(0, 1, &it.hosts[0][0], None)).await.unwrap();
    two.perform(&create(0, 2, &it.hosts[1][0], Some(PowerState::Running))).await.unwrap();
    assert_eq!(it.fleet.violations(), Violations::default(), "the copy of a migrate is none");
    assert_eq!(
        it.fleet.truth().doubles(),
        [(vm(0), {
            let mut both = it.managers.clone();
            both.sort();
            both
        })]
    );
    one.perform(&op(0, 3, Action::Delete)).await.unwrap();
    assert_eq!(it.fleet.truth().doubles(), []);
    one.perform(&create(0, 4, &it.hosts[0][0], None)).await.unwrap();
    assert_eq!(it.fleet.violations().double_creates, 1);
}

#[tokio::test]
async fn late_and_greedy_operations_are_counted() {
    let it = Setup::with(Latency::None).await;
    let driver = it.open(0, 1).await;
    for index in 0..16 {
        driver.perform(&create(index, 5, &it.hosts[0][0], None)).await.unwrap();
    }
    assert!(matches!(driver.perform(&create(16, 1, &it.hosts[0][0], None)).await, Err(Error::NoRoom { .. })));
    assert!(driver.perform(&op(0, 4, Action::Delete)).await.is_err());
    let seen = it.fleet.violations();
    assert_eq!((seen.overfill_attempts, seen.superseded_operations, seen.overfilled_hosts), (1, 1, 0));
    assert!(it.faults(0).move_vm(vm(3), &it.hosts[0][1]));
    assert!(it.faults(0).create_foreign(&it.hosts[0][0], Size { vcpus: 40, memory_mib: 1, disk_gib: 1 }));
    assert_eq!(it.fleet.violations().overfilled_hosts, 1, "by somebody else's VM");
    assert_eq!(driver.inventory().await.unwrap().foreign_vms, 1);
    assert_eq!(it.fleet.truth().overfilled, [(it.managers[0], it.hosts[0][0].clone())]);
}

#[tokio::test]
async fn over_commit_is_per_manager() {
    let inventory = Inventory::generate(2, 2).unwrap();
    let twice = [(inventory.managers[1].name.clone(), Overcommit { vcpus: 2.0, memory: 1.0 })].into();
    let it = Setup::of(Config { latency: Latency::None, overcommit_of: twice, ..Config::new(inventory) }).await;
    for (manager, room) in [(0, 16), (1, 32)] {
        let driver = it.open(manager, 1).await;
        for index in 0..room {
            driver.perform(&create(index, 1, &it.hosts[manager][0], Some(PowerState::Running))).await.unwrap();
        }
        assert!(matches!(driver.perform(&create(99, 1, &it.hosts[manager][0], None)).await, Err(Error::NoRoom { .. })));
    }
}

#[tokio::test]
async fn more_than_the_limit_of_a_kind_is_told_to_come_again() {
    let limits = Limits { creates_max: 2, operations_max: 3, ..Latency::Fast.limits() };
    let it = Setup::of(Config { limits: Some(limits), ..Config::new(Inventory::generate(1, 1).unwrap()) }).await;
    let driver = it.open(0, 1).await;
    driver.perform(&create(9, 1, &it.hosts[0][0], None)).await.unwrap();
    it.faults(0).slow(Duration::from_secs(1));
    let ops =
        [create(0, 1, &it.hosts[0][0], None), create(1, 1, &it.hosts[0][0], None), create(2, 1, &it.hosts[0][0], None)];
    let answers = futures::future::join_all(ops.iter().map(|op| driver.perform(op))).await;
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Err(Error::Busy { .. }))).count(), 1, "{answers:?}");
    it.faults(0).heal();
    driver.perform(&create(2, 1, &it.hosts[0][0], None)).await.unwrap();
}

#[tokio::test]
async fn one_vm_has_one_task() {
    let it = Setup::with(Latency::Fast).await;
    let driver = it.open(0, 1).await;
    driver.perform(&create(0, 1, &it.hosts[0][0], None)).await.unwrap();
    it.faults(0).slow(Duration::from_secs(1));
    let (stop, start, late) =
        (op(0, 3, Action::Stop(StopMode::Hard)), op(0, 4, Action::Start), op(0, 2, Action::Start));
    let (first, second, third) = futures::join!(driver.perform(&stop), driver.perform(&start), driver.perform(&late));
    assert_eq!(first.unwrap().unwrap().power, PowerState::Stopped);
    assert!(matches!(second, Err(Error::Busy { .. })), "{second:?}");
    assert_eq!(third, Err(Error::Superseded { asked: OpNumber(2), last: OpNumber(3) }));
}

#[tokio::test]
async fn a_lasting_failure_is_given_again_and_can_be_undone() {
    let it = Setup::with(Latency::None).await;
    let driver = it.open(0, 1).await;
    let (mut whole, mut half) = (0, 0);
    for index in 0..32 {
        it.faults(0).next(Fault::Permanent, 1);
        let create = create(index, 1, &it.hosts[0][0], None);
        assert!(matches!(driver.perform(&create).await, Err(Error::Permanent { .. })));
        if let Some(left) = driver.inspect(vm(index)).await.unwrap() {
            half += 1;
            assert_eq!(left.facts.power, PowerState::Stopped);
            assert!(matches!(driver.perform(&create).await, Err(Error::Permanent { .. })), "the number gives it again");
        } else {
            whole += 1;
        }
        assert_eq!(driver.perform(&op(index, 2, Action::Delete)).await, Ok(None));
    }
    assert!(whole > 0 && half > 0, "{whole} {half}");
    assert_eq!(it.fleet.vms(), 0);
}

#[tokio::test]
async fn a_lost_host_takes_its_vms_along() {
    let it = Setup::with(Latency::None).await;
    let driver = it.open(0, 1).await;
    let (dies, stays) = (&it.hosts[0][0], &it.hosts[0][1]);
    for index in 0..3 {
        driver.perform(&create(index, 1, if index == 2 { stays } else { dies }, None)).await.unwrap();
    }
    assert!(it.faults(0).lose_host(dies));
    let heard = driver.changes().await.unwrap();
    assert!(
        heard.contains(&Change::Hosts) && heard.contains(&Change::Vm(vm(0))) && !heard.contains(&Change::Vm(vm(2))),
        "{heard:?}"
    );
    let now = driver.inventory().await.unwrap();
    assert_eq!((now.hosts.len(), now.vms.len()), (1, 1));
    assert!(matches!(driver.perform(&create(5, 1, dies, None)).await, Err(Error::NoRoom { .. })));
    assert_eq!(driver.perform(&op(0, 2, Action::Start)).await, Err(Error::NotFound));
    assert!(it.faults(0).restore_host(dies));
    driver.perform(&create(5, 1, dies, None)).await.unwrap();
    assert!(it.faults(0).maintain_host(stays));
    assert!(matches!(driver.perform(&create(6, 1, stays, None)).await, Err(Error::NoRoom { .. })));
    assert_eq!(driver.inventory().await.unwrap().vms.len(), 2, "maintenance keeps what is there");
}

#[tokio::test]
async fn rates_of_errors_come_from_the_seed() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let it = Setup::with(Latency::None).await;
        let driver = it.open(0, 1).await;
        driver.perform(&create(0, 1, &it.hosts[0][0], None)).await.unwrap();
        it.faults(0).rate(Fault::Transient, 0.3);
        it.faults(0).rate(Fault::AnswerLost, 0.2);
        let mut answers = Vec::new();
        for number in 2..202 {
            answers.push(driver.perform(&op(0, number, Action::Restart(StopMode::Hard))).await);
        }
        let lost = answers.iter().filter(|answer| matches!(answer, Err(Error::Unreachable { .. }))).count();
        let failed = answers.iter().filter(|answer| matches!(answer, Err(Error::Transient { .. }))).count();
        assert!((30..90).contains(&failed) && (10..60).contains(&lost), "{failed} {lost}");
        let done = it.fleet.truth().restarts[&(it.managers[0], vm(0))];
        assert_eq!(done as usize, 200 - failed, "lost answers are of work that was done");
        runs.push(answers);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn one_directory_serves_one_fleet() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { dir: Some(dir.path().to_owned()), ..Config::new(Inventory::generate(2, 1).unwrap()) };
    let first = Fleet::open(config.clone(), env()).await.unwrap();
    let refused = Fleet::open(config.clone(), env()).await.unwrap_err();
    assert!(matches!(refused, managers::Error::InUse { .. }), "{refused}");
    first.close().await;
    let driver = first.driver(config.inventory.managers[0].id()).unwrap();
    assert!(matches!(driver.open(Epoch(1)).await, Err(Error::Unreachable { .. })), "nothing durable, nothing answered");
    Fleet::open(config, env()).await.unwrap();
}

#[tokio::test]
async fn foreign_vms_and_hosts_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        dir: Some(dir.path().to_owned()),
        latency: Latency::None,
        ..Config::new(Inventory::generate(2, 1).unwrap())
    };
    let it = Setup::of(config.clone()).await;
    let driver = it.open(0, 1).await;
    driver.perform(&create(0, 1, &it.hosts[0][1], None)).await.unwrap();
    assert!(it.faults(0).lose_host(&it.hosts[0][0]));
    assert!(it.faults(0).create_foreign(&it.hosts[0][1], Size { vcpus: 60, memory_mib: 1, disk_gib: 1 }));
    it.fleet.close().await;
    let it = Setup::of(config).await;
    let driver = it.open(0, 2).await;
    let held = driver.inventory().await.unwrap();
    assert_eq!((held.hosts.len(), held.vms.len(), held.foreign_vms), (1, 1, 1));
    assert!(
        matches!(driver.perform(&create(1, 1, &it.hosts[0][1], None)).await, Err(Error::NoRoom { .. })),
        "its room is taken still"
    );
}

#[tokio::test]
async fn a_host_without_an_answer_keeps_its_vms_and_one_that_is_off_gives_them_up() {
    let it = Setup::with(Latency::None).await;
    let driver = it.open(0, 1).await;
    let (dies, other) = (&it.hosts[0][0], &it.hosts[0][1]);
    for index in 0..2 {
        driver.perform(&create(index, 1, dies, None)).await.unwrap();
    }
    assert!(it.faults(0).silence_host(dies));
    assert!(driver.changes().await.unwrap().contains(&Change::Hosts));
    assert_eq!(driver.dead_hosts().await.unwrap(), [], "nobody knows");
    assert!(driver.inventory().await.unwrap().hosts.iter().any(|host| host.id == *dies && !host.usable));
    let move_it = |number| op(0, number, Action::Relocate(other.clone()));
    assert!(matches!(driver.perform(&move_it(2)).await, Err(Error::Transient { .. })), "it may run there");
    assert!(matches!(driver.perform(&op(1, 2, Action::Delete)).await, Err(Error::Transient { .. })));
    assert!(matches!(driver.perform(&create(2, 1, dies, None)).await, Err(Error::NoRoom { .. })));

    assert!(it.faults(0).fence_host(dies));
    assert_eq!(driver.dead_hosts().await.unwrap(), std::slice::from_ref(dies));
    assert!(matches!(driver.perform(&op(0, 3, Action::Restart(StopMode::Hard))).await, Err(Error::Invalid { .. })));
    let moved = driver.perform(&move_it(3)).await.unwrap().unwrap();
    assert_eq!((&moved.host, moved.power), (other, PowerState::Stopped), "what ran there runs no more");
    let started = driver.perform(&op(0, 4, Action::Start)).await.unwrap().unwrap();
    assert_eq!(started.power, PowerState::Running);
    // Whoever comes back finds the one that stayed off.
    assert!(it.faults(0).restore_host(dies));
    assert_eq!(driver.dead_hosts().await.unwrap(), []);
    assert!(driver.changes().await.unwrap().contains(&Change::Vm(vm(1))));
    let stayed = driver.inspect(vm(1)).await.unwrap().unwrap().facts;
    assert_eq!((&stayed.host, stayed.power), (dies, PowerState::Stopped));
}
