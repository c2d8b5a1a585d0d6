//! What operators do: drain, cordon, evacuate.

use std::sync::Arc;

use cellbus_bus::cloudevent::{Limits, TenantFrom, TenantRule, Tenants, parse_structured};
use cellbus_bus::ids::{CellId, HostId, JobId, ManagerId, TenantId, VmId};
use cellbus_bus::job::{Job, Labels, Size};
use cellbus_directory::record::Operator;
use cellbus_directory::{Vm, VmFilter, VmState};
use cellbus_workflows::ControlItem;

use super::{Error, Evacuation, Gateway, HostRow, Result, Stays, Submitted, What};
use crate::directory::Fresh;
use crate::peers::{Peer, Request, Response};

/// VMs read from the directory and submitted at once.
pub(super) const PAGE: usize = 500;
/// Job ids that the answer lists.
pub(super) const LISTED_MAX: usize = 100;

impl Gateway {
    /// Asks a cell to hand its shards over and leave.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ShardAway`].
    pub async fn drain_cell(&self, cell: &CellId, by: Operator) -> Result<()> {
        let Some(member) = self.live_cells().await?.into_iter().find(|member| member.cell == *cell) else {
            return Err(Error::NotFound { what: What::Cell, id: cell.to_string() });
        };
        self.note_change(by.clone(), format!("drain cell {cell}")).await?;
        let peer = Peer { cell: member.cell, address: member.address };
        match self.ask(&peer, Request::Drain(by)).await {
            Ok(Response::Draining) => Ok(()),
            Ok(_) => Err(super::confused()),
            Err(reason) => Err(Error::NotReady { reason }),
        }
    }

    pub(super) fn known(&self, manager: ManagerId) -> Result<()> {
        match self.inner.process.names.name(&manager) {
            Some(_) => Ok(()),
            None => Err(Error::NotFound { what: What::Manager, id: manager.to_string() }),
        }
    }

    /// Keeps new VMs off a manager, or lets them on again. Durable on return; in force within a second.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Gateway::submit`].
    pub async fn cordon_manager(&self, manager: ManagerId, cordoned: bool, by: Operator) -> Result<()> {
        self.known(manager)?;
        let item = ControlItem::CordonManager { manager, cordoned, by };
        self.control(manager.shard(self.inner.process.count), item).await
    }

    /// Keeps new VMs off a host, or lets them on again. Durable on return; in force within a second.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Gateway::submit`].
    pub async fn cordon_host(&self, manager: ManagerId, host: HostId, cordoned: bool, by: Operator) -> Result<()> {
        self.known(manager)?;
        let item = ControlItem::CordonHost { manager, host, cordoned, by };
        self.control(manager.shard(self.inner.process.count), item).await
    }

    /// Cordons a manager, or one host of it, and submits a migrate job for every VM there that another would take. The
    /// jobs' keys follow from the VMs and `round`, so that asking again with the same round
    /// submits nothing twice.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Gateway::submit`].
    pub async fn evacuate(
        &self,
        manager: ManagerId,
        host: Option<HostId>,
        round: &str,
        by: Operator,
    ) -> Result<Evacuation> {
        let (mut targets, mut sees) = (Vec::new(), Vec::new());
        match &host {
            Some(host) => {
                self.cordon_host(manager, host.clone(), true, by.clone()).await?;
                let open = |row: &HostRow| row.usable && !row.cordoned && row.id != *host;
                let hosts = self.hosts_of(&manager).await?;
                let own = hosts.iter().find(|row| row.id == *host);
                sees =
                    own.map(|row| row.datastores.iter().map(|store| store.name.clone()).collect()).unwrap_or_default();
                targets = hosts.into_iter().filter(open).collect();
            }
            None => self.cordon_manager(manager, true, by.clone()).await?,
        }
        let what = host
            .as_ref()
            .map_or_else(|| format!("manager {manager}"), |host| format!("host {host} of manager {manager}"));
        self.note_change(by, format!("evacuate {what}, round {round}")).await?;

        let filter = VmFilter { manager: Some(manager), host: host.clone(), ..VmFilter::default() };
        let mut done = Evacuation::default();
        let mut elsewhere = self.elsewhere(manager);
        let mut from: Option<String> = None;
        loop {
            let page = self.directory().list(&filter, PAGE, from.as_deref(), Fresh::AsItIs).await?;
            let (mut jobs, mut moving) = (Vec::new(), Vec::new());
            for vm in page
                .items
                .iter()
                .filter(|vm| !matches!(vm.state(), VmState::Deleting | VmState::Deleted | VmState::Lost))
            {
                done.vms += 1;
                let target = take_room(&mut targets, &sees, &vm.size, &vm.template.require)
                    .map(|host| ("host", host.to_string()));
                let target = target.map_or_else(
                    || {
                        let manager = elsewhere.place(vm)?;
                        let name = self.manager_name(&manager);
                        name.map(|name| ("manager", name)).ok_or_else(|| format!("manager {manager} is not configured"))
                    },
                    Ok,
                );
                match target {
                    Ok((kind, name)) => {
                        jobs.push(Arc::new(self.migrate_job(vm, kind, &name, round)?));
                        moving.push(vm);
                    }
                    Err(why) => done.stays(vm, why),
                }
            }
            for (answer, vm) in self.submit_each(jobs).await?.into_iter().zip(moving) {
                match answer {
                    Ok(job) => {
                        done.jobs_total += 1;
                        if done.jobs.len() < LISTED_MAX {
                            done.jobs.push(job);
                        }
                    }
                    Err(why) => done.stays(vm, why),
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(done),
            }
        }
    }

    /// Submits them; says of each, in order, that it is taken, or was before, or why not.
    pub(super) async fn submit_each(&self, jobs: Vec<Arc<Job>>) -> Result<Vec<Result<JobId, String>>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let taken = self.submit(jobs).await?.into_iter().map(|submitted| match submitted {
            // The same round again: it is under way, perhaps to another target.
            Submitted::Accepted { job, .. } | Submitted::Conflict { job } => Ok(job),
            Submitted::Refused { code, message, .. } => Err(format!("{code}: {message}")),
        });
        Ok(taken.collect())
    }

