//! One process of a cluster of several, whatever it is there for: its bus, its node, its HTTP server.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_bus::contract::Role;
use cellbus_bus::format::Build;
use cellbus_cell::backup;
use cellbus_cell::config::scale::Launcher;
use cellbus_cell::config::{Config, Transport};
use cellbus_cell::http::{self, App, Served};
use cellbus_cell::metrics::{self, Metrics};
use cellbus_cell::node::{self, Node, Reach};
use cellbus_cell::security::Security;
use cellbus_simulator::drivers::AllDrivers;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::{Opened, Wants};
use crate::exit::{Error, Result};
use crate::settings::Settings;
use crate::{drivers, logging, output, shutdown};

/// How long cells may take to hand over and requests under way to end. What is not done by then
/// others take up when the lease has run out.
const DRAIN: Duration = Duration::from_secs(20);

/// Runs until it is stopped, or until its cells have been drained by an operator.
pub(crate) async fn run(settings: &Settings, role: Role, build: Build, env: &Env) -> Result<()> {
    let config = settings.load_or_refuse()?;
    if role == Role::Controller && matches!(config.scale.launcher, Launcher::Embedded) {
        let advice = "a controller of its own process cannot start cells in it: set `scale.launcher` to process, command, kubernetes or none";
        return Err(Error::Usage(advice.to_owned()));
    }
    if let Some(lacks) = config.lacks() {
        return Err(Error::Usage(lacks.to_owned()));
    }
    let level = logging::init(config.log.format, &config.log.level)?;
    let stop = shutdown::on_signal(env)?;
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let listened = listener.local_addr().context("the address is not known")?;
    let metrics = Metrics::new(prometheus::Registry::new()).context("metrics")?;
    let figures = metrics::security::Metrics::new(metrics.registry()).context("metrics")?;
    let security = Security::open(&config, env, figures).await.map_err(anyhow::Error::from)?;
    env.spawn("security files", security.clone().run(config.reload_interval, env.clone(), stop.clone()));
    let address = match &config.advertise {
        Some(address) => address.clone(),
        None if listened.ip().is_unspecified() => {
            let advice =
                "`listen` names every address of this machine: say in `advertise` where other processes reach it";
            return Err(Error::Usage(advice.to_owned()));
        }
        None => format!("{}://{listened}", security.scheme()),
    };
    let connection = bus(&config, role, env).await?;
    let bus = connection.shared();
    let record = node::cluster_record(bus.as_ref(), env, config.shards, build.formats).await;
    let record = record.map_err(anyhow::Error::from)?;
    let drivers = AllDrivers::among_others(&config, security.members(), &drivers::factories(), env).await;
    let drivers = drivers.map_err(anyhow::Error::from)?;
    let reach = Reach::Http {
        address,
        tls: security.members().cloned(),
        metrics: metrics::peers::Metrics::new(metrics.registry()).context("metrics")?,
    };
    let (scale, backups, cluster_id) = (config.scale.settings.clone(), config.backup.clone(), record.cluster_id);
    let settings = http::Settings { security: security.clone(), ..http::Settings::of(&config) };
    let parts = node::Parts {
        bus,
        record,
        names: drivers.names(),
        fronts: drivers.fronts(&config),
        drivers: Arc::new(drivers),
        config,
        role,
        build,
        reach,
        security: security.clone(),
    };
    let node = Node::start(parts, env.clone()).await;
    if let (Some(backups), Some(controller)) = (backups, node.controller().cloned()) {
        let figures = metrics::backup::Metrics::new(metrics.registry()).context("metrics")?;
        let (bus, id) = (connection.shared(), cluster_id);
        let leads = move || controller.status().leads;
        let service = backup::Service::new(backups, bus, env.clone(), id, figures, leads);
        env.spawn("backups", service.run(stop.clone()));
    }
    let served = Arc::new(Served::new(node.gateway().clone()).scaled(scale));
    let settings = http::Settings { members: node.members(), ..settings };
    let metrics = metrics.beside(node.gateway().process().registry());
    let metrics = match &connection {
        Opened::Nats(bus) => metrics.on_nats(bus.clone()).context("metrics")?,
        Opened::Kafka(bus) => metrics.on_kafka(bus.clone()).context("metrics")?,
        Opened::Embedded(_) => metrics,
    };
    let app = App::new(served, env.clone(), settings, Arc::new(metrics), Arc::new(level));
    let (serving, stop_serving) = (TaskTracker::new(), CancellationToken::new());
    env.spawn("http", serving.track_future(http::serve(app, listener, stop_serving.clone())));
    serving.close();
    output::line(&format!("listening on {}://{listened}", security.scheme()))?;
    tracing::info!(address = %listened, "serving");

    tokio::select! {
        biased;
        () = stop.cancelled() => tracing::info!("draining; a second signal stops at once"),
        () = node.cells_ended() => {}
    }
    let outdated = node.outdated();
    if outdated.is_none() && !stop.is_cancelled() {
        tracing::info!("drained by an operator");
    }
    // Cells first: while they hand over, the others still ask them.
    let handed_over = node.stop(DRAIN).await;
    // What was taken from ingress and not acknowledged goes back at once: others need not wait for it.
    connection.close().await;
    stop_serving.cancel();
    if env.timeout(DRAIN, serving.wait()).await.is_none() {
        tracing::warn!("requests under way were cut off");
    }
    if !handed_over {
        tracing::warn!("not everything was handed over in time; others take it up when the lease has run out");
    }
    tracing::info!("stopped");
    match outdated {
        None => Ok(()),
        Some(mismatch) => Err(Error::Failed(format!("{}: {mismatch}", mismatch.code()))),
    }
}

async fn bus(config: &Config, role: Role, env: &Env) -> Result<Opened> {
    let name = match role {
        Role::Cell => "cellbus cell",
        Role::Directory => "cellbus directory",
        Role::Controller => "cellbus controller",
    };
    match config.bus {
        Transport::Nats | Transport::Kafka => Opened::open(config, Wants::Room, name, env).await,
        Transport::Embedded => Err(Error::Usage(format!(
            "{name} is one process of several, which need a bus that they share: set bus = \"nats\" or \"kafka\"; `cellbus up` is one process with everything"
        ))),
    }
}
