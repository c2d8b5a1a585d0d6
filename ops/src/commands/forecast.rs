//! `cellbus forecast`.

use clap::Args;

use crate::exit::Result;
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("OF", "of"),
    column("NAME", "name"),
    column("RESOURCE", "resource"),
    column("FREE", "free"),
    column("TOTAL", "total"),
    column("OUTLOOK", "outlook"),
    column("RUNS OUT", "runs_out_at"),
    column("EARLIEST", "earliest_at"),
    column("LATEST", "latest_at"),
    column("WHY UNKNOWN", "why"),
];

/// Show when vCPUs, memory and disk run out at the growth of the last month, and how sure that is
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        printer.list(&client.get(&["v1", "forecast"], &[]).await?, COLUMNS)
    }
}
