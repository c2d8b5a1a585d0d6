//! What a vCenter holds: hosts, and VMs with what Cellbus wrote of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use cellbus_bus::ids::{HostId, OpNumber, ShortName, VmId};
use cellbus_bus::job::{Labels, Size};
use cellbus_cell::driver::{Datastore, Error, HeldVm, Host, Inventory, Network};
use cellbus_directory::VmFacts;
use cellbus_directory::vm::PowerState;

use crate::claims::identity;
use crate::note::Note;
use crate::session::Session;
use crate::soap::Failure;
use crate::tasks::{self, TaskSeen};
use crate::vim::{Object, PAGE, Ref, Step, from, properties};
use crate::xml::Element;

pub(crate) const VM: &str = "VirtualMachine";
pub(crate) const HOST: &str = "HostSystem";
pub(crate) const DATASTORE: &str = "Datastore";

pub(crate) const VM_PROPERTIES: &[&str] = &[
    "name",
    "parent",
    "config.annotation",
    "config.instanceUuid",
    "config.template",
    "config.hardware.numCPU",
    "config.hardware.memoryMB",
    "config.files.vmPathName",
    "runtime.powerState",
    "runtime.host",
    "snapshot",
    "datastore",
];
const HOST_PROPERTIES: &[&str] = &[
    "name",
    "parent",
    "datastore",
    "network",
    "summary.hardware.numCpuThreads",
    "summary.hardware.memorySize",
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
];
const DATASTORE_PROPERTIES: &[&str] =
    &["name", "summary.capacity", "summary.freeSpace", "summary.accessible", "summary.maintenanceMode"];
const NETWORK: &str = "Network";
const NETWORK_PROPERTIES: &[&str] = &["name"];
const PORT_GROUP: &str = "DistributedVirtualPortgroup";
const PORT_GROUP_PROPERTIES: &[&str] = &["name", "vm", "config.numPorts", "config.autoExpand", "config.type"];

/// A host as it was read.
#[derive(Clone, Debug)]
pub(crate) struct HostSeen {
    pub(crate) this: Ref,
    /// The cluster, or what a host alone has in its place.
    pub(crate) compute: Ref,
    pub(crate) datastores: Vec<Ref>,
    pub(crate) host: Host,
}

/// A datastore as it was read.
#[derive(Clone, Debug)]
pub(crate) struct DatastoreSeen {
    pub(crate) name: String,
    capacity_bytes: u64,
    free_bytes: u64,
    /// Whether it takes new disks.
    pub(crate) usable: bool,
}

/// What of a host is given out now.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostNow {
    pub(crate) takes_vms: bool,
    pub(crate) vcpus: u64,
    pub(crate) memory_mib: u64,
    /// GiB free on each of its datastores.
    pub(crate) free: BTreeMap<Ref, u64>,
}

fn takes_vms(host: &Object) -> bool {
    host.text("runtime.connectionState") == "connected" && host.text("runtime.inMaintenanceMode") != "true"
}

/// Hosts and datastores.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    by_name: BTreeMap<HostId, HostSeen>,
    names: BTreeMap<Ref, HostId>,
    pub(crate) datastores: BTreeMap<Ref, DatastoreSeen>,
    networks: Vec<Network>,
}

impl Hosts {
    fn of(objects: &[Object], datastore: Option<&str>) -> Self {
        let mut hosts = Self::default();
        for object in objects.iter().filter(|object| object.this.kind == DATASTORE) {
            let name = object.text("name").to_owned();
            if object.text("summary.accessible") != "true" || datastore.is_some_and(|wanted| wanted != name) {
                continue;
            }
            let seen = DatastoreSeen {
                name,
                capacity_bytes: object.number("summary.capacity").unwrap_or(0),
                free_bytes: object.number("summary.freeSpace").unwrap_or(0),
                usable: matches!(object.text("summary.maintenanceMode"), "normal" | ""),
            };
            hosts.datastores.insert(object.this.clone(), seen);
        }
        for object in objects.iter().filter(|object| object.this.kind == HOST) {
            let Ok(id) = object.text("name").parse::<HostId>() else {
                tracing::warn!(host = object.text("name"), "a host with this name cannot be used");
                continue;
            };
            let Some(compute) = object.reference("parent") else { continue };
            let datastores: Vec<Ref> =
                object.references("datastore").into_iter().filter(|it| hosts.datastores.contains_key(it)).collect();
            let host = Host {
                id: id.clone(),
                vcpus: object.number("summary.hardware.numCpuThreads").unwrap_or(0),
                memory_mib: object.number::<u64>("summary.hardware.memorySize").unwrap_or(0) >> 20,
                disk_gib: 0,
                labels: Labels::new(),
                usable: takes_vms(object) && !datastores.is_empty(),
            };
            hosts.names.insert(object.this.clone(), id.clone());
            hosts.by_name.insert(id, HostSeen { this: object.this.clone(), compute, datastores, host });
        }
        hosts.networks = networks(objects, &hosts.names);
        hosts
    }

