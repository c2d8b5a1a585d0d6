//! The autoscaler of a cluster of processes: cells that the controller starts as its children, and a
//! controller that stands by for one that is killed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::binary::cellbus;
use cellbus_tests::cluster::{Cluster, Shape};
use cellbus_tests::process::{Server, event, wait_for};
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
