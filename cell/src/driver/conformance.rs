//! What every [`Driver`] must pass, whatever manager is behind it.
//!
//! A driver's tests make a [`Rig`] and call [`crate::driver_conformance!`], which turns each case
//! into a test of its own. A case gets a fresh manager with at least two hosts of at least 8 vCPUs,
//! 16 GiB and 1 TiB. Cases that need a fault, or a look past the driver, pass without having tested
//! anything where the rig has no [`Faults`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, HostId, JobId, OpNumber, ShortName, VmId};
use cellbus_bus::job::{Labels, Policy, Power, Size, StopMode};
use cellbus_directory::VmFacts;
use cellbus_directory::vm::{PowerState, Template};
use cellbus_workflows::{Action, CreateSpec};
use futures::future::join_all;

use super::{Change, Driver, Error, Op};

mod adoption;

pub use adoption::{adopting_never_makes_a_vm, an_adoption_is_found_again, what_others_made_is_listed_and_adopted};

/// A manager to be tested.
#[async_trait]
pub trait Rig: Send + Sync {
    /// Of the driver.
    fn env(&self) -> Env;
    /// A new connection to the manager, not yet opened.
    async fn connect(&self) -> Arc<dyn Driver>;
    /// Means to make it fail; `None` where there are none.
    fn faults(&self) -> Option<Arc<dyn Faults>>;
    /// Stops the manager and starts it again over what it had stored. `false`: cannot be done.
    async fn restart(&self) -> bool;
    /// Somebody makes a VM there that is not Cellbus's. `false`: cannot be done, or the driver has no adoption.
    async fn stranger(&self) -> bool {
        false
    }
}

/// Means to make a manager fail.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Each operation takes this much longer from now on.
    async fn slow(&self, by: Duration);
    /// The next operation is done, and its answer is lost.
    async fn lose_next_answer(&self);
    /// The next operation fails in a way that passes.
    async fn fail_next(&self);
    /// The manager cannot be reached.
    async fn down(&self);
    /// Ends all of these.
    async fn heal(&self);
    /// Somebody else changes the VM's power.
    async fn set_power(&self, vm: VmId, power: PowerState);
    /// Somebody else deletes the VM.
    async fn delete_vm(&self, vm: VmId);
    /// How often the VM was rebooted.
    async fn restarts(&self, vm: VmId) -> u32;
}

/// Makes a test of each case: `driver_conformance!(make_rig().await);`. A driver that cannot have a case
/// names it, and says why beside it: `driver_conformance!(Some(make_rig().await), left_out: [a_case]);`. All others run,
/// also those that the suite gets later. `None` for a rig: what it needs is not set up, which was said.
#[macro_export]
macro_rules! driver_conformance {
    ($rig:expr) => {
        $crate::driver_conformance!(Some($rig), left_out: []);
    };
    ($rig:expr, left_out: $left:tt) => {
        $crate::driver_conformance!(@each $rig, $left;
            nothing_is_done_before_open, a_newer_session_revokes_the_older, what_is_made_is_there,
            a_number_is_done_once, lower_numbers_are_refused, a_delete_leaves_a_tombstone,
            a_delete_of_nothing_leaves_a_tombstone, callers_of_one_number_share_its_end, a_dropped_call_is_found_again,
            power_follows_the_rules, a_restart_happens_once_a_number, snapshots_are_kept_with_the_vm,
            disks_only_grow, a_vm_moves_between_hosts, a_full_host_takes_no_more, hosts_that_are_not_there_take_nothing,
            a_copy_brings_its_snapshots, the_id_belongs_to_one_vm, what_is_not_there_is_not_found,
            many_vms_are_made_at_once, running_tasks_outlive_their_session, a_lost_answer_is_found_again,
            a_passing_failure_leaves_nothing, a_manager_that_is_down_says_nothing, changes_by_others_are_heard,
            a_revoked_listener_is_told, what_was_answered_outlives_a_restart,
            what_others_made_is_listed_and_adopted, an_adoption_is_found_again, adopting_never_makes_a_vm,
        );
    };
    (@each $rig:expr, $left:tt; $($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                if $crate::driver_conformance!(@names $left).contains(&stringify!($case)) {
                    eprintln!("LEFT OUT: this driver does not have {}", stringify!($case));
                    return;
                }
                let Some(rig) = $rig else { return };
                $crate::driver::conformance::$case(&rig).await;
            }
        )*
    };
    (@names [$($case:ident),* $(,)?]) => {{
        // A name that the suite does not have is an error.
        $(let _ = $crate::driver::conformance::$case;)*
        let names: &[&str] = &[$(stringify!($case)),*];
        names
    }};
}

