//! Documents of libvirt that Cellbus writes and reads: domains, volumes, pools, snapshots.

use cellbus_bus::ids::{ManagerId, ShortName, VmId};
use cellbus_bus::job::Size;
use quick_xml::Writer;
use quick_xml::events::Event;
use uuid::Uuid;

use crate::record::{Record, VmRecord};
use crate::xml::{Found, Invalid, What, close, empty, leaf, open, text_of, walk};

/// What the names of our domains and volumes begin with.
pub(crate) const NAME_PREFIX: &str = "cellbus-";
/// A host has more only if somebody has filled it up.
const SNAPSHOTS_MAX: usize = 1_000;

/// A VM's domain has this name: whoever has the one has the other.
pub(crate) fn name_of(vm: VmId) -> String {
    format!("{NAME_PREFIX}{vm}")
}
/// The VM whose domain has this name, if it is one of ours.
pub(crate) fn vm_of(name: &str) -> Option<VmId> {
    name.strip_prefix(NAME_PREFIX)?.parse().ok()
}
/// The volume with a VM's disk.
pub(crate) fn volume_of(vm: VmId) -> String {
    format!("{NAME_PREFIX}{vm}.qcow2")
}

/// The address of a VM's card: one of those that nobody has bought, as much of it from the VM's id as is free.
fn mac_of(vm: VmId) -> String {
    let [.., a, b, c, d, e] = vm.uuid().into_bytes();
    format!("52:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

/// The domain that says who owns a host. One a host, whichever manager it is.
pub(crate) const OWNER_NAME: &str = "cellbus-owner";
pub(crate) fn owner_uuid() -> Uuid {
    ManagerId::derive(OWNER_NAME).uuid()
}

/// What a VM's domain is made of.
pub(crate) struct Machine<'a> {
    /// `kvm`, `qemu` or `test`.
    pub(crate) domain: &'a str,
    pub(crate) record: &'a VmRecord,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    /// The path of its disk, which is a qcow2.
    pub(crate) disk: Option<&'a str>,
    /// Whether other hosts have that disk too.
    pub(crate) shared_storage: bool,
    pub(crate) network: Option<&'a str>,
    pub(crate) boot: Option<Boot<'a>>,
    /// The file that takes what it writes to its serial console.
    pub(crate) console: Option<&'a str>,
    /// Where cloud-init gets user data from.
    pub(crate) seed_from: Option<&'a str>,
}

/// A kernel that is booted in place of what is on the disk.
#[derive(Clone, Copy)]
pub(crate) struct Boot<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) initrd: Option<&'a str>,
    pub(crate) cmdline: &'a str,
}

