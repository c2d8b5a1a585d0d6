//! The bytes of a segment: a header, then frames of records. All numbers are big endian.
//!
//! ```text
//! segment: "CELLBUS1" | id u32 | number of its first frame u64 | salt u64 | crc u32
//! frame:   salt u64 | crc u32 (of all that follows) | payload length u32 | number u64 | records
//! message: tag u8 (kind, or kind + 0x40 if moved) | shard u16 | seq u64 | at u64 | length u32 | crc u32 | body
//! trim:    0x81 | kind u8 | shard u16 | first u64          nothing below `first` is kept
//! acked:   0x82 | seq u64                                  of the ingress
//! state:   0x83 | kind u8 | shard u16 | first u64 | next u64
//! ```
//!
//! A frame is what one commit made durable: all of it counts or none. The salt is random, another
//! for each segment: neither what an older use of the file has left behind, nor a body that a
//! producer made up to look like a frame, can be taken for one. A message has a checksum of
//! its own, so that a read of one message, long after, notices damage too.

use crate::env::WallMs;

use super::stream::{StreamId, StreamKind};

const SEGMENT_MAGIC: &[u8; 8] = b"CELLBUS1";
/// Length of a segment's header.
pub(super) const SEGMENT_HEADER: usize = 32;
/// Length of a frame's header.
pub(super) const FRAME_HEADER: usize = 24;
/// Length of a message's header.
pub(super) const MESSAGE_HEADER: usize = 27;
const MOVED: u8 = 0x40;
const TRIM: u8 = 0x81;
const ACKED: u8 = 0x82;
const STATE: u8 = 0x83;

/// The header of segment `id`, whose first frame is `first_frame`.
pub(super) fn segment_header(id: u32, first_frame: u64, salt: u64) -> [u8; SEGMENT_HEADER] {
    let mut out = [0; SEGMENT_HEADER];
    out[..8].copy_from_slice(SEGMENT_MAGIC);
    out[8..12].copy_from_slice(&id.to_be_bytes());
    out[12..20].copy_from_slice(&first_frame.to_be_bytes());
    out[20..28].copy_from_slice(&salt.to_be_bytes());
    let crc = crc32fast::hash(&out[..28]);
    out[28..].copy_from_slice(&crc.to_be_bytes());
    out
}

/// The number of the first frame and the salt, if this is the header of segment `id`.
pub(super) fn read_segment_header(bytes: &[u8], id: u32) -> Option<(u64, u64)> {
    let header = bytes.get(..SEGMENT_HEADER)?;
    let (first_frame, salt) = (u64_at(header, 12)?, u64_at(header, 20)?);
    (header == segment_header(id, first_frame, salt)).then_some((first_frame, salt))
}

/// Builds one frame. Its buffer is used again for the next.
pub(super) struct FrameBuilder {
    bytes: Vec<u8>,
}

impl FrameBuilder {
    pub(super) fn new() -> Self {
        let mut builder = Self { bytes: Vec::with_capacity(1 << 20) };
        builder.clear();
        builder
    }
    /// Forgets the records. Gives memory back after an unusually large frame.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(16 << 20);
        self.bytes.resize(FRAME_HEADER, 0);
    }
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == FRAME_HEADER
    }
    /// Bytes so far, the header included.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a message and gives its offset from the start of the frame.
    pub(super) fn message(&mut self, id: StreamId, seq: u64, at: WallMs, body: &[u8]) -> usize {
        self.put_message(id.kind as u8, id.shard, seq, at, body)
    }
    /// Adds a whole message record read from another segment, as moved here.
    pub(super) fn moved(&mut self, id: StreamId, seq: u64, at: WallMs, body: &[u8]) -> usize {
        self.put_message(id.kind as u8 | MOVED, id.shard, seq, at, body)
    }
    fn put_message(&mut self, tag: u8, shard: u16, seq: u64, at: WallMs, body: &[u8]) -> usize {
        let offset = self.bytes.len();
        let header = message_header(tag, shard, seq, at, body);
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(body);
        offset
    }
    pub(super) fn trim(&mut self, id: StreamId, first: u64) {
        self.bytes.extend_from_slice(&[TRIM, id.kind as u8]);
        self.bytes.extend_from_slice(&id.shard.to_be_bytes());
        self.bytes.extend_from_slice(&first.to_be_bytes());
    }
    pub(super) fn acked(&mut self, seq: u64) {
        self.bytes.push(ACKED);
        self.bytes.extend_from_slice(&seq.to_be_bytes());
    }
    pub(super) fn state(&mut self, id: StreamId, first: u64, next: u64) {
        self.bytes.extend_from_slice(&[STATE, id.kind as u8]);
        self.bytes.extend_from_slice(&id.shard.to_be_bytes());
        self.bytes.extend_from_slice(&first.to_be_bytes());
        self.bytes.extend_from_slice(&next.to_be_bytes());
    }

    /// Fills in the header and gives the whole frame.
    pub(super) fn finish(&mut self, salt: u64, number: u64) -> &[u8] {
        // A frame is at most a few requests of at most 64 MiB each, far below 4 GiB.
        let length = (self.bytes.len() - FRAME_HEADER) as u32;
        self.bytes[..8].copy_from_slice(&salt.to_be_bytes());
        self.bytes[12..16].copy_from_slice(&length.to_be_bytes());
        self.bytes[16..24].copy_from_slice(&number.to_be_bytes());
        let crc = crc32fast::hash(&self.bytes[12..]);
        self.bytes[8..12].copy_from_slice(&crc.to_be_bytes());
        &self.bytes
    }
}

