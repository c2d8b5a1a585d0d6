//! VMs that stand at a vCenter and are not Cellbus's: which there are, and one becomes ours.
//!
//! To adopt a VM is to write a line into its annotation, above what its owner wrote there. It keeps its name,
//! its folder and its instance UUID, by which others know it (backups, NSX). Its key is that UUID: unlike the
//! reference of the object, it stays when the VM is registered anew.

use std::collections::BTreeSet;

use cellbus_bus::ids::{ForeignKey, HostId, ShortName, VmId};
use cellbus_bus::job::Size;
use cellbus_cell::driver::{Error, ForeignVm, Op};
use cellbus_directory::VmFacts;
use cellbus_workflows::AdoptSpec;

use crate::claims::identity;
use crate::driver::Inner;
use crate::note::Note;
use crate::perform::{Done, LOOK, invalid, keeps_its_name, refused};
use crate::read::{Hosts, VM, VM_PROPERTIES, power, snapshots};
use crate::soap::Failure;
use crate::tasks::TaskSeen;
use crate::vim::{Object, Ref, properties};
use crate::xml::Element;

/// VMs a page: their devices are some ten KiB each.
const PAGE: usize = 200;
/// What is read of them beside.
const MORE_PROPERTIES: &[&str] =
    &["config.changeVersion", "config.ftInfo", "config.hardware.device", "config.managedBy", "runtime.connectionState"];
/// Bytes of an annotation that is kept.
const ANNOTATION_BYTES_MAX: usize = 32 << 10;
/// Characters of what people call a VM: vCenter takes 80.
const NAME_MAX: usize = 256;

fn wanted() -> Vec<&'static str> {
    [VM_PROPERTIES, MORE_PROPERTIES].concat()
}

/// The disks among a VM's devices, in their order.
pub(crate) fn disks_of(devices: Element) -> Vec<Element> {
    devices.children.into_iter().filter(|device| device.kind == "VirtualDisk").collect()
}

/// Their size together, in whole GiB: the last one that is begun counts.
pub(crate) fn disks_gib(disks: &[Element]) -> u64 {
    let kib = disks.iter().filter_map(|disk| disk.child("capacityInKB")?.number::<u64>());
    kib.fold(0, u64::saturating_add).div_ceil(1 << 20)
}

/// What of a VM is a fact, as the directory keeps it.
fn facts(object: &mut Object, host: HostId) -> VmFacts {
    let disks = object.properties.remove("config.hardware.device").map(disks_of).unwrap_or_default();
    let size = Size {
        vcpus: object.number("config.hardware.numCPU").unwrap_or(0),
        memory_mib: object.number("config.hardware.memoryMB").unwrap_or(0),
        disk_gib: disks_gib(&disks),
    };
    let named = snapshots(object).into_iter().filter_map(|it| it.name.parse::<ShortName>().ok());
    VmFacts { host, power: power(object), size, snapshots: named.collect() }
}

/// Why a VM that is not ours cannot become it as it is, in words.
fn unfit(object: &Object) -> Option<String> {
    let annotation = object.text("config.annotation");
    let second = |info: &Element| info.child("role").and_then(Element::number::<u32>).is_some_and(|role| role > 1);
    let manager = object.properties.get("config.managedBy").map_or("", |by| by.text_of("extensionKey"));
    match object.text("runtime.connectionState") {
        "connected" | "" => {}
        state => return Some(format!("the vCenter does not reach it ({state})")),
    }
    if let Some(note) = Note::read(annotation) {
        let copied = note.vm;
        return Some(format!(
            "it carries the note of {copied}, as a copy of it does: take that line out of its annotation"
        ));
    }
    if object.text("name").parse::<VmId>().is_ok() {
        return Some("its name is an id like those that Cellbus gives: if it is not Cellbus's, rename it".to_owned());
    }
    if !manager.is_empty() {
        return Some(format!("it is managed by {}", clean(manager)));
    }
    if object.properties.get("config.ftInfo").is_some_and(second) {
        return Some("it is the second of a VM with fault tolerance".to_owned());
    }
    (annotation.len() > ANNOTATION_BYTES_MAX)
        .then(|| format!("its annotation is longer than {} KiB, of which all is kept", ANNOTATION_BYTES_MAX >> 10))
}

fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect()
}

/// Which of ours it is, and its note, if it has one and is one.
fn ours(object: &Object) -> Option<(VmId, Note)> {
    let note = Note::read(object.text("config.annotation"))?;
    Some((identity(object.text("name"), object.text("config.instanceUuid"), Some(&note))?, note))
}

/// As it is listed; `None`: it is ours, a template, or nothing that could be told again (its configuration, or
/// its host, is not known).
fn listed(mut object: Object, hosts: &Hosts) -> Option<ForeignVm> {
    if object.text("config.template") == "true" || ours(&object).is_some() {
        return None;
    }
    let key: ForeignKey = object.text("config.instanceUuid").to_ascii_lowercase().parse().ok()?;
    let host = hosts.name(&object.reference("runtime.host")?)?.clone();
    let (name, unfit) = (clean(object.text("name")), unfit(&object));
    Some(ForeignVm { key, name, facts: facts(&mut object, host), unfit })
}