/// The domain of a VM.
pub(crate) fn machine(machine: &Machine<'_>) -> String {
    let record = machine.record;
    let mut out = Writer::new(Vec::new());
    let to = &mut out;
    open(to, "domain", &[("type", machine.domain)]);
    leaf(to, "name", &[], &name_of(record.id));
    leaf(to, "uuid", &[], &record.id.to_string());
    leaf(to, "title", &[], &format!("{} of {}", record.name, record.tenant));
    open(to, "metadata", &[]);
    Record::Vm(Box::new(record.clone())).element().write_to(to);
    close(to, "metadata");
    leaf(to, "memory", &[("unit", "MiB")], &machine.memory_mib.to_string());
    leaf(to, "vcpu", &[], &machine.vcpus.to_string());
    if machine.domain != "test" {
        // How cloud-init hears who this is, with no disk of its own for it.
        open(to, "sysinfo", &[("type", "smbios")]);
        open(to, "system", &[]);
        let mut seed = format!("ds=nocloud;i={};h={}", record.id, record.name);
        if let Some(from) = machine.seed_from {
            seed.push_str(";s=");
            seed.push_str(from);
        }
        leaf(to, "entry", &[("name", "serial")], &seed);
        close(to, "system");
        close(to, "sysinfo");
    }
    open(to, "os", &[]);
    leaf(to, "type", &[], "hvm");
    if let Some(boot) = &machine.boot {
        leaf(to, "kernel", &[], boot.kernel);
        if let Some(initrd) = boot.initrd {
            leaf(to, "initrd", &[], initrd);
        }
        leaf(to, "cmdline", &[], boot.cmdline);
    }
    if machine.domain != "test" {
        empty(to, "smbios", &[("mode", "sysinfo")]);
    }
    close(to, "os");
    if machine.domain != "test" {
        open(to, "features", &[]);
        empty(to, "acpi", &[]);
        close(to, "features");
    }
    if machine.domain == "kvm" {
        empty(to, "cpu", &[("mode", "host-model")]);
    }
    leaf(to, "on_poweroff", &[], "destroy");
    leaf(to, "on_reboot", &[], "restart");
    leaf(to, "on_crash", &[], "destroy");
    open(to, "devices", &[]);
    if let Some(path) = machine.disk {
        open(to, "disk", &[("type", "file"), ("device", "disk")]);
        let mut driver = vec![("name", "qemu"), ("type", "qcow2")];
        if machine.shared_storage {
            // What one host has cached another would not see after a move.
            driver.push(("cache", "none"));
        }
        empty(to, "driver", &driver);
        empty(to, "source", &[("file", path)]);
        empty(to, "target", &[("dev", DISK), ("bus", "virtio")]);
        close(to, "disk");
    }
    if let Some(network) = machine.network {
        open(to, "interface", &[("type", "network")]);
        // The same wherever it is made anew: guests configure the card by its address.
        empty(to, "mac", &[("address", &mac_of(record.id))]);
        empty(to, "source", &[("network", network)]);
        empty(to, "model", &[("type", "virtio")]);
        close(to, "interface");
    }
    if let Some(path) = machine.console {
        open(to, "serial", &[("type", "file")]);
        empty(to, "source", &[("path", path), ("append", "on")]);
        close(to, "serial");
    }
    close(to, "devices");
    close(to, "domain");
    text_of(out)
}

/// The disk, as the guest has it.
pub(crate) const DISK: &str = "vda";

/// A domain that never starts, and is there for its record only; with what people should know of it.
pub(crate) fn stub(domain: &str, name: &str, uuid: Uuid, record: &Record, known: Option<&str>) -> String {
    let mut out = Writer::new(Vec::new());
    let to = &mut out;
    open(to, "domain", &[("type", domain)]);
    leaf(to, "name", &[], name);
    leaf(to, "uuid", &[], &uuid.to_string());
    leaf(to, "title", &[], "kept by Cellbus, never started");
    if let Some(known) = known {
        leaf(to, "description", &[], known);
    }
    open(to, "metadata", &[]);
    record.element().write_to(to);
    close(to, "metadata");
    leaf(to, "memory", &[("unit", "MiB")], "1");
    leaf(to, "vcpu", &[], "1");
    open(to, "os", &[]);
    leaf(to, "type", &[], "hvm");
    close(to, "os");
    close(to, "domain");
    text_of(out)
}

/// A qcow2, empty or laid over an image.
pub(crate) fn volume(name: &str, disk_gib: u64, image: Option<&Image>) -> String {
    let mut out = Writer::new(Vec::new());
    let to = &mut out;
    open(to, "volume", &[]);
    leaf(to, "name", &[], name);
    leaf(to, "capacity", &[("unit", "GiB")], &disk_gib.to_string());
    leaf(to, "allocation", &[], "0");
    open(to, "target", &[]);
    empty(to, "format", &[("type", "qcow2")]);
    close(to, "target");
    if let Some(image) = image {
        open(to, "backingStore", &[]);
        leaf(to, "path", &[], &image.path);
        empty(to, "format", &[("type", &image.format)]);
        close(to, "backingStore");
    }
    close(to, "volume");
    text_of(out)
}

/// An image that a disk is laid over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) path: String,
    pub(crate) format: String,
    pub(crate) bytes: u64,
}

/// `<domainsnapshot>` with this name.
pub(crate) fn snapshot(name: &ShortName) -> String {
    let mut out = Writer::new(Vec::new());
    open(&mut out, "domainsnapshot", &[]);
    leaf(&mut out, "name", &[], name.as_str());
    close(&mut out, "domainsnapshot");
    text_of(out)
}

