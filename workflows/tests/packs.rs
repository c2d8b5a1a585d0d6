//! Items that travel together are each as if they had come alone.

mod world;

use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::contract::QueueKind;
use cellbus_bus::ids::{JobId, VmId};
use cellbus_bus::job::Request;
use cellbus_directory::Work;
use cellbus_workflows::pack::{ITEMS_MAX, pack};
use cellbus_workflows::{ControlItem, JobItem, KnownJobs, Way};
use world::{World, job, provision};

/// Jobs for one VM, as they lie on the queue of their home.
fn jobs(world: &World, home: u16, count: usize) -> Vec<(JobId, Bytes)> {
    (0..)
        .map(|number| job(&format!("j{number}"), Request::Provision(provision(&format!("vm{number}"), 1))))
        .filter(|job| job.id.shard(world.count).index() == home)
        .take(count)
        .map(|job| (job.id, JobItem::Job(job).encode()))
        .collect()
}

fn letters(world: &World) -> Vec<(String, Bytes)> {
    let all = world.shards.iter().flat_map(|shard| shard.dead_letters());
    all.map(|letter| (letter.code.clone(), letter.original.clone())).collect()
}

#[test]
fn what_is_wrong_with_one_item_is_its_own_matter() {
    let mut world = World::new(2, 4);
    let (good, elsewhere) = (jobs(&world, 0, 2), jobs(&world, 1, 1));
    let damaged = Bytes::from_static(b"\x01\xff\xff");
    let within = pack(QueueKind::Jobs, vec![good[0].1.clone(), good[1].1.clone()]).remove(0);
    let items = vec![good[0].1.clone(), damaged.clone(), elsewhere[0].1.clone(), within.clone(), good[1].1.clone()];
    let message = pack(QueueKind::Jobs, items);
    assert_eq!(message.len(), 1);
    world.queues.entry((0, true)).or_default().extend(message);
    world.settle();
    for (id, _) in &good {
        assert_eq!(world.state(*id), cellbus_directory::JobState::Succeeded);
    }
    let mut aside = letters(&world);
    aside.sort();
    let mut expected = [("unreadable", damaged), ("unreadable", within), ("wrong_shard", elsewhere[0].1.clone())]
        .map(|(code, original)| (code.to_owned(), original));
    expected.sort();
    assert_eq!(aside, expected);
    world.check();
}

#[test]
fn a_pack_of_control_items_within_another_is_put_aside() {
    let mut world = World::new(1, 1);
    let item = ControlItem::Cancel {
        job: JobId::derive("acme", "/test", "none"),
        tenant: None,
        by: cellbus_directory::record::CancelledBy::Job(JobId::derive("acme", "/test", "other")),
    };
    let within = pack(QueueKind::Control, vec![item.encode(); 2]).remove(0);
    let message = pack(QueueKind::Control, vec![within.clone(), item.encode()]);
    world.queues.entry((0, false)).or_default().extend(message);
    world.settle();
    assert_eq!(letters(&world), [("unreadable".to_owned(), within)]);
}

#[test]
fn vms_that_come_in_one_message_do_not_go_to_one_manager() {
    const MANAGERS: usize = 64;
    let mut world = World::new(1, MANAGERS);
    let parent = job("many", Request::Provision(provision("web", 640)));
    world.run(&parent).expect("all of them");
    let messages = world.queues[&(0, true)].len();
    assert_eq!(messages, 1 + 640 / ITEMS_MAX, "the job, and its work in packs");
    let fullest = world.managers.values().map(std::collections::BTreeMap::len).max().expect("managers");
    assert!(fullest < ITEMS_MAX, "{fullest} of 640 VMs on one of {MANAGERS} managers");
    world.check();
}

#[test]
fn a_restore_takes_packs_apart() {
    let world = World::new(1, 1);
    let parent = job("many", Request::Provision(provision("web", 9)));
    let work = |vm: VmId, index: u32| Work {
        vm,
        job: parent.id,
        index,
        tenant: parent.tenant.clone(),
        accepted_at: cellbus_bus::env::WallMs(0),
        deadline_at: None,
        task: cellbus_directory::work::Task::Inspect,
    };
    let items: Vec<(VmId, Bytes)> = (0..9)
        .map(|index| (parent.id.vm(index), JobItem::Work(Arc::new(work(parent.id.vm(index), index))).encode()))
        .collect();
    let message = pack(QueueKind::Jobs, items.iter().map(|(_, item)| item.clone()).collect()).remove(0);
    let to = cellbus_bus::ids::ShardCount::new(16).expect("a count");
    let known = KnownJobs::new(cellbus_bus::env::WallMs(1_000_000));
    let way = Way { from: world.shards[0].id(), of: world.count, to, known: &known };
    let there: Vec<_> = way.message(QueueKind::Jobs, &message).collect();
    let expected: Vec<_> = items.iter().map(|(vm, item)| (vm.shard(to), item.clone())).collect();
    assert_eq!(there, expected);
}
