//! A cluster on NATS is backed up under load, and its broker lost with all that it held. Another is
//! restored from the backup, under the same managers, which have gone on in between: nothing that was
//! acknowledged before the backup is lost, nothing is removed before an audit, jobs go on, and in the end
//! books, directory and managers agree.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::kafka::testing::KafkaServer;
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::books::{Books, all_end, no_vm_twice_but_lost};
use cellbus_tests::cluster::{Broker, Cluster, ClusterOn, Shape};
use cellbus_tests::process::{Server, command, wait_for};
use cellbus_tests::producers::{Producers, seed};
use serde_json::Value;

/// A backup under load, and more load, before the loss of everything. Gives the books, and the events that
/// had been acknowledged before the backup began.
async fn back_up<B: Broker>(cluster: &ClusterOn<B>, file: &str) -> Result<(Books, Vec<(String, String)>)> {
    let producers = Producers::start(cluster, seed());
    producers.progress(120).await?;
    let before = producers.acknowledged();
    println!("{}", cluster.offline(&["backup", file])?);
    producers.progress(60).await?;
    let books = producers.end().await?;
    // A migrate that is cut off with its VM on two managers leaves both, and here all must come out even.
    let asked = cluster.cells.first().context("a cell")?;
    wait_for("what is under way to end", Duration::from_secs(120), async || {
        let open = asked.all("/v1/jobs").await?.iter().filter(|job| job["ended_at"].is_null()).count();
        Ok(if open == 0 { Ok(()) } else { Err(format!("{open} jobs")) })
    })
    .await?;
    Ok((books, before))
}

async fn audit(server: &Server) -> Result<Value> {
    // It says that they differ with its exit code.
    let out = server.run(&["audit", "--output", "json"])?;
    let text = String::from_utf8_lossy(&out.stdout);
    let audit: Value = serde_json::from_str(&text).with_context(|| format!("no audit: {text}"))?;
    ensure!(audit["unreachable"].as_array().is_some_and(Vec::is_empty), "{audit}");
    Ok(audit)
}

async fn restored<B: Broker>(
    cluster: &mut ClusterOn<B>,
    file: &str,
    mut books: Books,
    before: Vec<(String, String)>,
) -> Result<()> {
    println!("{}", cluster.offline(&["restore", file])?);
    let again = cluster.offline(&["restore", file]).expect_err("it is not empty any more");
    ensure!(again.to_string().contains("restore_not_empty"), "{again}");
    for _ in 0..2 {
        cluster.add_cell()?;
    }
    cluster.add_directory()?;
    cluster.ready().await?;
    cluster.settled().await?;
    let asked = cluster.directories.first().context("a directory")?;
    for (key, id) in &before {
        wait_for(&format!("job {key} to be known"), Duration::from_secs(60), async || {
            let answer = asked.get(&format!("/v1/jobs/{id}")).await?;
            Ok(if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) })
        })
        .await?;
    }
    // A delete waits, whoever asks for it, and says what for.
    let vm = asked.all("/v1/vms?state=running").await?.first().context("a VM")?["id"].clone();
    let vm = vm.as_str().context("an id")?.to_owned();
    let delete = cellbus_tests::process::event("delete", &format!("after {file}"), Some(&vm), &serde_json::json!({}));
    let answer = asked.submit(&delete).await?;
    ensure!(answer.status == 202, "{answer:?}");
    let delete = answer.body["job_id"].as_str().context("a job id")?.to_owned();
    let held = async || {
        let job = asked.get(&format!("/v1/jobs/{delete}")).await?.body;
        let why = job["waits_for"].as_str().unwrap_or_default().to_owned();
        // Or for work on the same VM, which waits.
        let waits = why.contains("audit") || why.contains("on the same VM");
        Ok(if job["ended_at"].is_null() && waits { Ok(()) } else { Err(job.to_string()) })
    };
    wait_for("the delete to wait for an audit", Duration::from_secs(60), held).await?;
    // Producers that do not know what became of what they sent send it again.
    books.send_all_again(asked).await?;

    let first = audit(asked).await?;
    println!("the first audit: {} VMs, {} findings", first["vms"], first["findings_total"]);
    let id = first["id"].as_str().context("an id")?;
    asked.succeed(&["audit", "--accept", id])?;
    asked.succeed(&["job", "wait", &delete]).context("the delete goes on")?;
    // A migrate that was past its commit point when the backup was taken, and whose VM was deleted or has
    // moved on since: only a person can say that the copy is not lost.
    wait_for("what is under way to end, or to wait for a person", Duration::from_secs(120), async || {
        let open = asked.all("/v1/jobs").await?;
        let open: Vec<&Value> = open.iter().filter(|job| job["ended_at"].is_null()).collect();
        let mut why = Vec::new();
        for job in &open {
            let id = job["job_id"].as_str().context("an id")?;
            let waits_for = asked.get(&format!("/v1/jobs/{id}")).await?.body["waits_for"].to_string();
            // Its outcome may have been known before its end was: then only those behind it tell.
            let behind = waits_for.trim_matches('"').split_once(" on the same VM, which is parked");
            let ahead = behind.and_then(|(ahead, _)| ahead.strip_prefix("job "));
            if let Some(parked) = ahead.or((job["state"] == "parked").then_some(id)) {
                asked.run(&["job", "abandon", parked])?;
            }
            why.push(format!("{job}: {waits_for}"));
        }
        Ok(if open.is_empty() { Ok(()) } else { Err(format!("{} jobs, such as {}", open.len(), why[0])) })
    })
    .await
    .with_context(|| asked.log_tail())?;
    all_end(asked, &mut books).await.with_context(|| asked.log_tail())?;
    asked.run(&["audit", "--repair", "apply"])?;
    wait_for("directory and managers to agree", Duration::from_secs(60), async || {
        let audit = audit(asked).await?;
        Ok(if audit["findings_total"] == 0 { Ok(()) } else { Err(audit["findings"].to_string()) })
    })
    .await?;
    no_vm_twice_but_lost(asked).await?;
    cluster.no_violations().await?;
    cluster.audit().await
}

