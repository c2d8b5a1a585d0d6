//! Operations: each is done once by its number, which the VM's note holds.
//!
//! A change of shape carries the note with it. All others are three tasks: the note with the new number
//! and *doing*, the change itself, the note again. Whoever finds *doing* looks whether the change is
//! there, and makes it if it is not.

use std::time::Duration;

use cellbus_bus::ids::{HostId, OpNumber, VmId};
use cellbus_bus::job::{Power, Size, StopMode};
use cellbus_cell::driver::{Error, Op};
use cellbus_directory::VmFacts;
use cellbus_directory::vm::PowerState;
use cellbus_workflows::{Action, AdoptSpec, CreateSpec};

use crate::driver::{Inner, Reserved, locked};
use crate::foreign::{disks_gib, disks_of};
use crate::note::Note;
use crate::read::{HostSeen, VmSeen};
use crate::soap::Failure;
use crate::spec::{self, Network};
use crate::vim::Ref;
use crate::xml::{Element, text};

/// How long a guest may take to shut down before its power is cut.
const SHUTDOWN: Duration = Duration::from_secs(300);
/// Between two looks at a VM that is to change by itself.
pub(crate) const LOOK: Duration = Duration::from_millis(250);
/// How long a name that is taken may lead to no VM.
const APPEARS: Duration = Duration::from_secs(60);

pub(crate) type Done = Result<Option<VmFacts>, Failure>;

pub(crate) fn refused(error: Error) -> Failure {
    Failure::Refused(error)
}
pub(crate) fn invalid(detail: impl Into<String>) -> Failure {
    refused(Error::Invalid { detail: detail.into() })
}
fn no_room(detail: impl Into<String>) -> Failure {
    refused(Error::NoRoom { detail: detail.into() })
}

impl Inner {
    pub(crate) async fn perform(&self, op: &Op) -> Done {
        let _one = self.one_at_a_time(op.vm).await;
        if op.action == Action::Inspect {
            return match self.settled(op.vm).await? {
                Some(seen) => self.facts(&seen).await,
                None => Ok(None),
            };
        }
        self.session()?.may_change()?;
        if let Some(last) = self.deleted(op.vm) {
            if op.number < last {
                return Err(refused(Error::Superseded { asked: op.number, last }));
            }
            if op.number == last && op.action == Action::Delete {
                return Ok(None);
            }
        }
        if let Action::Adopt(spec) = &op.action
            && let Some(key) = &spec.foreign
        {
            return self.adopt(op, spec, key).await;
        }
        let seen = self.settled(op.vm).await?;
        // One that was adopted is ours by its note alone.
        if let Some(seen) = seen.as_ref().filter(|seen| seen.adopted) {
            ours(seen)?;
        }
        if let Some(note) = seen.as_ref().and_then(|seen| seen.note.as_ref())
            && op.number < note.op
        {
            return Err(refused(Error::Superseded { asked: op.number, last: note.op }));
        }
        match (&op.action, seen) {
            (Action::Adopt(spec), Some(seen)) => {
                keeps_its_name(ours(&seen)?, spec)?;
                self.facts(&seen).await
            }
            (Action::Create(spec), None) => self.create(op, spec).await,
            (Action::Create(spec), Some(seen)) => self.finish_create(op, spec, seen).await,
            (Action::Delete, None) => {
                self.session()?.none_being_made(op.vm, &self.own).await?;
                self.bury(op.vm, op.number);
                Ok(None)
            }
            (Action::Delete, Some(seen)) => self.delete(op, &seen).await,
            (_, None) => {
                self.session()?.none_being_made(op.vm, &self.own).await?;
                Err(refused(Error::NotFound))
            }
            (_, Some(seen)) => self.change(op, seen).await,
        }
    }

    /// The VM once no task of any session runs on it.
    async fn settled(&self, vm: VmId) -> Result<Option<VmSeen>, Failure> {
        let session = self.session()?;
        loop {
            match session.find(vm).await? {
                Some(seen) if seen.running() => session.env().sleep(LOOK).await,
                seen => return Ok(seen),
            }
        }
    }

    async fn facts(&self, seen: &VmSeen) -> Done {
        Ok(Some(self.session()?.facts(seen, &self.hosts()).await?))
    }

