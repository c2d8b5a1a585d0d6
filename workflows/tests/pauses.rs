//! Work that an operator has paused waits with the reason, is not lost, and goes on once it may; so does
//! destructive work beyond its limit. Managers that are taken in and out, too.

#[path = "pauses/managers.rs"]
mod managers;
mod world;

use std::time::Duration;

use cellbus_bus::ids::{JobId, ManagerId, ShardId};
use cellbus_bus::job::{MigrateTo, Operation, Request};
use cellbus_directory::pause::{Paused, Scope};
use cellbus_directory::record::{CancelledBy, Operator};
use cellbus_directory::{JobState, Pauses, Record, Step};
use cellbus_workflows::{ControlItem, pauses_in};
use world::{World, job, operate, provision};

const ALL: Scope = Scope { manager: None, paused: Paused::All };
const DESTRUCTIVE: Scope = Scope { manager: None, paused: Paused::Destructive };

fn by() -> Operator {
    Operator { who: "ada".to_owned(), from: "127.0.0.1".to_owned() }
}
fn at(manager: &str, paused: Paused) -> Scope {
    Scope { manager: Some(ManagerId::derive(manager)), paused }
}

/// As the cluster's shard would make it of the records.
fn paused(scopes: &[Scope]) -> Pauses {
    let mut pauses = Pauses::default();
    for scope in scopes {
        let record = Record::Paused { scope: *scope, reason: "a producer runs wild".to_owned(), by: by() };
        pauses.apply(world_began(), &record);
    }
    pauses
}
fn world_began() -> cellbus_bus::WallMs {
    cellbus_bus::WallMs(1_700_000_000_000)
}

impl World {
    /// Known to homes and owners alike.
    fn pause(&mut self, scopes: &[Scope]) {
        self.pauses = paused(scopes);
        self.stopped = paused(scopes);
    }
    /// Whatever may be done in so much time is done.
    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            while self.step() {}
            self.pass(Duration::from_millis(250));
        }
    }
    fn waits_for(&self, job: JobId) -> (JobState, String) {
        let status = self.home(job).job(&job).expect("a job accepted is never unknown");
        (status.row.state, status.waits_for)
    }
    fn made(&self, step: Step) -> usize {
        self.calls.iter().filter(|(made, ..)| *made == step).count()
    }
}

#[test]
fn what_is_paused_waits_with_its_reason_over_new_owners_and_then_goes_on() {
    for scope in [ALL, DESTRUCTIVE, at("m0", Paused::All), at("m0", Paused::Destructive)] {
        let mut world = World::new(4, 1);
        let made = job("made", Request::Provision(provision("web", 1)));
        world.run(&made).unwrap();
        world.pause(&[scope]);
        let delete = job("delete", operate(made.id.vm(0), Operation::Delete));
        let create = job("create", Request::Provision(provision("other", 1)));
        world.submit(&delete);
        world.submit(&create);
        world.wait(3);
        for shard in 0..4 {
            world.open(shard);
        }
        world.wait(60);
        assert_eq!(world.made(Step::Delete), 0, "{scope:?}");
        let home = world.vm(made.id.vm(0)).id.shard(world.count);
        let why = world.shards[usize::from(home.index())].work_on_vm(&made.id.vm(0), &delete.id).unwrap();
        assert_eq!(why.0, JobState::Waiting, "{scope:?}");
        assert!(why.1.contains("paused by ada since 2023-") && why.1.ends_with("a producer runs wild"), "{why:?}");
        let created = world.made(Step::Create);
        match scope.paused {
            Paused::All => {
                assert_eq!((created, world.waits_for(create.id).0), (1, JobState::Waiting), "{scope:?}");
                assert!(world.waits_for(create.id).1.contains("paused"), "{:?}", world.waits_for(create.id));
            }
            Paused::Destructive => assert_eq!(world.state(create.id), JobState::Succeeded),
        }
        world.pause(&[]);
        world.wait(2);
        assert_eq!((world.state(delete.id), world.state(create.id)), (JobState::Succeeded, JobState::Succeeded));
        world.settle();
        world.check();
    }
}