const SOON: Duration = Duration::from_secs(20);
/// Long enough for a look at the running tasks on a machine that is busy with other tests.
const SLOW: Duration = Duration::from_secs(2);
const SMALL: Size = Size { vcpus: 2, memory_mib: 2048, disk_gib: 10 };

fn vm(index: u32) -> VmId {
    JobId::derive("conformance", "driver", "vm").vm(index)
}

/// What a test of a driver creates: `vm-<index>` of the tenant `acme`, small, in two groups.
///
/// # Panics
/// Never: its names are names.
#[must_use]
pub fn spec(index: u32) -> CreateSpec {
    let policy = Policy { affinity: Some(short("together")), anti_affinity: Some(short("apart")), ..Policy::default() };
    CreateSpec {
        tenant: "acme".parse().expect("a tenant"),
        name: format!("vm-{index}").parse().expect("a VM name"),
        size: SMALL,
        template: Arc::new(Template {
            image: "debian-12".to_owned(),
            labels: Labels::new(),
            require: Labels::new(),
            policy,
        }),
        power: Power::On,
        host: None,
        snapshots: Vec::new(),
        copy_of: None,
    }
}

fn short(name: &str) -> ShortName {
    name.parse().expect("a short name")
}
/// An operation with no host.
#[must_use]
pub fn op(vm: VmId, number: u64, action: Action) -> Op {
    Op { vm, number: OpNumber(number), action, host: None, datastore: None }
}
fn create(index: u32, number: u64, host: &HostId) -> Op {
    create_as(index, number, host, spec(index))
}
fn create_as(index: u32, number: u64, host: &HostId, spec: CreateSpec) -> Op {
    Op { host: Some(host.clone()), ..op(vm(index), number, Action::Create(Arc::new(spec))) }
}

/// A driver that was opened, and the names of its hosts.
struct Opened {
    driver: Arc<dyn Driver>,
    hosts: Vec<HostId>,
}

impl Opened {
    async fn by(rig: &dyn Rig, epoch: u64) -> Self {
        let driver = rig.connect().await;
        driver.open(Epoch(epoch)).await.expect("a newer epoch opens");
        let hosts = driver.inventory().await.expect("an opened manager has an inventory").hosts;
        assert!(hosts.len() >= 2 && hosts.iter().all(|host| host.usable), "a case needs two hosts: {hosts:?}");
        Self { driver, hosts: hosts.into_iter().map(|host| host.id).collect() }
    }
    fn host(&self) -> &HostId {
        &self.hosts[0]
    }
    async fn perform(&self, op: &Op) -> Result<Option<VmFacts>, Error> {
        self.driver.perform(op).await
    }
    /// An operation that must leave the VM there.
    async fn done(&self, op: &Op) -> VmFacts {
        self.perform(op)
            .await
            .unwrap_or_else(|error| panic!("{op:?}: {error}"))
            .unwrap_or_else(|| panic!("{op:?} left no VM"))
    }
    async fn made(&self, index: u32) -> VmFacts {
        self.done(&create(index, 1, self.host())).await
    }
    async fn there(&self, vm: VmId) -> Option<super::HeldVm> {
        self.driver.inspect(vm).await.expect("inspect")
    }
    async fn facts(&self, vm: VmId) -> VmFacts {
        self.there(vm).await.expect("the VM is there").facts
    }
    async fn count(&self) -> usize {
        self.driver.inventory().await.expect("inventory").vms.len()
    }
}