    /// As it is after the operation, with its note closed.
    async fn close(&self, vm: VmId, number: OpNumber, with: impl FnOnce(&mut Note)) -> Done {
        let session = self.session()?;
        let mut seen = session.find(vm).await?.ok_or_else(|| refused(Error::NotFound))?;
        let mut note = ours(&seen)?.clone();
        (note.op, note.doing) = (number, false);
        with(&mut note);
        if Some(&note) != seen.note.as_ref() {
            session.carry_out("ReconfigVM_Task", &seen.this, &[spec::change(&note, None, None, None)]).await?;
        }
        seen.note = Some(note);
        self.facts(&seen).await
    }

    // ── create ──

    async fn create(&self, op: &Op, spec: &CreateSpec) -> Done {
        if spec.copy_of.is_some() || !spec.snapshots.is_empty() {
            // An empty VM in its place would be taken for the VM, and its source deleted.
            return Err(invalid("a vCenter cannot take the copy of a VM of another manager yet"));
        }
        let session = self.session()?;
        let host = op.host.as_ref().ok_or_else(|| invalid("a create names its host"))?;
        let reserved = self.reserve(host, op.vm, spec.size).await?;
        let seen = &reserved.host;
        let pool = self.pool(seen).await?;
        let (folder, note) = (session.place()?.folder.clone(), Note::of(op.vm, op.number, spec));
        let task = match &self.vsphere.templates {
            None => {
                let datastore = reserved.lay(op.datastore.as_deref(), spec.size.disk_gib)?;
                let network = self.network().await?;
                let name = self.hosts().datastores.get(&datastore).map(|it| it.name.clone()).unwrap_or_default();
                let config = spec::empty(op.vm, &note, spec.size, &name, network.as_ref());
                session.begin("CreateVM_Task", &folder, &[config, pool.xml("pool"), seen.this.xml("host")]).await
            }
            Some(templates) => {
                let image = &spec.template.image;
                let template = self.template(templates, image).await?;
                let over = if self.vsphere.linked_clones {
                    Some(self.below(&template, image, spec.size.disk_gib).await?)
                } else {
                    None
                };
                let datastore = match &over {
                    None => reserved.lay(op.datastore.as_deref(), spec.size.disk_gib)?,
                    Some(below) => linked_to(&reserved, below)?,
                };
                let snapshot = over.as_ref().map(|below| &below.snapshot);
                let spec = spec::clone(op.vm, &note, spec.size, (&seen.this, &pool, &datastore), snapshot);
                let parts = [folder.xml("folder"), text("name", op.vm.to_string()), spec];
                session.begin("CloneVM_Task", &template, &parts).await
            }
        };
        let made = match task {
            Ok(task) => {
                self.own.began(&task, op.vm);
                let made = session.follow(&task).await;
                // While its end is not known it may still make the VM.
                if !matches!(made, Err(Failure::NoAnswer(_))) {
                    self.own.ended(&task);
                }
                made.map(|_| ())
            }
            Err(failure) => Err(failure),
        };
        match made {
            Ok(()) => {}
            // An earlier try has made it, or is about to.
            Err(Failure::Fault(fault)) if fault.kind == "DuplicateName" => {}
            Err(failure) => {
                self.forget();
                return Err(failure);
            }
        }
        let appears = async {
            loop {
                match self.settled(op.vm).await {
                    Ok(None) => session.env().sleep(LOOK).await,
                    seen => return seen,
                }
            }
        };
        let seen = session.env().timeout(APPEARS, appears).await;
        let nothing = || Failure::NoAnswer("its name is taken, and there is no such VM".to_owned());
        let seen = seen.ok_or_else(nothing)??.ok_or_else(nothing)?;
        self.finish_create(op, spec, seen).await
    }

