//! Samples of how much room there is, for the forecast: sent to the cluster's shard once an hour by the
//! process whose cell owns that shard, and at once when it has become so. The shard keeps one an hour.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::ids::ShardId;
use cellbus_directory::capacity::{Room, SAMPLE_EVERY, Sample};
use cellbus_workflows::{CapacityView, ControlItem, Health, ManagerSummary};

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
            let sample = of(&process.board.view());
            if sample.managers.is_empty() {
                continue;
            }
            let item = ControlItem::CapacitySampled { sample: sample.into() };
            let queue = Queue { shard, kind: QueueKind::Control };
            match process.bus.publish(queue, vec![item.encode()]).await {
                Ok(_) => sent = Some(now),
                Err(error) => tracing::debug!(%error, "a sample of capacity was not kept; tried again"),
            }
        }
    }
}

fn of(view: &CapacityView) -> Sample {
    Sample::of(view.managers.iter().map(|manager| (manager.id, rooms(manager))))
}

/// By gear; `None`: nothing is known of the manager.
fn rooms(manager: &ManagerSummary) -> Option<Vec<(String, Room)>> {
    if manager.health == Health::Unknown {
        return None;
    }
    let mut gears: BTreeMap<String, Room> = BTreeMap::new();
    for class in &manager.classes {
        let gear = gears.entry(class.labels.get("gear").cloned().unwrap_or_default()).or_default();
        // What is free at a manager that takes nothing new is not free for anybody.
        let open = |free: u64| if manager.cordoned { 0 } else { free };
        *gear = gear.plus(Room {
            vcpus_free: open(class.vcpus_free),
            vcpus: class.vcpus_total,
            memory_mib_free: open(class.memory_mib_free),
            memory_mib: class.memory_mib_total,
        });
    }
    Some(gears.into_iter().collect())
}
