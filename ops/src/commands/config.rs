//! `cellbus config`.

use clap::{Args, Subcommand};

use crate::exit::{Error, Result};
use crate::output;
use crate::settings::Settings;

/// Check or print the configuration
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say every mistake there is; exit code 1 if there is one
    Check(Settings),
    /// Print what is in force, defaults included and secrets left out, as a file that gives the same again
    Dump(Settings),
}

impl Command {
    pub(super) fn run(self) -> Result<()> {
        match self.action {
            Action::Check(settings) => match settings.load()? {
                Ok(_) => output::line("the configuration is sound"),
                Err(errors) => Err(Error::Failed(format!("the configuration has mistakes:\n{errors}"))),
            },
            Action::Dump(settings) => output::text(&settings.load_or_refuse()?.dump()),
        }
    }
}
