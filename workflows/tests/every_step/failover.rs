//! A VM whose host died is started elsewhere, once, whatever fails meanwhile.

use cellbus_bus::ids::HostId;
use cellbus_bus::job::Provision;
use cellbus_directory::{PowerState, Step, VmState};
use cellbus_workflows::{ON_HOST_FAILURE, RESTART};

use super::*;

fn host(name: &str) -> HostId {
    name.parse().expect("a host")
}

/// A VM with this label, and its host.
fn made(world: &mut World, id: &str, label: Option<&str>) -> (VmId, HostId) {
    let labels = label.map(|value| (ON_HOST_FAILURE.to_owned(), value.to_owned()));
    let made = job(id, Request::Provision(Provision { labels: labels.into_iter().collect(), ..provision("vm", 1) }));
    world.run(&made).expect("a VM");
    let vm = made.id.vm(0);
    let at = world.vm(vm).home.clone().expect("it was made").host.expect("on a host");
    (vm, at)
}
fn died(world: &mut World, vm: VmId, from: &HostId, to: &str) {
    let manager = world.vm(vm).home.as_ref().expect("it was made").manager;
    let item = ControlItem::HostDied { vm, manager, from: from.clone(), to: host(to) };
    world.control(vm.shard(world.count), &item);
}
fn made_calls(world: &World, step: Step) -> usize {
    world.calls.iter().filter(|(made, ..)| *made == step).count()
}
fn where_it_is(world: &World, vm: VmId) -> (String, VmState) {
    let vm = world.vm(vm);
    let at = vm.home.as_ref().and_then(|home| home.host.as_ref()).expect("it is somewhere");
    (at.to_string(), vm.settled)
}

/// The counts of what was done with a fault, and whether it runs elsewhere in the end.
fn run_over(fault: Option<Fault>, again: bool) -> (usize, usize, usize) {
    let mut world = World::new(3, 2);
    let (vm, at) = made(&mut world, "first", Some(RESTART));
    (world.counted, world.fault) = ((0, 0, 0), fault);
    died(&mut world, vm, &at, "other");
    died(&mut world, vm, &at, "third");
    world.settle();
    let counted = world.counted;
    if again {
        // It was refused, or has failed: who fronts the manager says it again while the VM is there.
        died(&mut world, vm, &at, "third");
        world.settle();
    }
    let (now, state) = where_it_is(&world, vm);
    let expected = if again { "third" } else { "other" };
    assert_eq!((now.as_str(), state), (expected, VmState::Running), "{fault:?}");
    world.check();
    counted
}

#[test]
fn a_vm_is_started_elsewhere_once_over_every_fault() {
    let (appends, calls, effects) = run_over(None, false);
    assert_eq!(calls, 2, "brought over, and started");
    for (moment, places) in
        [(Moment::BeforeAppend, appends), (Moment::AfterAppend, appends), (Moment::AfterEffect, effects)]
    {
        (0..places).for_each(|at| {
            run_over(Some(Fault::Crash(moment, at)), false);
        });
    }
    (0..calls).for_each(|at| {
        run_over(Some(Fault::Copy(at)), false);
    });
    (0..effects).for_each(|at| {
        run_over(Some(Fault::Repeat(at)), false);
    });
    for fate in [Fate::DoAndLose, Fate::Lose, Fate::Closed] {
        (0..calls).for_each(|at| {
            run_over(Some(Fault::Call(at, fate)), false);
        });
    }
    for fate in [Fate::Refuse, Fate::Fail] {
        run_over(Some(Fault::Call(0, fate)), true);
    }
}

#[test]
fn who_did_not_ask_for_it_or_did_not_run_or_is_elsewhere_stays() {
    let mut world = World::new(3, 1);
    let (silent, at) = made(&mut world, "silent", None);
    let (other, _) = made(&mut world, "other", Some("nothing"));
    let (stopped, _) = made(&mut world, "stopped", Some(RESTART));
    let (away, _) = made(&mut world, "away", Some(RESTART));
    world.run(&job("stop", operate(stopped, Operation::Stop(StopMode::Hard)))).expect("it stops");
    world.run(&job("move", operate(away, Operation::Migrate(MigrateTo::Host(host("elsewhere")))))).expect("it moves");
    let before: Vec<_> = [silent, other, stopped, away].iter().map(|vm| where_it_is(&world, *vm)).collect();
    for vm in [silent, other, stopped, away] {
        died(&mut world, vm, &at, "third");
    }
    world.settle();
    let after: Vec<_> = [silent, other, stopped, away].iter().map(|vm| where_it_is(&world, *vm)).collect();
    assert_eq!(before, after);
    assert_eq!((made_calls(&world, Step::Failover), made_calls(&world, Step::Start)), (0, 0));
}

#[test]
fn what_was_asked_before_it_counts() {
    let mut world = World::new(1, 1);
    let (vm, at) = made(&mut world, "first", Some(RESTART));
    let stop = job("stop", operate(vm, Operation::Stop(StopMode::Hard)));
    world.fates.entry(Step::Stop).or_default().push_back(Fate::Lose);
    world.submit(&stop);
    while world.step() {}
    assert!(world.vm(vm).doing.is_some(), "it is under way");
    died(&mut world, vm, &at, "other");
    world.settle();
    assert_eq!(where_it_is(&world, vm), (at.to_string(), VmState::Stopped), "it was not to run any more");
    assert_eq!(world.events.keys().filter(|id| id.contains("/state/")).count(), 0);
    let start = job("start", operate(vm, Operation::Start));
    world.run(&start).expect("it starts");
    died(&mut world, vm, &at, "other");
    world.settle();
    assert_eq!(where_it_is(&world, vm), ("other".to_owned(), VmState::Running));
    assert_eq!(world.managers.values().next().expect("one")[&vm].facts.power, PowerState::Running);
    // Its tenant hears of it, once it runs there.
    assert_eq!(world.events.keys().filter(|id| id.contains("/state/")).count(), 1, "{:?}", world.events.keys());
    let explained = world.shards[0].explain_vm(&vm).expect("known");
    let said: Vec<&str> = explained.history.iter().rev().take(4).map(|(_, what)| what.as_str()).collect();
    assert_eq!(said, ["ended: succeeded", "start done", "start called", "failover done"], "{:?}", explained.history);
}
