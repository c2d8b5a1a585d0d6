//! `cellbus shards`.

use clap::Args;

use crate::exit::Result;
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("SHARD", "shard|id"),
    column("STATE", "state"),
    column("CELL", "owner|cell"),
    column("EPOCH", "epoch"),
    column("UNREAD", "jobs_unread"),
    column("WAITING", "waiting"),
    column("RUNNING", "running"),
    column("PARKED", "parked"),
    column("VMS", "vms"),
    column("LOG_END", "log_end"),
    column("REASON", "reason"),
];

/// List the shards, their owners and epochs
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        printer.list(&client.get(&["v1", "shards"], &[]).await?, COLUMNS)
    }
}
