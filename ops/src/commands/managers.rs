//! `cellbus managers`.

use cellbus_bus::Env;
use clap::{Args, Subcommand};

use super::paging::Paging;
use crate::exit::Result;
use crate::remote::Remote;
use crate::table::{Column, column};

mod decommission;

const COLUMNS: &[Column] = &[
    column("MANAGER", "name"),
    column("HEALTH", "health"),
    column("MODE", "mode"),
    column("CORDONED", "cordoned"),
    column("PAUSED", "paused"),
    column("CELL", "cell"),
    column("HOSTS", "hosts"),
    column("VMS", "vms"),
    column("RUNNING", "running"),
    column("WAITING", "waiting"),
    column("ID", "id"),
];

/// List the managers; keep new VMs off one, empty it, take it in or out
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
    /// Only look at it: nothing is placed on it, and nothing that changes something begins there
    ReadOnly {
        /// Its name or id
        manager: String,
    },
    /// Use it: one that was read-only, or was being decommissioned
    Enable {
        /// Its name or id
        manager: String,
    },
    /// Show what is left at it and what would become of that; with --apply, take it out
    Decommission(decommission::Args),
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        let (manager, verb, sentence) = match self.action {
            None => return self.paging.list(&client, &printer, &["v1", "managers"], Vec::new(), COLUMNS).await,
            Some(Action::Cordon { manager }) => (manager, "cordon", "takes no new VMs"),
            Some(Action::Uncordon { manager }) => (manager, "uncordon", "takes new VMs again"),
            Some(Action::ReadOnly { manager }) => (manager, "read-only", "is only looked at"),
            Some(Action::Enable { manager }) => (manager, "enable", "takes new VMs, and all work"),
            Some(Action::Decommission(args)) => return args.run(env, &client, &printer).await,
            Some(Action::Evacuate { manager }) => {
                return printer.one(&client.post(&["v1", "managers", &manager, "evacuate"]).await?);
            }
        };
        let answer = client.post(&["v1", "managers", &manager, verb]).await?;
        printer.done(&answer, &format!("{manager} {sentence}"))
    }
}
