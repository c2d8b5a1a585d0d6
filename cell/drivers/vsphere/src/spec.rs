//! Specifications of VMs as the vSphere API takes them. The order of elements is that of its schema,
//! which a vCenter insists on.

use cellbus_bus::ids::VmId;
use cellbus_bus::job::Size;

use crate::note::Note;
use crate::vim::Ref;
use crate::xml::{Element, node, text, typed};

/// What a guest is taken to be when no template says it.
const GUEST: &str = "otherGuest64";
/// Keys of devices that are added: below zero until the vCenter gives them their own.
const CONTROLLER: i32 = -101;
const DISK: i32 = -102;
const CARD: i32 = -103;

/// A network that a card can be on.
#[derive(Clone, Debug)]
pub(crate) enum Network {
    /// By name, on the host's own switches.
    Standard(String),
    /// A port group of a distributed switch: its key and the switch's UUID.
    Distributed { port_group: String, switch: String },
}

fn shape(size: Size) -> [String; 4] {
    [
        text("numCPUs", size.vcpus.to_string()),
        text("memoryMB", size.memory_mib.to_string()),
        // So that a VM may grow while it runs.
        text("memoryHotAddEnabled", "true"),
        text("cpuHotAddEnabled", "true"),
    ]
}

/// A VM with nothing on its disk.
pub(crate) fn empty(id: VmId, note: &Note, size: Size, datastore: &str, network: Option<&Network>) -> String {
    let on = format!("[{datastore}]");
    let controller = typed(
        "device",
        "ParaVirtualSCSIController",
        &[text("key", CONTROLLER.to_string()), text("busNumber", "0"), text("sharedBus", "noSharing")],
    );
    let backing = typed(
        "backing",
        "VirtualDiskFlatVer2BackingInfo",
        &[text("fileName", &on), text("diskMode", "persistent"), text("thinProvisioned", "true")],
    );
    let disk = typed(
        "device",
        "VirtualDisk",
        &[
            text("key", DISK.to_string()),
            backing,
            text("controllerKey", CONTROLLER.to_string()),
            text("unitNumber", "0"),
            text("capacityInKB", (size.disk_gib << 20).to_string()),
        ],
    );
    let add = text("operation", "add");
    let mut devices = vec![
        node("deviceChange", &[add.clone(), controller]),
        node("deviceChange", &[add.clone(), text("fileOperation", "create"), disk]),
    ];
    devices.extend(network.map(|network| node("deviceChange", &[add, card(network)])));
    let head = [
        text("name", id.to_string()),
        text("instanceUuid", id.to_string()),
        text("guestId", GUEST),
        text("annotation", note.text()),
        node("files", &[text("vmPathName", &on)]),
    ];
    node("config", &[head.concat(), shape(size).concat(), devices.concat()])
}

fn card(network: &Network) -> String {
    let backing = match network {
        Network::Standard(name) => {
            typed("backing", "VirtualEthernetCardNetworkBackingInfo", &[text("deviceName", name)])
        }
        Network::Distributed { port_group, switch } => typed(
            "backing",
            "VirtualEthernetCardDistributedVirtualPortBackingInfo",
            &[node("port", &[text("switchUuid", switch), text("portgroupKey", port_group)])],
        ),
    };
    typed("device", "VirtualVmxnet3", &[text("key", CARD.to_string()), backing, text("addressType", "generated")])
}

/// A clone of a template; `over`: with a disk that lies over this snapshot of it.
pub(crate) fn clone(
    id: VmId,
    note: &Note,
    size: Size,
    (host, pool, datastore): (&Ref, &Ref, &Ref),
    over: Option<&Ref>,
) -> String {
    let linked = over.map(|_| text("diskMoveType", "createNewChildDiskBacking")).unwrap_or_default();
    let location = [datastore.xml("datastore"), linked, pool.xml("pool"), host.xml("host")];
    let head = [text("instanceUuid", id.to_string()), text("annotation", note.text())];
    node(
        "spec",
        &[
            node("location", &location),
            text("template", "false"),
            node("config", &[head.concat(), shape(size).concat()]),
            text("powerOn", "false"),
            over.map(|snapshot| snapshot.xml("snapshot")).unwrap_or_default(),
        ],
    )
}

/// What becomes of a VM that is there: its note, and what else is said.
pub(crate) fn change(note: &Note, id: Option<VmId>, size: Option<Size>, disk: Option<String>) -> String {
    let id = id.map(|id| text("instanceUuid", id.to_string()));
    let size =
        size.map(|size| [text("numCPUs", size.vcpus.to_string()), text("memoryMB", size.memory_mib.to_string())]);
    let parts = [
        id.unwrap_or_default(),
        text("annotation", note.text()),
        size.map(|size| size.concat()).unwrap_or_default(),
        disk.unwrap_or_default(),
    ];
    node("spec", &parts)
}

/// A VM that somebody else made becomes ours, if it is still what it was when this version of it was read.
pub(crate) fn adopted(note: &Note, version: &str) -> String {
    let version = (!version.is_empty()).then(|| text("changeVersion", version));
    node("spec", &[version.unwrap_or_default(), text("annotation", note.text())])
}

/// Makes the disk that is there as large as this. `None`: it is already, or there is none that could grow.
pub(crate) fn grown(device: &Element, gib: u64) -> Option<String> {
    let kib: u64 = device.child("capacityInKB")?.number()?;
    let wanted = gib << 20;
    let backing = device.child("backing").filter(|backing| backing.kind == "VirtualDiskFlatVer2BackingInfo")?;
    (kib < wanted).then(|| {
        let kept = ["fileName", "diskMode"].map(|name| text(name, backing.text_of(name)));
        let number = |name: &str| text(name, device.text_of(name));
        let disk = [
            number("key"),
            typed("backing", &backing.kind, &kept),
            number("controllerKey"),
            number("unitNumber"),
            text("capacityInKB", wanted.to_string()),
        ];
        node("deviceChange", &[text("operation", "edit"), typed("device", "VirtualDisk", &disk)])
    })
}
