//! `cellbus audit`.

use std::time::Duration;

use cellbus_bus::Env;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::confirm::confirmed;
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
    /// With --repair: what becomes of VMs with ids of Cellbus's that the directory does not know
    #[arg(long, value_enum, value_name = "WHAT", default_value = "leave", requires = "repair")]
    orphans: Orphans,
    /// With --repair: what becomes of what other managers have of VMs that are where the directory says
    #[arg(long, value_enum, value_name = "WHAT", default_value = "leave", requires = "repair")]
    doubles: Doubles,
    /// How many VMs the repair is to destroy; asked for on a terminal when not given
    #[arg(long, value_name = "COUNT", requires = "repair")]
    confirm: Option<usize>,
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Orphans {
    /// Nothing
    Leave,
    /// They are taken into the directory, as the VMs that their notes say
    Adopt,
    /// They are removed
    Destroy,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Doubles {
    /// Nothing
    Leave,
    /// What is not at the VM's home is removed
    Destroy,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        if let Some(id) = &self.accept {
            return printer.one(&client.post(&["v1", "audit", id, "accept"]).await?);
        }
        let begun = client.post(&["v1", "audit"]).await?;
        let audit = ended(&client, env, begun).await?;
        let id = id(&audit)?;
        match self.repair {
            None => {
                printer.one(&audit)?;
                verdict(&audit)
            }
            Some(mode) => self.repair(&client, &printer, &id, mode).await,
        }
    }

    async fn repair(&self, client: &Client, printer: &Printer, id: &str, mode: Repair) -> Result<()> {
        let path = ["v1", "audit", id, "repair"];
        let mut body = json!({
            "mode": "plan",
            "orphans": match self.orphans {
                Orphans::Leave => "leave",
                Orphans::Adopt => "adopt",
                Orphans::Destroy => "destroy",
            },
            "doubles": match self.doubles {
                Doubles::Leave => "leave",
                Doubles::Destroy => "destroy",
            },
        });
        let destroys = matches!(self.orphans, Orphans::Destroy) || matches!(self.doubles, Doubles::Destroy);
        if matches!(mode, Repair::Apply) && !destroys {
            body["mode"] = json!("apply");
            return printer.one(&client.post_json(&path, &body).await?);
        }
        let plan = client.post_json(&path, &body).await?;
        let destroyed = match mode {
            Repair::Plan => return printer.one(&plan),
            Repair::Apply => plan.value.pointer("/repair/destroyed").and_then(Value::as_u64),
        };
        let destroyed = destroyed.and_then(|count| usize::try_from(count).ok());
        let destroyed = destroyed.ok_or_else(|| Error::Failed(format!("the plan has no count: {}", plan.text)))?;
        let said = format!("the repair is for the removal of {destroyed} VMs");
        confirmed(self.confirm, destroyed, &said, &format!("Destroy {destroyed} VMs"))?;
        body["mode"] = json!("apply");
        body["confirm"] = json!(destroyed);
        printer.one(&client.post_json(&path, &body).await?)
    }
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
