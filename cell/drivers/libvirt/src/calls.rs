//! What is asked of one host. All of this blocks.

use std::collections::BTreeSet;

use cellbus_bus::ids::{Epoch, HostId, OpNumber, ShortName, VmId};
use cellbus_bus::job::Size;
use cellbus_cell::driver::{Error, HeldVm};
use cellbus_directory::VmFacts;
use cellbus_directory::vm::PowerState;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain as Handle;
use virt::domain_snapshot::DomainSnapshot;
use virt::network::Network;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt_sys as sys;

use crate::domain::{self, Image};
use crate::errors::{Failure, absent};
use crate::record::{Owner, Record, Tombstone, VmRecord};
use crate::xml::{DOCUMENT_BYTES_MAX, Invalid};

type Call<T> = Result<T, Failure>;

/// What a session writes to a host to own it.
#[derive(Clone)]
pub(crate) struct Ownership {
    pub(crate) manager: String,
    pub(crate) epoch: Epoch,
    pub(crate) domain: &'static str,
}

pub(crate) fn found<T>(looked: Result<T, virt::error::Error>) -> Call<Option<T>> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
pub(crate) fn lookup(connection: &Connect, uuid: Uuid) -> Call<Option<Handle>> {
    found(Handle::lookup_by_uuid(connection, uuid))
}
/// The domain with this UUID.
pub(crate) fn handle(connection: &Connect, uuid: Uuid) -> Call<Handle> {
    lookup(connection, uuid)?.ok_or_else(|| Error::NotFound.into())
}
pub(crate) fn document(handle: &Handle) -> Result<String, virt::error::Error> {
    handle.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)
}
/// The document to define a domain anew from: a domain that others made may have passwords, which libvirt
/// leaves out where it is not asked for them, and forgets where they are not given again. Not to be shown.
pub(crate) fn whole_document(handle: &Handle) -> Result<String, virt::error::Error> {
    handle.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE)
}

/// Takes the host for this session, or sees that it has it still.
///
/// libvirt changes no domain on condition that another says something. So between this look and what
/// follows, a newer session may come: a moment that nothing closes.
///
/// # Errors
/// [`Error::Revoked`] when a newer session has it; [`Error::Permanent`] when another manager has.
pub(crate) fn own(connection: &Connect, ownership: Ownership) -> Call<()> {
    let Ownership { manager, epoch, domain } = ownership;
    if let Some(handle) = lookup(connection, domain::owner_uuid())? {
        let Some(Record::Owner(owner)) = domain::read(&document(&handle)?)?.record else {
            return Err(Invalid(format!("{} says nobody's name", domain::OWNER_NAME)).into());
        };
        if owner.manager != manager {
            let detail = format!("the host belongs to the manager {} (see {})", owner.manager, domain::OWNER_NAME);
            return Err(Error::Permanent { detail }.into());
        }
        match owner.epoch.cmp(&epoch) {
            std::cmp::Ordering::Greater => return Err(Error::Revoked.into()),
            std::cmp::Ordering::Equal => return Ok(()),
            // Ours is newer: it was never here, or an older session wrote after it.
            std::cmp::Ordering::Less => {}
        }
    }
    let record = Record::Owner(Owner { manager, epoch });
    define(connection, &domain::stub(domain, domain::OWNER_NAME, domain::owner_uuid(), &record, None))?;
    Ok(())
}

/// Makes the domain, or makes it so.
pub(crate) fn define(connection: &Connect, document: &str) -> Call<Handle> {
    if document.len() > DOCUMENT_BYTES_MAX {
        return Err(Invalid("it is too long".to_owned()).into());
    }
    Ok(Handle::define_xml(connection, document)?)
}

/// Leaves a tombstone in the place of the VM's domain, which says what was left of it.
pub(crate) fn bury(connection: &Connect, domain: &str, tombstone: Tombstone, left: &[String]) -> Call<()> {
    let (name, uuid) = (domain::name_of(tombstone.id), tombstone.id.uuid());
    let known = (!left.is_empty()).then(|| format!("its disks were left: {}", left.join(", ")));
    define(connection, &domain::stub(domain, &name, uuid, &Record::Gone(tombstone), known.as_deref()))?;
    Ok(())
}

