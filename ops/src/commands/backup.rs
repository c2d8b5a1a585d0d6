//! `cellbus backup`.

use std::path::PathBuf;

use cellbus_bus::Env;
use cellbus_cell::backup::{self, Taken};
use clap::Args;

use crate::bus::{Opened, Wants};
use crate::exit::Result;
use crate::output;
use crate::settings::Source;

/// The name by which a bus knows this process.
const NAME: &str = "cellbus backup";

/// Write everything that the bus holds of the cluster to a file: snapshots, logs, unread jobs
///
/// What was acknowledged before it began is in it. On NATS the cluster runs on meanwhile. The embedded bus belongs to
/// one process: stop `cellbus up` first, or have it take backups itself (backup.dir). Restore it with `cellbus restore`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Where it is written; one that is there is replaced once the new one is whole
    file: PathBuf,
    #[command(flatten)]
    source: Source,
    /// Where the embedded bus has its data (data_dir)
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let config = self.source.load_with_data(self.data.as_deref())?;
        let opened = Opened::open(&config, Wants::Cluster, NAME, env).await?;
        let taken = backup::take(opened.bus(), env, &self.file).await;
        opened.close().await;
        let Taken { at, summary, took } = taken?;
        let file = self.file.display();
        output::line(&format!(
            "{file}: {} bytes, taken at {} in {:.1} s",
            summary.bytes,
            at.rfc3339(),
            took.as_secs_f64()
        ))?;
        output::line(&format!(
            "{} shards, {} entries behind their snapshots, {} unread messages of queues, {} messages in the ingress",
            summary.shards, summary.entries, summary.items, summary.ingress
        ))
    }
}
