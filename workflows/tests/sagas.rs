//! Every kind of job, as it should go and as it should not: refused, failed, lost, cancelled, parked.

mod world;

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::{JobId, ManagerId, VmId};
use cellbus_bus::job::{Job, MigrateTo, Operation, Request, StopMode, Target};
use cellbus_directory::record::{Operator, ParkedDecision, Record};
use cellbus_directory::{FailureCode, JobState, PowerState, Step, VmState};
use cellbus_workflows::{ControlItem, Health};
use world::{Fate, World, job, job_of, operate, provision};

fn with(job: &Arc<Job>, change: impl FnOnce(&mut Job)) -> Arc<Job> {
    let mut job = Job::clone(job);
    change(&mut job);
    Arc::new(job)
}

fn made(world: &mut World, id: &str) -> VmId {
    let job = job(id, Request::Provision(provision(id, 1)));
    world.run(&job).expect("a VM");
    job.id.vm(0)
}

fn snap(name: &str) -> cellbus_bus::ids::ShortName {
    name.parse().expect("a name")
}

fn operator() -> Operator {
    Operator { who: "anonymous".to_owned(), from: "127.0.0.1".to_owned() }
}

#[test]
fn a_vm_lives_its_whole_life() {
    let mut world = World::new(8, 4);
    let vm = made(&mut world, "web");
    assert_eq!(world.vm(vm).settled, VmState::Running);
    let steps = [
        (Operation::Start, VmState::Running),
        (Operation::Suspend, VmState::Suspended),
        (Operation::Start, VmState::Running),
        (Operation::Suspend, VmState::Suspended),
        (Operation::Resume, VmState::Running),
        (Operation::Restart(StopMode::Graceful), VmState::Running),
        (Operation::Snapshot(snap("s1")), VmState::Running),
        (Operation::Revert(snap("s1")), VmState::Running),
        (Operation::SnapshotDelete(snap("s1")), VmState::Running),
        (Operation::Resize { vcpus: Some(8), memory_mib: None, disk_gib: Some(20) }, VmState::Running),
        (Operation::Migrate(MigrateTo::Host("other".parse().expect("a host"))), VmState::Running),
        (Operation::Stop(StopMode::Hard), VmState::Stopped),
        (Operation::Start, VmState::Running),
        (Operation::Delete, VmState::Deleted),
        (Operation::Delete, VmState::Deleted),
    ];
    for (n, (operation, state)) in steps.into_iter().enumerate() {
        let what = format!("{operation:?}");
        world.run(&job(&format!("op-{n}"), operate(vm, operation))).unwrap_or_else(|code| panic!("{what}: {code}"));
        assert_eq!(world.vm(vm).settled, state, "{what}");
    }
    assert_eq!(world.run(&job("late", operate(vm, Operation::Resume))), Err(FailureCode::IllegalTransition));
    world.check();
}

#[test]
fn what_makes_no_sense_fails_with_its_code() {
    let mut world = World::new(4, 2);
    let vm = made(&mut world, "web");
    let cases = [
        (Operation::Revert(snap("none")), FailureCode::SnapshotNotFound),
        (Operation::SnapshotDelete(snap("none")), FailureCode::SnapshotNotFound),
        (Operation::Resize { vcpus: None, memory_mib: None, disk_gib: Some(1) }, FailureCode::DiskShrink),
        (Operation::Migrate(MigrateTo::Manager("nowhere".parse().expect("a name"))), FailureCode::ManagerNotFound),
    ];
    for (n, (operation, code)) in cases.into_iter().enumerate() {
        assert_eq!(world.run(&job(&format!("bad-{n}"), operate(vm, operation))), Err(code));
    }
    world.run(&job("off", operate(vm, Operation::Stop(StopMode::Graceful)))).expect("stops");
    for (n, operation) in
        [Operation::Suspend, Operation::Resume, Operation::Restart(StopMode::Hard)].into_iter().enumerate()
    {
        let id = format!("off-{n}");
        assert_eq!(world.run(&job(&id, operate(vm, operation))), Err(FailureCode::IllegalTransition));
    }
    let stranger = job_of("other", "steal", operate(vm, Operation::Delete));
    assert_eq!(world.run(&stranger), Err(FailureCode::VmNotFound), "another tenant's VM does not exist");
    assert!(
        world.home(stranger.id).job(&stranger.id).expect("it is known").vms.is_empty(),
        "and nothing is told of it"
    );
    let nobody = operate(VmId::from_uuid(uuid::Uuid::from_u128(7)), Operation::Start);
    assert_eq!(world.run(&job("nobody", nobody)), Err(FailureCode::VmNotFound));
    world.check();
}

