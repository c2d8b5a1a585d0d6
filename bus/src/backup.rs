//! The file of a backup: what a bus held, in frames that can be read with little memory.
//!
//! ```text
//! "CELLBACK" | version u16 | frames: length u32, crc u32, payload | the last frame is the summary
//! ```
//!
//! Numbers are big endian. A frame's checksum covers its number too, so that one that is missing,
//! doubled or out of place is noticed like one that is damaged; a file without its summary was cut
//! off. Payloads are [`Frame`]s in [`crate::codec`], whose variants are only ever added at the end.

use std::io::{self, Read, Seek, SeekFrom, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::contract::{ClusterRecord, MESSAGE_BYTES_MAX, QueueKind, SnapshotId};
use crate::env::WallMs;
use crate::ids::{Seq, ShardId};

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 8] = b"CELLBACK";
/// The version that this build writes, and the newest that it reads.
const VERSION: u16 = 1;
const HEADER: u64 = 10;
const FRAME_HEADER: usize = 8;
/// A message of the largest size, with its envelope.
const FRAME_BYTES_MAX: usize = MESSAGE_BYTES_MAX + (1 << 20);
/// A snapshot is cut into parts of this size.
pub const PART_BYTES: usize = 1 << 20;

/// One piece of a backup. The order is: head, ingress, then for each shard its beginning, the parts
/// of its snapshot, its entries, its items; at last the summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// Of what this is a backup.
    Head(Head),
    /// A producer's message that no cell had acked.
    Ingress {
        /// Whose subject it came on.
        tenant: String,
        /// As its producer sent them.
        headers: Vec<(String, String)>,
        /// Its body.
        body: Bytes,
    },
    /// From here on it is about this shard.
    Shard {
        /// Which.
        shard: ShardId,
        /// The last entry of its log.
        end: Seq,
        /// The snapshot that the entries come after; none where they are all.
        snapshot: Option<SnapshotId>,
    },
    /// The next part of its snapshot.
    Part(Bytes),
    /// The next entry of its log.
    Entry {
        /// Its sequence.
        seq: Seq,
        /// Its body.
        body: Bytes,
    },
    /// The next item of one of its queues that it has not read.
    Item {
        /// Of which queue.
        kind: QueueKind,
        /// Its body.
        body: Bytes,
    },
    /// There is nothing behind it.
    Summary(Summary),
}

/// Of what a file is a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The cluster's record.
    pub record: ClusterRecord,
    /// When it was begun. What was acknowledged before is in it.
    pub taken_at: WallMs,
    /// By which build.
    pub build: String,
}

/// What a backup holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Frames, this one not counted.
    pub frames: u64,
    /// Bytes of the file, the summary not counted.
    pub bytes: u64,
    /// Shards.
    pub shards: u64,
    /// Entries of logs.
    pub entries: u64,
    /// Items of queues that had not been read.
    pub items: u64,
    /// Producers' messages that no cell had acked.
    pub ingress: u64,
}

impl Summary {
    fn count(&mut self, frame: &Frame) {
        self.frames += 1;
        match frame {
            Frame::Head(_) | Frame::Part(_) | Frame::Summary(_) => {}
            Frame::Ingress { .. } => self.ingress += 1,
            Frame::Shard { .. } => self.shards += 1,
            Frame::Entry { .. } => self.entries += 1,
            Frame::Item { .. } => self.items += 1,
        }
    }
}

/// Why a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("the backup cannot be read")]
    Io(#[from] io::Error),
    /// It begins with something else.
    #[error("this file is not a backup of Cellbus")]
    NotABackup,
    /// A newer build has written it.
    #[error("this backup has format {found}, and this build reads format {VERSION}; run a newer build")]
    Newer {
        /// Its version.
        found: u16,
    },
    /// It has no end: the backup was cut off, or its copy was.
    #[error("this backup was cut off after {frames} frames: take another one, or copy it again")]
    CutOff {
        /// Whole frames.
        frames: u64,
    },
    /// It is not what was written.
    #[error("this backup is damaged at frame {frame}: {what}; take another one")]
    Damaged {
        /// The number of the frame, from zero.
        frame: u64,
        /// What is wrong with it.
        what: String,
    },
}

impl Error {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "backup_unreadable",
            Self::NotABackup => "backup_not_one",
            Self::Newer { .. } => "backup_newer_format",
            Self::CutOff { .. } => "backup_cut_off",
            Self::Damaged { .. } => "backup_damaged",
        }
    }
    /// Whether reading it again may succeed.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Io(_))
    }
}

fn checksum(number: u64, payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_be_bytes());
    crc.update(payload);
    crc.finalize()
}

