//! `cellbus load`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_bus::ids::TenantId;
use cellbus_cell::config::Transport;
use cellbus_simulator::Trace;
use cellbus_simulator::load::workload::{self, Mix, Speedup};
use cellbus_simulator::load::{
    self, About, Answer, BusTarget, HttpTarget, Options, Recording, SoakLimits, Target, Tenants,
};
use clap::{ArgGroup, Args, ValueEnum};

use crate::bus::{Opened, Wants};
use crate::exit::{Error, Result};
use crate::remote::Remote;
use crate::settings::Source;
use crate::{report, shutdown};

mod anonymise;
mod compare;
pub(super) mod measured;
mod shape;

/// What only a run has.
const OF_A_RUN: [&str; 12] = [
    "speedup",
    "mix",
    "in_flight",
    "tenants",
    "seed",
    "over",
    "no_answers",
    "report",
    "json",
    "no_audit",
    "duration",
    "soak",
];

/// The name by which a bus knows this process.
const NAME: &str = "cellbus load";

/// Below it no quarter of a run has moments enough.
const SOAK_SECONDS_MIN: f64 = 60.0;

/// Put load on a running cluster, and check what became of it; exit code 1 unless all is right
///
/// At a rate, jobs go when they are due, however slow the cluster is, and latency counts from then. A trace goes in
/// its own order, each delete after its create. Outcomes are taken from the event stream; at the end the VMs that must
/// be there are listed, looked up and audited. Ctrl-C ends it with the report so far.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("work").args(["rate", "trace", "anonymise", "compare"]).required(true)))]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    shape: shape::Flags,
    /// Kinds of jobs and their weights, such as provision=60,start=10,stop=10,delete=20
    #[arg(long, value_name = "KIND=WEIGHT,...", conflicts_with = "trace")]
    mix: Option<Mix>,
    /// A trace of VMs (CSV with name, cpu_milli, memory_mib, creation_time, deletion_time)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// How many times as fast as it was recorded a trace is played, or max
    #[arg(long, value_name = "N|max", default_value = "max", requires = "trace")]
    speedup: Speedup,
    /// At most so many jobs without an outcome: 256 for a trace; for a rate 100000, far away, as nothing else may hold
    /// it up (the report tells if that did)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    in_flight: Option<u32>,
    /// Whose jobs they are
    #[arg(long, value_name = "TENANT", env = "CELLBUS_TENANT", default_value = "load")]
    tenant: TenantId,
    /// Many tenants and their weights, in place of --tenant
    #[arg(long, value_name = "TENANT=WEIGHT,...")]
    tenants: Option<Tenants>,
    /// How jobs are submitted and outcomes heard. Over nats they go the way of producers, where [nats] of the
    /// configuration says; the rest is asked for at --server
    #[arg(long, value_enum, value_name = "WAY", default_value = "http")]
    over: Over,
    /// Over nats, ask for no answer to each job: a message less for producer, broker and cell. What a cell finds to be
    /// no job then ends among the lost
    #[arg(long)]
    no_answers: bool,
    #[command(flatten)]
    source: Source,
    /// Of all choices: the same gives the same jobs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write the report as a page, too: charts, configuration, checks
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Write all of it as JSON, too: what is on standard output, and how it went moment by moment
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
    /// Leave out the audit at the end
    #[arg(long)]
    no_audit: bool,
    /// Hold a long run at a rate against limits: memory of the server, latency and backlog that creep, cost and delay
    /// of the harness; the mix leaves as many VMs as there were, if --mix says nothing else
    #[arg(long, conflicts_with = "trace")]
    soak: bool,
    /// Memory that the server may keep for each job that has ended, with --soak
    #[arg(long, value_name = "BYTES", requires = "soak", default_value_t = SoakLimits::default().growth_bytes_per_job)]
    soak_growth: f64,
    /// Put no load on anything: print a trace made of your own log of jobs, names replaced, so that it can be shared.
    /// The log has a CloudEvent a line, or what job list --output json prints; - is standard input
    #[arg(long, value_name = "JOBLOG", conflicts_with_all = OF_A_RUN)]
    anonymise: Option<PathBuf>,
    /// Put no load on anything: say what the second of two runs did better or worse, from what --json wrote of them
    #[arg(long, num_args = 2, value_names = ["FIRST.json", "SECOND.json"], conflicts_with_all = OF_A_RUN)]
    compare: Vec<PathBuf>,
}

/// The way that jobs take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Over {
    Http,
    Nats,
    Kafka,
}

