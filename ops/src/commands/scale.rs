//! `cellbus scale`.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::exit::Result;
use crate::output::Remote;

/// Show or set how many cells there are to be
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
    /// Keep this many cells
    Set {
        /// How many
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        cells: u32,
    },
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        match self.action {
            Action::Show => printer.one(&client.get(&["v1", "scale"], &[]).await?),
            Action::Set { cells } => {
                let answer = client.put_json(&["v1", "scale"], &json!({"mode": "fixed", "cells": cells})).await?;
                printer.done(&answer, &format!("{cells} cells from now on"))
            }
        }
    }
}
