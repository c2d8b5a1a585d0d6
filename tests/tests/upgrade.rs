//! A rolling upgrade with real processes: two builds in one cluster on NATS, under load of producers
//! over NATS, members replaced one by one, what cells write raised at the end.

#![expect(clippy::disallowed_methods, reason = "it drives the real binary from outside, in real time")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use cellbus_bus::Bus;
use cellbus_bus::contract::{Inbox, REPLY_TO};
use cellbus_bus::ids::{Seq, ShardCount};
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::binary::cellbus;
use cellbus_tests::books::{Books, all_end, no_vm_twice};
use cellbus_tests::cluster::{Cluster, Shape};
use cellbus_tests::process::{Server, long, wait_for};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rustix::process::Signal;
use serde_json::Value;

/// The release after this one.
const NEXT: &str = env!("CARGO_BIN_EXE_cellbus-next");
/// Producers at once.
const PRODUCERS: u64 = 4;
/// How long a producer waits for an answer before it sends the same again, as the interface says to.
const ANSWER: Duration = Duration::from_secs(20);

/// What producers over NATS have sent, and been told.
#[derive(Default)]
struct Told {
    books: Books,
    errors: Vec<String>,
    sent_again: usize,
    slowest: Duration,
}

struct Producers {
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Result<()>>>,
}

impl Producers {
    async fn start(cluster: &Cluster) -> Result<Self> {
        let (told, stop) = (Arc::<Mutex<Told>>::default(), Arc::<AtomicBool>::default());
        let mut tasks = Vec::new();
        for me in 0..PRODUCERS {
            let bus = cluster.bus().await?;
            let inbox = bus.inbox().await?.context("NATS has inboxes")?;
            let bus: Arc<dyn Bus> = bus;
            tasks.push(tokio::spawn(produce(bus, inbox, Arc::clone(&told), Arc::clone(&stop), me)));
        }
        Ok(Self { told, stop, tasks })
    }
    fn said(&self) -> String {
        let told = self.told.lock().expect("no holder panics");
        let (jobs, again) = (told.books.jobs.len(), told.sent_again);
        format!("{jobs} jobs, {again} sent again, the slowest answer after {:?}", told.slowest)
    }
    fn answered(&self) -> usize {
        let told = self.told.lock().expect("no holder panics");
        told.books.jobs.values().filter(|job| job.acknowledged.is_some()).count()
    }
    /// Waits until so many more jobs have been accepted.
    async fn progress(&self, more: usize) -> Result<()> {
        let wanted = self.answered() + more;
        // A process that is stopped keeps what it had fetched for 30 s, and may be given some of it again.
        wait_for("more jobs to be accepted", Duration::from_secs(300), async || {
            let now = self.answered();
            Ok(if now >= wanted { Ok(()) } else { Err(format!("{now} of {wanted}")) })
        })
        .await
    }
    async fn end(self) -> Result<Told> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(Arc::into_inner(self.told).context("producers have ended")?.into_inner()?)
    }
}

/// Sends one event after the other, each once it has heard of the last.
async fn produce(
    bus: Arc<dyn Bus>,
    mut inbox: Box<dyn Inbox>,
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
    me: u64,
) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(me);
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{me}-{number}");
        let event = told.lock().expect("no holder panics").books.next(&mut rng, &key);
        let began = Instant::now();
        loop {
            let headers = vec![
                ("content-type".to_owned(), "application/cloudevents+json".to_owned()),
                (REPLY_TO.to_owned(), format!("{}.{number}", inbox.address())),
            ];
            if let Err(error) = bus.ingress_publish("acme", headers, Bytes::from(event.to_string())).await {
                told.lock().expect("no holder panics").errors.push(format!("{key}: {error}"));
            }
            let answer = tokio::time::timeout(ANSWER, answer_to(number, &mut *inbox)).await;
            let mut told = told.lock().expect("no holder panics");
            match answer {
                Ok(answer) => {
                    let answer = answer?;
                    match answer["data"]["job_id"].as_str() {
                        Some(id) if answer["data"]["error"].is_null() => told.books.acknowledged(&key, id)?,
                        Some(_) | None => told.errors.push(format!("{key}: {answer}")),
                    }
                    told.slowest = told.slowest.max(began.elapsed());
                    break;
                }
                // Answers are best effort: one may be lost with the cell that owed it.
                Err(_) => told.sent_again += 1,
            }
        }
    }
    Ok(())
}

async fn answer_to(number: u64, inbox: &mut dyn Inbox) -> Result<Value> {
    loop {
        let (of, body) = inbox.next().await?;
        if of == number {
            return Ok(serde_json::from_slice(&body)?);
        }
    }
}

async fn status(server: &Server) -> Result<Value> {
    let answer = server.get("/v1/upgrade").await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(answer.body)
}

