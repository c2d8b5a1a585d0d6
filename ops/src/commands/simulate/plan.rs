//! `cellbus simulate --plan`.

use std::path::Path;

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_cell::config::{Config, Sources};
use cellbus_simulator::plan::runs::{self, Ran};
use cellbus_simulator::plan::{self, Assumptions, Bus, Fleet, Plan, plan};
use clap::Args;

use super::super::load::measured::usage;

use crate::exit::{Error, Result};
use crate::output::{self, Format};
use crate::table;

/// Fleets that are planned where none is named.
const USUAL: [u64; 3] = [50_000, 500_000, 5_000_000];

#[derive(Debug, Args)]
#[command(next_help_heading = "With --plan")]
pub(super) struct Options {
    /// Seconds that an operation takes at its manager, in the middle [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = above_zero, requires = "plan")]
    operation: Option<f64>,
    /// The transport: embedded, nats, nats-3
    #[arg(long, value_name = "BUS", default_value = "nats", requires = "plan")]
    bus: Bus,
    /// Take this for given instead of what was measured; may be given more than once. --assumptions shows all
    #[arg(long, value_name = "NAME=VALUE", requires = "plan")]
    set: Vec<String>,
    /// Show what is taken for given, and where it comes from
    #[arg(long, requires = "plan")]
    assumptions: bool,
    /// Also run clusters of 1,000 to 50,000 hosts in this process, about a minute, and hold the model against them
    #[arg(long, requires = "plan")]
    measure: bool,
}

impl Options {
    pub(super) async fn run(
        self,
        hosts: Option<u64>,
        vms: Option<u64>,
        rate: Option<f64>,
        report: Option<&Path>,
        format: Format,
        env: &Env,
    ) -> Result<()> {
        if hosts.is_none() && (vms.is_some() || rate.is_some()) {
            return Err(Error::Usage("--vms and --rate are of one fleet: --hosts says of which".to_owned()));
        }
        let mut assumed = Assumptions::of(self.bus);
        for set in &self.set {
            let (name, value) =
                set.split_once('=').ok_or_else(|| Error::Usage(format!("--set {set}: it is NAME=VALUE")))?;
            assumed.set(name.trim(), value.trim()).map_err(|error| Error::Usage(format!("--set {error}")))?;
        }
        let plans: Vec<Plan> = hosts
            .map_or_else(|| USUAL.to_vec(), |hosts| vec![hosts])
            .into_iter()
            .map(|hosts| {
                let usual = Fleet::of(hosts);
                let vms = vms.unwrap_or(usual.vms);
                let jobs_per_second = rate.unwrap_or(usual.jobs_per_second * (vms as f64 / usual.vms.max(1) as f64));
                let operation_seconds = self.operation.unwrap_or(usual.operation_seconds);
                plan(Fleet { hosts, vms, jobs_per_second, operation_seconds }, &assumed)
            })
            .collect();
        let ran = if self.measure { measured(env).await? } else { Vec::new() };
        if let Some(path) = report {
            std::fs::write(path, plan::html(&assumed, &ran))
                .with_context(|| format!("cannot write the report {}", path.display()))?;
        }
        match format {
            Format::Json => {
                output::line(&serde_json::json!({ "plans": plans, "assumptions": assumed, "runs": ran }).to_string())
            }
            Format::Table => {
                let mut text = shown(&plans);
                if self.assumptions {
                    text.push('\n');
                    text.push_str(&taken_for_given(&assumed));
                }
                if !ran.is_empty() {
                    text.push_str("\nRuns in this process, and what the model says of them:\n");
                    text.push_str(&held_against(&ran));
                }
                output::text(&text)
            }
        }
    }
}

/// Clusters in this process, one after the other.
async fn measured(env: &Env) -> Result<Vec<Ran>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut all = Vec::new();
    for step in runs::Step::usual() {
        let data = tempfile::tempdir().context("cannot make a temporary directory")?;
        let config = Config::load(Sources::default()).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
        let told =
            |ran: &Ran| eprintln!("measured {} hosts with {} VMs", number(ran.hosts as f64), number(ran.vms as f64));
        let ran = runs::run(&step, cores as f64, config, data.path(), env, usage, told).await;
        all.extend(ran.context("a run did not come to its end")?);
    }
    Ok(all)
}

