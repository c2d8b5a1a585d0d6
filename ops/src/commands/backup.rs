//! `cellbus backup`.

use std::path::PathBuf;
use std::sync::Arc;

use cellbus_bus::Env;
use cellbus_bus::embedded::Embedded;
use cellbus_cell::backup::{self, Taken};
use cellbus_cell::config::{Config, Transport};
use cellbus_simulator::cluster::bus_config;
use clap::Args;

use crate::exit::{Error, Result};
use crate::settings::Source;
use crate::{nats, output};

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
        let taken = match config.bus {
            Transport::Nats => {
                let bus = nats::attach(&config, NAME, env).await?;
                let taken = backup::take(bus.as_ref(), env, &self.file).await;
                bus.close().await;
                taken
            }
            Transport::Embedded => {
                let bus = embedded(&config, env)?;
                let taken = backup::take(bus.as_ref(), env, &self.file).await;
                bus.close().await;
                taken
            }
            Transport::Kafka => return Err(Error::Usage("this build has no Kafka".to_owned())),
        };
        let Taken { at, summary, took } = taken.map_err(failed)?;
        let file = self.file.display();
        output::line(&format!(
            "{file}: {} bytes, taken at {} in {:.1} s",
            summary.bytes,
            at.rfc3339(),
            took.as_secs_f64()
        ))?;
        output::line(&format!(
            "{} shards, {} entries behind their snapshots, {} unread items, {} messages in the ingress",
            summary.shards, summary.entries, summary.items, summary.ingress
        ))
    }
}

/// The bus in a data directory that is there.
fn embedded(config: &Config, env: &Env) -> Result<Arc<Embedded>> {
    let bus = bus_config(config);
    if !bus.dir.join("cluster").exists() {
        return Err(failed(backup::Error::NoCluster));
    }
    Embedded::open(bus, env.clone()).map_err(|error| Error::Other(anyhow::Error::new(error)))
}

/// With its code, which the page of the error is named by.
pub(super) fn failed(error: backup::Error) -> Error {
    let code = error.code();
    Error::Failed(format!("{:#} ({code})", anyhow::Error::new(error)))
}
