//! The directory in memory: every VM and job of the cluster, folded from the logs of all shards.
//!
//! ```text
//!  vms: VmId ─▶ (row, place and state)     24 bytes an entry: what `locate` reads
//!  places ─▶ manager ─▶ host ─▶ ordered keys      8 bytes a VM: lists by manager or host
//!  partition of each shard: rows, ordered keys    the rest: names, tenants, templates, jobs
//! ```
//!
//! A row refers to what it shares with others by number (tenant, image and labels, manager and
//! host, the parent job). Lists go by shard, then by id, so a cursor is an id, it means the same
//! on every replica, and a row that is there throughout is listed exactly once, however the rows
//! around it change.
//!
//! All calls take `&self`, block for microseconds at most (a page for milliseconds) and hold no
//! lock across an await. Locks are taken in one order: partition, then place index, table and
//! names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, HostId, JobId, ManagerId, Seq, ShardCount, ShardId, TenantId, VmId, VmName};
use dashmap::DashMap;
use tokio::sync::Notify;

use crate::fold::{self, Rows as _};
use crate::job::{JobRow, JobState};
use crate::record::Entry;
use crate::snapshot::ShardSnapshot;
use crate::vm::{Template, Vm, VmState};

mod grow;
mod hash;
mod image;
mod intern;
mod key;
mod list;
mod names;
mod partition;
mod places;
mod row;
mod slab;
mod spot;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use image::{Head, JobChunk, Loader, VmChunk};
pub use list::{JobFilter, ListError, PAGE_MAX, Page, VmFilter};
pub use partition::Stamp;
use partition::{Partition, Writer};
pub use spot::Location;
use spot::Spot;

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Its records are in the rows.
    Counted,
    /// It was written by an owner that had been replaced, and changes nothing.
    Void,
    /// It had been read before.
    Old,
    /// Entries before it are missing: nothing was changed, the snapshot must be loaded.
    Hole {
        /// The last entry that was read.
        applied: Seq,
    },
}

/// How many rows there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// VMs in each state, in the order of [`VmState::ALL`].
    pub vms: Vec<(VmState, usize)>,
    /// Jobs in each state, in the order of [`JobState::ALL`].
    pub jobs: Vec<(JobState, usize)>,
    /// Tenants that have rows.
    pub tenants: usize,
    /// Different sets of image, labels and policy.
    pub templates: usize,
    /// Managers and hosts that VMs are or were on.
    pub places: usize,
}

impl Stats {
    /// VMs that are not tombstones.
    #[must_use]
    pub fn vms_live(&self) -> usize {
        self.vms.iter().filter(|(state, _)| *state != VmState::Deleted).map(|(_, n)| n).sum()
    }
}

/// What all partitions share.
struct Shared {
    count: ShardCount,
    vms: DashMap<VmId, Spot, hash::ByShard>,
    places: places::Places,
    names: names::Names,
    tenants: intern::Interner<TenantId>,
    templates: intern::Interner<Arc<Template>>,
    jobs: intern::Interner<JobId>,
    sources: intern::Interner<Arc<str>>,
    marks: Vec<Mark>,
}

/// How far a shard has been read, for those who must not wait for its partition.
#[derive(Default)]
struct Mark {
    applied: AtomicU64,
    epoch: AtomicU64,
    /// The newest epoch that was ever read: a bus that was put back may have forgotten it.
    epoch_seen: AtomicU64,
    /// How often the bus was found to have lost what it had acknowledged.
    losses: AtomicU64,
    moved: Notify,
}

impl Shared {
    fn mark(&self, shard: ShardId) -> Option<&Mark> {
        self.marks.get(usize::from(shard.index()))
    }
    fn applied(&self, shard: ShardId) -> Seq {
        Seq(self.mark(shard).map_or(0, |mark| mark.applied.load(Ordering::Acquire)))
    }
}

