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
