//! `cellbus simulate`.

mod plan;
mod run;
mod scale;

use std::path::PathBuf;

use cellbus_bus::Env;
use clap::Args;

use crate::exit::{Error, Result};
use crate::output::Format;

/// Run a whole cluster in virtual time with faults, from a seed; or say what a fleet needs
///
/// The real cells, workflows and directories run on a simulated bus, network, clocks and managers, in
/// one thread. For a while there are random jobs and faults; then everything is mended, and all must
/// come to rest: every job that was acknowledged has ended once, every VM is where its jobs say and
/// nowhere else, and every directory says what the managers hold. The same seed gives the same run,
/// which the hash of its trace shows. Of a run that fails, the history of what is wrong is shown, and
/// the exit code is 1. With --plan nothing is run: it is worked out what a fleet of any size needs, and
/// what gives way first. With --scale the autoscaling policy is held against KEDA's rule, on the same traces.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Work out cells, shards, replicas, bus and memory for a fleet, instead of running one
    #[arg(long)]
    plan: bool,
    /// Hold the autoscaling policy against KEDA's rule, ceil(lag / threshold), in a fluid model, instead
    #[arg(long, conflicts_with_all = ["plan", "hosts", "vms", "rate"])]
    scale: bool,
    /// With --plan or --scale: write it as a page, with curves
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Hosts [default: 12; for --plan 50000, 500000 and 5000000, side by side]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    hosts: Option<u64>,
    /// VMs: asked for at the most in a run, or of the fleet [default: 60; for --plan 20 a host]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000_000))]
    vms: Option<u64>,
    /// Jobs a second [default: 2 of virtual time; for --plan a third of all VMs started within ten minutes]
    #[arg(long, value_name = "N", value_parser = plan::above_zero)]
    rate: Option<f64>,
    #[command(flatten)]
    runs: run::Flags,
    #[command(flatten)]
    planned: plan::Options,
    #[command(flatten)]
    scaled: scale::Comparison,
    /// How to print; json is one object, and stable
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        if self.plan {
            let report = self.report.as_deref();
            self.planned.run(self.hosts, self.vms, self.rate, report, self.output, env).await
        } else if self.scale {
            self.scaled.run(self.report.as_deref(), self.output)
        } else if self.report.is_some() {
            Err(Error::Usage("--report is of --plan and --scale".to_owned()))
        } else {
            self.runs.run(self.hosts, self.vms, self.rate, self.output, env)
        }
    }
}