    /// Of a VM that is there: what lacks of the create that made it.
    async fn finish_create(&self, op: &Op, spec: &CreateSpec, seen: VmSeen) -> Done {
        let session = self.session()?;
        let mut note = match &seen.note {
            Some(note) => note.clone(),
            // A clone for which the vCenter has not taken what was asked for.
            None => {
                let note = Note::of(op.vm, op.number, spec);
                let id = (!seen.known_by_its_id()).then_some(op.vm);
                let change = spec::change(&note, id, Some(spec.size), None);
                session.carry_out("ReconfigVM_Task", &seen.this, &[change]).await?;
                note
            }
        };
        if note.vm != op.vm || (&note.tenant, &note.name) != (&spec.tenant, &spec.name) {
            return Err(invalid(format!("there is another VM under this id: {} of {}", note.name, note.tenant)));
        }
        if !note.doing {
            return if note.op == op.number {
                self.facts(&seen).await
            } else {
                self.close(op.vm, op.number, |_| ()).await
            };
        }
        if self.vsphere.templates.is_some()
            && let Some(disk) = self.disks(&seen.this).await?.first()
        {
            // The template's own size is the least.
            let kib: u64 = disk.child("capacityInKB").and_then(Element::number).unwrap_or(0);
            note.disk_gib = spec.size.disk_gib.max(kib >> 20);
            if !self.vsphere.linked_clones
                && let Some(grown) = spec::grown(disk, spec.size.disk_gib)
            {
                let change = spec::change(&note, None, None, Some(grown));
                session.carry_out("ReconfigVM_Task", &seen.this, &[change]).await?;
            }
        }
        if spec.power == Power::On && seen.power != PowerState::Running {
            session.carry_out("PowerOnVM_Task", &seen.this, &[]).await?;
        }
        self.close(op.vm, op.number, |closed| closed.disk_gib = note.disk_gib).await
    }

    async fn template(&self, folder: &str, image: &str) -> Result<Ref, Failure> {
        let session = self.session()?;
        let mut at = session.place()?.vm_folder.clone();
        for part in folder.split('/').filter(|part| !part.is_empty()).chain([image]) {
            let found = session.child(&at, part).await?;
            at = found.ok_or_else(|| invalid(format!("there is no template {image} in the folder {folder}")))?;
        }
        if at.kind == crate::read::VM { Ok(at) } else { Err(invalid(format!("{image} is no template"))) }
    }

    /// What a clone of this template with a disk of this size lies over.
    async fn below(&self, template: &Ref, image: &str, disk_gib: u64) -> Result<Below, Failure> {
        let names = ["snapshot", "datastore", "config.hardware.device"];
        let seen = self.session()?.look(template, &names).await?.ok_or_else(|| refused(Error::NotFound))?;
        let snapshot = seen.properties.get("snapshot").and_then(|tree| tree.child("currentSnapshot"));
        let snapshot = snapshot.and_then(Ref::of);
        let none = || invalid(format!("the template {image} has no snapshot, which linked clones lie over"));
        let snapshot = snapshot.ok_or_else(none)?;
        let devices = seen.properties.get("config.hardware.device");
        let disk = devices.and_then(|devices| devices.children.iter().find(|device| device.kind == "VirtualDisk"));
        let has: u64 = disk.and_then(|disk| disk.child("capacityInKB")?.number()).unwrap_or(0) >> 20;
        if disk_gib > has {
            let detail = format!("the disk of the template {image} has {has} GiB, and one of a linked clone stays so");
            return Err(invalid(detail));
        }
        Ok(Below { snapshot, datastores: seen.references("datastore") })
    }

    async fn network(&self) -> Result<Option<Network>, Failure> {
        let Some(name) = &self.vsphere.network else { return Ok(None) };
        if let Some(known) = locked(&self.known).network.clone() {
            return Ok(Some(known));
        }
        let network = self.find_network(name).await?;
        locked(&self.known).network = Some(network.clone());
        Ok(Some(network))
    }

    async fn find_network(&self, name: &str) -> Result<Network, Failure> {
        let session = self.session()?;
        let missing = || refused(Error::Permanent { detail: format!("there is no network {name} (vsphere.network)") });
        let datacenter = session.place()?.datacenter.clone();
        let folder = session.look(&datacenter, &["networkFolder"]).await?;
        let folder = folder.and_then(|it| it.reference("networkFolder")).ok_or_else(missing)?;
        let found = session.child(&folder, name).await?.ok_or_else(missing)?;
        if found.kind != "DistributedVirtualPortgroup" {
            return Ok(Network::Standard(name.to_owned()));
        }
        let group = session.look(&found, &["key", "config.distributedVirtualSwitch"]).await?.ok_or_else(missing)?;
        let switch = group.reference("config.distributedVirtualSwitch").ok_or_else(missing)?;
        let switch = session.look(&switch, &["uuid"]).await?.ok_or_else(missing)?;
        Ok(Network::Distributed { port_group: group.text("key").to_owned(), switch: switch.text("uuid").to_owned() })
    }

