//! `cellbus upgrade`.

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::Answer;
use crate::exit::Result;
use crate::output;
use crate::remote::Remote;
use crate::table::{self, Column, column};

const COLUMNS: &[Column] = &[
    column("MEMBER", "id"),
    column("ROLE", "role"),
    column("STATE", "state"),
    column("VERSION", "version"),
    column("READS_FROM", "format_oldest"),
    column("READS_TO", "format_newest"),
    column("KEEPS_UP", "keeps_up"),
    column("ADDRESS", "address"),
];

/// Show which builds take part, and have cells write the newest format
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show every member with its version and formats, what cells write, and who hinders raising it
    Status,
    /// Have cells write the newest format that every member reads; no older build can join afterwards
    Finalize,
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        match self.action {
            Action::Status => {
                let answer = client.get(&["v1", "upgrade"], &[]).await?;
                if printer.is_json() {
                    return output::line(&answer.text);
                }
                output::text(&table::rows(table::items(&answer.value["members"]), COLUMNS))?;
                output::line(&state(&answer))
            }
            Action::Finalize => {
                let answer = client.post(&["v1", "upgrade", "finalize"]).await?;
                printer.done(&answer, &format!("cells write format {}", answer.value["format"]))
            }
        }
    }
}

fn state(answer: &Answer) -> String {
    let field = |name: &str| &answer.value[name];
    let (format, newest) = (field("format"), field("newest"));
    match field("state").as_str() {
        Some("ready") => format!("cells write format {format}; finalize would raise it to {newest}"),
        Some("hindered") => {
            let members: Vec<&str> =
                field("hindered_by").as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            format!("cells write format {format}; {newest} is not read by {}", members.join(", "))
        }
        Some(_) | None => format!("cells write format {format}; there is nothing to raise"),
    }
}