async fn with_shards(shards: u16) -> Result<()> {
    let cluster = Cluster::start(Shape { shards: 32, ..Shape::default() }, 2, 1).await?;
    let file = cluster.folder().join("cluster.backup");
    let file = file.to_str().context("UTF-8")?.to_owned();
    let (books, before) = back_up(&cluster, &file).await?;
    let mut cluster: Cluster = cluster.lose_the_bus(shards)?;
    restored(&mut cluster, &file, books, before).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_broker_is_replaced_from_a_backup() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    with_shards(32).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_restored_with_another_number_of_shards() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    with_shards(12).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_leaves_nats_for_one_process_and_damage_is_refused() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let cluster = Cluster::start(Shape { shards: 8, ..Shape::default() }, 1, 1).await?;
    let file = cluster.folder().join("cluster.backup");
    let file = file.to_str().context("UTF-8")?.to_owned();
    let (_, before) = back_up(&cluster, &file).await?;
    let cluster: Cluster = cluster.lose_the_bus(8)?;
    let data = cluster.folder().join("moved");
    let data = data.to_str().context("UTF-8")?;
    let run = |arguments: &[&str]| -> Result<(bool, String)> {
        let done = command().args(arguments).output()?;
        Ok((
            done.status.success(),
            format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)),
        ))
    };
    let onto = |file: &str| run(&["restore", file, "--data", data, "--set", "shards=5"]);
    // A file that is not whole is refused before anything is written.
    let whole = std::fs::read(&file)?;
    let (cut, flipped) = (format!("{file}.cut"), format!("{file}.flipped"));
    std::fs::write(&cut, &whole[..whole.len() - 1])?;
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&flipped, damaged)?;
    for (file, code) in [(&cut, "backup_cut_off"), (&flipped, "backup_damaged")] {
        let (done, said) = onto(file)?;
        ensure!(!done && said.contains(code), "{said}");
    }
    let (done, said) = onto(&file)?;
    ensure!(done, "{said}");
    // And out of the embedded bus again: the same is in it.
    let second = format!("{file}.second");
    let (done, said) = run(&["backup", &second, "--data", data])?;
    ensure!(done && said.contains("5 shards"), "{said}");
    let up =
        Server::start(std::path::Path::new(data), &["--set", "shards=5", "--hosts", "60", "--managers", "6"]).await?;
    for (key, id) in &before {
        let answer = up.get(&format!("/v1/jobs/{id}")).await?;
        ensure!(answer.status == 200, "{key}: {answer:?}");
    }
    up.terminate(Duration::from_secs(60)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_from_nats_to_kafka_and_back() -> Result<()> {
    if left_out() || cellbus_bus::kafka::testing::left_out() {
        return Ok(());
    }
    let cluster = Cluster::start(Shape { shards: 16, ..Shape::default() }, 2, 1).await?;
    let file =
        |cluster: &Path, name: &str| -> Result<String> { Ok(cluster.join(name).to_str().context("UTF-8")?.to_owned()) };
    let there = file(cluster.folder(), "there.backup")?;
    let (books, before) = back_up(&cluster, &there).await?;
    let mut on_kafka: ClusterOn<KafkaServer> = cluster.lose_the_bus(16)?;
    restored(&mut on_kafka, &there, books, before).await?;

    let back = file(on_kafka.folder(), "back.backup")?;
    let (books, before) = back_up(&on_kafka, &back).await?;
    let mut cluster: Cluster = on_kafka.lose_the_bus(24)?;
    restored(&mut cluster, &back, books, before).await
}
