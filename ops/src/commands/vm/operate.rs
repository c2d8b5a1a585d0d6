//! `cellbus vm start`, `stop`, ...: a job for each VM that is named, or that has a label.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value};

use super::select::Selection;
use crate::exit::{Error, Result};
use crate::jobs::{Jobs, Key, Target};

/// What is done to VMs.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Power VMs on
    Start(Common),
    /// Power VMs off
    Stop {
        #[command(flatten)]
        common: Common,
        /// Ask the guest, or pull the plug
        #[arg(long, value_enum, default_value = "graceful")]
        mode: Mode,
    },
    /// Reboot VMs
    Restart {
        #[command(flatten)]
        common: Common,
        /// Ask the guest, or pull the plug
        #[arg(long, value_enum, default_value = "graceful")]
        mode: Mode,
    },
    /// Suspend VMs
    Suspend(Common),
    /// Resume suspended VMs
    Resume(Common),
    /// Give VMs another shape; what is not given stays
    Resize {
        #[command(flatten)]
        common: Common,
        /// Virtual CPUs
        #[arg(long, value_name = "N", required_unless_present_any = ["memory_mib", "disk_gib"])]
        vcpus: Option<u32>,
        /// Memory, MiB
        #[arg(long, value_name = "MIB")]
        memory_mib: Option<u64>,
        /// Disk, GiB; it grows only
        #[arg(long, value_name = "GIB")]
        disk_gib: Option<u64>,
    },
    /// Take a snapshot
    Snapshot(Snapshot),
    /// Go back to a snapshot
    Revert(Snapshot),
    /// Drop a snapshot
    SnapshotDelete(Snapshot),
    /// Move VMs to another host or manager
    Migrate {
        #[command(flatten)]
        common: Common,
        /// To this host of the manager that holds it
        #[arg(long, value_name = "HOST", required_unless_present = "manager", conflicts_with = "manager")]
        host: Option<String>,
        /// To this manager, which picks the host
        #[arg(long, value_name = "MANAGER")]
        manager: Option<String>,
    },
    /// Remove VMs for good
    Delete(Common),
}

/// What every operation takes.
#[derive(Debug, Args)]
pub(super) struct Common {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    key: Key,
    /// Stay until the jobs have ended; exit code 1 if one did not succeed
    #[arg(long)]
    wait: bool,
}

/// What snapshot operations take.
#[derive(Debug, Args)]
pub(super) struct Snapshot {
    #[command(flatten)]
    common: Common,
    /// The snapshot's name
    #[arg(long, value_name = "NAME")]
    snapshot: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Mode {
    Graceful,
    Hard,
}

impl Action {
    pub(super) async fn run(self, jobs: &Jobs<'_>) -> Result<()> {
        let (kind, common, data) = self.parts();
        let Common { selection, key, wait } = common;
        let targets = selection.targets(jobs, kind, key.tenant.as_deref()).await?;
        let id = key.id_or_random(jobs.env);
        match targets.as_slice() {
            [] => Err(Error::Failed("no VM has these labels".to_owned())),
            [target] if !selection.is_by_label() => {
                jobs.submit_and_show(&key.event(kind, &id, Some(target), &data), wait, false).await
            }
            targets => {
                let event = |target: &Target| key.event(kind, &format!("{id}/{}", target.vm), Some(target), &data);
                jobs.submit_many(&targets.iter().map(event).collect::<Vec<_>>(), wait).await
            }
        }
    }

    /// Type, selection and data of the jobs.
    fn parts(self) -> (&'static str, Common, Map<String, Value>) {
        let mut data = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            data.extend(value.map(|value| (key.to_owned(), value)));
        };
        let (kind, common) = match self {
            Self::Start(common) => ("start", common),
            Self::Stop { common, mode } => {
                put("mode", Some(mode.as_str().into()));
                ("stop", common)
            }
            Self::Restart { common, mode } => {
                put("mode", Some(mode.as_str().into()));
                ("restart", common)
            }
            Self::Suspend(common) => ("suspend", common),
            Self::Resume(common) => ("resume", common),
            Self::Resize { common, vcpus, memory_mib, disk_gib } => {
                put("vcpus", vcpus.map(Value::from));
                put("memory_mib", memory_mib.map(Value::from));
                put("disk_gib", disk_gib.map(Value::from));
                ("resize", common)
            }
            Self::Snapshot(Snapshot { common, snapshot }) => {
                put("snapshot", Some(snapshot.into()));
                ("snapshot", common)
            }
            Self::Revert(Snapshot { common, snapshot }) => {
                put("snapshot", Some(snapshot.into()));
                ("revert", common)
            }
            Self::SnapshotDelete(Snapshot { common, snapshot }) => {
                put("snapshot", Some(snapshot.into()));
                ("snapshot-delete", common)
            }
            Self::Migrate { common, host, manager } => {
                put("host", host.map(Value::from));
                put("manager", manager.map(Value::from));
                ("migrate", common)
            }
            Self::Delete(common) => ("delete", common),
        };
        (kind, common, data)
    }
}

impl Mode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Graceful => "graceful",
            Self::Hard => "hard",
        }
    }
}
