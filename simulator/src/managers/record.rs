//! How a manager's state is laid out in the store: a key names what it is about, a value replaces
//! the one before.

use std::collections::BTreeMap;

use cellbus_bus::codec;
use cellbus_bus::ids::{Epoch, HostId, ManagerId, OpNumber, VmId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::holdings::{Foreign, HostState, VmBody};
use super::store::{Held, Write};

/// What is known of a VM's id.
#[derive(Serialize, Deserialize)]
enum StoredVm {
    There(HostId, VmBody),
    Gone(OpNumber),
}
/// The same, borrowed: an operation's record is encoded without a copy.
#[derive(Serialize)]
enum StoredVmRef<'a> {
    There(&'a HostId, &'a VmBody),
    Gone(OpNumber),
}

const EPOCH: u8 = b'e';
const VM: u8 = b'v';
const HOST: u8 = b'h';
const FOREIGN: u8 = b'f';

/// One stored record, read back.
pub(super) enum Record {
    Epoch(Epoch),
    Vm(VmId, HostId, VmBody),
    Gone(VmId, OpNumber),
    Host(HostId, HostState),
    Foreign(Uuid, Foreign),
}

fn key(kind: u8, manager: ManagerId, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(17 + rest.len());
    key.push(kind);
    key.extend_from_slice(manager.as_bytes());
    key.extend_from_slice(rest);
    key
}

pub(super) fn epoch(manager: ManagerId, epoch: Epoch) -> Write {
    (key(EPOCH, manager, &[]), Some(codec::encode(&epoch)))
}
pub(super) fn vm(manager: ManagerId, id: VmId, host: &HostId, body: &VmBody) -> Write {
    (key(VM, manager, id.as_bytes()), Some(codec::encode(&StoredVmRef::There(host, body))))
}
pub(super) fn gone(manager: ManagerId, id: VmId, op: OpNumber) -> Write {
    (key(VM, manager, id.as_bytes()), Some(codec::encode(&StoredVmRef::Gone(op))))
}
pub(super) fn host(manager: ManagerId, id: &HostId, state: HostState) -> Write {
    (key(HOST, manager, id.as_str().as_bytes()), Some(codec::encode(&state)))
}
pub(super) fn foreign(manager: ManagerId, id: Uuid, foreign: &Foreign) -> Write {
    (key(FOREIGN, manager, id.as_bytes()), Some(codec::encode(foreign)))
}

pub(super) fn foreign_no_more(manager: ManagerId, id: Uuid) -> Write {
    (key(FOREIGN, manager, id.as_bytes()), None)
}

/// Reads everything back, by manager, in the order of the keys.
///
/// # Errors
/// Which record is damaged, and how.
pub(super) fn read(held: Held) -> Result<BTreeMap<ManagerId, Vec<Record>>, String> {
    let mut records: BTreeMap<ManagerId, Vec<Record>> = BTreeMap::new();
    for (key, value) in held {
        let (manager, record) =
            read_one(&key, &value).map_err(|problem| format!("the record {}: {problem}", hex(&key)))?;
        records.entry(manager).or_default().push(record);
    }
    Ok(records)
}

