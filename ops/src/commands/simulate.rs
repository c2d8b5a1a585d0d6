//! `cellbus simulate`.

mod plan;

use cellbus_bus::Env;
use clap::Args;

use crate::exit::Result;
use crate::output::Format;

/// Say what a fleet of any size needs, and what gives way first
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Work out cells, shards, replicas, bus and memory for a fleet, instead of running one
    #[arg(long, required = true)]
    plan: bool,
    /// Hosts of the fleet [default for --plan: 50000, 500000 and 5000000, side by side]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    hosts: Option<u64>,
    #[command(flatten)]
    planned: plan::Options,
    /// How to print
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        self.planned.run(self.hosts, self.output, env).await
    }
}
