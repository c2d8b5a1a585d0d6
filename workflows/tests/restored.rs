//! A backup is taken in the middle of random work, which goes on to its end; then another cluster, with
//! any number of shards, is restored from it under the same managers. Producers send everything again.
//! Nothing is removed before an audit, no VM is made twice, every job ends once.

mod world;

use std::sync::Arc;

use cellbus_bus::ids::VmId;
use cellbus_bus::job::{Job, MigrateTo, Operation, Request, StopMode};
use cellbus_directory::{JobState, Step};
use world::{World, job, operate, provision};

fn operation(n: u64, world: &World) -> Operation {
    let manager = |n: u64| world.names.iter().nth((n % 3) as usize).map(|(name, _)| name.clone()).expect("three");
    match n % 10 {
        0 | 1 => Operation::Start,
        2 | 3 => Operation::Stop(StopMode::Graceful),
        4 => Operation::Suspend,
        5 => Operation::Resume,
        6 => Operation::Resize { vcpus: Some(1 + (n >> 8) as u32 % 8), memory_mib: None, disk_gib: None },
        7 | 8 => Operation::Migrate(MigrateTo::Manager(manager(n >> 8))),
        _ => Operation::Delete,
    }
}

/// Jobs at random. None is called off or has a deadline: what was made for such a job after the backup
/// was taken is left for a person, and here everything must come out even.
fn jobs(world: &mut World, prefix: &str, count: usize, vms: &mut Vec<VmId>) -> Vec<Arc<Job>> {
    let mut jobs: Vec<Arc<Job>> = Vec::new();
    for n in 0..count {
        let pick = world.next_random();
        let request = if vms.is_empty() || pick.is_multiple_of(4) {
            let count = if pick.is_multiple_of(3) { 1 + (pick >> 16) as u32 % 6 } else { 1 };
            Request::Provision(provision(&format!("{prefix}{n}"), count))
        } else {
            operate(vms[(pick >> 20) as usize % vms.len()], operation(pick >> 30, world))
        };
        let mut job = Arc::unwrap_or_clone(job(&format!("{prefix}{n}"), request));
        // What was made is left for a person, too, if this time the job before it fails.
        if pick.is_multiple_of(13) && !jobs.is_empty() && matches!(job.request, Request::Operate(..)) {
            job.after = Some(jobs[(pick >> 12) as usize % jobs.len()].id);
        }
        let job = Arc::new(job);
        if let Request::Provision(p) = &job.request {
            vms.extend((0..p.count).map(|k| job.id.vm(k)));
        }
        world.submit(&job);
        for _ in 0..pick % 3 {
            world.step();
        }
        jobs.push(job);
    }
    jobs
}

fn run(seed: u64, old: u16, new: u16) {
    let mut world = World::new(old, 3);
    world.random = seed;
    let mut vms = Vec::new();
    let mut all = jobs(&mut world, "before", 40, &mut vms);
    let known: Vec<_> = all.iter().map(|job| job.id).collect();
    // The queues are read a little after the logs.
    let backup = world.backup_while(|world| {
        for _ in 0..seed % 4 {
            world.step();
        }
    });
    all.extend(jobs(&mut world, "after", 20, &mut vms));
    world.settle();
    world.check();

    world.now = world.now.after(std::time::Duration::from_secs(3_600));
    world.restore(&backup, new);
    world.calls.clear();
    // It runs for as long as it can without an audit.
    world.rest(200);
    let changes = |world: &World| world.calls.iter().filter(|(step, ..)| *step != Step::Inspect).count();
    assert_eq!(changes(&world), 0, "nothing is changed at a manager that was not read: {:?}", world.calls);
    for id in &known {
        // Accepted before it began, so it is there, in a log or a queue that was read by now.
        world.home(*id).job(id).expect("a job that was acknowledged is not lost");
    }
    for job in &all {
        world.submit(job);
    }
    world.rest(200);
    world.audit(false);
    world.rest(400);
    let removes = |(step, ..): &&(Step, VmId, _)| {
        matches!(step, Step::Delete | Step::DropSource | Step::UndoCreate | Step::UndoCopy | Step::Revert)
    };
    assert_eq!(world.calls.iter().find(removes), None, "nothing is removed before a person has looked");
    world.audit(true);
    world.rest(400);
    world.abandon_parked();
    world.settle();
    world.repair();
    world.settle();
    world.check();
    for job in &all {
        assert!(world.state(job.id).ended());
    }
}

#[test]
fn what_was_restored_goes_on_with_any_number_of_shards() {
    let asked = std::env::var("CELLBUS_SEEDS").ok().and_then(|seed| seed.parse::<u64>().ok());
    let long = std::env::var_os("CELLBUS_LONG").is_some();
    let range = asked.map_or(0..if long { 2_000 } else { 100 }, |seed| seed..seed + 1);
    for seed in range {
        eprintln!("seed {seed}");
        let (old, new) = [(4, 4), (4, 1), (1, 5), (3, 7), (6, 4), (2, 8)][(seed % 6) as usize];
        run(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, old, new);
    }
}

#[test]
fn a_vm_that_was_made_after_the_backup_is_adopted_when_its_job_comes_again() {
    let mut world = World::new(2, 3);
    let backup = world.backup();
    let request = job("late", Request::Provision(provision("web", 1)));
    world.run(&request).expect("made");
    let stop = operate(request.id.vm(0), Operation::Stop(StopMode::Hard));
    world.run(&job("stop", stop)).expect("its manager has seen more operations than one");
    let made = world.vm(request.id.vm(0)).home.clone().expect("a place").manager;
    world.restore(&backup, 3);
    world.submit(&request);
    world.rest(100);
    assert_eq!(world.managers.values().map(std::collections::BTreeMap::len).sum::<usize>(), 1, "not made again");
    let waits = world.home(request.id).job(&request.id).expect("known");
    assert_eq!((waits.row.state, waits.waits_for.contains("audit")), (JobState::Waiting, true), "{}", waits.waits_for);
    world.audit(true);
    world.settle();
    assert_eq!(world.vm(request.id.vm(0)).home.as_ref().map(|home| home.manager), Some(made));
    world.check();
}

#[test]
fn epochs_and_operations_are_above_all_that_were() {
    use cellbus_bus::env::WallMs;
    use cellbus_bus::ids::Epoch;
    use cellbus_workflows::generation;
    let first = generation(WallMs(1_700_000_000_000), Epoch(9));
    assert!(first > 9);
    // The same backup again, a second later; and one of what had been restored and ran on.
    assert!(generation(WallMs(1_700_000_001_000), Epoch(9)) > first + 500_000);
    assert!(generation(WallMs(1_700_000_001_000), Epoch(first + 1_000)) > first + 1_000);
    // A clock that stands still or goes back does not matter where the epochs are in the backup.
    assert!(generation(WallMs(0), Epoch(first + 1_000)) > first + 1_000);
    assert!(generation(WallMs(4_000_000_000_000), Epoch(0)) < 1 << 53, "every reader of JSON takes it");
}
