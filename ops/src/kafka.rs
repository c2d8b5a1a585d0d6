//! The Kafka bus, as configured.

use std::sync::Arc;

use cellbus_bus::Env;
use cellbus_bus::kafka::{self, Auth, Kafka, OpenError, Tls};
use cellbus_cell::config::{Config, KafkaSignIn};

use crate::exit::{Error, Result};
use crate::secret::secret;

/// Connects, and checks or makes what the cluster keeps there.
pub(crate) async fn open(config: &Config, name: &str, env: &Env) -> Result<Arc<Kafka>> {
    Kafka::open(of(config, name)?, env.clone()).await.map_err(with_code)
}

/// Connects to a cluster that is there, and changes nothing of it.
pub(crate) async fn attach(config: &Config, name: &str, env: &Env) -> Result<Arc<Kafka>> {
    Kafka::attach(of(config, name)?, env.clone()).await.map_err(with_code)
}

/// With its code, which the page of the error is named by.
fn with_code(error: OpenError) -> Error {
    let code = error.code();
    Error::Other(anyhow::Error::new(error).context(format!("the Kafka bus does not open ({code})")))
}

fn of(config: &Config, name: &str) -> Result<kafka::Config> {
    let kafka = &config.kafka;
    let auth = match &kafka.sign_in {
        None => Auth::None,
        Some(KafkaSignIn::User { mechanism, user, password }) => {
            Auth::User { mechanism: *mechanism, user: user.clone(), password: secret(password)? }
        }
        Some(KafkaSignIn::Token(file)) => Auth::Token { file: file.clone() },
    };
    Ok(kafka::Config {
        // Brokers count by it, and take no spaces in it.
        name: name.replace(' ', "-"),
        auth,
        tls: Tls { enabled: kafka.tls, ca_file: kafka.ca.clone(), client_files: kafka.certificate.clone() },
        replicas: kafka.replicas,
        shards: config.shards.get(),
        tenant_partitions: kafka.tenant_partitions,
        prefix: kafka.prefix.clone(),
        events_bytes_max: config.events.keep_max_bytes,
        ..kafka::Config::new(kafka.brokers.clone())
    })
}