#[test]
fn names_are_resolved_once_and_only_where_they_are_unique() {
    let mut world = World::new(8, 2);
    let by_name = |id: &str, name: &str| {
        job(id, Request::Operate(Target::Name(name.parse().expect("a name")), Operation::Suspend))
    };
    let vm = made(&mut world, "db");
    world.run(&by_name("s1", "db")).expect("found");
    assert_eq!(world.vm(vm).settled, VmState::Suspended);
    assert_eq!(world.run(&by_name("s2", "nothing")), Err(FailureCode::VmNotFound));
    world.run(&job("second", Request::Provision(provision("db", 1)))).expect("a second of that name");
    assert_eq!(world.run(&by_name("s3", "db")), Err(FailureCode::NameAmbiguous));
    world.check();
}

#[test]
fn a_thousand_vms_are_one_job() {
    let mut world = World::new(16, 8);
    let parent = job("many", Request::Provision(provision("web", 1000)));
    world.run(&parent).expect("all of them");
    assert_eq!(world.managers.values().map(std::collections::BTreeMap::len).sum::<usize>(), 1000);
    let status = world.home(parent.id).job(&parent.id).expect("known");
    assert_eq!((status.vms.len(), status.vms_ended, status.row.vms_total), (100, 1000, 1000));
    assert_eq!(world.vm(parent.id.vm(999)).name.as_str(), "web-999");
    world.check();
}

#[test]
fn a_parent_says_how_many_children_failed() {
    let mut world = World::new(4, 4);
    world.fates.insert(Step::Create, [Fate::Do, Fate::Fail, Fate::Do].into());
    let parent = job("some", Request::Provision(provision("web", 10)));
    assert_eq!(world.run(&parent), Err(FailureCode::ChildrenFailed));
    let outcome = world.home(parent.id).job(&parent.id).expect("known").row.outcome;
    assert!(format!("{outcome:?}").contains("1 of 10 VMs failed"), "{outcome:?}");
    world.check();
}

#[test]
fn the_same_key_is_the_same_job_and_other_data_changes_nothing() {
    let mut world = World::new(4, 2);
    let first = job("k", Request::Provision(provision("web", 1)));
    world.run(&first).expect("made");
    world.submit(&first);
    let other = job("k", Request::Provision(provision("elsewhere", 1)));
    world.submit(&other);
    world.settle();
    assert_ne!(other.digest, first.digest);
    assert_eq!(world.home(first.id).job_digest(&first.id).expect("known").0, first.digest);
    assert_eq!(world.managers.values().map(std::collections::BTreeMap::len).sum::<usize>(), 1);
    world.check();
}

#[test]
fn no_room_tries_elsewhere_and_then_says_what_was_looked_at() {
    let mut world = World::new(2, 4);
    world.fates.insert(Step::Create, [Fate::Refuse, Fate::Refuse].into());
    world.run(&job("third", Request::Provision(provision("web", 1)))).expect("the third takes it");
    world.fates.insert(Step::Create, [Fate::Refuse; 4].into());
    let all = job("none", Request::Provision(provision("web", 1)));
    assert_eq!(world.run(&all), Err(FailureCode::NoRoom));
    let outcome = format!("{:?}", world.home(all.id).job(&all.id).expect("known").row.outcome);
    for part in ["of 4 managers", "4 have refused it", "4 hosts looked at, 4 full"] {
        assert!(outcome.contains(part), "{part} is missing in {outcome}");
    }
    world.check();
}

#[test]
fn after_an_unknown_outcome_it_stays_with_that_manager() {
    for fate in [Fate::DoAndLose, Fate::Lose] {
        let mut world = World::new(2, 8);
        world.fates.insert(Step::Create, [fate, fate, fate].into());
        world.run(&job("lost", Request::Provision(provision("web", 1)))).expect("in the end");
        let ops: std::collections::BTreeSet<_> = world.calls.iter().map(|(_, _, op)| *op).collect();
        assert_eq!(ops.len(), 1, "the same op number every time: {ops:?}");
        world.check();
    }
}

