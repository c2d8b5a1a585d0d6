//! Hosts that an operator calls dead.
//!
//! Where no manager can be certain that a host is dead (libvirt: a host that does not answer may run its VMs as
//! before), somebody who has fenced it can say so. From then on nothing is put on it, and VMs there with the
//! policy for it are started elsewhere, as on any dead host.

use cellbus_bus::ids::{HostId, ManagerId};
use cellbus_directory::record::Operator;
use cellbus_directory::{Vm, VmFilter, VmState};
use cellbus_workflows::{ControlItem, restarts_elsewhere};

use super::{Error, Gateway, Result};
use crate::directory::Fresh;
use crate::peers::{Request, Response};

/// What a host that is called dead had on it, as the directory knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fenced {
    /// VMs.
    pub vms: u64,
    /// Of these, those that are started elsewhere: they ran, and have the policy for it.
    pub restarts: u64,
}

impl Gateway {
    /// The manager and the host with this name: as [`Gateway::find_host`], but if both are named, the manager need
    /// not be open, as that host may be why it is not.
    ///
    /// # Errors
    /// As [`Gateway::find_host`].
    pub async fn find_host_to_fence(&self, text: &str) -> Result<(ManagerId, HostId)> {
        match self.find_host(text).await {
            Err(Error::ManagerAway { reason }) => {
                let named = text.split_once('/').and_then(|(manager, host)| Some((manager, host.parse().ok()?)));
                match named {
                    Some((manager, host)) => Ok((self.find_manager(manager)?, host)),
                    None => Err(Error::ManagerAway { reason }),
                }
            }
            found => found,
        }
    }

    /// An operator calls a host dead: it is off, and stays off until that is taken back. Durable on return; in
    /// force within seconds. A host that answers is not dead, and is refused. Gives what was on it, if the directory
    /// answers.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] `host_not_dead`; [`Error::ManagerAway`]; as [`Gateway::submit`].
    pub async fn fence_host(&self, manager: ManagerId, host: HostId, by: Operator) -> Result<Option<Fenced>> {
        self.known(manager)?;
        let away = |reason: String| Error::ManagerAway { reason };
        let Some(route) = self.inner.process.routes.of_manager(&manager) else {
            return Err(away("nobody fronts it at the moment".to_owned()));
        };
        let request = Request::MayBeFenced { manager, host: host.clone() };
        match self.ask(&route.peer, request).await.map_err(away)? {
            Response::MayBeFenced(Ok(())) => {}
            Response::MayBeFenced(Err(why)) => {
                let message = format!("host {host} cannot be called dead: {why}");
                return Err(Error::Conflict { code: "host_not_dead", message });
            }
            Response::Failed { detail } => return Err(away(detail)),
            _ => return Err(away("it is being handed over".to_owned())),
        }
        let item = ControlItem::FenceHost { manager, host: host.clone(), fenced: true, by };
        self.control(manager.shard(self.inner.process.count), item).await?;
        // The word is kept, whether or not the directory can say now what it means.
        Ok(self.standing_on(manager, host).await.ok())
    }

    /// Takes back that a host is dead: it is spoken to again, and takes VMs if it is not cordoned. Durable on
    /// return; in force within seconds.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Gateway::submit`].
    pub async fn unfence_host(&self, manager: ManagerId, host: HostId, by: Operator) -> Result<()> {
        self.known(manager)?;
        let item = ControlItem::FenceHost { manager, host, fenced: false, by };
        self.control(manager.shard(self.inner.process.count), item).await
    }

    async fn standing_on(&self, manager: ManagerId, host: HostId) -> Result<Fenced> {
        let filter = VmFilter { manager: Some(manager), host: Some(host), ..VmFilter::default() };
        let vms = self.directory().all(&filter, Fresh::AsItIs).await?;
        let restarts = |vm: &&Vm| vm.settled == VmState::Running && restarts_elsewhere(&vm.template.labels);
        Ok(Fenced { vms: vms.len() as u64, restarts: vms.iter().filter(restarts).count() as u64 })
    }
}
