//! The way of an operation: where the VM is, what its number says, and what is done.
//!
//! What cannot be had in one call of libvirt is done so: the number is written to the VM as begun, what
//! was asked is done, the number is written as done. Wherever that stops, the same number finds how far
//! it came and goes on from there, and a lower one is refused.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::HostId;
use cellbus_bus::job::{Power, Size, StopMode};
use cellbus_cell::driver::{Error, Op};
use cellbus_directory::vm::PowerState;
use cellbus_workflows::{Action, AdoptSpec, CreateSpec};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain as Handle;

use crate::calls;
use crate::domain::{self, Boot, Machine};
use crate::driver::{Manager, Outcome};
use crate::errors::Failure;
use crate::hosts::{Host, Session};
use crate::reading::{Copy, Found};
use crate::record::{Begun, Tombstone, VmRecord};

mod moving;
mod recovery;
mod snapshots;

/// How often a guest that shuts down is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn invalid(detail: impl Into<String>) -> Error {
    Error::Invalid { detail: detail.into() }
}
fn permanent(detail: impl Into<String>) -> Error {
    Error::Permanent { detail: detail.into() }
}

impl Manager {
    /// Carries the operation out to its end. Nothing else is under way on the VM in this process.
    pub(crate) async fn carry_out(&self, session: &Session, op: &Op) -> Outcome {
        let found = self.find(session, op.vm).await?;
        let Some(copy) = found.copies.first().cloned() else { return self.on_nothing(session, op, &found).await };
        let last = copy.record.last();
        if op.number < last {
            return Err(Error::Superseded { asked: op.number, last });
        }
        if copy.record.done == Some(op.number) {
            return Ok(Some(copy.look.facts(&copy.host.name, &copy.record)));
        }
        let again = copy.record.begun.is_some_and(|begun| begun.op == op.number);
        if let Action::Delete = op.action {
            return self.delete(session, op, &found).await;
        }
        if let Action::Create(spec) = &op.action {
            if (&spec.tenant, &spec.name) != (&copy.record.tenant, &copy.record.name) {
                let VmRecord { name, tenant, .. } = &copy.record;
                return Err(invalid(format!("a VM with this id is there, and is {name} of {tenant}")));
            }
            if copy.record.done.is_none() {
                return self.make_on(Work { manager: self, session, op, copy, again: true }, spec, &found).await;
            }
        } else if copy.record.done.is_none() {
            return Err(invalid("it was not made to its end yet"));
        }
        let work = Work { manager: self, session, op, copy, again };
        match &op.action {
            Action::Inspect => Ok(Some(work.copy.look.facts(&work.copy.host.name, &work.copy.record))),
            Action::Create(_) => work.finish().await,
            Action::Start => work.start().await,
            Action::Stop(mode) => work.stop(*mode).await,
            Action::Restart(mode) => work.restart(*mode).await,
            Action::Suspend => work.suspend().await,
            Action::Resume => work.resume().await,
            Action::Resize(size) => work.resize(*size).await,
            Action::Snapshot(_) | Action::Revert(_) | Action::SnapshotDelete(_) => work.snapshots().await,
            Action::Relocate(host) => {
                let to = op.host.as_ref().unwrap_or(host).clone();
                work.relocate(&to, &found).await
            }
            Action::Adopt(spec) if spec.foreign.is_some() && work.copy.record.adopted() => work.adopt(spec).await,
            Action::Adopt(spec) => {
                let VmRecord { name, tenant, .. } = &work.copy.record;
                if (&spec.tenant, &spec.name) != (tenant, name) {
                    return Err(invalid(format!("it is {name} of {tenant}, and keeps its name")));
                }
                Ok(Some(work.copy.look.facts(&work.copy.host.name, &work.copy.record)))
            }
            // Before this.
            Action::Delete => work.finish().await,
        }
    }