impl Over {
    /// As people write it.
    fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Nats => "NATS",
            Self::Kafka => "Kafka",
        }
    }
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        if let Some(log) = &self.anonymise {
            return anonymise::run(log);
        }
        if !self.compare.is_empty() {
            return compare::run(&self.compare, self.remote.format());
        }
        if self.no_answers && self.over != Over::Nats {
            let reason = "--no-answers: only --over nats has answers to do without";
            return Err(Error::Usage(reason.to_owned()));
        }
        let (workload, total) = self.workload()?;
        let defaults = match self.trace {
            Some(_) => Options::new(self.tenant.clone()),
            None => Options::on_time(self.tenant.clone()),
        };
        let options = Options {
            seed: self.seed,
            in_flight: self.in_flight.map_or(defaults.in_flight, |jobs| jobs as usize),
            audit: !self.no_audit,
            tenants: self.tenants.clone().unwrap_or_else(|| defaults.tenants.clone()),
            usage: measured::usage,
            soak: self.soak.then(|| SoakLimits { growth_bytes_per_job: self.soak_growth, ..SoakLimits::default() }),
            ..defaults
        };
        // A report that cannot be written is better known before the run than after it.
        let page = self.report.as_deref().map(Promised::at).transpose()?;
        let json = self.json.as_deref().map(Promised::at).transpose()?;
        let server = self.remote.server();
        let mut about = About {
            server: server.to_owned(),
            began_at: env.wall().rfc3339(),
            configuration: self.configuration(&options),
            versions: [("cellbus load".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
            machine: measured::machine(),
        };
        let (target, bus) = self.target(env).await?;
        let stop = shutdown::on_signal(env)?;
        let watched = Arc::new(report::Watched::new(env.clone(), total));
        let run = load::run(workload, target, options, watched.clone(), stop, env.clone()).await;
        watched.end();
        if let Some(bus) = bus {
            bus.close().await;
        }
        match run {
            Ok(report) => {
                if let Some(version) = &report.server_version {
                    about.versions.insert("server".to_owned(), version.clone());
                }
                let recording = Recording::new(report, about);
                if let Some(page) = page {
                    page.write(&recording.html(&format!("Load on {server}")))?;
                }
                if let Some(json) = json {
                    json.write(&serde_json::to_string(&recording).context("a recording is plain data")?)?;
                }
                report::show(&recording.report, self.remote.format())
            }
            Err(load::Error::NoCluster(reason)) => {
                Err(Error::Unreachable { server: server.to_owned(), reason: reason.to_string() })
            }
            Err(error @ load::Error::RunName) => Err(Error::Usage(error.to_string())),
        }
    }

    /// Where the load is put, and the bus that is to be closed after it.
    async fn target(&self, env: &Env) -> Result<(Arc<dyn Target>, Option<Opened>)> {
        let http = HttpTarget::with(self.remote.server(), self.remote.http()?, env.clone())
            .map_err(|error| Error::Usage(error.to_string()))?;
        let over = match self.over {
            Over::Http => return Ok((Arc::new(http), None)),
            Over::Nats => Transport::Nats,
            Over::Kafka => Transport::Kafka,
        };
        let mut config = self.source.load_or_refuse()?;
        config.bus = over;
        let bus = Opened::open(&config, Wants::Cluster, NAME, env).await?;
        let answer = if self.no_answers { Answer::None } else { Answer::Each };
        let target = BusTarget::new(bus.shared(), Arc::new(http), answer).await.map_err(anyhow::Error::new)?;
        Ok((Arc::new(target), Some(bus)))
    }

    fn mix(&self) -> Mix {
        let default = if self.soak { Mix::steady } else { Mix::lively };
        self.mix.clone().unwrap_or_else(default)
    }

    /// What was asked for, for the report.
    fn configuration(&self, options: &Options) -> BTreeMap<String, String> {
        let load = match &self.trace {
            Some(path) => {
                let speed = match self.speedup {
                    Speedup::Max => "as fast as the cluster takes it".to_owned(),
                    Speedup::Times(times) => format!("{times} times as fast as it was recorded"),
                };
                format!("the trace {}, {speed}", path.display())
            }
            None => self.shape.described(),
        };
        let mix = self.trace.is_none().then(|| self.mix().to_string());
        let tenants: Vec<String> = options.tenants.iter().map(|(name, weight)| format!("{name}={weight}")).collect();
        let named = [
            ("load", Some(load)),
            ("mix", mix),
            ("tenants", Some(tenants.join(","))),
            ("in flight, at most", Some(options.in_flight.to_string())),
            ("calls at once, at most", Some(options.senders.to_string())),
            ("seed", Some(options.seed.to_string())),
            ("soak", self.soak.then(|| format!("yes; at most {} bytes a job", self.soak_growth))),
            ("audit at the end", Some(if options.audit { "yes" } else { "no" }.to_owned())),
            ("submitted over", Some(self.over.name().to_owned())),
            ("answers", self.no_answers.then(|| "not asked for".to_owned())),
            ("server", Some(self.remote.server().to_owned())),
        ];
        named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// The workload, and of how many jobs it is.
    fn workload(&self) -> Result<(workload::Workload, u64)> {
        if let Some(path) = &self.trace {
            let file = File::open(path).with_context(|| format!("cannot read the trace {}", path.display()))?;
            let trace = Trace::read(file).with_context(|| path.display().to_string())?;
            let total = trace.events.len() as u64;
            return Ok((workload::trace(trace, self.speedup), total));
        }
        let shape = self.shape.shape()?;
        if self.soak && shape.seconds() < SOAK_SECONDS_MIN {
            return Err(Error::Usage("--soak: a --duration of less than a minute tells nothing".to_owned()));
        }
        let mix = self.mix();
        let total = shape.due_by(shape.seconds()) as u64;
        Ok((workload::shaped(shape, self.shape.arrivals(), &mix, self.seed), total))
    }
}

/// A file that a run is to write in the end. It is tried before the run; where there is then nothing
/// to write, an empty one that was not there before is taken away again.
struct Promised<'a> {
    path: &'a Path,
    /// Whether what lies there is only the try.
    empty: bool,
}

impl<'a> Promised<'a> {
    fn at(path: &'a Path) -> Result<Self> {
        let refused = |error| Error::Usage(format!("cannot write {}: {error}", path.display()));
        match File::options().write(true).create_new(true).open(path) {
            Ok(_) => Ok(Self { path, empty: true }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                File::options().append(true).open(path).map_err(refused)?;
                Ok(Self { path, empty: false })
            }
            Err(error) => Err(refused(error)),
        }
    }

    fn write(mut self, text: &str) -> Result<()> {
        self.empty = false;
        Ok(std::fs::write(self.path, text).with_context(|| format!("cannot write {}", self.path.display()))?)
    }
}

impl Drop for Promised<'_> {
    fn drop(&mut self) {
        if self.empty {
            let _ = std::fs::remove_file(self.path);
        }
    }
}