fn held_against(ran: &[Ran]) -> String {
    let both = |run: String, model: String| format!("{run} ({model})");
    let head = ["hosts", "VMs", "jobs a second", "CPU of a job", "memory a VM", "takeover"].map(str::to_owned).to_vec();
    let rows = ran.iter().map(|ran| {
        vec![
            number(ran.hosts as f64),
            number(ran.vms as f64),
            number(ran.jobs_per_second),
            both(format!("{:.0} us", ran.job_cpu_us), format!("{:.0}", ran.job_cpu_us_planned)),
            both(format!("{} B", number(ran.vm_bytes)), number(ran.vm_bytes_planned)),
            both(format!("{:.1} s", ran.takeover_seconds), format!("{:.1}", ran.takeover_seconds_planned)),
        ]
    });
    table::grid(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

pub(super) fn above_zero(text: &str) -> std::result::Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number: &f64| *number > 0.0 && *number < 1e12)
        .ok_or_else(|| "a number above 0".to_owned())
}

fn shown(plans: &[Plan]) -> String {
    let row = |name: &str, value: &dyn Fn(&Plan) -> String| {
        std::iter::once(name.to_owned()).chain(plans.iter().map(value)).collect::<Vec<_>>()
    };
    let first = |plan: &Plan| {
        plan.limits
            .first()
            .map_or_else(String::new, |limit| format!("{} at {}/s", limit.of, number(limit.jobs_per_second)))
    };
    let second = |plan: &Plan| {
        plan.limits
            .get(1)
            .map_or_else(String::new, |limit| format!("{} at {}/s", limit.of, number(limit.jobs_per_second)))
    };
    let rows = [
        row("hosts", &|p| number(p.fleet.hosts as f64)),
        row("VMs", &|p| number(p.fleet.vms as f64)),
        row("jobs a second", &|p| number(p.fleet.jobs_per_second)),
        row("managers", &|p| number(p.managers as f64)),
        row("cells", &|p| format!("{}, for their {}", number(p.cells as f64), p.cells_for)),
        row("shards", &|p| number(p.shards as f64)),
        row("directory replicas", &|p| number(p.replicas as f64)),
        row("memory of a cell", &|p| memory(p.cell_memory_mib)),
        row("memory of a replica", &|p| memory(p.replica_memory_mib)),
        row("messages at the bus", &|p| format!("{}/s", number(p.bus_messages_per_second))),
        row("written at the bus", &|p| format!("{:.1} MiB/s", p.bus_bytes_per_second / 1024.0 / 1024.0)),
        row("share of the bus", &|p| format!("{:.0} %", p.bus_share * 100.0)),
        row("takeover of a cell", &|p| seconds(p.takeover_seconds)),
        row("a replica from its checkpoint", &|p| seconds(p.checkpoint_seconds)),
        row("a replica from nothing", &|p| seconds(p.replay_seconds)),
        row("gives way first", &first),
        row("then", &second),
    ];
    let mut text = table::grid(&rows);
    for plan in plans {
        for impossible in &plan.impossible {
            text.push_str(&format!("{} hosts do not fit: {impossible}\n", number(plan.fleet.hosts as f64)));
        }
    }
    if let Some(plan) = plans.first() {
        text.push_str("\nWhat this leaves out:\n");
        for caveat in &plan.caveats {
            text.push_str(&format!("- {caveat}\n"));
        }
    }
    text
}

fn taken_for_given(assumed: &Assumptions) -> String {
    let rows: Vec<Vec<String>> = assumed
        .each()
        .into_iter()
        .map(|(name, value, what)| vec![name.to_owned(), number(value), what.to_owned()])
        .collect();
    table::grid(&rows)
}

/// With commas between thousands; small ones with a digit or two behind the point.
fn number(value: f64) -> String {
    if value < 10.0 && value.fract() != 0.0 {
        return format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn memory(mib: u64) -> String {
    if mib < 10_240 { format!("{} MiB", number(mib as f64)) } else { format!("{} GiB", number(mib as f64 / 1024.0)) }
}

fn seconds(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.1} s") } else { format!("{:.0} min", seconds / 60.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_at_a_glance() {
        assert_eq!(
            [0.25, 9.5, 10.4, 999.0, 1_000.0, 5_000_000.0].map(number),
            ["0.25", "9.5", "10", "999", "1,000", "5,000,000"]
        );
        assert_eq!([memory(200), memory(20_480)], ["200 MiB", "20 GiB"]);
        assert_eq!([seconds(3.04), seconds(600.0)], ["3.0 s", "10 min"]);
    }
}
