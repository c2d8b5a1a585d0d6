//! `cellbus`: the one command. It parses, builds what the command needs, runs it, and turns what
//! came of it into an exit code; each command has a file of its own in `commands/`.

mod bus;
mod client;
mod commands;
mod drivers;
mod exit;
mod inventory;
mod jobs;
mod kafka;
mod logging;
mod nats;
mod output;
mod progress;
mod remote;
mod report;
mod role;
mod secret;
mod settings;
mod shutdown;
mod table;

use std::process::ExitCode;

use cellbus_bus::allocator::{self, Allocator};
use cellbus_bus::format::Build;
use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Runs the command line of this process, as a program of this build.
#[must_use]
pub fn main(build: Build) -> ExitCode {
    allocator::keep_freed_pages();
    let cli = match commands::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            // A reader that has gone away (`cellbus --help | head -1`) is no error.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match cli.run(build) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
