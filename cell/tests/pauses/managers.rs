//! Managers in and out, over real cells.

use std::sync::atomic::Ordering;

use cellbus_cell::gateway::Decommission;
use cellbus_directory::{JobState, ManagerMode, RefusalReason};

use super::*;

/// Waits until the owner of a manager goes by this.
async fn is(cluster: &Cluster, name: &str, mode: ManagerMode) {
    cluster
        .until("its owner obeys", || async {
            let rows = cluster.gateway.managers().await.map_err(|error| error.to_string())?;
            let row = rows.into_iter().find(|row| row.name == name).ok_or("no such manager")?;
            let so = row.mode == mode && row.cordoned != mode.takes_vms();
            if so { Ok(()) } else { Err(format!("{row:?}")) }
        })
        .await;
    // Placement goes by what directories tell of it.
    cluster
        .until("placement knows", || async {
            let rows = cluster.gateway.managers().await.map_err(|error| error.to_string())?;
            let closed = rows.iter().filter(|row| !row.mode.takes_vms()).count() as u32;
            let tried = cluster.gateway.dry_run(&provision("tried")).map_err(|error| error.to_string())?;
            let so = tried.ruled_out.get(&RefusalReason::Cordoned).copied().unwrap_or(0) == closed;
            if so { Ok(()) } else { Err(format!("{tried:?}")) }
        })
        .await;
}
async fn empties(cluster: &Cluster, release: bool) -> Decommission {
    let manager = cluster.managers[0].id();
    cluster
        .until("nothing is left", || async {
            let plan = cluster.gateway.decommission_plan(manager, release).await.map_err(|e| e.to_string())?;
            if plan.may_leave { Ok(()) } else { Err(format!("{plan:?}")) }
        })
        .await;
    cluster.gateway.decommission_plan(manager, release).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_is_only_looked_at_until_it_is_enabled() {
    let mut cluster = Cluster::start(2, 8, &[("vc-1", 4, 64), ("vc-2", 4, 64)]).await;
    let vc1 = cluster.managers[0].id();
    let there = provision("there");
    cluster.gateway.set_manager_mode(cluster.managers[1].id(), ManagerMode::ReadOnly, by()).await.unwrap();
    is(&cluster, "vc-2", ManagerMode::ReadOnly).await;
    cluster.gateway.submit(vec![there.clone()]).await.unwrap();
    assert_eq!(cluster.gateway.wait_job(there.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    assert_eq!(cluster.managers[0].vms().len(), 1);

    cluster.gateway.set_manager_mode(vc1, ManagerMode::ReadOnly, by()).await.unwrap();
    is(&cluster, "vc-1", ManagerMode::ReadOnly).await;
    let vm = there.id.vm(0);
    let stop = job("stop", "stop", Some(&vm.to_string()), serde_json::json!({"mode": "hard"}));
    let nowhere = provision("nowhere");
    cluster.gateway.submit(vec![stop.clone(), nowhere.clone()]).await.unwrap();
    waits(&cluster, &stop, "the manager is read-only").await;
    // Behind it: jobs of one batch come to their VM in any order.
    cluster.gateway.submit(vec![delete(vm)]).await.unwrap();
    let ended = cluster.gateway.wait_job(nowhere.id, WAIT).await.unwrap();
    let why = format!("{:?}", ended.row.outcome);
    assert!(ended.row.state == JobState::Failed && why.contains("read-only or leaving"), "{why}");
    assert_eq!(cluster.gateway.hosts(Some(vc1), None, 10).await.unwrap().items.len(), 4, "it is looked at");
    assert!(cluster.gateway.live(vm).await.unwrap().held.is_some());
    // Whoever takes over goes by it too.
    for _ in 0..2 {
        cluster.cells.remove(0).kill();
    }
    let _ = cluster.add_cell();
    is(&cluster, "vc-1", ManagerMode::ReadOnly).await;
    assert!(cluster.managers[0].deletes().is_empty());
    cluster.gateway.set_manager_mode(vc1, ManagerMode::Enabled, by()).await.unwrap();
    for job in [&stop, &delete(vm)] {
        assert_eq!(cluster.gateway.wait_job(job.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    assert_eq!(cluster.managers[0].vms().len(), 0);
}

/// An account that may only read is enough for it; that more is needed is said when it is to be used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_is_looked_at_is_opened_when_it_is_enabled() {
    let mut cluster = Cluster::start(2, 8, &[("vc-1", 4, 64)]).await;
    let (vc1, fake) = (cluster.managers[0].id(), Arc::clone(&cluster.managers[0]));
    cluster.gateway.set_manager_mode(vc1, ManagerMode::ReadOnly, by()).await.unwrap();
    is(&cluster, "vc-1", ManagerMode::ReadOnly).await;
    assert_eq!(fake.looked_at(), 0, "it was open by then");
    fake.forbids.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        cluster.cells.remove(0).kill();
    }
    let _ = cluster.add_cell();
    is(&cluster, "vc-1", ManagerMode::ReadOnly).await;
    assert!(fake.looked_at() > 0);
    assert_eq!(cluster.gateway.hosts(Some(vc1), None, 10).await.unwrap().items.len(), 4);

    cluster.gateway.set_manager_mode(vc1, ManagerMode::Enabled, by()).await.unwrap();
    cluster
        .until("it is said that the account may not", || async {
            let rows = cluster.gateway.managers().await.map_err(|error| error.to_string())?;
            if rows[0].detail.contains("the account may only read") { Ok(()) } else { Err(format!("{rows:?}")) }
        })
        .await;
    // Looked at again, as it was.
    cluster.gateway.set_manager_mode(vc1, ManagerMode::ReadOnly, by()).await.unwrap();
    is(&cluster, "vc-1", ManagerMode::ReadOnly).await;
    fake.forbids.store(false, Ordering::Relaxed);
    cluster.gateway.set_manager_mode(vc1, ManagerMode::Enabled, by()).await.unwrap();
    is(&cluster, "vc-1", ManagerMode::Enabled).await;
    let vm = make_named(&cluster, "used").await;
    assert!(fake.vms().contains(&vm));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_is_emptied_and_may_leave() {
    let cluster = Cluster::start(2, 8, &[("vc-1", 4, 64), ("vc-2", 4, 64)]).await;
    let (manager, other) = (cluster.managers[0].id(), cluster.managers[1].id());
    cluster.gateway.set_manager_mode(other, ManagerMode::ReadOnly, by()).await.unwrap();
    is(&cluster, "vc-2", ManagerMode::ReadOnly).await;
    let vms = make(&cluster, 12).await;
    let here = cluster.managers[0].vms().len() as u64;
    assert_eq!(here, 12);
    cluster.gateway.set_manager_mode(other, ManagerMode::Enabled, by()).await.unwrap();
    is(&cluster, "vc-2", ManagerMode::Enabled).await;
    let suspended = *cluster.managers[0].vms().first().unwrap();
    let suspend = job("suspend", "suspend", Some(&suspended.to_string()), serde_json::json!({}));
    cluster.gateway.submit(vec![suspend.clone()]).await.unwrap();
    assert_eq!(cluster.gateway.wait_job(suspend.id, WAIT).await.unwrap().row.state, JobState::Succeeded);

    let plan = cluster.gateway.decommission_plan(manager, false).await.unwrap();
    assert_eq!((plan.vms, plan.moves.get(&other), plan.stays_total), (here, Some(&(here - 1)), 1), "{plan:?}");
    assert_eq!((plan.stays[0].vm, plan.may_leave, plan.mode), (suspended, false, Some(ManagerMode::Enabled)));
    assert_eq!(cluster.managers[0].vms().len() as u64, here, "a plan changes nothing");

    let begun = cluster.gateway.decommission(manager, false, "round-1", by()).await.unwrap();
    assert_eq!(begun.jobs_total, here - 1);
    let again = cluster.gateway.decommission(manager, false, "round-1", by()).await.unwrap();
    assert!(again.jobs_total < here, "{again:?}");
    for job in &begun.jobs {
        assert_eq!(cluster.gateway.wait_job(*job, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    is(&cluster, "vc-1", ManagerMode::Leaving).await;
    // Nothing new is put there, and the one that stays may still be worked on.
    let late = make_named(&cluster, "late").await;
    assert!(cluster.managers[1].vms().contains(&late));
    let left = cluster.gateway.decommission_plan(manager, false).await.unwrap();
    assert_eq!((left.vms, left.stays_total, left.may_leave), (1, 1, false), "{left:?}");
    assert!(left.hindered_by.contains(&"1 VMs are listed there".to_owned()), "{left:?}");
    cluster.gateway.decommission(manager, true, "round-2", by()).await.unwrap();
    let left = empties(&cluster, true).await;
    assert_eq!((left.vms, left.unknown_there), (0, 1));
    assert_eq!(cluster.managers[0].vms().into_iter().collect::<Vec<_>>(), [suspended], "released, and left as it is");
    assert!(cluster.gateway.vm(suspended).await.is_err());
    assert_eq!(cluster.made_twice(), 0);
    // One stayed, one was made late.
    assert_eq!(cluster.managers[1].vms().len(), vms.len());
}
