//! A backup of the world, and the same managers under a world that was restored from it.

use std::collections::BTreeMap;

use bytes::Bytes;
use cellbus_bus::contract::{Event, QueueKind};
use cellbus_bus::ids::{Epoch, JobId, ManagerId, Seq, ShardCount, ShardId, VmId};
use cellbus_directory::Entry;
use cellbus_directory::record::{Operator, ParkedDecision};
use cellbus_workflows::{Carried, ControlItem, KnownJobs, Shard, Way, generation};

use super::World;

/// What a backup holds: logs, queues, and the events that were out.
#[derive(Clone)]
pub struct Backup {
    count: ShardCount,
    logs: Vec<Vec<Entry>>,
    bases: Vec<Option<cellbus_directory::ShardSnapshot>>,
    queues: BTreeMap<(u16, bool), Vec<Bytes>>,
    events: BTreeMap<String, Event>,
    at: cellbus_bus::env::WallMs,
}

impl World {
    pub fn backup(&self) -> Backup {
        Backup {
            count: self.count,
            logs: self.logs.clone(),
            bases: self.bases.clone(),
            queues: self.queues.clone(),
            events: self.events.clone(),
            at: self.now,
        }
    }

    /// Half of the logs as they are now, the others as they are when `later` has run, and the queues when
    /// it has run again.
    pub fn backup_while(&mut self, later: impl Fn(&mut Self)) -> Backup {
        let mut backup = self.backup();
        later(self);
        for (index, log) in self.logs.iter().enumerate().filter(|(index, _)| index % 2 == 1) {
            backup.logs[index].clone_from(log);
        }
        later(self);
        (backup.queues, backup.events) = (self.queues.clone(), self.events.clone());
        backup
    }

    /// Begins again from the backup, with so many shards. Managers hold what they hold.
    pub fn restore(&mut self, backup: &Backup, shards: u16) {
        let to = ShardCount::new(shards).expect("a count");
        let mut parts: BTreeMap<ShardId, Carried> = to.shards().map(|id| (id, Carried::default())).collect();
        let mut queues: BTreeMap<(u16, bool), Vec<Bytes>> = BTreeMap::new();
        (self.count, self.logs, self.bases) = (backup.count, backup.logs.clone(), backup.bases.clone());
        let old = |world: &Self| (0..usize::from(backup.count.get())).map(|index| world.replayed(index)).collect();
        self.shards = old(self);
        let old: Vec<Shard> = old(self);
        let epoch = old.iter().map(Shard::epoch).max().unwrap_or(Epoch::ZERO);
        let generation = generation(self.now, epoch);
        let mut known = KnownJobs::new(backup.at);
        old.iter().for_each(|shard| known.add(shard));
        for shard in old {
            let way = Way { from: shard.id(), of: backup.count, to, known: &known };
            let (jobs, control) = shard.positions();
            for (kind, read) in [(QueueKind::Jobs, jobs), (QueueKind::Control, control)] {
                let all = backup.queues.get(&(way.from.index(), kind == QueueKind::Jobs));
                for body in all.into_iter().flatten().skip(read.seq.0 as usize) {
                    for (home, item) in way.message(kind, body) {
                        queues.entry((home.index(), kind == QueueKind::Jobs)).or_default().push(item);
                    }
                }
            }
            for (id, part) in shard.carry(to, generation, &known) {
                parts.get_mut(&id).expect("among them").add(part);
            }
        }
        self.queues = queues;
        // What was out of jobs that are still to end is another history's.
        let ended = |id: &str| {
            let job: JobId = id.split('/').next().and_then(|job| job.parse().ok())?;
            Some(self.home(job).job(&job)?.row.state.ended())
        };
        self.events = backup.events.clone().into_iter().filter(|(id, _)| ended(id) == Some(true)).collect();
        self.count = to;
        self.effects.clear();
        self.copies.clear();
        // The first entry stands for the one before the snapshot.
        let first =
            |epoch| Entry { epoch, prev: Seq(u64::MAX), at: self.now, jobs: None, control: None, records: Vec::new() };
        self.logs = vec![vec![first(Epoch(generation))]; shards.into()];
        self.bases = Vec::new();
        self.shards = Vec::new();
        for (id, part) in parts {
            let shard = part.into_shard(id, to, self.limits.clone(), Epoch(generation), self.now);
            let base = shard.snapshot(Seq(1)).encode();
            self.bases.push(Some(cellbus_directory::ShardSnapshot::decode(&base).expect("reads back")));
            self.shards.push(shard);
        }
        for index in 0..self.shards.len() {
            self.open(index);
        }
    }

    /// An audit, as a gateway makes it: what is found is told, then that it was read. `cleared`: a person
    /// lets everything go on.
    pub fn audit(&mut self, cleared: bool) {
        let managers: Vec<ManagerId> = self.managers.keys().copied().collect();
        let mut found: Vec<(VmId, ManagerId)> = Vec::new();
        for (manager, vms) in &self.managers {
            for id in vms.keys() {
                let shard = &self.shards[usize::from(id.shard(self.count).index())];
                let told = match shard.vm(id) {
                    None => true,
                    Some(vm) if vm.is_deleted() => false,
                    Some(vm) => match (&vm.home, &vm.doing) {
                        (None, _) => true,
                        (Some(_), Some(doing)) if doing.step == cellbus_directory::Step::Create => {
                            doing.manager != *manager
                        }
                        (Some(home), _) => home.manager != *manager && !self.managers[&home.manager].contains_key(id),
                    },
                };
                if told {
                    found.push((*id, *manager));
                }
            }
        }
        for (vm, manager) in found {
            self.control(vm.shard(self.count), &ControlItem::Found { vm, manager });
        }
        let cleared = if cleared { managers.clone() } else { Vec::new() };
        for shard in self.count.shards() {
            self.control(shard, &ControlItem::Audited { read: managers.clone(), cleared: cleared.clone() });
        }
    }

    /// A person gives up what is parked: a migrate past its commit point whose VM was deleted since, say.
    pub fn abandon_parked(&mut self) {
        let parked: Vec<_> = self.shards.iter().flat_map(Shard::parked_work).collect();
        let by = Operator { who: "test".to_owned(), from: String::new() };
        for (job, vm) in parked {
            let item = ControlItem::Unpark { vm, job, decision: ParkedDecision::Abandon, by: by.clone() };
            self.control(vm.shard(self.count), &item);
        }
    }

    /// Every VM is read again, as a repair of all that an audit may find.
    pub fn repair(&mut self) {
        let vms: Vec<(VmId, ManagerId)> = self
            .shards
            .iter()
            .flat_map(|shard| shard.snapshot(Seq(1)).vms)
            .filter_map(|vm| Some((vm.id, vm.home?.manager)))
            .collect();
        for (vm, manager) in vms {
            self.control(vm.shard(self.count), &ControlItem::Observed { vm, manager });
        }
    }
}