    async fn pool(&self, host: &HostSeen) -> Result<Ref, Failure> {
        if let Some(known) = locked(&self.known).pools.get(&host.compute).cloned() {
            return Ok(known);
        }
        let compute = self.session()?.look(&host.compute, &["resourcePool"]).await?;
        let pool = compute.and_then(|it| it.reference("resourcePool"));
        let pool = pool.ok_or_else(|| no_room(format!("{} belongs to no resource pool", host.host.id)))?;
        locked(&self.known).pools.insert(host.compute.clone(), pool.clone());
        Ok(pool)
    }

    async fn disks(&self, vm: &Ref) -> Result<Vec<Element>, Failure> {
        let seen = self.session()?.look(vm, &["config.hardware.device"]).await?;
        let devices = seen.and_then(|mut seen| seen.properties.remove("config.hardware.device"));
        Ok(devices.map(disks_of).unwrap_or_default())
    }

    // ── delete ──

    async fn delete(&self, op: &Op, seen: &VmSeen) -> Done {
        if seen.note.as_ref().is_some_and(|note| note.vm != op.vm) {
            return Err(refused(Error::Permanent {
                detail: "its note names another VM: nothing is deleted".to_owned(),
            }));
        }
        let session = self.session()?;
        if seen.power != PowerState::Stopped {
            self.cut_power(&seen.this).await?;
        }
        match session.carry_out("Destroy_Task", &seen.this, &[]).await {
            Ok(_) => {}
            Err(Failure::Fault(fault)) if fault.kind == "ManagedObjectNotFound" => {}
            Err(failure) => return Err(failure),
        }
        self.bury(op.vm, op.number);
        Ok(None)
    }

    // ── changes ──

    async fn change(&self, op: &Op, seen: VmSeen) -> Done {
        let note = ours(&seen)?.clone();
        let again = note.op == op.number;
        if again && !note.doing {
            return self.facts(&seen).await;
        }
        if let Action::Resize(size) = &op.action {
            return self.resize(op, &seen, note, *size).await;
        }
        let step = match self.step(op, &seen, again)? {
            Some(step) => step,
            None => return self.close(op.vm, op.number, |_| ()).await,
        };
        let reserved = match &step {
            Step::Relocate(host) => {
                let size = Size { vcpus: seen.vcpus, memory_mib: seen.memory_mib, disk_gib: note.disk_gib };
                Some(self.reserve(host, op.vm, size).await?)
            }
            _ => None,
        };
        // Its disks go along where the host has not the datastores that they lie on, or is not to use them.
        let storage = match &reserved {
            Some(reserved) if seen.datastores.iter().any(|it| !reserved.host.datastores.contains(it)) => {
                Some(reserved.lay(op.datastore.as_deref(), note.disk_gib)?.xml("datastore"))
            }
            Some(_) | None => None,
        };
        let session = self.session()?;
        if !again {
            let marked = Note { op: op.number, doing: true, ..note };
            let change = spec::change(&marked, None, None, None);
            session.carry_out("ReconfigVM_Task", &seen.this, &[change]).await?;
        }
        let vm = &seen.this;
        match step {
            Step::On => drop(session.carry_out("PowerOnVM_Task", vm, &[]).await?),
            Step::Suspend => drop(session.carry_out("SuspendVM_Task", vm, &[]).await?),
            Step::Off(StopMode::Hard) => self.cut_power(vm).await?,
            Step::Off(StopMode::Graceful) => self.shut_down(op.vm, vm).await?,
            Step::Reboot(mode) => self.reboot(vm, mode).await?,
            Step::Snapshot(name) => {
                // Of a running VM with its memory, so that going back to it finds it running.
                let memory = seen.power == PowerState::Running;
                let parts = [
                    text("name", name),
                    text("description", number_text(op.number)),
                    text("memory", memory.to_string()),
                    text("quiesce", "false"),
                ];
                session.carry_out("CreateSnapshot_Task", vm, &parts).await?;
            }
            Step::Revert(snapshot) => drop(session.carry_out("RevertToSnapshot_Task", &snapshot, &[]).await?),
            Step::Drop(snapshot) => {
                session.carry_out("RemoveSnapshot_Task", &snapshot, &[text("removeChildren", "false")]).await?;
            }
            Step::Relocate(_) => {
                let reserved = reserved.as_ref().expect("it was reserved above");
                let host = &reserved.host;
                // One that was adopted stays in the pool that its owner put it into, where that can be.
                let from = seen.host.as_ref().and_then(|on| self.hosts().name(on).cloned());
                let from = from.and_then(|on| self.hosts().get(&on).map(|on| on.compute.clone()));
                let stays = seen.adopted && from.as_ref() == Some(&host.compute);
                let pool = if stays { String::new() } else { self.pool(host).await?.xml("pool") };
                let spec = [storage.unwrap_or_default(), pool, host.this.xml("host")];
                let spec = crate::xml::node("spec", &spec);
                session.carry_out("RelocateVM_Task", vm, &[spec]).await?;
            }
        }
        self.close(op.vm, op.number, |_| ()).await
    }

