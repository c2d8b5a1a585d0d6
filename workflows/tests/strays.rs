//! VMs that are taken in, that have moved behind Cellbus's back, and that are on two managers.

mod world;

use std::sync::Arc;

use cellbus_bus::ids::{JobId, ManagerId, OpNumber, ShortName, VmId};
use cellbus_bus::job::{Labels, Operation, Policy, Request, Size};
use cellbus_directory::work::Task;
use cellbus_directory::{Adoption, FailureCode, PowerState, Step, Template, VmFacts, VmState, Work};
use cellbus_workflows::ControlItem;
use world::{Held, World, job, operate, provision, tenant};

fn made(world: &mut World, id: &str) -> (VmId, ManagerId) {
    let job = job(id, Request::Provision(provision(id, 1)));
    world.run(&job).expect("a VM");
    let vm = job.id.vm(0);
    (vm, world.vm(vm).home.as_ref().expect("a home").manager)
}

fn other_than(world: &World, manager: ManagerId) -> ManagerId {
    *world.managers.keys().find(|id| **id != manager).expect("another manager")
}

fn held(op: u64) -> Held {
    let facts = VmFacts {
        host: "h1".parse().expect("a host"),
        power: PowerState::Stopped,
        size: Size { vcpus: 3, memory_mib: 300, disk_gib: 30 },
        snapshots: vec!["before".parse::<ShortName>().expect("a name")],
    };
    Held { facts, op: OpNumber(op) }
}

/// A VM with an id of ours stands on a manager.
fn plant(world: &mut World, manager: ManagerId, vm: VmId, held: Held) {
    world.seen.insert((manager, vm), held.op);
    world.managers.get_mut(&manager).expect("a manager").insert(vm, held);
}

fn work(world: &World, vm: VmId, owner: &str, job: uuid::Uuid, task: Task) -> Work {
    let (job, tenant) = (JobId::from_uuid(job), tenant(owner));
    Work { vm, job, index: 0, tenant, accepted_at: world.now, deadline_at: None, task }
}

fn adoption(world: &World, vm: VmId, owner: &str, name: &str, manager: ManagerId, op: u64) -> Work {
    let labels = Labels::from([("from".to_owned(), "before".to_owned())]);
    let template = Template { image: "adopted".to_owned(), labels, require: Labels::new(), policy: Policy::default() };
    let adoption = Adoption {
        name: name.parse().expect("a name"),
        size: Size { vcpus: 1, memory_mib: 1, disk_gib: 1 },
        template: Arc::new(template),
        manager,
        foreign: Some("vm-42".parse().expect("a key")),
        op: OpNumber(op),
    };
    work(world, vm, owner, uuid::Uuid::nil(), Task::Adopt(Arc::new(adoption)))
}

fn adopted(manager: ManagerId) -> VmId {
    VmId::adopted(manager, &"vm-42".parse().expect("a key"))
}

fn letters(world: &World) -> Vec<String> {
    world.shards.iter().flat_map(|shard| shard.dead_letters()).map(|letter| letter.code.clone()).collect()
}

fn steps(world: &World, vm: VmId) -> Vec<Step> {
    world.calls.iter().filter(|(_, of, _)| *of == vm).map(|(step, ..)| *step).collect()
}

#[test]
fn a_vm_that_stands_there_is_taken_in_once_and_is_like_any_other() {
    let mut world = World::new(4, 2);
    let manager = *world.managers.keys().next().expect("a manager");
    let vm = adopted(manager);
    plant(&mut world, manager, vm, held(7));
    let work = adoption(&world, vm, "acme", "old", manager, 7);
    // Sent again, before and after.
    for _ in 0..2 {
        world.work(&work);
    }
    world.settle();
    world.work(&work);
    world.settle();
    assert_eq!(steps(&world, vm), [Step::Adopt]);
    let row = world.vm(vm);
    assert_eq!((row.name.as_str(), row.settled, row.size.vcpus, row.op), ("old", VmState::Stopped, 3, OpNumber(8)));
    assert_eq!((row.snapshots.len(), row.template.labels.len()), (1, 1));
    assert!(world.events.keys().any(|id| id.ends_with("/state/8")), "its state is told: {:?}", world.events.keys());
    // For somebody else it is not there to be had.
    let theirs = adoption(&world, vm, "globex", "mine", manager, 7);
    world.work(&theirs);
    world.settle();
    assert_eq!(letters(&world), ["already_adopted"]);
    world.run(&job("start", operate(vm, Operation::Start))).expect("it starts");
    world.check();
}