/// Takes a domain away, with its snapshots and its saved memory, powered off if it is on; and its disk, if
/// that is one of the pool. What lies beside a domain that was adopted is not ours to destroy, as others
/// may use it too: its disks, which are given, the variables of its firmware, and what its TPM keeps.
pub(crate) fn remove(connection: &Connect, record: &VmRecord, pool: Option<&str>) -> Call<Vec<String>> {
    let Some(handle) = lookup(connection, record.uuid())? else { return Ok(Vec::new()) };
    if handle.is_active()? {
        handle.destroy()?;
    }
    let flags = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA;
    if !record.adopted() {
        if let Some(pool) = pool
            && let Some(volume) = disk(connection, pool, record.id)?
        {
            volume.delete(0)?;
        }
        handle.undefine_flags(flags)?;
        return Ok(Vec::new());
    }
    let belongings = domain::belongings(&document(&handle)?)?;
    let keep = |has: bool, flag| if has { flag } else { 0 };
    let flags = flags
        | keep(belongings.nvram, sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
        | keep(belongings.tpm, sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM);
    if handle.undefine_flags(flags).is_err() {
        // It may have checkpoints of a backup tool; not every driver knows what they are.
        handle.undefine_flags(flags | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)?;
    }
    Ok(belongings.disks.into_iter().filter_map(|disk| disk.source).collect())
}

// ── disks ──

fn disk(connection: &Connect, pool: &str, vm: VmId) -> Call<Option<StorageVol>> {
    let pool = StoragePool::lookup_by_name(connection, pool)?;
    found(StorageVol::lookup_by_name(&pool, &domain::volume_of(vm)))
}

/// Whether the pool has the VM's disk. Another host may have made it after this one looked its pool through.
pub(crate) fn has_disk(connection: &Connect, pool: &str, vm: VmId) -> Call<bool> {
    // That it is listed says that it was there once.
    if disk(connection, pool, vm)?.is_some_and(|volume| volume.get_info().is_ok()) {
        return Ok(true);
    }
    StoragePool::lookup_by_name(connection, pool)?.refresh(0)?;
    Ok(disk(connection, pool, vm)?.is_some())
}
/// Where the VM's disk is, or will be.
pub(crate) fn disk_path(connection: &Connect, pool: &str, vm: VmId) -> Call<String> {
    Ok(format!("{}/{}", pool_path(connection, pool)?, domain::volume_of(vm)))
}
/// Where the pool is.
pub(crate) fn pool_path(connection: &Connect, pool: &str) -> Call<String> {
    let pool = StoragePool::lookup_by_name(connection, pool)?;
    Ok(domain::read_pool(&pool.get_xml_desc(0)?)?.path)
}

/// The image with this name.
///
/// # Errors
/// [`Error::Invalid`] if the pool has none, or it is larger than the disk.
pub(crate) fn image(connection: &Connect, pool: &str, name: &str, disk_gib: u64) -> Call<Image> {
    let invalid = |detail: String| Failure::from(Error::Invalid { detail });
    if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) {
        return Err(invalid("an image is the name of a volume".to_owned()));
    }
    let pool_name = pool;
    let pool = StoragePool::lookup_by_name(connection, pool)?;
    let mut volume = found(StorageVol::lookup_by_name(&pool, name))?;
    if volume.is_none() {
        volume = found(StorageVol::lookup_by_name(&pool, &format!("{name}.qcow2")))?;
    }
    let Some(volume) = volume else { return Err(invalid(format!("the pool {pool_name} has no image {name}"))) };
    let image = domain::read_volume(&volume.get_xml_desc(0)?)?;
    if image.bytes > disk_gib.saturating_mul(1 << 30) {
        return Err(invalid(format!("the image {name} has {} bytes, more than {disk_gib} GiB", image.bytes)));
    }
    Ok(image)
}

/// Makes the VM's disk, in the place of one that a create left that did not come to its end.
pub(crate) fn make_disk(connection: &Connect, pool: &str, vm: VmId, disk_gib: u64, image: Option<&Image>) -> Call<()> {
    if let Some(left) = disk(connection, pool, vm)? {
        left.delete(0)?;
    }
    let pool = StoragePool::lookup_by_name(connection, pool)?;
    StorageVol::create_xml(&pool, &domain::volume(&domain::volume_of(vm), disk_gib, image), 0)?;
    Ok(())
}

/// Makes the VM's disk larger.
pub(crate) fn grow_disk(connection: &Connect, pool: &str, vm: VmId, disk_gib: u64) -> Call<()> {
    let handle = handle(connection, vm.uuid())?;
    let bytes = disk_gib.checked_mul(1 << 30).ok_or_else(|| Invalid("so large a disk".to_owned()))?;
    if handle.is_active()? {
        handle.block_resize(domain::DISK, bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES)?;
    } else if let Some(volume) = disk(connection, pool, vm)? {
        volume.resize(bytes, 0)?;
    }
    Ok(())
}

