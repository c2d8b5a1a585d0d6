//! Restoring a backup onto an empty bus.
//!
//! Each new shard gets a log of two entries and the snapshot between them. The first entry names a
//! predecessor that is not there, so nobody takes the log for a whole one: whoever reads it from its
//! start sees a hole, and loads the snapshot that the second one names. Its epoch is above all that
//! the old cluster may have come to ([`generation`]). Unread items go on the new queues, which are read
//! from their start.
//!
//! While this runs, the cluster record says so, and no process takes part; it gets its last form at
//! the end, with a new id: what still runs of the old cluster is another cluster to the members.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::Env;
use cellbus_bus::backup::Summary;
use cellbus_bus::cluster::{HASH_SCHEME, Mismatch, RESTORING};
use cellbus_bus::contract::{Bus, ClusterRecord, Queue, QueueKind, SnapshotId};
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, Seq, ShardCount, ShardId};
use cellbus_directory::record::Operator;
use cellbus_directory::{Entry, Record};
use cellbus_workflows::pack::pack;
use cellbus_workflows::{Carried, KnownJobs, Limits, Way, generation};
use futures::{StreamExt as _, TryStreamExt as _};

use super::shards::Backup;
use super::{Error, Result};

/// Bytes of the backup whose state is held in memory at once, where shards are put together anew.
const GROUP_BYTES: u64 = 128 << 20;
/// Items, and bytes of them, that are published at once.
const PUBLISH_MAX: usize = 512;
const PUBLISH_BYTES: usize = 1 << 20;
/// Shards, or messages of the ingress, on their way at once.
const AT_ONCE: usize = 16;

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was taken. What was acknowledged later is not in it.
    pub taken_at: WallMs,
    /// The record of the cluster now.
    pub record: ClusterRecord,
    /// What was in the backup.
    pub summary: Summary,
    /// VMs that are not tombstones.
    pub vms: u64,
    /// Jobs that have not ended, those in queues not counted.
    pub jobs_open: u64,
    /// What epochs and operations go on above.
    pub generation: u64,
    /// How long it took.
    pub took: Duration,
}

/// One shard of the new bus.
#[derive(Default)]
struct Part {
    state: Carried,
    items: Vec<(QueueKind, Bytes)>,
}

/// Puts the backup at `path` onto an empty bus, with `shards` shards.
///
/// # Errors
/// [`Error`]. Until the file has been read through and the bus found empty, nothing is written. After
/// that, whatever the error, no process starts on this bus: empty it, and restore again.
pub async fn restore(bus: &dyn Bus, env: &Env, path: &Path, shards: ShardCount) -> Result<Restored> {
    let began = env.mono();
    let path = path.to_owned();
    let backup = env.blocking("read backup", move || Backup::open(&path)).await.ok_or(Error::Stopped)??;
    let (head, summary) = (backup.head.clone(), backup.summary);
    let generation = generation(env.wall(), backup.epoch);
    let known = Arc::clone(&backup.known);
    let record = begin(bus, env, shards, head.record.format).await?;
    let backup = Arc::new(Mutex::new(backup));

    let by = Operator { who: "cellbus restore".to_owned(), from: String::new() };
    let what = format!("restore a backup of cluster {}, taken at {}", head.record.cluster_id, head.taken_at.rfc3339());
    let (mut vms, mut jobs_open) = (0, 0);
    for group in groups(head.record.shards, shards, summary.bytes) {
        let mut parts = gather(env, &backup, &known, &group, head.record.shards, shards, generation).await?;
        if let Some(part) = parts.get_mut(&ShardId::of_cluster(shards)) {
            part.state.note(env.wall(), by.clone(), what.clone());
        }
        let written: Vec<(u64, u64)> = futures::stream::iter(parts)
            .map(|(shard, part)| write(bus, env, shard, shards, part, Epoch(generation)))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        for (some_vms, some_jobs) in written {
            vms += some_vms;
            jobs_open += some_jobs;
        }
    }
    ingress(bus, env, &backup).await?;

    let last = ClusterRecord { hash_scheme: HASH_SCHEME, ..record.clone() };
    let stored = bus.replace_cluster(&record, last.clone()).await?;
    if stored != last {
        return Err(Error::NotEmpty { what: format!("cluster {} was made here meanwhile", stored.cluster_id) });
    }
    let took = env.mono().since(began);
    Ok(Restored { taken_at: head.taken_at, record: last, summary, vms, jobs_open, generation, took })
}

/// Makes sure that nothing is there, and that nobody starts until the end.
async fn begin(bus: &dyn Bus, env: &Env, shards: ShardCount, format: u16) -> Result<ClusterRecord> {
    if let Some(stored) = bus.cluster_record().await? {
        return Err(taken(&stored));
    }
    for shard in shards.shards() {
        let end = bus.log_end(shard).await?;
        if end != Seq::ZERO {
            return Err(Error::NotEmpty { what: format!("the log of shard {shard} ends at {end}") });
        }
    }
    let bytes = (u128::from(env.random_u64()) << 64 | u128::from(env.random_u64())).to_be_bytes();
    let record = ClusterRecord {
        cluster_id: uuid::Builder::from_random_bytes(bytes).into_uuid(),
        shards,
        hash_scheme: RESTORING,
        format,
        created_at: env.wall(),
    };
    let stored = bus.cluster(record.clone()).await?;
    if stored == record { Ok(record) } else { Err(taken(&stored)) }
}

