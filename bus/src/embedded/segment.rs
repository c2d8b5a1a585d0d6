//! Segment files: the log is a row of them, and only the newest is written to.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use rustix::fs::FallocateFlags;

use crate::contract::{Error, Message, Result};
use crate::ids::Seq;

use super::record::{self, FrameBuilder, MESSAGE_HEADER};
use super::stream::{DiskRead, Place};

/// A segment that was emptied, kept to be written again: its blocks are already the file's, so a
/// sync there has no more to do than to write the data.
const SPARE: &str = "spare";
/// How far a file without written blocks is filled with zeros ahead of small frames, for the same
/// reason. Measured here, a sync of 4 KiB: 140 us where the file grows, 105 where blocks are
/// reserved, 70 where they are written.
pub(super) const AHEAD_BYTES: u64 = 64 << 10;

/// One segment file, open for reading (and, the newest, for writing).
pub(super) struct Segment {
    pub(super) id: u32,
    pub(super) salt: u64,
    pub(super) file: File,
    path: PathBuf,
    /// Bytes of messages that are still kept.
    live: AtomicU64,
    /// Bytes written, up to the end of the last frame.
    size: AtomicU64,
}

impl Segment {
    pub(super) fn file_name(id: u32) -> String {
        format!("{id:010}.segment")
    }
    pub(super) fn id_of(name: &str) -> Option<u32> {
        let id = name.strip_suffix(".segment")?.parse().ok()?;
        (Self::file_name(id) == name).then_some(id)
    }

    /// Makes the segment `id` that holds its header and `first_frame`, durable on return. It has
    /// its name only then, so a segment without a whole header and first frame is a damaged one.
    pub(super) fn create(
        dir: &Path,
        id: u32,
        salt: u64,
        (number, mut first_frame): (u64, FrameBuilder),
        reserve: u64,
    ) -> io::Result<Self> {
        let (spare, path) = (dir.join(SPARE), dir.join(Self::file_name(id)));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&spare)?;
        // Reserved now, so that a full disk shows itself here, where nothing is half written. Not
        // every file system can.
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, reserve) {
            Ok(()) | Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => {}
            Err(error) => {
                drop(file);
                let _ = fs::remove_file(&spare);
                return Err(error.into());
            }
        }
        let header = record::segment_header(id, number, salt);
        let first_frame = first_frame.finish(salt, number);
        file.write_all_at(&header, 0)?;
        file.write_all_at(first_frame, header.len() as u64)?;
        file.sync_all()?;
        fs::rename(&spare, &path)?;
        File::open(dir)?.sync_all()?;
        let size = (header.len() + first_frame.len()) as u64;
        Ok(Self::opened(path, id, salt, file, size))
    }

    pub(super) fn opened(path: PathBuf, id: u32, salt: u64, file: File, size: u64) -> Self {
        Self { id, salt, file, path, live: AtomicU64::new(0), size: AtomicU64::new(size) }
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }
    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed)
    }
    pub(super) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }
    pub(super) fn add_live(&self, bytes: u64) {
        self.live.fetch_add(bytes, Ordering::Relaxed);
    }
    pub(super) fn sub_live(&self, bytes: u64) {
        self.live.fetch_sub(bytes, Ordering::Relaxed);
    }
    /// Removes the file, or keeps it to be written again if nobody can still be reading it.
    pub(super) fn retire(self: Arc<Self>) -> io::Result<()> {
        let spare = self.path.with_file_name(SPARE);
        match Arc::try_unwrap(self) {
            Ok(last) if !spare.try_exists()? => {
                fs::rename(&last.path, &spare)?;
                // Before it is written, or a crash could bring the old name back with new content.
                match spare.parent() {
                    Some(dir) => File::open(dir)?.sync_all(),
                    None => Ok(()),
                }
            }
            Ok(last) => fs::remove_file(&last.path),
            // Who still has it open can go on reading it.
            Err(shared) => fs::remove_file(&shared.path),
        }
    }
}

/// All segments.
pub(super) struct Segments {
    by_id: RwLock<BTreeMap<u32, Arc<Segment>>>,
}

impl Segments {
    pub(super) fn new(by_id: BTreeMap<u32, Arc<Segment>>) -> Self {
        Self { by_id: RwLock::new(by_id) }
    }
    pub(super) fn insert(&self, segment: Arc<Segment>) {
        self.by_id.write().unwrap_or_else(PoisonError::into_inner).insert(segment.id, segment);
    }
    pub(super) fn remove(&self, id: u32) {
        self.by_id.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
    pub(super) fn all(&self) -> Vec<Arc<Segment>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
    /// Each place with its segment, held open.
    pub(super) fn hold(&self, places: impl Iterator<Item = Place>) -> Vec<(Place, Arc<Segment>)> {
        let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        // map_while: should one ever be missing, what is given stays without a hole.
        places.map_while(|place| by_id.get(&place.segment).map(|segment| (place, Arc::clone(segment)))).collect()
    }
    /// Takes the bytes of these places off their segments' live bytes.
    pub(super) fn release(&self, places: &[Place]) {
        let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        for run in places.chunk_by(|a, b| a.segment == b.segment) {
            if let Some(segment) = by_id.get(&run[0].segment) {
                segment.sub_live(run.iter().map(Place::record_bytes).sum());
            }
        }
    }
}

impl DiskRead {
    /// Reads the messages. Blocks.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a message is not what was written.
    pub(super) fn run(self) -> Result<Vec<Message>> {
        let mut messages = Vec::with_capacity(self.places.len());
        let mut seq = self.from;
        // Neighbours are read in one go: a burst to one stream lies in one piece.
        let neighbours = |a: &(Place, Arc<Segment>), b: &(Place, Arc<Segment>)| {
            a.0.segment == b.0.segment && u64::from(a.0.offset) + a.0.record_bytes() == u64::from(b.0.offset)
        };
        for run in self.places.chunk_by(neighbours) {
            let (first, segment) = &run[0];
            let length = run.iter().map(|(place, _)| place.record_bytes()).sum::<u64>();
            let damaged = |seq: u64| Error::Damaged {
                what: format!("message {seq} of {} in segment {}", self.id, first.segment),
            };
            let mut bytes = vec![0; usize::try_from(length).map_err(|_| damaged(seq))?];
            segment.file.read_exact_at(&mut bytes, u64::from(first.offset)).map_err(|error| {
                tracing::error!(%error, segment = first.segment, offset = first.offset, "could not read the bus's store");
                damaged(seq)
            })?;
            let mut bytes = Bytes::from(bytes);
            for (place, _) in run {
                let record = bytes.split_to(MESSAGE_HEADER + place.length as usize);
                let at = record::check_message(&record, self.id, seq).ok_or_else(|| damaged(seq))?;
                messages.push(Message { seq: Seq(seq), at, body: record.slice(MESSAGE_HEADER..) });
                seq += 1;
            }
        }
        Ok(messages)
    }
}
