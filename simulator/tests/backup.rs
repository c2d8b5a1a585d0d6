//! A cluster on the embedded bus is backed up under load, its bus thrown away, and another one restored
//! in its place with another number of shards. Managers, and the directory's checkpoint, are still there.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cellbus_bus::embedded::Embedded;
use cellbus_bus::format::Formats;
use cellbus_bus::ids::{JobId, ShardCount};
use cellbus_bus::{Bus as _, Env};
use cellbus_cell::backup::{self, Error};
use cellbus_cell::config::{Config, Override, Sources};
use cellbus_cell::gateway::Repairs;
use cellbus_directory::record::Operator;
use cellbus_simulator::Inventory;
use cellbus_simulator::cluster::{Cluster, Parts, bus_config};
use cellbus_simulator::load::{JobView, Target};
use cellbus_simulator::managers::Latency;

const PATIENCE: Duration = Duration::from_secs(120);

fn config(data: &Path, shards: u16) -> Config {
    let set = |key: &str, value: String| Override { key: key.to_owned(), value, flag: "--test".to_owned() };
    let overrides = vec![
        set("data_dir", data.to_str().unwrap().to_owned()),
        set("shards", shards.to_string()),
        // So that snapshots are made, and logs and queues trimmed, while the backup is taken.
        set("snapshot.tail_min", "64KiB".to_owned()),
    ];
    Config::load(Sources { overrides, ..Sources::default() }).unwrap()
}

async fn open(data: &Path, shards: u16, env: &Env) -> Cluster {
    let inventory = Inventory::generate(60, 4).unwrap();
    let parts = Parts { config: config(data, shards), inventory, latency: Latency::Fast, managers_durable: true };
    let cluster = Cluster::open(parts, env.clone()).await.unwrap();
    cluster.ready(PATIENCE).await.unwrap();
    cluster
}

/// Every third job is about the VM that the one before it makes.
fn event(number: u64) -> String {
    let vm = |number: u64| JobId::derive("acme", "/test", &number.to_string());
    let (kind, subject, data) = match number % 6 {
        2 => ("stop", Some(vm(number - 1)), serde_json::json!({"mode": "hard"})),
        5 => ("delete", Some(vm(number - 1)), serde_json::json!({})),
        _ => {
            let data = serde_json::json!({"name": format!("vm-{number}"), "count": 1, "vcpus": 1, "memory_mib": 256,
                                          "disk_gib": 1, "image": "debian-12"});
            ("provision", None, data)
        }
    };
    let mut event = serde_json::json!({"specversion": "1.0", "id": number.to_string(), "source": "/test",
        "type": format!("io.cellbus.job.{kind}.v1"), "tenant": "acme", "data": data});
    if let Some(subject) = subject {
        event["subject"] = subject.to_string().into();
    }
    event.to_string()
}

fn job(number: u64) -> JobId {
    JobId::derive("acme", "/test", &number.to_string())
}

/// Waits until `there` says so.
async fn until(env: &Env, what: &str, mut there: impl AsyncFnMut() -> bool) {
    let began = env.mono();
    while !there().await {
        assert!(env.mono().since(began) < PATIENCE, "{what}: not within {PATIENCE:?}");
        env.sleep(Duration::from_millis(20)).await;
    }
}

