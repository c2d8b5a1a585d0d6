//! `cellbus scale`.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::exit::Result;
use crate::output::Printer;
use crate::remote::Remote;
use crate::table::{Column, column};

const COLUMNS: &[Column] = &[
    column("AT", "at"),
    column("CELLS", "desired"),
    column("BEFORE", "before"),
    column("WHAT", "direction"),
    column("REASON", "reason"),
    column("TROUBLE", "trouble"),
];

/// Show or set how many cells there are to be, and why
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show it
    Show,
    /// Have this many, until told otherwise
    Set {
        /// How many
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        cells: u32,
    },
    /// Have as many as there is work for; what is not given stays as it is
    Auto {
        /// The fewest
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        min: Option<u32>,
        /// The most
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        max: Option<u32>,
        /// How long what waits may take to be gone
        #[arg(long, value_name = "SECONDS")]
        drain_target: Option<f64>,
        /// 99 of 100 jobs are to be started within this
        #[arg(long, value_name = "SECONDS")]
        latency_objective: Option<f64>,
    },
    /// Leave it as it is, whatever comes
    Pause,
    /// List the last decisions with their reasons, newest first; --output json has all that they rest on
    Explain {
        /// How many
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        match self.action {
            Action::Show => printer.one(&client.get(&["v1", "scale"], &[]).await?),
            Action::Set { cells } => put(&client, printer, json!({"mode": "fixed", "cells": cells})).await,
            Action::Auto { min, max, drain_target, latency_objective } => {
                let mut body = Map::from_iter([("mode".to_owned(), json!("auto"))]);
                let mut given = |name: &str, value: Option<Value>| {
                    if let Some(value) = value {
                        body.insert(name.to_owned(), value);
                    }
                };
                given("min", min.map(Value::from));
                given("max", max.map(Value::from));
                given("drain_target_seconds", drain_target.map(Value::from));
                given("latency_objective_seconds", latency_objective.map(Value::from));
                put(&client, printer, Value::Object(body)).await
            }
            Action::Pause => put(&client, printer, json!({"mode": "paused"})).await,
            Action::Explain { limit } => {
                let query = [("limit", limit.to_string())];
                printer.list(&client.get(&["v1", "scale", "decisions"], &query).await?, COLUMNS)
            }
        }
    }
}

async fn put(client: &Client, printer: Printer, body: Value) -> Result<()> {
    let answer = client.put_json(&["v1", "scale"], &body).await?;
    let text = |name: &str| match answer.value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "?".to_owned(),
    };
    let sentence = match answer.value.get("mode").and_then(Value::as_str) {
        Some("fixed") => format!("{} cells, until told otherwise", text("cells")),
        Some("paused") => "paused: as many cells as there are".to_owned(),
        Some(_) | None => format!("{}: {} to {} cells", text("mode"), text("min"), text("max")),
    };
    printer.done(&answer, &sentence)
}
