//! Reading the segments back at start: every message found, every checksum checked, nothing
//! changed unless all is sound.
//!
//! What the last write before a crash left unfinished is passed over, and overwritten by the next:
//! nobody was told that it was durable. Damage anywhere else is an error that names the place.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::commit::Active;
use super::error::OpenError;
use super::record::{self, FRAME_HEADER, Frame, FrameBuilder, Record, SEGMENT_HEADER};
use super::segment::Segment;
use super::stream::{Place, Stream, StreamId};

/// What the segments say.
pub(super) struct Recovered {
    pub(super) streams: BTreeMap<StreamId, Arc<Stream>>,
    pub(super) segments: BTreeMap<u32, Arc<Segment>>,
    pub(super) active: Active,
    /// Ingress messages that were acked, beyond the first that was not.
    pub(super) acked: BTreeSet<u64>,
}

/// A stream as far as it has been read.
struct Building {
    first: u64,
    next: u64,
    /// In the order of reading: moved messages come late, and a later place counts.
    places: Vec<(u64, Place)>,
}

/// All streams, and which ingress messages were acked.
type Finished = (BTreeMap<StreamId, Arc<Stream>>, BTreeSet<u64>);

struct Recovery<'a> {
    dir: &'a Path,
    streams: BTreeMap<StreamId, Building>,
    acked: BTreeSet<u64>,
}

/// Reads `dir/log`, making its first segment, with this salt, if there is none.
pub(super) fn recover(dir: &Path, salt: u64, segment_bytes: u64) -> Result<Recovered, OpenError> {
    let log_dir = dir.join("log");
    let cannot = |doing| move |error| OpenError::io(dir, doing, error);
    fs::create_dir_all(&log_dir).map_err(cannot("making its log"))?;
    File::open(dir).and_then(|file| file.sync_all()).map_err(cannot("making its log"))?;

    let ids = list(&log_dir).map_err(cannot("listing its log"))?;
    let mut recovery = Recovery { dir, streams: BTreeMap::new(), acked: BTreeSet::new() };
    let mut segments: BTreeMap<u32, Arc<Segment>> = BTreeMap::new();
    let mut next_frame = 1;
    let mut content = Vec::new();
    for &id in &ids {
        let path = log_dir.join(Segment::file_name(id));
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(cannot("opening a segment"))?;
        content.clear();
        file.read_to_end(&mut content).map_err(cannot("reading a segment"))?;
        let read = recovery.read_segment(id, &content)?;
        // Segments in between may have been cleaned away, but frames are numbered without a gap.
        let follows = id.checked_sub(1).is_some_and(|before| segments.contains_key(&before));
        if read.first_frame < next_frame || (follows && read.first_frame > next_frame) {
            let first = read.first_frame;
            return Err(recovery.corrupt(
                id,
                0,
                &format!("it begins with frame {first}, not {next_frame}: the one before is damaged"),
            ));
        }
        next_frame = read.next_frame;
        segments.insert(id, Arc::new(Segment::opened(path, id, read.salt, file, read.end)));
    }

    let (streams, acked) = recovery.finish(&segments)?;

    // All is sound. Only now is anything changed.
    let segment = match segments.last_key_value() {
        Some((_, last)) => Arc::clone(last),
        None => {
            let first = Segment::create(&log_dir, 1, salt, (next_frame, FrameBuilder::new()), segment_bytes)
                .map_err(cannot("making its first segment"))?;
            next_frame += 1;
            let first = Arc::new(first);
            segments.insert(1, Arc::clone(&first));
            first
        }
    };
    let active = Active::new(segment, next_frame).map_err(cannot("opening a segment"))?;
    Ok(Recovered { streams, segments, active, acked })
}

