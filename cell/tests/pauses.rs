//! The emergency stop over real cells: it holds over takeovers and for a cell that cannot learn of it,
//! within its bound; nothing is lost by it. Managers are taken in and out, too.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "pauses/managers.rs"]
mod managers;
mod support;

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::VmId;
use cellbus_bus::job::Job;
use cellbus_cell::pauses::KNOWN_FOR;
use cellbus_directory::JobState;
use cellbus_directory::pause::{Paused, Scope};
use cellbus_directory::record::Operator;
use support::{Cluster, job, provision};

const WAIT: Duration = Duration::from_secs(30);
const DESTRUCTIVE: Scope = Scope { manager: None, paused: Paused::Destructive };

fn by() -> Operator {
    Operator { who: "ada".to_owned(), from: "127.0.0.1".to_owned() }
}

async fn make(cluster: &Cluster, count: usize) -> Vec<VmId> {
    let jobs: Vec<_> = (0..count).map(|n| provision(&format!("p{n}"))).collect();
    cluster.gateway.submit(jobs.clone()).await.unwrap();
    for job in &jobs {
        assert_eq!(cluster.gateway.wait_job(job.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    jobs.iter().map(|job| job.id.vm(0)).collect()
}
async fn make_named(cluster: &Cluster, name: &str) -> VmId {
    let made = provision(name);
    cluster.gateway.submit(vec![made.clone()]).await.unwrap();
    assert_eq!(cluster.gateway.wait_job(made.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    made.id.vm(0)
}
fn delete(vm: VmId) -> Arc<Job> {
    job("delete", &format!("d{vm}"), Some(&vm.to_string()), serde_json::json!({}))
}
fn deleted(cluster: &Cluster) -> usize {
    cluster.managers.iter().map(|manager| manager.deletes().len()).sum()
}

/// Waits until the job waits for the end of a pause.
async fn waits(cluster: &Cluster, job: &Job, what: &str) {
    cluster
        .until(what, || async {
            let status = cluster.gateway.job(job.id).await.map_err(|error| error.to_string())?;
            let so = status.row.state == JobState::Waiting && status.waits_for.contains(what);
            if so { Ok(()) } else { Err(format!("{} {}", status.row.state, status.waits_for)) }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_holds_over_the_end_of_every_cell_and_nothing_is_lost() {
    let mut cluster = Cluster::start(2, 8, &[("vc-1", 4, 64), ("vc-2", 4, 64)]).await;
    let vms = make(&cluster, 24).await;
    let shown = cluster.gateway.pause(DESTRUCTIVE, "a producer runs wild".to_owned(), by()).await.unwrap();
    assert_eq!(shown.pauses.get(&DESTRUCTIVE).unwrap().by, by());
    let deletes: Vec<_> = vms.iter().map(|vm| delete(*vm)).collect();
    cluster.gateway.submit(deletes.clone()).await.unwrap();
    for delete in &deletes {
        waits(&cluster, delete, "destructive work paused by ada").await;
    }
    cluster
        .until("managers say so", || async {
            let rows = cluster.gateway.managers().await.map_err(|error| error.to_string())?;
            let so = rows
                .iter()
                .all(|row| row.paused == Some(Paused::Destructive) && row.paused_why.ends_with("a producer runs wild"));
            if so { Ok(()) } else { Err(format!("{rows:?}")) }
        })
        .await;
    // Every cell dies; one of another process, which has heard of nothing, takes over.
    cluster.cells.drain(..).for_each(|cell| cell.kill());
    let record = cellbus_cell::node::cluster_record(
        cluster.bus.as_ref() as &dyn cellbus_bus::Bus,
        &cluster.env,
        cluster.process.shard_count(),
        cluster.process.build().formats,
    );
    let record = record.await.unwrap();
    cluster.add_cell_of_build(cluster.process.build().clone(), &record);
    cluster.until("ready", || async { cluster.gateway.ready().map_err(|e| e.to_string()) }).await;
    let other = provision("other");
    cluster.gateway.submit(vec![other.clone()]).await.unwrap();
    assert_eq!(cluster.gateway.wait_job(other.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    for delete in &deletes {
        waits(&cluster, delete, "destructive work paused by ada").await;
    }
    assert_eq!(deleted(&cluster), 0);
    let left = cluster.gateway.resume(DESTRUCTIVE, by()).await.unwrap();
    assert!(left.pauses.is_empty());
    for delete in &deletes {
        assert_eq!(cluster.gateway.wait_job(delete.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    assert_eq!((deleted(&cluster), cluster.vms().len()), (24, 1));
    let changes: Vec<String> =
        cluster.gateway.changes(10).await.unwrap().into_iter().map(|change| change.what).collect();
    assert_eq!(changes, ["resumed destructive work", "paused destructive work: a producer runs wild"]);
}

/// Its bus takes what it appends and does not say what others have: it cannot learn of the pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_cannot_know_removes_nothing_once_the_bound_has_passed() {
    let cluster = Cluster::start(1, 8, &[("vc-1", 8, 64)]).await;
    let vms = make(&cluster, 60).await;
    let elsewhere = cluster.elsewhere();
    cluster.logs_silent(true);
    let (until_paused, others) = vms.split_at(5);
    for vm in until_paused {
        let delete = delete(*vm);
        cluster.gateway.submit(vec![delete.clone()]).await.unwrap();
        cluster.gateway.wait_job(delete.id, WAIT).await.unwrap();
    }
    elsewhere.pause(DESTRUCTIVE, String::new(), by()).await.unwrap();
    let in_force = cluster.env.mono();
    let mut deletes = Vec::new();
    for vm in others {
        let delete = delete(*vm);
        cluster.gateway.submit(vec![delete.clone()]).await.unwrap();
        deletes.push(delete);
        cluster.env.sleep(Duration::from_millis(120)).await;
    }
    waits(&cluster, deletes.last().unwrap(), "has not been known").await;
    let began = cluster.managers[0].deletes();
    assert!(began.len() >= until_paused.len() && began.len() < vms.len(), "{} of {}", began.len(), vms.len());
    // As known here as it can be, half a second before the order at the latest.
    let last = began.values().max().unwrap();
    assert!(last.since(in_force) <= KNOWN_FOR, "{:?} after the pause", last.since(in_force));
    // What removes nothing goes on.
    let other = provision("other");
    cluster.gateway.submit(vec![other.clone()]).await.unwrap();
    assert_eq!(cluster.gateway.wait_job(other.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    // It can know again: that it is paused; and then that it is not.
    cluster.logs_silent(false);
    waits(&cluster, deletes.last().unwrap(), "destructive work paused by ada").await;
    assert_eq!(cluster.managers[0].deletes().len(), began.len());
    elsewhere.resume(DESTRUCTIVE, by()).await.unwrap();
    for delete in &deletes {
        assert_eq!(cluster.gateway.wait_job(delete.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
}