/// No operation changes anything before `open`.
pub async fn nothing_is_done_before_open(rig: &dyn Rig) {
    let host = Opened::by(rig, 1).await.host().clone();
    let unopened = rig.connect().await;
    assert_eq!(unopened.perform(&create(0, 1, &host)).await, Err(Error::Revoked));
    assert_eq!(Opened::by(rig, 2).await.count().await, 0);
}

/// After a newer `open`, an older session changes nothing; an older epoch does not open.
pub async fn a_newer_session_revokes_the_older(rig: &dyn Rig) {
    let old = Opened::by(rig, 3).await;
    old.made(0).await;
    old.driver.open(Epoch(3)).await.expect("the same epoch opens again");
    let new = Opened::by(rig, 4).await;
    if new.driver.limits().revokes {
        assert_eq!(old.perform(&op(vm(0), 2, Action::Delete)).await, Err(Error::Revoked));
        assert_eq!(old.driver.open(Epoch(3)).await, Err(Error::Revoked), "an older epoch does not open");
        assert_eq!(rig.connect().await.open(Epoch(2)).await, Err(Error::Revoked), "nor does it elsewhere");
    }
    assert_eq!(new.facts(vm(0)).await.power, PowerState::Running);
    new.done(&op(vm(0), 2, Action::Stop(StopMode::Hard))).await;
}

/// A create gives a VM that `inspect` and `inventory` show with all that was asked for.
pub async fn what_is_made_is_there(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    let facts = it.made(0).await;
    assert_eq!(
        facts,
        VmFacts { host: it.host().clone(), power: PowerState::Running, size: SMALL, snapshots: Vec::new() }
    );
    let held = it.there(vm(0)).await.expect("it is there");
    assert_eq!((held.id, &held.facts, held.op), (vm(0), &facts, OpNumber(1)));
    assert_eq!((held.tenant.as_str(), held.name.as_str()), ("acme", "vm-0"));
    assert_eq!((held.affinity.clone(), held.anti_affinity.clone()), (Some(short("together")), Some(short("apart"))));
    assert_eq!(it.driver.inventory().await.expect("inventory").vms, [held]);
    assert_eq!(it.done(&op(vm(0), 2, Action::Inspect)).await, facts);
    let off = it.done(&create_as(1, 1, it.host(), CreateSpec { power: Power::Off, ..spec(1) })).await;
    assert_eq!(off.power, PowerState::Stopped);
    assert_eq!(it.driver.tasks().await.expect("tasks"), [], "nothing runs any more");
}

/// The same number again gives what the first gave, and does nothing.
pub async fn a_number_is_done_once(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    let facts = it.made(0).await;
    assert_eq!(it.done(&create(0, 1, &it.hosts[1])).await, facts, "it stays on the host that the first chose");
    let stop = op(vm(0), 2, Action::Stop(StopMode::Graceful));
    it.done(&stop).await;
    assert_eq!(it.done(&stop).await.power, PowerState::Stopped);
    let snapshot = op(vm(0), 3, Action::Snapshot(short("one")));
    it.done(&snapshot).await;
    assert_eq!(it.done(&snapshot).await.snapshots, [short("one")]);
    // A new owner asks again what an older one asked.
    let next = Opened::by(rig, 2).await;
    assert_eq!(next.done(&snapshot).await.snapshots, [short("one")]);
    let delete = op(vm(0), 4, Action::Delete);
    assert_eq!(next.perform(&delete).await, Ok(None));
    assert_eq!(next.perform(&delete).await, Ok(None));
    assert_eq!(next.count().await, 0);
}