#[test]
fn a_failed_create_is_undone_and_one_that_cannot_be_undone_is_parked() {
    let mut world = World::new(2, 2);
    world.fates.insert(Step::Create, [Fate::Fail].into());
    assert_eq!(world.run(&job("undone", Request::Provision(provision("web", 1)))), Err(FailureCode::ManagerFailed));
    assert!(world.calls.iter().any(|(step, ..)| *step == Step::UndoCreate), "what it may have left is removed");
    world.check();

    for decision in [ParkedDecision::Retry, ParkedDecision::Abandon] {
        let mut world = World::new(2, 2);
        world.fates.insert(Step::Create, [Fate::Fail].into());
        world.fates.insert(Step::UndoCreate, [Fate::Fail].into());
        let stuck = job("stuck", Request::Provision(provision("web", 1)));
        world.submit(&stuck);
        while world.step() {}
        assert_eq!(world.state(stuck.id), JobState::Parked);
        let vm = stuck.id.vm(0);
        // It survives its owner.
        world.open(usize::from(vm.shard(world.count).index()));
        assert_eq!(world.state(stuck.id), JobState::Parked);
        world.control(vm.shard(world.count), &ControlItem::Unpark { vm, job: stuck.id, decision, by: operator() });
        world.settle();
        assert_eq!(world.state(stuck.id), JobState::Failed);
        let code = match decision {
            ParkedDecision::Retry => FailureCode::ManagerFailed,
            ParkedDecision::Abandon => FailureCode::Abandoned,
        };
        assert!(
            format!("{:?}", world.home(stuck.id).job(&stuck.id).expect("known").row.outcome)
                .contains(&format!("{code:?}"))
        );
    }
}

#[test]
fn a_migrate_between_managers_has_one_commit_point() {
    let target = |world: &World| world.names.iter().nth(1).map(|(name, id)| (name.clone(), *id)).expect("two managers");
    // As it should go, running and stopped; then failing before the commit at each step.
    for (fates, running, ok) in [
        (vec![], true, true),
        (vec![], false, true),
        (vec![(Step::Quiesce, Fate::Fail)], true, false),
        (vec![(Step::Copy, Fate::Fail)], true, false),
        (vec![(Step::Copy, Fate::Refuse)], true, false),
        (vec![(Step::Copy, Fate::DoAndLose)], true, true),
        (vec![(Step::DropSource, Fate::DoAndLose)], true, true),
        (vec![(Step::StartCopy, Fate::Lose)], true, true),
    ] {
        let mut world = World::new(4, 2);
        let (name, id) = target(&world);
        world.view.managers[1].cordoned = true;
        let first = world.view.managers.iter().position(|m| m.id == id).expect("there");
        world.view.managers.iter_mut().for_each(|m| m.cordoned = false);
        world.view.managers[first].cordoned = true;
        let vm = made(&mut world, "web");
        world.view.managers[first].cordoned = false;
        if !running {
            world.run(&job("off", operate(vm, Operation::Stop(StopMode::Hard)))).expect("off");
        }
        let before = world.vm(vm).settled;
        for (step, fate) in &fates {
            world.fates.insert(*step, [*fate].into());
        }
        let result = world.run(&job("move", operate(vm, Operation::Migrate(MigrateTo::Manager(name)))));
        assert_eq!(result.is_ok(), ok, "{fates:?}: {result:?}");
        assert_eq!(world.vm(vm).home.as_ref().map(|h| h.manager == id), Some(ok), "{fates:?}");
        assert_eq!(world.vm(vm).settled, before, "{fates:?}");
        world.check();
    }
}

