//! `cellbus restore`.

use std::path::PathBuf;

use cellbus_bus::Env;
use cellbus_cell::backup;
use clap::Args;

use crate::bus::{Opened, Wants};
use crate::exit::Result;
use crate::output;
use crate::settings::Source;

/// The name by which a bus knows this process.
const NAME: &str = "cellbus restore";

/// Put a backup onto an empty bus of any transport, with as many shards as are configured
///
/// Stop every process of the old cluster first. The whole file is checked before anything is written. Afterwards start
/// the processes as ever, and run `cellbus audit`: until it has read every manager no VM is made, and until it was clean
/// at a manager, or `cellbus audit --accept` says that what it found is understood, nothing is removed there.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// From `cellbus backup`, or from backup.dir
    file: PathBuf,
    #[command(flatten)]
    source: Source,
    /// Where the embedded bus is to have its data (data_dir)
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let config = self.source.load_with_data(self.data.as_deref())?;
        let opened = Opened::open(&config, Wants::Room, NAME, env).await?;
        let restored = backup::restore(opened.bus(), env, &self.file, config.shards).await;
        opened.close().await;
        let restored = restored?;
        output::line(&format!(
            "restored as cluster {} with {} shards in {:.1} s: {} VMs, {} open jobs, {} unread messages of queues, {} messages in the ingress",
            restored.record.cluster_id,
            restored.record.shards.get(),
            restored.took.as_secs_f64(),
            restored.vms,
            restored.jobs_open,
            restored.summary.items,
            restored.summary.ingress,
        ))?;
        output::line(&format!(
            "as of {}; epochs and operations go on above {}",
            restored.taken_at.rfc3339(),
            restored.generation
        ))?;
        output::line("start its processes, then run `cellbus audit`: no VM is made or removed before")
    }
}
