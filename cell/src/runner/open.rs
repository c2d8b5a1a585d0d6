//! Opening a shard: snapshot and log are read, the owner before lets go, `Opened` is appended.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::contract::{Error as BusError, Position, Queue, QueueKind, Reader, SnapshotId};
use cellbus_bus::ids::{Epoch, Seq, ShardId};
use cellbus_directory::{Entry, Record, ShardSnapshot};
use cellbus_workflows::Shard;

use super::lost::Acknowledged;
use super::{Failure, Runner, context};
use crate::gateway::ShardState;
use crate::metrics::work::From;
use crate::peers::Peer;

/// The code of what a build finds that it may not read.
const UNREADABLE: &str = "shard_newer_format";
/// Log entries read at once on replay.
const REPLAY_MAX: usize = 4_096;
/// Between two questions to an owner that does not let go yet.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What the cell knows of the others, for taking a shard over.
#[async_trait]
pub(crate) trait Elsewhere: Send + Sync {
    /// Asks the owner before to let go, unless it is gone for certain. `last` is who opened the
    /// shard last, as far as the log tells; `opened_before`: whether anybody ever did.
    async fn let_go(&self, shard: ShardId, opened_before: bool, last: Option<&Peer>) -> LetGo;
}

/// Whether the shard may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetGo {
    /// Nobody acts for it. `idle`: whoever did has finished, and nothing is under way at its managers.
    Free { idle: bool },
    /// Not yet: ask again.
    NotYet,
    /// It should be another cell's.
    NotMine,
}

/// A shard that is open here.
pub(super) struct Open {
    pub(super) shard: Shard,
    /// The last entry of the log.
    pub(super) end: Seq,
    pub(super) jobs: Box<dyn Reader>,
    pub(super) control: Box<dyn Reader>,
    /// Bytes of log after the last snapshot, and those of that snapshot.
    pub(super) tail_bytes: u64,
    pub(super) snapshot_bytes: u64,
    /// The last snapshot that counts.
    pub(super) snapshot: Option<SnapshotId>,
    /// How far the queues had been read when it was made.
    pub(super) snapshot_read: (Position, Position),
}

/// A shard as read from its log.
struct Replayed {
    shard: Shard,
    end: Seq,
    last: Option<Peer>,
    tail_bytes: u64,
    snapshot_bytes: u64,
    snapshot: Option<SnapshotId>,
    snapshot_read: (Position, Position),
    /// Where the log was begun to be read.
    began: Seq,
    /// Whether the last entry that was acknowledged here was read, as it was.
    met: bool,
    /// Snapshots that the log read so far says are valid.
    named: BTreeSet<SnapshotId>,
}

impl Runner {
    /// Opens the shard. `None`: it should be owned by another cell.
    pub(super) async fn open(&mut self) -> Result<Option<Open>, Failure> {
        self.show(ShardState::Opening);
        let mut replayed = self.replay().await?;
        self.look_for_loss(replayed.began, replayed.end, replayed.met);
        loop {
            if self.turn_away() {
                return Ok(None);
            }
            if !self.lease.held(self.process.env.mono()) {
                if self.pause(ASK_AGAIN).await.is_some() {
                    return Ok(None);
                }
                continue;
            }
            match self.elsewhere.let_go(self.shard, replayed.shard.epoch() > Epoch::ZERO, replayed.last.as_ref()).await
            {
                LetGo::NotMine => return Ok(None),
                LetGo::NotYet => {
                    if self.pause(ASK_AGAIN).await.is_some() {
                        return Ok(None);
                    }
                    continue;
                }
                LetGo::Free { idle } => self.idle = idle,
            }
            self.catch_up(&mut replayed).await?;
            let from = match &replayed.last {
                _ if replayed.shard.epoch() == Epoch::ZERO => From::Nobody,
                Some(last) if last.cell == self.me.cell => From::Itself,
                // Whose name a snapshot has made superfluous was somebody else: this cell would have known.
                Some(_) | None => From::Other,
            };
            match self.claim(&mut replayed.shard, &mut replayed.end).await {
                Ok(()) => {
                    self.process.work.opened(from);
                    break;
                }
                // What was read is not there any more.
                Err(BusError::Fenced { found, .. }) if found < replayed.end => {
                    self.log_lost(replayed.end, found);
                    replayed = self.replay().await?;
                }
                // Somebody was faster. Whether it is still there is asked above.
                Err(BusError::Fenced { .. }) => {
                    self.process.work.fenced();
                    self.catch_up(&mut replayed).await?;
                }
                // Whether it was written, the log says.
                Err(BusError::Unknown { .. }) => replayed = self.replay().await?,
                Err(error) => return Err(error.to_string().into()),
            }
        }
        let Replayed { shard, end, tail_bytes, snapshot_bytes, snapshot, snapshot_read, .. } = replayed;
        let (jobs, control) = self.readers(&shard).await?;
        self.announce(&shard, end);
        Ok(Some(Open { shard, end, jobs, control, tail_bytes, snapshot_bytes, snapshot, snapshot_read }))
    }

    /// Tells process and cell that the shard is open here.
    pub(super) fn announce(&mut self, shard: &Shard, end: Seq) {
        self.process.routes.learn(self.shard, &self.me, shard.epoch(), end);
        let idle = std::mem::take(&mut self.idle);
        self.home.opened(self.shard, shard.epoch(), shard.cordons(), shard.marks(), idle);
        self.process.routes.set_unreadable(self.shard, false);
        self.show(ShardState::Open);
    }

    /// Whether this build may read it.
    pub(super) fn admit(&self, body: &[u8], what: impl FnOnce() -> String) -> Result<(), Failure> {
        let unknown = |error| Failure { reason: format!("{UNREADABLE}: {}: {error}", what()), unreadable: true };
        self.process.build().formats.admit(body).map_err(unknown)
    }

