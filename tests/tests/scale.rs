//! The autoscaler in `cellbus up`: cells come while work waits and go when it is done, an operator has
//! the last word, and a restart goes on from what was decided.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cellbus_tests::process::{Server, event, wait_for};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(120);

/// One call of 20 ms at a time makes 50 jobs a second of a cell.
const SMALL: &[&str] = &[
    "--hosts",
    "40",
    "--managers",
    "4",
    "--cells",
    "1",
    "--set",
    "cell.in_flight_max=1",
    "--set",
    "scale.max=3",
    "--set",
    // What takes one cell a quarter of a minute is to be gone in seconds.
    "scale.drain_target=2s",
    "--set",
    "scale.out_window=1s",
    "--set",
    "scale.in_window=2s",
];

async fn decisions(server: &Server) -> Result<Vec<Value>> {
    server.all("/v1/scale/decisions").await
}

async fn scale(server: &Server) -> Result<Value> {
    Ok(server.get("/v1/scale").await?.body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_come_while_work_waits_and_go_when_it_is_done() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let server = Server::start(&data, SMALL).await?;
    let data_of = json!({"name": "web", "count": 600, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x"});
    assert_eq!(server.submit(&event("provision", "many", None, &data_of)).await?.status, 202);
    wait_for("three cells", WAIT, async || {
        let scale = scale(&server).await?;
        Ok((scale["cells_active"] == 3).then_some(()).ok_or(scale.to_string()))
    })
    .await?;
    wait_for("all done, and one cell", WAIT, async || {
        let scale = scale(&server).await?;
        let open = server.get("/v1/queue").await?.body["jobs_open"].clone();
        let one = scale["cells_active"] == 1 && scale["cells_draining"] == 0 && open == 0;
        Ok(one.then_some(()).ok_or(format!("{scale}, {open} open")))
    })
    .await?;
    assert!(server.all("/v1/jobs?state=failed").await?.is_empty(), "a scale-in failed jobs");
    assert_eq!(server.all("/v1/vms").await?.len(), 600);
    let all = decisions(&server).await?;
    assert!(all.iter().any(|decision| decision["direction"] == "out"), "{all:?}");
    let last = all.iter().find(|decision| decision["direction"] == "in").context("it shrank")?;
    assert!(last["inputs"]["cell_rate_per_second"].as_f64().is_some_and(|rate| rate > 1.0), "{last}");

    // An operator's word; and who, and when, and after a restart too.
    let set = server.put("/v1/scale", &json!({"mode": "fixed", "cells": 2})).await?.body;
    assert_eq!((&set["mode"], &set["cells"]), (&json!("fixed"), &json!(2)));
    wait_for("two cells", WAIT, async || {
        let scale = scale(&server).await?;
        Ok((scale["cells_active"] == 2).then_some(()).ok_or(scale.to_string()))
    })
    .await?;
    let changes = server.get("/v1/changes").await?.body;
    assert_eq!(changes["items"][0]["what"], "scale: fixed, 2 cells");
    let before = decisions(&server).await?.len();
    server.kill()?;
    let server = Server::start(&data, SMALL).await?;
    wait_for("two cells again", WAIT, async || {
        let scale = scale(&server).await?;
        let so = scale["cells_active"] == 2 && scale["mode"] == "fixed" && scale["set_by"]["who"] == "anonymous";
        Ok(so.then_some(()).ok_or(scale.to_string()))
    })
    .await?;
    assert!(decisions(&server).await?.len() >= before);
    Ok(())
}
