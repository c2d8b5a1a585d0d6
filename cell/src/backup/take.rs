//! Taking a backup beside running cells.
//!
//! What is in a cluster moves in one direction: from the ingress into a queue or a log, from a queue into
//! a log, and by a log's open intents into queues again, never from log to log. So the ingress is read first; then the ends of all
//! logs are fixed, and only then is read what the queues hold beyond the positions that these logs
//! name. What has left the ingress is in a queue or a log; what a log says it has sent is in the queue
//! that it was sent to, or in the log that has read it. What was sent twice by that, or is both in the
//! file and done, is known by its key. Cells drop nothing of a queue, or of the log behind a snapshot,
//! before they have made two more snapshots; a backup that is slower than that begins again.

use std::path::Path;
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::backup::{Frame, Head, PART_BYTES, Summary};
use cellbus_bus::contract::{Bus, Error as BusError, Message, Position, Queue, QueueKind, SnapshotId};
use cellbus_bus::env::WallMs;
use cellbus_bus::format::Formats;
use cellbus_bus::ids::{Epoch, Seq, ShardId};
use cellbus_directory::fold::Fence;
use cellbus_directory::{Entry, Record, ShardSnapshot};
use futures::{StreamExt as _, TryStreamExt as _};

use super::file::Output;
use super::{Error, Result};

/// How often it is begun before it is given up.
const TRIES: u32 = 5;
/// Ends that are asked for at once.
const AT_ONCE: usize = 32;
/// Messages read at once.
const READ_MAX: usize = 4_096;
/// What is there is read at once; longer than that nothing is waited for.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// A backup that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// When it was begun.
    pub at: WallMs,
    /// What is in it.
    pub summary: Summary,
    /// How long it took.
    pub took: Duration,
}

/// Where the logs and queues end that go into a backup.
struct Ends {
    shard: ShardId,
    log: Seq,
    jobs: Seq,
    control: Seq,
}

/// Why a backup is not to be gone on with.
enum Stop {
    /// Begin again.
    Overtaken(ShardId),
    Failed(Error),
}
impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
impl From<BusError> for Stop {
    fn from(error: BusError) -> Self {
        Self::Failed(error.into())
    }
}

/// Writes a backup of the cluster on this bus to `path`, in the place of a file that is there. The
/// cluster need not stop, nor be running.
///
/// # Errors
/// [`Error`]; a file that was there is untouched then.
pub async fn take(bus: &dyn Bus, env: &Env, path: &Path) -> Result<Taken> {
    let record = bus.cluster_record().await?.ok_or(Error::NoCluster)?;
    record.check(record.shards, Formats::KNOWN)?;
    let began = env.mono();
    let mut last = ShardId::of_cluster(record.shards);
    for _ in 0..TRIES {
        let head = Head { record: record.clone(), taken_at: env.wall(), build: env!("CARGO_PKG_VERSION").to_owned() };
        let at = head.taken_at;
        let mut output = Output::create(env, path, head).await?;
        match copy(bus, env, &record, &mut output).await {
            Ok(()) => {
                let summary = output.finish().await?;
                return Ok(Taken { at, summary, took: env.mono().since(began) });
            }
            Err(Stop::Overtaken(shard)) => {
                tracing::info!(%shard, "the backup is begun again: the shard's cell has dropped what was still to be read");
                last = shard;
                output.discard().await;
            }
            Err(Stop::Failed(error)) => {
                output.discard().await;
                return Err(error);
            }
        }
    }
    Err(Error::Overtaken { shard: last, tries: TRIES })
}