fn list(log_dir: &Path) -> io::Result<Vec<u32>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(log_dir)? {
        if let Some(id) = entry?.file_name().to_str().and_then(Segment::id_of) {
            ids.push(id);
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

/// What a segment says of itself.
struct Read {
    salt: u64,
    first_frame: u64,
    next_frame: u64,
    /// Where its last frame ends.
    end: u64,
}

impl Recovery<'_> {
    fn corrupt(&self, segment: u32, at: usize, what: &str) -> OpenError {
        OpenError::corrupt(self.dir, format!("segment {segment} at byte {at}: {what}"))
    }

    fn read_segment(&mut self, id: u32, content: &[u8]) -> Result<Read, OpenError> {
        let Some((first_frame, salt)) = record::read_segment_header(content, id) else {
            return Err(self.corrupt(id, 0, "its header is damaged"));
        };
        let mut next_frame = first_frame;
        let mut at = SEGMENT_HEADER;
        loop {
            match record::read_frame(&content[at..], salt) {
                Frame::Whole { number, payload } if number == next_frame => {
                    self.read_payload(id, at + FRAME_HEADER, payload)?;
                    at += FRAME_HEADER + payload.len();
                    next_frame += 1;
                }
                Frame::Whole { number, payload: _ } => {
                    return Err(self.corrupt(id, at, &format!("frame {number} stands where {next_frame} should")));
                }
                // The end. What comes after it was never finished, or is of an older use of the file.
                Frame::Broken
                    if next_frame > first_frame && !record::has_later_frame(&content[at..], salt, next_frame) =>
                {
                    return Ok(Read { salt, first_frame, next_frame, end: at as u64 });
                }
                Frame::Broken => return Err(self.corrupt(id, at, "a frame is damaged")),
            }
        }
    }

    fn read_payload(&mut self, segment: u32, start: usize, payload: &[u8]) -> Result<(), OpenError> {
        let mut at = 0;
        loop {
            let here = start + at;
            let record = record::read_record(payload, &mut at)
                .map_err(|()| self.corrupt(segment, here, "a record is unknown"))?;
            match record {
                None => return Ok(()),
                Some(Record::Message { id, seq, offset, length, moved }) => {
                    let offset = u32::try_from(start + offset)
                        .map_err(|_| self.corrupt(segment, here, "the segment is too long"))?;
                    let stream = self.stream(id);
                    if !moved && seq != stream.next {
                        let expected = stream.next;
                        return Err(self.corrupt(
                            segment,
                            here,
                            &format!("message {seq} of {id} stands where {expected} should"),
                        ));
                    }
                    stream.next = stream.next.max(seq + 1);
                    stream.places.push((seq, Place { segment, offset, length }));
                }
                Some(Record::Trim { id, first }) => {
                    let stream = self.stream(id);
                    stream.first = stream.first.max(first);
                }
                Some(Record::Acked { seq }) => {
                    self.acked.insert(seq);
                }
                Some(Record::State { id, first, next }) => {
                    let stream = self.stream(id);
                    if next < stream.next {
                        return Err(self.corrupt(
                            segment,
                            here,
                            &format!("{id} ends at {next}, before what was read of it"),
                        ));
                    }
                    stream.first = stream.first.max(first);
                    stream.next = next;
                }
            }
        }
    }

    fn stream(&mut self, id: StreamId) -> &mut Building {
        self.streams.entry(id).or_insert_with(|| Building { first: 1, next: 1, places: Vec::new() })
    }

    /// Puts the streams together and checks that nothing is missing.
    fn finish(mut self, segments: &BTreeMap<u32, Arc<Segment>>) -> Result<Finished, OpenError> {
        if let Some(ingress) = self.streams.get_mut(&StreamId::INGRESS) {
            while self.acked.contains(&ingress.first) {
                ingress.first += 1;
            }
            self.acked.retain(|seq| *seq > ingress.first);
        }
        let mut streams = BTreeMap::new();
        for (id, mut building) in std::mem::take(&mut self.streams) {
            building.places.retain(|(seq, _)| *seq >= building.first);
            // Stable: of two places of one message the later read stays last, and counts.
            building.places.sort_by_key(|(seq, _)| *seq);
            let mut places: VecDeque<Place> = VecDeque::new();
            let mut next = building.first;
            for (seq, place) in building.places {
                if seq + 1 == next
                    && let Some(last) = places.back_mut()
                {
                    *last = place;
                } else if seq == next {
                    places.push_back(place);
                    next += 1;
                } else {
                    break;
                }
            }
            if next != building.next {
                return Err(OpenError::corrupt(self.dir, format!("message {next} of {id} is missing")));
            }
            for place in &places {
                if let Some(segment) = segments.get(&place.segment) {
                    segment.add_live(place.record_bytes());
                }
            }
            streams.insert(id, Arc::new(Stream::new(id, building.first, places)));
        }
        Ok((streams, self.acked))
    }
}

/// Where the segments are.
pub(super) fn log_dir(dir: &Path) -> PathBuf {
    dir.join("log")
}
