//! The autoscaler of a cluster of processes: cells that the controller starts as its children, a load that
//! comes at once or in waves, saturated managers, readings that are lost, a launcher that fails, and
//! controllers that are killed.

#![expect(clippy::disallowed_methods, reason = "it drives the real binary from outside, in real time")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::ids::{ShardCount, ShardId};
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::binary::cellbus;
use cellbus_tests::cluster::{Cluster, Shape, rows};
use cellbus_tests::load::{Load, Seen, Took, longest};
use cellbus_tests::process::{Server, event, long, wait_for};
use rustix::process::Signal;
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
    let seconds = if long() { 2_400 } else { 900 };
    format!("timeout {seconds} {} cell --config {} --data {}", of(cellbus()), of(&cluster.config()), of(&data))
}

fn by_process(command: &str) -> [String; 2] {
    ["scale.launcher=process".to_owned(), format!("scale.command={command}")]
}

// ── a load that comes and goes ──

/// Each operation takes half a second, and a cell has one under way: about two jobs a second of a cell, so
/// that not the processors of the machine decide how much is done.
const CELL_RATE: f64 = 1.8;
const DRAIN_TARGET: Duration = Duration::from_secs(30);
/// How long the first new cell may take to work.
const FIRST_NEW: f64 = 10.0;
/// So much longer where other tests run beside this one and make processes start late.
const BUSY: f64 = 4.0;

