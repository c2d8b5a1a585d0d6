//! `cellbus simulate` without `--plan`: runs.

use std::num::NonZero;
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::ids::ShardCount;
use cellbus_simulator::simulate::{self, Config, Faults, Report};
use clap::Args;
use serde_json::{Value, json};

use crate::exit::{Error, Result, note};
use crate::jobs::duration;
use crate::output::{self, Format};
use crate::progress::Progress;

/// What a run has where it is not said.
const HOSTS: u64 = 12;
const VMS: u64 = 60;
/// Jobs a second of virtual time.
const RATE: f64 = 2.0;

/// Runs that `--shrink` makes at the most.
const SHRINK_TRIES_MAX: u32 = 300;
/// Lines of history that are shown of one run.
const HISTORY_MAX: usize = 400;

#[derive(Debug, Args)]
#[command(next_help_heading = "Without --plan")]
pub(super) struct Flags {
    /// The seed of the run
    #[arg(long, conflicts_with = "plan", value_name = "N", default_value_t = 1)]
    seed: u64,
    /// So many runs, with this seed and those after it
    #[arg(long, conflicts_with = "plan", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seeds: u64,
    /// Runs at once, each on a thread of its own [default: one for each core]
    #[arg(long, conflicts_with = "plan", value_name = "N")]
    at_once: Option<NonZero<usize>>,
    /// Managers that the hosts are spread over [default: 3, or one for each 100 hosts]
    #[arg(long, conflicts_with = "plan", value_name = "N")]
    managers: Option<u64>,
    /// Cells to begin with
    #[arg(long, conflicts_with = "plan", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    cells: u32,
    /// Shards
    #[arg(long, conflicts_with = "plan", value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    shards: u16,
    /// Which faults and how often: all, none, or a list such as crash,bus=0.5; all,behind=0 leaves one out
    #[arg(long, conflicts_with = "plan", value_name = "LIST", default_value = "all")]
    faults: Faults,
    /// For how long there are jobs and faults, in virtual time
    #[arg(long, conflicts_with = "plan", value_name = "TIME", value_parser = duration, default_value = "90s")]
    duration: Duration,
    /// Of 100 jobs, how many make VMs while more may be asked for
    #[arg(long, conflicts_with = "plan", value_name = "PERCENT", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100))]
    provisions: u32,
    /// After the last fault, everything must have come to rest within this
    #[arg(long, conflicts_with = "plan", value_name = "TIME", value_parser = duration, default_value = "15m")]
    rest_within: Duration,
    /// Look for a smaller run that fails too, of the first seed that fails
    #[arg(long, conflicts_with = "plan")]
    shrink: bool,
}

impl Flags {
    pub(super) fn run(
        self,
        hosts: Option<u64>,
        vms: Option<u64>,
        rate: Option<f64>,
        format: Format,
        env: &Env,
    ) -> Result<()> {
        let first = self.config(hosts.unwrap_or(HOSTS), vms.unwrap_or(VMS), rate.unwrap_or(RATE))?;
        let began = env.mono();
        let mut reports: Vec<Report> = Vec::new();
        let mut shrunk = None;
        let cores = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        let mut progress = (self.seeds > 1).then(|| Progress::begin(env, "runs", self.seeds));
        let configs = (self.seed..self.seed.saturating_add(self.seeds)).map(|seed| Config { seed, ..first.clone() });
        simulate::run_many(configs, self.at_once.unwrap_or(cores), |config, mut report| {
            if !report.good() {
                let seed = config.seed;
                note(&format!("seed {seed} failed: {}", report.violations.first().map_or("", String::as_str)));
                if self.shrink && shrunk.is_none() {
                    let smaller = |config: &Config| note(&format!("smaller: {}", flags(config)));
                    shrunk = simulate::shrink(&config, SHRINK_TRIES_MAX, smaller);
                }
                // Once more, and told of.
                let told =
                    shrunk.as_ref().filter(|shrunk| shrunk.config.seed == seed).map_or(config, |s| s.config.clone());
                let again = simulate::run(&Config { history: true, ..told });
                report.history = again.history;
                let from = report.history.len().saturating_sub(HISTORY_MAX);
                report.history.drain(..from);
            }
            reports.push(report);
            if let Some(progress) = &mut progress {
                progress.at(env, reports.len() as u64);
            }
        });
        let wall = env.mono().since(began);
        let failed = reports.iter().filter(|report| !report.good()).count();
        if let Some(progress) = progress {
            progress.end(env, &format!("{} done, {failed} failed", reports.len()));
        }
        match format {
            Format::Json => {
                let smallest = shrunk
                    .as_ref()
                    .map(|shrunk| json!({"flags": flags(&shrunk.config), "violations": shrunk.report.violations}));
                output::line(&json_of(&reports, failed, wall, smallest)?)?;
            }
            Format::Table => {
                output::text(&text_of(&reports, failed, wall))?;
                if let Some(shrunk) = &shrunk {
                    output::line(&format!("smallest run that fails: cellbus simulate {}", flags(&shrunk.config)))?;
                }
            }
        }
        if failed > 0 {
            return Err(Error::Failed(format!("{failed} of {} runs failed", reports.len())));
        }
        Ok(())
    }

