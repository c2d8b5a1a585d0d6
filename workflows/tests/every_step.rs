//! Every saga, failed, repeated and crashed at each of its steps: one fault a run, at every place
//! where there can be one. Whatever happens the job ends, nothing is made twice or left behind, and
//! what a fault only delays succeeds.

#[path = "every_step/failover.rs"]
mod failover;
mod world;

use cellbus_bus::ids::{ShortName, VmId};
use cellbus_bus::job::{MigrateTo, Operation, Request, StopMode};
use cellbus_directory::JobState;
use cellbus_directory::record::{Operator, ParkedDecision};
use cellbus_workflows::ControlItem;
use world::{Fate, Fault, Moment, World, job, operate, provision};

/// What is done before, and the work itself.
type Saga = (&'static str, fn() -> Vec<Operation>, fn(&World, VmId) -> Request);

fn snap() -> ShortName {
    "s".parse().expect("a name")
}

fn away(world: &World, vm: VmId) -> Operation {
    let home = world.vm(vm).home.as_ref().expect("it was made").manager;
    let (name, _) = world.names.iter().find(|(_, id)| **id != home).expect("another manager");
    Operation::Migrate(MigrateTo::Manager(name.clone()))
}

const SAGAS: &[Saga] = &[
    ("provision", Vec::new, |_, _| Request::Provision(provision("new", 1))),
    ("provision of three", Vec::new, |_, _| Request::Provision(provision("new", 3))),
    ("start", || vec![Operation::Stop(StopMode::Hard)], |_, vm| operate(vm, Operation::Start)),
    ("stop", Vec::new, |_, vm| operate(vm, Operation::Stop(StopMode::Graceful))),
    ("restart", Vec::new, |_, vm| operate(vm, Operation::Restart(StopMode::Hard))),
    ("suspend", Vec::new, |_, vm| operate(vm, Operation::Suspend)),
    ("resume", || vec![Operation::Suspend], |_, vm| operate(vm, Operation::Resume)),
    ("resize", Vec::new, |_, vm| operate(vm, Operation::Resize { vcpus: Some(4), memory_mib: None, disk_gib: None })),
    ("snapshot", Vec::new, |_, vm| operate(vm, Operation::Snapshot(snap()))),
    ("revert", || vec![Operation::Snapshot(snap())], |_, vm| operate(vm, Operation::Revert(snap()))),
    ("snapshot-delete", || vec![Operation::Snapshot(snap())], |_, vm| operate(vm, Operation::SnapshotDelete(snap()))),
    ("migrate to a host", Vec::new, |_, vm| {
        operate(vm, Operation::Migrate(MigrateTo::Host("elsewhere".parse().expect("a host"))))
    }),
    ("migrate to a manager", Vec::new, |world, vm| operate(vm, away(world, vm))),
    ("migrate of a stopped VM", || vec![Operation::Stop(StopMode::Hard)], |world, vm| operate(vm, away(world, vm))),
    ("delete", Vec::new, |_, vm| operate(vm, Operation::Delete)),
];

struct Ran {
    state: JobState,
    /// Appends, calls, effects.
    counted: (usize, usize, usize),
}

fn run(saga: &Saga, fault: Option<Fault>) -> Ran {
    let (what, before, work) = saga;
    let mut world = World::new(3, 3);
    let first = job("first", Request::Provision(provision("vm", 1)));
    world.run(&first).expect("a VM to work on");
    let vm = first.id.vm(0);
    for (n, operation) in before().into_iter().enumerate() {
        world.run(&job(&format!("before-{n}"), operate(vm, operation))).expect("as it is to be");
    }
    let request = work(&world, vm);
    (world.counted, world.fault) = ((0, 0, 0), fault);
    let work = job("work", request);
    world.submit(&work);
    world.rest(2_000);
    for shard in world.count.shards() {
        // What cannot be undone, or cannot go on, waits for a person, who says: again.
        let parked: Vec<VmId> =
            (0..3).map(|k| work.id.vm(k)).chain([vm]).filter(|vm| vm.shard(world.count) == shard).collect();
        if world.state(work.id) == JobState::Parked {
            for vm in parked {
                let by = Operator { who: "anonymous".to_owned(), from: "127.0.0.1".to_owned() };
                world.control(shard, &ControlItem::Unpark { vm, job: work.id, decision: ParkedDecision::Retry, by });
            }
        }
    }
    world.settle();
    let state = world.state(work.id);
    assert!(state.ended(), "{what} with {fault:?} is {state}");
    world.check();
    Ran { state, counted: world.counted }
}

/// Runs the saga with a fault at each of the places; the numbers of those that did not succeed.
fn at_each(saga: &Saga, places: usize, fault: impl Fn(usize) -> Fault) -> Vec<usize> {
    (0..places).filter(|at| run(saga, Some(fault(*at))).state != JobState::Succeeded).collect()
}

#[test]
fn every_saga_survives_its_owner_at_each_step() {
    for saga in SAGAS {
        let (appends, _, effects) = run(saga, None).counted;
        assert!(appends > 1 && effects > 0, "{}: there is something to interrupt", saga.0);
        for (moment, places) in
            [(Moment::BeforeAppend, appends), (Moment::AfterAppend, appends), (Moment::AfterEffect, effects)]
        {
            let failed = at_each(saga, places, |at| Fault::Crash(moment, at));
            assert_eq!(failed, [0; 0], "{}: did not succeed when its owner died {moment:?}", saga.0);
        }
    }
}

#[test]
fn every_saga_takes_each_step_twice_and_does_it_once() {
    for saga in SAGAS {
        let (_, calls, effects) = run(saga, None).counted;
        assert!(calls > 0, "{}", saga.0);
        assert_eq!(at_each(saga, calls, Fault::Copy), [0; 0], "{}: a late copy of a call", saga.0);
        assert_eq!(at_each(saga, effects, Fault::Repeat), [0; 0], "{}: a message sent twice", saga.0);
        for fate in [Fate::DoAndLose, Fate::Lose, Fate::Closed] {
            let failed = at_each(saga, calls, |at| Fault::Call(at, fate));
            assert_eq!(failed, [0; 0], "{}: {fate:?}", saga.0);
        }
    }
}

#[test]
fn every_saga_fails_at_each_step_and_leaves_nothing_behind() {
    for saga in SAGAS {
        let calls = run(saga, None).counted.1;
        for fate in [Fate::Fail, Fate::Refuse] {
            for at in 0..calls {
                // Ended, checked: no orphan, no second copy, the directory as the managers hold it.
                run(saga, Some(Fault::Call(at, fate)));
            }
        }
        let failed = at_each(saga, 1, |at| Fault::Call(at, Fate::Fail));
        assert_eq!(failed, [0], "{}: a lasting failure of its first call is the job's", saga.0);
    }
}
