//! `cellbus adopt`.

use std::time::Duration;

use cellbus_bus::Env;
use clap::Args;
use serde_json::{Map, Value, json};

use super::confirm::confirmed;
use crate::client::Answer;
use crate::exit::{Error, Result};
use crate::jobs::key_value;
use crate::output;
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("VM", "vm"),
    column("NAME", "name"),
    column("MANAGER", "manager_name|manager"),
    column("CALLED", "called"),
    column("KEY", "key"),
    column("HOST", "host"),
    column("STATE", "state"),
    column("VCPUS", "size.vcpus"),
    column("MEMORY_MIB", "size.memory_mib"),
];
const POLL: Duration = Duration::from_millis(200);

/// Take VMs that stand on managers already into the directory
///
/// The plan comes first: which VMs, and what each will be called. It is carried out once its count is
/// confirmed. Nothing changes at the VMs but their ids and notes. A VM is taken in once, so a command
/// that was cut off is given again for the rest.
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    /// Whose they are to be
    #[arg(long, value_name = "TENANT", env = "CELLBUS_TENANT")]
    tenant: String,
    /// Of this manager only (name or id)
    #[arg(long, value_name = "MANAGER")]
    manager: Option<String>,
    /// Only those that their manager calls like this: * stands for any text, ? for a character
    #[arg(long = "match", value_name = "PATTERN")]
    pattern: Option<String>,
    /// Put this before the name that each has at its manager
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Give them this label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// So many at the most, the rest another time [default: 10000]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only say what would be done
    #[arg(long, conflicts_with_all = ["confirm", "wait"])]
    plan: bool,
    /// How many VMs the plan is to name; asked for on a terminal when not given
    #[arg(long, value_name = "COUNT")]
    confirm: Option<usize>,
    /// Wait until all of them are taken in; exit code 1 if one could not be
    #[arg(long)]
    wait: bool,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        let mut body = Map::from_iter([
            ("tenant".to_owned(), json!(self.tenant)),
            ("labels".to_owned(), Value::Object(self.labels.into_iter().map(|(k, v)| (k, json!(v))).collect())),
        ]);
        let given = [
            ("manager", self.manager.map(Value::from)),
            ("match", self.pattern.map(Value::from)),
            ("prefix", self.prefix.map(Value::from)),
            ("limit", self.limit.map(Value::from)),
        ];
        body.extend(given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        let plan = client.post_json(&["v1", "adopt"], &body).await?;
        let count = number(&plan, "total")?;
        if self.plan || (self.confirm.is_none() && !printer.is_json()) {
            printer.list(&plan, COLUMNS)?;
            if !printer.is_json() {
                said_beside(&plan)?;
            }
        }
        if self.plan {
            return Ok(());
        }
        let tenant = &self.tenant;
        confirmed(
            self.confirm,
            count,
            &format!("the plan is for {count} VMs"),
            &format!("Adopt {count} VMs for tenant {tenant}"),
        )?;
        if count == 0 {
            return printer.done(&plan, "nothing to adopt");
        }
        body.extend([("mode".to_owned(), json!("apply")), ("confirm".to_owned(), json!(count))]);
        let begun = client.post_json(&["v1", "adopt"], &body).await?;
        let id = begun.value.get("id").and_then(Value::as_str).map(str::to_owned);
        let id = id.ok_or_else(|| Error::Failed(format!("the server's answer names no adoption: {}", begun.text)))?;
        loop {
            let far = client.get(&["v1", "adopt", &id], &[]).await?;
            if self.wait && number(&far, "under_way")? > 0 {
                env.sleep(POLL).await;
                continue;
            }
            printer.one(&far)?;
            let failed = number(&far, "failed")?;
            return if failed == 0 {
                Ok(())
            } else {
                Err(Error::Failed(format!("{failed} VMs could not be adopted: `cellbus dead-letters list` says why")))
            };
        }
    }
}

/// What of a plan is not in its rows.
fn said_beside(plan: &Answer) -> Result<()> {
    let rows = |key: &str| plan.value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |row: &Value, key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    for row in rows("unfit") {
        output::line(&format!(
            "cannot be adopted: {} on {}: {}",
            text(row, "called"),
            text(row, "host"),
            text(row, "problem")
        ))?;
    }
    for row in rows("unread") {
        output::line(&format!("not read: {}: {}", text(row, "manager"), text(row, "reason")))?;
    }
    match plan.value.get("left_out").and_then(Value::as_u64) {
        Some(more @ 1..) => output::line(&format!("{more} more another time")),
        Some(0) | None => Ok(()),
    }
}

fn number(answer: &Answer, key: &str) -> Result<usize> {
    let number = answer.value.get(key).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| Error::Failed(format!("the server's answer has no {key}: {}", answer.text)))
}
