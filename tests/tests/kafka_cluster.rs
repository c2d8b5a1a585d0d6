//! Cells, directories and managers as processes of their own on a real Kafka broker, killed and stopped
//! under load, the broker too. In the end every acknowledged job has one outcome, no VM is there twice,
//! and directory and managers agree.

#![expect(clippy::disallowed_methods, reason = "it drives the real binary from outside, in real time")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cellbus_bus::kafka::testing::{KafkaServer, left_out};
use cellbus_tests::books::all_is_well;
use cellbus_tests::cluster::{ClusterOn, Shape};
use cellbus_tests::process::long;
use cellbus_tests::producers::{Producers, seed};
use rustix::process::Signal;

/// How long a takeover may take with a lease of 3 s, on a machine that is shared with every other test.
const TAKEOVER: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_and_directories_are_killed_and_nothing_is_lost() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let mut cluster = ClusterOn::<KafkaServer>::start(Shape::default(), 3, 2).await?;
    let producers = Producers::start(&cluster, seed());
    for _ in 0..if long() { 10 } else { 2 } {
        producers.progress(50).await?;
        cluster.cells.remove(0).kill()?;
        producers.look_again(&cluster);
        let killed = Instant::now();
        cluster.settled().await?;
        println!("taken over after {:?}", killed.elapsed());
        ensure!(killed.elapsed() < TAKEOVER, "the takeover took {:?}", killed.elapsed());
        cluster.add_cell()?;
        producers.progress(20).await?;

        cluster.directories.remove(0).kill()?;
        producers.look_again(&cluster);
        producers.progress(20).await?;
        cluster.add_directory()?;
        cluster.ready().await?;
        producers.look_again(&cluster);
    }
    let books = producers.end().await?;
    all_is_well(&cluster, books).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_was_stopped_past_its_lease_writes_nothing() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let mut cluster = ClusterOn::<KafkaServer>::start(Shape::default(), 3, 1).await?;
    let producers = Producers::start(&cluster, seed());
    for _ in 0..if long() { 10 } else { 2 } {
        producers.progress(50).await?;
        let zombie = cluster.cells.remove(0);
        zombie.signal(Signal::STOP)?;
        producers.look_again(&cluster);
        // The others have all its shards before it wakes up.
        cluster.settled().await?;
        producers.progress(20).await?;
        zombie.signal(Signal::CONT)?;
        cluster.cells.push(zombie);
        producers.look_again(&cluster);
        cluster.settled().await?;
        producers.progress(20).await?;
    }
    let books = producers.end().await?;
    all_is_well(&cluster, books).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_broker_is_killed_and_started_again() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let mut cluster = ClusterOn::<KafkaServer>::start(Shape::default(), 2, 1).await?;
    let producers = Producers::start(&cluster, seed());
    for _ in 0..if long() { 10 } else { 1 } {
        producers.progress(50).await?;
        cluster.broker.kill();
        cluster.broker.restart();
        producers.progress(20).await?;
        cluster.settled().await?;
    }
    let books = producers.end().await?;
    all_is_well(&cluster, books).await
}