/// Of every shard, the format of its log's last entry.
async fn written(cluster: &Cluster, shards: u16) -> Result<Vec<u8>> {
    let bus = cluster.bus().await?;
    let mut formats = Vec::new();
    for shard in ShardCount::new(shards).context("a number of shards")?.shards() {
        let end = bus.log_end(shard).await?;
        // From the start: in a lane the sequence before the last is another shard's.
        let mut reader = bus.read_log(shard, Seq::ZERO).await?;
        let last = loop {
            let last = reader.next(1_000).await?.pop().context("never empty")?;
            if last.seq >= end {
                break last;
            }
        };
        formats.push(*last.body.first().context("an entry has bytes")?);
    }
    Ok(formats)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_of_two_builds_take_turns_and_no_producer_sees_an_error() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let shape = Shape { shards: 16, ..Shape::default() };
    let shards = shape.shards;
    let olds = if long() { 5 } else { 2 };
    let mut cluster = Cluster::start(shape, olds, 1).await?;
    let before = status(&cluster.directories[0]).await?;
    ensure!(before["state"] == "unchanged" && before["format"] == 1 && before["newest"] == 1, "{before}");
    let producers = Producers::start(&cluster).await?;
    producers.progress(50).await?;

    // A newer directory beside the old one, then cells, one for one.
    cluster.binary = Path::new(NEXT).to_owned();
    cluster.add_directory()?;
    cluster.ready().await?;
    for _ in 0..olds {
        cluster.add_cell()?;
        cluster.cells.last().context("it was just started")?.ready().await?;
        let status = cluster.cells.remove(0).terminate(Duration::from_secs(60)).await?;
        ensure!(status.success(), "a drained cell ended with {status}");
        cluster.settled().await?;
        producers.progress(20).await?;
    }

    // The old directory still lives, and another old cell has just joined: it is not raised.
    cluster.binary = cellbus().to_owned();
    cluster.add_cell()?;
    cluster.settled().await?;
    let asked = &cluster.directories[1];
    let hindered = status(asked).await?;
    ensure!(hindered["state"] == "hindered" && hindered["newest"] == 2 && hindered["format"] == 1, "{hindered}");
    ensure!(hindered["hindered_by"].as_array().is_some_and(|by| by.len() == 2), "{hindered}");
    let refused = asked.post("/v1/upgrade/finalize", &Value::Null).await?;
    ensure!(refused.status == 409 && refused.body["code"] == "upgrade_hindered", "{refused:?}");
    ensure!(!asked.run(&["upgrade", "finalize"])?.status.success(), "nor by the command");
    ensure!(written(&cluster, shards).await?.iter().all(|format| *format == 1), "what the old ones read");

    println!("rolled: {}", producers.said());
    // The old cell sleeps through what follows; the old directory is stopped.
    let zombie = cluster.cells.pop().context("the old one")?;
    zombie.signal(Signal::STOP)?;
    ensure!(cluster.directories.remove(0).terminate(Duration::from_secs(60)).await?.success());
    cluster.settled().await?;
    producers.progress(20).await?;
    let asked = &cluster.directories[0];
    wait_for("nobody to hinder it", Duration::from_secs(60), async || {
        let status = status(asked).await?;
        Ok(if status["state"] == "ready" { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    println!("{}", asked.succeed(&["upgrade", "status"])?);
    println!("{}", asked.succeed(&["upgrade", "finalize"])?);
    let after = status(asked).await?;
    ensure!(after["format"] == 2 && after["state"] == "unchanged", "{after}");
    let changes = asked.get("/v1/changes").await?.body.to_string();
    ensure!(changes.contains("upgrade finalize: format 1 to 2"), "{changes}");
    wait_for("cells to write the new format", Duration::from_secs(120), async || {
        let formats = written(&cluster, shards).await?;
        Ok(if formats.iter().filter(|format| **format == 2).count() > usize::from(shards) / 2 {
            Ok(())
        } else {
            Err(format!("{formats:?}"))
        })
    })
    .await?;

    // The old cell wakes up: it takes nothing over, and leaves with its code.
    let mut zombie = zombie;
    zombie.signal(Signal::CONT)?;
    let ended = zombie.ended(Duration::from_secs(90)).await?;
    let said = zombie.log();
    ensure!(ended.code() == Some(1) && said.contains("cluster_newer_format"), "{ended}: {said}");
    // One that is started now refuses to.
    let late = cluster.add_cell().expect_err("an old build does not start");
    let said = format!("{late:#}");
    let sentence =
        "cluster_newer_format: this cluster writes format 2, and this build reads format 1; run a newer build";
    ensure!(said.contains(sentence), "{said}");
    producers.progress(20).await?;
    cluster.settled().await?;

    println!("in the end: {}", producers.said());
    let mut told = producers.end().await?;
    ensure!(told.errors.is_empty(), "producers were told: {:?}", told.errors);
    let asked = &cluster.directories[0];
    all_end(asked, &mut told.books).await.with_context(|| asked.log_tail())?;
    ensure!(asked.get("/v1/queue").await?.body["dead_letters"] == 0, "nothing was put aside");
    no_vm_twice(asked).await?;
    cluster.no_violations().await?;
    cluster.audit().await
}