fn slow(more: &str) -> Shape {
    let target = DRAIN_TARGET.as_secs();
    let of_all = "cell.in_flight_max = 1\nscale.min = 1\nscale.max = 8\n";
    let more = format!("{of_all}scale.drain_target = \"{target}s\"\n{more}");
    Shape { latency: "500ms", hosts_per_manager: 40, more, ..Shape::default() }
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
async fn elastic(more: &str) -> Result<(Cluster, Server)> {
    let mut cluster = Cluster::start(slow(more), 0, 0).await?;
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
    let (cluster, controller) = elastic("").await?;
    let directory = &cluster.directories[0];
    let (mut load, mut seen) = (Load::new(directory, |_| STEP), Seen::default());
    // What is under way and on its way is no backlog: a call takes half a second.
    let backlog = |open: f64| open > 2.5 * STEP;
    let gone = |seen: &Seen| seen.open.iter().filter(|(_, open)| backlog(*open)).map(|(at, _)| *at).fold(0.0, f64::max);
    // The load goes on until nothing has waited for a while.
    wait_for("the backlog to be gone", 2 * WAIT, async || {
        load.send();
        seen.look(load.at(), directory).await?;
        let done = load.at() >= 20.0 && load.at() - gone(&seen) >= 5.0;
        Ok(done.then_some(()).ok_or(format!("{} jobs are open, sizes {:?}", seen.open_now(), seen.sizes)))
    })
    .await?;
    let first = seen.second_works.context("a second cell works")?;
    let (most, gone) = (seen.open.iter().fold(0.0, |most, (_, open)| f64::max(most, *open)), gone(&seen));
    let longest = longest(load.all().await?.iter());
    println!(
        "{} jobs; the first new cell works after {first:.1} s, up to {most} open, backlog gone after {gone:.1} s, \
         the longest took {longest:.1} s, sizes {:?}",
        load.sent, seen.sizes
    );
    ensure!(backlog(most), "there was none: {most}");
    // The promise is held to where the machine is the test's own.
    let slack = if long() { 1.0 } else { BUSY };
    ensure!(first <= slack * FIRST_NEW, "the first new cell worked after {first} s");
    ensure!(gone <= slack * 1.25 * DRAIN_TARGET.as_secs_f64(), "the backlog was gone after {gone} s");
    nothing_failed(&cluster, load.sent).await?;
    ensure!(controller.terminate(WAIT).await?.success(), "the controller drains its children");
    Ok(())
}

/// A square wave: low, then what takes four cells, so many seconds each.
struct Wave {
    half: f64,
    halves: u32,
    /// When the size follows it, so that cells leave in each low half.
    settings: &'static str,
    per_second: fn(f64) -> f64,
}

const fn wave(half: f64, at: f64) -> f64 {
    if ((at / half) as u64).is_multiple_of(2) { 0.45 * CELL_RATE } else { 3.0 * CELL_RATE }
}

/// Two minutes a period, for half an hour. With the usual two minutes for fewer cells none would leave before it is
/// over. What a half began with too many for is not taken back within it.
const LONG: Wave =
    Wave { half: 60.0, halves: 30, settings: "scale.in_window = \"52s\"\n", per_second: |at| wave(LONG.half, at) };

const SHORT: Wave = Wave {
    half: 12.0,
    halves: 4,
    settings: "scale.out_window = \"2s\"\nscale.in_window = \"4s\"\nscale.in_pause = \"1s\"\nscale.rate_window = \"3s\"\n",
    per_second: |at| wave(SHORT.half, at),
};

/// What a cluster says of a job and of the VM that it has made.
async fn why(server: &Server, job: &Took) -> Result<String> {
    let vms = server.get(&format!("/v1/jobs/{}/vms", job.job)).await?.body;
    let mut said = server.get(&format!("/v1/explain/{}", job.job)).await?.body.to_string();
    for row in cellbus_tests::cluster::rows(&vms) {
        let vm = row["id"].as_str().context("a VM has an id")?;
        said.push_str(&format!("\n  {}", server.get(&format!("/v1/explain/{vm}")).await?.body));
    }
    Ok(said)
}

/// How long what a cell does as it leaves may be noticed.
const LEAVING: f64 = 10.0;

/// No more than one change of direction in each half of it, and no job waits over a second longer because a
/// cell leaves: jobs of low halves near that are held against those that are not near it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_square_wave_does_not_make_processes_flap() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let Wave { half, halves, settings, per_second } = if long() { LONG } else { SHORT };
    let (cluster, controller) = elastic(settings).await?;
    let directory = &cluster.directories[0];
    let (mut load, mut seen) = (Load::new(directory, per_second), Seen::default());
    while load.at() < half * f64::from(halves) {
        load.send();
        seen.look(load.at(), directory).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let jobs = load.all().await?;
    // On a busy machine what a half asks for may come in the next, the last one included.
    wait_for("a cell to leave", WAIT, async || {
        seen.look(load.at(), directory).await?;
        Ok((!seen.left().is_empty()).then_some(()).ok_or(format!("{:?}", seen.sizes)))
    })
    .await?;
    let (turns, left) = (seen.turns(), seen.left());
    let quiet = |at: f64| ((at / half) as u32).is_multiple_of(2);
    let near = |job: &Took| left.iter().any(|at| job.at + job.seconds >= *at && job.at <= *at + LEAVING);
    // What the high half has left waiting is done first; what the next one brings says nothing of cells that leave.
    let settled = |job: &Took| quiet(job.at) && (half / 6.0..half - 1.0).contains(&(job.at % half));
    let (at, elsewhere): (Vec<&Took>, Vec<&Took>) = jobs.iter().filter(|job| settled(job)).partition(|job| near(job));
    let (waited, usual) = (longest(at.iter().copied()), longest(elsewhere.iter().copied()));
    for job in at.iter().filter(|job| job.seconds > usual) {
        println!(
            "as a cell left, the job of {:.1} s took {:.2} s: {}",
            job.at,
            job.seconds,
            why(directory, job).await?
        );
    }
    println!(
        "{} jobs; {} of low halves as one of {} cells left: the longest took {waited:.2} s; {} of low halves else: \
         {usual:.2} s; turns {turns:.1?}; sizes {:?}",
        load.sent,
        at.len(),
        left.len(),
        elsewhere.len(),
        seen.sizes
    );
    // In the first low half nobody knows yet what a cell does.
    let of_the_wave = turns.iter().filter(|at| (half..half * f64::from(halves)).contains(*at)).count();
    ensure!(of_the_wave <= halves as usize, "{turns:?} of {:?}", seen.sizes);
    // Where other tests run beside this one, some jobs wait for processes that have no processor, and the short
    // form may have few jobs to look at.
    if long() {
        ensure!(
            left.len() >= halves as usize / 2 && at.len().min(elsewhere.len()) >= 40,
            "too little to tell: {left:?}"
        );
        for half_at in (0..halves).map(|number| f64::from(number) * half) {
            let within = turns.iter().filter(|at| (half_at..half_at + half).contains(*at)).count();
            ensure!(within <= 1, "in the half from {half_at} s: {turns:?} of {:?}", seen.sizes);
        }
    }
    let slack = if long() { 1.0 } else { BUSY };
    ensure!(waited <= usual + slack, "{waited} s as a cell left, {usual} s else");
    nothing_failed(&cluster, load.sent).await?;
    ensure!(controller.terminate(WAIT).await?.success(), "the controller drains its children");
    Ok(())
}

// ── what goes wrong ──

/// Two managers that take one operation at a time each do not four a second. A cell with calls in line there
/// could do many times as much, and all that waits would be gone in time with three of them, if it were theirs to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_that_are_saturated_bring_no_cells() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let more = "cell.in_flight_max = 16\nscale.min = 1\nscale.max = 3\nscale.drain_target = \"5s\"\n";
    let shape = Shape { managers: 2, operations_max: Some(1), more: more.to_owned(), ..slow("") };
    let mut cluster = Cluster::start(shape, 1, 1).await?;
    let controller = cluster.spawn("controller", &["scale.launcher=none".to_owned()])?;
    let directory = &cluster.directories[0];
    until("a controller that decides", directory, |scale| scale["decided_at"].is_string()).await?;
    // What a cell does is known when it begins.
    let per_second = |at| if at < 8.0 { 2.0 } else { 10.0 };
    let (mut load, mut seen, mut waits) = (Load::new(directory, per_second), Seen::default(), 0);
    // Until it has gone on for long enough that more cells would have been wanted.
    wait_for("work to wait", WAIT, async || {
        load.send();
        seen.look(load.at(), directory).await?;
        waits = waits.max(directory.get("/v1/queue").await?.body["waiting"].as_u64().unwrap_or_default());
        Ok((load.at() >= 22.0 && waits >= 60).then_some(()).ok_or(format!("{waits} wait")))
    })
    .await?;
    let jobs = load.all().await?;
    println!("{} jobs, up to {waits} wait, the longest took {:.1} s", load.sent, longest(jobs.iter()));
    let decisions = directory.all("/v1/scale/decisions").await?;
    ensure!(seen.sizes.iter().all(|(_, size)| *size == 1), "{:?}: {decisions:?}", seen.sizes);
    ensure!(decisions.iter().all(|decision| decision["desired"] == 1), "{decisions:?}");
    nothing_failed(&cluster, load.sent).await?;
    controller.terminate(WAIT).await?;
    Ok(())
}

