//! `kill -9` of `cellbus up` at random moments under load, over and over the same data. After it
//! all, every job that was acknowledged has one outcome, which never changes; no VM is there
//! twice; the audit is clean.

#![expect(clippy::disallowed_methods, reason = "it drives the real binary from outside, in real time")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cellbus_tests::process::{Server, event, long, wait_for};
use futures::future::join_all;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

const ARGUMENTS: &[&str] = &["--cells", "3", "--hosts", "60", "--managers", "6", "--latency", "fast"];
/// Submitters at once: enough that every kill finds calls, appends and submissions under way.
const SUBMITTERS: u64 = 8;

/// What this test knows, whatever the server remembers.
#[derive(Default)]
struct Books {
    /// Every event sent: whether it was acknowledged, and the outcome last seen.
    jobs: BTreeMap<String, Job>,
    /// VMs whose provision has succeeded and that nothing was asked to delete.
    vms: Vec<String>,
}
struct Job {
    event: Value,
    acknowledged: Option<String>,
    outcome: Option<Value>,
}

impl Books {
    /// An outcome that was seen stays.
    fn saw(&mut self, key: &str, job: &Value) -> Result<()> {
        let known = self.jobs.get_mut(key).context("only what was sent is looked at")?;
        if matches!(job["state"].as_str(), Some("succeeded" | "failed" | "cancelled")) {
            match &known.outcome {
                Some(outcome) => ensure!(*outcome == job["state"], "{key}: {outcome} became {job}"),
                None => known.outcome = Some(job["state"].clone()),
            }
        } else {
            ensure!(known.outcome.is_none(), "{key} had ended and is now {job}");
        }
        Ok(())
    }
}

fn next_event(rng: &mut SmallRng, books: &Books, key: &str) -> Value {
    let vm = (!books.vms.is_empty()).then(|| books.vms[rng.random_range(0..books.vms.len())].clone());
    match (rng.random_range(0..10), vm) {
        (0..=1, Some(vm)) => event("stop", key, Some(&vm), &json!({"mode": "hard"})),
        (2, Some(vm)) => event("start", key, Some(&vm), &json!({})),
        (3, Some(vm)) => event("restart", key, Some(&vm), &json!({})),
        (4, Some(vm)) => event("resize", key, Some(&vm), &json!({"vcpus": rng.random_range(1..4)})),
        (5, Some(vm)) => event("delete", key, Some(&vm), &json!({})),
        (6, Some(vm)) => {
            event("migrate", key, Some(&vm), &json!({"manager": format!("sim-{:04}", rng.random_range(0..6))}))
        }
        _ => {
            let count = if rng.random_range(0..5) == 0 { 5 } else { 1 };
            let data = json!({"name": format!("vm-{key}"), "count": count, "vcpus": 1, "memory_mib": 256,
                              "disk_gib": 1, "image": "debian-12"});
            event("provision", key, None, &data)
        }
    }
}