    /// As the inventory lists them.
    fn listed_datastores(&self) -> Vec<Datastore> {
        let mut sees: BTreeMap<&Ref, Vec<HostId>> = BTreeMap::new();
        for host in self.by_name.values() {
            for this in &host.datastores {
                sees.entry(this).or_default().push(host.host.id.clone());
            }
        }
        let listed = self.datastores.iter().map(|(this, seen)| Datastore {
            name: seen.name.clone(),
            total_gib: seen.capacity_bytes >> 30,
            free_gib: seen.free_bytes >> 30,
            usable: seen.usable,
            hosts: sees.remove(this).unwrap_or_default(),
        });
        listed.collect()
    }
    pub(crate) fn get(&self, id: &HostId) -> Option<&HostSeen> {
        self.by_name.get(id)
    }
    pub(crate) fn name(&self, this: &Ref) -> Option<&HostId> {
        self.names.get(this)
    }
}

/// A VM as it was read.
#[derive(Clone, Debug)]
pub(crate) struct VmSeen {
    pub(crate) this: Ref,
    pub(crate) id: VmId,
    pub(crate) note: Option<Note>,
    instance_uuid: String,
    /// The folder that it lies in.
    parent: Option<Ref>,
    pub(crate) power: PowerState,
    pub(crate) host: Option<Ref>,
    /// What it lies on.
    pub(crate) datastores: Vec<Ref>,
    /// The one with its files, and with the disk that was made with it, by name.
    home: Option<String>,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) snapshots: Vec<Snapshot>,
    /// Its latest tasks, oldest first.
    pub(crate) tasks: Vec<TaskSeen>,
    /// Known by the UUID that it was adopted with alone: without its note nothing may be done to it.
    pub(crate) adopted: bool,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) this: Ref,
    pub(crate) name: String,
    pub(crate) description: String,
    id: u64,
}

impl VmSeen {
    /// `None`: it is none of ours.
    fn of(object: &Object) -> Option<Self> {
        let note = Note::read(object.text("config.annotation"));
        let id = identity(object.text("name"), object.text("config.instanceUuid"), note.as_ref())?;
        (object.text("config.template") != "true").then(|| Self::as_read(object, id, note))
    }
    /// Whatever it says itself, it is this VM.
    fn as_read(object: &Object, id: VmId, note: Option<Note>) -> Self {
        let instance_uuid = object.text("config.instanceUuid").to_owned();
        let adopted = note.as_ref().and_then(|note| note.adopted.as_deref());
        Self {
            this: object.this.clone(),
            id,
            adopted: adopted.is_some_and(|adopted| instance_uuid.eq_ignore_ascii_case(adopted)),
            note,
            instance_uuid,
            parent: object.reference("parent"),
            power: power(object),
            host: object.reference("runtime.host"),
            datastores: object.references("datastore"),
            home: home(object.text("config.files.vmPathName")).map(str::to_owned),
            vcpus: object.number("config.hardware.numCPU").unwrap_or(0),
            memory_mib: object.number("config.hardware.memoryMB").unwrap_or(0),
            snapshots: snapshots(object),
            tasks: Vec::new(),
        }
    }
    /// Of two with one id, the one in Cellbus's own folder is the VM: a look-up finds it first, too.
    fn before(&self, other: &Self, folder: &Ref) -> bool {
        let rank = |seen: &Self| (seen.parent.as_ref() == Some(folder), seen.known_by_its_id());
        rank(self) > rank(other)
    }
    /// Whether the vCenter knows it by the id that its name says.
    pub(crate) fn known_by_its_id(&self) -> bool {
        self.instance_uuid.eq_ignore_ascii_case(&self.id.to_string())
    }
    pub(crate) fn running(&self) -> bool {
        self.tasks.iter().any(TaskSeen::running)
    }
    fn facts_on(&self, host: HostId) -> VmFacts {
        VmFacts {
            host,
            power: self.power,
            size: Size {
                vcpus: self.vcpus,
                memory_mib: self.memory_mib,
                disk_gib: self.note.as_ref().map_or(0, |note| note.disk_gib),
            },
            // One that a person gave a name that Cellbus does not take is none that a job could mean.
            snapshots: self.snapshots.iter().filter_map(|it| it.name.parse::<ShortName>().ok()).collect(),
        }
    }
    /// `None`: it has no note, or its host is not listed.
    fn held_on_any(&self, hosts: &Hosts) -> Option<HeldVm> {
        self.held_on(hosts.name(self.host.as_ref()?)?.clone())
    }
    fn held_on(&self, host: HostId) -> Option<HeldVm> {
        let note = self.note.as_ref()?;
        Some(HeldVm {
            id: self.id,
            facts: self.facts_on(host),
            tenant: note.tenant.clone(),
            name: note.name.clone(),
            op: note.op,
            affinity: note.affinity.clone(),
            anti_affinity: note.anti_affinity.clone(),
            datastore: self.home.clone(),
        })
    }
}

