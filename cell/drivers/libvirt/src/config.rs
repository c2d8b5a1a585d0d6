//! The managers of the kind `libvirt`, for the binary.

use std::sync::Arc;

use cellbus_bus::Env;
use cellbus_cell::config::{Manager as Configured, ManagerKind};
use cellbus_cell::driver::{Connect, Driver, Factory, FactoryError};

use crate::driver::{LibvirtDriver, Manager};

/// Makes connections to managers that are sets of libvirt hosts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Libvirt;

impl Factory for Libvirt {
    fn kind(&self) -> &'static str {
        "libvirt"
    }
    fn manager(&self, manager: &Configured, env: &Env) -> Result<Arc<dyn Connect>, FactoryError> {
        let ManagerKind::Libvirt(libvirt) = &manager.kind else {
            return Err(FactoryError { detail: format!("{} is of the kind {}", manager.name, manager.kind.as_str()) });
        };
        let over_commit = (manager.over_commit_cpu, manager.over_commit_memory);
        Ok(Arc::new(Hosts(Arc::new(Manager::new(&manager.name, libvirt, over_commit, env.clone())))))
    }
}

struct Hosts(Arc<Manager>);

impl Connect for Hosts {
    fn connect(&self) -> Arc<dyn Driver> {
        Arc::new(LibvirtDriver::new(Arc::clone(&self.0)))
    }
}