/// Writes a backup.
pub struct Writer<W> {
    out: W,
    counted: Summary,
    payload: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins one.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(mut out: W, head: Head) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_be_bytes())?;
        let mut this = Self { out, counted: Summary { bytes: HEADER, ..Summary::default() }, payload: Vec::new() };
        this.frame(&Frame::Head(head))?;
        Ok(this)
    }

    /// The next frame.
    ///
    /// # Errors
    /// What the file says.
    pub fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        self.payload.clear();
        codec::encode_into(frame, &mut self.payload);
        if self.payload.len() > FRAME_BYTES_MAX {
            let bytes = self.payload.len();
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{bytes} bytes are too many for a frame")));
        }
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        self.out.write_all(&length.to_be_bytes())?;
        self.out.write_all(&checksum(self.counted.frames, &self.payload).to_be_bytes())?;
        self.out.write_all(&self.payload)?;
        self.counted.count(frame);
        self.counted.bytes += (FRAME_HEADER + self.payload.len()) as u64;
        Ok(())
    }

    /// Writes the summary. Making it durable is the caller's.
    ///
    /// # Errors
    /// What the file says.
    pub fn finish(mut self) -> io::Result<(W, Summary)> {
        let summary = self.counted;
        self.frame(&Frame::Summary(summary))?;
        self.out.flush()?;
        Ok((self.out, summary))
    }

    /// What it writes to.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }
}

/// Where a frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    offset: u64,
    number: u64,
}

/// Reads a backup.
pub struct Reader<R> {
    from: R,
    offset: u64,
    /// Of what was read from the start.
    counted: Summary,
    /// Whether everything before was read, so that the summary can be checked.
    all: bool,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Begins with the first frame, which is the head.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(mut from: R) -> Result<(Self, Head), Error> {
        let mut header = [0; HEADER as usize];
        from.read_exact(&mut header).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::NotABackup,
            _ => Error::Io(error),
        })?;
        let (magic, version) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(Error::NotABackup);
        }
        match version {
            [high, low] if u16::from_be_bytes([*high, *low]) == VERSION => {}
            [high, low] => return Err(Error::Newer { found: u16::from_be_bytes([*high, *low]) }),
            _ => return Err(Error::NotABackup),
        }
        let mut this = Self { from, offset: HEADER, counted: Summary::default(), all: true, ended: false };
        match this.next()? {
            Some(Frame::Head(head)) => Ok((this, head)),
            _ => Err(Error::Damaged { frame: 0, what: "it is not the head".to_owned() }),
        }
    }

    /// The next frame; `None` behind the summary.
    ///
    /// # Errors
    /// [`Error`].
    #[expect(clippy::should_implement_trait, reason = "what follows an error is not to be read, as an iterator would")]
    pub fn next(&mut self) -> Result<Option<Frame>, Error> {
        let number = self.counted.frames;
        if self.ended {
            let mut byte = [0];
            return match self.from.read(&mut byte)? {
                0 => Ok(None),
                _ => Err(Error::Damaged { frame: number, what: "there is something behind its end".to_owned() }),
            };
        }
        let damaged = |what: String| Error::Damaged { frame: number, what };
        let cut_off = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::CutOff { frames: number },
            _ => Error::Io(error),
        };
        let (mut length, mut crc) = ([0; 4], [0; 4]);
        self.from.read_exact(&mut length).map_err(cut_off)?;
        self.from.read_exact(&mut crc).map_err(cut_off)?;
        // Not trusted before the checksum is known to be right: only bounded.
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(damaged(format!("{length} bytes are more than a frame may have")));
        }
        let mut payload = vec![0; length];
        self.from.read_exact(&mut payload).map_err(cut_off)?;
        if checksum(number, &payload).to_be_bytes() != crc {
            return Err(damaged("its checksum is wrong".to_owned()));
        }
        let frame: Frame = codec::decode(&payload).map_err(|error| damaged(error.to_string()))?;
        if let Frame::Summary(said) = &frame {
            let whole = Summary { bytes: self.offset, ..self.counted };
            if self.all && *said != whole {
                return Err(damaged(format!("its summary says {said:?}, and there are {whole:?}")));
            }
            self.ended = true;
        }
        self.counted.count(&frame);
        self.offset += (FRAME_HEADER + length) as u64;
        Ok(Some(frame))
    }

    /// Where the next frame begins.
    #[must_use]
    pub fn place(&self) -> Place {
        Place { offset: self.offset, number: self.counted.frames }
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Goes to a place that was given before. The summary cannot be checked from there any more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn go_to(&mut self, place: Place) -> Result<(), Error> {
        self.from.seek(SeekFrom::Start(place.offset))?;
        (self.offset, self.counted.frames) = (place.offset, place.number);
        (self.all, self.ended) = (false, false);
        Ok(())
    }
}
