//! What a cluster without work asks of its server.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cellbus_bus::nats::testing::bare::streams_and_consumers;
use cellbus_tests::cluster::Cluster;
use cellbus_tests::process::cpu_of;

use crate::shape;

const SHARDS: u16 = 256;
/// What comes with the start is over after so long, and what follows is measured for so long.
const COMES_TO_REST: Duration = Duration::from_secs(20);
const MEASURED: Duration = Duration::from_secs(30);

pub(crate) async fn run() -> Result<()> {
    println!("{SHARDS} shards, a directory, no work");
    for cells in [5, 50] {
        let cluster = Cluster::start(shape(50, 200, SHARDS), cells, 1).await?;
        cluster.settled().await?;
        tokio::time::sleep(COMES_TO_REST).await;
        let before = cpu(&cluster)?;
        tokio::time::sleep(MEASURED).await;
        let after = cpu(&cluster)?;
        let of = |at: usize| (after[at].saturating_sub(before[at])).as_secs_f64() * 1e3 / MEASURED.as_secs_f64();
        let (streams, consumers) = streams_and_consumers(&cluster.broker).await;
        println!(
            "  {cells:>2} cells: {streams} streams, {consumers} consumers; ms of CPU a second: broker {:.0}, each cell {:.1}, directory {:.0}",
            of(0),
            of(1) / cells as f64,
            of(2),
        );
    }
    println!(
        "  500 cells and 2,048 shards, in virtual time: CELLBUS_LONG=1 cargo test -p cellbus-simulator --test simulate an_idle -- --nocapture"
    );
    Ok(())
}

/// Of the broker, of all cells, of the directory.
fn cpu(cluster: &Cluster) -> Result<[Duration; 3]> {
    let broker = cpu_of(cluster.broker.pid().context("the broker runs")?)?;
    let mut cells = Duration::ZERO;
    for cell in &cluster.cells {
        cells += cell.cpu()?;
    }
    Ok([broker, cells, cluster.directories[0].cpu()?])
}
