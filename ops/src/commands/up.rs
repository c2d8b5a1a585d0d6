//! `cellbus up`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_cell::backup;
use cellbus_cell::config::Transport;
use cellbus_cell::http::{self, App, LogLevel, Served};
use cellbus_cell::metrics::{self, Metrics};
use cellbus_cell::security::Security;
use cellbus_simulator::cluster::{Cluster, Parts};
use clap::Args;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::exit::{Error, Result};
use crate::inventory::Size;
use crate::settings::Settings;
use crate::{drivers, logging, output, shutdown};

/// How long cells may take to hand over and requests under way to end. What is not done by then
/// is taken up at the next start, as after a crash.
const DRAIN: Duration = Duration::from_secs(20);

/// Everything in one process, until it is stopped
///
/// Simulated managers, cells, directory and bus run here, with their data in --data. It says where
/// it listens on standard output. The first SIGTERM or Ctrl-C drains it, the second stops it at
/// once, which loses nothing either.
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    size: Size,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let config = self.settings.load_or_refuse()?;
        let level = logging::init(config.log.format, &config.log.level)?;
        let stop = shutdown::on_signal(env)?;
        if let Some(lacks) = config.lacks() {
            return Err(Error::Usage(lacks.to_owned()));
        }
        if config.bus != Transport::Embedded {
            return Err(Error::Usage(
                "`up` is one process with a bus of its own: leave `bus` out, or start `cellbus cell` and `cellbus directory`"
                    .to_owned(),
            ));
        }
        let size = self.size.or_remembered(&config.data_dir, &config, env)?;
        let inventory = size.inventory(&config)?;
        let listener =
            TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr().context("the address is not known")?;
        let scale = config.scale.settings.clone();
        let metrics = Metrics::new(prometheus::Registry::new()).context("metrics")?;
        let figures = metrics::security::Metrics::new(metrics.registry()).context("metrics")?;
        let security = Security::open(&config, env, figures).await.map_err(anyhow::Error::from)?;
        env.spawn("security files", security.clone().run(config.reload_interval, env.clone(), stop.clone()));
        let http = http::Settings { security: security.clone(), ..http::Settings::of(&config) };

        let (data, backups) = (config.data_dir.clone(), config.backup.clone());
        let parts = Parts { config, inventory, latency: size.latency, managers_durable: true };
        let cluster = Cluster::open_with(parts, &security, &drivers::factories(), env.clone()).await;
        let cluster = cluster.map_err(anyhow::Error::from)?;
        size.remember(&data, env)?;
        metrics::embedded::register(metrics.registry(), Arc::clone(cluster.bus())).context("metrics")?;
        if let Some(backups) = backups {
            let figures = metrics::backup::Metrics::new(metrics.registry()).context("metrics")?;
            let (bus, id) = (Arc::clone(cluster.bus()), cluster.record().cluster_id);
            let service = backup::Service::new(backups, bus, env.clone(), id, figures, || true);
            env.spawn("backups", service.run(stop.clone()));
        }
        let served = Arc::new(Served::new(cluster.gateway().clone()).scaled(scale));
        let metrics = Arc::new(metrics.beside(cluster.gateway().process().registry()));
        let app = App::new(served, env.clone(), http, metrics, Arc::new(level));
        let serving = TaskTracker::new();
        env.spawn("http", serving.track_future(http::serve(app, listener, stop.clone())));
        serving.close();
        output::line(&format!("listening on {}://{address}", security.scheme()))?;
        tracing::info!(%address, "serving");

        stop.cancelled().await;
        tracing::info!("draining; a second signal stops at once");
        // Requests first: while they end, the cells that answer them are still there.
        if env.timeout(DRAIN, serving.wait()).await.is_none() {
            tracing::warn!("requests under way were cut off");
        }
        if !cluster.stop(DRAIN).await {
            tracing::warn!("not everything was handed over in time; the next start takes it up");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

impl LogLevel for logging::Level {
    fn level(&self) -> String {
        self.get()
    }
    fn set(&self, level: &str) -> std::result::Result<(), String> {
        self.change(level)
    }
}
