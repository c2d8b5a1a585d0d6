//! `cellbus dead-letters`.

use clap::{Args, Subcommand};

use super::paging::Paging;
use crate::exit::Result;
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("ID", "id"),
    column("AT", "at"),
    column("TENANT", "tenant"),
    column("CODE", "code|reason.code"),
    column("REASON", "reason.detail|reason"),
];

/// Look at what could not be taken; send it round again, or drop it
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them
    List {
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one, with its reason and the original
    Show {
        /// Its id
        id: String,
    },
    /// Send it round again
    Retry {
        /// Its id
        id: String,
    },
    /// Forget it
    Drop {
        /// Its id
        id: String,
    },
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        let path = ["v1", "dead-letters"];
        match self.action {
            Action::List { paging } => paging.list(&client, &printer, &path, Vec::new(), COLUMNS).await,
            Action::Show { id } => printer.one(&client.get(&["v1", "dead-letters", &id], &[]).await?),
            Action::Retry { id } => {
                let answer = client.post(&["v1", "dead-letters", &id, "retry"]).await?;
                printer.done(&answer, &format!("{id} goes round again"))
            }
            Action::Drop { id } => {
                let answer = client.delete(&["v1", "dead-letters", &id]).await?;
                printer.done(&answer, &format!("{id} is dropped"))
            }
        }
    }
}