/// A VM on the first of two managers, whose migrate to the second has passed `Moved` and parked: its
/// copy is gone.
fn parked_without_its_copy(running: bool) -> (World, VmId, JobId, [ManagerId; 2]) {
    let mut world = World::new(4, 2);
    let (name, target) = world.names.iter().nth(1).map(|(name, id)| (name.clone(), *id)).expect("two managers");
    let aside = world.view.managers.iter().position(|m| m.id == target).expect("there");
    world.view.managers[aside].cordoned = true;
    let vm = made(&mut world, "web");
    world.view.managers[aside].cordoned = false;
    let source = world.vm(vm).home.as_ref().expect("made").manager;
    if !running {
        world.run(&job("off", operate(vm, Operation::Stop(StopMode::Hard)))).expect("off");
    }
    // The first call after `Moved` gets no answer, and then the copy's host is lost.
    let first = if running { Step::StartCopy } else { Step::CheckCopy };
    world.fates.insert(first, [Fate::Lose, Fate::Lose].into());
    let moving = job("move", operate(vm, Operation::Migrate(MigrateTo::Manager(name))));
    world.submit(&moving);
    while world.vm(vm).home.as_ref().map(|home| home.manager) != Some(target) {
        assert!(world.step(), "it moves");
    }
    world.managers.get_mut(&target).expect("there").remove(&vm).expect("copied");
    let parked = |world: &World| {
        let mut records = world.logs.iter().flatten().flat_map(|entry| &entry.records);
        records.any(|record| matches!(record, Record::Parked { .. }))
    };
    for _ in 0..100 {
        world.pass(Duration::from_secs(1));
        while world.step() {}
    }
    assert!(parked(&world));
    assert!(world.managers[&source].contains_key(&vm), "the source is the last that there is");
    (world, vm, moving.id, [source, target])
}

#[test]
fn a_migrate_whose_copy_is_lost_goes_back_to_its_source() {
    for running in [true, false] {
        let (mut world, vm, moving, [source, target]) = parked_without_its_copy(running);
        let unpark = ControlItem::Unpark { vm, job: moving, decision: ParkedDecision::Retry, by: operator() };
        world.control(vm.shard(world.count), &unpark);
        world.settle();
        assert_eq!(world.state(moving), JobState::Failed);
        let outcome = format!("{:?}", world.home(moving).job(&moving).expect("known").row.outcome);
        assert!(outcome.contains("CopyLost"), "{outcome}");
        let power = if running { PowerState::Running } else { PowerState::Stopped };
        assert_eq!(world.managers[&source][&vm].facts.power, power, "it is what it was, where it was");
        assert!(!world.managers[&target].contains_key(&vm));
        assert_eq!(world.vm(vm).home.as_ref().map(|home| home.manager), Some(source));
        assert_eq!(world.vm(vm).settled, if running { VmState::Running } else { VmState::Stopped });
        assert_eq!(world.vm(vm).other, None);
        world.check();
        world.run(&job("again", operate(vm, Operation::Restart(StopMode::Hard)))).map_or_else(
            |code| assert!(!running, "{code:?}"),
            |()| assert!(running, "one that is off is not restarted"),
        );
    }
}

#[test]
fn who_waits_behind_parked_work_is_told_that_it_is() {
    let (mut world, vm, moving, _) = parked_without_its_copy(true);
    let behind = job("behind", operate(vm, Operation::Stop(StopMode::Hard)));
    world.submit(&behind);
    while world.step() {}
    let home = &world.shards[usize::from(vm.shard(world.count).index())];
    let (state, why) = home.work_on_vm(&vm, &behind.id).expect("it waits");
    assert_eq!(state, JobState::Accepted);
    assert!(
        why.starts_with(&format!("job {moving} on the same VM, which is parked and waits for an operator")),
        "{why}"
    );
}

#[test]
fn a_migrate_whose_copy_comes_back_goes_on() {
    for running in [true, false] {
        let (mut world, vm, moving, [source, target]) = parked_without_its_copy(running);
        let mut copy = world.managers[&source][&vm].clone();
        copy.facts.power = PowerState::Stopped;
        world.managers.get_mut(&target).expect("there").insert(vm, copy);
        let unpark = ControlItem::Unpark { vm, job: moving, decision: ParkedDecision::Retry, by: operator() };
        world.control(vm.shard(world.count), &unpark);
        world.settle();
        assert_eq!(world.state(moving), JobState::Succeeded);
        assert!(!world.managers[&source].contains_key(&vm));
        assert_eq!(world.managers[&target][&vm].facts.power == PowerState::Running, running);
        world.check();
    }
}

#[test]
fn a_migrate_of_which_both_copies_are_lost_says_so() {
    let (mut world, vm, moving, [source, _]) = parked_without_its_copy(true);
    world.managers.get_mut(&source).expect("there").remove(&vm);
    let unpark = ControlItem::Unpark { vm, job: moving, decision: ParkedDecision::Retry, by: operator() };
    world.control(vm.shard(world.count), &unpark);
    world.settle();
    let outcome = format!("{:?}", world.home(moving).job(&moving).expect("known").row.outcome);
    assert!(outcome.contains("VmLost"), "{outcome}");
    assert_eq!(world.vm(vm).settled, VmState::Lost);
}

