//! VMs: looked up in the directory, or asked of their homes and managers.

use std::collections::BTreeMap;

use cellbus_bus::ids::{JobId, ManagerId, ShardId, TenantId, VmId, VmName};
use cellbus_directory::{Location, Vm, VmFilter, VmState};

use super::{Error, Explained, Gateway, LOCATE_MAX, Live, Located, Page, Result, VmRow, What, confused};
use crate::directory::Fresh;
use crate::peers::{Request, Response, VmAnswer};

impl Gateway {
    /// A VM of the inventory. A miss in the directory asks the VM's home.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotReady`].
    pub async fn vm(&self, id: VmId) -> Result<VmRow> {
        let vm = match self.known_vm(id).await {
            Some(vm) => vm,
            None => self.vm_from_home(id).await?,
        };
        Ok(self.vm_row(vm))
    }

    /// As the directory knows it. One that gives no answer stands in nobody's way: the VM's home knows.
    pub(super) async fn known_vm(&self, id: VmId) -> Option<Vm> {
        self.directory().vm(id).await.ok().flatten()
    }

    /// The row of a VM, as [`Gateway::vm`] gives it, of a record that a list of the directory gave.
    #[must_use]
    pub fn vm_row(&self, vm: Vm) -> VmRow {
        let state = vm.state();
        let (manager, host) = vm.home.map_or((None, None), |home| (Some(home.manager), home.host));
        VmRow {
            id: vm.id,
            state,
            manager_name: manager.and_then(|manager| self.manager_name(&manager)),
            manager,
            host,
            size: vm.size,
            labels: vm.template.labels.clone(),
            shard: vm.id.shard(self.inner.process.count),
            as_of: vm.as_of,
            tenant: vm.tenant,
            name: vm.name,
        }
    }

    /// The configured name of a manager.
    #[must_use]
    pub fn manager_name(&self, id: &ManagerId) -> Option<String> {
        self.inner.process.names.name(id).map(ToString::to_string)
    }

    async fn vm_from_home(&self, id: VmId) -> Result<Vm> {
        let not_found = || Error::NotFound { what: What::Vm, id: id.to_string() };
        match self.ask_owner(id.shard(self.inner.process.count), Request::Vms(vec![id])).await? {
            Response::Vms(answers) => match answers.into_iter().next() {
                Some(VmAnswer::Known(vm)) => Ok(*vm),
                Some(VmAnswer::Unknown) => Err(not_found()),
                Some(VmAnswer::NotMine) | None => {
                    Err(Error::NotReady { reason: "the VM is not in the directory, and its home is moving".to_owned() })
                }
            },
            _ => Err(confused()),
        }
    }

    /// Those of these VMs that their homes know.
    pub(super) async fn vms_from_homes(&self, ids: &[VmId]) -> Vec<Vm> {
        let mut by_shard: BTreeMap<ShardId, Vec<VmId>> = BTreeMap::new();
        for id in ids {
            by_shard.entry(id.shard(self.inner.process.count)).or_default().push(*id);
        }
        let asked = by_shard.into_iter().map(|(shard, ids)| self.ask_owner(shard, Request::Vms(ids)));
        let mut known = Vec::new();
        for answer in futures::future::join_all(asked).await {
            let Ok(Response::Vms(answers)) = answer else { continue };
            known.extend(answers.into_iter().filter_map(|answer| match answer {
                VmAnswer::Known(vm) => Some(*vm),
                VmAnswer::Unknown | VmAnswer::NotMine => None,
            }));
        }
        known
    }

    /// Where a VM is. A miss in the directory asks the VM's home.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotReady`].
    pub async fn locate(&self, id: VmId) -> Result<Located> {
        let located = match self.replica() {
            Some(replica) => replica.locate(id).map(|location| self.located(&location)),
            None => self.known_vm(id).await.map(|vm| self.located_of(&vm)),
        };
        match located {
            Some(located) => Ok(located),
            None => self.vm_from_home(id).await.map(|vm| self.located_of(&vm)),
        }
    }

    fn located(&self, location: &Location<'_>) -> Located {
        let deleted = location.state() == VmState::Deleted;
        let place = location.place().filter(|_| !deleted);
        self.place(location.vm(), place, location.as_of())
    }

    fn located_of(&self, vm: &Vm) -> Located {
        self.place(vm.id, vm.home.as_ref().filter(|_| !vm.is_deleted()), vm.as_of)
    }

    fn place(&self, vm: VmId, place: Option<&cellbus_directory::Place>, as_of: cellbus_bus::WallMs) -> Located {
        let process = &self.inner.process;
        let shard = vm.shard(process.count);
        let manager = place.map(|place| place.manager);
        let route = match manager {
            Some(manager) => process.routes.of_manager(&manager),
            None => process.routes.of(shard),
        };
        Located {
            vm,
            manager,
            manager_name: manager.and_then(|manager| self.manager_name(&manager)),
            host: place.and_then(|place| place.host.clone()),
            shard,
            cell: route.as_ref().map(|route| route.peer.cell.clone()),
            address: route.as_ref().map(|route| route.peer.address.clone()),
            epoch: route.map(|route| route.epoch).unwrap_or_default(),
            as_of,
        }
    }

