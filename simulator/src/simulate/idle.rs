//! A cluster that has nothing to do, or little: what it asks of its bus and network all the same, by its
//! size and by jobs.
//!
//! Cells and directories are as they are in a cluster of processes: a few directories, and many
//! cells that ask them. The figures are of the bus's contract, so they hold whatever the transport:
//! what a call is to a broker (a request, a message for each member listed) its page says.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::Bus as _;
use cellbus_bus::env::Env;
use cellbus_bus::ids::ShardCount;
use cellbus_cell::gateway::ShardState;
use cellbus_cell::runner;
use serde_json::json;

use super::bus::Client;
use super::calm::{Calm, Plan};
use super::cells::{Cells, Shape};
use super::executor::WORLD;
use super::tally::Tally;

/// What is counted lasts so long.
const COUNTED: Duration = Duration::from_secs(60);
/// Between two looks at whether all shards are served.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A cluster that does not serve all its shards by then never will.
const OPEN_WITHIN: Duration = Duration::from_secs(300);

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// What is left to chance follows from it: delays, and ids of cells.
    pub seed: u64,
    /// Cells that are no directories.
    pub cells: u32,
    /// Processes of the directory, each with a cell beside it.
    pub directories: u32,
    /// Shards.
    pub shards: ShardCount,
    /// How long others wait for a cell of which they hear nothing.
    pub lease: Duration,
    /// Between one job and the next while it is counted; `None`: there are none.
    pub job_every: Option<Duration>,
}

/// What it asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// From the start of the cells until every shard was served; `None`: not in time.
    pub open_after: Option<Duration>,
    /// Jobs submitted meanwhile.
    pub jobs: u64,
    /// A second, by what it is: calls of the bus's contract, `members-listed` for what [`members`] gave,
    /// and `requests` and `posts` between processes.
    ///
    /// [`members`]: cellbus_bus::Bus::members
    pub per_second: BTreeMap<&'static str, f64>,
    /// What panicked.
    pub panics: Vec<String>,
}

/// Makes a run, on a thread of its own.
///
/// # Panics
/// When there is no directory.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "one thread, which is waited for: nothing runs beside it")]
pub fn idle(config: &Idle) -> Asked {
    assert!(config.directories > 0, "cells ask a directory");
    std::thread::scope(|scope| {
        let made = std::thread::Builder::new().spawn_scoped(scope, || run(*config));
        match made.expect("the system gives a thread").join() {
            Ok(asked) => asked,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn run(config: Idle) -> Asked {
    let tally = Tally::default();
    let Calm { executor, env, bus, network, cells } = Calm::new(Plan {
        seed: config.seed,
        // One manager: what managers are asked is their affair, and grows with them alone. It has room for what
        // is made meanwhile.
        hosts: 100,
        managers: 1,
        limits: None,
        way_max: Duration::ZERO,
        shadow: false,
        shape: Shape {
            shards: config.shards,
            lease: config.lease,
            runner: runner::Config::default(),
            managers: Vec::new(),
            together: (config.cells + config.directories) as usize,
            in_flight_max: None,
            apart: true,
            checkpoints: None,
            unchecked: false,
        },
    });
    bus.count(&tally);
    network.count(&tally);
    let (asked, over) = (Arc::new(Mutex::new(Asked::default())), Arc::new(AtomicBool::new(false)));
    for _ in 0..config.directories {
        cells.start(executor.add_node());
    }
    for _ in 0..config.cells {
        cells.start_alone(executor.add_node());
    }
    let (course, filled, ended) = (Arc::clone(&cells), Arc::clone(&asked), Arc::clone(&over));
    let world = env.clone();
    env.spawn("the run", async move {
        let found = watch(&world, &bus.client(WORLD), &course, &tally, config).await;
        *filled.lock().unwrap_or_else(PoisonError::into_inner) = found;
        ended.store(true, Ordering::Relaxed);
    });
    let _ = executor.run(|| over.load(Ordering::Relaxed));
    let panics = executor.take_panics();
    cells.clear();
    executor.clear();
    let found = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
    Asked { panics, ..found }
}

async fn watch(env: &Env, bus: &Client, cells: &Cells, tally: &Tally, config: Idle) -> Asked {
    let began = env.mono();
    while !all_served(env, cells).await {
        if env.mono().since(began) > OPEN_WITHIN {
            return Asked::default();
        }
        env.sleep(LOOK_EVERY).await;
    }
    let open_after = env.mono().since(began);
    // What was asked to get here dies down.
    env.sleep(config.lease * 3).await;
    let before = tally.counts();
    let (mut jobs, over) = (0, env.mono().after(COUNTED));
    while let Some(every) = config.job_every
        && env.mono().after(every) <= over
    {
        submit(env, bus, jobs).await;
        jobs += 1;
        env.sleep(every).await;
    }
    env.sleep(over.since(env.mono())).await;
    let rate = |(what, count): (&'static str, u64)| {
        let times = count - before.get(what).copied().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        (what, times as f64 / COUNTED.as_secs_f64())
    };
    Asked {
        open_after: Some(open_after),
        jobs,
        per_second: tally.counts().into_iter().map(rate).collect(),
        panics: Vec::new(),
    }
}

async fn submit(env: &Env, bus: &Client, number: u64) {
    let data = json!({"name": format!("vm-{number}"), "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x",
        "power": "off"});
    let event = json!({"specversion": "1.0", "id": format!("j{number}"), "source": "/idle", "tenant": "acme",
        "type": "io.cellbus.job.provision.v1", "datacontenttype": "application/json", "data": data});
    let headers = vec![("content-type".to_owned(), "application/cloudevents+json".to_owned())];
    let body = Bytes::from(event.to_string());
    while bus.ingress_publish("acme", headers.clone(), body.clone()).await.is_err() {
        env.sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a directory's cell says that every shard is served.
async fn all_served(env: &Env, cells: &Cells) -> bool {
    let Some(first) = cells.all().into_iter().next() else { return false };
    let ask = |gateway: cellbus_cell::Gateway| async move { gateway.shards().await };
    match cells.ask(env, &first, Duration::from_secs(10), ask).await {
        Some(Ok(rows)) => {
            rows.len() == usize::from(cells.shards().get()) && rows.iter().all(|row| row.state == ShardState::Open)
        }
        Some(Err(_)) | None => false,
    }
}
