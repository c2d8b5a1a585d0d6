//! How much of a host is given out: libvirt would give out any amount.

use std::collections::BTreeMap;

use cellbus_bus::job::Size;
use cellbus_cell::driver::Error;
use uuid::Uuid;

/// What a host has, after over-commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) vcpus: u64,
    pub(crate) memory_mib: u64,
    pub(crate) disk_gib: u64,
}

/// What each domain of a host takes of it, those of others included.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken(pub(crate) BTreeMap<Uuid, Size>);

impl Taken {
    /// # Errors
    /// [`Error::NoRoom`]: with this domain of this size the host would give out more than it has.
    pub(crate) fn fits(&self, host: &str, room: Room, uuid: Uuid, size: Size) -> Result<(), Error> {
        let mut sum = (u64::from(size.vcpus), size.memory_mib, size.disk_gib);
        for (_, other) in self.0.iter().filter(|(other, _)| **other != uuid) {
            sum.0 = sum.0.saturating_add(u64::from(other.vcpus));
            sum.1 = sum.1.saturating_add(other.memory_mib);
            sum.2 = sum.2.saturating_add(other.disk_gib);
        }
        if sum.0 <= room.vcpus && sum.1 <= room.memory_mib && sum.2 <= room.disk_gib {
            return Ok(());
        }
        Err(Error::NoRoom {
            detail: format!(
                "host {host} would have {} vCPUs, {} MiB and {} GiB of disk in use, of {}, {} and {}",
                sum.0, sum.1, sum.2, room.vcpus, room.memory_mib, room.disk_gib
            ),
        })
    }
}