/// A domain, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Domain {
    pub(crate) name: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    /// `None`: it is not ours.
    pub(crate) record: Option<Record>,
}

/// # Errors
/// [`Invalid`]: libvirt writes no such thing, or our record was tampered with.
pub(crate) fn read(document: &str) -> Result<Domain, Invalid> {
    let (mut name, mut vcpus, mut memory, mut unit, mut record) = (String::new(), None, None, None, None);
    walk(document, |found| {
        match (path_of(&found).as_slice(), found.what) {
            (["domain", "name"], What::Text(text)) => name.push_str(text),
            (["domain", "vcpu"], What::Text(text)) => vcpus = text.parse().ok(),
            (["domain", "memory"], What::Tag(tag)) => unit = tag.get("unit").map(str::to_owned),
            (["domain", "memory"], What::Text(text)) => memory = text.parse::<u64>().ok(),
            (["domain", "metadata", _], What::Ours(element)) => record = Some(Record::read(element)?),
            _ => {}
        }
        Ok(())
    })?;
    let memory = memory.ok_or_else(|| Invalid::value("memory"))?;
    let memory_mib = match unit.as_deref().unwrap_or("KiB") {
        "KiB" => memory >> 10,
        "MiB" => memory,
        other => return Err(Invalid(format!("memory in {other}"))),
    };
    Ok(Domain { name, vcpus: vcpus.ok_or_else(|| Invalid::value("vcpu"))?, memory_mib, record })
}

fn path_of<'a>(found: &Found<'a>) -> Vec<&'a str> {
    found.path.iter().map(String::as_str).collect()
}

/// The same domain with another record and shape.
///
/// # Errors
/// [`Invalid`]: it is no domain with a record of ours.
pub(crate) fn changed(document: &str, record: &VmRecord, size: Size) -> Result<String, Invalid> {
    // Checks bounds and form, so that what follows copies a sound document.
    let before = read(document)?;
    if before.record.is_none() {
        return Err(Invalid("it has no record of ours".to_owned()));
    }
    let mut reader = quick_xml::Reader::from_str(document);
    let mut out = Writer::new(Vec::new());
    let mut depth = 0_usize;
    let mut inside = String::new();
    loop {
        let event = reader.read_event()?;
        match event {
            Event::Eof => return Ok(text_of(out)),
            Event::Start(tag) => {
                depth += 1;
                let name = tag.local_name().as_ref().to_owned();
                if depth == 2 && replaced(&name, record, size, &mut out) {
                    reader.read_to_end(tag.name())?;
                    depth -= 1;
                    continue;
                }
                if depth == 2 {
                    inside.clone_from(&name);
                }
                if depth == 3 && inside == "metadata" && is_ours(&tag) {
                    Record::Vm(Box::new(record.clone())).element().write_to(&mut out);
                    reader.read_to_end(tag.name())?;
                    depth -= 1;
                    continue;
                }
                crate::xml::write(&mut out, Event::Start(tag));
            }
            Event::Empty(tag) if depth == 2 && inside == "metadata" && is_ours(&tag) => {
                Record::Vm(Box::new(record.clone())).element().write_to(&mut out);
            }
            Event::End(tag) => {
                depth = depth.saturating_sub(1);
                crate::xml::write(&mut out, Event::End(tag));
            }
            other => crate::xml::write(&mut out, other),
        }
    }
}

fn is_ours(tag: &quick_xml::events::BytesStart<'_>) -> bool {
    // libvirt writes the namespace at the element itself.
    tag.attributes().flatten().any(|attribute| {
        attribute.key.as_ref().starts_with("xmlns:")
            && attribute
                .normalized_value(quick_xml::XmlVersion::Implicit1_0)
                .is_ok_and(|value| value == crate::record::NAMESPACE)
    })
}

fn replaced(name: &str, record: &VmRecord, size: Size, out: &mut Writer<Vec<u8>>) -> bool {
    match name {
        "vcpu" => leaf(out, "vcpu", &[], &size.vcpus.to_string()),
        "memory" => leaf(out, "memory", &[("unit", "MiB")], &size.memory_mib.to_string()),
        // What it had before, which is more than a smaller VM may have.
        "currentMemory" => {}
        // Another's domain keeps the title that it was given.
        "title" if !record.adopted() => leaf(out, "title", &[], &format!("{} of {}", record.name, record.tenant)),
        _ => return false,
    }
    true
}

