//! `cellbus demo`.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_cell::config::{Config, LogFormat, Override, Sources};
use cellbus_cell::gateway::ScaleChange;
use cellbus_directory::record::Operator;
use cellbus_directory::scale::Mode;
use cellbus_simulator::cluster::{Cluster, Parts};
use cellbus_simulator::load::workload::{self, Mix, Planned, Task, Workload};
use cellbus_simulator::load::{self, Counts, Options, Phase};
use cellbus_simulator::managers::Latency;
use clap::Args;
use serde_json::Value;

use crate::exit::{Error, Result, note};
use crate::inventory::Size;
use crate::output::Format;
use crate::progress::Progress;
use crate::{logging, report, shutdown};

/// How long 500 managers may take to be read on a slow machine.
const READY: Duration = Duration::from_secs(120);
const DRAIN: Duration = Duration::from_secs(20);
/// How long added cells may take to be gone when all is done, one after another.
const COLLAPSE: Duration = Duration::from_secs(15);
/// Between two looks at how many there are.
const LOOK: Duration = Duration::from_millis(100);
/// Calls that one cell has under way at once. An operation takes 20 ms, so that a cell does some
/// thousands a second, and more cells do more, until the machine has no more processor time.
const IN_FLIGHT_MAX: u32 = 48;
/// Cells that may be added.
const ADDED_MAX: u32 = 2;
/// Power operations for each hundred VMs.
const OPERATIONS_PERCENT: u64 = 20;

/// Everything in one process, with a workload, a cell that is killed, and a summary
///
/// Simulated managers, cells, directory and bus run here, in a temporary directory, as durable as
/// ever. VMs are made, a mix of power operations follows, cells are added while the queue is backed
/// up, one is killed half way, VMs are looked up, and the directory is audited against what the managers
/// hold; then the added cells go again. Exit code 1 unless everything was right.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Hosts of 64 vCPUs, 512 GiB and 10 TiB
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    hosts: u64,
    /// Managers that the hosts are spread over
    #[arg(long, value_name = "N", default_value_t = 500)]
    managers: u64,
    /// VMs to make
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    vms: u64,
    /// Cells to begin with
    #[arg(long, value_name = "N", default_value_t = 4)]
    cells: u32,
    /// Submit the jobs of this file as well, CloudEvents, one JSON a line
    #[arg(long, value_name = "FILE")]
    jobs: Option<PathBuf>,
    /// How long simulated managers take: none, fast (median 20 ms), realistic, or a median of your own such as 500ms
    #[arg(long, value_name = "KIND", default_value = "fast")]
    latency: Latency,
    /// How to print the summary; json is one object, and stable
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// What is logged besides: a level or directives
    #[arg(long, value_name = "LEVEL", default_value = "error")]
    log_level: String,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        logging::init(LogFormat::Text, &self.log_level)?;
        let jobs = self.jobs.as_deref().map(events_of).transpose()?.unwrap_or_default();
        let stop = shutdown::on_signal(env)?;
        // Dropped, and so removed, whatever becomes of the demo.
        let folder = tempfile::Builder::new().prefix("cellbus-demo-").tempdir().context("no temporary directory")?;

        let progress = Progress::begin(env, "starting", 0);
        let size =
            Size { hosts: Some(self.hosts), managers: Some(self.managers), inventory: None, latency: self.latency };
        let config = self.config(folder.path())?;
        let inventory = size.inventory(&config)?;
        let parts = Parts { config, inventory, latency: self.latency, managers_durable: true };
        let cluster = Cluster::open(parts, env.clone()).await.map_err(anyhow::Error::from)?;
        cluster.ready(READY).await.context("the cluster did not become ready")?;
        progress.end(env, &format!("{} cells, {} managers, {} hosts", self.cells, self.managers, self.hosts));

        let operations = self.vms * OPERATIONS_PERCENT / 100;
        let workload: Workload = Box::new(
            workload::provisions(self.vms, 1)
                .chain(workload::operations(operations, &Mix::power(), 2))
                .chain(jobs.into_iter().map(|event| Planned { due: None, task: Task::Event(event) })),
        );
        let total = self.vms + operations;
        let target = cluster.target();
        let watched = Arc::new(Watched {
            shown: report::Watched::new(env.clone(), total),
            kill_at: total / 2,
            killed: AtomicBool::new(false),
            cluster: Mutex::new(cluster),
        });
        let options = Options::flood("demo".parse().context("demo is a tenant")?);
        let run = load::run(workload, target, options, watched.clone(), stop, env.clone()).await;
        watched.shown.end();
        let mut report = run.context("the workload could not begin")?;

        let watched = Arc::into_inner(watched).context("the run has let go of what watched it")?;
        let cluster = watched.cluster.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.cells_start = Some(u64::from(self.cells));
        // Nothing was to be read of it: unknown is not zero.
        report.cells_end = Some(collapsed(&cluster, env).await).filter(|cells| *cells > 0);
        let violations = cluster.fleet().violations();
        cluster.stop(DRAIN).await;
        report::show(&report, self.output)?;
        if violations.double_creates + violations.overfilled_hosts > 0 {
            return Err(Error::Failed(format!("the managers saw what must not be: {violations:?}")));
        }
        Ok(())
    }
}