impl Inner {
    /// All that could be adopted, or would be but for a reason. Templates are not among them, nor is what a task
    /// is at just now.
    pub(crate) async fn foreign(&self) -> Result<Vec<ForeignVm>, Failure> {
        let session = self.session()?;
        let hosts = self.read_hosts().await?;
        let tasks = session.running_tasks().await?;
        let busy: BTreeSet<Ref> = tasks.into_iter().filter_map(|task| task.entity).collect();
        let mut found = Vec::new();
        let each = |object: Object| {
            if !busy.contains(&object.this) {
                found.extend(listed(object, &hosts));
            }
        };
        session.viewed_each(&[VM], &[properties(VM, &wanted())], PAGE, each).await?;
        Ok(found)
    }

    /// Makes the VM that is known by this key ours, in one change, or finds that it was made so.
    pub(crate) async fn adopt(&self, op: &Op, spec: &AdoptSpec, key: &ForeignKey) -> Done {
        let session = self.session()?;
        let none = || refused(Error::NotFound);
        let (this, mut object) = loop {
            let datacenter = session.place()?.datacenter.clone();
            let this = session.by_uuid(key.as_str(), Some(&datacenter)).await?.filter(|this| this.kind == VM);
            let this = this.ok_or_else(none)?;
            let (object, tasks) = session.look_at_vm(&this, &wanted()).await?.ok_or_else(none)?;
            // One of them may be an earlier try.
            if !tasks.iter().any(TaskSeen::running) {
                break (this, object);
            }
            session.env().sleep(LOOK).await;
        };
        let host = object.reference("runtime.host").ok_or_else(none)?;
        let host = match self.hosts().name(&host) {
            Some(name) => name.clone(),
            // It may have come since. Of another manager it is none of ours.
            None => self.read_hosts().await?.name(&host).cloned().ok_or_else(none)?,
        };
        if let Some((_, note)) = ours(&object).filter(|(id, note)| (*id, note.vm) == (op.vm, op.vm)) {
            if op.number < note.op {
                return Err(refused(Error::Superseded { asked: op.number, last: note.op }));
            }
            keeps_its_name(&note, spec)?;
            session.adopted().stands(op.vm, &this, key.as_str());
            let facts = facts(&mut object, host);
            return Ok(Some(VmFacts { size: Size { disk_gib: note.disk_gib, ..facts.size }, ..facts }));
        }
        if object.text("config.template") == "true" {
            return Err(invalid("it is a template"));
        }
        if let Some(why) = unfit(&object) {
            return Err(invalid(why));
        }
        let facts = facts(&mut object, host);
        let uuid = object.text("config.instanceUuid");
        let below = object.text("config.annotation");
        let note = Note::adopting((op.vm, op.number), spec, uuid, facts.size.disk_gib, below);
        // Whatever is written by others meanwhile is neither lost nor overlooked.
        let change = crate::spec::adopted(&note, object.text("config.changeVersion"));
        session.carry_out("ReconfigVM_Task", &this, &[change]).await?;
        session.adopted().stands(op.vm, &this, uuid);
        Ok(Some(facts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::parse;

    const UUID: &str = "5029c440-85ee-c2a1-e9dd-b63e39364603";

    fn vm(more: &[(&str, &str)]) -> Object {
        let mut object = Object { this: Ref::new(VM, "vm-7"), properties: Default::default() };
        let usual = [("name", "web"), ("config.instanceUuid", UUID), ("runtime.connectionState", "connected")];
        for (name, value) in usual.iter().chain(more) {
            let value = parse(&format!("<val>{value}</val>")).unwrap();
            object.properties.insert((*name).to_owned(), value);
        }
        object
    }

    #[test]
    fn what_cannot_be_adopted_says_why() {
        assert_eq!(unfit(&vm(&[])), None);
        let note =
            format!("{{\"cellbus\":1,\"vm\":\"{UUID}\",\"op\":3,\"tenant\":\"a\",\"name\":\"b\",\"disk_gib\":4}}");
        let long = "x".repeat(ANNOTATION_BYTES_MAX + 1);
        for (name, value, why) in [
            ("runtime.connectionState", "orphaned", "does not reach it (orphaned)"),
            ("config.annotation", note.as_str(), "carries the note of 5029c440"),
            ("name", UUID, "its name is an id"),
            ("config.managedBy", "<extensionKey>com.vmware.vim.eam</extensionKey>", "managed by com.vmware.vim.eam"),
            ("config.ftInfo", "<role>2</role>", "fault tolerance"),
            ("config.annotation", long.as_str(), "longer than 32 KiB"),
        ] {
            let said = unfit(&vm(&[(name, value)])).unwrap_or_default();
            assert!(said.contains(why), "{name}: {said}");
        }
        assert_eq!(unfit(&vm(&[("config.ftInfo", "<role>1</role>"), ("config.annotation", "by hand")])), None);
    }

    #[test]
    fn sizes_are_those_of_all_disks() {
        let disk = |kib: u64| {
            format!("<VirtualDevice xsi:type=\"VirtualDisk\"><capacityInKB>{kib}</capacityInKB></VirtualDevice>")
        };
        let card = "<VirtualDevice xsi:type=\"VirtualVmxnet3\"/>";
        let devices = [disk(10 << 20), card.to_owned(), disk((5 << 20) + 1)].concat();
        let facts = facts(&mut vm(&[("config.hardware.device", &devices)]), "h1".parse().unwrap());
        assert_eq!(facts.size.disk_gib, 16);
    }
}