fn read_one(key: &[u8], value: &[u8]) -> Result<(ManagerId, Record), String> {
    let no_key = || "its key is none of ours".to_owned();
    let (kind, rest) = key.split_first().ok_or_else(no_key)?;
    let (manager, rest) = rest.split_at_checked(16).ok_or_else(no_key)?;
    let uuid = |bytes: &[u8]| Uuid::from_slice(bytes).map_err(|_| no_key());
    let damaged = |error: codec::Error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    let record = match *kind {
        EPOCH => Record::Epoch(codec::decode(value).map_err(damaged)?),
        VM => {
            let id = VmId::from_uuid(uuid(rest)?);
            match codec::decode(value).map_err(damaged)? {
                StoredVm::There(host, body) => Record::Vm(id, host, body),
                StoredVm::Gone(op) => Record::Gone(id, op),
            }
        }
        HOST => {
            let name = std::str::from_utf8(rest).ok().and_then(|name| name.parse().ok()).ok_or_else(no_key)?;
            Record::Host(name, codec::decode(value).map_err(damaged)?)
        }
        FOREIGN => Record::Foreign(uuid(rest)?, codec::decode(value).map_err(damaged)?),
        _ => return Err(no_key()),
    };
    Ok((ManagerId::from_uuid(uuid(manager)?), record))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(64).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cellbus_bus::ids::JobId;
    use cellbus_bus::job::{Labels, Policy, Power, Size};
    use cellbus_cell::driver::Op;
    use cellbus_directory::vm::{PowerState, Template};
    use cellbus_workflows::{Action, CreateSpec};

    use super::super::Overcommit;
    use super::super::holdings::Holdings;
    use super::*;
    use crate::Inventory;

    fn stored() -> Vec<Write> {
        let inventory = Inventory::generate(1, 1).unwrap();
        let (manager, host) = (inventory.managers[0].id(), &inventory.managers[0].hosts[0].id);
        let mut holdings = Holdings::new(&inventory.managers[0].hosts, Overcommit::default());
        let id = JobId::derive("acme", "/portal/eu", "order-4711").vm(0);
        let policy = Policy { affinity: Some("db".parse().unwrap()), ..Policy::default() };
        let spec = CreateSpec {
            tenant: "acme".parse().unwrap(),
            name: "web".parse().unwrap(),
            size: Size { vcpus: 4, memory_mib: 8192, disk_gib: 40 },
            template: Arc::new(Template {
                image: "x".to_owned(),
                labels: Labels::new(),
                require: Labels::new(),
                policy,
            }),
            power: Power::On,
            host: None,
            snapshots: vec!["s".parse().unwrap()],
            copy_of: Some(PowerState::Suspended),
        };
        let op = Op {
            vm: id,
            number: OpNumber(7),
            action: Action::Create(Arc::new(spec)),
            host: Some(host.clone()),
            datastore: None,
        };
        holdings.apply(&op).unwrap();
        let foreigner = Foreign { host: host.clone(), size: Size { vcpus: 1, memory_mib: 2, disk_gib: 3 } };
        vec![
            epoch(manager, Epoch(300)),
            vm(manager, id, host, &holdings.vm(&id).unwrap().body),
            gone(manager, id, OpNumber(9)),
            super::host(manager, host, HostState::Lost),
            foreign(manager, id.uuid(), &foreigner),
        ]
    }

    /// What was written by an older build must be read: these bytes may not change under format 1.
    #[test]
    fn the_bytes_of_format_1_are_pinned() {
        let values: Vec<String> = stored().iter().map(|(_, value)| hex(value.as_ref().unwrap())).collect();
        let pinned = [
            "01fb2c01",
            "01000e73696d2d303030302d68303030300461636d650377656204fb0020280007010264620000010101730200",
            "010109",
            "0102",
            "010e73696d2d303030302d6830303030010203",
        ];
        assert_eq!(values, pinned);
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let held: Held = stored().into_iter().map(|(key, value)| (key, value.unwrap())).collect();
        let read_back = read(held.clone()).unwrap().into_values().next().unwrap();
        assert_eq!(read_back.len(), 5);
        assert!(
            matches!(&read_back[1], Record::Vm(_, host, body) if host.as_str() == "sim-0000-h0000" && body.op == OpNumber(7))
        );
        assert!(matches!(read_back[2], Record::Gone(_, OpNumber(9))));
        for (key, value) in held {
            for cut in 0..value.len() {
                assert!(read(vec![(key.clone(), value[..cut].to_vec())]).is_err(), "damage is seen");
            }
            assert!(read(vec![(key[..10].to_vec(), value)]).is_err());
        }
    }
}