impl Command {
    /// The defaults, whatever the file and the environment of this place say.
    fn config(&self, data: &std::path::Path) -> Result<Config> {
        let set = |key: &str, value: String, flag: &str| Override { key: key.to_owned(), value, flag: flag.to_owned() };
        let overrides = vec![
            set("data_dir", data.display().to_string(), "TMPDIR"),
            set("cells", self.cells.to_string(), "--cells"),
            set("cell.in_flight_max", IN_FLIGHT_MAX.to_string(), "--cells"),
            // All of it is over in half a minute, so that it must not wait for minutes.
            set("scale.rate_window", "2s".to_owned(), "--cells"),
            set("scale.out_window", "1s".to_owned(), "--cells"),
            set("scale.out_pause", "1s".to_owned(), "--cells"),
            set("scale.in_window", "1s".to_owned(), "--cells"),
            set("scale.max", self.cells.saturating_add(ADDED_MAX).to_string(), "--cells"),
            set("scale.in_pause", "100ms".to_owned(), "--cells"),
        ];
        Config::load(Sources { overrides, ..Sources::default() })
            .map_err(|errors| Error::Usage(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
    }
}

/// Waits until the cells that were added are gone again, and gives how many there are then. While the
/// directory was audited they stayed: a manager that is just handed over cannot be read.
async fn collapsed(cluster: &Cluster, env: &Env) -> u64 {
    let by = Operator { who: "demo".to_owned(), from: "this process".to_owned() };
    let change = ScaleChange { mode: Some(Mode::Auto), ..ScaleChange::default() };
    let configured = cluster.scale();
    if let Err(error) = cluster.gateway().set_scale(&configured, &change, by).await {
        note(&format!("the autoscaler was not told to go on: {error}"));
    }
    let began = env.mono();
    loop {
        let (cells, settled) = match cluster.gateway().scale_shown(&configured).await {
            Ok(shown) => (shown.cells_active + shown.cells_draining, shown.cells_active <= configured.min),
            Err(_) => (0, false),
        };
        if (settled && cells <= configured.min) || env.mono().since(began) > COLLAPSE {
            return u64::from(cells);
        }
        env.sleep(LOOK).await;
    }
}

/// Shows the run, and kills a cell half way.
struct Watched {
    shown: report::Watched,
    kill_at: u64,
    killed: AtomicBool,
    cluster: Mutex<Cluster>,
}

impl Watched {
    /// The size stays as it is while everything is checked.
    fn pause(&self) {
        let (gateway, configured, env) = {
            let cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
            (cluster.gateway().clone(), cluster.scale(), cluster.env().clone())
        };
        env.spawn("demo: pause", async move {
            let by = Operator { who: "demo".to_owned(), from: "this process".to_owned() };
            let change = ScaleChange { mode: Some(Mode::Paused), ..ScaleChange::default() };
            if let Err(error) = gateway.set_scale(&configured, &change, by).await {
                note(&format!("the autoscaler could not be paused: {error}"));
            }
        });
    }
}

impl load::Progress for Watched {
    fn phase(&self, phase: Phase) {
        self.shown.phase(phase);
        if phase == Phase::Checking {
            self.pause();
        }
    }
    fn counts(&self, counts: &Counts, open: usize) {
        self.shown.counts(counts, open);
        if counts.succeeded + counts.failed >= self.kill_at && !self.killed.swap(true, Ordering::Relaxed) {
            let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(cell) = cluster.kill_cell() {
                note(&format!("killed {cell}; the others take its shards over when its lease has run out"));
            }
        }
    }
}

/// The events of a file, one JSON after another.
fn events_of(path: &std::path::Path) -> Result<Vec<Value>> {
    let file: Box<dyn Read> = Box::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?);
    serde_json::Deserializer::from_reader(BufReader::new(file))
        .into_iter::<Value>()
        .enumerate()
        .map(|(index, event)| {
            event.map_err(|error| Error::Failed(format!("{}: event {}: {error}", path.display(), index + 1)))
        })
        .collect()
}