#[test]
fn of_a_migrate_that_is_given_up_no_copy_is_hidden_from_audits() {
    let (mut world, vm, moving, [_, target]) = parked_without_its_copy(true);
    let unpark = ControlItem::Unpark { vm, job: moving, decision: ParkedDecision::Abandon, by: operator() };
    world.control(vm.shard(world.count), &unpark);
    world.settle();
    assert_eq!(world.state(moving), JobState::Failed);
    assert_eq!(world.vm(vm).home.as_ref().map(|home| home.manager), Some(target));
    assert_eq!((world.vm(vm).settled, &world.vm(vm).other), (VmState::Unknown, &None));
}

#[test]
fn a_migrate_for_which_there_is_no_room_fails_whatever_the_vm_is_doing() {
    for off in [false, true] {
        let mut world = World::new(4, 2);
        let vm = made(&mut world, "web");
        if off {
            world.run(&job("off", operate(vm, Operation::Stop(StopMode::Hard)))).expect("off");
        }
        let home = world.vm(vm).home.as_ref().expect("it was made").manager;
        let (name, id) = world.names.iter().find(|(_, id)| **id != home).map(|(n, id)| (n.clone(), *id)).expect("two");
        let full = world.view.managers.iter_mut().find(|m| m.id == id).expect("there");
        full.classes.iter_mut().for_each(|class| class.memory_mib_free_max = 1);
        let result = world.run(&job("move", operate(vm, Operation::Migrate(MigrateTo::Manager(name)))));
        assert_eq!(result, Err(FailureCode::NoRoom), "off: {off}");
        assert_eq!(world.vm(vm).home.as_ref().map(|h| h.manager), Some(home));
        world.check();
    }
}

#[test]
fn after_waits_for_its_predecessor_even_if_it_comes_first() {
    let mut world = World::new(8, 2);
    let first = job("first", Request::Provision(provision("a", 1)));
    let second = with(&job("second", Request::Provision(provision("b", 1))), |j| j.after = Some(first.id));
    world.submit(&second);
    while world.step() {}
    assert_eq!(world.state(second.id), JobState::Waiting);
    world.submit(&first);
    world.settle();
    assert_eq!((world.state(first.id), world.state(second.id)), (JobState::Succeeded, JobState::Succeeded));

    world.fates.insert(Step::Create, [Fate::Fail].into());
    let bad = job("bad", Request::Provision(provision("c", 1)));
    let behind = with(&job("behind", Request::Provision(provision("d", 1))), |j| j.after = Some(bad.id));
    world.submit(&bad);
    world.settle();
    assert_eq!(world.run(&behind), Err(FailureCode::PredecessorFailed));
    let never = with(&job("never", Request::Provision(provision("e", 3))), |j| {
        j.after = Some(job("nobody", Request::Provision(provision("z", 1))).id)
    });
    assert_eq!(world.run(&never), Err(FailureCode::PredecessorFailed));
    world.check();
}

#[test]
fn deadlines_fail_what_was_not_begun_and_wait_for_what_was() {
    let mut world = World::new(2, 2);
    world.view.managers.iter_mut().for_each(|m| m.health = Health::Unknown);
    let late = with(&job("late", Request::Provision(provision("a", 1))), |j| j.deadline = Some(Duration::from_secs(5)));
    assert_eq!(world.run(&late), Err(FailureCode::DeadlineExceeded));
    world.view.managers.iter_mut().for_each(|m| m.health = Health::Healthy);
    let vm = made(&mut world, "b");
    // A call that an open circuit never let out is taken back.
    world.fates.insert(Step::Suspend, [Fate::Closed; 64].into());
    let closed = with(&job("closed", operate(vm, Operation::Suspend)), |j| j.deadline = Some(Duration::from_secs(5)));
    assert_eq!(world.run(&closed), Err(FailureCode::DeadlineExceeded));
    // One whose outcome is unknown stays with its manager until that says whether it was begun.
    world.fates.insert(Step::Suspend, [Fate::Lose; 32].into());
    let lost = with(&job("lost", operate(vm, Operation::Suspend)), |j| j.deadline = Some(Duration::from_secs(5)));
    assert_eq!(world.run(&lost), Err(FailureCode::DeadlineExceeded));
    assert_eq!(world.vm(vm).settled, VmState::Running);
    world.fates.insert(Step::Suspend, [Fate::DoAndLose].into_iter().chain([Fate::Closed; 32]).collect());
    let made = with(&job("made", operate(vm, Operation::Suspend)), |j| j.deadline = Some(Duration::from_secs(5)));
    world.run(&made).expect("it was done in time, and is not undone");
    assert_eq!(world.vm(vm).settled, VmState::Suspended);
    world.check();
}