/// Whether a VM runs.
pub(crate) fn power(object: &Object) -> PowerState {
    match object.text("runtime.powerState") {
        "poweredOn" => PowerState::Running,
        "suspended" => PowerState::Suspended,
        _ => PowerState::Stopped,
    }
}

/// A VM's snapshots, oldest first.
pub(crate) fn snapshots(object: &Object) -> Vec<Snapshot> {
    let mut snapshots = Vec::new();
    if let Some(tree) = object.properties.get("snapshot") {
        collect(tree.all("rootSnapshotList"), &mut snapshots);
        snapshots.sort_by_key(|snapshot| snapshot.id);
    }
    snapshots
}

/// Networks, by what hosts say that they are on.
fn networks(objects: &[Object], names: &BTreeMap<Ref, HostId>) -> Vec<Network> {
    let mut on: BTreeMap<Ref, Vec<HostId>> = BTreeMap::new();
    for object in objects.iter().filter(|object| object.this.kind == HOST) {
        let Some(name) = names.get(&object.this) else { continue };
        for network in object.references("network") {
            on.entry(network).or_default().push(name.clone());
        }
    }
    let known = objects.iter().filter(|object| [NETWORK, PORT_GROUP].contains(&object.this.kind.as_str()));
    let network = |object: &Object| {
        // Others grow with what is put on them.
        let limited = object.this.kind == PORT_GROUP
            && object.text("config.autoExpand") != "true"
            && object.text("config.type") != "ephemeral";
        let ports = object.number::<u64>("config.numPorts").filter(|_| limited);
        // A VM that has several cards on it counts as one here: the vCenter's refusal is the end.
        let ports_free = ports.map(|ports| ports.saturating_sub(object.references("vm").len() as u64));
        let hosts = on.remove(&object.this).unwrap_or_default();
        Network { name: object.text("name").to_owned(), ports_free, hosts }
    };
    known.map(network).collect()
}

/// The datastore of a path such as `[ds-1] web/web.vmx`.
fn home(path: &str) -> Option<&str> {
    let path = path.strip_prefix('[')?;
    path.split_once("] ").map(|(name, _)| name).or_else(|| path.strip_suffix(']'))
}

fn collect<'a>(trees: impl Iterator<Item = &'a Element>, out: &mut Vec<Snapshot>) {
    // As deep as an answer may be (xml.rs).
    for tree in trees {
        if let Some(this) = tree.child("snapshot").and_then(Ref::of) {
            out.push(Snapshot {
                this,
                name: tree.text_of("name").to_owned(),
                description: tree.text_of("description").to_owned(),
                id: tree.child("id").and_then(Element::number).unwrap_or(0),
            });
        }
        collect(tree.all("childSnapshotList"), out);
    }
}

impl Session {
    /// Hosts and datastores now.
    pub(crate) async fn hosts(&self, datastore: Option<&str>) -> Result<Hosts, Failure> {
        let objects = self
            .viewed(
                &[HOST, DATASTORE],
                &[properties(HOST, HOST_PROPERTIES), properties(DATASTORE, DATASTORE_PROPERTIES)],
            )
            .await?;
        Ok(Hosts::of(&objects, datastore))
    }

    /// All that there is of these kinds.
    async fn viewed(&self, kinds: &[&str], wanted: &[String]) -> Result<Vec<Object>, Failure> {
        let mut objects = Vec::new();
        self.viewed_each(kinds, wanted, PAGE, |object| objects.push(object)).await?;
        Ok(objects)
    }

    /// The same, each given away as its page of so many objects comes.
    pub(crate) async fn viewed_each(
        &self,
        kinds: &[&str],
        wanted: &[String],
        page: usize,
        each: impl FnMut(Object) + Send,
    ) -> Result<(), Failure> {
        let view = self.view(&self.place()?.datacenter, kinds).await?;
        let step = Step { kind: "ContainerView", path: "view", then: &[] };
        let parts: Vec<_> = wanted.iter().cloned().chain([from(&view, false, &[step])]).collect();
        let read = self.retrieve_each(&parts, page, each).await;
        self.drop_view(&view).await;
        read
    }

