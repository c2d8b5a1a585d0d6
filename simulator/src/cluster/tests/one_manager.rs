//! A cluster of one simulated manager, and VMs on it.

use std::time::Duration;

use cellbus_bus::cloudevent::{Limits, TenantFrom, TenantRule, Tenants, parse_structured};
use cellbus_bus::ids::{HostId, JobId, ManagerId, VmId};
use cellbus_directory::{JobState, VmState};
use cellbus_workflows::{ON_HOST_FAILURE, RESTART};
use serde_json::json;

use super::*;
use crate::Inventory;

pub(super) const WAIT: Duration = Duration::from_secs(120);

pub(super) async fn until<F: Future<Output = Result<(), String>>>(env: &Env, what: &str, mut check: impl FnMut() -> F) {
    let began = env.mono();
    loop {
        match check().await {
            Ok(()) => return,
            Err(state) => assert!(env.mono().since(began) < WAIT, "{what}: still {state}"),
        }
        env.sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn made(cluster: &Cluster, name: &str, label: bool) -> VmId {
    let labels = if label { json!({ON_HOST_FAILURE: RESTART}) } else { json!({}) };
    let event = json!({
        "specversion": "1.0", "id": name, "source": "/test", "type": "io.cellbus.job.provision.v1", "tenant": "acme",
        "datacontenttype": "application/json",
        "data": {"name": name, "vcpus": 1, "memory_mib": 1024, "disk_gib": 10, "image": "x", "labels": labels},
    });
    let rule = TenantRule { from: TenantFrom::Attribute, known: &Tenants::Any };
    let job = parse_structured(event.to_string().as_bytes(), rule, &Limits::default()).unwrap();
    let id: JobId = job.id;
    cluster.gateway().submit(vec![Arc::new(job)]).await.unwrap();
    assert_eq!(cluster.gateway().wait_job(id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    id.vm(0)
}

pub(super) async fn place(cluster: &Cluster, vm: VmId) -> (HostId, VmState) {
    let row = cluster.gateway().vm(vm).await.unwrap();
    (row.host.unwrap(), row.state)
}

/// One manager, with two hosts of each gear class.
pub(super) async fn started(folder: &std::path::Path, env: &Env) -> (Cluster, ManagerId) {
    let set = |key: &str, value: &str| Override { key: key.into(), value: value.into(), flag: "--test".into() };
    let overrides = vec![set("data_dir", folder.to_str().unwrap()), set("shards", "8")];
    let config = Config::load(Sources { overrides, ..Sources::default() }).unwrap();
    let inventory = Inventory::generate(6, 1).unwrap();
    let manager = inventory.managers[0].id();
    let parts = Parts { config, inventory, latency: managers::Latency::None, managers_durable: true };
    let mut cluster = Cluster::open(parts, env.clone()).await.unwrap();
    cluster.add_cell();
    cluster.ready(WAIT).await.unwrap();
    (cluster, manager)
}