/// What of a domain lies outside of its document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Belongings {
    /// Its disks, CD-ROMs and floppies left out.
    pub(crate) disks: Vec<Disk>,
    /// Variables of its firmware.
    pub(crate) nvram: bool,
    /// What its TPM keeps.
    pub(crate) tpm: bool,
}
/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    /// What the guest has it as.
    pub(crate) target: String,
    /// Where it lies: a file, a device, or the name of something else.
    pub(crate) source: Option<String>,
    /// Whether that is a file.
    pub(crate) file: bool,
    /// Whether the host caches nothing of it, so that another sees at once what is written.
    pub(crate) uncached: bool,
}

/// # Errors
/// [`Invalid`].
pub(crate) fn belongings(document: &str) -> Result<Belongings, Invalid> {
    let mut belongings = Belongings::default();
    let mut is_disk = false;
    walk(document, |found| {
        match (path_of(&found).as_slice(), found.what) {
            (["domain", "devices", "disk"], What::Tag(tag)) => {
                is_disk = matches!(tag.get("device"), None | Some("disk" | "lun"));
                if is_disk {
                    belongings.disks.push(Disk::default());
                }
            }
            (["domain", "devices", "disk", "source"], What::Tag(tag)) if is_disk => {
                if let Some(disk) = belongings.disks.last_mut() {
                    disk.file = tag.get("file").is_some();
                    disk.source = ["file", "dev", "volume", "name", "dir"]
                        .into_iter()
                        .find_map(|key| tag.get(key))
                        .map(str::to_owned);
                }
            }
            (["domain", "devices", "disk", "driver"], What::Tag(tag)) if is_disk => {
                if let Some(disk) = belongings.disks.last_mut() {
                    disk.uncached = matches!(tag.get("cache"), Some("none" | "directsync"));
                }
            }
            (["domain", "devices", "disk", "target"], What::Tag(tag)) if is_disk => {
                if let (Some(disk), Some(target)) = (belongings.disks.last_mut(), tag.get("dev")) {
                    target.clone_into(&mut disk.target);
                }
            }
            (["domain", "os", "nvram"], What::Tag(_)) => belongings.nvram = true,
            (["domain", "os"], What::Tag(tag)) if tag.get("firmware") == Some("efi") => belongings.nvram = true,
            (["domain", "devices", "tpm"], What::Tag(_)) => belongings.tpm = true,
            _ => {}
        }
        Ok(())
    })?;
    Ok(belongings)
}

/// Whether there is a record of ours in a snapshot: going back to one without loses it.
///
/// # Errors
/// [`Invalid`].
pub(crate) fn has_record(snapshot: &str) -> Result<bool, Invalid> {
    let mut has = false;
    walk(snapshot, |found| {
        has |= matches!(found.what, What::Ours(_));
        Ok(())
    })?;
    Ok(has)
}

/// A storage pool: where it lies, how large it is, and what of that is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) free: u64,
}

/// Where a pool of directories has its volumes, and its size in bytes.
///
/// # Errors
/// [`Invalid`]: it is no such pool.
pub(crate) fn read_pool(document: &str) -> Result<Pool, Invalid> {
    let (mut path, mut bytes, mut free) = (None, 0, 0);
    walk(document, |found| {
        match (path_of(&found).as_slice(), found.what) {
            (["pool", "target", "path"], What::Text(text)) if !text.is_empty() => path = Some(text.to_owned()),
            (["pool", "capacity"], What::Text(text)) => bytes = text.parse().unwrap_or(0),
            (["pool", "available"], What::Text(text)) => free = text.parse().unwrap_or(0),
            _ => {}
        }
        Ok(())
    })?;
    Ok(Pool { path: path.ok_or_else(|| Invalid("the pool has no path".to_owned()))?, bytes, free })
}

