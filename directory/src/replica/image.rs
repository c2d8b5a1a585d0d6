//! A shard's rows in columns, as the checkpoint stores them, and the way back.
//!
//! Columns are small and quick to decode; each chunk has tables of what its rows share. Places
//! are stored once for all shards, by number: they are never dropped, so a number stays what it
//! is from the process that wrote it to the one that loads it into an empty replica.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, HostId, JobId, ManagerId, OpNumber, Seq, ShardId, ShortName, TenantId, VmId};
use cellbus_bus::job::Size;
use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};

use super::key::Key;
use super::partition::{Partition, Stamp, Writer};
use super::places::NOWHERE;
use super::row::{Ms48, Text, VmExtra, VmRow, number, place_of, place_state, state_number, state_of};
use super::spot::Spot;
use super::{Replica, Shared};
use crate::fold::{Fence, Rows as _};
use crate::job::JobRow;
use crate::vm::{Doing, Place, Template, VmState};

/// VMs of a chunk: about 130 KiB, which sled keeps in its log (it never gives back the files
/// that it makes for larger values).
const VMS_A_CHUNK: usize = 2_048;
/// Jobs of a chunk, likewise.
const JOBS_A_CHUNK: usize = 512;

/// What a shard's rows are worth, and how many chunks they are in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) seq: Seq,
    epoch: Epoch,
    stamp: Option<Stamp>,
    cordons: Vec<(ManagerId, Option<HostId>)>,
    /// All chunks of one saving have the same.
    pub(crate) generation: u64,
    pub(crate) vm_chunks: u32,
    pub(crate) job_chunks: u32,
    /// Rows refer to places below this number.
    pub(crate) places: u32,
    /// Of those places: a number means another place where some of them were lost.
    pub(crate) places_sum: u32,
}

/// Rows of VMs, in columns.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VmChunk {
    pub(crate) generation: u64,
    ids: Vec<u8>,
    names: String,
    name_bytes: Vec<u8>,
    created_at: Vec<u64>,
    as_of: Vec<u64>,
    vcpus: Vec<u32>,
    memory_mib: Vec<u64>,
    disk_gib: Vec<u64>,
    op: Vec<u64>,
    settled: Vec<u8>,
    /// Numbers of places; one more, so that zero is nowhere.
    place: Vec<u32>,
    tenant: Vec<u32>,
    template: Vec<u32>,
    /// One more than the index in `jobs`; zero is the job with the VM's own id.
    job: Vec<u32>,
    tenants: Vec<TenantId>,
    templates: Vec<Arc<Template>>,
    jobs: Vec<JobId>,
    /// Few rows have any of these.
    special: Vec<(u32, Special)>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Special {
    doing: Option<Doing>,
    other: Option<Place>,
    snapshots: Vec<ShortName>,
}

/// Rows of jobs, each with what its end waits for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobChunk {
    pub(crate) generation: u64,
    jobs: Vec<(JobRow, Vec<(ShardId, Seq)>)>,
}

/// A shard, ready to be stored.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) head: Head,
    pub(crate) vms: Vec<VmChunk>,
    pub(crate) jobs: Vec<JobChunk>,
}