#[test]
fn a_call_that_was_on_its_way_waits_too_and_can_be_called_off() {
    let mut world = World::new(4, 1);
    let made: Vec<_> = (0..2).map(|n| job(&format!("made{n}"), Request::Provision(provision("web", 1)))).collect();
    made.iter().for_each(|made| world.run(made).unwrap());
    // The owner of the manager hears of it first.
    world.stopped = paused(&[DESTRUCTIVE]);
    let deletes: Vec<_> =
        made.iter().map(|made| job(&format!("d{}", made.id), operate(made.id.vm(0), Operation::Delete))).collect();
    deletes.iter().for_each(|delete| world.submit(delete));
    world.wait(2);
    world.pauses = paused(&[DESTRUCTIVE]);
    world.wait(60);
    assert_eq!(world.made(Step::Delete), 0);
    let home = made[0].id.vm(0).shard(world.count);
    let explained = world.shards[usize::from(home.index())].explain_vm(&made[0].id.vm(0)).unwrap();
    assert!(explained.waits_for.starts_with("paused: "), "{explained:?}");
    let asked = explained.attempts;
    world.wait(60);
    let again = world.shards[usize::from(home.index())].explain_vm(&made[0].id.vm(0)).unwrap();
    assert_eq!(again.attempts, asked, "nobody is asked in vain");
    let cancel = ControlItem::Cancel { job: deletes[1].id, tenant: None, by: CancelledBy::Operator(by()) };
    world.control(deletes[1].id.shard(world.count), &cancel);
    world.wait(5);
    assert_eq!(world.state(deletes[1].id), JobState::Cancelled);
    // The home hears of the end first; nobody waits for more than the usual pause of a retry.
    world.pauses = paused(&[]);
    world.wait(1);
    world.stopped = paused(&[]);
    world.wait(40);
    assert_eq!((world.state(deletes[0].id), world.made(Step::Delete)), (JobState::Succeeded, 1));
    world.settle();
    world.check();
}

#[test]
fn new_vms_go_round_a_paused_manager_and_nothing_fails_for_a_pause() {
    let mut world = World::new(4, 2);
    world.pause(&[at("m0", Paused::All)]);
    let round = job("round", Request::Provision(provision("web", 3)));
    world.run(&round).unwrap();
    let homes = |world: &World, job: JobId, count: u32| -> Vec<ManagerId> {
        (0..count).filter_map(|k| world.vm(job.vm(k)).home.as_ref().map(|home| home.manager)).collect()
    };
    assert_eq!(homes(&world, round.id, 3), [ManagerId::derive("m1"); 3]);
    world.pause(&[at("m0", Paused::All), at("m1", Paused::All)]);
    let single = job("single", Request::Provision(provision("single", 1)));
    let mut group = provision("group", 2);
    group.policy.affinity = Some("same".parse().unwrap());
    let group = job("group", Request::Provision(group));
    let moved = job("move", operate(round.id.vm(0), Operation::Migrate(MigrateTo::Manager("m0".parse().unwrap()))));
    [&single, &group, &moved].iter().for_each(|job| world.submit(job));
    let calls = world.calls.len();
    world.wait(300);
    assert_eq!(world.calls.len(), calls);
    for job in [&single, &group, &moved] {
        assert!(!world.state(job.id).ended(), "{:?}", world.waits_for(job.id));
    }
    world.pause(&[]);
    world.wait(5);
    world.settle();
    for job in [&single, &group, &moved] {
        assert_eq!(world.state(job.id), JobState::Succeeded);
    }
    world.check();
}