    /// Where no host has the VM.
    async fn on_nothing(&self, session: &Session, op: &Op, found: &Found) -> Outcome {
        if let Some((_, tombstone)) = found.tombstones.first() {
            let last = tombstone.op;
            if op.number < last {
                return Err(Error::Superseded { asked: op.number, last });
            }
            if op.number == last {
                return if matches!(op.action, Action::Delete | Action::Inspect) {
                    Ok(None)
                } else {
                    Err(Error::NotFound)
                };
            }
        }
        if let Some(error) = &found.unsure {
            return Err(error.clone());
        }
        if let Some(told) = &found.fenced {
            return match &op.action {
                Action::Relocate(host) => self.recover(session, op, told, op.host.as_ref().unwrap_or(host)).await,
                Action::Inspect => Ok(Some(told.facts.clone())),
                other => Err(recovery::not_before_it_is_moved(other, &told.facts.host)),
            };
        }
        match &op.action {
            Action::Create(spec) => self.create(session, op, spec, found).await,
            Action::Delete => {
                // A create that is still on its way must find the tombstone.
                let fenced = session.fences.now();
                let older = found.tombstones.first();
                let at = older.map(|(host, _)| host).or_else(|| self.hosts.asked(&fenced).into_iter().next());
                let Some(host) = at else {
                    return Err(Error::Unreachable { detail: "all hosts are out, or called dead".to_owned() });
                };
                let left = self.may_be_left_on(session, &fenced, op.vm);
                let left = left.or_else(|| older.and_then(|(_, tombstone)| tombstone.left.clone()));
                let (tombstone, domain) = (self.tombstone(op, left), self.config.domain.as_str());
                let buried = move |connection: &Arc<Connect>| calls::bury(connection, domain, tombstone, &[]);
                self.hosts.change(host, session, buried).await.map(|()| None)
            }
            Action::Inspect => Ok(None),
            Action::Adopt(spec) if spec.foreign.is_some() => self.take_in(session, op, spec, found).await,
            Action::Start
            | Action::Stop(_)
            | Action::Restart(_)
            | Action::Suspend
            | Action::Resume
            | Action::Resize(_)
            | Action::Snapshot(_)
            | Action::Revert(_)
            | Action::SnapshotDelete(_)
            | Action::Adopt(_)
            | Action::Relocate(_) => Err(Error::NotFound),
        }
    }

    fn tombstone(&self, op: &Op, left: Option<HostId>) -> Tombstone {
        Tombstone { id: op.vm, op: op.number, at_ms: self.env.wall().0, left }
    }

    // ── create and delete ──

    async fn create(&self, session: &Session, op: &Op, spec: &CreateSpec, found: &Found) -> Outcome {
        if spec.copy_of.is_some() || !spec.snapshots.is_empty() {
            // It would be an empty disk under the name of a copy.
            return Err(invalid("libvirt hosts take no copies from other managers"));
        }
        let name = op.host.as_ref().ok_or_else(|| invalid("no host was given"))?;
        let fenced = session.fences.now();
        let host = self.hosts.by_name(&fenced, name)?;
        if let Some(copy) = found.outlived.iter().find(|copy| copy.look.active) {
            let host = &copy.host.name;
            return Err(permanent(format!(
                "a VM with this id was deleted, and still runs on {host}: power it off there"
            )));
        }
        let record = VmRecord {
            id: op.vm,
            domain: None,
            done: None,
            begun: Some(Begun { op: op.number, run: None }),
            tenant: spec.tenant.clone(),
            name: spec.name.clone(),
            affinity: spec.template.policy.affinity.clone(),
            anti_affinity: spec.template.policy.anti_affinity.clone(),
            epoch: session.epoch,
            disk_gib: spec.size.disk_gib,
            left: self.may_be_left_on(session, &fenced, op.vm),
        };
        let copy = self.define_new(session, host, record, spec.size).await?;
        self.make_on(Work { manager: self, session, op, copy, again: false }, spec, found).await
    }

    /// Defines a VM's domain, if there is room for it. Its disk is another matter.
    async fn define_new(
        &self,
        session: &Session,
        host: &Arc<Host>,
        record: VmRecord,
        size: Size,
    ) -> Result<Copy, Error> {
        let vm = record.id;
        let path = match self.config.pool.clone() {
            Some(pool) => Some(self.hosts.call(host, move |connection| calls::disk_path(connection, &pool, vm)).await?),
            None => None,
        };
        let console = self.config.console_dir.as_ref().map(|dir| format!("{dir}/{}.log", domain::name_of(vm)));
        let document = domain::machine(&Machine {
            domain: self.config.domain.as_str(),
            record: &record,
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            disk: path.as_deref(),
            shared_storage: self.config.shared_storage,
            network: self.config.network.as_deref(),
            boot: self.config.boot.as_ref().map(|boot| Boot {
                kernel: &boot.kernel,
                initrd: boot.initrd.as_deref(),
                cmdline: &boot.cmdline,
            }),
            console: console.as_deref(),
            seed_from: self.config.seed_from.as_deref(),
        });
        {
            let mut taken = host.taken.lock().await;
            let (given, room) = self.count(host, &mut taken).await?;
            given.fits(host.name.as_str(), room, vm.uuid(), size)?;
            // The last moment to see that it may not be made in the place of what was left there.
            if let Some(left) = record.left.as_ref().filter(|left| !session.fences.now().has(left)) {
                return Err(Error::Unreachable { detail: format!("host {left}: it is not called dead any more") });
            }
            if !self.is_latest(session) {
                return Err(Error::Revoked);
            }
            host.sending(vm);
            // What is sent may be done whatever is answered: it takes its room until somebody counts again.
            given.0.insert(vm.uuid(), size);
            let defined =
                self.hosts.change(host, session, move |connection| calls::define(connection, &document)).await;
            if let Err(error) = defined {
                given.0.remove(&vm.uuid());
                host.make_stale();
                return Err(error);
            }
        }
        let look = self.look(host, vm.uuid()).await?;
        let Some(look) = look else { return Err(Error::Unreachable { detail: "what was made is gone".to_owned() }) };
        Ok(Copy { host: Arc::clone(host), look, record })
    }

