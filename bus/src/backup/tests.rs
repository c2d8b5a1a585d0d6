use std::io::Cursor;

use super::*;
use crate::ids::{Epoch, ShardCount};

fn head() -> Head {
    let record = ClusterRecord {
        cluster_id: uuid::Uuid::from_u128(7),
        shards: ShardCount::DEFAULT,
        hash_scheme: 1,
        format: 1,
        created_at: WallMs(5),
    };
    Head { record, taken_at: WallMs(9), build: "0.1.0".to_owned() }
}

fn frames() -> Vec<Frame> {
    let shard = ShardId::stored(7);
    let snapshot = SnapshotId { shard, seq: Seq(3), epoch: Epoch(2) };
    vec![
        Frame::Ingress {
            tenant: "acme".to_owned(),
            headers: vec![("ce-id".to_owned(), "1".to_owned())],
            body: Bytes::from_static(b"{}"),
        },
        Frame::Shard { shard, end: Seq(5), snapshot: Some(snapshot) },
        Frame::Part(Bytes::from_static(b"state")),
        Frame::Entry { seq: Seq(4), body: Bytes::from_static(b"four") },
        Frame::Item { kind: QueueKind::Control, body: Bytes::from_static(b"item") },
    ]
}

fn written() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), head()).unwrap();
    frames().iter().for_each(|frame| writer.frame(frame).unwrap());
    let (file, summary) = writer.finish().unwrap();
    assert_eq!((summary.frames, summary.ingress, summary.shards, summary.entries, summary.items), (6, 1, 1, 1, 1));
    file
}

fn read(file: &[u8]) -> Result<Vec<Frame>, Error> {
    let (mut reader, found) = Reader::new(Cursor::new(file))?;
    let mut frames = Vec::new();
    while let Some(frame) = reader.next()? {
        frames.push(frame);
    }
    if found != head() {
        return Err(Error::NotABackup);
    }
    Ok(frames)
}

#[test]
fn what_is_written_is_read() {
    let mut found = read(&written()).unwrap();
    assert!(matches!(found.pop(), Some(Frame::Summary(_))));
    assert_eq!(found, frames());
}

#[test]
fn one_that_was_cut_off_is_refused_wherever_it_was_cut() {
    let file = written();
    for cut in 0..file.len() {
        let error = read(&file[..cut]).unwrap_err();
        let expected = if cut < HEADER as usize { "backup_not_one" } else { "backup_cut_off" };
        assert_eq!(error.code(), expected, "cut at {cut}: {error}");
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let file = written();
    for bit in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn frames_that_are_missing_doubled_or_swapped_are_noticed() {
    let file = written();
    // Where each frame begins.
    let (mut reader, _) = Reader::new(Cursor::new(&file)).unwrap();
    let mut at = vec![HEADER as usize, reader.place().offset as usize];
    while reader.next().unwrap().is_some() {
        at.push(reader.place().offset as usize);
    }
    at.dedup();
    for pair in at.windows(2).skip(1) {
        let (head, frame, tail) = (&file[..pair[0]], &file[pair[0]..pair[1]], &file[pair[1]..]);
        assert!(read(&[head, tail].concat()).is_err(), "one is missing");
        assert!(read(&[head, frame, frame, tail].concat()).is_err(), "one is there twice");
    }
    let [a, b, c] = [at[1], at[2], at[3]];
    assert!(read(&[&file[..a], &file[b..c], &file[a..b], &file[c..]].concat()).is_err(), "two have changed places");
    assert!(read(&[&file[..], b"x"].concat()).is_err(), "something is behind the end");
}

#[test]
fn other_files_and_newer_formats_are_told_apart() {
    assert_eq!(read(b"").unwrap_err().code(), "backup_not_one");
    assert_eq!(read(b"something else altogether").unwrap_err().code(), "backup_not_one");
    let mut newer = written();
    newer[9] = 2;
    assert!(matches!(read(&newer), Err(Error::Newer { found: 2 })));
}

/// A length from a damaged file must not have memory taken for it.
#[test]
fn a_frame_beyond_the_bound_is_refused_unread() {
    let mut file = written();
    file.truncate(HEADER as usize);
    file.extend_from_slice(&u32::MAX.to_be_bytes());
    file.extend_from_slice(&[0; 4]);
    assert_eq!(read(&file).unwrap_err().code(), "backup_damaged");
    let mut writer = Writer::new(Vec::new(), head()).unwrap();
    let too_large = Frame::Part(Bytes::from(vec![0; FRAME_BYTES_MAX + 1]));
    assert!(writer.frame(&too_large).is_err());
    writer.frame(&Frame::Part(Bytes::from(vec![7; MESSAGE_BYTES_MAX]))).unwrap();
    let (file, _) = writer.finish().unwrap();
    assert_eq!(read(&file).unwrap().len(), 2);
}

#[test]
fn reading_goes_on_from_a_place() {
    let file = written();
    let (mut reader, _) = Reader::new(Cursor::new(&file)).unwrap();
    reader.next().unwrap();
    let place = reader.place();
    let second = reader.next().unwrap();
    while reader.next().unwrap().is_some() {}
    reader.go_to(place).unwrap();
    assert_eq!(reader.next().unwrap(), second);
}