    /// Everything, with the hosts by name.
    pub(crate) async fn inventory(&self, datastore: Option<&str>) -> Result<(Inventory, Hosts), Failure> {
        let wanted = [
            properties(HOST, HOST_PROPERTIES),
            properties(DATASTORE, DATASTORE_PROPERTIES),
            properties(NETWORK, NETWORK_PROPERTIES),
            properties(PORT_GROUP, PORT_GROUP_PROPERTIES),
            properties(VM, VM_PROPERTIES),
        ];
        let objects = self.viewed(&[HOST, DATASTORE, NETWORK, PORT_GROUP, VM], &wanted).await?;
        let hosts = Hosts::of(&objects, datastore);
        let folder = self.place()?.folder.clone();
        let mut ours: BTreeMap<VmId, VmSeen> = BTreeMap::new();
        let mut foreign_vms = 0;
        for object in objects.iter().filter(|object| object.this.kind == VM) {
            // What is irregular about it the listener tells.
            let Some(seen) = VmSeen::of(object).filter(|seen| seen.held_on_any(&hosts).is_some()) else {
                foreign_vms += 1;
                continue;
            };
            self.remember(&seen);
            match ours.entry(seen.id) {
                Entry::Vacant(place) => drop(place.insert(seen)),
                Entry::Occupied(mut place) => {
                    foreign_vms += 1;
                    if seen.before(place.get(), &folder) {
                        place.insert(seen);
                    }
                }
            }
        }
        let vms = ours.values().filter_map(|seen| seen.held_on_any(&hosts)).collect();
        let listed = hosts.by_name.values().map(|seen| seen.host.clone()).collect();
        let (datastores, networks) = (hosts.listed_datastores(), hosts.networks.clone());
        Ok((Inventory { hosts: listed, vms, foreign_vms, datastores, networks }, hosts))
    }

    /// The VM of this id, wherever it was moved to; `None` if there is none now.
    pub(crate) async fn find(&self, vm: VmId) -> Result<Option<VmSeen>, Failure> {
        if let Some((at, uuid)) = self.adopted().of(&vm)
            && let Some(seen) = self.find_adopted(vm, at, &uuid).await?
        {
            return Ok(Some(seen));
        }
        let name = vm.to_string();
        let found = match self.child(&self.place()?.folder, &name).await? {
            Some(found) => Some(found),
            // Somebody may have put it into another folder.
            None => self.by_uuid(&name, None).await?,
        };
        let Some(found) = found.filter(|found| found.kind == VM) else { return Ok(None) };
        let Some((object, tasks)) = self.look_at_vm(&found, VM_PROPERTIES).await? else { return Ok(None) };
        let Some(mut seen) = VmSeen::of(&object).filter(|seen| seen.id == vm) else { return Ok(None) };
        seen.tasks = tasks;
        Ok(Some(seen))
    }

    /// The same of one that was adopted, which stood there when it was seen last.
    async fn find_adopted(&self, vm: VmId, at: Ref, uuid: &str) -> Result<Option<VmSeen>, Failure> {
        let mut at = Some(at);
        // Registered anew, it is another object.
        for again in [false, true] {
            let Some(this) = at.take() else { break };
            let there = self.look_at_vm(&this, VM_PROPERTIES).await?;
            if let Some((object, tasks)) = there {
                let known_as = object.text("config.instanceUuid");
                if known_as.is_empty() {
                    let detail = format!("the vCenter cannot read the configuration of the VM {vm} now");
                    return Err(Failure::Refused(Error::Transient { detail }));
                }
                if known_as.eq_ignore_ascii_case(uuid) && object.text("config.template") != "true" {
                    let note = Note::read(object.text("config.annotation"));
                    if note.as_ref().is_some_and(|note| note.vm != vm) {
                        return Ok(None);
                    }
                    let mut seen = VmSeen::as_read(&object, vm, note);
                    (seen.tasks, seen.adopted) = (tasks, true);
                    self.adopted().stands(vm, &this, uuid);
                    return Ok(Some(seen));
                }
            }
            if !again {
                at = self.by_uuid(uuid, None).await?.filter(|other| *other != this && other.kind == VM);
            }
        }
        Ok(None)
    }