    pub(super) fn migrate_job(&self, vm: &Vm, kind: &str, name: &str, round: &str) -> Result<Job> {
        let (id, data) = (format!("{round}/{}", vm.id), serde_json::json!({ kind: name }));
        own_job(&vm.tenant, "/cellbus/evacuate", &id, "migrate", vm.id, Some(data))
            .map_err(|message| Error::Invalid { code: "bad_round", message })
    }
}

impl Evacuation {
    fn stays(&mut self, vm: &Vm, why: String) {
        self.stays_total += 1;
        if self.stays.len() < LISTED_MAX {
            self.stays.push(Stays { vm: vm.id, name: vm.name.clone(), why });
        }
    }
}

/// A job of Cellbus's own on a VM; an error says what is wrong with its id. Jobs are made in one place only, so
/// this is a CloudEvent too.
pub(super) fn own_job(
    tenant: &TenantId,
    source: &str,
    id: &str,
    kind: &str,
    vm: VmId,
    data: Option<serde_json::Value>,
) -> std::result::Result<Job, String> {
    let mut event = serde_json::json!({
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": format!("io.cellbus.job.{kind}.v1"),
        "subject": vm.to_string(),
    });
    if let Some(data) = data {
        event["datacontenttype"] = "application/json".into();
        event["data"] = data;
    }
    let rule = TenantRule { from: TenantFrom::Sender(tenant.as_str()), known: &Tenants::Any };
    parse_structured(event.to_string().as_bytes(), rule, &Limits::default()).map_err(|rejection| rejection.message)
}

/// The host with the most room that would take the VM, with what the VM needs taken off it. Its disk lies on
/// one of the datastores `sees`: where a host has all of them, it stays there.
fn take_room(targets: &mut [HostRow], sees: &[String], size: &Size, require: &Labels) -> Option<HostId> {
    let has = |row: &HostRow, name: &String| row.datastores.iter().any(|store| store.name == *name);
    let stays = |row: &HostRow| !sees.is_empty() && sees.iter().all(|name| has(row, name));
    let most = |row: &HostRow| row.datastores.iter().map(|store| store.gib.free).max().unwrap_or(row.disk_gib.free);
    let fits = |row: &&mut HostRow| {
        u64::from(size.vcpus) <= row.vcpus.free
            && size.memory_mib <= row.memory_mib.free
            && (stays(row) || size.disk_gib <= most(row))
            && require.iter().all(|(key, value)| match key.as_str() {
                "host" => *value == row.id.as_str(),
                "manager" => *value == row.manager_name,
                _ => row.labels.get(key) == Some(value),
            })
    };
    let best = targets.iter_mut().filter(fits).max_by_key(|row| (row.memory_mib.free, row.vcpus.free))?;
    best.vcpus.free -= u64::from(size.vcpus);
    best.memory_mib.free -= size.memory_mib;
    let id = best.id.clone();
    if !stays(best) {
        match best.datastores.iter().max_by_key(|store| store.gib.free).map(|store| store.name.clone()) {
            None => best.disk_gib.free -= size.disk_gib,
            Some(name) => {
                let all = targets.iter_mut().flat_map(|row| &mut row.datastores).filter(|store| store.name == name);
                all.for_each(|store| store.gib.free = store.gib.free.saturating_sub(size.disk_gib));
            }
        }
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{DatastoreRow, FreeOf};

    fn row(id: &str, own: u64, stores: &[(&str, u64)]) -> HostRow {
        let row = |(name, free): &(&str, u64)| DatastoreRow {
            name: (*name).to_owned(),
            gib: FreeOf { free: *free, total: 1000 },
        };
        let many = FreeOf { free: 100, total: 100 };
        HostRow {
            id: id.parse().unwrap(),
            manager: ManagerId::derive("vc-1"),
            manager_name: "vc-1".to_owned(),
            labels: Labels::new(),
            usable: true,
            cordoned: false,
            fenced: false,
            vms: 0,
            vcpus: many,
            memory_mib: many,
            disk_gib: FreeOf { free: own, total: 1000 },
            datastores: stores.iter().map(row).collect(),
        }
    }

    #[test]
    fn a_disk_stays_where_the_other_host_sees_it_and_else_takes_room_once() {
        let size = Size { vcpus: 1, memory_mib: 1, disk_gib: 30 };
        let take = |targets: &mut [HostRow], sees: &[&str]| {
            let sees: Vec<String> = sees.iter().map(|name| (*name).to_owned()).collect();
            take_room(targets, &sees, &size, &Labels::new()).map(|host| host.to_string())
        };
        let mut full = [row("a", 0, &[("ds-1", 0)])];
        assert_eq!(take(&mut full, &["ds-1"]).as_deref(), Some("a"), "it lies there already");
        assert_eq!(take(&mut full, &["ds-2"]), None);
        // Two hosts share what is free.
        let mut shared = [row("a", 50, &[("ds-1", 50)]), row("b", 50, &[("ds-1", 50)])];
        assert!(take(&mut shared, &["local"]).is_some());
        assert_eq!(take(&mut shared, &["local"]), None);
        let mut own = [row("a", 50, &[])];
        assert_eq!(take(&mut own, &[]).as_deref(), Some("a"));
        assert_eq!(take(&mut own, &[]), None);
    }
}