    /// What is to be done; `None`: it is so already.
    fn step(&self, op: &Op, seen: &VmSeen, again: bool) -> Result<Option<Step>, Failure> {
        use PowerState::{Running, Stopped, Suspended};
        let there = |name: &str| seen.snapshots.iter().find(|snapshot| snapshot.name == name);
        Ok(match (&op.action, seen.power) {
            (Action::Start, Running) | (Action::Resume, Running) => None,
            (Action::Start, Stopped | Suspended) | (Action::Resume, Suspended) => Some(Step::On),
            (Action::Resume, Stopped) => return Err(invalid("it is off, not suspended")),
            (Action::Suspend, Suspended) => None,
            (Action::Suspend, Running) => Some(Step::Suspend),
            (Action::Suspend, Stopped) => return Err(invalid("it is off")),
            (Action::Stop(_), Stopped) => None,
            // There is no guest that could be asked.
            (Action::Stop(_), Suspended) => Some(Step::Off(StopMode::Hard)),
            (Action::Stop(mode), Running) => Some(Step::Off(*mode)),
            (Action::Restart(_), _) if again && rebooted(seen) => None,
            (Action::Restart(mode), Running) => Some(Step::Reboot(*mode)),
            (Action::Restart(_), Stopped | Suspended) => return Err(invalid("it does not run")),
            (Action::Snapshot(name), _) => match there(name.as_str()) {
                None => Some(Step::Snapshot(name.to_string())),
                Some(snapshot) if snapshot.description == number_text(op.number) => None,
                Some(_) => return Err(invalid(format!("there is a snapshot {name} already"))),
            },
            (Action::Revert(name), _) => match there(name.as_str()) {
                Some(snapshot) => Some(Step::Revert(snapshot.this.clone())),
                None => return Err(invalid(format!("there is no snapshot {name}"))),
            },
            (Action::SnapshotDelete(name), _) => there(name.as_str()).map(|it| Step::Drop(it.this.clone())),
            (Action::Relocate(host), _) => {
                let on = seen.host.as_ref().and_then(|on| self.hosts().name(on).cloned());
                (on.as_ref() != Some(host)).then(|| Step::Relocate(host.clone()))
            }
            (Action::Create(_) | Action::Delete | Action::Inspect | Action::Resize(_) | Action::Adopt(_), _) => None,
        })
    }

    async fn resize(&self, op: &Op, seen: &VmSeen, note: Note, size: Size) -> Done {
        if size.disk_gib < note.disk_gib {
            return Err(invalid(format!("its disk of {} GiB cannot shrink", note.disk_gib)));
        }
        let host = seen.host.as_ref().and_then(|on| self.hosts().name(on).cloned());
        let host = host.ok_or_else(|| Failure::NoAnswer("its host is not known".to_owned()))?;
        let reserved = self.reserve(&host, op.vm, size).await?;
        let more = size.disk_gib - note.disk_gib;
        let free = seen.datastores.iter().filter_map(|on| reserved.free.get(on)).max();
        if let Some(free) = free.filter(|free| **free < more) {
            return Err(no_room(format!("its datastore has {free} GiB free, and {more} more are wanted")));
        }
        let disks = self.disks(&seen.this).await?;
        // Of one that was adopted the size is that of all of them together.
        let counted = if note.adopted.is_some() { disks.get(1..).unwrap_or_default() } else { &[] };
        let first_gib = size.disk_gib.saturating_sub(disks_gib(counted));
        let disk = disks.first().and_then(|disk| spec::grown(disk, first_gib));
        let note = Note { op: op.number, doing: false, disk_gib: size.disk_gib, ..note };
        let change = spec::change(&note, None, Some(size), disk);
        self.session()?.carry_out("ReconfigVM_Task", &seen.this, &[change]).await?;
        self.close(op.vm, op.number, |_| ()).await
    }