/// What is stored is not what was saved.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rows do not fit together: {0}")]
pub(crate) struct Damaged(&'static str);

/// Numbers values in the order in which they are first met.
struct Local<T> {
    values: Vec<T>,
    numbers: HashMap<NonZeroU32, u32, FixedState>,
}
impl<T> Local<T> {
    fn new() -> Self {
        Self { values: Vec::new(), numbers: HashMap::default() }
    }
    fn number(&mut self, shared: NonZeroU32, value: impl FnOnce() -> Option<T>) -> Option<u32> {
        if let Some(number) = self.numbers.get(&shared) {
            return Some(*number);
        }
        let number = u32::try_from(self.values.len()).ok()?;
        self.values.push(value()?);
        self.numbers.insert(shared, number);
        Some(number)
    }
}

impl Replica {
    /// How many entries were folded into each shard since it was last saved, how many rows it
    /// has, and how far it is.
    pub(crate) fn unsaved(&self, shard: ShardId) -> (u64, usize) {
        self.read(shard).map_or((0, 0), |part| (part.unsaved, part.vms.rows.len() + part.jobs.rows.len()))
    }

    /// Says that what was folded up to `seq` is saved.
    pub(crate) fn saved(&self, shard: ShardId, seq: Seq, entries: u64) {
        if let Some(mut part) = self.write(shard)
            && part.seq >= seq
        {
            part.unsaved = part.unsaved.saturating_sub(entries);
        }
    }

    /// Places from this number on.
    pub(crate) fn places_from(&self, first: u32) -> Vec<Place> {
        (first..).map_while(|number| self.shared.places.get(number).cloned()).collect()
    }

    /// The rows of a shard, to be stored.
    pub(crate) fn image(&self, shard: ShardId, generation: u64) -> Option<Image> {
        let part = self.read(shard)?;
        let vm_keys: Vec<Key> = part.vms.by_id.iter().copied().collect();
        let vms: Vec<VmChunk> = vm_keys
            .chunks(VMS_A_CHUNK)
            .map(|keys| VmChunk::of(&self.shared, &part, keys, generation))
            .collect::<Option<_>>()?;
        let job_keys: Vec<Key> = part.jobs.by_id.iter().copied().collect();
        let jobs: Vec<JobChunk> = job_keys
            .chunks(JOBS_A_CHUNK)
            .map(|keys| {
                let rows = keys.iter().map(|key| {
                    let slot = part.jobs.rows.get(key.row())?;
                    let behind = part.job_extra(slot).map(|extra| extra.behind.clone()).unwrap_or_default();
                    Some((part.job(&self.shared, slot)?, behind))
                });
                Some(JobChunk { generation, jobs: rows.collect::<Option<_>>()? })
            })
            .collect::<Option<_>>()?;
        let head = Head {
            seq: part.seq,
            epoch: part.fence.epoch(),
            stamp: part.stamp,
            cordons: part.cordons.iter().cloned().collect(),
            generation,
            vm_chunks: u32::try_from(vms.len()).ok()?,
            job_chunks: u32::try_from(jobs.len()).ok()?,
            places: self.shared.places.len_u32(),
            // Whoever stores them knows.
            places_sum: 0,
        };
        Some(Image { head, vms, jobs })
    }
}

impl VmChunk {
    fn of(shared: &Shared, part: &Partition, keys: &[Key], generation: u64) -> Option<Self> {
        let n = keys.len();
        let mut chunk = Self {
            generation,
            ids: Vec::with_capacity(16 * n),
            names: String::with_capacity(12 * n),
            name_bytes: Vec::with_capacity(n),
            created_at: Vec::with_capacity(n),
            as_of: Vec::with_capacity(n),
            vcpus: Vec::with_capacity(n),
            memory_mib: Vec::with_capacity(n),
            disk_gib: Vec::with_capacity(n),
            op: Vec::with_capacity(n),
            settled: Vec::with_capacity(n),
            place: Vec::with_capacity(n),
            tenant: Vec::with_capacity(n),
            template: Vec::with_capacity(n),
            job: Vec::with_capacity(n),
            tenants: Vec::new(),
            templates: Vec::new(),
            jobs: Vec::new(),
            special: Vec::new(),
        };
        let (mut tenants, mut templates, mut jobs) = (Local::new(), Local::new(), Local::new());
        for (at, key) in keys.iter().enumerate() {
            let row = part.vms.rows.get(key.row())?;
            let extra = part.vm_extra(row);
            let name = row.name.get(&part.texts);
            chunk.ids.extend_from_slice(row.id.as_bytes());
            chunk.names.push_str(name);
            chunk.name_bytes.push(u8::try_from(name.len()).ok()?);
            chunk.created_at.push(row.created_at.wall().0);
            chunk.as_of.push(row.as_of.wall().0);
            let size = extra.and_then(|e| e.size);
            chunk.vcpus.push(size.map_or(row.vcpus, |s| s.vcpus));
            chunk.memory_mib.push(size.map_or(u64::from(row.memory_mib), |s| s.memory_mib));
            chunk.disk_gib.push(size.map_or(u64::from(row.disk_gib), |s| s.disk_gib));
            chunk.op.push(extra.and_then(|e| e.op).map_or(u64::from(row.op), |op| op.0));
            chunk.settled.push(state_number(state_of(row.place_state)) as u8);
            let place = place_of(row.place_state);
            chunk.place.push(if place == NOWHERE { 0 } else { place + 1 });
            chunk.tenant.push(tenants.number(row.tenant, || shared.tenants.get(row.tenant))?);
            chunk.template.push(templates.number(row.template, || shared.templates.get(row.template))?);
            chunk.job.push(match row.job {
                None => 0,
                Some(job) => jobs.number(job, || shared.jobs.get(job))? + 1,
            });
            if let Some(extra) = extra
                && (extra.doing.is_some() || extra.other.is_some() || !extra.snapshots.is_empty())
            {
                let (doing, other, snapshots) = (extra.doing.clone(), extra.other.clone(), extra.snapshots.clone());
                chunk.special.push((u32::try_from(at).ok()?, Special { doing, other, snapshots }));
            }
        }
        (chunk.tenants, chunk.templates, chunk.jobs) = (tenants.values, templates.values, jobs.values);
        Some(chunk)
    }

    fn len(&self) -> usize {
        self.name_bytes.len()
    }

    /// Every column has a value for each row, and every number in one means something.
    fn check(&self, places: u32) -> Result<(), Damaged> {
        let n = self.len();
        let columns =
            [self.created_at.len(), self.as_of.len(), self.memory_mib.len(), self.disk_gib.len(), self.op.len()];
        let more = [self.vcpus.len(), self.place.len(), self.tenant.len(), self.template.len(), self.job.len()];
        if self.ids.len() != 16 * n || self.settled.len() != n || columns.iter().chain(&more).any(|len| *len != n) {
            return Err(Damaged("columns differ in length"));
        }
        let below = |numbers: &[u32], len: usize| numbers.iter().all(|number| (*number as usize) < len);
        if !below(&self.tenant, self.tenants.len())
            || !below(&self.template, self.templates.len())
            || !below(&self.job, self.jobs.len() + 1)
            || !below(&self.place, places as usize + 1)
            || self.settled.iter().any(|state| usize::from(*state) >= VmState::ALL.len())
            || self.special.iter().any(|(row, _)| *row as usize >= n)
        {
            return Err(Damaged("a number means nothing"));
        }
        let mut end = 0;
        for bytes in &self.name_bytes {
            end += usize::from(*bytes);
            if !self.names.is_char_boundary(end) {
                return Err(Damaged("names are cut short"));
            }
        }
        Ok(())
    }
}

/// Fills an empty replica from images, several shards at once. What belongs to all shards (the
/// place index and the names) is gathered and built in one go by [`Loader::finish`]: sorted
/// input makes an index several times faster and half the size.
pub(crate) struct Loader {
    replica: Arc<Replica>,
    places: u32,
    gathered: Mutex<Gathered>,
}

#[derive(Default)]
struct Gathered {
    placed: Vec<(u32, Key)>,
    named: Vec<(usize, u64)>,
}

impl Loader {
    /// `None` unless the replica is empty: only then do numbers of places mean the same.
    pub(crate) fn new(replica: Arc<Replica>, places: &[Place]) -> Option<Self> {
        if replica.shared.places.len() > 0 || !replica.shared.vms.is_empty() {
            return None;
        }
        places.iter().for_each(|place| {
            replica.shared.places.number(place);
        });
        // Stored twice, one would have taken the number of the next.
        let number = replica.shared.places.len_u32();
        (number as usize == places.len()).then_some(Self { replica, places: number, gathered: Mutex::default() })
    }

    /// Loads a shard. On an error its rows are as they were: none.
    pub(crate) fn load(
        &self,
        shard: ShardId,
        head: Head,
        vms: Vec<VmChunk>,
        jobs: Vec<JobChunk>,
    ) -> Result<usize, Damaged> {
        for chunk in &vms {
            chunk.check(self.places)?;
        }
        let count = self.replica.shared.count;
        let mut last = None;
        let mut ids = vms.iter().flat_map(|chunk| chunk.ids.chunks_exact(16)).map(vm_id);
        if !ids.all(|id| id.shard(count) == shard && last.replace(id).is_none_or(|last| last != id)) {
            return Err(Damaged("a VM is not of this shard, or is there twice"));
        }
        let Some(mut guard) = self.replica.write(shard) else { return Err(Damaged("there is no such shard")) };
        let part = &mut *guard;
        let mut gathered = Gathered::default();
        let total = vms.iter().map(VmChunk::len).sum();
        let mut by_id = Vec::with_capacity(total);
        let mut by_tenant: BTreeMap<NonZeroU32, Vec<Key>> = BTreeMap::new();
        gathered.placed.reserve(total);
        gathered.named.reserve(total);
        for chunk in vms {
            self.add_vms(part, chunk, &mut gathered, &mut by_id, &mut by_tenant);
        }
        part.vms.by_id = by_id.into_iter().collect::<BTreeSet<_>>();
        part.vms.by_tenant = by_tenant.into_iter().map(|(tenant, keys)| (tenant, keys.into_iter().collect())).collect();
        let mut writer = Writer { shared: &self.replica.shared, part };
        for (row, behind) in jobs.into_iter().flat_map(|chunk| chunk.jobs) {
            writer.restore_job(row, behind);
        }
        for (manager, host) in &head.cordons {
            writer.cordon(*manager, host.as_ref(), true);
        }
        part.fence = Fence::at(head.epoch);
        part.seq = head.seq;
        part.stamp = head.stamp;
        part.unsaved = 0;
        self.replica.moved(shard, part);
        drop(guard);
        let mut all = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        all.placed.append(&mut gathered.placed);
        all.named.append(&mut gathered.named);
        Ok(total)
    }

    fn add_vms(
        &self,
        part: &mut Partition,
        chunk: VmChunk,
        gathered: &mut Gathered,
        by_id: &mut Vec<Key>,
        by_tenant: &mut BTreeMap<NonZeroU32, Vec<Key>>,
    ) {
        let shared = &self.replica.shared;
        let tenants = acquire(&chunk.tenant, &chunk.tenants, |value, refs| shared.tenants.acquire_many(value, refs));
        let templates =
            acquire(&chunk.template, &chunk.templates, |value, refs| shared.templates.acquire_many(value, refs));
        let jobs: Vec<u32> = chunk.job.iter().filter_map(|job| job.checked_sub(1)).collect();
        let jobs = acquire(&jobs, &chunk.jobs, |value, refs| shared.jobs.acquire_many(value, refs));
        let mut special: BTreeMap<u32, Special> = chunk.special.into_iter().collect();
        let mut names = chunk.names.as_str();
        for (at, id) in chunk.ids.chunks_exact(16).map(vm_id).enumerate() {
            let (name, rest) = names.split_at(usize::from(chunk.name_bytes[at]));
            names = rest;
            let (Some(tenant), Some(template)) =
                (tenants[chunk.tenant[at] as usize], templates[chunk.template[at] as usize])
            else {
                continue;
            };
            let settled = VmState::ALL[usize::from(chunk.settled[at])];
            let place = chunk.place[at].checked_sub(1).unwrap_or(NOWHERE);
            let as_of = WallMs(chunk.as_of[at]);
            let size = Size { vcpus: chunk.vcpus[at], memory_mib: chunk.memory_mib[at], disk_gib: chunk.disk_gib[at] };
            let small = super::row::small_size(&size);
            let (vcpus, memory_mib, disk_gib) = small.unwrap_or_default();
            let op = u32::try_from(chunk.op[at]).ok();
            let special = u32::try_from(at).ok().and_then(|at| special.remove(&at));
            let doing = special.as_ref().and_then(|special| special.doing.as_ref()).map(|doing| doing.step);
            let extra = (special.is_some() || small.is_none() || op.is_none()).then(|| {
                let Special { doing, other, snapshots } =
                    special.unwrap_or(Special { doing: None, other: None, snapshots: Vec::new() });
                VmExtra {
                    doing,
                    other,
                    snapshots,
                    size: small.is_none().then_some(size),
                    op: op.is_none().then_some(OpNumber(chunk.op[at])),
                }
            });
            let row = VmRow {
                id,
                name: Text::new(name, &mut part.texts),
                created_at: Ms48::of(WallMs(chunk.created_at[at])),
                as_of: Ms48::of(as_of),
                vcpus,
                memory_mib,
                disk_gib,
                tenant,
                template,
                job: chunk.job[at].checked_sub(1).and_then(|job| jobs[job as usize]),
                op: op.unwrap_or_default(),
                place_state: place_state(place, settled),
                extra: extra.map(|extra| number(part.vm_extras.insert(Box::new(extra)))),
            };
            let state = crate::vm::Vm::state_of(settled, doing);
            let index = part.vms.rows.insert(row);
            let key = part.key(&id, index);
            by_id.push(key);
            by_tenant.entry(tenant).or_default().push(key);
            part.vms.states[state_number(state) as usize] += 1;
            if place != NOWHERE {
                gathered.placed.push((place, key));
            }
            if state != VmState::Deleted {
                let tenant = chunk.tenants[chunk.tenant[at] as usize].as_str();
                gathered.named.push(shared.names.entry_of(tenant, name, part.shard, index));
            }
            shared.vms.insert(id, Spot::new(index, place_state(place, state)));
        }
    }

    /// Builds what belongs to all shards. The replica is whole only after this.
    pub(crate) fn finish(self) {
        let mut gathered = self.gathered.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.replica.shared.places.fill(&mut gathered.placed);
        drop(gathered.placed);
        self.replica.shared.names.fill(&mut gathered.named);
    }
}

fn vm_id(bytes: &[u8]) -> VmId {
    let mut id = [0; 16];
    id.copy_from_slice(bytes);
    VmId::from_uuid(uuid::Uuid::from_bytes(id))
}

/// Numbers for the values of a chunk's table, each held as often as rows refer to it.
fn acquire<T>(column: &[u32], values: &[T], acquire: impl Fn(&T, u32) -> NonZeroU32) -> Vec<Option<NonZeroU32>> {
    let mut refs = vec![0_u32; values.len()];
    column.iter().for_each(|value| refs[*value as usize] += 1);
    values.iter().zip(refs).map(|(value, refs)| (refs > 0).then(|| acquire(value, refs))).collect()
}
