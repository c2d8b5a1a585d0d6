//! `cellbus sim-managers`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_cell::config::MembersTls;
use cellbus_cell::{metrics, security};
use cellbus_simulator::managers::{Config, Latency};
use cellbus_simulator::remote::Service;
use cellbus_simulator::{Fleet, Inventory};
use clap::Args;

use crate::exit::{Error, Result};
use crate::{logging, output, shutdown};

/// How often new certificates are looked for.
const RELOAD: Duration = Duration::from_secs(2);

/// Serve simulated managers to cells in other processes, until stopped
#[derive(Debug, Args)]
pub(super) struct Command {
    /// How many managers
    #[arg(long, value_name = "N", default_value_t = 8)]
    managers: u64,
    /// How many hosts each of them has
    #[arg(long, value_name = "N", default_value_t = 100)]
    hosts_per_manager: u64,
    /// So many of its hosts share a datastore, which has the disk of all of them [default: each has its own disk]
    #[arg(long, value_name = "N")]
    hosts_per_datastore: Option<std::num::NonZeroU32>,
    /// How many VMs stand on each of them that are not Cellbus's, to be adopted
    #[arg(long, value_name = "N", default_value_t = 0)]
    foreign_vms: u32,
    /// Where to listen; port 0 takes any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7080")]
    listen: SocketAddr,
    /// Keep their state in this directory [default: in memory only]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How long operations take: none, fast (median 20 ms), realistic, or a median of your own such as 500ms
    #[arg(long, value_name = "KIND", default_value = "fast")]
    latency: Latency,
    /// The CA that signs members (PEM); with it, cells alone are served, by their certificates
    #[arg(long, value_name = "FILE", requires_all = ["members_cert", "members_key"])]
    members_ca: Option<PathBuf>,
    /// The certificate that this process has of it (PEM)
    #[arg(long, value_name = "FILE", requires = "members_ca")]
    members_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "members_ca")]
    members_key: Option<PathBuf>,
    /// Serve them beyond this machine without certificates, to anybody who can reach the address
    #[arg(long)]
    insecure: bool,
    /// What is logged: a level or directives
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let files = match (self.members_ca, self.members_cert, self.members_key) {
            (Some(ca), Some(cert), Some(key)) => Some(MembersTls { ca, cert, key }),
            (_, _, _) => None,
        };
        if !self.listen.ip().is_loopback() && files.is_none() && !self.insecure {
            return Err(Error::Usage(format!(
                "--listen {}: whoever reaches it can do anything to these managers; --members-ca, --members-cert and \
                 --members-key let cells alone in, --insecure says that this is meant",
                self.listen
            )));
        }
        logging::init(cellbus_cell::config::LogFormat::Text, &self.log_level)?;
        let stop = shutdown::on_signal(env)?;
        let tls = match &files {
            None => None,
            Some(files) => {
                let figures = metrics::security::Metrics::new(&prometheus::Registry::new()).context("metrics")?;
                let tls = security::MembersTls::open(files, env, &figures).await.map_err(anyhow::Error::from)?;
                env.spawn("security files", tls.clone().run(RELOAD, env.clone(), stop.clone()));
                Some(tls)
            }
        };
        let hosts = self.managers.saturating_mul(self.hosts_per_manager);
        let mut inventory =
            Inventory::generate(hosts, self.managers).map_err(|error| Error::Usage(error.to_string()))?;
        if let Some(hosts) = self.hosts_per_datastore {
            inventory.managers.iter_mut().for_each(|manager| manager.share(hosts.get()));
        }
        let config =
            Config { dir: self.data, latency: self.latency, foreign: self.foreign_vms, ..Config::new(inventory) };
        let fleet = Fleet::open(config, env.clone()).await.context("the simulated managers cannot be opened")?;
        let service = Service::bind(fleet.clone(), env.clone(), self.listen)
            .await
            .with_context(|| format!("cannot listen on {}", self.listen))?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let service = service.with_tls(tls);
        let address = service.address().context("the address is not known")?;
        output::line(&format!("listening on {scheme}://{address}"))?;
        service.run(stop).await.context("serving has failed")?;
        fleet.close().await;
        Ok(())
    }
}