    pub(super) async fn readers(&self, shard: &Shard) -> Result<(Box<dyn Reader>, Box<dyn Reader>), String> {
        let (jobs, control): (Position, Position) = shard.positions();
        let queue = |kind| Queue { shard: self.shard, kind };
        let bus = &self.process.bus;
        let jobs = bus.read_queue(queue(QueueKind::Jobs), jobs).await.map_err(|e| e.to_string())?;
        let control = bus.read_queue(queue(QueueKind::Control), control).await.map_err(|e| e.to_string())?;
        Ok((jobs, control))
    }

    /// Appends `Opened` under the next epoch, and begins to act.
    pub(super) async fn claim(&mut self, shard: &mut Shard, end: &mut Seq) -> Result<(), BusError> {
        let entry = Entry {
            epoch: self.newest_epoch(shard.epoch()).next(),
            prev: *end,
            at: self.process.env.wall(),
            jobs: None,
            control: None,
            records: vec![Record::Opened { cell: self.me.cell.clone(), address: self.me.address.clone() }],
        };
        // Before the append: should the lease run out meanwhile, the shard is claimed once more.
        self.lapses = self.lease.lapses();
        let seq = self.process.bus.append(self.shard, *end, entry.encode_as(self.process.format())).await?;
        self.acknowledged = Some(Acknowledged::new(seq, &entry));
        shard.apply(seq, &entry);
        *end = seq;
        if self.permits.is_some() {
            // More is started with the first permits.
            shard.allow(shard.in_flight());
        }
        let view = self.process.board.view();
        shard.opened(&context(&self.process, &view, &self.process.pauses.pauses()));
        Ok(())
    }

    /// The newest snapshot that counts, and the log after it. A snapshot counts when the log
    /// names it: a crash may have come between writing and naming it.
    async fn replay(&self) -> Result<Replayed, Failure> {
        let snapshots = self.process.bus.snapshots(self.shard).await.map_err(|e| e.to_string())?;
        for id in snapshots.into_iter().rev() {
            let Some(mut replayed) = self.restore(id).await? else { continue };
            self.catch_up(&mut replayed).await?;
            if replayed.named.contains(&id) {
                return Ok(replayed);
            }
            tracing::warn!(shard = %self.shard, snapshot = ?id, "snapshot is not named by the log; trying the one before");
        }
        let mut replayed = Replayed {
            shard: Shard::new(self.shard, self.process.count, self.limits.clone()),
            end: Seq::ZERO,
            last: None,
            tail_bytes: 0,
            snapshot_bytes: 0,
            snapshot: None,
            snapshot_read: Default::default(),
            began: Seq::ZERO,
            met: false,
            named: BTreeSet::new(),
        };
        self.catch_up(&mut replayed).await?;
        Ok(replayed)
    }

    /// `None`: the snapshot is damaged or gone, an older one may do.
    async fn restore(&self, id: SnapshotId) -> Result<Option<Replayed>, Failure> {
        let body = match self.process.bus.read_snapshot(id).await {
            Ok(Some(body)) => body,
            Ok(None) => return Ok(None),
            Err(BusError::Damaged { what }) => {
                tracing::error!(shard = %self.shard, snapshot = ?id, what, "snapshot is damaged; trying the one before");
                return Ok(None);
            }
            Err(error) => return Err(error.to_string().into()),
        };
        self.admit(&body, || format!("snapshot {id:?}"))?;
        let snapshot = ShardSnapshot::decode(&body).map_err(|e| format!("snapshot {id:?}: {e}"))?;
        let shard = Shard::restore(self.shard, self.process.count, self.limits.clone(), snapshot)
            .map_err(|e| format!("snapshot {id:?}: {e}"))?;
        let snapshot_read = shard.positions();
        Ok(Some(Replayed {
            shard,
            end: id.seq,
            last: None,
            tail_bytes: 0,
            snapshot_bytes: body.len() as u64,
            snapshot: Some(id),
            snapshot_read,
            began: id.seq,
            met: false,
            named: BTreeSet::new(),
        }))
    }

    /// Replays the log from where it was read to its present end.
    async fn catch_up(&self, replayed: &mut Replayed) -> Result<(), Failure> {
        let bus = &self.process.bus;
        let end = bus.log_end(self.shard).await.map_err(|e| e.to_string())?;
        if replayed.end >= end {
            return Ok(());
        }
        let mut reader = bus.read_log(self.shard, replayed.end).await.map_err(|e| e.to_string())?;
        while replayed.end < end {
            for message in reader.next(REPLAY_MAX).await.map_err(|e| e.to_string())? {
                self.admit(&message.body, || format!("log entry {}", message.seq))?;
                let entry = Entry::decode(&message.body).map_err(|e| format!("log entry {}: {e}", message.seq))?;
                let void = entry.epoch < replayed.shard.epoch();
                replayed.met |= self.acknowledged.as_ref().is_some_and(|last| last.is(message.seq, &entry));
                if entry.prev != replayed.end && !void {
                    return Err(format!(
                        "log entry {} follows {}, but {} was read before it",
                        message.seq, entry.prev, replayed.end
                    )
                    .into());
                }
                for record in &entry.records {
                    match record {
                        Record::Opened { cell, address } if !void => {
                            replayed.last = Some(Peer { cell: cell.clone(), address: address.clone() });
                        }
                        Record::Snapshot { id } if !void => {
                            replayed.named.insert(*id);
                        }
                        // The state machine knows what to make of all others.
                        _ => {}
                    }
                }
                replayed.tail_bytes += message.body.len() as u64;
                replayed.shard.apply(message.seq, &entry);
                replayed.end = message.seq;
            }
        }
        Ok(())
    }
}
