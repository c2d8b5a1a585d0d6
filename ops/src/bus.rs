//! The bus of a cluster, for a command that is no part of it: any transport, opened and closed again.

use std::sync::Arc;

use cellbus_bus::embedded::Embedded;
use cellbus_bus::kafka::Kafka;
use cellbus_bus::nats::Nats;
use cellbus_bus::{Bus, Env};
use cellbus_cell::backup;
use cellbus_cell::config::{Config, Transport};
use cellbus_simulator::cluster::bus_config;

use crate::exit::{Error, Result};
use crate::{kafka, nats};

/// Whether there is to be a cluster already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// There is: nothing is made where there is none.
    Cluster,
    /// There is none: what a cluster keeps things in is made.
    Room,
}

/// An open bus.
pub(crate) enum Opened {
    Nats(Arc<Nats>),
    Kafka(Arc<Kafka>),
    Embedded(Arc<Embedded>),
}

impl Opened {
    /// Opens what is configured, and is known to it by this name.
    pub(crate) async fn open(config: &Config, wants: Wants, name: &str, env: &Env) -> Result<Self> {
        match config.bus {
            Transport::Nats => {
                let bus = match wants {
                    Wants::Cluster => nats::attach(config, name, env).await?,
                    Wants::Room => nats::open(config, name, env).await?,
                };
                Ok(Self::Nats(bus))
            }
            Transport::Embedded => {
                let bus = bus_config(config);
                // Opening would make the directory that a wrong name stands for.
                if wants == Wants::Cluster && !bus.dir.join("cluster").exists() {
                    return Err(backup::Error::NoCluster.into());
                }
                let bus = Embedded::open(bus, env.clone()).map_err(|error| Error::Other(anyhow::Error::new(error)))?;
                Ok(Self::Embedded(bus))
            }
            Transport::Kafka => Ok(Self::Kafka(match wants {
                Wants::Cluster => kafka::attach(config, name, env).await?,
                Wants::Room => kafka::open(config, name, env).await?,
            })),
        }
    }

    pub(crate) fn bus(&self) -> &dyn Bus {
        match self {
            Self::Nats(bus) => bus.as_ref(),
            Self::Kafka(bus) => bus.as_ref(),
            Self::Embedded(bus) => bus.as_ref(),
        }
    }

    /// The same, to be shared.
    pub(crate) fn shared(&self) -> Arc<dyn Bus> {
        match self {
            Self::Nats(bus) => bus.clone(),
            Self::Kafka(bus) => bus.clone(),
            Self::Embedded(bus) => bus.clone(),
        }
    }

    /// To be called in the end: what was taken is given back, what was written is on disk.
    pub(crate) async fn close(self) {
        match self {
            Self::Nats(bus) => bus.close().await,
            Self::Kafka(bus) => bus.close().await,
            Self::Embedded(bus) => bus.close().await,
        }
    }
}
