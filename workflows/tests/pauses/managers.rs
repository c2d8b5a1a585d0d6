//! Managers in and out: what is said of one is kept, and a VM that is released is forgotten and left alone.

use cellbus_bus::ids::{HostId, ManagerId, Seq, ShardId, VmId};
use cellbus_directory::{ManagerMode, VmState};

use super::*;

fn release(world: &mut World, vm: VmId, manager: ManagerId) {
    let home = vm.shard(world.count);
    world.control(home, &ControlItem::Release { vm, manager });
}
fn known(world: &World, vm: VmId) -> bool {
    let home = vm.shard(world.count);
    world.shards[usize::from(home.index())].vm(&vm).is_some()
}

/// What a shard keeps of managers is the same to another owner, and from a snapshot.
fn outlives_owners_and_snapshots(world: &mut World, index: usize) {
    let kept = world.shards[index].managers_kept();
    world.open(index);
    assert_eq!(world.shards[index].managers_kept(), kept);
    let shard =
        ShardId::new(u16::try_from(index).expect("few shards"), world.count).expect("one of the world's shards");
    let snapshot = world.shards[index].snapshot(Seq(9));
    let restored = cellbus_workflows::Shard::restore(shard, world.count, world.limits.clone(), snapshot)
        .expect("its own snapshot");
    assert_eq!(restored.managers_kept(), kept);
    world.check();
}
/// The world is lost, and restored from its backup.
fn restored(world: &mut World) {
    let backup = world.backup();
    world.restore(&backup, 8);
    world.rest(50);
}

#[test]
fn what_is_said_of_a_manager_outlives_owners_snapshots_and_a_restore() {
    let mut world = World::new(4, 2);
    let manager = ManagerId::derive("m0");
    let shard = manager.shard(world.count);
    let index = usize::from(shard.index());
    let mode = |world: &World, index: usize| world.shards[index].managers_kept().modes.get(&manager).copied();
    assert_eq!(mode(&world, index), None, "nobody has said anything");
    for said in [ManagerMode::ReadOnly, ManagerMode::ReadOnly, ManagerMode::Enabled, ManagerMode::Leaving] {
        world.control(shard, &ControlItem::SetManagerMode { manager, mode: said, by: by() });
        world.settle();
        assert_eq!(mode(&world, index), Some(said));
    }
    let changes = world.shards[index].changes();
    assert_eq!(changes.len(), 3, "said again, it is no change: {changes:?}");
    assert_eq!(changes[0].what, format!("set manager {manager} to read-only"));
    outlives_owners_and_snapshots(&mut world, index);
    restored(&mut world);
    let index = usize::from(manager.shard(world.count).index());
    assert_eq!(mode(&world, index), Some(ManagerMode::Leaving));
}

#[test]
fn a_host_that_is_called_dead_is_so_for_every_owner_and_not_after_a_restore() {
    let mut world = World::new(4, 2);
    let manager = ManagerId::derive("m0");
    let shard = manager.shard(world.count);
    let index = usize::from(shard.index());
    let host: HostId = "h1".parse().unwrap();
    let dead = |world: &World, index: usize| world.shards[index].managers_kept().fenced;
    let fence = |host: &HostId, fenced| ControlItem::FenceHost { manager, host: host.clone(), fenced, by: by() };
    for fenced in [false, true, true, false, true] {
        world.control(shard, &fence(&host, fenced));
        world.settle();
        let expected = if fenced { vec![(manager, host.clone())] } else { Vec::new() };
        assert_eq!(dead(&world, index), expected);
    }
    let changes = world.shards[index].changes();
    let said: Vec<&str> = changes.iter().map(|change| change.what.as_str()).collect();
    let (on, off) = ("called host h1 dead", "took back that host h1 is dead");
    assert_eq!(said, [on, off, on], "said again, it is no change");
    outlives_owners_and_snapshots(&mut world, index);
    restored(&mut world);
    let index = usize::from(manager.shard(world.count).index());
    assert_eq!(dead(&world, index), [], "it may run VMs by then");
}

#[test]
fn a_vm_that_is_released_is_forgotten_and_its_manager_keeps_it() {
    let mut world = World::new(4, 1);
    let manager = ManagerId::derive("m0");
    let made: Vec<_> = (0..3).map(|n| job(&format!("made{n}"), Request::Provision(provision("web", 1)))).collect();
    made.iter().for_each(|made| world.run(made).unwrap());
    let [released, busy, elsewhere] = [0, 1, 2].map(|n: usize| made[n].id.vm(0));
    // Work on it is under way: it is not released before that has ended.
    world.pause(&[ALL]);
    let stop = job("stop", operate(busy, Operation::Stop(cellbus_bus::job::StopMode::Hard)));
    world.submit(&stop);
    world.wait(1);
    release(&mut world, busy, manager);
    release(&mut world, released, manager);
    release(&mut world, elsewhere, ManagerId::derive("m9"));
    world.wait(2);
    assert_eq!([busy, released, elsewhere].map(|vm| known(&world, vm)), [true, false, true]);
    world.pause(&[]);
    world.wait(2);
    assert_eq!((world.state(stop.id), world.vm(busy).settled), (JobState::Succeeded, VmState::Stopped));
    release(&mut world, busy, manager);
    world.wait(2);
    assert_eq!([busy, released, elsewhere].map(|vm| known(&world, vm)), [false, false, true]);
    // Nothing was asked of the manager for it, which has them all.
    assert_eq!(world.made(Step::Delete) + world.made(Step::Inspect), 0);
    assert_eq!(world.managers[&manager].len(), 3);
    // What is sent again makes nothing anew, and the VM is nobody's.
    world.submit(&made[0]);
    let delete = job("delete", operate(released, Operation::Delete));
    world.submit(&delete);
    world.wait(2);
    assert_eq!((world.made(Step::Create), world.made(Step::Delete)), (3, 0));
    assert_eq!(world.state(delete.id), JobState::Failed);
    for shard in 0..4 {
        world.open(shard);
    }
    world.settle();
    assert_eq!([busy, released, elsewhere].map(|vm| known(&world, vm)), [false, false, true]);
}
