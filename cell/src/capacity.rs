//! Samples of how much room there is, for the forecast: sent to the cluster's shard once an hour by the
//! process whose cell owns that shard, and at once when it has become so. The shard keeps one an hour.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::ids::ShardId;
use cellbus_directory::capacity::{Adds, Disk, Room, SAMPLE_EVERY, Sample};
use cellbus_workflows::{CapacityView, ClassSummary, ControlItem, Health, ManagerSummary};

use crate::Process;

/// How often it is looked whether one is due. Managers have been read by the first time, as a rule.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Sends them for as long as it is polled.
pub(crate) async fn sample(process: &Process) -> Infallible {
    let shard = ShardId::of_cluster(process.count);
    let mut sent = None;
    loop {
        process.env.sleep(LOOK_EVERY).await;
        let owned = process.routes.of(shard).is_some_and(|route| process.local.has(&route.peer.cell));
        let now = process.env.mono();
        let due = sent.is_none_or(|at| now.since(at) >= SAMPLE_EVERY);
        if !owned {
            sent = None;
        } else if due {
            let view = process.board.view();
            let (sample, disk) = (of(&view, room), of(&view, disk));
            if sample.managers.is_empty() {
                continue;
            }
            let room = ControlItem::CapacitySampled { sample: sample.into() };
            let disk = ControlItem::DiskSampled { sample: disk.into() };
            let queue = Queue { shard, kind: QueueKind::Control };
            match process.bus.publish(queue, vec![room.encode(), disk.encode()]).await {
                Ok(_) => sent = Some(now),
                Err(error) => tracing::debug!(%error, "a sample of capacity was not kept; tried again"),
            }
        }
    }
}

/// What is free at a class of hosts, and how much there is in all; the flag: whether any of it is free for
/// anybody. What is free at a manager that takes nothing new is not.
type Of<R> = fn(&ClassSummary, bool) -> R;

fn room(class: &ClassSummary, open: bool) -> Room {
    let free = |free: u64| if open { free } else { 0 };
    Room {
        vcpus_free: free(class.vcpus_free),
        vcpus: class.vcpus_total,
        memory_mib_free: free(class.memory_mib_free),
        memory_mib: class.memory_mib_total,
    }
}

fn disk(class: &ClassSummary, open: bool) -> Disk {
    Disk { gib_free: if open { class.disk_gib_free } else { 0 }, gib: class.disk_gib_total }
}

fn of<R: Adds>(view: &CapacityView, room: Of<R>) -> Sample<R> {
    Sample::of(view.managers.iter().map(|manager| (manager.id, rooms(manager, room))))
}

/// By gear; `None`: nothing is known of the manager.
fn rooms<R: Adds>(manager: &ManagerSummary, room: Of<R>) -> Option<Vec<(String, R)>> {
    if manager.health == Health::Unknown {
        return None;
    }
    let mut gears: BTreeMap<String, R> = BTreeMap::new();
    for class in &manager.classes {
        let gear = gears.entry(class.labels.get("gear").cloned().unwrap_or_default()).or_default();
        *gear = gear.plus(room(class, !manager.cordoned));
    }
    Some(gears.into_iter().collect())
}
