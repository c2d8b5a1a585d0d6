//! Connections to every configured manager: simulated in this process or another, or a real one.

use std::collections::BTreeMap;
use std::sync::Arc;

use cellbus_bus::Env;
use cellbus_bus::ids::{ManagerId, ManagerName};
use cellbus_cell::config::{Config, ManagerKind};
use cellbus_cell::driver::{Connect, Driver, Drivers, Factories, FactoryError};
use cellbus_cell::front::{self, hosts::OverCommit};
use cellbus_cell::security::MembersTls;

use crate::managers::Fleet;
use crate::remote::{self, RemoteFleet};

/// Why managers of other processes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They could not be connected to.
    #[error("the managers at {address} cannot be connected to")]
    Remote {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: remote::ConnectError,
    },
    /// A manager is configured at an address that does not serve it.
    #[error("there is no manager {name} at {address}")]
    NoSuchManager {
        /// Which.
        name: ManagerName,
        /// Where.
        address: String,
    },
    /// A manager is to be simulated in the process of its cell, where other processes cannot reach it.
    #[error(
        "manager {name} has no address: in a cluster of several processes each names the process that serves it (`cellbus sim-managers`)"
    )]
    NoAddress {
        /// Which.
        name: ManagerName,
    },
    /// A manager is of a kind whose driver was left out of this build.
    #[error(
        "this build has no driver for manager {name} of kind {kind}: build it with `--features {kind}` (driver_not_built)"
    )]
    NotBuilt {
        /// Which.
        name: ManagerName,
        /// Its kind, which is the feature's name too.
        kind: &'static str,
    },
    /// What is configured of a manager can never work.
    #[error("manager {name} cannot be used (driver_config_invalid)")]
    Config {
        /// Which.
        name: ManagerName,
        /// Why.
        #[source]
        source: FactoryError,
    },
}

impl Error {
    /// Whether the same may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Remote { source, .. } => source.retryable(),
            Self::NoSuchManager { .. } | Self::NoAddress { .. } | Self::NotBuilt { .. } | Self::Config { .. } => false,
        }
    }
}

/// Drivers of the managers in this process, of those in others, and of real ones.
pub struct AllDrivers {
    fleet: Option<Arc<Fleet>>,
    remote: BTreeMap<ManagerId, (ManagerName, Arc<RemoteFleet>)>,
    real: BTreeMap<ManagerId, (ManagerName, Arc<dyn Connect>)>,
}