// ── looking ──

/// What a host has of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// The whole domain, as it will be when it starts next.
    pub(crate) document: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) record: Record,
    pub(crate) power: PowerState,
    /// Whether there is a machine, be it paused.
    pub(crate) active: bool,
    /// The number of its run.
    pub(crate) run: Option<u32>,
    pub(crate) snapshots: Vec<ShortName>,
}

impl Look {
    pub(crate) fn facts(&self, host: &HostId, record: &VmRecord) -> VmFacts {
        let size = Size { vcpus: self.vcpus, memory_mib: self.memory_mib, disk_gib: record.disk_gib };
        VmFacts { host: host.clone(), power: self.power, size, snapshots: self.snapshots.clone() }
    }
    pub(crate) fn held(&self, host: &HostId, record: &VmRecord, datastore: Option<String>) -> HeldVm {
        HeldVm {
            id: record.id,
            facts: self.facts(host, record),
            tenant: record.tenant.clone(),
            name: record.name.clone(),
            op: record.done.unwrap_or(OpNumber(0)),
            affinity: record.affinity.clone(),
            anti_affinity: record.anti_affinity.clone(),
            // Where the disks of one that was adopted lie is not looked at.
            datastore: datastore.filter(|_| !record.adopted()),
        }
    }
}

/// What is there under this UUID; `None` if nothing is, or nothing of ours.
pub(crate) fn look(connection: &Connect, uuid: Uuid) -> Call<Option<Look>> {
    let Some(handle) = lookup(connection, uuid)? else { return Ok(None) };
    match look_at(&handle, true) {
        Ok(look) => Ok(look),
        // It went meanwhile.
        Err(Failure::Libvirt(error)) if absent(&error) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn look_at(handle: &Handle, snapshots: bool) -> Call<Option<Look>> {
    let document = document(handle)?;
    let read = domain::read(&document)?;
    let Some(record) = read.record else { return Ok(None) };
    let (state, reason) = handle.get_state()?;
    let run = handle.get_id();
    let snapshots = if snapshots { self::snapshots(handle)? } else { Vec::new() };
    Ok(Some(Look {
        vcpus: read.vcpus,
        memory_mib: read.memory_mib,
        record,
        power: power(state, reason),
        active: run.is_some(),
        run,
        snapshots,
        document,
    }))
}

pub(crate) fn power(state: sys::virDomainState, reason: i32) -> PowerState {
    match state {
        sys::VIR_DOMAIN_PAUSED | sys::VIR_DOMAIN_PMSUSPENDED => PowerState::Suspended,
        // Its memory lies on disk, and it goes on from there when it is started.
        sys::VIR_DOMAIN_SHUTOFF if reason == sys::VIR_DOMAIN_SHUTOFF_SAVED as i32 => PowerState::Suspended,
        sys::VIR_DOMAIN_SHUTOFF | sys::VIR_DOMAIN_CRASHED => PowerState::Stopped,
        _ => PowerState::Running,
    }
}

pub(crate) fn snapshots(handle: &Handle) -> Call<Vec<ShortName>> {
    let mut listed = Vec::new();
    for snapshot in handle.list_all_snapshots(sys::VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)? {
        listed.push(domain::read_snapshot(&snapshot.get_xml_desc(0)?)?);
    }
    Ok(domain::ordered(listed))
}

/// The snapshot with this name.
pub(crate) fn snapshot(handle: &Handle, name: &ShortName) -> Call<Option<DomainSnapshot>> {
    found(DomainSnapshot::lookup_by_name(handle, name.as_str(), 0))
}

/// Writes the record of a VM that is there.
pub(crate) fn write(handle: &Handle, record: &VmRecord) -> Call<()> {
    let live = if handle.is_active()? { sys::VIR_DOMAIN_AFFECT_LIVE } else { 0 };
    handle.set_metadata(
        sys::VIR_DOMAIN_METADATA_ELEMENT as i32,
        Some(&Record::Vm(Box::new(record.clone())).element().bare()),
        Some(crate::record::PREFIX),
        Some(crate::record::NAMESPACE),
        sys::VIR_DOMAIN_AFFECT_CONFIG | live,
    )?;
    Ok(())
}

/// All that is on a host.
pub(crate) struct All {
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
    /// GiB of the pool, and of these free, if there is one.
    pub(crate) pool: Option<(u64, u64)>,
    /// Whether it is on the network that VMs are put on; so it is if that is none.
    pub(crate) networked: bool,
    pub(crate) vms: Vec<(VmRecord, Look)>,
    pub(crate) tombstones: Vec<Tombstone>,
    /// Domains of others.
    pub(crate) foreign: Vec<(Uuid, Size)>,
    /// Those of them that a person has to see to, in words.
    pub(crate) irregular: Vec<String>,
}

/// Reads all that is there.
pub(crate) fn all(connection: &Connect, pool: Option<&str>, network: Option<&str>) -> Call<All> {
    let node = connection.get_node_info()?;
    let pool = match pool {
        Some(pool) => {
            let pool = domain::read_pool(&StoragePool::lookup_by_name(connection, pool)?.get_xml_desc(0)?)?;
            Some((pool.bytes >> 30, pool.free >> 30))
        }
        None => None,
    };
    let networked = match network {
        Some(name) => match found(Network::lookup_by_name(connection, name))? {
            Some(network) => network.is_active()?,
            None => false,
        },
        None => true,
    };
    let (cpus, memory_mib) = (node.cpus, node.memory >> 10);
    let (vms, tombstones, others) = (Vec::new(), Vec::new(), Vec::new());
    let irregular = Vec::new();
    let mut all = All { cpus, memory_mib, pool, networked, vms, tombstones, foreign: others, irregular };
    // Most have no snapshots, and need not be asked for them.
    let with = those(connection, sys::VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT)?;
    for handle in connection.list_all_domains(0)? {
        let uuid = handle.get_uuid()?;
        match look_at(&handle, with.contains(&uuid)) {
            Ok(Some(look)) => match look.record.clone() {
                Record::Vm(record) if record.uuid() == uuid => all.vms.push((*record, look)),
                Record::Gone(tombstone) => all.tombstones.push(tombstone),
                Record::Owner(_) => {}
                Record::Vm(record) => {
                    let name = handle.get_name()?;
                    all.irregular
                        .push(format!("the domain {name} has the record of {}: somebody copied it", record.id));
                    all.foreign.push((uuid, look.facts_size()));
                }
            },
            Ok(None) => all.foreign.push((uuid, foreign(&handle)?)),
            Err(Failure::Libvirt(error)) if absent(&error) => {}
            Err(Failure::Ours(error)) => {
                tracing::warn!(domain = %uuid, %error, "a domain cannot be read, and is taken for another's");
                all.foreign.push((uuid, foreign(&handle)?));
            }
            Err(failure @ Failure::Libvirt(_)) => return Err(failure),
        }
    }
    Ok(all)
}

/// The domains of a host that are so.
pub(crate) fn those(connection: &Connect, so: sys::virConnectListAllDomainsFlags) -> Call<BTreeSet<Uuid>> {
    Ok(connection.list_all_domains(so)?.iter().filter_map(|handle| handle.get_uuid().ok()).collect())
}

impl Look {
    fn facts_size(&self) -> Size {
        Size { vcpus: self.vcpus, memory_mib: self.memory_mib, disk_gib: 0 }
    }
}

fn foreign(handle: &Handle) -> Call<Size> {
    let info = handle.get_info()?;
    Ok(Size { vcpus: info.nr_virt_cpu, memory_mib: info.max_mem >> 10, disk_gib: 0 })
}

/// Takes the domain of a VM away that is elsewhere by now, or deleted, if it is as it was seen and does not run. Its
/// disk is left: it may be what the VM has. Gives whether it did.
pub(crate) fn clear_away(connection: &Connect, record: &VmRecord) -> Call<bool> {
    let Some(handle) = lookup(connection, record.uuid())? else { return Ok(false) };
    let now = domain::read(&document(&handle)?)?.record;
    if now != Some(Record::Vm(Box::new(record.clone()))) || handle.is_active()? {
        return Ok(false);
    }
    // Memory that was saved there is from before; and what was a snapshot's is in the disk.
    handle.undefine_flags(sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)?;
    Ok(true)
}

/// Takes a tombstone away, if it is still that one.
pub(crate) fn unbury(connection: &Connect, tombstone: Tombstone) -> Call<()> {
    let Some(handle) = lookup(connection, tombstone.id.uuid())? else { return Ok(()) };
    if domain::read(&document(&handle)?)?.record == Some(Record::Gone(tombstone)) {
        handle.undefine()?;
    }
    Ok(())
}