    /// Brings a VM to its end whose domain is there.
    async fn make_on(&self, work: Work<'_>, spec: &CreateSpec, found: &Found) -> Outcome {
        let host = Arc::clone(&work.copy.host);
        match work.made(spec).await {
            Ok(()) => {}
            // Not known to have failed, or somebody else's by now.
            Err(error @ (Error::Unreachable { .. } | Error::Revoked | Error::Busy { .. })) => return Err(error),
            Err(error) => {
                let (pool, domain) = (self.config.pool.clone(), self.config.domain.as_str());
                let record = work.copy.record.clone();
                let tombstone =
                    found.tombstones.iter().find(|(at, _)| Arc::ptr_eq(at, &host)).map(|(_, was)| was.clone());
                let undo = move |connection: &Arc<Connect>| {
                    let left = calls::remove(connection, &record, pool.as_deref())?;
                    tombstone.map_or(Ok(()), |was| calls::bury(connection, domain, was, &left))
                };
                let undone = self.hosts.change(&host, work.session, undo).await;
                host.make_stale();
                return Err(match undone {
                    Ok(()) => error,
                    Err(undo) => Error::Unreachable { detail: format!("{error}; and it was not undone: {undo}") },
                });
            }
        }
        let session = work.session.clone();
        let facts = work.finish().await?;
        self.unbury(&session, &found.tombstones, Some(&host)).await;
        Ok(facts)
    }

    /// The VM is there: what was left of it before is of no use any more. On the host that is named, it stands in the
    /// place of that.
    pub(crate) async fn unbury(
        &self,
        session: &Session,
        tombstones: &[(Arc<Host>, Tombstone)],
        but: Option<&Arc<Host>>,
    ) {
        for (at, tombstone) in tombstones {
            if but.is_some_and(|host| Arc::ptr_eq(at, host)) {
                continue;
            }
            let (vm, tombstone) = (tombstone.id, tombstone.clone());
            let unburied = move |connection: &Arc<Connect>| calls::unbury(connection, tombstone);
            if let Err(error) = self.hosts.change(at, session, unburied).await {
                tracing::warn!(host = %at.name, %vm, %error, "an old tombstone was left; the VM counts");
            }
        }
    }

    async fn delete(&self, session: &Session, op: &Op, found: &Found) -> Outcome {
        if let Some(error) = &found.unsure
            && found.copies.is_empty()
        {
            return Err(error.clone());
        }
        // The first is the one that counts, and goes last: it has the number.
        for (index, copy) in found.copies.iter().enumerate().rev() {
            let mut record = copy.record.clone();
            record.begun = Some(Begun { op: op.number, run: None });
            record.epoch = session.epoch;
            let (pool, domain) = (self.config.pool.clone(), self.config.domain.as_str());
            let tombstone = (index == 0).then(|| self.tombstone(op, record.left.clone()));
            let uuid = record.uuid();
            let begun = record.clone();
            self.hosts
                .change(&copy.host, session, move |connection| {
                    calls::write(&calls::handle(connection, uuid)?, &begun)?;
                    Ok(())
                })
                .await?;
            let left = self
                .hosts
                .change(&copy.host, session, move |connection| {
                    let left = calls::remove(connection, &record, pool.as_deref())?;
                    tombstone.map_or(Ok(()), |tombstone| calls::bury(connection, domain, tombstone, &left))?;
                    Ok(left)
                })
                .await?;
            if !left.is_empty() {
                tracing::info!(host = %copy.host.name, vm = %op.vm, disks = ?left, "the disks of a VM that was adopted are left");
            }
            if let Some(taken) = copy.host.taken.lock().await.as_mut() {
                taken.0.remove(&uuid);
            }
        }
        self.note_place(session, op.vm, None);
        Ok(None)
    }
}

