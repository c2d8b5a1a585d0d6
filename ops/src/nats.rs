//! The NATS bus, as configured.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_bus::nats::{self, Auth, Nats, Secret, Tls};
use cellbus_cell::config::{Config, SecretFrom, SignIn};

use crate::exit::{Error, Result};

/// Far above any token, password, seed or credentials file.
const SECRET_BYTES_MAX: u64 = 64 << 10;

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

fn secret(from: &SecretFrom) -> Result<Secret> {
    match from {
        SecretFrom::Given(secret) => Ok(Secret::new(secret.expose())),
        SecretFrom::File(file) => from_file(file),
    }
}

/// What the file holds, without the newline that editors leave behind it.
fn from_file(file: &Path) -> Result<Secret> {
    let mut text = String::new();
    fs::File::open(file)
        .and_then(|opened| opened.take(SECRET_BYTES_MAX).read_to_string(&mut text))
        .with_context(|| format!("cannot read the secret in {}", file.display()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(Error::Usage(format!("{} is empty: it is to hold a secret", file.display())));
    }
    Ok(Secret::new(text))
}
