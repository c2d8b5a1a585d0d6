//! `cellbus completions`.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::exit::Result;
use crate::output;

/// Print completions for a shell
#[derive(Debug, Args)]
pub(super) struct Command {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Command {
    pub(super) fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "cellbus", &mut script);
        output::text(&String::from_utf8_lossy(&script))
    }
}