#[test]
fn pauses_are_kept_with_who_and_when_over_restarts_and_backups() {
    let mut world = World::new(4, 2);
    let cluster = ShardId::of_cluster(world.count);
    let index = usize::from(cluster.index());
    let one = at("m1", Paused::All);
    let pause = |scope, reason: &str| ControlItem::Pause { scope, reason: reason.to_owned(), by: by() };
    for item in [pause(DESTRUCTIVE, "why"), pause(one, ""), pause(DESTRUCTIVE, "again"), pause(ALL, "")] {
        world.control(cluster, &item);
    }
    world.control(cluster, &ControlItem::Resume { scope: ALL, by: by() });
    world.control(cluster, &ControlItem::Resume { scope: ALL, by: by() });
    world.wait(1);
    let scopes = |world: &World, index: usize| -> Vec<Scope> {
        world.shards[index].pauses().iter().map(|(scope, _)| *scope).collect()
    };
    assert_eq!(scopes(&world, index), [DESTRUCTIVE, one]);
    let kept = world.shards[index].pauses().get(&DESTRUCTIVE).unwrap().clone();
    assert_eq!((kept.by, kept.reason.as_str()), (by(), "why"), "the first order stays");
    let said: Vec<String> = world.shards[index].changes().into_iter().map(|change| change.what).collect();
    let m1 = ManagerId::derive("m1");
    let expected = [
        "paused destructive work: why".to_owned(),
        format!("paused all work at manager {m1}"),
        "paused all work".to_owned(),
        "resumed all work".to_owned(),
    ];
    assert_eq!(said, expected);
    world.open(index);
    assert_eq!(scopes(&world, index), [DESTRUCTIVE, one]);
    let snapshot = world.shards[index].snapshot(cellbus_bus::ids::Seq(9));
    assert_eq!(&pauses_in(&snapshot).unwrap(), world.shards[index].pauses());
    world.check();
    // An order that no owner had read when the backup was taken comes along too.
    world.control(cluster, &pause(at("m0", Paused::Destructive), ""));
    let backup = world.backup();
    world.restore(&backup, 8);
    world.rest(50);
    let index = usize::from(ShardId::of_cluster(world.count).index());
    assert_eq!(scopes(&world, index), [DESTRUCTIVE, at("m0", Paused::Destructive), one].map(|scope| scope));
}

#[test]
fn deletes_beyond_the_limit_wait_and_hold_up_nothing_else() {
    const VMS: usize = 40;
    let mut world = World::new(1, 1);
    world.limits.in_flight_per_manager_max = 4;
    world.open(0);
    let made: Vec<_> = (0..VMS).map(|n| job(&format!("v{n}"), Request::Provision(provision("web", 1)))).collect();
    made.iter().for_each(|made| world.submit(made));
    world.settle();
    world.removals = Some(0);
    let deletes: Vec<_> =
        made.iter().map(|made| job(&format!("d{}", made.id), operate(made.id.vm(0), Operation::Delete))).collect();
    deletes.iter().for_each(|delete| world.submit(delete));
    world.wait(60);
    assert_eq!(world.made(Step::Delete), 0);
    // No more is begun than has slots, and what waits says why.
    let begun = |world: &World| made.iter().filter(|made| world.vm(made.id.vm(0)).doing.is_some()).count();
    assert!((1..=4).contains(&begun(&world)), "{}", begun(&world));
    for (made, delete) in made.iter().zip(&deletes) {
        let (state, why) = world.shards[0].work_on_vm(&made.id.vm(0), &delete.id).unwrap();
        assert!(state == JobState::Waiting && why.contains("limit"), "{state} {why}");
    }
    let other = job("other", Request::Provision(provision("other", 1)));
    world.submit(&other);
    world.wait(2);
    assert_eq!(world.state(other.id), JobState::Succeeded, "{:?}", world.waits_for(other.id));
    // One that waits can be called off, and a new owner goes on where this one was.
    let cancel = ControlItem::Cancel { job: deletes[VMS - 1].id, tenant: None, by: CancelledBy::Operator(by()) };
    world.control(deletes[VMS - 1].id.shard(world.count), &cancel);
    world.wait(2);
    assert_eq!(world.state(deletes[VMS - 1].id), JobState::Cancelled);
    world.open(0);
    for minute in 1..=4 {
        world.removals = Some(10);
        world.wait(60);
        assert_eq!(world.made(Step::Delete), (minute * 10).min(VMS - 1), "in minute {minute}");
    }
    world.removals = None;
    world.settle();
    world.check();
}