/// A lower number than the last is refused, also when the last did nothing that shows.
pub async fn lower_numbers_are_refused(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    it.made(0).await;
    it.done(&op(vm(0), 5, Action::Start)).await;
    let refused = Err(Error::Superseded { asked: OpNumber(4), last: OpNumber(5) });
    assert_eq!(it.perform(&op(vm(0), 4, Action::Stop(StopMode::Hard))).await, refused);
    assert_eq!(it.perform(&op(vm(0), 4, Action::Delete)).await, refused);
    assert_eq!(it.facts(vm(0)).await.power, PowerState::Running);
}

/// A create that comes after the delete that followed it makes nothing.
pub async fn a_delete_leaves_a_tombstone(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    it.made(0).await;
    assert_eq!(it.perform(&op(vm(0), 7, Action::Delete)).await, Ok(None));
    assert_eq!(it.there(vm(0)).await, None);
    assert_eq!(
        it.perform(&create(0, 1, it.host())).await,
        Err(Error::Superseded { asked: OpNumber(1), last: OpNumber(7) })
    );
    assert_eq!(it.count().await, 0);
    it.done(&create(0, 8, it.host())).await;
}

/// Also where nothing was there to be deleted: the create may still be on its way.
pub async fn a_delete_of_nothing_leaves_a_tombstone(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    assert_eq!(it.perform(&op(vm(0), 2, Action::Delete)).await, Ok(None));
    let late = it.perform(&create(0, 1, it.host())).await;
    assert_eq!(late, Err(Error::Superseded { asked: OpNumber(1), last: OpNumber(2) }));
    assert_eq!(it.count().await, 0);
}

/// Calls with one number at the same time have one effect and one answer.
pub async fn callers_of_one_number_share_its_end(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    let asked: Vec<Op> = (0..8).map(|index| create(0, 1, &it.hosts[index % 2])).collect();
    let answers = join_all(asked.iter().map(|op| it.perform(op))).await;
    let facts = it.facts(vm(0)).await;
    for answer in answers {
        assert_eq!(answer, Ok(Some(facts.clone())));
    }
    assert_eq!(it.count().await, 1);
}

/// A call that is dropped may take effect; asked again with its number, it is found or done.
pub async fn a_dropped_call_is_found_again(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    for index in 0..4 {
        let create = create(index, 1, it.host());
        // Polled once and dropped, or not even that far when it is done at once.
        let _ = rig.env().timeout(Duration::ZERO, it.perform(&create)).await;
        it.done(&create).await;
    }
    assert_eq!(it.count().await, 4);
}

/// Power operations do what they say, do nothing where that is so already, and refuse nonsense.
pub async fn power_follows_the_rules(rig: &dyn Rig) {
    use PowerState::{Running, Stopped, Suspended};
    let it = Opened::by(rig, 1).await;
    it.made(0).await;
    let (stop, restart) = (Action::Stop(StopMode::Hard), Action::Restart(StopMode::Graceful));
    let steps = [
        (Action::Start, Some(Running)),
        (Action::Resume, Some(Running)),
        (Action::Suspend, Some(Suspended)),
        (Action::Suspend, Some(Suspended)),
        (restart.clone(), None),
        (Action::Resume, Some(Running)),
        (stop.clone(), Some(Stopped)),
        (stop.clone(), Some(Stopped)),
        (Action::Suspend, None),
        (Action::Resume, None),
        (restart, None),
        (Action::Start, Some(Running)),
        (Action::Suspend, Some(Suspended)),
        (stop, Some(Stopped)),
        (Action::Start, Some(Running)),
        (Action::Suspend, Some(Suspended)),
        (Action::Start, Some(Running)),
    ];
    let mut now = Running;
    for (number, (action, expected)) in (2..).zip(steps) {
        let answer = it.perform(&op(vm(0), number, action.clone())).await;
        match expected {
            Some(power) => {
                assert_eq!(
                    answer.map(|facts| facts.map(|facts| facts.power)),
                    Ok(Some(power)),
                    "{action:?} of a VM that is {now:?}"
                );
                now = power;
            }
            None => {
                assert!(matches!(answer, Err(Error::Invalid { .. })), "{action:?} of a VM that is {now:?}: {answer:?}")
            }
        }
        assert_eq!(it.facts(vm(0)).await.power, now);
    }
}

