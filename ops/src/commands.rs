//! The commands, one file each.

mod adopt;
mod audit;
mod backup;
mod cell;
mod cells;
mod completions;
mod config;
mod confirm;
mod controller;
mod dead_letters;
mod demo;
mod directory;
mod forecast;
mod hosts;
mod job;
mod load;
mod managers;
mod paging;
mod pause;
mod queue;
mod restore;
mod scale;
mod shards;
mod sim_managers;
mod simulate;
mod submit;
mod token;
mod up;
mod upgrade;
mod vm;

use anyhow::Context as _;
use cellbus_bus::format::Build;
use cellbus_bus::{Env, env};
use clap::{Parser, Subcommand};

use crate::exit::Result;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 the job or check failed, 2 bad usage, 3 the server can't be reached.
CELLBUS_SERVER names the server, CELLBUS_CA its CA, CELLBUS_TOKEN or CELLBUS_TOKEN_FILE a token,
CELLBUS_TENANT the tenant; NO_COLOR turns colours off.";

/// A control plane for very large fleets of virtual machines.
#[derive(Debug, Parser)]
#[command(name = "cellbus", version, after_help = AFTER_HELP, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Command),
    Up(Box<up::Command>),
    Cell(Box<cell::Command>),
    Directory(Box<directory::Command>),
    Controller(Box<controller::Command>),
    Submit(submit::Command),
    Vm(vm::Command),
    Job(job::Command),
    Cells(cells::Command),
    Shards(shards::Command),
    Managers(managers::Command),
    Hosts(hosts::Command),
    Queue(queue::Command),
    Forecast(forecast::Command),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Pauses(pause::Pauses),
    Scale(scale::Command),
    Upgrade(upgrade::Command),
    DeadLetters(dead_letters::Command),
    Adopt(adopt::Command),
    Audit(audit::Command),
    Backup(backup::Command),
    Restore(restore::Command),
    Load(Box<load::Command>),
    SimManagers(sim_managers::Command),
    Simulate(Box<simulate::Command>),
    Token(token::Command),
    Config(config::Command),
    Completions(completions::Command),
}

impl Cli {
    /// Runs the command to its end, as one of this build.
    pub(crate) fn run(self, build: Build) -> Result<()> {
        match self.command {
            Command::Demo(command) => server(async |env| command.run(&env).await),
            Command::Up(command) => server(async |env| command.run(&env).await),
            Command::Cell(command) => server(async |env| command.run(build, &env).await),
            Command::Directory(command) => server(async |env| command.run(build, &env).await),
            Command::Controller(command) => server(async |env| command.run(build, &env).await),
            Command::Submit(command) => client(async |env| command.run(&env).await),
            Command::Vm(command) => client(async |env| command.run(&env).await),
            Command::Job(command) => client(async |env| command.run(&env).await),
            Command::Cells(command) => client(async |_| command.run().await),
            Command::Shards(command) => client(async |_| command.run().await),
            Command::Managers(command) => client(async |env| command.run(&env).await),
            Command::Hosts(command) => client(async |_| command.run().await),
            Command::Queue(command) => client(async |_| command.run().await),
            Command::Forecast(command) => client(async |_| command.run().await),
            Command::Pause(command) => client(async |_| command.run().await),
            Command::Resume(command) => client(async |_| command.run().await),
            Command::Pauses(command) => client(async |_| command.run().await),
            Command::Scale(command) => client(async |_| command.run().await),
            Command::Upgrade(command) => client(async |_| command.run().await),
            Command::DeadLetters(command) => client(async |_| command.run().await),
            Command::Adopt(command) => client(async |env| command.run(&env).await),
            Command::Audit(command) => client(async |env| command.run(&env).await),
            Command::Backup(command) => server(async |env| command.run(&env).await),
            Command::Restore(command) => server(async |env| command.run(&env).await),
            Command::Load(command) => server(async |env| command.run(&env).await),
            Command::SimManagers(command) => server(async |env| command.run(&env).await),
            Command::Simulate(command) => server(async |env| command.run(&env).await),
            Command::Token(command) => command.run(),
            Command::Config(command) => command.run(),
            Command::Completions(command) => command.run(),
        }
    }
}

/// Runs a command that serves: a thread for each processor.
fn server(command: impl AsyncFnOnce(Env) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let env = env::of_a_server(runtime.handle().clone());
    let result = runtime.block_on(command(env));
    // What still blocks (a look-up of a name, a read) holds nothing that matters any more.
    runtime.shutdown_background();
    result
}

/// Runs a command that only talks to a server: one thread is enough.
fn client(command: impl AsyncFnOnce(Env) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let env = env::real(runtime.handle().clone());
    runtime.block_on(command(env))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellbus_simulator::managers::Latency;
    use clap::CommandFactory as _;

    #[test]
    fn help_names_every_kind_of_latency_and_each_is_one() {
        let cli = Cli::command();
        for name in ["demo", "up", "sim-managers"] {
            let command = cli.find_subcommand(name).expect("it is a command");
            let latency = command.get_arguments().find(|argument| argument.get_id() == "latency");
            let help = latency.and_then(|argument| argument.get_help()).expect("it has help").to_string();
            for kind in ["none", "fast", "realistic", "500ms"] {
                assert!(help.contains(kind), "{name}: {help}");
                assert!(kind.parse::<Latency>().is_ok(), "{kind}");
            }
        }
    }
}