fn taken(stored: &ClusterRecord) -> Error {
    if stored.hash_scheme == RESTORING {
        return Mismatch::Restoring.into();
    }
    Error::NotEmpty { what: format!("cluster {} with {} shards is here", stored.cluster_id, stored.shards.get()) }
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The new shards, in groups that fit into memory. What is on one of them comes from old shards that
/// are congruent to it modulo the greatest common divisor of both numbers, so those that share old
/// shards are put together: with the same number, or a multiple, every old shard is read once.
fn groups(old: ShardCount, new: ShardCount, bytes: u64) -> Vec<Vec<ShardId>> {
    let class = gcd(old.get(), new.get());
    let mut all: Vec<ShardId> = new.shards().collect();
    all.sort_by_key(|shard| (shard.index() % class, shard.index()));
    let each = (bytes / u64::from(new.get())).max(1);
    let fit = usize::try_from(GROUP_BYTES / each).unwrap_or(usize::MAX).max(1);
    all.chunks(fit).map(<[ShardId]>::to_vec).collect()
}

/// What comes to these shards of the new bus.
async fn gather(
    env: &Env,
    backup: &Arc<Mutex<Backup>>,
    known: &KnownJobs,
    group: &[ShardId],
    old: ShardCount,
    new: ShardCount,
    generation: u64,
) -> Result<BTreeMap<ShardId, Part>> {
    let class = gcd(old.get(), new.get());
    let mut parts: BTreeMap<ShardId, Part> = group.iter().map(|shard| (*shard, Part::default())).collect();
    let unkeyed = |from: ShardId| group.iter().any(|to| to.index() == from.index() % new.get());
    let from = old.shards().filter(|from| {
        unkeyed(*from)
            || *from == ShardId::of_cluster(old)
            || group.iter().any(|to| to.index() % class == from.index() % class)
    });
    for from in from {
        let reading = Arc::clone(backup);
        let kept = env
            .blocking("read backup", move || reading.lock().unwrap_or_else(PoisonError::into_inner).shard(from))
            .await
            .ok_or(Error::Stopped)??;
        let way = Way { from, of: old, to: new, known };
        for (to, state) in kept.shard.carry(new, generation, known) {
            if let Some(part) = parts.get_mut(&to) {
                part.state.add(state);
            }
        }
        for (kind, body) in kept.items {
            for (to, item) in way.message(kind, &body) {
                if let Some(part) = parts.get_mut(&to) {
                    part.items.push((kind, item));
                }
            }
        }
    }
    Ok(parts)
}

/// Writes one shard. Gives how many VMs and open jobs it has.
async fn write(
    bus: &dyn Bus,
    env: &Env,
    id: ShardId,
    count: ShardCount,
    part: Part,
    epoch: Epoch,
) -> Result<(u64, u64)> {
    let at = env.wall();
    let shard = part.state.into_shard(id, count, Limits::for_shards(count), epoch, at);
    let entry =
        |prev: Seq, records: Vec<Record>| Entry { epoch, prev, at, jobs: None, control: None, records }.encode();
    // No log has an entry before it with this number: see the module.
    let first = bus.append(id, Seq::ZERO, entry(Seq(u64::MAX), Vec::new())).await?;
    let snapshot = SnapshotId { shard: id, seq: first, epoch };
    bus.write_snapshot(snapshot, shard.snapshot(first).encode()).await?;
    bus.append(id, first, entry(first, vec![Record::Snapshot { id: snapshot }])).await?;
    for kind in [QueueKind::Jobs, QueueKind::Control] {
        let items = part.items.iter().filter(|(of, _)| *of == kind).map(|(_, body)| body.clone()).collect();
        let mut messages = pack(kind, items).into_iter().peekable();
        while messages.peek().is_some() {
            let (mut some, mut bytes) = (Vec::new(), 0);
            while some.len() < PUBLISH_MAX
                && let Some(body) = messages.next_if(|body| bytes == 0 || bytes + body.len() <= PUBLISH_BYTES)
            {
                bytes += body.len();
                some.push(body);
            }
            bus.publish(Queue { shard: id, kind }, some).await?;
        }
    }
    let stats = shard.stats();
    Ok((stats.vms as u64, stats.jobs_open as u64))
}

/// Puts back what producers had sent and no cell had taken.
async fn ingress(bus: &dyn Bus, env: &Env, backup: &Arc<Mutex<Backup>>) -> Result<()> {
    backup.lock().unwrap_or_else(PoisonError::into_inner).go_to_ingress()?;
    loop {
        let reading = Arc::clone(backup);
        let read = env.blocking("read backup", move || {
            let mut backup = reading.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut some, mut bytes) = (Vec::new(), 0);
            while some.len() < PUBLISH_MAX
                && bytes < PUBLISH_BYTES
                && let Some(message) = backup.next_ingress()?
            {
                bytes += message.2.len();
                some.push(message);
            }
            Ok::<_, Error>(some)
        });
        let some = read.await.ok_or(Error::Stopped)??;
        if some.is_empty() {
            return Ok(());
        }
        futures::stream::iter(some)
            .map(|(tenant, headers, body)| async move { bus.ingress_publish(&tenant, headers, body).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_is_in_one_group_and_groups_that_share_nothing_are_small() {
        let count = |n| ShardCount::new(n).unwrap();
        for (old, new, bytes) in [(4, 4, 1), (256, 256, 1 << 40), (3, 7, 1 << 30), (256, 1024, 1 << 30), (8, 2, 0)] {
            let groups = groups(count(old), count(new), bytes);
            let mut all: Vec<ShardId> = groups.iter().flatten().copied().collect();
            all.sort_unstable();
            assert_eq!(all, count(new).shards().collect::<Vec<_>>());
            let each = bytes / u64::from(new);
            assert!(groups.iter().all(|group| group.len() == 1 || group.len() as u64 * each <= GROUP_BYTES));
        }
    }
}
