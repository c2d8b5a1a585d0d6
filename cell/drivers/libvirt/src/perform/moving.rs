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
        let target = Arc::clone(self.manager.hosts.by_name(&self.session.fences.now(), to)?);
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
            self.is_back_on(to);
            return self.finish().await;
        }
        if self.copy.record.adopted() {
            self.expect_movable().await?;
        }
        let size = self.copy.look.facts(to, &self.copy.record).size;
        let uuid = self.uuid();
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
        self.is_back_on(to);
        self.finish().await
    }

    /// What it has there now is no more what was left behind. On any other host it still is, wherever it moves.
    fn is_back_on(&mut self, host: &HostId) {
        if self.copy.record.left.as_ref() == Some(host) {
            self.copy.record.left = None;
        }
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
                Err(Error::Permanent { .. }) if config.cold_moves && ran && !self.copy.record.adopted() => {}
                other => return other,
            }
        }
        if self.copy.record.adopted() {
            return Err(permanent(
                "it was adopted, and is moved only while it runs: what it needs beside its disks may not be there",
            ));
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
        let record = self.copy.record.clone();
        let left = move |connection: &Arc<Connect>| calls::remove(connection, &record, None).map(drop);
        self.manager.hosts.change(host, self.session, left).await
    }

    /// Whether all that an adopted VM has for disks is where the hosts have the same.
    ///
    /// # Errors
    /// [`Error::Permanent`] if it is not, or may not be: a file of that name there may be another's.
    async fn expect_movable(&self) -> Result<(), Error> {
        let config = &self.manager.config;
        let Some(pool) = config.pool.clone().filter(|_| config.shared_storage) else {
            return Err(permanent("it was adopted, and hosts share no storage: `libvirt.shared_storage` is not set"));
        };
        let belongings = domain::belongings(&self.copy.look.document).map_err(|error| permanent(error.to_string()))?;
        let pool_path = move |connection: &Arc<Connect>| calls::pool_path(connection, &pool);
        let path = self.manager.hosts.call(&self.copy.host, pool_path).await?;
        for disk in &belongings.disks {
            let source = disk.source.as_deref().unwrap_or(&disk.target);
            let within = source.strip_prefix(&path).is_some_and(|rest| rest.starts_with('/') && !rest.contains("/../"));
            if !disk.file || !within {
                let detail =
                    format!("it was adopted, and its disk {source} is not in the pool that hosts share, {path}");
                return Err(permanent(detail));
            }
            if !disk.uncached {
                let detail =
                    format!("it was adopted, and its disk {source} has a cache that is not `none` or `directsync`");
                return Err(permanent(detail));
            }
        }
        Ok(())
    }

    async fn live(&self, target: &Arc<Host>) -> Result<(), Error> {
        let to = Arc::clone(target);
        if self.copy.record.adopted() {
            target.adopted.put(self.op.vm, self.uuid());
        }
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
