//! Durable provisions end to end, with managers that take no time: what the control plane itself
//! costs. Submitted in batches, with so many jobs under way at once; counted when their success is
//! shown. Bounded by the two processors that everything shares: bus, state machines, fronts,
//! directory and the submitter.

#![allow(clippy::unwrap_used, reason = "a benchmark that fails should say where")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::job::Job;
use futures::StreamExt as _;
use support::{Cluster, job};

fn provision(id: u64) -> Arc<Job> {
    let data = serde_json::json!({"name": format!("vm-{id}"), "vcpus": 1, "memory_mib": 1024, "disk_gib": 10, "image": "debian-12"});
    job("provision", &format!("job-{id}"), None, data)
}

fn env_or(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() {
    // `cargo test` runs this too, to see that it works; `cargo bench` says so.
    let measured = std::env::args().any(|arg| arg == "--bench");
    let (managers, hosts) = if measured { (env_or("MANAGERS", 500), env_or("HOSTS", 100)) } else { (4, 10) };
    let (total, batch, batches) =
        if measured { (env_or("JOBS", 400_000), env_or("BATCH", 512), env_or("AT_ONCE", 16)) } else { (200, 50, 2) };
    let shards = if measured { env_or("SHARDS", 256) } else { 16 };
    let cells = if measured { env_or("CELLS", 4) } else { 2 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let names: Vec<String> = (0..managers).map(|i| format!("vc-{i:03}")).collect();
        let managers: Vec<(&str, u32, u32)> = names.iter().map(|name| (name.as_str(), hosts as u32, 64)).collect();
        let cluster = Cluster::start_leased(cells as usize, shards as u16, &managers, 1 << 20, Duration::from_secs(10)).await;
        let jobs: Vec<Arc<Job>> = (0..total).map(provision).collect();
        let began = cluster.env.mono();
        let latencies: Vec<(Duration, Duration)> = futures::stream::iter(jobs.chunks(batch as usize))
            .map(|some| {
                let cluster = &cluster;
                async move {
                    let began = cluster.env.mono();
                    cluster.gateway.submit(some.to_vec()).await.unwrap();
                    let accepted = cluster.env.mono().since(began);
                    let ids: Vec<_> = some.iter().map(|job| job.id).collect();
                    let mut ended = cluster.gateway.wait_jobs(&ids, Duration::from_secs(3)).await.unwrap();
                    if let Some(Some(slow)) = ended.iter().find(|status| status.as_ref().is_none_or(|s| !s.row.state.ended())) {
                        println!("slow: {} {:?}; waits for {:?}", slow.row.id, slow.row.state, slow.waits_for);
                        ended = cluster.gateway.wait_jobs(&ids, Duration::from_secs(60)).await.unwrap();
                    }
                    for status in ended {
                        assert_eq!(status.unwrap().row.state, cellbus_directory::JobState::Succeeded);
                    }
                    (accepted, cluster.env.mono().since(began))
                }
            })
            .buffer_unordered(batches as usize)
            .collect()
            .await;
        let took = cluster.env.mono().since(began);
        assert_eq!(cluster.vms().len() as u64, total);
        assert_eq!(cluster.made_twice(), 0);
        let pick = |of: fn(&(Duration, Duration)) -> Duration, part: usize| {
            let mut all: Vec<Duration> = latencies.iter().map(of).collect();
            all.sort_unstable();
            all[(all.len() - 1) * part / 100]
        };
        println!(
            "{total} provisions, {cells} cells, {shards} shards, {} managers, batches of {batch}, {batches} at once: {:.0} a second; \
             batch accepted p50 {:?} p99 {:?}, ended p50 {:?} p99 {:?}",
            managers.len(), total as f64 / took.as_secs_f64(),
            pick(|l| l.0, 50), pick(|l| l.0, 99), pick(|l| l.1, 50), pick(|l| l.1, 99),
        );
        let stats = cluster.bus.stats();
        println!("bus: {} messages, {} syncs", stats.messages_total, stats.syncs_total);
    });
}