/// An operation on a VM that is there.
struct Work<'a> {
    manager: &'a Manager,
    session: &'a Session,
    op: &'a Op,
    copy: Copy,
    /// Whether the number has begun before.
    again: bool,
}

impl Work<'_> {
    /// A change of the VM's domain.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Handle, &Arc<Connect>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        self.change_at(&self.copy.host, work).await
    }
    async fn change_at<T: Send + 'static>(
        &self,
        host: &Arc<Host>,
        work: impl FnOnce(&Handle, &Arc<Connect>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        let uuid = self.uuid();
        let on_handle = move |connection: &Arc<Connect>| work(&calls::handle(connection, uuid)?, connection);
        self.manager.hosts.change(host, self.session, on_handle).await
    }
    /// Of its domain.
    fn uuid(&self) -> Uuid {
        self.copy.record.uuid()
    }
    fn power(&self) -> PowerState {
        self.copy.look.power
    }
    fn expect(&self, power: PowerState, done: &str) -> Result<(), Error> {
        if self.power() == power {
            return Ok(());
        }
        let now = match self.power() {
            PowerState::Running => "running",
            PowerState::Stopped => "powered off",
            PowerState::Suspended => "suspended",
        };
        Err(invalid(format!("a VM that is {now} cannot be {done}")))
    }

    /// Writes the number as begun. From here on a lower one is refused.
    async fn begin(&mut self) -> Result<(), Error> {
        if self.again {
            return Ok(());
        }
        self.copy.record.begun = Some(Begun { op: self.op.number, run: self.copy.look.run });
        self.copy.record.epoch = self.session.epoch;
        let record = self.copy.record.clone();
        self.change(move |handle, _| calls::write(handle, &record)).await
    }

    /// Writes the number as done, and says how the VM is now.
    async fn finish(self) -> Outcome {
        let mut record = self.copy.record.clone();
        record.done = Some(self.op.number);
        record.begun = None;
        record.epoch = self.session.epoch;
        let written = record.clone();
        let uuid = self.uuid();
        let look = self
            .change(move |handle, connection| {
                calls::write(handle, &written)?;
                calls::look(connection, uuid)
            })
            .await?;
        // Somebody removed it in this moment.
        let Some(look) = look else { return Err(Error::NotFound) };
        let held = look.held(&self.copy.host.name, &record, self.manager.datastore());
        self.manager.note_place(self.session, self.op.vm, Some((&self.copy.host, &held)));
        Ok(Some(held.facts))
    }

    /// It was adopted before, and nobody knows of it any more: who it belongs to is said anew.
    async fn adopt(mut self, spec: &AdoptSpec) -> Outcome {
        (self.copy.record.tenant, self.copy.record.name) = (spec.tenant.clone(), spec.name.clone());
        self.finish().await
    }

    /// Gives a new domain its disk and its power.
    async fn made(&self, spec: &CreateSpec) -> Result<(), Error> {
        let disk_gib = self.copy.record.disk_gib;
        if let Some(pool) = self.manager.config.pool.clone()
            && !self.copy.look.active
        {
            let vm = self.op.vm;
            let (images, name) = (self.manager.config.images.clone(), spec.template.image.clone());
            self.change(move |_, connection| {
                let image = images.map(|images| calls::image(connection, &images, &name, disk_gib)).transpose()?;
                calls::make_disk(connection, &pool, vm, disk_gib, image.as_ref())
            })
            .await?;
        }
        if spec.power == Power::On && !self.copy.look.active {
            self.change(|handle, _| Ok(handle.create().map(drop)?)).await?;
        }
        Ok(())
    }

    // ── power ──

    /// Starts it, or lets it go on.
    async fn go_on(&self) -> Result<(), Error> {
        let active = self.copy.look.active;
        self.change(move |handle, _| {
            if active {
                handle.resume()?;
            } else {
                handle.create()?;
            }
            Ok(())
        })
        .await
    }

    async fn start(mut self) -> Outcome {
        self.begin().await?;
        if self.power() != PowerState::Running {
            self.go_on().await?;
        }
        self.finish().await
    }

    async fn resume(mut self) -> Outcome {
        if self.power() != PowerState::Running {
            self.expect(PowerState::Suspended, "resumed")?;
        }
        self.start_from_suspended().await?;
        self.finish().await
    }
    async fn start_from_suspended(&mut self) -> Result<(), Error> {
        self.begin().await?;
        if self.power() == PowerState::Suspended { self.go_on().await } else { Ok(()) }
    }

    async fn suspend(mut self) -> Outcome {
        if self.power() != PowerState::Suspended {
            self.expect(PowerState::Running, "suspended")?;
        }
        self.begin().await?;
        if self.power() == PowerState::Running {
            self.change(|handle, _| Ok(handle.suspend().map(drop)?)).await?;
        }
        self.finish().await
    }

    async fn stop(mut self, mode: StopMode) -> Outcome {
        self.begin().await?;
        self.power_off(mode).await?;
        self.finish().await
    }

    /// Powers it off; a guest that is asked to shut down is given its time for it.
    async fn power_off(&self, mode: StopMode) -> Result<(), Error> {
        if self.power() == PowerState::Stopped {
            return Ok(());
        }
        if !self.copy.look.active {
            return self.change(|handle, _| Ok(handle.managed_save_remove(0).map(drop)?)).await;
        }
        if mode == StopMode::Graceful && self.power() == PowerState::Running {
            // A guest that cannot hear it is powered off in the end.
            match self.change(|handle, _| Ok(handle.shutdown().map(drop)?)).await {
                Ok(()) | Err(Error::Permanent { .. } | Error::Transient { .. } | Error::Invalid { .. }) => {}
                Err(error) => return Err(error),
            }
            let env = &self.manager.env;
            let began = env.mono();
            while env.mono().since(began) < self.manager.config.stop_grace {
                match self.manager.look(&self.copy.host, self.uuid()).await? {
                    Some(look) if look.active => env.sleep(LOOK_EVERY).await,
                    Some(_) | None => return Ok(()),
                }
            }
        }
        self.change(|handle, _| {
            if handle.is_active()? {
                handle.destroy()?;
            }
            Ok(())
        })
        .await
    }

    async fn restart(mut self, mode: StopMode) -> Outcome {
        let look = &self.copy.look;
        let run = self.copy.record.begun.filter(|_| self.again).and_then(|begun| begun.run);
        // It runs, and not as it did when this number began: that was the restart.
        if self.again && look.run.is_some() && look.run != run {
            return self.finish().await;
        }
        if !self.again {
            self.expect(PowerState::Running, "restarted")?;
        }
        self.begin().await?;
        self.power_off(mode).await?;
        self.change(|handle, _| Ok(handle.create().map(drop)?)).await?;
        #[cfg(test)]
        self.manager.hosts.trouble.restarted(self.op.vm);
        self.finish().await
    }

    // ── shape ──

    async fn resize(mut self, size: Size) -> Outcome {
        let now = self.copy.look.facts(&self.copy.host.name, &self.copy.record).size;
        if size.disk_gib < now.disk_gib {
            return Err(invalid(format!("the disk has {} GiB and cannot shrink to {}", now.disk_gib, size.disk_gib)));
        }
        if size.vcpus == 0 || size.memory_mib == 0 {
            return Err(invalid("a VM needs at least one vCPU and one MiB"));
        }
        if size.disk_gib > now.disk_gib && self.copy.record.adopted() {
            return Err(invalid("it was adopted, and its disks are not Cellbus's to grow: grow them there"));
        }
        let host = Arc::clone(&self.copy.host);
        let uuid = self.uuid();
        let mut taken = host.taken.lock().await;
        if size != now {
            let (given, room) = self.manager.count(&host, &mut taken).await?;
            given.fits(host.name.as_str(), room, uuid, size)?;
        }
        self.begin().await?;
        if size.disk_gib > now.disk_gib
            && let Some(pool) = self.manager.config.pool.clone()
        {
            let (vm, disk_gib) = (self.op.vm, size.disk_gib);
            self.change(move |_, connection| calls::grow_disk(connection, &pool, vm, disk_gib)).await?;
        }
        self.copy.record.disk_gib = size.disk_gib;
        let record = self.copy.record.clone();
        self.change(move |handle, connection| {
            let document = domain::changed(&calls::whole_document(handle)?, &record, size)?;
            calls::define(connection, &document).map(drop)
        })
        .await?;
        if let Some(taken) = taken.as_mut() {
            taken.0.insert(uuid, size);
        }
        drop(taken);
        self.finish().await
    }
}