#[test]
fn cancel_calls_off_what_has_not_begun_and_undoes_a_provision() {
    let mut world = World::new(8, 2);
    world.view.managers.iter_mut().for_each(|m| m.health = Health::Unknown);
    let one = job("one", Request::Provision(provision("a", 1)));
    let many = job("many", Request::Provision(provision("b", 5)));
    for (n, target) in [&one, &many].into_iter().enumerate() {
        world.submit(target);
        while world.step() {}
        world.run(&job(&format!("cancel-{n}"), Request::Cancel(target.id))).expect("cancelled");
        assert_eq!(world.state(target.id), JobState::Cancelled);
    }
    world.view.managers.iter_mut().for_each(|m| m.health = Health::Healthy);
    // A create whose outcome is unknown is found, then removed.
    world.fates.insert(Step::Create, [Fate::DoAndLose, Fate::Lose, Fate::Lose].into());
    let begun = job("begun", Request::Provision(provision("c", 1)));
    world.submit(&begun);
    while world.step() {}
    world.run(&job("cancel-begun", Request::Cancel(begun.id))).expect("cancelled");
    assert_eq!(world.state(begun.id), JobState::Cancelled);
    assert!(world.managers.values().all(std::collections::BTreeMap::is_empty));

    let done = job("done", Request::Provision(provision("d", 1)));
    world.run(&done).expect("made");
    assert_eq!(world.run(&job("too-late", Request::Cancel(done.id))), Err(FailureCode::NotCancellable));
    let unknown = job("unknown", Request::Provision(provision("z", 1))).id;
    assert_eq!(world.run(&job("nobody", Request::Cancel(unknown))), Err(FailureCode::JobNotFound));
    assert_eq!(world.run(&job_of("other", "foreign", Request::Cancel(done.id))), Err(FailureCode::JobNotFound));
    world.check();
}

#[test]
fn the_vms_of_one_job_go_to_managers_of_their_own() {
    for seed in 0..50 {
        let mut world = World::new(8, 5);
        world.random = seed;
        // One takes nothing: who would have drawn it goes elsewhere.
        world.view.managers[2].cordoned = true;
        let one = job(&format!("one-{seed}"), Request::Provision(provision("a", 4)));
        world.run(&one).expect("made");
        let used: Vec<usize> = world.managers.values().map(std::collections::BTreeMap::len).collect();
        assert!(used.iter().filter(|vms| **vms > 1).count() <= 1, "{used:?}");
        assert_eq!(used.iter().sum::<usize>(), 4);
        let many = job(&format!("many-{seed}"), Request::Provision(provision("b", 40)));
        world.run(&many).expect("more than there are managers");
    }
}

#[test]
fn what_undoes_a_cancelled_job_is_one_call_tried_again() {
    let mut world = World::new(1, 2);
    world.fates.insert(Step::Create, [Fate::DoAndLose, Fate::DoAndLose].into());
    world.fates.insert(Step::UndoCreate, [Fate::Closed; 20].into());
    let begun = job("begun", Request::Provision(provision("a", 1)));
    world.submit(&begun);
    while world.step() {}
    world.run(&job("cancel", Request::Cancel(begun.id))).expect("cancelled");
    let undone = world.logs[0]
        .iter()
        .flat_map(|entry| &entry.records)
        .filter(|record| matches!(record, Record::StepBegun { step: Step::UndoCreate, .. }));
    assert_eq!(undone.count(), 1, "one operation, however often it is tried");
    world.check();
}

#[test]
fn operations_on_one_vm_go_in_the_order_accepted() {
    let mut world = World::new(4, 2);
    let vm = made(&mut world, "web");
    for n in 0..20 {
        let operation = if n % 2 == 0 { Operation::Suspend } else { Operation::Resume };
        world.submit(&job(&format!("op-{n}"), operate(vm, operation)));
        // Accepted, one after the other.
        while world.step() {}
    }
    world.settle();
    let power: Vec<Step> =
        world.calls.iter().map(|c| c.0).filter(|s| matches!(s, Step::Suspend | Step::Resume)).collect();
    assert_eq!(power.len(), 20);
    assert!(power.chunks(2).all(|pair| pair == [Step::Suspend, Step::Resume]));
    world.check();
}

