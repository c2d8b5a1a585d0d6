//! The driver of a vCenter: `kind = "vsphere"` of `[[managers]]`.
//!
//! ```text
//!  front ──▶ VsphereDriver ──▶ Session ──SOAP over TLS──▶ vCenter
//!              │ perform: note(doing) ─▶ task ─▶ note      ├─ folder of Cellbus's own, with VMs named by their ids
//!              │ changes: property collector               │   └─ cellbus-epoch-<n>: who owns it
//!              └ inventory: one view, in pages             └─ annotation of each VM: number, tenant, name, groups
//! ```
//!
//! - A VM's name in the vCenter is its id, so a second create of it is refused there (`DuplicateName`).
//! - Every operation is done once by its number, which is part of the VM's annotation.
//! - A session that a newer owner has ended changes nothing any more, and one that lapsed is renewed.
//! - A vCenter without the folder, or without the epoch that it was opened under, has lost what it held:
//!   nothing is done to it, and nothing is concluded from what is not there.
//!
//! A client of its own for some thirty calls, since bindings for the whole API are large
//! (`ops/docs/decisions/0014-vsphere-client.md`). What it needs and cannot do: `ops/docs/vsphere.md`.

use std::sync::{Arc, Mutex};

use cellbus_bus::Env;
use cellbus_bus::ids::ManagerName;
use cellbus_cell::config::{Manager, ManagerKind, Vsphere};
use cellbus_cell::driver::{Connect, Driver, Factory, FactoryError};

mod changes;
mod claims;
mod driver;
mod fault;
mod foreign;
mod note;
mod perform;
mod read;
mod session;
mod signing;
mod soap;
mod spec;
mod tasks;
mod trust;
#[cfg(feature = "vcsim")]
pub mod vcsim;
mod vim;
mod xml;

use driver::{OverCommit, VsphereDriver};
use signing::Memory;

/// Makes connections to vCenters.
#[derive(Clone, Copy, Debug, Default)]
pub struct VsphereFactory;

impl Factory for VsphereFactory {
    fn kind(&self) -> &'static str {
        "vsphere"
    }
    fn manager(&self, manager: &Manager, env: &Env) -> Result<Arc<dyn Connect>, FactoryError> {
        let ManagerKind::Vsphere(vsphere) = &manager.kind else {
            return Err(FactoryError { detail: "it is of another kind".to_owned() });
        };
        let tls = trust::client(&vsphere.trust, env).map_err(|detail| FactoryError { detail })?;
        let over_commit = OverCommit { cpu: manager.over_commit_cpu, memory: manager.over_commit_memory };
        Ok(Arc::new(Vcenter {
            vsphere: vsphere.as_ref().clone(),
            name: manager.name.clone(),
            tls,
            over_commit,
            memory: Arc::default(),
            env: env.clone(),
        }))
    }
}

/// One vCenter as configured.
struct Vcenter {
    vsphere: Vsphere,
    name: ManagerName,
    tls: rustls::ClientConfig,
    over_commit: OverCommit,
    memory: Arc<Mutex<Memory>>,
    env: Env,
}

impl Connect for Vcenter {
    fn connect(&self) -> Arc<dyn Driver> {
        Arc::new(VsphereDriver::new(
            self.vsphere.clone(),
            self.name.clone(),
            self.tls.clone(),
            self.over_commit,
            Arc::clone(&self.memory),
            self.env.clone(),
        ))
    }
}
