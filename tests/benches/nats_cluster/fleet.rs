//! What takes longer the more VMs there are: takeover, planned moves, a new directory.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cellbus_tests::cluster::Cluster;
use cellbus_tests::load::{Load, longest};
use cellbus_tests::process::{Door, event};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use crate::{bare, shape};

const SIZES: [u64; 4] = [100_000, 250_000, 500_000, 1_000_000];
/// VMs of a job, the most that one may make, and such jobs at once.
const OF_A_JOB: u64 = 10_000;
const JOBS_AT_ONCE: usize = 8;
/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Jobs a second while shards move, so that each shard has some; and seconds of them before.
const JOBS: f64 = 200.0;
const CALM: f64 = 3.0;

/// Makes VMs over HTTP, from the one so many to the other, by jobs for as many as one may make.
pub(crate) async fn make(door: &Door, from: u64, to: u64) -> Result<()> {
    stream::iter((from..to).step_by(OF_A_JOB as usize))
        .map(|first| async move {
            let name = format!("of-{first}");
            let count = OF_A_JOB.min(to - first);
            let data = json!({"name": name, "count": count, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x"});
            door.succeed(&event("provision", &name, None, &data), LIMIT).await
        })
        .buffer_unordered(JOBS_AT_ONCE)
        .try_for_each(async |_| Ok(()))
        .await
}

pub(crate) async fn run() -> Result<()> {
    let shape = shape(100, 500, 64);
    println!("50,000 hosts, {} shards, three cells, a lease of 3 s", shape.shards);
    let mut cluster = Cluster::start(shape, 3, 1).await?;
    cluster.settled().await?;
    let mut vms = 0;
    for size in SIZES {
        let began = Instant::now();
        make(&cluster.directories[0].door(), vms, size).await?;
        let second = (size - vms) as f64 / began.elapsed().as_secs_f64();
        vms = size;
        let replica = replica(&mut cluster, vms).await?;
        let takeover = takeover(&mut cluster).await?;
        let [calm, moved] = planned(&mut cluster).await?;
        println!(
            "  {vms:>9} VMs (made at {second:.0} /s over HTTP): all shards open {takeover:.1} s after kill -9; a new directory ready \
             after {replica:.1} s; the longest job while a cell leaves and one comes {moved:.0} ms, before that {calm:.0} ms",
        );
    }
    let replay = bare::replay(&cluster.broker, vms).await;
    println!("  a bare reader takes {replay:.1} s for as many messages of 512 bytes");
    Ok(())
}

/// Seconds until every shard is open elsewhere, once a cell has been killed.
async fn takeover(cluster: &mut Cluster) -> Result<f64> {
    let killed = cluster.cells.remove(0);
    let began = Instant::now();
    killed.kill()?;
    cluster.settled().await?;
    let took = began.elapsed().as_secs_f64();
    cluster.add_cell()?;
    cluster.settled().await?;
    Ok(took)
}

/// Milliseconds that the longest job took, of those that come while nothing moves, and of those that come while a cell is
/// stopped, hands its shards over, and another joins. No shard pauses for longer than that.
async fn planned(cluster: &mut Cluster) -> Result<[f64; 2]> {
    let leaves = cluster.cells.remove(0);
    let mut load = Load::new(&cluster.directories[0], |_| JOBS);
    let moves = async {
        while load.at() < CALM {
            tick(&mut load).await;
        }
        let began = load.at();
        let mut leaving = tokio::spawn(leaves.terminate(LIMIT));
        let status = loop {
            tokio::select! {
                status = &mut leaving => break status??,
                () = tick(&mut load) => {}
            }
        };
        ensure!(status.success(), "the cell that was stopped ended with {status}");
        cluster.add_cell()?;
        let mut settled = std::pin::pin!(cluster.settled());
        loop {
            tokio::select! {
                done = &mut settled => break done?,
                () = tick(&mut load) => {}
            }
        }
        Ok(began)
    };
    let began = moves.await?;
    let jobs = load.all().await?;
    let (calm, moving): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.at + job.seconds < began);
    Ok([longest(calm.into_iter()) * 1e3, longest(moving.into_iter()) * 1e3])
}

async fn tick(load: &mut Load) {
    load.send();
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Seconds until a directory that begins with nothing has all of them.
async fn replica(cluster: &mut Cluster, vms: u64) -> Result<f64> {
    let began = Instant::now();
    let replica = cluster.spawn("directory", &[])?;
    replica.ready().await?;
    let took = began.elapsed().as_secs_f64();
    let metrics = replica.text("/metrics").await?;
    let of_a_state = metrics.lines().filter(|line| line.starts_with("cellbus_directory_vms{"));
    let held: f64 = of_a_state.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    ensure!(held >= vms as f64, "it called itself ready with {held} of {vms} VMs");
    replica.terminate(LIMIT).await?;
    Ok(took)
}