    /// A VM, with its latest tasks, oldest first; `None` if it is gone.
    pub(crate) async fn look_at_vm(
        &self,
        this: &Ref,
        names: &[&str],
    ) -> Result<Option<(Object, Vec<TaskSeen>)>, Failure> {
        let step = Step { kind: VM, path: "recentTask", then: &[] };
        let parts = [properties(VM, names), tasks::properties(), from(this, true, &[step])];
        let objects = match self.retrieve(&parts).await {
            Err(Failure::Fault(fault)) if fault.kind == "ManagedObjectNotFound" => return Ok(None),
            answered => answered?,
        };
        let mut tasks: Vec<TaskSeen> = objects.iter().filter_map(TaskSeen::of).collect();
        tasks.sort_by_key(|task| task.queued);
        Ok(objects.into_iter().find(|object| object.this == *this).map(|object| (object, tasks)))
    }

    /// Where it stands, if nothing but that leads to it.
    fn remember(&self, seen: &VmSeen) {
        if seen.adopted {
            self.adopted().stands(seen.id, &seen.this, &seen.instance_uuid);
        }
    }

    /// As the directory keeps it. The name of a host that came since is asked for.
    pub(crate) async fn facts(&self, seen: &VmSeen, hosts: &Hosts) -> Result<VmFacts, Failure> {
        Ok(seen.facts_on(self.host_name(seen, hosts).await?))
    }

    /// As an inventory lists it; `None` if it is not known to be ours.
    pub(crate) async fn held(&self, seen: &VmSeen, hosts: &Hosts) -> Result<Option<HeldVm>, Failure> {
        Ok(seen.held_on(self.host_name(seen, hosts).await?))
    }

    async fn host_name(&self, seen: &VmSeen, hosts: &Hosts) -> Result<HostId, Failure> {
        let nowhere = || Failure::NoAnswer(format!("the vCenter does not say on which host {} is", seen.id));
        let host = seen.host.as_ref().ok_or_else(nowhere)?;
        if let Some(name) = hosts.name(host) {
            return Ok(name.clone());
        }
        let asked = self.look(host, &["name"]).await?;
        asked.and_then(|host| host.text("name").parse().ok()).ok_or_else(nowhere)
    }

    /// One host as it is now; `None` if it is gone. VMs for which `but` holds are not counted.
    pub(crate) async fn host_now(&self, host: &HostSeen, but: &BTreeSet<VmId>) -> Result<Option<HostNow>, Failure> {
        let step = |path| Step { kind: HOST, path, then: &[] };
        let adopted: BTreeSet<Ref> = but.iter().filter_map(|vm| Some(self.adopted().of(vm)?.0)).collect();
        let parts = [
            properties(HOST, &["runtime.connectionState", "runtime.inMaintenanceMode"]),
            properties(VM, &["name", "config.hardware.numCPU", "config.hardware.memoryMB", "config.template"]),
            properties(DATASTORE, &["summary.freeSpace"]),
            from(&host.this, true, &[step("vm"), step("datastore")]),
        ];
        let objects = match self.retrieve(&parts).await {
            Err(Failure::Fault(fault)) if fault.kind == "ManagedObjectNotFound" => return Ok(None),
            answered => answered?,
        };
        let Some(own) = objects.iter().find(|object| object.this == host.this) else { return Ok(None) };
        let mut now = HostNow { takes_vms: takes_vms(own), ..HostNow::default() };
        for object in &objects {
            let named = object.text("name").parse::<VmId>().is_ok_and(|id| but.contains(&id));
            let counted = named || adopted.contains(&object.this);
            if object.this.kind == VM && !counted && object.text("config.template") != "true" {
                now.vcpus += object.number::<u64>("config.hardware.numCPU").unwrap_or(0);
                now.memory_mib += object.number::<u64>("config.hardware.memoryMB").unwrap_or(0);
            }
            if host.datastores.contains(&object.this) {
                now.free.insert(object.this.clone(), object.number::<u64>("summary.freeSpace").unwrap_or(0) >> 30);
            }
        }
        Ok(Some(now))
    }

    /// The number that an operation of ours that runs on this VM has at the least.
    pub(crate) fn number_of(note: Option<&Note>) -> Option<OpNumber> {
        let note = note?;
        // The note itself is written by a task, which may be the one that runs.
        Some(if note.doing { note.op } else { note.op.next() })
    }
}

#[cfg(test)]
mod tests {
    use super::home;

    #[test]
    fn the_home_of_a_vm_is_read_from_its_path() {
        for (path, name) in [
            ("[ds-1] web/web.vmx", Some("ds-1")),
            ("[NFS old (2)] web/web.vmx", Some("NFS old (2)")),
            ("[ds-1]", Some("ds-1")),
            ("web.vmx", None),
            ("", None),
            ("[", None),
        ] {
            assert_eq!(home(path), name, "{path}");
        }
    }
}
