//! Cells, directories and managers as processes of their own on a real Kafka broker, killed and stopped
//! under load, the broker too. In the end every acknowledged job has one outcome, no VM is there twice,
//! and directory and managers agree. The rounds are those of every broker: `tests/src/kills.rs`.

use anyhow::Result;
use cellbus_bus::kafka::testing::{KafkaServer, left_out};
use cellbus_tests::kills;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_and_directories_are_killed_and_nothing_is_lost() -> Result<()> {
    if left_out() { Ok(()) } else { kills::cells_and_directories::<KafkaServer>().await }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_was_stopped_past_its_lease_writes_nothing() -> Result<()> {
    if left_out() { Ok(()) } else { kills::zombie::<KafkaServer>().await }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_broker_is_killed_and_started_again() -> Result<()> {
    if left_out() { Ok(()) } else { kills::broker::<KafkaServer>(1).await }
}
