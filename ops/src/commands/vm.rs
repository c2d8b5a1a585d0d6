//! `cellbus vm`.

mod operate;
mod provision;
mod select;

use cellbus_bus::Env;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::paging::Paging;
use crate::exit::{Error, Result};
use crate::jobs::{Jobs, is_id, key_value};
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("VM", "id"),
    column("TENANT", "tenant"),
    column("NAME", "name"),
    column("STATE", "state"),
    column("MANAGER", "manager_name|manager"),
    column("HOST", "host"),
    column("VCPUS", "size.vcpus|vcpus"),
    column("MEMORY_MIB", "size.memory_mib|memory_mib"),
    column("AS_OF", "as_of"),
];
const PLACE_COLUMNS: &[Column] = &[
    column("VM", "vm"),
    column("MANAGER", "manager_name|manager"),
    column("HOST", "host"),
    column("SHARD", "shard"),
    column("CELL", "cell"),
    column("ADDRESS", "address"),
    column("EPOCH", "epoch"),
    column("AS_OF", "as_of"),
];

/// Make, find and operate VMs
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List VMs, on every manager
    List(ListArgs),
    /// Show a VM
    Show {
        /// Its id, or its name with --tenant
        vm: String,
        /// Whose it is, when it is given by name
        #[arg(long, value_name = "TENANT", env = "CELLBUS_TENANT", default_value = "default")]
        tenant: String,
    },
    /// Say where VMs are: manager, host, and the cell that fronts it
    Locate {
        /// Their ids, up to 10,000
        #[arg(required = true)]
        vms: Vec<String>,
    },
    /// Show what the manager itself says of a VM, now
    Live {
        /// Its id
        vm: String,
    },
    /// Show what happens to a VM, what it waits for, and its history
    Explain {
        /// Its id
        vm: String,
    },
    Provision(Box<provision::Command>),
    #[command(flatten)]
    Operate(operate::Action),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only those of this tenant
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Only those in this state, such as running; deleted ones are listed only if asked for
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only those of this manager (name or id)
    #[arg(long, value_name = "MANAGER")]
    manager: Option<String>,
    /// Only those on this host
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Only those of this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only those with this label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    paging: Paging,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        let jobs = Jobs { client: &client, printer: &printer, env };
        match self.action {
            Action::List(list) => {
                let query = [
                    ("tenant", list.tenant),
                    ("state", list.state),
                    ("manager", list.manager),
                    ("host", list.host),
                    ("name", list.name),
                ];
                let mut query: Vec<_> = query.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
                query.extend(list.labels.into_iter().map(|(key, value)| ("label", format!("{key}={value}"))));
                list.paging.list(&client, &printer, &["v1", "vms"], query, COLUMNS).await
            }
            Action::Show { vm, .. } if is_id(&vm) => printer.one(&client.get(&["v1", "vms", &vm], &[]).await?),
            Action::Show { vm, tenant } => {
                let query = [("tenant", tenant.clone()), ("name", vm.clone()), ("limit", "2".to_owned())];
                let page = client.get(&["v1", "vms"], &query).await?;
                let ids: Vec<&str> = crate::table::items(&page.value)
                    .iter()
                    .filter_map(|row| row.get("id").and_then(Value::as_str))
                    .collect();
                match ids.as_slice() {
                    [id] => printer.one(&client.get(&["v1", "vms", id], &[]).await?),
                    [] => Err(Error::Failed(format!("tenant {tenant} has no VM named {vm}"))),
                    [..] => Err(Error::Failed(format!("tenant {tenant} has several VMs named {vm}: give an id"))),
                }
            }
            Action::Locate { vms } => match vms.as_slice() {
                [vm] => printer.list(&client.get(&["v1", "locate", vm], &[]).await?, PLACE_COLUMNS),
                vms => printer.list(&client.post_json(&["v1", "locate"], &vms).await?, PLACE_COLUMNS),
            },
            Action::Live { vm } => printer.one(&client.get(&["v1", "vms", &vm, "live"], &[]).await?),
            Action::Explain { vm } => printer.one(&client.get(&["v1", "explain", &vm], &[]).await?),
            Action::Provision(command) => command.run(&jobs).await,
            Action::Operate(action) => action.run(&jobs).await,
        }
    }
}
