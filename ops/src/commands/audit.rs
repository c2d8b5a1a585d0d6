//! `cellbus audit`.

use std::time::Duration;

use cellbus_bus::Env;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::exit::{Error, Result};
use crate::output::Printer;
use crate::remote::Remote;

const POLL: Duration = Duration::from_millis(200);

/// Compare the directory with what the managers hold; exit code 1 if they differ
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    /// Also say what would mend each difference, or mend it
    #[arg(long, value_enum)]
    repair: Option<Repair>,
    /// After a restore: what this audit, which has ended, found is understood; what waits for it goes on at
    /// every manager that it has read
    #[arg(long, value_name = "ID", conflicts_with = "repair")]
    accept: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Repair {
    /// Say what would be done
    Plan,
    /// Do it
    Apply,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        if let Some(id) = self.accept {
            return printer.one(&client.post(&["v1", "audit", &id, "accept"]).await?);
        }
        let begun = client.post(&["v1", "audit"]).await?;
        let audit = ended(&client, env, begun).await?;
        let id = id(&audit)?;
        match self.repair {
            None => {
                printer.one(&audit)?;
                verdict(&audit)
            }
            Some(Repair::Plan) => repair(&client, &printer, &id, "plan").await,
            Some(Repair::Apply) => repair(&client, &printer, &id, "apply").await,
        }
    }
}

async fn repair(client: &Client, printer: &Printer, id: &str, mode: &str) -> Result<()> {
    printer.one(&client.post_json(&["v1", "audit", id, "repair"], &json!({"mode": mode})).await?)
}

async fn ended(client: &Client, env: &Env, mut audit: Answer) -> Result<Answer> {
    let id = id(&audit)?;
    while audit.value.get("ended_at").is_none_or(Value::is_null) {
        env.sleep(POLL).await;
        audit = client.get(&["v1", "audit", &id], &[]).await?;
    }
    Ok(audit)
}

fn id(audit: &Answer) -> Result<String> {
    let id = audit.value.get("id").and_then(Value::as_str).map(str::to_owned);
    id.ok_or_else(|| Error::Failed(format!("the server's answer names no audit: {}", audit.text)))
}

/// An error unless the audit has looked at everything and found nothing.
fn verdict(audit: &Answer) -> Result<()> {
    let found = audit.value.get("findings_total").and_then(Value::as_u64);
    let unreachable = audit.value.get("unreachable").and_then(Value::as_array).map(Vec::len);
    match (found, unreachable) {
        (Some(0), Some(0)) => Ok(()),
        (Some(0), Some(managers)) => Err(Error::Failed(format!("{managers} managers could not be read"))),
        (Some(found), Some(_)) => Err(Error::Failed(format!("directory and managers differ in {found} places"))),
        (_, None) | (None, _) => Err(Error::Failed(format!("the audit does not say what it found: {}", audit.text))),
    }
}
