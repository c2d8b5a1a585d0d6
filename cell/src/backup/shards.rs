//! The shards of a backup: where each lies in the file, and its state.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cellbus_bus::backup::{Error as FileError, Frame, Head, Place, Reader, Summary};
use cellbus_bus::contract::{QueueKind, SnapshotId};
use cellbus_bus::format::Formats;
use cellbus_bus::ids::{Epoch, Seq, ShardCount, ShardId};
use cellbus_directory::{Entry, ShardSnapshot};
use cellbus_workflows::{KnownJobs, Limits, Shard};

use super::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;

/// A backup that was read through once, and is whole.
pub(super) struct Backup {
    reader: Reader<BufReader<File>>,
    pub(super) head: Head,
    pub(super) summary: Summary,
    /// Where the messages of the ingress begin.
    ingress: Place,
    /// Where each shard begins, in order.
    shards: Vec<Place>,
    /// The highest epoch of all shards.
    pub(super) epoch: Epoch,
    /// Jobs that their homes know.
    pub(super) known: Arc<KnownJobs>,
}

/// One shard, as it was.
pub(super) struct Kept {
    pub(super) shard: Shard,
    /// What its queues hold that it has not read, in order.
    pub(super) items: Vec<(QueueKind, Bytes)>,
}

impl Backup {
    /// Reads all of it, and makes sure that every shard can be restored. Blocks.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(FileError::Io)?;
        let (mut reader, head) = Reader::new(BufReader::with_capacity(BUFFER_BYTES, file))?;
        let count = head.record.shards;
        head.record.check(count, Formats::KNOWN)?;
        let ingress = reader.place();
        let mut shards = Vec::new();
        let (mut epoch, mut current) = (Epoch::ZERO, None::<Loading>);
        let mut known = KnownJobs::new(head.taken_at);
        let mut end = |loaded: Option<Loading>| {
            if let Some(loaded) = loaded {
                let Kept { shard, .. } = loaded.end()?;
                epoch = epoch.max(shard.epoch());
                known.add(&shard);
            }
            Ok::<_, Error>(())
        };
        let summary = loop {
            let at = reader.place();
            match reader.next()? {
                None => return Err(out_of_order(&head, "it ends")),
                Some(Frame::Summary(summary)) => break summary,
                Some(Frame::Shard { shard, end: last, snapshot }) => {
                    end(current.take())?;
                    if usize::from(shard.index()) != shards.len() {
                        return Err(out_of_order(&head, "shards are out of order"));
                    }
                    shards.push(at);
                    current = Some(Loading::begin(shard, count, last, snapshot));
                }
                Some(Frame::Ingress { .. }) if current.is_none() => {}
                Some(frame) => match &mut current {
                    Some(loading) => loading.take(frame)?,
                    None => return Err(out_of_order(&head, "there is something before the shards")),
                },
            }
        };
        end(current)?;
        // Nothing may be behind it.
        reader.next()?;
        if shards.len() != usize::from(count.get()) {
            return Err(out_of_order(&head, "shards are missing"));
        }
        Ok(Self { reader, head, summary, ingress, shards, epoch, known: Arc::new(known) })
    }

    /// One shard. Blocks.
    pub(super) fn shard(&mut self, shard: ShardId) -> Result<Kept> {
        let place = self.shards.get(usize::from(shard.index())).copied();
        let missing = || out_of_order(&self.head, "a shard is missing");
        self.reader.go_to(place.ok_or_else(missing)?)?;
        let Some(Frame::Shard { end, snapshot, .. }) = self.reader.next()? else { return Err(missing()) };
        let mut loading = Loading::begin(shard, self.head.record.shards, end, snapshot);
        loop {
            match self.reader.next()? {
                None | Some(Frame::Shard { .. } | Frame::Summary(_)) => return loading.end(),
                Some(frame) => loading.take(frame)?,
            }
        }
    }

    /// Goes to the first message of the ingress.
    pub(super) fn go_to_ingress(&mut self) -> Result<()> {
        Ok(self.reader.go_to(self.ingress)?)
    }

    /// The next message of the ingress: tenant, headers, body. Blocks.
    #[expect(clippy::type_complexity, reason = "as the bus takes it")]
    pub(super) fn next_ingress(&mut self) -> Result<Option<(String, Vec<(String, String)>, Bytes)>> {
        match self.reader.next()? {
            Some(Frame::Ingress { tenant, headers, body }) => Ok(Some((tenant, headers, body))),
            Some(_) | None => Ok(None),
        }
    }
}

fn out_of_order(head: &Head, what: &str) -> Error {
    let what = format!("{what}, which a backup of {} shards does not", head.record.shards.get());
    FileError::Damaged { frame: 0, what }.into()
}

/// A shard that is being read.
struct Loading {
    id: ShardId,
    count: ShardCount,
    end: Seq,
    snapshot: Option<SnapshotId>,
    parts: BytesMut,
    /// None before the first entry.
    shard: Option<Shard>,
    read: Seq,
    items: Vec<(QueueKind, Bytes)>,
}

impl Loading {
    fn begin(id: ShardId, count: ShardCount, end: Seq, snapshot: Option<SnapshotId>) -> Self {
        let read = snapshot.map_or(Seq::ZERO, |id| id.seq);
        Self { id, count, end, snapshot, parts: BytesMut::new(), shard: None, read, items: Vec::new() }
    }

    fn unreadable(&self, what: impl std::fmt::Display) -> Error {
        Error::Shard { shard: self.id, what: what.to_string() }
    }

    fn take(&mut self, frame: Frame) -> Result<()> {
        match frame {
            Frame::Part(part) => self.parts.extend_from_slice(&part),
            Frame::Entry { seq, body } => {
                let entry = Entry::decode(&body).map_err(|error| self.unreadable(format!("entry {seq}: {error}")))?;
                let read = self.read;
                let shard = self.shard()?;
                let void = entry.epoch < shard.epoch();
                if entry.prev != read && !void {
                    let what = format!("entry {seq} follows {}, and {read} was read before it", entry.prev);
                    return Err(self.unreadable(what));
                }
                shard.apply(seq, &entry);
                self.read = seq;
            }
            Frame::Item { kind, body } => self.items.push((kind, body)),
            Frame::Head(_) | Frame::Ingress { .. } | Frame::Shard { .. } | Frame::Summary(_) => {
                return Err(self.unreadable("something else is among what belongs to it"));
            }
        }
        Ok(())
    }

    /// As the snapshot has it, from when that is whole.
    fn shard(&mut self) -> Result<&mut Shard> {
        if self.shard.is_none() {
            let limits = Limits::for_shards(self.count);
            let shard = match self.snapshot {
                None => Shard::new(self.id, self.count, limits),
                Some(_) => {
                    let parts = std::mem::take(&mut self.parts);
                    let snapshot = ShardSnapshot::decode(&parts).map_err(|error| self.unreadable(error))?;
                    Shard::restore(self.id, self.count, limits, snapshot).map_err(|error| self.unreadable(error))?
                }
            };
            self.shard = Some(shard);
        }
        self.shard.as_mut().ok_or(Error::Stopped)
    }

    fn end(mut self) -> Result<Kept> {
        self.shard()?;
        if self.read != self.end {
            return Err(self.unreadable(format!("its log ends at {}, and {} was read last", self.end, self.read)));
        }
        let Some(shard) = self.shard else { return Err(Error::Stopped) };
        Ok(Kept { shard, items: self.items })
    }
}
