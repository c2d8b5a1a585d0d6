//! `cellbus vm provision`.

use clap::Args;
use serde_json::{Map, Value, json};

use crate::exit::{Error, Result};
use crate::jobs::{Jobs, Key, key_value};

/// Make one VM or many
#[derive(Debug, Args)]
pub(super) struct Command {
    /// What it is called; with --count, NAME-0, NAME-1, ...
    name: String,
    /// How many, up to 10,000
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u32,
    /// Virtual CPUs of each
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
    /// Memory of each, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory_mib: u64,
    /// Disk of each, GiB
    #[arg(long, value_name = "GIB", default_value_t = 10)]
    disk_gib: u64,
    /// What it boots from, as the manager knows it
    #[arg(long, value_name = "IMAGE", default_value = "debian-12")]
    image: String,
    /// A tag of the VM; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// A label that its host must have, such as gear=g3; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    require: Vec<(String, String)>,
    /// A rule for placement, such as spread=manager; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    policy: Vec<(String, String)>,
    /// Leave it powered off
    #[arg(long)]
    off: bool,
    /// Fail unless a manager was asked within so many seconds
    #[arg(long, value_name = "SECONDS")]
    deadline_seconds: Option<u64>,
    /// Start only when this job has succeeded
    #[arg(long, value_name = "JOB")]
    after: Option<String>,
    /// Say where it would be placed, and make nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Stay until the job has ended; exit code 1 if it did not succeed
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    key: Key,
}

impl Command {
    pub(super) async fn run(self, jobs: &Jobs<'_>) -> Result<()> {
        let mut data = Map::new();
        data.insert("name".to_owned(), self.name.clone().into());
        data.insert("count".to_owned(), self.count.into());
        data.insert("vcpus".to_owned(), self.vcpus.into());
        data.insert("memory_mib".to_owned(), self.memory_mib.into());
        data.insert("disk_gib".to_owned(), self.disk_gib.into());
        data.insert("image".to_owned(), self.image.clone().into());
        for (field, pairs) in [("labels", &self.labels), ("require", &self.require), ("policy", &self.policy)] {
            if !pairs.is_empty() {
                data.insert(field.to_owned(), object(field, pairs)?);
            }
        }
        if self.off {
            data.insert("power".to_owned(), "off".into());
        }
        if let Some(seconds) = self.deadline_seconds {
            data.insert("deadline_seconds".to_owned(), seconds.into());
        }
        // A dry run leaves nothing that could be repeated, so its key is nobody's business.
        let id = if self.dry_run { "dry-run".to_owned() } else { self.key.id_or_random(jobs.env) };
        let mut event = self.key.event("provision", &id, None, &data);
        if let Some(after) = self.after {
            event["after"] = json!(after);
        }
        jobs.submit_and_show(&event, self.wait, self.dry_run).await
    }
}

fn object(field: &str, pairs: &[(String, String)]) -> Result<Value> {
    let mut map = Map::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value.clone().into()).is_some() {
            return Err(Error::Usage(format!("--{} gives {key} twice", field.trim_end_matches('s'))));
        }
    }
    Ok(map.into())
}