/// # Errors
/// [`Invalid`]: it has no path.
pub(crate) fn read_volume(document: &str) -> Result<Image, Invalid> {
    let (mut path, mut format, mut bytes) = (None, None, 0);
    walk(document, |found| {
        match (path_of(&found).as_slice(), found.what) {
            (["volume", "target", "path"], What::Text(text)) if !text.is_empty() => path = Some(text.to_owned()),
            (["volume", "target", "format"], What::Tag(tag)) => format = tag.get("type").map(str::to_owned),
            (["volume", "capacity"], What::Text(text)) => bytes = text.parse().unwrap_or(0),
            _ => {}
        }
        Ok(())
    })?;
    let path = path.ok_or_else(|| Invalid("the volume has no path".to_owned()))?;
    Ok(Image { path, format: format.unwrap_or_else(|| "raw".to_owned()), bytes })
}

/// A snapshot's name and when it was taken, in seconds since 1970.
///
/// # Errors
/// [`Invalid`].
pub(crate) fn read_snapshot(document: &str) -> Result<(String, u64), Invalid> {
    let (mut name, mut at) = (String::new(), 0);
    walk(document, |found| {
        match (path_of(&found).as_slice(), found.what) {
            (["domainsnapshot", "name"], What::Text(text)) => name.push_str(text),
            (["domainsnapshot", "creationTime"], What::Text(text)) => at = text.parse().unwrap_or(0),
            _ => {}
        }
        Ok(())
    })?;
    Ok((name, at))
}