/// A replica of the directory.
pub struct Replica {
    shared: Shared,
    partitions: Vec<RwLock<Partition>>,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("shards", &self.shared.count).field("vms", &self.shared.vms.len()).finish()
    }
}

impl Replica {
    /// An empty one for a cluster of so many shards. `seed` (from `Env::random_u64`) keeps
    /// producers from choosing ids that collide; nothing that can be seen depends on it.
    #[must_use]
    pub fn new(count: ShardCount, seed: u64) -> Self {
        let tables = hash::tables();
        Self {
            shared: Shared {
                count,
                vms: DashMap::with_capacity_and_hasher_and_shard_amount(
                    0,
                    hash::ByShard::new(count, tables, seed),
                    tables,
                ),
                places: places::Places::new(),
                names: names::Names::new(seed),
                tenants: intern::Interner::new(),
                templates: intern::Interner::new(),
                jobs: intern::Interner::new(),
                sources: intern::Interner::new(),
                marks: count.shards().map(|_| Mark::default()).collect(),
            },
            partitions: count.shards().map(|shard| RwLock::new(Partition::new(shard))).collect(),
        }
    }

    /// How many shards the cluster has.
    #[must_use]
    pub fn shards(&self) -> ShardCount {
        self.shared.count
    }

    // A panic while a partition was being written cannot leave memory unsound, and the tail
    // reloads the shard; refusing all look-ups for it would be worse.
    fn read(&self, shard: ShardId) -> Option<RwLockReadGuard<'_, Partition>> {
        let partition = self.partitions.get(usize::from(shard.index()))?;
        Some(partition.read().unwrap_or_else(PoisonError::into_inner))
    }
    fn write(&self, shard: ShardId) -> Option<RwLockWriteGuard<'_, Partition>> {
        let partition = self.partitions.get(usize::from(shard.index()))?;
        Some(partition.write().unwrap_or_else(PoisonError::into_inner))
    }

    // ── folding ──

    /// Folds the entry with this sequence into the rows. Entries may be given again, by several
    /// readers at once; each counts once.
    pub fn apply(&self, shard: ShardId, seq: Seq, entry: &Entry) -> Applied {
        let Some(mut guard) = self.write(shard) else { return Applied::Hole { applied: Seq::ZERO } };
        let part = &mut *guard;
        if seq <= part.seq {
            return Applied::Old;
        }
        if entry.prev != part.seq {
            return Applied::Hole { applied: part.seq };
        }
        let counts = part.fence.admits(entry);
        if counts {
            fold::apply(&mut Writer { shared: &self.shared, part }, entry);
        }
        part.seq = seq;
        part.stamp = Some(Stamp::of(entry));
        part.unsaved += 1;
        self.moved(shard, part);
        drop(guard);
        if counts { Applied::Counted } else { Applied::Void }
    }

    /// Replaces all rows of a shard by those of a snapshot. A VM that is in both stays found
    /// meanwhile.
    pub fn load(&self, shard: ShardId, snapshot: ShardSnapshot) {
        let Some(mut guard) = self.write(shard) else { return };
        let part = &mut *guard;
        let (mut vms, mut jobs) = (snapshot.vms, snapshot.jobs);
        // As they should be already; what follows relies on it.
        vms.sort_unstable_by_key(|vm| vm.id);
        jobs.sort_unstable_by_key(|job| job.id);
        let gone_vms: Vec<VmId> = part
            .vms
            .by_id
            .iter()
            .filter_map(|key| part.vms.rows.get(key.row()).map(|row| row.id))
            .filter(|id| vms.binary_search_by_key(id, |vm| vm.id).is_err())
            .collect();
        let gone_jobs: Vec<JobId> = part
            .jobs
            .by_id
            .iter()
            .filter_map(|key| part.jobs.rows.get(key.row()).map(|slot| slot.id))
            .filter(|id| jobs.binary_search_by_key(id, |job| job.id).is_err())
            .collect();
        let mut writer = Writer { shared: &self.shared, part };
        gone_vms.into_iter().for_each(|id| writer.forget_vm(id));
        gone_jobs.into_iter().for_each(|id| writer.retire_job(id));
        vms.into_iter().for_each(|vm| writer.replace_vm(vm));
        jobs.into_iter().for_each(|job| writer.replace_job(job));
        part.cordons = snapshot.cordons.into_iter().collect();
        part.fence = fold::Fence::at(snapshot.epoch);
        part.seq = snapshot.seq;
        part.stamp = None;
        part.unsaved += 1;
        self.moved(shard, part);
    }

    fn moved(&self, shard: ShardId, part: &Partition) {
        let Some(mark) = self.shared.mark(shard) else { return };
        mark.epoch.store(part.fence.epoch().0, Ordering::Relaxed);
        mark.epoch_seen.fetch_max(part.fence.epoch().0, Ordering::Relaxed);
        mark.applied.store(part.seq.0, Ordering::Release);
        mark.moved.notify_waiters();
    }

    /// The last entry of the shard's log that is in the rows.
    #[must_use]
    pub fn applied(&self, shard: ShardId) -> Seq {
        self.shared.applied(shard)
    }

    /// What tells the last entry that was read from another with its sequence; `None` after a
    /// snapshot was loaded.
    pub(crate) fn stamp(&self, shard: ShardId) -> Option<Stamp> {
        self.read(shard)?.stamp
    }

    /// The epoch of the last `Opened` that is in the rows.
    #[must_use]
    pub fn epoch(&self, shard: ShardId) -> Epoch {
        Epoch(self.shared.mark(shard).map_or(0, |mark| mark.epoch.load(Ordering::Relaxed)))
    }

    /// The newest epoch that this replica ever read of the shard. A bus that was put back to an
    /// older state may have forgotten it; whoever opens the shard then must not use it again.
    #[must_use]
    pub fn epoch_seen(&self, shard: ShardId) -> Epoch {
        Epoch(self.shared.mark(shard).map_or(0, |mark| mark.epoch_seen.load(Ordering::Relaxed)))
    }

    /// The bus was found to have lost entries or messages of this shard that it had acknowledged.
    /// Whoever finds it says so in the log, where it is handled; this is counted, for everybody.
    pub fn note_loss(&self, shard: ShardId) {
        if let Some(mark) = self.shared.mark(shard) {
            mark.losses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often that was found here, by the directory or by the shard's owner in this process.
    #[must_use]
    pub fn losses(&self, shard: ShardId) -> u64 {
        self.shared.mark(shard).map_or(0, |mark| mark.losses.load(Ordering::Relaxed))
    }

    /// Waits until the shard's log has been read up to and with `seq`. Cancel safe. It does not
    /// end by itself if the shard's log can't be read: give it a time limit.
    pub async fn wait_for(&self, shard: ShardId, seq: Seq) {
        let Some(mark) = self.shared.mark(shard) else { return };
        loop {
            let moved = mark.moved.notified();
            tokio::pin!(moved);
            // Before the check, so that no move between the two is missed.
            moved.as_mut().enable();
            if self.applied(shard) >= seq {
                return;
            }
            moved.await;
        }
    }

    // ── look-ups ──

    /// Where the VM is. `None` if it is not known here: its home shard may know more.
    #[must_use]
    #[inline(always)]
    pub fn locate(&self, vm: VmId) -> Option<Location<'_>> {
        let spot = self.shared.vms.get(&vm).map(|spot| *spot)?;
        Some(Location::new(self, vm, spot))
    }

    fn as_of(&self, vm: VmId, row: u32) -> WallMs {
        let part = self.read(vm.shard(self.shared.count));
        let row = part.as_ref().and_then(|part| part.vms.rows.get(row)).filter(|row| row.id == vm);
        row.map_or(WallMs(0), |row| row.as_of.wall())
    }

    /// [`Replica::locate`] for many, in their order.
    #[must_use]
    pub fn locate_many(&self, vms: &[VmId]) -> Vec<Option<Location<'_>>> {
        vms.iter().map(|vm| self.locate(*vm)).collect()
    }

    /// All that is known of a VM.
    #[must_use]
    pub fn vm(&self, id: VmId) -> Option<Vm> {
        let part = self.read(id.shard(self.shared.count))?;
        let at = self.shared.vms.get(&id)?.row();
        part.vm(&self.shared, part.vms.rows.get(at)?)
    }

    /// VMs of the tenant that have this name and are not deleted: two at most, since that is
    /// enough to know that a name stands for more than one.
    #[must_use]
    pub fn by_name(&self, tenant: &TenantId, name: &VmName) -> Vec<VmId> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let rows = self.shared.names.find(tenant, name, after, 16);
            let Some(last) = rows.last().copied() else { return found };
            for (shard, at) in rows {
                let Some(part) = self.partitions.get(usize::from(shard)) else { continue };
                let part = part.read().unwrap_or_else(PoisonError::into_inner);
                // The index is by hash, and the row may have another VM by now.
                let vm = part.vms.rows.get(at).and_then(|row| part.vm(&self.shared, row));
                if let Some(vm) = vm.filter(|vm| vm.tenant == *tenant && vm.name == *name && !vm.is_deleted())
                    && !found.contains(&vm.id)
                {
                    found.push(vm.id);
                    if found.len() == 2 {
                        return found;
                    }
                }
            }
            after = Some(last);
        }
    }

    /// A job. It is shown as ended only once its VMs are listed as its outcome says.
    #[must_use]
    pub fn job(&self, id: JobId) -> Option<JobRow> {
        let part = self.read(id.shard(self.shared.count))?;
        let at = part.job_row(id)?;
        part.shown_job(&self.shared, part.jobs.rows.get(at)?)
    }

    // ── counts ──

    /// How many rows there are.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut vms = vec![0; VmState::ALL.len()];
        let mut jobs = vec![0; JobState::ALL.len()];
        for shard in self.shared.count.shards() {
            let Some(part) = self.read(shard) else { continue };
            vms.iter_mut().zip(part.vms.states).for_each(|(sum, n)| *sum += n);
            jobs.iter_mut().zip(part.jobs.states).for_each(|(sum, n)| *sum += n);
        }
        Stats {
            vms: VmState::ALL.iter().copied().zip(vms).collect(),
            jobs: JobState::ALL.iter().copied().zip(jobs).collect(),
            tenants: self.shared.tenants.len(),
            templates: self.shared.templates.len(),
            places: self.shared.places.len(),
        }
    }

    /// How many VMs each manager holds, by id; those that hold none any more included.
    #[must_use]
    pub fn count_by_manager(&self) -> Vec<(ManagerId, usize)> {
        self.shared.places.managers()
    }

    /// How many VMs a manager holds.
    #[must_use]
    pub fn count_of_manager(&self, manager: ManagerId) -> usize {
        self.shared.places.count(manager)
    }

    /// How many VMs each host of a manager holds, by name; those on their way to one come first,
    /// under `None`.
    #[must_use]
    pub fn count_by_host(&self, manager: ManagerId) -> Vec<(Option<HostId>, usize)> {
        self.shared.places.hosts(manager).into_iter().collect()
    }

    /// How many VMs a host holds.
    #[must_use]
    pub fn count_of_host(&self, manager: ManagerId, host: &HostId) -> usize {
        self.shared.places.count_on(manager, host)
    }

    /// Managers (no host) and hosts that are cordoned, in order.
    #[must_use]
    pub fn cordons(&self) -> Vec<(ManagerId, Option<HostId>)> {
        let mut all: Vec<_> = self
            .shared
            .count
            .shards()
            .filter_map(|shard| self.read(shard))
            .flat_map(|part| part.cordons.clone())
            .collect();
        all.sort_unstable();
        all
    }
}