    fn config(&self, hosts: u64, vms: u64, rate: f64) -> Result<Config> {
        let managers = self.managers.unwrap_or_else(|| (hosts / 100).max(hosts.min(3)));
        if hosts == 0 || hosts > 1_000_000 || managers == 0 || managers > hosts {
            return Err(Error::Usage(format!(
                "{} hosts over {managers} managers: there are 1 to 1000000 hosts, and no manager is without one",
                hosts
            )));
        }
        let shards = ShardCount::new(self.shards)
            .ok_or_else(|| Error::Usage(format!("{} is no number of shards", self.shards)))?;
        Ok(Config {
            hosts,
            managers,
            vms,
            cells: self.cells,
            shards,
            duration: self.duration,
            jobs_per_second: rate,
            provisions_percent: self.provisions,
            faults: self.faults.clone(),
            rest_within: self.rest_within,
            ..Config::small(self.seed)
        })
    }
}

/// The flags that make this run.
fn flags(config: &Config) -> String {
    format!(
        "--seed {} --hosts {} --managers {} --vms {} --cells {} --shards {} --faults {} --duration {}ms --rate {} --provisions {}",
        config.seed,
        config.hosts,
        config.managers,
        config.vms,
        config.cells,
        config.shards.get(),
        config.faults,
        config.duration.as_millis(),
        config.jobs_per_second,
        config.provisions_percent,
    )
}

fn json_of(reports: &[Report], failed: usize, wall: Duration, smallest: Option<Value>) -> Result<String> {
    let virtual_seconds: f64 = reports.iter().map(|report| report.virtual_seconds).sum();
    let summary = json!({
        "runs": reports,
        "failed": failed,
        "virtual_seconds": virtual_seconds,
        "wall_seconds": wall.as_secs_f64(),
        "virtual_seconds_per_second": virtual_seconds / wall.as_secs_f64().max(1e-9),
        "polls_per_second": reports.iter().map(|report| report.polls as f64).sum::<f64>() / wall.as_secs_f64().max(1e-9),
        "smallest": smallest,
    });
    serde_json::to_string(&summary).map_err(|error| Error::Other(error.into()))
}

fn text_of(reports: &[Report], failed: usize, wall: Duration) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    // Writing to a text cannot fail.
    for report in reports.iter().filter(|report| !report.good()) {
        let _ = writeln!(text, "seed {} failed:", report.seed);
        report.violations.iter().for_each(|violation| {
            let _ = writeln!(text, "  {violation}");
        });
        if !report.history.is_empty() {
            let _ = writeln!(text, "what happened to them (virtual seconds):");
            report.history.iter().for_each(|line| {
                let _ = writeln!(text, "  {line}");
            });
        }
    }
    if let [report] = reports {
        let _ = writeln!(
            text,
            "seed {}, trace {}: {} jobs ({} succeeded, {} failed, {} cancelled), {} VMs, {} faults",
            report.seed,
            report.trace,
            report.jobs_submitted,
            report.jobs_succeeded,
            report.jobs_failed,
            report.jobs_cancelled,
            report.vms,
            report.faults
        );
    }
    let virtual_seconds: f64 = reports.iter().map(|report| report.virtual_seconds).sum();
    let _ = writeln!(
        text,
        "{} runs, {failed} failed: {virtual_seconds:.0} s of virtual time in {:.1} s",
        reports.len(),
        wall.as_secs_f64()
    );
    text
}
