//! `cellbus scale`.

use clap::{Args, Subcommand};

use crate::exit::Result;
use crate::remote::Remote;

/// Show how many cells there are to be
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show it
    Show,
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        match self.action {
            Action::Show => printer.one(&client.get(&["v1", "scale"], &[]).await?),
        }
    }
}