async fn ended(target: &Arc<dyn Target>, number: u64) -> bool {
    matches!(target.job(job(number)).await, Ok(Some(JobView { ended: Some(_) })))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_on_from_a_backup_with_other_shards() {
    let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("cluster.backup"));
    let cluster = open(&data, 6, &env).await;
    let target = cluster.target();
    let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, stopped, to) = (Arc::clone(&acknowledged), Arc::clone(&stop), Arc::clone(&target));
    let (over, is_over) = tokio::sync::oneshot::channel();
    env.spawn("producer", async move {
        for number in 0.. {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            to.submit(&[event(number)]).await.unwrap();
            counted.store(number + 1, Ordering::Relaxed);
        }
        let _ = over.send(());
    });
    let taken = |more: u64| {
        let (acknowledged, env) = (Arc::clone(&acknowledged), env.clone());
        async move {
            let wanted = acknowledged.load(Ordering::Relaxed) + more;
            until(&env, "more jobs", async || acknowledged.load(Ordering::Relaxed) >= wanted).await;
        }
    };
    taken(400).await;
    let before = acknowledged.load(Ordering::Relaxed);
    // Messages that no cell has taken are in it too. Bad ones stay what they are.
    let backed_up = backup::take(cluster.bus().as_ref(), &env, &file).await.unwrap();
    assert_eq!(backed_up.summary.shards, 6);
    taken(100).await;
    stop.store(true, Ordering::Relaxed);
    is_over.await.unwrap();
    let all = acknowledged.load(Ordering::Relaxed);
    drop(target);
    cluster.stop(Duration::from_secs(20)).await;

    std::fs::rename(data.join("bus"), folder.path().join("lost")).unwrap();
    let bus = Embedded::open(bus_config(&config(&data, 4)), env.clone()).unwrap();
    let shards = ShardCount::new(4).unwrap();
    let restored = backup::restore(bus.as_ref(), &env, &file, shards).await.unwrap();
    assert_eq!((restored.record.shards, restored.taken_at), (shards, backed_up.at));
    assert!(matches!(backup::restore(bus.as_ref(), &env, &file, shards).await, Err(Error::NotEmpty { .. })));
    bus.close().await;
    drop(bus);

    let cluster = open(&data, 4, &env).await;
    let (target, gateway) = (cluster.target(), cluster.gateway());
    for number in 0..before {
        assert!(target.job(job(number)).await.unwrap().is_some(), "job {number} was acknowledged and is lost");
    }
    let held = cluster.fleet().vms();
    for number in 0..all {
        target.submit(&[event(number)]).await.unwrap();
    }
    let by = || Operator { who: "test".to_owned(), from: String::new() };
    let audit = async || {
        let id = gateway.audit_start(by()).await.unwrap();
        until(&env, "the audit", async || gateway.audit(id).unwrap().ended_at.is_some()).await;
        gateway.audit(id).unwrap()
    };
    // Whatever is wanted, nothing changes before somebody has looked.
    assert_eq!(cluster.fleet().vms(), held);
    let first = audit().await;
    assert!(first.unreachable.is_empty(), "{first:?}");
    gateway.audit_accept(first.id, by()).await.unwrap();
    for number in 0..all {
        until(&env, &format!("job {number} to end"), async || ended(&target, number).await).await;
    }
    until(&env, "directory and managers to agree", async || {
        let audit = audit().await;
        gateway.audit_repair(audit.id, &Repairs::default(), by()).await.unwrap();
        audit.findings_total == 0
    })
    .await;
    let violations = cluster.fleet().violations();
    assert_eq!(violations.double_creates, 0, "{violations:?}");
    // It can be backed up in its turn.
    let again = backup::take(cluster.bus().as_ref(), &env, &file).await.unwrap();
    assert_eq!(again.summary.shards, 4);
    cluster.stop(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_half_restored_is_no_cluster() {
    let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cluster.backup");
    let first = Embedded::open(bus_config(&config(&folder.path().join("a"), 4)), env.clone()).unwrap();
    assert!(matches!(backup::take(first.as_ref(), &env, &file).await, Err(Error::NoCluster)));
    let record = cellbus_cell::node::cluster_record(first.as_ref(), &env, ShardCount::new(4).unwrap(), Formats::KNOWN)
        .await
        .unwrap();
    first.ingress_publish("acme", vec![("ce-id".into(), "1".into())], "{}".into()).await.unwrap();
    let taken = backup::take(first.as_ref(), &env, &file).await.unwrap();
    assert_eq!(taken.summary.ingress, 1);

    // A restore that was cut off before its last step.
    let second = Embedded::open(bus_config(&config(&folder.path().join("b"), 4)), env.clone()).unwrap();
    backup::restore(second.as_ref(), &env, &file, record.shards).await.unwrap();
    let waiting = second.ingress_unacked(cellbus_bus::ids::Seq::ZERO, 10).await.unwrap();
    assert_eq!(waiting.iter().map(|one| one.body.as_ref()).collect::<Vec<_>>(), [b"{}"]);
    let whole = second.cluster_record().await.unwrap().unwrap();
    assert_ne!(whole.cluster_id, record.cluster_id, "what is left of the old cluster is another one");
    let half = cellbus_bus::contract::ClusterRecord { hash_scheme: cellbus_bus::cluster::RESTORING, ..whole.clone() };
    second.replace_cluster(&whole, half).await.unwrap();
    let refused = cellbus_cell::node::cluster_record(second.as_ref(), &env, record.shards, Formats::KNOWN).await;
    assert!(refused.unwrap_err().to_string().contains("being restored"));
    for error in [
        backup::take(second.as_ref(), &env, &file).await.unwrap_err(),
        backup::restore(second.as_ref(), &env, &file, record.shards).await.unwrap_err(),
    ] {
        assert_eq!(error.code(), "cluster_being_restored");
    }
}