/// Asked twice with one number, a VM reboots once.
pub async fn a_restart_happens_once_a_number(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    it.made(0).await;
    let restart = op(vm(0), 2, Action::Restart(StopMode::Hard));
    for answer in join_all([it.perform(&restart), it.perform(&restart)]).await {
        assert_eq!(answer.expect("restart").expect("it is there").power, PowerState::Running);
    }
    it.done(&restart).await;
    if let Some(faults) = rig.faults() {
        assert_eq!(faults.restarts(vm(0)).await, 1);
        it.done(&op(vm(0), 3, Action::Restart(StopMode::Graceful))).await;
        assert_eq!(faults.restarts(vm(0)).await, 2);
    }
}

/// Snapshots are taken, reverted to and dropped by name.
pub async fn snapshots_are_kept_with_the_vm(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    it.made(0).await;
    let (one, two) = (short("one"), short("two"));
    it.done(&op(vm(0), 2, Action::Snapshot(one.clone()))).await;
    it.done(&op(vm(0), 3, Action::Stop(StopMode::Hard))).await;
    assert_eq!(it.done(&op(vm(0), 4, Action::Snapshot(two.clone()))).await.snapshots, [one.clone(), two.clone()]);
    let again = it.perform(&op(vm(0), 5, Action::Snapshot(one.clone()))).await;
    assert!(matches!(again, Err(Error::Invalid { .. })), "a name is taken once: {again:?}");
    let reverted = it.done(&op(vm(0), 6, Action::Revert(two.clone()))).await;
    assert_eq!(reverted.power, PowerState::Stopped, "it was off when the snapshot was taken");
    let gone = it.perform(&op(vm(0), 7, Action::Revert(short("three")))).await;
    assert!(matches!(gone, Err(Error::Invalid { .. })), "there is no such snapshot: {gone:?}");
    assert_eq!(it.done(&op(vm(0), 8, Action::SnapshotDelete(two))).await.snapshots, std::slice::from_ref(&one));
    let nothing = it.done(&op(vm(0), 9, Action::SnapshotDelete(short("three")))).await;
    assert_eq!(nothing.snapshots, [one], "to drop what is not there is success");
}

/// A VM takes another shape; its disk never shrinks.
pub async fn disks_only_grow(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    it.made(0).await;
    let (more, less) =
        (Size { vcpus: 4, memory_mib: 4096, disk_gib: 20 }, Size { vcpus: 1, memory_mib: 1024, disk_gib: 20 });
    assert_eq!(it.done(&op(vm(0), 2, Action::Resize(more))).await.size, more);
    assert_eq!(it.done(&op(vm(0), 3, Action::Resize(less))).await.size, less);
    let shrunk = it.perform(&op(vm(0), 4, Action::Resize(Size { disk_gib: 19, ..less }))).await;
    assert!(matches!(shrunk, Err(Error::Invalid { .. })), "{shrunk:?}");
    let absurd = it
        .perform(&op(vm(0), 5, Action::Resize(Size { vcpus: u32::MAX, memory_mib: u64::MAX, disk_gib: u64::MAX })))
        .await;
    assert!(matches!(absurd, Err(Error::NoRoom { .. } | Error::Invalid { .. })), "{absurd:?}");
    assert_eq!(it.facts(vm(0)).await.size, less);
}

