//! Faults of Cellbus itself: what one VM or one manager brings out is not to stop the others, nor for long.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use cellbus_directory::{JobState, Outcome, VmState};
use cellbus_workflows::Health;
use support::{Cluster, job, provision};

const WAIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_brings_out_a_fault_fails_alone_and_says_so() {
    let cluster = Cluster::start(1, 4, &[("vc-1", 4, 64)]).await;
    let (manager, wanted) = (&cluster.managers[0], provision("one"));
    let epoch = manager.epoch();
    manager.panics_after_operation.store(true, Ordering::Relaxed);
    cluster.gateway.submit(vec![wanted.clone()]).await.unwrap();
    let ended = cluster.gateway.wait_job(wanted.id, WAIT).await.unwrap();
    let Some(Outcome::Failed(failure)) = &ended.row.outcome else { panic!("{ended:?}") };
    assert!(failure.message.contains("a fault of this build") && failure.message.contains("foresaw"), "{failure}");

    // Its manager is fronted as before, and what was made all the same is not left there unknown.
    let others: Vec<_> = (0..20).map(|i| provision(&format!("other-{i}"))).collect();
    cluster.gateway.submit(others.clone()).await.unwrap();
    for job in &others {
        assert_eq!(cluster.gateway.wait_job(job.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    assert_eq!(manager.epoch(), epoch, "it was not opened anew");
    let vm = cluster.gateway.vm(wanted.id.vm(0)).await.unwrap();
    assert_eq!(manager.vms().contains(&vm.id), vm.state != VmState::Deleted, "{vm:?}");
    assert_eq!(cluster.made_twice(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_that_panics_is_opened_anew_under_the_next_epoch() {
    let cluster = Cluster::start(1, 4, &[("vc-1", 4, 64), ("vc-2", 4, 64)]).await;
    let at = |manager: &str, id: &str| {
        let data = serde_json::json!({"name": id, "vcpus": 1, "memory_mib": 1024, "disk_gib": 10, "image": "x",
            "require": {"manager": manager}});
        job("provision", id, None, data)
    };
    let (manager, known) = (&cluster.managers[0], at("vc-1", "known"));
    cluster.gateway.submit(vec![known.clone()]).await.unwrap();
    assert_eq!(cluster.gateway.wait_job(known.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    let (vm, epoch) = (known.id.vm(0), manager.epoch());

    manager.panics_at_change.store(true, Ordering::Relaxed);
    manager.stop_behind_our_back(&vm);
    cluster
        .until("it is said of the manager", || async {
            let rows = cluster.gateway.managers().await.map_err(|e| e.to_string())?;
            let said = rows[0].detail.contains("a fault of this build") && rows[0].health != Health::Healthy;
            if said { Ok(()) } else { Err(format!("{:?}", rows[0])) }
        })
        .await;
    // What is asked of it waits, and others go on.
    let (waits, goes_on) = (at("vc-1", "waits"), at("vc-2", "goes-on"));
    cluster.gateway.submit(vec![waits.clone(), goes_on.clone()]).await.unwrap();
    assert_eq!(cluster.gateway.wait_job(goes_on.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    assert_eq!(cluster.gateway.wait_job(waits.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    assert!(manager.epoch() > epoch, "{} after {epoch}", manager.epoch());
    // The change that brought it out is not lost with it.
    cluster
        .until("the VM is known to be stopped", || async {
            let vm = cluster.gateway.vm(vm).await.map_err(|e| e.to_string())?;
            if vm.state == VmState::Stopped { Ok(()) } else { Err(format!("{vm:?}")) }
        })
        .await;
    assert_eq!(cluster.made_twice(), 0);
}