    /// VMs of the tenant with this name, two at the most, as the directory has them.
    ///
    /// # Errors
    /// [`Error::NotReady`].
    pub async fn by_name(&self, tenant: &TenantId, name: &VmName) -> Result<Vec<VmRow>> {
        let ids = self.directory().names(vec![(tenant.clone(), name.clone())], Fresh::AsItIs).await?.concat();
        let vms = self.directory().vms(ids).await?;
        Ok(vms.into_iter().flatten().map(|vm| self.vm_row(vm)).collect())
    }

    /// A page of VMs, as the directory has them.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the limit, or the cursor; [`Error::NotReady`].
    pub async fn vms(&self, filter: &VmFilter, limit: usize, after: Option<&str>) -> Result<Page<VmRow>> {
        let page = self.directory().list(filter, limit, after, Fresh::AsItIs).await?;
        Ok(Page { items: page.items.into_iter().map(|vm| self.vm_row(vm)).collect(), next: page.next })
    }

    /// Where many VMs are, in order; `None` for those that are not there. At most [`LOCATE_MAX`].
    ///
    /// # Errors
    /// [`Error::Invalid`] `too_many_ids`; [`Error::NotReady`].
    pub async fn locate_many(&self, ids: &[VmId]) -> Result<Vec<Option<Located>>> {
        if ids.len() > LOCATE_MAX {
            let message =
                format!("{} ids are more than the {LOCATE_MAX} that one call may name; make several calls", ids.len());
            return Err(Error::Invalid { code: "too_many_ids", message });
        }
        let mut located: Vec<Option<Located>> = match self.replica() {
            Some(replica) => ids.iter().map(|id| replica.locate(*id).map(|location| self.located(&location))).collect(),
            None => match self.directory().vms(ids.to_vec()).await {
                Ok(vms) => vms.iter().map(|vm| vm.as_ref().map(|vm| self.located_of(vm))).collect(),
                // Their homes know as much.
                Err(_) => vec![None; ids.len()],
            },
        };
        let missing: Vec<VmId> =
            ids.iter().zip(&located).filter(|(_, found)| found.is_none()).map(|(id, _)| *id).collect();
        if !missing.is_empty() {
            let known: BTreeMap<VmId, Vm> =
                self.vms_from_homes(&missing).await.into_iter().map(|vm| (vm.id, vm)).collect();
            for (id, slot) in ids.iter().zip(&mut located) {
                if slot.is_none() {
                    *slot = known.get(id).map(|vm| self.located_of(vm));
                }
            }
        }
        Ok(located)
    }

    /// The VM of the tenant with this name.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], [`Error::NotReady`].
    pub async fn resolve(&self, tenant: &TenantId, name: &VmName) -> Result<VmId> {
        let found = self.directory().names(vec![(tenant.clone(), name.clone())], Fresh::CaughtUp).await?;
        match found.concat().as_slice() {
            [] => Err(Error::NotFound { what: What::Vm, id: name.to_string() }),
            [one] => Ok(*one),
            [..] => Err(Error::Ambiguous { what: What::Vm, name: name.to_string() }),
        }
    }

    /// A VM as its manager holds it now, through the cell that fronts the manager.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::ManagerAway`].
    pub async fn live(&self, id: VmId) -> Result<Live> {
        let located = self.locate(id).await?;
        let Some(manager) = located.manager else {
            return Err(Error::NotFound { what: What::Vm, id: id.to_string() });
        };
        let away = |reason: String| Error::ManagerAway { reason };
        let shard = manager.shard(self.inner.process.count);
        let Some(route) = self.inner.process.routes.of(shard) else {
            return Err(away("nobody fronts its manager at the moment".to_owned()));
        };
        match self.ask(&route.peer, Request::Live { manager, vm: id }).await.map_err(away)? {
            Response::Live(held) => {
                Ok(Live { vm: id, manager, held: held.map(|held| *held), as_of: self.inner.process.env.wall() })
            }
            Response::NotMine => Err(away("its manager is being handed over".to_owned())),
            Response::Failed { detail } => Err(away(detail)),
            _ => Err(confused()),
        }
    }

    /// Why a VM is as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ShardAway`].
    pub async fn explain_vm(&self, id: VmId) -> Result<Explained> {
        let shard = id.shard(self.inner.process.count);
        match self.ask_owner(shard, Request::Explain(id)).await? {
            Response::Explained(Some(vm)) => Ok(Explained { vm: Some(*vm), ..self.owner_of(shard) }),
            Response::Explained(None) => Err(Error::NotFound { what: What::Vm, id: id.to_string() }),
            _ => Err(confused()),
        }
    }

    /// Why a job is as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ShardAway`].
    pub async fn explain_job(&self, id: JobId) -> Result<Explained> {
        let status = self.job(id).await?;
        let vm = match status.row.vm {
            // A job that has been accepted may still be on its way to its VM.
            Some(vm) => self.explain_vm(vm).await.ok().and_then(|explained| explained.vm),
            None => None,
        };
        Ok(Explained { job: Some(status), vm, ..self.owner_of(id.shard(self.inner.process.count)) })
    }

    fn owner_of(&self, shard: ShardId) -> Explained {
        let route = self.inner.process.routes.of(shard);
        Explained {
            shard,
            owner: route.as_ref().map(|route| route.peer.cell.clone()),
            epoch: route.map(|route| route.epoch).unwrap_or_default(),
            job: None,
            vm: None,
        }
    }
}
