//! Real cells over simulated managers whose hosts share a datastore: jobs that come at once fill it, and do not
//! overfill it.

use std::time::Duration;

use cellbus_bus::cloudevent::{Limits, TenantFrom, TenantRule, Tenants, parse_structured};
use cellbus_bus::ids::{JobId, VmId};
use cellbus_bus::job::Job;
use cellbus_directory::JobState;
use serde_json::{Value, json};

use super::*;
use crate::Inventory;

const WAIT: Duration = Duration::from_secs(120);

fn job(id: &str, kind: &str, subject: Option<VmId>, data: Value) -> Job {
    let mut event = json!({
        "specversion": "1.0", "id": id, "source": "/test", "type": format!("io.cellbus.job.{kind}.v1"),
        "tenant": "acme", "datacontenttype": "application/json", "data": data,
    });
    if let Some(vm) = subject {
        event["subject"] = Value::String(vm.to_string());
    }
    let rule = TenantRule { from: TenantFrom::Attribute, known: &Tenants::Any };
    parse_structured(event.to_string().as_bytes(), rule, &Limits::default()).unwrap()
}
fn provision(name: &str) -> Job {
    let data = json!({"name": name, "vcpus": 1, "memory_mib": 64, "disk_gib": 10, "image": "x"});
    job(name, "provision", None, data)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_at_once_fill_a_datastore_that_hosts_share_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
    let set = |key: &str, value: &str| Override { key: key.into(), value: value.into(), flag: "--test".into() };
    let overrides = vec![set("data_dir", folder.path().to_str().unwrap()), set("shards", "8")];
    let config = Config::load(Sources { overrides, ..Sources::default() }).unwrap();
    // Six hosts in three gear classes, with one datastore of 60 GiB.
    let mut inventory = Inventory::generate(6, 1).unwrap();
    inventory.managers[0].hosts.iter_mut().for_each(|host| host.disk_gib = 10);
    inventory.managers[0].share(6);
    let manager = inventory.managers[0].id();
    let parts = Parts { config, inventory, latency: managers::Latency::Fast, managers_durable: true };
    let mut cluster = Cluster::open(parts, env.clone()).await.unwrap();
    cluster.add_cell();
    cluster.ready(WAIT).await.unwrap();
    let gateway = cluster.gateway();

    let jobs: Vec<Job> = (0..12).map(|i| provision(&format!("web-{i}"))).collect();
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    gateway.submit(jobs.into_iter().map(Arc::new).collect()).await.unwrap();
    let (mut succeeded, mut failed) = (Vec::new(), Vec::new());
    for id in ids {
        let row = gateway.wait_job(id, WAIT).await.unwrap().row;
        if row.state == JobState::Succeeded { succeeded.push(id) } else { failed.push(row) }
    }
    assert_eq!((succeeded.len(), failed.len()), (6, 6), "{failed:?}");
    for row in &failed {
        let said = format!("{row:?}");
        assert!(said.contains("NoRoom"), "{said}");
        // Its owner has refused it; or placement knew already.
        let refused = said.contains("see no datastore with 10 GiB free (datastore sim-0000-ds000 has 0)");
        assert!(refused || said.contains("1 have no host with as much free"), "{said}");
    }
    let seen = cluster.fleet().violations();
    assert_eq!((seen.overfill_attempts, seen.overfilled_hosts), (0, 0), "nobody even tried");

    // It counts once for the manager, and each host shows it.
    let began = env.mono();
    let row = loop {
        let row = gateway.managers().await.unwrap().remove(0);
        if (row.disk_gib.free, row.disk_gib.total) == (0, 60) || env.mono().since(began) > WAIT {
            break row;
        }
        env.sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((row.disk_gib.free, row.disk_gib.total), (0, 60));
    let hosts = gateway.hosts(Some(manager), None, 10).await.unwrap().items;
    assert!(hosts.iter().all(|host| host.datastores[0].name == "sim-0000-ds000"), "{hosts:?}");
    assert!(hosts.iter().all(|host| (host.disk_gib.free, host.disk_gib.total) == (0, 60)), "{hosts:?}");

    // What is deleted makes room again.
    let done = async |job: Job| {
        let id = job.id;
        gateway.submit(vec![Arc::new(job)]).await.unwrap();
        gateway.wait_job(id, WAIT).await.unwrap().row
    };
    let row = done(job("gone", "delete", Some(succeeded[0].vm(0)), json!({}))).await;
    assert_eq!(row.state, JobState::Succeeded, "{row:?}");
    // Placement hears of it a moment later.
    let began = env.mono();
    for try_again in 0.. {
        let row = done(provision(&format!("again-{try_again}"))).await;
        if row.state == JobState::Succeeded {
            break;
        }
        assert!(env.mono().since(began) < WAIT, "{row:?}");
        env.sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.fleet().violations().overfilled_hosts, 0);
    cluster.stop(Duration::from_secs(10)).await;
}