/// A relocation takes the VM to another host, as it is.
pub async fn a_vm_moves_between_hosts(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    let facts = it.made(0).await;
    let target = it.hosts[1].clone();
    let relocate = |number| Op { host: Some(target.clone()), ..op(vm(0), number, Action::Relocate(target.clone())) };
    assert_eq!(it.done(&relocate(2)).await, VmFacts { host: target.clone(), ..facts.clone() });
    assert_eq!(it.done(&relocate(3)).await.host, target, "there already is success");
    let nowhere: HostId = "no-such-host".parse().expect("a host name");
    let lost = it.perform(&Op { host: Some(nowhere.clone()), ..op(vm(0), 4, Action::Relocate(nowhere)) }).await;
    assert!(matches!(lost, Err(Error::NoRoom { .. })), "{lost:?}");
    assert_eq!(it.facts(vm(0)).await.host, target);
}

/// A host is never filled past what it has, not by many at once either; what is deleted makes room.
pub async fn a_full_host_takes_no_more(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    let host = it.driver.inventory().await.expect("inventory").hosts.swap_remove(0);
    let size = Size { vcpus: host.vcpus / 2, memory_mib: 1024, disk_gib: 1 };
    let asked: Vec<Op> =
        (0..6).map(|index| create_as(index, 1, &host.id, CreateSpec { size, ..spec(index) })).collect();
    let answers = join_all(asked.iter().map(|op| it.perform(op))).await;
    let (made, refused): (Vec<_>, Vec<_>) = asked.iter().zip(answers).partition(|(_, answer)| answer.is_ok());
    assert_eq!(made.len(), 2, "{made:?} {refused:?}");
    assert!(refused.iter().all(|(_, answer)| matches!(answer, Err(Error::NoRoom { .. }))), "{refused:?}");
    assert_eq!(it.count().await, 2);
    // A refused number was never used: it may go elsewhere, or here when there is room.
    let (next, later) = (refused[0].0, refused[1].0);
    it.done(&Op { host: Some(it.hosts[1].clone()), ..next.clone() }).await;
    assert_eq!(it.perform(&op(made[0].0.vm, 2, Action::Delete)).await, Ok(None));
    it.done(later).await;
}

/// A host that does not exist has no room.
pub async fn hosts_that_are_not_there_take_nothing(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    let answer = it.perform(&create(0, 1, &"no-such-host".parse().expect("a host name"))).await;
    assert!(matches!(answer, Err(Error::NoRoom { .. })), "{answer:?}");
    it.made(0).await;
}

/// The copy of a migrate has the snapshots of its source and the power that it is asked to have.
pub async fn a_copy_brings_its_snapshots(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    let copy = CreateSpec {
        power: Power::Off,
        snapshots: vec![short("one"), short("two")],
        copy_of: Some(PowerState::Running),
        ..spec(0)
    };
    let facts = it.done(&create_as(0, 9, it.host(), copy)).await;
    assert_eq!(
        (facts.power, facts.snapshots.as_slice()),
        (PowerState::Stopped, [short("one"), short("two")].as_slice())
    );
    assert_eq!(it.done(&op(vm(0), 10, Action::Start)).await.power, PowerState::Running);
}

/// A create of what is there is success; of another VM under its id, an error.
pub async fn the_id_belongs_to_one_vm(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    let facts = it.made(0).await;
    assert_eq!(it.done(&create(0, 2, &it.hosts[1])).await, facts);
    let other = it.perform(&create_as(0, 3, it.host(), spec(1))).await;
    assert!(matches!(other, Err(Error::Invalid { .. })), "{other:?}");
    assert_eq!(it.count().await, 1);
}

/// Operations on a VM that is not there say so.
pub async fn what_is_not_there_is_not_found(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    for action in
        [Action::Start, Action::Resize(SMALL), Action::Snapshot(short("one")), Action::Relocate(it.host().clone())]
    {
        assert_eq!(it.perform(&op(vm(0), 1, action)).await, Err(Error::NotFound));
    }
    assert_eq!(it.perform(&op(vm(0), 1, Action::Inspect)).await, Ok(None));
    assert_eq!(it.there(vm(0)).await, None);
}