fn message_header(tag: u8, shard: u16, seq: u64, at: WallMs, body: &[u8]) -> [u8; MESSAGE_HEADER] {
    let mut header = [0; MESSAGE_HEADER];
    header[0] = tag;
    header[1..3].copy_from_slice(&shard.to_be_bytes());
    header[3..11].copy_from_slice(&seq.to_be_bytes());
    header[11..19].copy_from_slice(&at.0.to_be_bytes());
    // A body is at most MESSAGE_BYTES_MAX.
    header[19..23].copy_from_slice(&(body.len() as u32).to_be_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..23]);
    crc.update(body);
    header[23..].copy_from_slice(&crc.finalize().to_be_bytes());
    header
}

/// When the message was taken, if `record` is message `seq` of this stream, undamaged.
pub(super) fn check_message(record: &[u8], id: StreamId, seq: u64) -> Option<WallMs> {
    let header = record.get(..MESSAGE_HEADER)?;
    let at = WallMs(u64_at(header, 11)?);
    let tag = header[0];
    if tag & !MOVED != id.kind as u8 {
        return None;
    }
    (header == message_header(tag, id.shard, seq, at, &record[MESSAGE_HEADER..])).then_some(at)
}

/// What stands at some place of a segment where a frame could begin.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// A whole, undamaged frame.
    Whole { number: u64, payload: &'a [u8] },
    /// Nothing that was ever finished: the end, a write that did not end, or damage.
    Broken,
}

/// Looks at the frame that begins at the start of `bytes`.
pub(super) fn read_frame(bytes: &[u8], salt: u64) -> Frame<'_> {
    let whole = || {
        if u64_at(bytes, 0)? != salt {
            return None;
        }
        let length = u32_at(bytes, 12)? as usize;
        let number = u64_at(bytes, 16)?;
        let end = FRAME_HEADER.checked_add(length)?;
        let payload = bytes.get(FRAME_HEADER..end)?;
        (u32_at(bytes, 8)? == crc32fast::hash(&bytes[12..end])).then_some(Frame::Whole { number, payload })
    };
    whole().unwrap_or(Frame::Broken)
}

/// Whether a whole frame later than `number` begins anywhere in `bytes`: then what came before it
/// was not the last write, and must have been whole once.
pub(super) fn has_later_frame(bytes: &[u8], salt: u64, number: u64) -> bool {
    memchr::memmem::find_iter(bytes, &salt.to_be_bytes()).any(|at| match read_frame(&bytes[at..], salt) {
        Frame::Whole { number: later, payload: _ } => later > number,
        Frame::Broken => false,
    })
}

/// One record of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// A message; `offset` from the start of the payload, `length` of its body.
    Message {
        id: StreamId,
        seq: u64,
        offset: usize,
        length: u32,
        moved: bool,
    },
    Trim {
        id: StreamId,
        first: u64,
    },
    Acked {
        seq: u64,
    },
    State {
        id: StreamId,
        first: u64,
        next: u64,
    },
}

