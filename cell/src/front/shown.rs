//! What a front says of its manager: to placement, to operators.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cellbus_bus::ids::{CellId, Epoch, ManagerId, ManagerName};
use cellbus_directory::ManagerMode;
use cellbus_workflows::{ClassSummary, Health, ManagerSummary};

use super::limits::{Kind, Slots};
use super::{Front, Work};
use crate::gateway::{DatastoreRow, FreeOf, HostRow, ManagerRow};

impl Front {
    pub(super) fn publish(&self, work: &mut Work) {
        work.dirty = false;
        work.published_at = self.env.mono();
        if work.desk.revoked {
            self.shared.board.withdraw(&self.id(), self.epoch);
            return;
        }
        let desk = &work.desk;
        self.held.store(desk.holdings.present(), Ordering::Release);
        let health = if desk.circuit.closed() { Health::Healthy } else { Health::CircuitOpen };
        let classes = desk.holdings.hosts.summary();
        let slots: &Slots = &desk.slots;
        let sum = |free: fn(&ClassSummary) -> u64, total: fn(&ClassSummary) -> u64| FreeOf {
            free: classes.iter().map(free).sum(),
            total: classes.iter().map(total).sum(),
        };
        let circuit = desk.circuit.shown(self.env.mono());
        let detail = match &circuit {
            crate::gateway::CircuitState::Open { reason, .. } => reason.clone(),
            crate::gateway::CircuitState::Closed | crate::gateway::CircuitState::HalfOpen => String::new(),
        };
        self.row.store(Arc::new(ManagerRow {
            id: self.id(),
            name: self.config.name.to_string(),
            cell: Some(self.cell.clone()),
            epoch: self.epoch,
            health,
            circuit: Some(circuit),
            detail,
            cordoned: desk.holdings.hosts.cordoned(),
            mode: self.orders.mode(&self.config),
            paused: desk.gate.shown().map(|(paused, _)| paused),
            paused_why: desk.gate.shown().map(|(_, why)| why.to_owned()).unwrap_or_default(),
            hosts: classes.iter().map(|class| class.hosts).sum(),
            hosts_open: classes.iter().map(|class| class.hosts_open).sum(),
            vms: desk.holdings.present(),
            foreign_vms: desk.holdings.foreign_vms,
            irregular_vms: work.irregular.vms,
            irregular_why: work.irregular.detail.clone(),
            running: Kind::ALL.iter().map(|kind| (kind.as_str().to_owned(), slots.running(*kind))).collect(),
            waiting: Kind::ALL.iter().map(|kind| (kind.as_str().to_owned(), desk.waiting(*kind))).collect(),
            vcpus: sum(|c| c.vcpus_free, |c| c.vcpus_total),
            memory_mib: sum(|c| c.memory_mib_free, |c| c.memory_mib_total),
            disk_gib: sum(|c| c.disk_gib_free, |c| c.disk_gib_total),
            as_of: self.env.wall(),
        }));
        self.shared.board.publish(
            self.epoch,
            ManagerSummary {
                id: self.id(),
                name: self.config.name.to_string(),
                health,
                cordoned: desk.holdings.hosts.cordoned(),
                classes,
                running: slots.total(),
                waiting: desk.waiting_total(),
                running_max: slots.operations_max(),
            },
        );
    }

    /// VMs whose id is not beyond doubt are told when they come or go.
    pub(super) fn look_at_ids(&self, work: &mut Work) {
        let irregular = self.driver.irregular();
        if irregular == work.irregular {
            return;
        }
        let (manager, vms, detail) = (&self.config.name, irregular.vms, irregular.detail.as_str());
        if vms == 0 {
            tracing::info!(%manager, "the ids of all VMs are beyond doubt again");
        } else {
            tracing::warn!(%manager, vms, detail, "the id of a VM is not beyond doubt");
        }
        work.irregular = irregular;
        work.dirty = true;
    }

    pub(super) fn host_rows(&self, work: &Work) -> Vec<HostRow> {
        let hosts = &work.desk.holdings.hosts;
        let rows = hosts.all().iter().map(|host| {
            let free = host.free();
            let stores = host.stores.iter().map(|store| hosts.store_at(*store));
            let datastores: Vec<DatastoreRow> = stores
                .map(|store| DatastoreRow {
                    name: store.name.clone(),
                    gib: FreeOf { free: store.free(), total: store.total },
                })
                .collect();
            let gib = |of: fn(&FreeOf) -> u64| datastores.iter().map(|store| of(&store.gib)).sum::<u64>();
            HostRow {
                id: host.id.clone(),
                manager: self.id(),
                manager_name: self.config.name.to_string(),
                labels: host.labels.as_ref().clone(),
                usable: host.usable,
                cordoned: host.cordoned,
                fenced: self.orders.fenced.contains(&host.id),
                vms: host.vms,
                vcpus: FreeOf { free: free.vcpus, total: host.total.vcpus },
                memory_mib: FreeOf { free: free.memory_mib, total: host.total.memory_mib },
                disk_gib: FreeOf {
                    free: free.disk_gib + gib(|gib| gib.free),
                    total: host.total.disk_gib + gib(|gib| gib.total),
                },
                datastores,
            }
        });
        rows.collect()
    }
}

/// A manager of which nothing is known.
pub(crate) fn unknown_summary(name: &ManagerName) -> ManagerSummary {
    ManagerSummary {
        id: ManagerId::derive(name.as_str()),
        name: name.to_string(),
        health: Health::Unknown,
        cordoned: false,
        classes: Vec::new(),
        running: 0,
        waiting: 0,
        running_max: 0,
    }
}

/// The row of a manager of which nothing is known.
pub(crate) fn unknown_row(name: &ManagerName, cell: Option<CellId>, epoch: Epoch, why: &str) -> ManagerRow {
    ManagerRow {
        id: ManagerId::derive(name.as_str()),
        name: name.to_string(),
        cell,
        epoch,
        health: Health::Unknown,
        circuit: None,
        detail: why.to_owned(),
        cordoned: false,
        mode: ManagerMode::default(),
        paused: None,
        paused_why: String::new(),
        hosts: 0,
        hosts_open: 0,
        vms: 0,
        foreign_vms: 0,
        irregular_vms: 0,
        irregular_why: String::new(),
        running: BTreeMap::new(),
        waiting: BTreeMap::new(),
        vcpus: FreeOf::default(),
        memory_mib: FreeOf::default(),
        disk_gib: FreeOf::default(),
        as_of: cellbus_bus::WallMs(0),
    }
}