/// Different VMs do not wait for each other; whoever is told to come again may.
pub async fn many_vms_are_made_at_once(rig: &dyn Rig) {
    let it = Opened::by(rig, 1).await;
    let size = Size { vcpus: 1, memory_mib: 256, disk_gib: 1 };
    let asked: Vec<Op> = (0..12)
        .map(|index| create_as(index, 1, &it.hosts[index as usize % 2], CreateSpec { size, ..spec(index) }))
        .collect();
    join_all(asked.iter().map(|op| async {
        while let Err(error) = it.perform(op).await {
            assert!(matches!(error, Error::Busy { .. }), "{error}");
            rig.env().sleep(Duration::from_millis(5)).await;
        }
    }))
    .await;
    assert_eq!(it.count().await, 12);
}

/// A task that an older session started goes on, is reported to the new one, and can be joined.
pub async fn running_tasks_outlive_their_session(rig: &dyn Rig) {
    let Some(faults) = rig.faults() else { return };
    let old = Opened::by(rig, 1).await;
    old.made(0).await;
    faults.slow(SLOW).await;
    let stop = op(vm(0), 2, Action::Stop(StopMode::Hard));
    let mut call = Box::pin(old.perform(&stop));
    let running = loop {
        // The call is polled beside the look at the tasks; it may not end before it was seen.
        let next = rig.connect().await;
        let tasks = tokio::select! {
            biased;
            ended = &mut call => panic!("it ended before it was seen: {ended:?}"),
            tasks = old.driver.tasks() => tasks.expect("tasks"),
        };
        if !tasks.is_empty() {
            break next;
        }
    };
    faults.heal().await;
    drop(call);
    let tasks = running.open(Epoch(2)).await.expect("a newer epoch opens");
    for task in &tasks {
        assert_eq!((task.vm, task.number), (vm(0), OpNumber(2)));
    }
    let facts = running.perform(&stop).await.expect("it is joined, or found done").expect("the VM is there");
    assert_eq!(facts.power, PowerState::Stopped);
    assert_eq!(running.tasks().await.expect("tasks"), []);
}

/// After [`Error::Unreachable`], the same number finds what was done.
pub async fn a_lost_answer_is_found_again(rig: &dyn Rig) {
    let Some(faults) = rig.faults() else { return };
    let it = Opened::by(rig, 1).await;
    for index in 0..3 {
        faults.lose_next_answer().await;
        let create = create(index, 1, it.host());
        let answer = it.perform(&create).await;
        assert!(matches!(answer, Err(Error::Unreachable { .. })), "{answer:?}");
        it.done(&create).await;
        faults.lose_next_answer().await;
        let restart = op(vm(index), 2, Action::Restart(StopMode::Hard));
        assert!(it.perform(&restart).await.is_err());
        it.done(&restart).await;
        assert_eq!(faults.restarts(vm(index)).await, 1);
    }
    assert_eq!(it.count().await, 3);
}

/// After [`Error::Transient`] nothing was done, and the same number may succeed.
pub async fn a_passing_failure_leaves_nothing(rig: &dyn Rig) {
    let Some(faults) = rig.faults() else { return };
    let it = Opened::by(rig, 1).await;
    faults.fail_next().await;
    let create = create(0, 1, it.host());
    let answer = it.perform(&create).await;
    assert!(matches!(answer, Err(Error::Transient { .. })), "{answer:?}");
    assert_eq!(it.there(vm(0)).await, None);
    it.done(&create).await;
}