#[test]
fn what_cannot_be_taken_in_is_put_aside_and_may_be_tried_again() {
    let mut world = World::new(4, 2);
    let manager = *world.managers.keys().next().expect("a manager");
    let vm = adopted(manager);
    let work = adoption(&world, vm, "acme", "old", manager, 0);
    world.work(&work);
    world.settle();
    assert_eq!(letters(&world), ["not_adopted"]);
    assert_eq!((world.vm(vm).settled, &world.vm(vm).home), (VmState::Deleted, &None));
    world.check();

    // It is there now, under another name, and its tombstone stands in nobody's way.
    plant(&mut world, manager, vm, held(1));
    let again = adoption(&world, vm, "globex", "new", manager, 1);
    world.work(&again);
    world.settle();
    let row = world.vm(vm);
    assert_eq!((row.tenant.as_str(), row.name.as_str(), row.settled), ("globex", "new", VmState::Stopped));
    // Retention has nothing to bury.
    world.pass(world.limits.remember * 2);
    world.settle();
    assert_eq!(world.vm(vm).settled, VmState::Stopped);
    world.check();
}

#[test]
fn a_registration_that_was_moved_is_followed_and_the_vm_keeps_its_id() {
    let mut world = World::new(4, 2);
    let (vm, home) = made(&mut world, "web");
    let other = other_than(&world, home);
    let moved = world.managers.get_mut(&home).and_then(|vms| vms.remove(&vm)).expect("it was there");
    plant(&mut world, other, vm, moved);
    world.control(vm.shard(world.count), &ControlItem::Observed { vm, manager: other });
    world.settle();
    assert_eq!(steps(&world, vm)[1..], [Step::CheckStray, Step::CheckHome, Step::Inspect]);
    let row = world.vm(vm);
    let place = row.home.as_ref().expect("a home");
    assert_eq!((place.manager, place.host.is_some(), row.settled), (other, true, VmState::Running));
    world.run(&job("stop", operate(vm, Operation::Suspend))).expect("it is reached there");
    world.check();

    // Its old manager is heard of first: for a while it is lost, and never nowhere.
    let moved = world.managers.get_mut(&other).and_then(|vms| vms.remove(&vm)).expect("it is there");
    world.control(vm.shard(world.count), &ControlItem::Observed { vm, manager: other });
    world.settle();
    assert_eq!((world.vm(vm).settled, world.vm(vm).home.is_some()), (VmState::Lost, true));
    plant(&mut world, home, vm, moved);
    world.control(vm.shard(world.count), &ControlItem::Observed { vm, manager: home });
    world.settle();
    assert_eq!(world.vm(vm).home.as_ref().map(|place| place.manager), Some(home));
    assert_eq!(world.vm(vm).settled, VmState::Suspended);
    world.check();
}

#[test]
fn a_registration_that_is_made_anew_before_the_old_one_ends_is_followed_too() {
    let mut world = World::new(4, 2);
    let (vm, home) = made(&mut world, "web");
    let other = other_than(&world, home);
    let copy = world.managers[&home][&vm].clone();
    plant(&mut world, other, vm, copy);
    world.control(vm.shard(world.count), &ControlItem::Observed { vm, manager: other });
    world.settle();
    assert_eq!(world.vm(vm).home.as_ref().map(|place| place.manager), Some(home), "as long as it has it");
    world.managers.get_mut(&home).and_then(|vms| vms.remove(&vm)).expect("it was there");
    world.control(vm.shard(world.count), &ControlItem::Observed { vm, manager: home });
    world.settle();
    assert_eq!(world.vm(vm).home.as_ref().map(|place| place.manager), Some(other));
    assert_eq!(world.vm(vm).settled, VmState::Running);
    world.check();
}

#[test]
fn of_two_copies_only_the_one_that_is_not_at_home_is_removed_and_only_while_home_has_it() {
    let mut world = World::new(4, 2);
    let (vm, home) = made(&mut world, "web");
    let other = other_than(&world, home);
    plant(&mut world, other, vm, held(40));
    // Seen, it changes nothing: which is the VM is for a person to say.
    world.control(vm.shard(world.count), &ControlItem::Observed { vm, manager: other });
    world.settle();
    assert_eq!(world.vm(vm).home.as_ref().map(|place| place.manager), Some(home));
    assert!(world.managers[&other].contains_key(&vm));

    let drop = |world: &World, at| {
        let task = Task::DropStray { manager: at, op: OpNumber(40) };
        work(world, vm, "acme", at.uuid(), task)
    };
    // At home there is nothing to be removed.
    let at_home = drop(&world, home);
    world.work(&at_home);
    world.settle();
    assert!(world.managers[&home].contains_key(&vm));
    let stray = drop(&world, other);
    world.work(&stray);
    world.settle();
    assert!(!world.managers[&other].contains_key(&vm), "{:?}", steps(&world, vm));
    assert_eq!((world.vm(vm).settled, &world.vm(vm).other), (VmState::Running, &None));
    world.check();

    // Is home without it, what is elsewhere is all there is.
    let last = world.managers.get_mut(&home).and_then(|vms| vms.remove(&vm)).expect("it was there");
    plant(&mut world, other, vm, last);
    let stray = drop(&world, other);
    world.work(&stray);
    world.settle();
    assert!(world.managers[&other].contains_key(&vm));
    world.control(vm.shard(world.count), &ControlItem::Observed { vm, manager: other });
    world.settle();
    world.check();
    assert_eq!(world.run(&job("gone", operate(adopted(home), Operation::Start))), Err(FailureCode::VmNotFound));
}