impl AllDrivers {
    /// Of a process that is alone: the managers simulated in it, and those configured elsewhere,
    /// which must answer now.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn alone(
        fleet: Arc<Fleet>,
        config: &Config,
        members: Option<&MembersTls>,
        factories: &Factories,
        env: &Env,
    ) -> Result<Self, Error> {
        Self::of(Some(fleet), config, members, factories, env).await
    }

    /// Of one process of a cluster: all managers are elsewhere. One that does not answer is none of
    /// the others' trouble: it is taken to be there, and tried again when it is used.
    ///
    /// # Errors
    /// [`Error`], never [`Error::Remote`] for want of an answer.
    pub async fn among_others(
        config: &Config,
        members: Option<&MembersTls>,
        factories: &Factories,
        env: &Env,
    ) -> Result<Self, Error> {
        Self::of(None, config, members, factories, env).await
    }

    async fn of(
        fleet: Option<Arc<Fleet>>,
        config: &Config,
        members: Option<&MembersTls>,
        factories: &Factories,
        env: &Env,
    ) -> Result<Self, Error> {
        let mut by_address: BTreeMap<&String, Vec<&ManagerName>> = BTreeMap::new();
        let mut real = BTreeMap::new();
        for manager in &config.managers {
            match &manager.kind {
                ManagerKind::Remote { address } => by_address.entry(address).or_default().push(&manager.name),
                ManagerKind::Simulated { .. } if fleet.is_some() => {}
                ManagerKind::Simulated { .. } => return Err(Error::NoAddress { name: manager.name.clone() }),
                ManagerKind::Vsphere(_) | ManagerKind::Libvirt(_) => {
                    let (name, kind) = (manager.name.clone(), manager.kind.as_str());
                    let Some(factory) = factories.iter().find(|factory| factory.kind() == kind) else {
                        return Err(Error::NotBuilt { name, kind });
                    };
                    match factory.manager(manager, env) {
                        Ok(connect) => real.insert(ManagerId::derive(name.as_str()), (name, connect)),
                        Err(source) => return Err(Error::Config { name, source }),
                    };
                }
            }
        }
        let mut remote = BTreeMap::new();
        for (address, names) in by_address {
            let unreachable = |source| Error::Remote { address: address.clone(), source };
            let connected = match RemoteFleet::connect_with(address, members, env.clone()).await {
                Ok(connected) => connected,
                Err(error) if error.retryable() && fleet.is_none() => {
                    tracing::warn!(address, error = &error as &dyn std::error::Error, "managers do not answer yet");
                    RemoteFleet::unasked(address, names.iter().copied().cloned(), members, env.clone())
                        .map_err(unreachable)?
                }
                Err(error) => return Err(unreachable(error)),
            };
            let connected = Arc::new(connected);
            for name in names {
                let id = ManagerId::derive(name.as_str());
                if connected.driver(id).is_none() {
                    return Err(Error::NoSuchManager { name: name.clone(), address: address.clone() });
                }
                remote.insert(id, (name.clone(), Arc::clone(&connected)));
            }
        }
        Ok(Self { fleet, remote, real })
    }

    /// Every manager.
    #[must_use]
    pub fn names(&self) -> Vec<ManagerName> {
        let own = self.fleet.iter().flat_map(|fleet| &fleet.inventory().managers).map(|manager| manager.name.clone());
        let remote = self.remote.values().map(|(name, _)| name);
        own.chain(remote.chain(self.real.values().map(|(name, _)| name)).cloned()).collect()
    }

    /// How each of them is fronted, as configured.
    #[must_use]
    pub fn fronts(&self, config: &Config) -> Vec<front::Config> {
        let names = self.names();
        let removals_per_minute = config.destructive.per_manager(names.len());
        names.iter().map(|name| front::Config { removals_per_minute, ..self.front(config, name) }).collect()
    }

    fn front(&self, config: &Config, name: &ManagerName) -> front::Config {
        let front = front_config(config, name);
        match config.managers.iter().find(|manager| manager.name == *name) {
            Some(manager) => front::Config {
                starts_read_only: manager.starts_read_only,
                over_commit: OverCommit { cpu: manager.over_commit_cpu, memory: manager.over_commit_memory },
                networks: manager.kind.networks(),
                limits: self
                    .connect(ManagerId::derive(name.as_str()))
                    .map(|driver| manager.limits.over(driver.limits())),
                ..front
            },
            None => front,
        }
    }
}

pub(crate) fn front_config(config: &Config, name: &ManagerName) -> front::Config {
    front::Config { circuit: config.circuit, ..front::Config::new(name.clone()) }
}

impl Drivers for AllDrivers {
    fn connect(&self, manager: ManagerId) -> Option<Arc<dyn Driver>> {
        if let Some((_, connect)) = self.real.get(&manager) {
            return Some(connect.connect());
        }
        match self.remote.get(&manager) {
            Some((_, fleet)) => fleet.driver(manager),
            None => self.fleet.as_ref()?.driver(manager),
        }
    }
}

#[cfg(test)]
mod tests {
    use cellbus_cell::config::{File, Sources};

    use super::*;

    struct Broken;
    impl cellbus_cell::driver::Factory for Broken {
        fn kind(&self) -> &'static str {
            "libvirt"
        }
        fn manager(
            &self,
            _manager: &cellbus_cell::config::Manager,
            _env: &Env,
        ) -> Result<Arc<dyn Connect>, FactoryError> {
            Err(FactoryError { detail: "no such file".to_owned() })
        }
    }

    #[tokio::test]
    async fn a_kind_that_the_build_lacks_is_told_with_its_code() {
        let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
        let text = "[[managers]]\nname = \"m\"\nkind = \"vsphere\"\naddress = \"https://vc\"\nvsphere.user = \"u\"\n\
                    vsphere.password_env = \"P\"\nvsphere.ca = \"c\"\n";
        let file = Some(File { name: "cellbus.toml".to_owned(), text: text.to_owned() });
        let config = Config::load(Sources { file, ..Sources::default() }).expect("it is sound");
        let told = |error: Error| {
            assert!(!error.retryable());
            error.to_string()
        };
        let lacks = AllDrivers::among_others(&config, None, &Factories::new(), &env).await.err().map(told);
        let lacks = lacks.expect("there is no driver");
        assert!(lacks.contains("--features vsphere") && lacks.contains("driver_not_built"), "{lacks}");
        // Another kind's factory is none for this one.
        let others: Factories = vec![Arc::new(Broken)];
        assert_eq!(AllDrivers::among_others(&config, None, &others, &env).await.err().map(told), Some(lacks));
    }
}