/// A manager that is down gives [`Error::Unreachable`], and all is there when it is back.
pub async fn a_manager_that_is_down_says_nothing(rig: &dyn Rig) {
    let Some(faults) = rig.faults() else { return };
    let it = Opened::by(rig, 1).await;
    let facts = it.made(0).await;
    faults.down().await;
    let unreachable = |error: Option<Error>| assert!(matches!(error, Some(Error::Unreachable { .. })), "{error:?}");
    unreachable(it.perform(&op(vm(0), 2, Action::Delete)).await.err());
    unreachable(it.driver.inspect(vm(0)).await.err());
    unreachable(it.driver.inventory().await.err());
    unreachable(it.driver.tasks().await.err());
    unreachable(it.driver.changes().await.err());
    unreachable(it.driver.open(Epoch(2)).await.err());
    faults.heal().await;
    let next = Opened::by(rig, 3).await;
    assert_eq!(next.facts(vm(0)).await, facts);
}

/// What others do to a VM comes out of `changes`, also what happened while nobody listened.
pub async fn changes_by_others_are_heard(rig: &dyn Rig) {
    let Some(faults) = rig.faults() else { return };
    let it = Opened::by(rig, 1).await;
    it.made(0).await;
    it.made(1).await;
    faults.set_power(vm(0), PowerState::Stopped).await;
    heard(rig, &it, vm(0)).await;
    assert_eq!(it.facts(vm(0)).await.power, PowerState::Stopped);
    let (_, ()) = futures::join!(heard(rig, &it, vm(1)), faults.delete_vm(vm(1)));
    assert_eq!(it.there(vm(1)).await, None);
    // A listener that was cut off loses nothing.
    let _ = rig.env().timeout(Duration::from_millis(1), it.driver.changes()).await;
    faults.set_power(vm(0), PowerState::Running).await;
    heard(rig, &it, vm(0)).await;
}

async fn heard(rig: &dyn Rig, it: &Opened, vm: VmId) {
    let listen = async {
        loop {
            let changes = it.driver.changes().await.expect("changes");
            if changes.iter().any(|change| *change == Change::Vm(vm) || *change == Change::Missed) {
                return;
            }
        }
    };
    rig.env().timeout(SOON, listen).await.unwrap_or_else(|| panic!("the change of {vm} was not heard"));
}

/// `changes` does not wait for ever in a session that is over.
pub async fn a_revoked_listener_is_told(rig: &dyn Rig) {
    let old = Opened::by(rig, 1).await;
    if !old.driver.limits().revokes {
        return;
    }
    let listen = async {
        loop {
            // What was done before may be told first.
            if let Err(error) = old.driver.changes().await {
                return error;
            }
        }
    };
    let env = rig.env();
    let (told, _new) = futures::join!(env.timeout(SOON, listen), Opened::by(rig, 2));
    assert_eq!(told, Some(Error::Revoked));
}

/// What was answered is there after the manager was stopped and started: VMs, numbers, tombstones,
/// the epoch.
pub async fn what_was_answered_outlives_a_restart(rig: &dyn Rig) {
    let it = Opened::by(rig, 5).await;
    it.made(0).await;
    it.done(&op(vm(0), 2, Action::Snapshot(short("one")))).await;
    let facts = it.done(&op(vm(0), 3, Action::Suspend)).await;
    it.made(1).await;
    assert_eq!(it.perform(&op(vm(1), 6, Action::Delete)).await, Ok(None));
    if !rig.restart().await {
        return;
    }
    assert_eq!(rig.connect().await.open(Epoch(4)).await, Err(Error::Revoked), "the epoch is remembered");
    let it = Opened::by(rig, 6).await;
    assert_eq!(it.facts(vm(0)).await, facts);
    assert_eq!(
        it.perform(&op(vm(0), 2, Action::Delete)).await,
        Err(Error::Superseded { asked: OpNumber(2), last: OpNumber(3) })
    );
    assert_eq!(
        it.perform(&create(1, 1, it.host())).await,
        Err(Error::Superseded { asked: OpNumber(1), last: OpNumber(6) })
    );
    assert_eq!(it.count().await, 1);
}
