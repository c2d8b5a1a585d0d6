//! Moves between hosts of one manager: live where that can be, else cold.

use std::sync::Arc;

use cellbus_bus::ids::HostId;
use cellbus_bus::job::StopMode;
use cellbus_cell::driver::Error;
use cellbus_directory::vm::PowerState;
use virt::connect::Connect;
use virt_sys as sys;

use super::{Work, permanent};
use crate::calls;
use crate::domain;
use crate::driver::Outcome;
use crate::hosts::Host;
use crate::reading::Found;
use crate::xml::Invalid;

impl Work<'_> {
    pub(super) async fn relocate(mut self, to: &HostId, found: &Found) -> Outcome {
        let Some(target) = self.manager.hosts.by_name(to).cloned() else {
            return Err(Error::NoRoom { detail: format!("there is no host {to}") });
        };
        let leftovers: Vec<Arc<Host>> =
            found.copies.iter().skip(1).filter(|copy| !copy.look.active).map(|copy| Arc::clone(&copy.host)).collect();
        if self.copy.host.name == *to {
            self.begin().await?;
            if self.again && self.copy.record.begun.is_some_and(|begun| begun.run.is_some()) && !self.copy.look.active {
                self.go_on().await?;
            }
            for host in &leftovers {
                self.leave(host).await?;
            }
            return self.finish().await;
        }
        let size = self.copy.look.facts(to, &self.copy.record).size;
        let uuid = self.op.vm.uuid();
        {
            let mut taken = target.taken.lock().await;
            let (given, room) = self.manager.count(&target, &mut taken).await?;
            given.fits(to.as_str(), room, uuid, size)?;
            given.0.insert(uuid, size);
        }
        target.sending(self.op.vm);
        let moved = self.take_to(&target).await;
        // Either of them is counted anew when it matters.
        target.make_stale();
        self.copy.host.make_stale();
        moved?;
        self.copy.host = target;
        self.finish().await
    }

    async fn take_to(&mut self, target: &Arc<Host>) -> Result<(), Error> {
        let config = &self.manager.config;
        if config.pool.is_some() && !config.shared_storage {
            return Err(permanent("its disk is on its host's own storage: `libvirt.shared_storage` is not set"));
        }
        let ran = self.power() == PowerState::Running
            || self.copy.record.begun.is_some_and(|begun| self.again && begun.run.is_some());
        if config.domain.as_str() != "test" && self.copy.look.active {
            self.begin().await?;
            match self.live(target).await {
                Err(Error::Permanent { .. }) if config.cold_moves && ran => {}
                other => return other,
            }
        }
        if self.copy.look.active && !(ran && config.cold_moves) {
            return Err(permanent("it cannot be moved live, and `libvirt.cold_moves` is not set or it is suspended"));
        }
        if !self.copy.look.snapshots.is_empty() {
            return Err(permanent("its snapshots would stay behind: drop them first"));
        }
        self.begin().await?;
        self.power_off(StopMode::Graceful).await?;
        let document = self.copy.look.document.clone();
        let record = self.copy.record.clone();
        let size = self.copy.look.facts(&target.name, &record).size;
        let document =
            domain::changed(&document, &record, size).map_err(|error: Invalid| permanent(error.to_string()))?;
        let define = move |connection: &Arc<Connect>| calls::define(connection, &document).map(drop);
        self.manager.hosts.change(target, self.session, define).await?;
        if ran {
            self.change_at(target, |handle, _| {
                if !handle.is_active()? {
                    handle.create()?;
                }
                Ok(())
            })
            .await?;
        }
        let source = Arc::clone(&self.copy.host);
        self.leave(&source).await
    }

    /// Takes the copy away that is left behind, and leaves the disk, which is the other's.
    async fn leave(&self, host: &Arc<Host>) -> Result<(), Error> {
        let vm = self.op.vm;
        self.manager.hosts.change(host, self.session, move |connection| calls::remove(connection, vm, None)).await
    }

    async fn live(&self, target: &Arc<Host>) -> Result<(), Error> {
        let to = Arc::clone(target);
        self.change(move |handle, _| {
            let other = to.connected()?;
            // That the storage is shared is the operator's word, which libvirt cannot see for itself of all
            // kinds; caches, which it asks for else, are off there.
            let flags = sys::VIR_MIGRATE_LIVE
                | sys::VIR_MIGRATE_PERSIST_DEST
                | sys::VIR_MIGRATE_UNDEFINE_SOURCE
                | sys::VIR_MIGRATE_UNSAFE;
            handle.migrate(&other, flags, None, None, 0)?;
            Ok(())
        })
        .await
    }
}
