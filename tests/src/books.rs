//! What a producer knows of its jobs, whatever the cluster remembers: the books that tests of kills
//! hold against it in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use rand::Rng as _;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

use crate::cluster::{Broker, ClusterOn};
use crate::process::{Server, event, wait_for};

/// See the module.
#[derive(Default)]
pub struct Books {
    /// Every event sent: whether it was acknowledged, and the outcome last seen.
    pub jobs: BTreeMap<String, Job>,
    /// VMs whose provision has succeeded and that nothing was asked to delete.
    pub vms: Vec<String>,
}
/// One event that was sent.
pub struct Job {
    /// As it was sent.
    pub event: Value,
    /// The id that it was acknowledged with.
    pub acknowledged: Option<String>,
    /// The outcome last seen.
    pub outcome: Option<Value>,
}

impl Books {
    /// Makes up a next event, and writes down that it is sent.
    pub fn next(&mut self, rng: &mut SmallRng, key: &str) -> Value {
        let event = next_event(rng, self, key);
        if event["type"] == "io.cellbus.job.delete.v1" {
            self.vms.retain(|vm| event["subject"] != vm.as_str());
        }
        self.jobs.insert(key.to_owned(), Job { event: event.clone(), acknowledged: None, outcome: None });
        event
    }

    /// Writes down that an event was acknowledged as this job.
    ///
    /// # Errors
    /// When it had been acknowledged as another.
    pub fn acknowledged(&mut self, key: &str, id: &str) -> Result<()> {
        let job = self.jobs.get_mut(key).context("only what was sent is acknowledged")?;
        if let Some(known) = &job.acknowledged {
            ensure!(known == id, "{key}: {known} became {id}");
            return Ok(());
        }
        job.acknowledged = Some(id.to_owned());
        if job.event["type"] == "io.cellbus.job.provision.v1" {
            self.vms.push(id.to_owned());
        }
        Ok(())
    }

    /// Sends every event again, as a producer would that had no answer to some: each becomes the
    /// same job, once.
    ///
    /// # Errors
    /// When one is refused, or becomes another job.
    pub async fn send_all_again(&mut self, server: &Server) -> Result<()> {
        let events: Vec<(String, Value)> =
            self.jobs.iter().map(|(key, job)| (key.clone(), job.event.clone())).collect();
        for (key, event) in events {
            let answer = server.submit(&event).await?;
            ensure!(answer.status == 202 || answer.status == 200, "{key} again: {answer:?}");
            self.acknowledged(&key, answer.body["job_id"].as_str().context("a job id")?)?;
        }
        Ok(())
    }

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

/// Waits until every job that was acknowledged has ended, and remembers how.
///
/// # Errors
/// When one does not, is not known any more, or ended otherwise than was seen before.
pub async fn all_end(server: &Server, books: &mut Books) -> Result<()> {
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
///
/// # Errors
/// When that is not so.
pub async fn no_vm_twice(server: &Server) -> Result<()> {
    each_is_held(server, |_| true).await
}

/// As [`no_vm_twice`], after a restore: a VM that was deleted since the backup may be known as lost.
///
/// # Errors
/// When that is not so.
pub async fn no_vm_twice_but_lost(server: &Server) -> Result<()> {
    each_is_held(server, |vm| vm["state"] != "lost").await
}

async fn each_is_held(server: &Server, counts: impl Fn(&Value) -> bool) -> Result<()> {
    let vms = server.all("/v1/vms").await?;
    let mut seen = BTreeMap::new();
    for vm in &vms {
        if let Some(other) = seen.insert(vm["id"].as_str().context("an id")?, vm) {
            bail!("listed twice: {vm} and {other}");
        }
    }
    // What cells say of their managers is a second old, and nothing of one that is being opened: unknown is not none.
    let held = wait_for("managers to hold what is listed", Duration::from_secs(60), async || {
        let (managers, vms) = (server.all("/v1/managers").await?, server.all("/v1/vms").await?);
        let unknown = managers.iter().find(|manager| manager["health"] == "unknown");
        let held: u64 = managers.iter().filter_map(|manager| manager["vms"].as_u64()).sum();
        let listed = vms.iter().filter(|vm| counts(vm)).count();
        let good = unknown.is_none() && held == listed as u64;
        Ok(good.then_some(()).ok_or(format!("managers hold {held} VMs, {listed} are listed, unknown: {unknown:?}")))
    })
    .await;
    if let Err(error) = held {
        // Which it is, and whether it is one: an audit reads the managers themselves.
        let audit = server.run(&["audit", "--output", "json"])?;
        bail!("{error:#}; an audit says: {}", String::from_utf8_lossy(&audit.stdout));
    }
    Ok(())
}

/// What must hold in the end, asked of a server that has lived through it all.
///
/// # Errors
/// What does not hold.
pub async fn all_is_well<B: Broker>(cluster: &ClusterOn<B>, mut books: Books) -> Result<()> {
    cluster.ready().await?;
    cluster.settled().await?;
    let asked = cluster.servers().next().context("something runs")?;
    println!("{} jobs", books.jobs.len());
    ensure!(books.jobs.len() > 20, "the producers did next to nothing");
    books.send_all_again(asked).await?;
    all_end(asked, &mut books).await.with_context(|| asked.log_tail())?;
    no_vm_twice(asked).await?;
    cluster.no_violations().await?;
    cluster.audit().await?;
    // Every replica is complete.
    let vms = asked.all("/v1/vms").await?.len();
    for server in cluster.servers() {
        wait_for("the replica to have every VM", Duration::from_secs(30), async || {
            let seen = server.all("/v1/vms").await?.len();
            Ok(if seen == vms { Ok(()) } else { Err(format!("{seen} of {vms}")) })
        })
        .await
        .with_context(|| server.log_tail())?;
    }
    Ok(())
}