/// Sends events until the server is gone.
async fn submitter(server: Arc<Server>, books: Arc<Mutex<Books>>, round: u64, me: u64, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed ^ round << 8 ^ me);
    for number in 0_u64.. {
        let key = format!("{round}-{me}-{number}");
        let event = {
            let mut books = books.lock().expect("no holder panics");
            let event = next_event(&mut rng, &books, &key);
            if event["type"] == "io.cellbus.job.delete.v1" {
                books.vms.retain(|vm| event["subject"] != vm.as_str());
            }
            books.jobs.insert(key.clone(), Job { event: event.clone(), acknowledged: None, outcome: None });
            event
        };
        let Ok(answer) = server.submit(&event).await else { return };
        if answer.status == 202 {
            let id = answer.body["job_id"].as_str().expect("an acknowledged job has an id").to_owned();
            let mut books = books.lock().expect("no holder panics");
            if event["type"] == "io.cellbus.job.provision.v1" {
                books.vms.push(id.clone());
            }
            books.jobs.get_mut(&key).expect("just put in").acknowledged = Some(id);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_job_survives_kills() -> Result<()> {
    let kills = if long() { 20 } else { 5 };
    let seed = std::env::var("CELLBUS_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| SmallRng::from_os_rng().random());
    println!("seed {seed} (CELLBUS_SEED={seed} plays it again, as far as real processes do)");
    let mut rng = SmallRng::seed_from_u64(seed);
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let books = Arc::new(Mutex::new(Books::default()));

    for round in 0..kills {
        // Every fourth time it is killed while it starts: replay, takeover and inventory are under way.
        if round % 4 == 3 {
            let starting = Server::listening(&data, ARGUMENTS)?;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..200))).await;
            starting.kill()?;
        }
        let server = Arc::new(Server::start(&data, ARGUMENTS).await?);
        let submitters: Vec<_> =
            (0..SUBMITTERS).map(|me| tokio::spawn(submitter(server.clone(), books.clone(), round, me, seed))).collect();
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..2_000))).await;
        server.signal(rustix::process::Signal::KILL)?;
        for submitter in submitters {
            submitter.await?;
        }
        Arc::into_inner(server).context("submitters have ended")?.ended(Duration::from_secs(10)).await?;
    }

    let server = Server::start(&data, ARGUMENTS).await?;
    let mut books = Arc::into_inner(books).context("submitters have ended")?.into_inner()?;
    // Whatever had no answer is sent again, as a producer would: it becomes the same job, once.
    for (key, job) in &mut books.jobs {
        let answer = server.submit(&job.event).await?;
        ensure!(answer.status == 202 || answer.status == 200, "{key} again: {answer:?}");
        let id = answer.body["job_id"].as_str().context("a job id")?.to_owned();
        if let Some(known) = &job.acknowledged {
            ensure!(*known == id, "{key}: {known} became {id}");
        }
        job.acknowledged = Some(id);
    }
    println!("{} jobs over {kills} kills", books.jobs.len());
    ensure!(books.jobs.len() > 20, "the submitters did next to nothing");
    all_end(&server, &mut books).await.with_context(|| server.log_tail())?;
    no_vm_twice(&server).await?;
    server.succeed(&["audit"])?;
    // Seen once more: outcomes have not changed.
    all_end(&server, &mut books).await?;
    Ok(())
}

async fn all_end(server: &Server, books: &mut Books) -> Result<()> {
    let mut waiting: Vec<(String, String)> =
        books.jobs.iter().filter_map(|(key, job)| Some((key.clone(), job.acknowledged.clone()?))).collect();
    wait_for("all jobs to end", Duration::from_secs(180), async || {
        let mut still = Vec::new();
        let mut last = Value::Null;
        for chunk in waiting.chunks(32) {
            let paths: Vec<String> = chunk.iter().map(|(_, id)| format!("/v1/jobs/{id}")).collect();
            let answers = join_all(paths.iter().map(|path| server.get(path))).await;
            for ((key, id), answer) in chunk.iter().zip(answers) {
                let answer = answer?;
                match answer.status {
                    200 => {}
                    503 => {
                        still.push((key.clone(), id.clone()));
                        continue;
                    }
                    _ => bail!("{key} {id} was acknowledged and is now {answer:?}"),
                }
                books.saw(key, &answer.body)?;
                if books.jobs[key].outcome.is_none() {
                    still.push((key.clone(), id.clone()));
                    last = answer.body;
                }
            }
        }
        waiting = still;
        Ok(if waiting.is_empty() { Ok(()) } else { Err(format!("{} jobs, the last {last}", waiting.len())) })
    })
    .await
}

/// The inventory knows each VM once, and managers hold as many as it does.
async fn no_vm_twice(server: &Server) -> Result<()> {
    let vms = server.all("/v1/vms").await?;
    let mut seen = BTreeMap::new();
    for vm in &vms {
        if let Some(other) = seen.insert(vm["id"].as_str().context("an id")?, vm) {
            bail!("listed twice: {vm} and {other}");
        }
    }
    let managers = server.all("/v1/managers").await?;
    let held: u64 = managers.iter().filter_map(|manager| manager["vms"].as_u64()).sum();
    ensure!(held == vms.len() as u64, "managers hold {held} VMs, the inventory has {}", vms.len());
    Ok(())
}
