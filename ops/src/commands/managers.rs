//! `cellbus managers`.

use clap::{Args, Subcommand};

use super::paging::Paging;
use crate::exit::Result;
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("MANAGER", "name"),
    column("HEALTH", "health"),
    column("CORDONED", "cordoned"),
    column("PAUSED", "paused"),
    column("CELL", "cell"),
    column("HOSTS", "hosts"),
    column("VMS", "vms"),
    column("RUNNING", "running"),
    column("WAITING", "waiting"),
    column("ID", "id"),
];

/// List the managers; keep new VMs off one, or empty it
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    paging: Paging,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Place no new VMs on a manager
    Cordon {
        /// Its name or id
        manager: String,
    },
    /// Place new VMs on it again
    Uncordon {
        /// Its name or id
        manager: String,
    },
    /// Cordon it and move its VMs elsewhere
    Evacuate {
        /// Its name or id
        manager: String,
    },
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        let (manager, verb, sentence) = match self.action {
            None => return self.paging.list(&client, &printer, &["v1", "managers"], Vec::new(), COLUMNS).await,
            Some(Action::Cordon { manager }) => (manager, "cordon", "takes no new VMs"),
            Some(Action::Uncordon { manager }) => (manager, "uncordon", "takes new VMs again"),
            Some(Action::Evacuate { manager }) => {
                return printer.one(&client.post(&["v1", "managers", &manager, "evacuate"]).await?);
            }
        };
        let answer = client.post(&["v1", "managers", &manager, verb]).await?;
        printer.done(&answer, &format!("{manager} {sentence}"))
    }
}
