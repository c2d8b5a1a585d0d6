//! `cellbus job`.

use std::time::Duration;

use cellbus_bus::Env;
use clap::{Args, Subcommand};

use super::paging::Paging;
use crate::exit::Result;
use crate::jobs::{Jobs, duration};
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("JOB", "job_id|id"),
    column("TENANT", "tenant"),
    column("TYPE", "type"),
    column("STATE", "state"),
    column("VMS", "vms_total"),
    column("ACCEPTED", "accepted_at"),
    column("ENDED", "ended_at"),
    column("ERROR", "error.code"),
];
const VM_COLUMNS: &[Column] = &[
    column("VM", "id"),
    column("NAME", "name"),
    column("STATE", "state"),
    column("MANAGER", "manager"),
    column("HOST", "host"),
];

/// Follow, list and cancel jobs
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List jobs
    List {
        /// Only those of this tenant
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
        /// Only those in this state: queued, accepted, waiting, running, parked, succeeded, failed or cancelled
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
        /// Only those of this type, such as provision
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a job
    Show {
        /// Its id
        job: String,
    },
    /// List the VMs of a job
    Vms {
        /// Its id
        job: String,
        #[command(flatten)]
        paging: Paging,
    },
    /// Wait until jobs have ended; exit code 1 if one did not succeed
    Wait {
        /// Their ids
        #[arg(required = true)]
        jobs: Vec<String>,
        /// Give up after this long, such as 90s or 5m
        #[arg(long, value_name = "TIME", value_parser = duration)]
        timeout: Option<Duration>,
    },
    /// Call a job off, as far as it can still be
    Cancel {
        /// Its id
        job: String,
    },
    /// Show what a job waits for, and what it has done so far
    Explain {
        /// Its id
        job: String,
    },
    /// Try a parked job again
    Retry {
        /// Its id
        job: String,
    },
    /// Give a parked job up; what it made may be left behind
    Abandon {
        /// Its id
        job: String,
    },
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        match self.action {
            Action::List { tenant, state, kind, paging } => {
                let query = [("tenant", tenant), ("state", state), ("type", kind)];
                let query = query.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
                paging.list(&client, &printer, &["v1", "jobs"], query, COLUMNS).await
            }
            Action::Show { job } => printer.one(&client.get(&["v1", "jobs", &job], &[]).await?),
            Action::Vms { job, paging } => {
                paging.list(&client, &printer, &["v1", "jobs", &job, "vms"], Vec::new(), VM_COLUMNS).await
            }
            Action::Wait { jobs, timeout } => {
                let waiting = Jobs { client: &client, printer: &printer, env };
                waiting.wait_and_show(&jobs, timeout).await
            }
            Action::Cancel { job } => {
                let answer = client.post(&["v1", "jobs", &job, "cancel"]).await?;
                printer.done(&answer, &format!("{job} is being cancelled"))
            }
            Action::Explain { job } => printer.one(&client.get(&["v1", "explain", &job], &[]).await?),
            Action::Retry { job } => {
                let answer = client.post(&["v1", "jobs", &job, "retry"]).await?;
                printer.done(&answer, &format!("{job} is tried again"))
            }
            Action::Abandon { job } => {
                let answer = client.post(&["v1", "jobs", &job, "abandon"]).await?;
                printer.done(&answer, &format!("{job} is given up"))
            }
        }
    }
}
