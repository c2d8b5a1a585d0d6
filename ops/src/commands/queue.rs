//! `cellbus queue`.

use clap::Args;

use crate::exit::Result;
use crate::remote::Remote;

/// Show what waits, and for what
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        printer.one(&client.get(&["v1", "queue"], &[]).await?)
    }
}
