//! `cellbus cells`.

use clap::{Args, Subcommand};

use crate::exit::Result;
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("CELL", "id|cell"),
    column("STATE", "state"),
    column("SHARDS", "shards"),
    column("MANAGERS", "managers"),
    column("RUNNING", "running"),
    column("WAITING", "waiting"),
    column("ADDRESS", "address"),
    column("SINCE", "joined_at"),
];

/// List the cells, or drain one
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Have a cell hand over all its shards and take no more
    Drain {
        /// The cell
        cell: String,
    },
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        match self.action {
            None => printer.list(&client.get(&["v1", "cells"], &[]).await?, COLUMNS),
            Some(Action::Drain { cell }) => {
                let answer = client.post(&["v1", "cells", &cell, "drain"]).await?;
                printer.done(&answer, &format!("{cell} is draining"))
            }
        }
    }
}