    // ── power ──

    async fn cut_power(&self, vm: &Ref) -> Result<(), Failure> {
        match self.session()?.carry_out("PowerOffVM_Task", vm, &[]).await {
            Ok(_) => Ok(()),
            Err(Failure::Fault(fault)) if off_already(&fault.detail) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    async fn shut_down(&self, id: VmId, vm: &Ref) -> Result<(), Failure> {
        let session = self.session()?;
        match session.call("ShutdownGuest", vm, &[]).await {
            Ok(_) => {}
            // It has no tools that could be asked, or has just gone off.
            Err(Failure::Fault(fault)) if matches!(fault.kind.as_str(), "ToolsUnavailable" | "InvalidPowerState") => {
                return self.cut_power(vm).await;
            }
            Err(failure) => return Err(failure),
        }
        let off = async {
            loop {
                match session.find(id).await {
                    Ok(Some(seen)) if seen.power == PowerState::Running => session.env().sleep(LOOK).await,
                    Ok(_) => return Ok(()),
                    Err(failure) => return Err(failure),
                }
            }
        };
        match session.env().timeout(SHUTDOWN, off).await {
            Some(ended) => ended,
            None => self.cut_power(vm).await,
        }
    }

    async fn reboot(&self, vm: &Ref, mode: StopMode) -> Result<(), Failure> {
        let session = self.session()?;
        if mode == StopMode::Graceful {
            match session.call("RebootGuest", vm, &[]).await {
                Err(Failure::Fault(fault)) if fault.kind == "ToolsUnavailable" => {}
                answered => return answered.map(drop),
            }
        }
        session.carry_out("ResetVM_Task", vm, &[]).await.map(drop)
    }
}

/// What is to be done at the vCenter.
enum Step {
    On,
    Suspend,
    Off(StopMode),
    Reboot(StopMode),
    Snapshot(String),
    Revert(Ref),
    Drop(Ref),
    Relocate(HostId),
}

/// What a linked clone lies over.
struct Below {
    snapshot: Ref,
    /// Where the template lies.
    datastores: Vec<Ref>,
}

/// The datastore for a clone that is linked to this: one of its own, which the host must have in any case.
fn linked_to(reserved: &Reserved<'_>, below: &Below) -> Result<Ref, Failure> {
    let host = &reserved.host;
    let there = below.datastores.iter().all(|datastore| host.datastores.contains(datastore));
    let most = below.datastores.iter().filter(|_| there).max_by_key(|datastore| reserved.free.get(datastore));
    let none = || no_room(format!("{} has not the datastore of the template", host.host.id));
    most.cloned().ok_or_else(none)
}

/// The note of a VM that is to be changed.
fn ours(seen: &VmSeen) -> Result<&Note, Failure> {
    match &seen.note {
        Some(note) if note.vm == seen.id => Ok(note),
        Some(note) => Err(refused(Error::Permanent { detail: format!("its note names another VM, {}", note.vm) })),
        None => Err(refused(Error::Permanent { detail: "somebody has taken its note away".to_owned() })),
    }
}

/// A VM that carries an id of ours is whose it is, whatever else it is to be adopted as.
pub(crate) fn keeps_its_name(note: &Note, spec: &AdoptSpec) -> Result<(), Failure> {
    if (&spec.tenant, &spec.name) == (&note.tenant, &note.name) {
        return Ok(());
    }
    Err(invalid(format!("it is {} of {}, and keeps its name", note.name, note.tenant)))
}

/// Whether it was reset after its note was written last.
fn rebooted(seen: &VmSeen) -> bool {
    let last = |what: &str| {
        let ended = seen.tasks.iter().filter(|task| task.succeeded() && task.what == what);
        ended.filter_map(|task| task.queued).max()
    };
    matches!((last("VirtualMachine.reset"), last("VirtualMachine.reconfigVm").or(last("VirtualMachine.reconfigure"))),
        (Some(reset), Some(noted)) if reset > noted)
}

fn off_already(detail: &Element) -> bool {
    detail.kind == "InvalidPowerState" && detail.text_of("existingState") == "poweredOff"
}

fn number_text(number: OpNumber) -> String {
    format!("Cellbus operation {number}")
}
