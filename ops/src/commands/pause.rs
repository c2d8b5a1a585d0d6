//! `cellbus pause`, `cellbus resume`, `cellbus pauses`.

use clap::Args;
use serde_json::{Map, Value, json};

use crate::exit::Result;
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("MANAGER", "manager"),
    column("WORK", "work"),
    column("SINCE", "at"),
    column("BY", "by.who"),
    column("REASON", "reason"),
];

/// Which pause is meant: each is lifted with what it was ordered with
#[derive(Debug, Args)]
struct Scope {
    /// At this manager only, by its name or id; without it, everywhere
    #[arg(long, value_name = "MANAGER")]
    manager: Option<String>,
    /// Only what removes something: delete, revert, snapshot-delete, and the removals within a migrate or an undo
    #[arg(long)]
    destructive: bool,
}

impl Scope {
    fn body(&self) -> Map<String, Value> {
        let mut body = Map::from_iter([("destructive".to_owned(), json!(self.destructive))]);
        if let Some(manager) = &self.manager {
            body.insert("manager".to_owned(), json!(manager));
        }
        body
    }
    fn in_words(&self) -> String {
        let what = if self.destructive { "destructive work" } else { "all work" };
        self.manager.as_ref().map_or_else(|| what.to_owned(), |manager| format!("{what} at {manager}"))
    }
}

/// Stop work at once: it waits, and nothing accepted is lost; what is under way ends
#[derive(Debug, Args)]
pub(super) struct Pause {
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    scope: Scope,
    /// Why, for whoever looks: it is shown with all that waits
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Let work go on that was paused with the same options
#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    scope: Scope,
}

/// List what is paused, since when, by whom and why
#[derive(Debug, Args)]
pub(super) struct Pauses {
    #[command(flatten)]
    remote: Remote,
}

impl Pause {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        let mut body = self.scope.body();
        body.insert("reason".to_owned(), json!(self.reason));
        let answer = client.post_json(&["v1", "pause"], &body).await?;
        let within = answer.value.get("in_force_within_seconds").and_then(Value::as_f64).unwrap_or_default();
        let what = self.scope.in_words();
        printer.done(&answer, &format!("{what} is paused; nothing destructive begins later than {within} s from now"))
    }
}

impl Resume {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        let answer = client.post_json(&["v1", "resume"], &self.scope.body()).await?;
        let left = answer.value.get("items").and_then(Value::as_array).map_or(0, Vec::len);
        let others = match left {
            0 => "nothing is paused any more".to_owned(),
            1 => "1 other pause stays in force: cellbus pauses".to_owned(),
            left => format!("{left} other pauses stay in force: cellbus pauses"),
        };
        printer.done(&answer, &format!("{} goes on; {others}", self.scope.in_words()))
    }
}

impl Pauses {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        printer.list(&client.get(&["v1", "pauses"], &[]).await?, COLUMNS)
    }
}
