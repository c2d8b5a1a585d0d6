//! Rounds that are played on every broker alike: cells, directories and the broker are killed, or
//! stopped, under load, and in the end all must be well.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::books::all_is_well;
use crate::cluster::{Broker, ClusterOn, Shape};
use crate::process::long;
use crate::producers::{Producers, seed};

/// How long a takeover may take with a lease of 3 s: the design's bound is 5 s on a machine of its
/// own; this one is shared with every other test.
const TAKEOVER: Duration = Duration::from_secs(30);

/// Cells and directories are killed, and others come.
///
/// # Errors
/// When something is lost, doubled, or not taken over in time.
pub async fn cells_and_directories<B: Broker>() -> Result<()> {
    let mut cluster = ClusterOn::<B>::start(Shape::default(), 3, 2).await?;
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

/// A cell is stopped past its lease, and goes on when others have its shards.
///
/// # Errors
/// As [`cells_and_directories`].
pub async fn zombie<B: Broker>() -> Result<()> {
    let mut cluster = ClusterOn::<B>::start(Shape::default(), 3, 1).await?;
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

/// The only broker is killed, and started again on what it had written; so often, or ten times in the long form.
///
/// # Errors
/// As [`cells_and_directories`].
pub async fn broker<B: Broker>(times: usize) -> Result<()> {
    let mut cluster = ClusterOn::<B>::start(Shape::default(), 2, 1).await?;
    let producers = Producers::start(&cluster, seed());
    for _ in 0..if long() { 10 } else { times } {
        producers.progress(50).await?;
        cluster.broker.kill();
        cluster.broker.restart();
        producers.progress(20).await?;
        cluster.settled().await?;
    }
    let books = producers.end().await?;
    all_is_well(&cluster, books).await
}
