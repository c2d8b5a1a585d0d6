//! `cellbus sim-managers`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_simulator::managers::{Config, Latency};
use cellbus_simulator::remote::Service;
use cellbus_simulator::{Fleet, Inventory};
use clap::Args;

use crate::exit::{Error, Result};
use crate::{logging, output, shutdown};

/// Serve simulated managers to cells in other processes, until stopped
#[derive(Debug, Args)]
pub(super) struct Command {
    /// How many managers
    #[arg(long, value_name = "N", default_value_t = 8)]
    managers: u64,
    /// How many hosts each of them has
    #[arg(long, value_name = "N", default_value_t = 100)]
    hosts_per_manager: u64,
    /// Where to listen; port 0 takes any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7080")]
    listen: SocketAddr,
    /// Keep their state in this directory [default: in memory only]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How long operations take: none, fast (median 20 ms) or realistic
    #[arg(long, value_name = "KIND", default_value = "fast")]
    latency: Latency,
    /// Serve them beyond this machine, to anybody who can reach the address
    #[arg(long)]
    insecure: bool,
    /// What is logged: a level or directives
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        if !self.listen.ip().is_loopback() && !self.insecure {
            return Err(Error::Usage(format!(
                "--listen {}: whoever reaches it can do anything to these managers; --insecure says that this is meant",
                self.listen
            )));
        }
        logging::init(cellbus_cell::config::LogFormat::Text, &self.log_level)?;
        let stop = shutdown::on_signal(env)?;
        let hosts = self.managers.saturating_mul(self.hosts_per_manager);
        let inventory = Inventory::generate(hosts, self.managers).map_err(|error| Error::Usage(error.to_string()))?;
        let config = Config { dir: self.data, latency: self.latency, ..Config::new(inventory) };
        let fleet = Fleet::open(config, env.clone()).await.context("the simulated managers cannot be opened")?;
        let service = Service::bind(fleet.clone(), env.clone(), self.listen)
            .await
            .with_context(|| format!("cannot listen on {}", self.listen))?;
        let address = service.address().context("the address is not known")?;
        output::line(&format!("listening on http://{address}"))?;
        service.run(stop).await.context("serving has failed")?;
        fleet.close().await;
        Ok(())
    }
}
