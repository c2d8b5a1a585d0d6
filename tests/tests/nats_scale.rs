//! The autoscaler of a cluster of processes: cells that the controller starts as its children, a load that
//! comes at once or in waves, a launcher that fails, and controllers that are killed.

#![expect(clippy::disallowed_methods, reason = "it drives the real binary from outside, in real time")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::binary::cellbus;
use cellbus_tests::cluster::{Cluster, Shape};
use cellbus_tests::process::{Server, event, long, wait_for};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(120);

/// One call of 20 ms at a time makes 50 jobs a second of a cell, and what takes one cell a quarter of
/// a minute is to be gone in seconds.
const SMALL: &str = "cell.in_flight_max = 1\nscale.min = 1\nscale.max = 3\nscale.drain_target = \"2s\"\n\
                     scale.out_window = \"1s\"\nscale.in_window = \"2s\"\nscale.controller_lease = \"2s\"\n";

async fn until(what: &str, server: &Server, mut seen: impl FnMut(&Value) -> bool) -> Result<()> {
    wait_for(what, WAIT, async || {
        let scale = server.get("/v1/scale").await?.body;
        Ok(seen(&scale).then_some(()).ok_or(scale.to_string()))
    })
    .await
    .with_context(|| server.log_tail())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_come_while_work_waits_and_go_when_it_is_done() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let mut cluster = Cluster::start(Shape { more: SMALL.to_owned(), ..Shape::default() }, 0, 0).await?;
    cluster.add_directory()?;
    let data = cluster.folder().join("children");
    let command =
        format!("{} cell --config {} --data {}", cellbus().display(), cluster.config().display(), data.display());
    let settings = ["scale.launcher=process".to_owned(), format!("scale.command={command}")];
    let controller = cluster.spawn("controller", &settings)?;
    let directory = &cluster.directories[0];
    until("one cell", directory, |scale| scale["cells_active"] == 1).await?;

    let data = json!({"name": "web", "count": 400, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x"});
    let taken = async || {
        Ok((directory.submit(&event("provision", "many", None, &data)).await?.status == 202)
            .then_some(())
            .ok_or("not taken".to_owned()))
    };
    wait_for("the job to be taken", WAIT, taken).await?;
    until("three cells", directory, |scale| scale["cells_active"] == 3).await?;
    wait_for("all jobs to end", WAIT, async || {
        let open = directory.get("/v1/queue").await?.body["jobs_open"].clone();
        Ok((open == 0).then_some(()).ok_or(format!("{open} open")))
    })
    .await?;
    until("one cell again", directory, |scale| scale["cells_active"] == 1 && scale["cells_draining"] == 0).await?;
    ensure!(directory.all("/v1/jobs?state=failed").await?.is_empty(), "a scale-in failed jobs");
    ensure!(directory.all("/v1/vms").await?.len() == 400, "{}", directory.log_tail());
    cluster.no_violations().await?;
    cluster.audit().await?;

    // Stopped, it has its children hand over and leave.
    let status = controller.terminate(WAIT).await?;
    ensure!(status.success(), "the controller ended with {status}");
    let directory = &cluster.directories[0];
    wait_for("no cell", WAIT, async || {
        let cells = directory.get("/v1/cells").await?.body;
        let none = cells["items"].as_array().or(cells.as_array()).is_some_and(Vec::is_empty);
        Ok(none.then_some(()).ok_or(cells.to_string()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_controller_decides_when_one_is_killed() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let mut cluster = Cluster::start(Shape { more: SMALL.to_owned(), ..Shape::default() }, 1, 1).await?;
    let none = ["scale.launcher=none".to_owned()];
    let first = cluster.spawn("controller", &none)?;
    let directory = &cluster.directories[0];
    let controller = |scale: &Value| scale["controller"].as_str().map(str::to_owned);
    let mut decides = None;
    until("a controller that decides", directory, |scale| {
        decides = controller(scale);
        decides.is_some()
    })
    .await?;
    let second = cluster.spawn("controller", &none)?;
    first.kill()?;
    let directory = &cluster.directories[0];
    until("the other to decide", directory, |scale| controller(scale).is_some_and(|now| Some(now) != decides)).await?;
    // What it decides is kept: it advises as many as an operator says.
    let set = directory.put("/v1/scale", &json!({"mode": "fixed", "cells": 3})).await?;
    ensure!(set.status == 200, "{set:?}");
    wait_for("three to be advised", WAIT, async || {
        let decisions = directory.all("/v1/scale/decisions").await?;
        let last = decisions.first().cloned().unwrap_or_default();
        Ok((last["desired"] == 3).then_some(()).ok_or(last.to_string()))
    })
    .await?;
    second.terminate(WAIT).await?;
    Ok(())
}

/// Starts a cell of this cluster, for as long as a test may take: those of a controller that was killed
/// are nobody's children any more.
fn launched(cluster: &Cluster) -> String {
    let data = cluster.folder().join("children");
    let of = |path: &Path| path.display().to_string();
    format!("timeout 900 {} cell --config {} --data {}", of(cellbus()), of(&cluster.config()), of(&data))
}

fn by_process(command: &str) -> [String; 2] {
    ["scale.launcher=process".to_owned(), format!("scale.command={command}")]
}

// ── a load that comes and goes ──

/// Each operation takes half a second, and a cell has one under way: about two jobs a second of a cell, so
/// that not the processors of the machine decide how much is done.
const CELL_RATE: f64 = 1.8;
const DRAIN_TARGET: Duration = Duration::from_secs(30);

fn slow() -> Shape {
    let more = format!(
        "cell.in_flight_max = 1\nscale.min = 1\nscale.max = 8\nscale.drain_target = \"{}s\"\n",
        DRAIN_TARGET.as_secs()
    );
    Shape { latency: "500ms", more, ..Shape::default() }
}

/// Jobs, so many a second by the second, while `watch` looks at the cluster.
struct Load {
    began: Instant,
    sent: usize,
    due: f64,
    last: f64,
    per_second: fn(f64) -> f64,
}

impl Load {
    fn new(per_second: fn(f64) -> f64) -> Self {
        Self { began: Instant::now(), sent: 0, due: 0.0, last: 0.0, per_second }
    }
    fn at(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
    /// Submits what has become due.
    async fn send(&mut self, server: &Server) -> Result<()> {
        let now = self.at();
        self.due += (self.per_second)(now) * (now - self.last);
        self.last = now;
        while self.due >= 1.0 {
            self.due -= 1.0;
            let name = format!("vm-{}", self.sent);
            let data = json!({"name": name, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x", "power": "off"});
            let job = event("provision", &name, None, &data);
            wait_for("a job to be taken", WAIT, async || {
                let answer = server.submit(&job).await?;
                Ok((answer.status == 202).then_some(()).ok_or(answer.body.to_string()))
            })
            .await?;
            self.sent += 1;
        }
        Ok(())
    }
}

/// What the cluster was seen to be.
#[derive(Default)]
struct Seen {
    /// Seconds, and jobs that had not ended.
    open: Vec<(f64, f64)>,
    /// Every size that was decided, and when it was first seen.
    sizes: Vec<(f64, u64)>,
    /// When a second cell had opened a shard.
    second_works: Option<f64>,
}

impl Seen {
    async fn look(&mut self, at: f64, server: &Server) -> Result<()> {
        // A shard that is just moving does not answer: it is looked again.
        if let Some(open) = server.get("/v1/queue").await?.body["jobs_open"].as_f64() {
            self.open.push((at, open));
        }
        if let Some(size) = server.get("/v1/scale").await?.body["cells"].as_u64()
            && self.sizes.last().is_none_or(|(_, last)| *last != size)
        {
            self.sizes.push((at, size));
        }
        if self.second_works.is_none() {
            let shards = server.get("/v1/shards").await?.body;
            let rows = shards["items"].as_array().or(shards.as_array()).cloned().unwrap_or_default();
            let open = rows.iter().filter(|row| row["state"] == "open");
            let owners: BTreeSet<String> = open.map(|row| row["owner"].to_string()).collect();
            self.second_works = (owners.len() > 1).then_some(at);
        }
        Ok(())
    }
    fn open_now(&self) -> f64 {
        self.open.last().map_or(0.0, |(_, open)| *open)
    }
    /// When the size turned: more after fewer, or fewer after more.
    fn turns(&self) -> Vec<f64> {
        let grows: Vec<(f64, bool)> = self.sizes.windows(2).map(|pair| (pair[1].0, pair[1].1 > pair[0].1)).collect();
        grows.windows(2).filter(|pair| pair[0].1 != pair[1].1).map(|pair| pair[1].0).collect()
    }
}

async fn nothing_failed(cluster: &Cluster, sent: usize) -> Result<()> {
    let directory = &cluster.directories[0];
    ensure!(directory.all("/v1/jobs?state=failed").await?.is_empty(), "jobs failed");
    wait_for("every VM to be listed", WAIT, async || {
        let vms = directory.all("/v1/vms").await?.len();
        Ok((vms == sent).then_some(()).ok_or(format!("{vms} of {sent}")))
    })
    .await?;
    cluster.no_violations().await?;
    cluster.audit().await
}

/// A cluster whose only cells are children of its controller, with one of them at work.
async fn elastic() -> Result<(Cluster, Server)> {
    let mut cluster = Cluster::start(slow(), 0, 0).await?;
    cluster.add_directory()?;
    let command = launched(&cluster);
    let controller = cluster.spawn("controller", &by_process(&command))?;
    until("one cell", &cluster.directories[0], |scale| scale["cells_active"] == 1).await?;
    cluster.ready().await?;
    Ok((cluster, controller))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_is_drained_by_cells_that_come() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    const STEP: f64 = 5.0 * CELL_RATE;
    let (cluster, controller) = elastic().await?;
    let directory = &cluster.directories[0];
    let (mut load, mut seen) = (Load::new(|_| STEP), Seen::default());
    // What is under way and on its way is no backlog: a call takes half a second.
    let backlog = |open: f64| open > 2.5 * STEP;
    let gone = |seen: &Seen| seen.open.iter().filter(|(_, open)| backlog(*open)).map(|(at, _)| *at).fold(0.0, f64::max);
    // The load goes on until nothing has waited for a while.
    wait_for("the backlog to be gone", WAIT, async || {
        load.send(directory).await?;
        seen.look(load.at(), directory).await?;
        let done = load.at() >= 20.0 && load.at() - gone(&seen) >= 5.0;
        Ok(done.then_some(()).ok_or(format!("{} jobs are open, sizes {:?}", seen.open_now(), seen.sizes)))
    })
    .await?;
    let first = seen.second_works.context("a second cell works")?;
    let (most, gone) = (seen.open.iter().fold(0.0, |most, (_, open)| f64::max(most, *open)), gone(&seen));
    println!(
        "{} jobs; the first new cell works after {first:.1} s, up to {most} open, backlog gone after {gone:.1} s, sizes {:?}",
        load.sent, seen.sizes
    );
    ensure!(backlog(most), "there was none: {most}");
    // The promise, held where the machine is the test's own: other tests beside it make processes start late.
    if long() {
        ensure!(first <= 10.0, "the first new cell worked after {first} s");
        ensure!(gone <= 1.25 * DRAIN_TARGET.as_secs_f64(), "the backlog was gone after {gone} s");
    }
    wait_for("all jobs to end", WAIT, async || {
        seen.look(load.at(), directory).await?;
        Ok((seen.open_now() == 0.0).then_some(()).ok_or(format!("{} open", seen.open_now())))
    })
    .await?;
    nothing_failed(&cluster, load.sent).await?;
    ensure!(controller.terminate(WAIT).await?.success(), "the controller drains its children");
    Ok(())
}

/// Two minutes a period: low, then what takes four cells.
fn wave(at: f64) -> f64 {
    if ((at / 60.0) as u64).is_multiple_of(2) { 0.3 } else { 3.0 * CELL_RATE }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_square_wave_does_not_make_processes_flap() -> Result<()> {
    if left_out() || !long() {
        return Ok(());
    }
    const SECONDS: f64 = 480.0;
    let (cluster, controller) = elastic().await?;
    let directory = &cluster.directories[0];
    let (mut load, mut seen) = (Load::new(wave), Seen::default());
    wait_for("the wave to be over", Duration::from_secs_f64(SECONDS) + WAIT, async || {
        load.send(directory).await?;
        seen.look(load.at(), directory).await?;
        Ok((load.at() >= SECONDS).then_some(()).ok_or(format!("{} s", load.at())))
    })
    .await?;
    wait_for("all jobs to end", WAIT, async || {
        seen.look(load.at(), directory).await?;
        Ok((seen.open_now() == 0.0).then_some(()).ok_or(format!("{} open", seen.open_now())))
    })
    .await?;
    let turns = seen.turns();
    println!("{} jobs; turns {turns:?}; sizes {:?}", load.sent, seen.sizes);
    for half in 0..(SECONDS / 60.0) as u32 {
        let (from, to) = (f64::from(half) * 60.0, f64::from(half + 1) * 60.0);
        ensure!(turns.iter().filter(|at| (from..to).contains(*at)).count() <= 1, "{turns:?} of {:?}", seen.sizes);
    }
    nothing_failed(&cluster, load.sent).await?;
    ensure!(controller.terminate(WAIT).await?.success(), "the controller drains its children");
    Ok(())
}

// ── what goes wrong ──

/// A program at this path, whatever was there before.
fn script(path: &Path, body: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, format!("#!/bin/sh\n{body}\n"))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
    Ok(std::fs::rename(&new, path)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launcher_that_fails_is_told_and_tries_again() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let more = SMALL.replace("scale.min = 1", "scale.min = 2");
    let mut cluster = Cluster::start(Shape { more, ..Shape::default() }, 1, 1).await?;
    let program = cluster.folder().join("start-a-cell");
    script(&program, "exit 3")?;
    let controller = cluster.spawn("controller", &by_process(&program.display().to_string()))?;
    let directory = &cluster.directories[0];
    let trouble = |scale: &Value| scale["trouble"].as_str().map(str::to_owned);
    until("the trouble to be told", directory, |scale| {
        trouble(scale).is_some_and(|why| why.contains("a cell ended with exit status: 3"))
    })
    .await?;
    wait_for("the metric to tell it", WAIT, async || {
        let text = directory.text("/metrics").await?;
        let line = text.lines().find(|line| line.starts_with("cellbus_scale_trouble "));
        Ok(line.is_some_and(|line| line.ends_with(" 1")).then_some(()).ok_or(format!("{line:?}")))
    })
    .await?;
    // Work goes on meanwhile with what is there.
    let data = json!({"name": "web", "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x"});
    ensure!(directory.submit(&event("provision", "one", None, &data)).await?.status == 202);
    script(&program, &format!("exec {}", launched(&cluster)))?;
    until("the second cell, and no trouble", directory, |scale| scale["cells_active"] == 2 && trouble(scale).is_none())
        .await?;
    ensure!(controller.terminate(WAIT).await?.success(), "the controller drains its child");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_is_killed_as_its_cells_start() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let mut cluster = Cluster::start(Shape { more: SMALL.to_owned(), ..Shape::default() }, 1, 1).await?;
    let settings = by_process(&launched(&cluster));
    let first = cluster.spawn("controller", &settings)?;
    until("a controller that decides", &cluster.directories[0], |scale| scale["controller"].is_string()).await?;
    let second = cluster.spawn("controller", &settings)?;
    let directory = &cluster.directories[0];
    let data = json!({"name": "web", "count": 600, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x"});
    wait_for("the job to be taken", WAIT, async || {
        let answer = directory.submit(&event("provision", "many", None, &data)).await?;
        Ok((answer.status == 202).then_some(()).ok_or(answer.body.to_string()))
    })
    .await?;
    until("more cells to be wanted", directory, |scale| scale["cells"].as_u64() > Some(1)).await?;
    // Their processes are on their way, and nobody is left who counts them.
    first.kill()?;
    wait_for("all jobs to end", WAIT, async || {
        let open = directory.get("/v1/queue").await?.body["jobs_open"].clone();
        Ok((open == 0).then_some(()).ok_or(format!("{open} open")))
    })
    .await?;
    // Those that the dead one has started serve on; the other cannot have them leave, and says so.
    let mut orphans = false;
    until("as few as are wanted, or word of those that are too many", directory, |scale| {
        orphans = scale["trouble"].as_str().is_some_and(|why| why.contains("cellbus cells drain"));
        orphans || scale["cells"] == 1 && scale["cells_active"] == 1
    })
    .await?;
    if orphans {
        let cells = directory.get("/v1/cells").await?.body;
        for cell in cells["items"].as_array().or(cells.as_array()).context("a list of cells")? {
            let own = cluster.cells[0].url.rsplit('/').next().context("an address")?;
            if !cell["address"].as_str().is_some_and(|address| address.ends_with(own)) {
                directory.succeed(&["cells", "drain", cell["id"].as_str().context("a cell has an id")?])?;
            }
        }
    }
    until("one cell, and no trouble", directory, |scale| {
        scale["cells"] == 1 && scale["cells_active"] == 1 && scale["cells_draining"] == 0 && scale["trouble"].is_null()
    })
    .await?;
    nothing_failed(&cluster, 600).await?;
    second.terminate(WAIT).await?;
    Ok(())
}