/// Which of the cells owns the cluster's shard.
async fn owner_of_the_cluster(cluster: &Cluster) -> Result<usize> {
    let directory = &cluster.directories[0];
    let shard = ShardId::of_cluster(ShardCount::new(cluster.shards()).context("a number of shards")?);
    let shards = rows(&directory.get("/v1/shards").await?.body);
    let owner = shards.iter().find(|row| row["shard"] == shard.index()).context("the shard is listed")?;
    let cells = rows(&directory.get("/v1/cells").await?.body);
    let cell = cells.iter().find(|cell| cell["id"] == owner["owner"]).context("its owner is listed")?;
    let is = |server: &&Server| cell["address"].as_str().is_some_and(|address| server.url.ends_with(address));
    cluster.cells.iter().position(|server| is(&server)).with_context(|| cell.to_string())
}

/// A cell stands still and is not taken for dead: what its shards hold is not known, and the load that comes
/// meanwhile changes nothing before it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readings_that_are_lost_hold_the_size_and_say_so() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let more = format!("{SMALL}scale.stale_after = \"1s\"\nlease.ttl = \"100s\"\n");
    let mut cluster = Cluster::start(Shape { more, ..Shape::default() }, 2, 1).await?;
    cluster.settled().await?;
    let controller = cluster.spawn("controller", &["scale.launcher=none".to_owned()])?;
    let directory = &cluster.directories[0];
    until("one cell to be advised", directory, |scale| scale["cells"] == 1 && scale["trouble"].is_null()).await?;
    let still = &cluster.cells[1 - owner_of_the_cluster(&cluster).await?];
    still.signal(Signal::STOP)?;
    until("word of what is not known", directory, |scale| {
        scale["trouble"].as_str().is_some_and(|why| why.contains("shards hold is not known"))
    })
    .await?;
    let (mut load, mut sizes) = (Load::new(directory, |_| 60.0), BTreeSet::new());
    while load.at() < 6.0 {
        load.send();
        sizes.insert(directory.get("/v1/scale").await?.body["cells"].as_u64());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(sizes == BTreeSet::from([Some(1)]), "it was not held: {sizes:?}");
    still.signal(Signal::CONT)?;
    // It is known how much there is to do, and that is much.
    until("more cells to be advised", directory, |scale| scale["cells"].as_u64() > Some(1)).await?;
    until("no trouble", directory, |scale| scale["trouble"].is_null()).await?;
    load.all().await?;
    nothing_failed(&cluster, load.sent).await?;
    controller.terminate(WAIT).await?;
    Ok(())
}

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
        for cell in &rows(&cells) {
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
