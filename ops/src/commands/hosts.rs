//! `cellbus hosts`.

use clap::{Args, Subcommand};

use super::paging::Paging;
use crate::exit::Result;
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("HOST", "id|host"),
    column("MANAGER", "manager_name|manager"),
    column("GEAR", "labels.gear"),
    column("CORDONED", "cordoned"),
    column("USABLE", "usable"),
    column("VMS", "vms"),
    column("VCPUS_FREE", "vcpus.free"),
    column("OF", "vcpus.total"),
    column("MEMORY_MIB_FREE", "memory_mib.free"),
    column("OF", "memory_mib.total"),
];

/// List the hosts; keep new VMs off one, or empty it
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Option<Action>,
    /// Only those of this manager (name or id)
    #[arg(long, value_name = "MANAGER", global = true)]
    manager: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Place no new VMs on a host
    Cordon {
        /// The host
        host: String,
    },
    /// Place new VMs on it again
    Uncordon {
        /// The host
        host: String,
    },
    /// Cordon it and move its VMs elsewhere
    Evacuate {
        /// The host
        host: String,
    },
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        let query: Vec<_> = self.manager.iter().map(|manager| ("manager", manager.clone())).collect();
        let (host, verb, sentence) = match self.action {
            None => return self.paging.list(&client, &printer, &["v1", "hosts"], query, COLUMNS).await,
            Some(Action::Cordon { host }) => (host, "cordon", "takes no new VMs"),
            Some(Action::Uncordon { host }) => (host, "uncordon", "takes new VMs again"),
            Some(Action::Evacuate { host }) => {
                return printer.one(&client.post(&["v1", "hosts", &host, "evacuate"]).await?);
            }
        };
        let answer = client.post(&["v1", "hosts", &host, verb]).await?;
        printer.done(&answer, &format!("{host} {sentence}"))
    }
}