/// Snapshots of a VM, oldest first; those whose names no job could have given are left out.
pub(crate) fn ordered(mut snapshots: Vec<(String, u64)>) -> Vec<ShortName> {
    snapshots.truncate(SNAPSHOTS_MAX);
    // Stable: of those taken within one second, parents come first, as libvirt lists them.
    snapshots.sort_by_key(|(_, at)| *at);
    snapshots.into_iter().filter_map(|(name, _)| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::vm;

    const SIZE: Size = Size { vcpus: 4, memory_mib: 4096, disk_gib: 20 };

    fn full(record: &VmRecord) -> String {
        machine(&Machine {
            domain: "kvm",
            record,
            vcpus: 2,
            memory_mib: 2048,
            disk: Some("/pool/a&b.qcow2"),
            shared_storage: false,
            network: Some("lan <1>"),
            boot: Some(Boot { kernel: "/k", initrd: Some("/i"), cmdline: "console=ttyS0 \"x\"" }),
            console: Some("/log/c"),
            seed_from: Some("http://seeds.example/"),
        })
    }

    #[test]
    fn a_vm_is_read_as_it_was_written() {
        let record = vm();
        let document = full(&record);
        let read = read(&document).unwrap();
        assert_eq!((read.vcpus, read.memory_mib, read.name.as_str()), (2, 2048, name_of(record.id).as_str()));
        assert_eq!(read.record, Some(Record::Vm(Box::new(record.clone()))));
        assert_eq!(vm_of(&read.name), Some(record.id));
        let end = record.id.uuid().simple().to_string()[22..].to_owned();
        let address = document.split("<mac address=\"52:").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        assert_eq!(address.replace(':', ""), end, "the card has the same address wherever it is made anew");
        for part in
            ["file=\"/pool/a&amp;b.qcow2\"", "network=\"lan &lt;1&gt;\"", ";s=http://seeds.example/<", "host-model"]
        {
            assert!(document.contains(part), "{part}: {document}");
        }
        let test = machine(&Machine {
            domain: "test",
            record: &record,
            vcpus: 1,
            memory_mib: 1,
            disk: None,
            shared_storage: false,
            network: None,
            boot: None,
            console: None,
            seed_from: None,
        });
        assert!(!test.contains("smbios") && !test.contains("disk type"), "{test}");
    }

    #[test]
    fn a_change_keeps_what_is_not_ours() {
        let before = full(&vm()).replace("<metadata>", "<metadata><app:x xmlns:app=\"urn:a\"><app:y/></app:x>");
        let before = before.replace("<devices>", "<currentMemory unit=\"KiB\">5</currentMemory><devices><!-- kept -->");
        let record = VmRecord { done: Some(cellbus_bus::ids::OpNumber(8)), begun: None, ..vm() };
        let after = changed(&before, &record, SIZE).unwrap();
        assert!(after.contains("<title>web-1 of acme</title>"), "{after}");
        let theirs = before.replace("<title>web-1 of acme</title>", "<title>web-1 of theirs</title>");
        let adopted = VmRecord { domain: Some(Uuid::from_u128(7)), ..record.clone() };
        assert!(changed(&theirs, &adopted, SIZE).unwrap().contains("<title>web-1 of theirs</title>"));
        let found = read(&after).unwrap();
        assert_eq!((found.vcpus, found.memory_mib), (4, 4096));
        assert_eq!(found.record, Some(Record::Vm(Box::new(record.clone()))));
        assert!(
            after.contains("<app:y/>") && after.contains("<!-- kept -->") && !after.contains("currentMemory"),
            "{after}"
        );
        assert_eq!(after.matches(crate::record::NAMESPACE).count(), 1);
        assert!(changed("<domain><memory>1</memory><vcpu>1</vcpu></domain>", &record, SIZE).is_err());
    }

    #[test]
    fn what_belongs_to_a_domain_is_found() {
        let document = "<domain><os firmware='efi'><nvram template='/t'>/v</nvram></os><devices>\
            <disk type='file' device='cdrom'><source file='/seed.iso'/><target dev='sda'/></disk>\
            <disk type='file'><driver type='qcow2' cache='none'/><source file='/a&amp;b' index='2'/><backingStore type='file'><source file='/base'/></backingStore>\
            <target dev='vda'/></disk><disk type='block' device='disk'><source dev='/dev/x'/><target dev='vdb'/></disk>\
            <tpm model='tpm-crb'/></devices></domain>";
        let disk = |target: &str, source: &str, file| Disk {
            target: target.to_owned(),
            source: Some(source.to_owned()),
            file,
            uncached: file,
        };
        let disks = vec![disk("vda", "/a&b", true), disk("vdb", "/dev/x", false)];
        assert_eq!(belongings(document).unwrap(), Belongings { disks, nvram: true, tpm: true });
        assert_eq!(belongings("<domain/>").unwrap(), Belongings::default());
    }

    #[test]
    fn a_snapshot_has_a_record_or_has_none() {
        let snapshot = |domain: &str| format!("<domainsnapshot><name>x</name>{domain}</domainsnapshot>");
        assert!(has_record(&snapshot(&full(&vm()))).unwrap());
        assert!(!has_record(&snapshot("<domain><metadata><a:vm xmlns:a='urn:a'/></metadata></domain>")).unwrap());
    }

    #[test]
    fn other_documents_are_read() {
        let pool = "<pool type='dir'><capacity unit='bytes'>1099511627776</capacity><available unit='bytes'>1073741824</available>\
                    <target><path>/p</path></target></pool>";
        assert_eq!(read_pool(pool).unwrap(), Pool { path: "/p".to_owned(), bytes: 1 << 40, free: 1 << 30 });
        assert!(read_pool("<pool/>").is_err());
        let image = Image { path: "/i".to_owned(), format: "qcow2".to_owned(), bytes: 5 };
        let text = "<volume><capacity unit='bytes'>5</capacity><target><path>/i</path><format type='qcow2'/></target></volume>";
        assert_eq!(read_volume(text).unwrap(), image);
        assert!(volume("v", 10, Some(&image)).contains("<backingStore><path>/i</path><format type=\"qcow2\"/>"));
        let two = "<domainsnapshot><name>two</name><creationTime>7</creationTime></domainsnapshot>";
        assert_eq!(read_snapshot(two).unwrap(), ("two".to_owned(), 7));
        let listed = [("b", 7), ("a", 7), ("not a name", 1), ("c", 3)].map(|(name, at)| (name.to_owned(), at));
        assert_eq!(ordered(listed.to_vec()).iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["c", "b", "a"]);
        assert!(read("<domain><vcpu>2</vcpu></domain>").is_err());
        assert!(read("<domain><memory unit='TB'>1</memory><vcpu>2</vcpu></domain>").is_err());
    }
}
