//! The NATS bus, as configured.

use std::sync::Arc;

use cellbus_bus::Env;
use cellbus_bus::nats::{self, Auth, Nats, Tls};
use cellbus_cell::config::{Config, SignIn};

use crate::exit::{Error, Result};
use crate::secret::{from_file, secret};

/// Connects, and checks or makes what the cluster keeps there.
pub(crate) async fn open(config: &Config, name: &str, env: &Env) -> Result<Arc<Nats>> {
    let config = of(config, name)?;
    Nats::open(config, env.clone()).await.map_err(|error| Error::Other(anyhow::Error::new(error)))
}

/// Connects to a cluster that is there, and changes nothing of it.
pub(crate) async fn attach(config: &Config, name: &str, env: &Env) -> Result<Arc<Nats>> {
    let config = of(config, name)?;
    Nats::attach(config, env.clone()).await.map_err(|error| Error::Other(anyhow::Error::new(error)))
}

fn of(config: &Config, name: &str) -> Result<nats::Config> {
    let nats = &config.nats;
    let auth = match &nats.sign_in {
        SignIn::None => Auth::None,
        SignIn::Token(token) => Auth::Token(secret(token)?),
        SignIn::User(user, password) => Auth::User { user: user.clone(), password: secret(password)? },
        SignIn::Nkey(seed) => Auth::Nkey(secret(seed)?),
        SignIn::Credentials(file) => Auth::Credentials(from_file(file)?),
    };
    let usual = nats::Config::new(nats.urls.clone());
    Ok(nats::Config {
        name: name.to_owned(),
        auth,
        tls: Tls {
            required: nats.tls_required,
            ca_file: nats.ca.clone(),
            client_files: nats.certificate.clone(),
            ..usual.tls
        },
        replicas: nats.replicas,
        lanes: nats.lanes,
        prefix: nats.prefix.clone(),
        limits: nats::Limits {
            ingress_bytes_max: nats.ingress_bytes_max,
            lane_bytes_max: nats.lane_bytes_max,
            snapshots_bytes_max: nats.snapshots_bytes_max,
            events_keep: config.events.keep_max,
            events_bytes_max: config.events.keep_max_bytes,
            ..usual.limits
        },
        ..usual
    })
}
