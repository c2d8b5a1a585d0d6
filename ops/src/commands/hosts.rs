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
    column("FENCED", "fenced"),
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
    /// Call a host dead, which is off and stays off: VMs with `cellbus.io/on-host-failure: restart` start elsewhere
    ///
    /// For hosts of which no manager can say it (libvirt). Power it off, or cut it off from the disks of its VMs,
    /// before: one that it still ran would run twice. Nothing is put on it until `unfenced`.
    Fenced {
        /// The host, as MANAGER/HOST
        host: String,
        /// It is off, and stays off until `unfenced`
        #[arg(long)]
        it_is_off: bool,
    },
    /// Take back that it is dead
    Unfenced {
        /// The host, as MANAGER/HOST
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
            Some(Action::Fenced { host, it_is_off }) => {
                let query = [("it_is_off", it_is_off.to_string())];
                let answer = client.post_with(&["v1", "hosts", &host, "fenced"], &query).await?;
                let sentence = match (answer.value["vms"].as_u64(), answer.value["restarts"].as_u64()) {
                    (Some(vms), Some(restarts)) => {
                        format!("{host} is called dead; {vms} VMs were on it, {restarts} of them are started elsewhere")
                    }
                    _ => format!("{host} is called dead; the directory does not say now what was on it"),
                };
                return printer.done(&answer, &sentence);
            }
            Some(Action::Unfenced { host }) => (host, "unfenced", "is not called dead any more"),
            Some(Action::Evacuate { host }) => {
                return printer.one(&client.post(&["v1", "hosts", &host, "evacuate"]).await?);
            }
        };
        let answer = client.post(&["v1", "hosts", &host, verb]).await?;
        printer.done(&answer, &format!("{host} {sentence}"))
    }
}