/// The record at `*at`, which moves on to the next; `Ok(None)` at the end of the payload.
///
/// # Errors
/// When what stands there is no record (a newer format, or a fault in this program: the frame's
/// checksum was right).
pub(super) fn read_record(payload: &[u8], at: &mut usize) -> Result<Option<Record>, ()> {
    let Some(&tag) = payload.get(*at) else { return Ok(None) };
    let offset = *at;
    let rest = &payload[offset..];
    let id = |kind_at: usize| -> Option<StreamId> {
        Some(StreamId { kind: StreamKind::from_byte(*rest.get(kind_at)?)?, shard: u16_at(rest, kind_at + 1)? })
    };
    let read = || -> Option<(Record, usize)> {
        match tag {
            TRIM => Some((Record::Trim { id: id(1)?, first: u64_at(rest, 4)? }, 12)),
            ACKED => Some((Record::Acked { seq: u64_at(rest, 1)? }, 9)),
            STATE => Some((Record::State { id: id(1)?, first: u64_at(rest, 4)?, next: u64_at(rest, 12)? }, 20)),
            kind => {
                let length = u32_at(rest, 19)?;
                let end = MESSAGE_HEADER.checked_add(length as usize)?;
                rest.get(..end)?;
                let id = StreamId { kind: StreamKind::from_byte(kind & !MOVED)?, shard: u16_at(rest, 1)? };
                Some((Record::Message { id, seq: u64_at(rest, 3)?, offset, length, moved: kind & MOVED != 0 }, end))
            }
        }
    };
    let (record, length) = read().ok_or(())?;
    *at = offset + length;
    Ok(Some(record))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: StreamId = StreamId { kind: StreamKind::Log, shard: 0x0102 };

    const SALT: u64 = 0x0011_2233_4455_6677;

    fn sample() -> Vec<u8> {
        let mut frame = FrameBuilder::new();
        frame.state(LOG, 3, 4);
        assert_eq!(frame.message(LOG, 4, WallMs(5), b"hi"), FRAME_HEADER + 20);
        frame.trim(LOG, 4);
        frame.acked(6);
        frame.moved(LOG, 3, WallMs(1), b"");
        frame.finish(SALT, 9).to_vec()
    }

    #[test]
    fn the_bytes_of_format_1_stay_as_they_are() {
        let hex: String = sample().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "0011223344556677",
                "3b134048",
                "00000061",
                "0000000000000009",
                "83",
                "03",
                "0102",
                "0000000000000003",
                "0000000000000004",
                "03",
                "0102",
                "0000000000000004",
                "0000000000000005",
                "00000002",
                "f21ba8eb",
                "6869",
                "81",
                "03",
                "0102",
                "0000000000000004",
                "82",
                "0000000000000006",
                "43",
                "0102",
                "0000000000000003",
                "0000000000000001",
                "00000000",
                "72c9248a",
            )
        );
    }

    #[test]
    fn records_are_read_back() {
        let bytes = sample();
        let Frame::Whole { number: 9, payload } = read_frame(&bytes, SALT) else { panic!("a whole frame") };
        let mut at = 0;
        let mut records = Vec::new();
        while let Some(record) = read_record(payload, &mut at).unwrap() {
            records.push(record);
        }
        assert_eq!(
            records,
            [
                Record::State { id: LOG, first: 3, next: 4 },
                Record::Message { id: LOG, seq: 4, offset: 20, length: 2, moved: false },
                Record::Trim { id: LOG, first: 4 },
                Record::Acked { seq: 6 },
                Record::Message { id: LOG, seq: 3, offset: 70, length: 0, moved: true },
            ]
        );
        let message = &payload[20..20 + MESSAGE_HEADER + 2];
        assert_eq!(check_message(message, LOG, 4), Some(WallMs(5)));
        assert_eq!(check_message(message, LOG, 5), None);
        for bit in 0..message.len() * 8 {
            let mut damaged = message.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // The moved bit is checked too: it is under the checksum.
            assert_eq!(check_message(&damaged, LOG, 4), None, "bit {bit}");
        }
    }

    #[test]
    fn any_damage_breaks_a_frame_and_a_cut_never_panics() {
        let bytes = sample();
        for cut in 0..bytes.len() {
            assert_eq!(read_frame(&bytes[..cut], SALT), Frame::Broken);
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_frame(&damaged, SALT), Frame::Broken, "bit {bit}");
        }
        let payload = &bytes[FRAME_HEADER..];
        for cut in 0..payload.len() {
            let mut at = 0;
            while let Ok(Some(_)) = read_record(&payload[..cut], &mut at) {}
        }
    }

    #[test]
    fn a_later_frame_is_found_behind_damage() {
        let mut bytes = b"damage".to_vec();
        bytes.extend(sample());
        assert!(has_later_frame(&bytes, SALT, 8));
        assert!(!has_later_frame(&bytes, SALT, 9));
        assert!(!has_later_frame(b"", SALT, 0));
        assert!(!has_later_frame(&bytes, SALT + 1, 8), "another segment's frames are none of this one's");
    }

    #[test]
    fn a_segment_header_is_checked() {
        let header = segment_header(7, 99, SALT);
        assert_eq!(read_segment_header(&header, 7), Some((99, SALT)));
        assert_eq!(read_segment_header(&header, 8), None);
        assert_eq!(read_segment_header(&header[..20], 7), None);
    }
}
