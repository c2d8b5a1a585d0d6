//! Real cells over simulated managers: VMs of a host that is off for certain, or that an operator calls dead, are
//! started elsewhere, once; those of one that only does not answer stay.

use std::time::Duration;

use cellbus_bus::cloudevent::{Limits, TenantFrom, TenantRule, Tenants, parse_structured};
use cellbus_bus::ids::{HostId, JobId, VmId};
use cellbus_directory::record::Operator;
use cellbus_directory::{JobState, VmState};
use serde_json::json;

use super::one_manager::{WAIT, made, place, started, until};
use super::*;

fn operator() -> Operator {
    Operator { who: "ops".to_owned(), from: "test".to_owned() }
}

async fn moved(cluster: &Cluster, vm: VmId, to: &HostId) {
    let event = json!({
        "specversion": "1.0", "id": format!("move-{vm}"), "source": "/test", "type": "io.cellbus.job.migrate.v1",
        "tenant": "acme", "subject": vm.to_string(), "datacontenttype": "application/json", "data": {"host": to.as_str()},
    });
    let rule = TenantRule { from: TenantFrom::Attribute, known: &Tenants::Any };
    let job = parse_structured(event.to_string().as_bytes(), rule, &Limits::default()).unwrap();
    let id: JobId = job.id;
    cluster.gateway().submit(vec![Arc::new(job)]).await.unwrap();
    assert_eq!(cluster.gateway().wait_job(id, WAIT).await.unwrap().row.state, JobState::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_of_a_dead_host_run_elsewhere_and_those_of_a_silent_one_stay() {
    let folder = tempfile::tempdir().unwrap();
    let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
    let (cluster, manager) = started(folder.path(), &env).await;
    let faults = cluster.fleet().faults(manager).unwrap();

    let marked = made(&cluster, "marked", true).await;
    let (dies, _) = place(&cluster, marked).await;
    let (plain, cut_off) = (made(&cluster, "plain", false).await, made(&cluster, "cut-off", true).await);
    moved(&cluster, plain, &dies).await;
    let silent = cluster.gateway().hosts(Some(manager), None, 10).await.unwrap().items;
    let silent = silent.into_iter().map(|row| row.id).find(|id| *id != dies).unwrap();
    moved(&cluster, cut_off, &silent).await;
    until(&env, "they are known there", || async {
        let now = (place(&cluster, plain).await.0, place(&cluster, cut_off).await.0);
        if now == (dies.clone(), silent.clone()) { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;

    assert!(faults.silence_host(&silent) && faults.fence_host(&dies));
    until(&env, "it runs elsewhere", || async {
        let (at, state) = place(&cluster, marked).await;
        if at != dies && state == VmState::Running { Ok(()) } else { Err(format!("{at} {state}")) }
    })
    .await;
    let row = cluster.gateway().hosts(Some(manager), None, 10).await.unwrap().items;
    let gear = |id: &HostId| row.iter().find(|row| row.id == *id).unwrap().labels["gear"].clone();
    let (now, _) = place(&cluster, marked).await;
    assert_eq!(gear(&now), gear(&dies));
    let explained = cluster.gateway().explain_vm(marked).await.unwrap().vm.unwrap();
    let called = explained.history.iter().filter(|(_, what)| what == "failover called").count();
    assert_eq!(called, 1, "{:?}", explained.history);
    for (vm, at) in [(plain, &dies), (cut_off, &silent)] {
        assert_eq!(place(&cluster, vm).await.0, *at);
        let explained = cluster.gateway().explain_vm(vm).await.unwrap().vm.unwrap();
        assert!(!explained.history.iter().any(|(_, what)| what.contains("failover")), "{:?}", explained.history);
    }
    assert_eq!(cluster.fleet().violations().double_creates, 0);
    cluster.stop(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_dead_when_an_operator_says_so_and_it_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
    let (mut cluster, manager) = started(folder.path(), &env).await;
    let faults = cluster.fleet().faults(manager).unwrap();
    let gateway = cluster.gateway().clone();
    let marked = made(&cluster, "marked", true).await;
    let (dies, _) = place(&cluster, marked).await;
    let plain = made(&cluster, "plain", false).await;
    moved(&cluster, plain, &dies).await;
    let refused = gateway.fence_host(manager, dies.clone(), operator()).await.unwrap_err();
    assert!(refused.code() == "host_not_dead" && refused.to_string().contains("answers"), "{refused}");
    let refused = gateway.fence_host(manager, "nowhere".parse().unwrap(), operator()).await.unwrap_err();
    assert_eq!(refused.code(), "host_not_dead");

    assert!(faults.cut_power_of_host(&dies));
    until(&env, "it is seen not to answer", || async {
        let rows = gateway.hosts(Some(manager), None, 10).await.unwrap().items;
        let row = rows.into_iter().find(|row| row.id == dies).unwrap();
        if row.usable || row.fenced { Err(format!("{row:?}")) } else { Ok(()) }
    })
    .await;
    assert_eq!(place(&cluster, marked).await.0, dies, "nobody knows that it is off");
    let fenced = gateway.fence_host(manager, dies.clone(), operator()).await.unwrap().unwrap();
    assert_eq!((fenced.vms, fenced.restarts), (2, 1));
    until(&env, "it runs elsewhere", || async {
        let (at, state) = place(&cluster, marked).await;
        if at != dies && state == VmState::Running { Ok(()) } else { Err(format!("{at} {state}")) }
    })
    .await;
    assert_eq!(place(&cluster, plain).await.0, dies);
    // None while its manager is being opened.
    let row = || async {
        let rows = gateway.hosts(Some(manager), None, 10).await.map_err(|error| error.to_string())?.items;
        rows.into_iter().find(|row| row.id == dies).ok_or_else(|| "its manager shows no such host".to_owned())
    };
    let shown = row().await.unwrap();
    assert!(shown.fenced && shown.cordoned && shown.vms == 1, "{shown:?}");

    // Whoever fronts the manager next knows it from the shard's log, and not from what the last one heard.
    cluster.add_cell();
    let cells = gateway.cells().await.unwrap();
    gateway.drain_cell(&cells[0].id, operator()).await.unwrap();
    until(&env, "another cell fronts it", || async {
        let rows = gateway.managers().await.map_err(|error| error.to_string())?;
        let owner = rows[0].cell.clone();
        if owner.is_some() && owner.as_ref() != Some(&cells[0].id) { Ok(()) } else { Err(format!("{owner:?}")) }
    })
    .await;
    until(&env, "it knows", || async {
        let shown = row().await?;
        if shown.fenced { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await;

    assert!(faults.restore_host(&dies));
    gateway.unfence_host(manager, dies.clone(), operator()).await.unwrap();
    until(&env, "it takes VMs again", || async {
        let shown = row().await?;
        if shown.usable && !shown.fenced && !shown.cordoned { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await;
    let said: Vec<String> = gateway.changes(10).await.unwrap().into_iter().map(|change| change.what).collect();
    assert!(said.contains(&format!("called host {dies} dead")), "{said:?}");
    assert!(said.contains(&format!("took back that host {dies} is dead")), "{said:?}");
    assert_eq!(cluster.fleet().violations().double_creates, 0);
    cluster.stop(Duration::from_secs(10)).await;
}
