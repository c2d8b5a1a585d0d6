//! What takes longer the more VMs there are: takeover, planned moves, a new directory.

use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::env;
use cellbus_tests::cluster::Cluster;
use cellbus_tests::process::{Door, event};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::{bare, shape};

const SIZES: [u64; 4] = [100_000, 250_000, 500_000, 1_000_000];
/// VMs of a job, the most that one may make, and such jobs at once.
const OF_A_JOB: u64 = 10_000;
const JOBS_AT_ONCE: usize = 8;
/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Jobs a second while shards move, so that each shard has some; and how long before.
const JOBS: u32 = 200;
const CALM: Duration = Duration::from_secs(5);

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
             after {replica:.1} s; the longest job to be accepted while a cell leaves and one comes {moved:.0} ms, before that {calm:.0} ms",
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

/// Milliseconds that the longest job waited until its shard had accepted it: of those that came while nothing moved, and of
/// those that came while a cell was stopped and handed its shards over, and another joined. No shard pauses for longer.
async fn planned(cluster: &mut Cluster) -> Result<[f64; 2]> {
    // What a takeover leaves to be done is over.
    tokio::time::sleep(CALM).await;
    let leaves = cluster.cells.remove(0);
    let mut asking = Asking::new(cluster.directories[0].door());
    asking.until(pin!(tokio::time::sleep(CALM))).await;
    let calm = asking.longest().await?;
    let status = asking.until(pin!(leaves.terminate(LIMIT))).await?;
    ensure!(status.success(), "the cell that was stopped ended with {status}");
    cluster.add_cell()?;
    asking.until(pin!(cluster.settled())).await?;
    Ok([calm, asking.longest().await?])
}

/// Jobs that come so many a second, each followed until it is accepted.
struct Asking {
    door: Door,
    asked: JoinSet<Result<Duration>>,
}

impl Asking {
    fn new(door: Door) -> Self {
        Self { door, asked: JoinSet::new() }
    }

    /// Asks until this is done.
    async fn until<T>(&mut self, mut done: Pin<&mut impl Future<Output = T>>) -> T {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / JOBS);
        loop {
            tokio::select! {
                done = &mut done => return done,
                _ = ticks.tick() => {
                    self.asked.spawn(accepted(self.door.clone()));
                }
            }
        }
    }

    /// Milliseconds that the longest of them took since this was asked last.
    async fn longest(&mut self) -> Result<f64> {
        let mut longest = Duration::ZERO;
        while let Some(asked) = self.asked.join_next().await {
            longest = longest.max(asked??);
        }
        Ok(longest.as_secs_f64() * 1e3)
    }
}

/// How long it is, for a job that no manager has to do with, from when its producer first sends it until its home accepts
/// it, as the home has it on record: what the producer hears of it is later, as it must find out who owns the home now.
async fn accepted(door: Door) -> Result<Duration> {
    let sent = env::real(Handle::current()).wall();
    let (id, vm) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
    let body = door.end(&event("start", &id, Some(&vm), &json!({})), LIMIT).await?;
    let accepted = body["accepted_at"].as_str().and_then(of_day).with_context(|| body.to_string())?;
    let sent = of_day(&sent.rfc3339()).context("a time")?;
    // Midnight may lie between them.
    let day = Duration::from_secs(86_400);
    Ok(if accepted + day / 2 < sent { accepted + day - sent } else { accepted.saturating_sub(sent) })
}

/// The time of day of a date as all of ours are: `2026-11-28T09:01:23.880Z`.
fn of_day(date: &str) -> Option<Duration> {
    let mut parts = date.split_once('T')?.1.trim_end_matches('Z').split(':');
    let mut part = || parts.next()?.parse::<f64>().ok();
    let (hours, minutes, seconds) = (part()?, part()?, part()?);
    Some(Duration::from_secs_f64((hours * 60.0 + minutes) * 60.0 + seconds))
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