async fn copy(
    bus: &dyn Bus,
    env: &Env,
    record: &cellbus_bus::contract::ClusterRecord,
    output: &mut Output,
) -> Result<(), Stop> {
    let mut after = Seq::ZERO;
    loop {
        let unacked = bus.ingress_unacked(after, READ_MAX).await?;
        let Some(last) = unacked.last() else { break };
        after = last.seq;
        for message in unacked {
            let frame = Frame::Ingress { tenant: message.tenant, headers: message.headers, body: message.body };
            output.frame(&frame).await?;
        }
    }
    // All logs before any queue: see the module.
    let logs: Vec<(ShardId, Seq)> = futures::stream::iter(record.shards.shards())
        .map(async |shard| Ok::<_, BusError>((shard, bus.log_end(shard).await?)))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let ends: Vec<Ends> = futures::stream::iter(logs)
        .map(async |(shard, log)| {
            let jobs = bus.queue_end(Queue { shard, kind: QueueKind::Jobs }).await?;
            let control = bus.queue_end(Queue { shard, kind: QueueKind::Control }).await?;
            Ok::<_, BusError>(Ends { shard, log, jobs, control })
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    for ends in ends {
        shard(bus, env, &ends, output).await?;
    }
    Ok(())
}

/// What of a log goes into a backup.
struct Kept {
    snapshot: Option<(SnapshotId, bytes::Bytes)>,
    entries: Vec<Message>,
    jobs: Position,
    control: Position,
}

async fn shard(bus: &dyn Bus, env: &Env, ends: &Ends, output: &mut Output) -> Result<(), Stop> {
    let kept = log(bus, env, ends).await?;
    let snapshot = kept.snapshot.as_ref().map(|(id, _)| *id);
    output.frame(&Frame::Shard { shard: ends.shard, end: ends.log, snapshot }).await?;
    if let Some((_, body)) = &kept.snapshot {
        for from in (0..body.len()).step_by(PART_BYTES) {
            output.frame(&Frame::Part(body.slice(from..body.len().min(from + PART_BYTES)))).await?;
        }
    }
    for entry in kept.entries {
        output.frame(&Frame::Entry { seq: entry.seq, body: entry.body }).await?;
    }
    for (kind, read, end) in [(QueueKind::Jobs, kept.jobs, ends.jobs), (QueueKind::Control, kept.control, ends.control)]
    {
        queue(bus, env, Queue { shard: ends.shard, kind }, read, end, output).await?;
    }
    // Cells drop a snapshot before they drop what of the queues came after it.
    let left = bus.snapshots(ends.shard).await?;
    let untouched = match snapshot {
        Some(id) => left.contains(&id),
        None => left.len() < 2,
    };
    if untouched { Ok(()) } else { Err(Stop::Overtaken(ends.shard)) }
}

/// The newest snapshot that counts up to the end, and what comes after it.
async fn log(bus: &dyn Bus, env: &Env, ends: &Ends) -> Result<Kept, Stop> {
    let none = Kept { snapshot: None, entries: Vec::new(), jobs: Position::default(), control: Position::default() };
    if ends.log == Seq::ZERO {
        return Ok(none);
    }
    for id in bus.snapshots(ends.shard).await?.into_iter().rev().filter(|id| id.seq < ends.log) {
        let entries = entries(bus, env, ends, id.seq).await?;
        if !names(ends.shard, &entries, id)? {
            continue;
        }
        let body = match bus.read_snapshot(id).await {
            Ok(Some(body)) => body,
            Ok(None) => return Err(Stop::Overtaken(ends.shard)),
            Err(BusError::Damaged { what }) => {
                tracing::error!(shard = %ends.shard, snapshot = ?id, what, "snapshot is damaged; trying the one before");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let snapshot = ShardSnapshot::decode(&body)
            .map_err(|error| Error::Shard { shard: ends.shard, what: format!("its snapshot: {error}") })?;
        let (jobs, control) =
            positions(ends.shard, &entries, snapshot.epoch, (snapshot.jobs_read, snapshot.control_read))?;
        return Ok(Kept { snapshot: Some((id, body)), entries, jobs, control });
    }
    let entries = entries(bus, env, ends, Seq::ZERO).await?;
    let (jobs, control) = positions(ends.shard, &entries, Epoch::ZERO, Default::default())?;
    Ok(Kept { entries, jobs, control, ..none })
}

fn decode(shard: ShardId, message: &Message) -> Result<Entry> {
    Entry::decode(&message.body)
        .map_err(|error| Error::Shard { shard, what: format!("entry {} of its log: {error}", message.seq) })
}

async fn entries(bus: &dyn Bus, env: &Env, ends: &Ends, after: Seq) -> Result<Vec<Message>, Stop> {
    let overtaken = |error| match error {
        BusError::Trimmed { .. } => Stop::Overtaken(ends.shard),
        other => other.into(),
    };
    let mut reader = bus.read_log(ends.shard, after).await.map_err(overtaken)?;
    let mut entries: Vec<Message> = Vec::new();
    while entries.last().is_none_or(|last| last.seq < ends.log) {
        entries.extend(soon(env, reader.next(READ_MAX)).await.map_err(overtaken)?);
    }
    entries.truncate(entries.partition_point(|entry| entry.seq <= ends.log));
    Ok(entries)
}

/// Whether an entry that counts names the snapshot.
fn names(shard: ShardId, entries: &[Message], id: SnapshotId) -> Result<bool> {
    let mut fence = Fence::at(id.epoch);
    for message in entries {
        let entry = decode(shard, message)?;
        let named = |record: &Record| matches!(record, Record::Snapshot { id: named } if *named == id);
        if fence.admits(&entry) && entry.records.iter().any(named) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How far the queues have been read at the end of these entries.
fn positions(
    shard: ShardId,
    entries: &[Message],
    epoch: Epoch,
    (mut jobs, mut control): (Position, Position),
) -> Result<(Position, Position)> {
    let mut fence = Fence::at(epoch);
    for message in entries {
        let entry = decode(shard, message)?;
        if fence.admits(&entry) {
            jobs = entry.jobs.unwrap_or(jobs);
            control = entry.control.unwrap_or(control);
        }
    }
    Ok((jobs, control))
}

async fn queue(
    bus: &dyn Bus,
    env: &Env,
    queue: Queue,
    read: Position,
    end: Seq,
    output: &mut Output,
) -> Result<(), Stop> {
    if end == Seq::ZERO || read.seq == end {
        return Ok(());
    }
    let overtaken = |error| match error {
        BusError::Trimmed { .. } => Stop::Overtaken(queue.shard),
        other => other.into(),
    };
    // A queue that is not the one that was read begins at its start, as it would for a cell.
    let mut reader = bus.read_queue(queue, read).await.map_err(overtaken)?;
    loop {
        for message in soon(env, reader.next(READ_MAX)).await.map_err(overtaken)? {
            if message.seq > end {
                return Ok(());
            }
            let last = message.seq == end;
            output.frame(&Frame::Item { kind: queue.kind, body: message.body }).await?;
            if last {
                return Ok(());
            }
        }
    }
}

/// What is there. That it does not come means that the bus does not answer.
async fn soon<T>(env: &Env, read: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
    let none = || BusError::Unavailable { reason: "what is there was not given".to_owned() };
    env.timeout(READ_LIMIT, read).await.ok_or_else(none)?
}