#[test]
fn a_long_line_of_work_that_needs_no_call_is_written_in_pieces() {
    const JOBS: usize = 6_000;
    let mut world = World::new(1, 2);
    let vm = made(&mut world, "web");
    world.fates.insert(Step::Restart, [Fate::Lose].into());
    world.submit(&job("slow", operate(vm, Operation::Restart(StopMode::Hard))));
    while world.step() {}
    (0..JOBS).for_each(|n| world.submit(&job(&format!("start-{n}"), operate(vm, Operation::Start))));
    world.settle();
    // Two records for each: that it is over, and that its job is.
    let largest = world.logs[0].iter().map(|entry| entry.records.len()).max();
    assert!(largest.is_some_and(|records| records < JOBS * 3 / 2), "{largest:?} records in one entry");
    world.check();
}

#[test]
fn a_change_behind_our_back_is_read_again_and_reported() {
    let mut world = World::new(4, 2);
    let vm = made(&mut world, "web");
    let manager = world.vm(vm).home.as_ref().expect("a home").manager;
    let held = world.managers.get_mut(&manager).expect("there").get_mut(&vm).expect("there");
    held.facts.power = cellbus_directory::PowerState::Stopped;
    world.control(vm.shard(world.count), &ControlItem::Observed { vm, manager });
    world.settle();
    assert_eq!(world.vm(vm).settled, VmState::Stopped);
    assert!(world.events.values().any(|e| e.id.contains("/state/") && e.body.windows(7).any(|w| w == b"stopped")));
    world.check();
    world.managers.get_mut(&manager).expect("there").remove(&vm);
    world.control(vm.shard(world.count), &ControlItem::Observed { vm, manager });
    world.settle();
    assert_eq!(world.vm(vm).settled, VmState::Lost);
    assert_eq!(world.run(&job("start", operate(vm, Operation::Start))), Err(FailureCode::VmLost));
    world.run(&job("delete", operate(vm, Operation::Delete))).expect("a lost VM can be deleted");
    world.check();
}

#[test]
fn a_broken_manager_is_left_for_another_before_anything_was_made() {
    let mut world = World::new(2, 4);
    world.fates.insert(Step::Create, [Fate::Closed].into());
    world.run(&job("elsewhere", Request::Provision(provision("web", 1)))).expect("another takes it");
    world.check();
}

#[test]
fn work_that_is_sent_again_after_it_ended_is_not_done_again() {
    let mut world = World::new(16, 2);
    let vm = made(&mut world, "web");
    // A job whose home is not the VM's, so that its work travels on a queue.
    let restart = (0..)
        .map(|n| job(&format!("r{n}"), operate(vm, Operation::Restart(StopMode::Hard))))
        .find(|job| job.id.shard(world.count) != vm.shard(world.count))
        .expect("one of them");
    world.run(&restart).expect("restarted");
    let calls = world.calls.len();
    let queue = (vm.shard(world.count).index(), true);
    let sent = world.queues[&queue].last().cloned().expect("the work");
    world.queues.get_mut(&queue).expect("there").push(sent.clone());
    world.settle();
    // Not by a new owner either.
    world.open(usize::from(queue.0));
    world.queues.get_mut(&queue).expect("there").push(sent);
    world.settle();
    assert_eq!(world.calls.len(), calls, "it was restarted once");
    world.check();
}

#[test]
fn a_new_owner_takes_no_call_back_that_the_old_one_may_have_made() {
    let mut world = World::new(2, 2);
    let vm = made(&mut world, "web");
    let suspend = with(&job("s", operate(vm, Operation::Suspend)), |j| j.deadline = Some(Duration::from_secs(5)));
    world.fates.insert(Step::Suspend, [Fate::DoAndLose].into());
    world.submit(&suspend);
    while world.step() {}
    // The old owner dies; to the new one the manager is closed until long after the deadline.
    world.fates.insert(Step::Suspend, [Fate::Closed; 8].into());
    world.open(usize::from(vm.shard(world.count).index()));
    world.settle();
    assert_eq!(world.state(suspend.id), JobState::Succeeded, "it took effect, and that is what the job says");
    world.check();
}
