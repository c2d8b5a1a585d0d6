//! `cellbus managers decommission`.

use std::time::Duration;

use cellbus_bus::Env;
use serde_json::Value;

use crate::client::{Answer, Client};
use crate::exit::{Error, Result, note};
use crate::output::Printer;

/// How often it is looked what is left.
const POLL: Duration = Duration::from_millis(500);

/// How a manager is taken out.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its name or id
    manager: String,
    /// Forget its VMs, and leave them there as they are, instead of moving them to other managers
    #[arg(long)]
    release: bool,
    /// Do it: nothing new is put on it from now on, and its VMs are moved, or released
    #[arg(long)]
    apply: bool,
    /// Wait up to so many seconds until nothing is left; exit code 1 if something is
    #[arg(long, value_name = "SECONDS", requires = "apply")]
    wait: Option<u64>,
    /// The round of an --apply before: what that has submitted is not submitted again
    #[arg(long, value_name = "ROUND", requires = "apply")]
    round: Option<String>,
}

impl Args {
    pub(super) async fn run(self, env: &Env, client: &Client, printer: &Printer) -> Result<()> {
        let path = ["v1", "managers", &self.manager, "decommission"];
        let mut query: Vec<_> = self.release.then(|| ("release", "true".to_owned())).into_iter().collect();
        if !self.apply {
            return printer.one(&client.get(&path, &query).await?);
        }
        query.extend(self.round.clone().map(|round| ("round", round)));
        let begun = client.post_with(&path, &query).await?;
        let Some(limit) = self.wait else { return printer.one(&begun) };
        query.retain(|(key, _)| *key == "release");
        let began = env.mono();
        let mut said = None;
        loop {
            let left = client.get(&path, &query).await?;
            if left.value.get("may_leave").and_then(Value::as_bool) == Some(true) {
                return printer
                    .done(&left, &format!("nothing is left at {}: it may leave the configuration", self.manager));
            }
            if env.mono().since(began) >= Duration::from_secs(limit) {
                printer.one(&left)?;
                return Err(Error::Failed(format!("{} is not empty yet", self.manager)));
            }
            let vms = left.value.get("vms").and_then(Value::as_u64);
            if vms != said && !printer.is_json() {
                said = vms;
                note(&progress(&left));
            }
            env.sleep(POLL).await;
        }
    }
}

fn progress(left: &Answer) -> String {
    let count = |key: &str| left.value.get(key).and_then(Value::as_u64).unwrap_or(0);
    format!("{} VMs are left, {} of them under way", count("vms"), count("under_way"))
}
