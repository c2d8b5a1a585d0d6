//! `cellbus load`.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_bus::ids::TenantId;
use cellbus_simulator::Trace;
use cellbus_simulator::load::workload::{self, Mix, Speedup};
use cellbus_simulator::load::{self, HttpTarget, Options};
use clap::Args;

use crate::exit::{Error, Result};
use crate::jobs::duration;
use crate::output::Remote;
use crate::{report, shutdown};

/// Put load on a running cluster, and check what became of it; exit code 1 unless all is right
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    /// So many jobs a second, drawn from --mix
    #[arg(long, value_name = "N", conflicts_with = "trace", required_unless_present = "trace")]
    rate: Option<f64>,
    /// For how long, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s", conflicts_with = "trace")]
    duration: Duration,
    /// Kinds of jobs and their weights, such as provision=60,start=10,stop=10,delete=20
    #[arg(long, value_name = "KIND=WEIGHT,...", conflicts_with = "trace")]
    mix: Option<Mix>,
    /// A trace of VMs (CSV with name, cpu_milli, memory_mib, creation_time, deletion_time)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// How many times as fast as it was recorded a trace is played, or max
    #[arg(long, value_name = "N|max", default_value = "max", requires = "trace")]
    speedup: Speedup,
    /// At most so many jobs without an outcome
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    in_flight: u32,
    /// Whose jobs they are
    #[arg(long, value_name = "TENANT", env = "CELLBUS_TENANT", default_value = "load")]
    tenant: TenantId,
    /// Of all choices: the same gives the same jobs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write the report as a page, too
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Leave out the audit at the end
    #[arg(long)]
    no_audit: bool,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let (workload, total) = self.workload()?;
        let options = Options {
            seed: self.seed,
            in_flight: self.in_flight as usize,
            audit: !self.no_audit,
            ..Options::new(self.tenant)
        };
        let server = self.remote.server();
        let target = HttpTarget::new(server, env.clone()).map_err(|error| Error::Usage(error.to_string()))?;
        let stop = shutdown::on_signal(env)?;
        let watched = Arc::new(report::Watched::new(env.clone(), total));
        let run = load::run(workload, Arc::new(target), options, watched.clone(), stop, env.clone()).await;
        watched.end();
        match run {
            Ok(report) => {
                if let Some(path) = &self.report {
                    let page = report.html(&format!("Load on {server}"));
                    std::fs::write(path, page)
                        .with_context(|| format!("cannot write the report {}", path.display()))?;
                }
                report::show(&report, self.remote.format())
            }
            Err(load::Error::NoCluster(reason)) => {
                Err(Error::Unreachable { server: server.to_owned(), reason: reason.to_string() })
            }
            Err(error @ load::Error::RunName) => Err(Error::Usage(error.to_string())),
        }
    }

    /// The workload, and of how many jobs it is.
    fn workload(&self) -> Result<(workload::Workload, u64)> {
        if let Some(path) = &self.trace {
            let file = File::open(path).with_context(|| format!("cannot read the trace {}", path.display()))?;
            let trace = Trace::read(file).with_context(|| path.display().to_string())?;
            let total = trace.events.len() as u64;
            return Ok((workload::trace(trace, self.speedup), total));
        }
        let rate = self.rate.unwrap_or_default();
        if !(rate > 0.0 && rate <= 1e6) {
            return Err(Error::Usage(format!("--rate {rate}: jobs a second, above 0 and at most 1000000")));
        }
        let mix = self.mix.clone().unwrap_or_else(Mix::lively);
        Ok((workload::rate(rate, self.duration, &mix, self.seed), (rate * self.duration.as_secs_f64()) as u64))
    }
}
