//! Cleaning: when more than half of what the segments hold is garbage, what is still kept of the
//! emptiest is copied to the end of the log, a little with each frame, and the segment goes.
//!
//! So the disk holds at most about twice what is kept, and a shard that rests can pin no segment
//! with its one last message.

use std::sync::Arc;

use crate::contract::{Message, Result};

use super::Shared;
use super::segment::Segment;
use super::stream::{DiskRead, Place, Stream};

/// Garbage that is not worth the copying, in segments.
const SLACK_SEGMENTS: u64 = 2;

/// The cleaning of one segment.
pub(super) struct Cleaning {
    victim: Arc<Segment>,
    /// What it held when the cleaning began; what was trimmed since is passed over. Last first.
    todo: Vec<(Arc<Stream>, u64)>,
}

impl Cleaning {
    /// The cleaning that is due, if one is.
    pub(super) fn begin(shared: &Shared, active: u32) -> Option<Self> {
        let segments = shared.segments.all();
        let size: u64 = segments.iter().map(|segment| segment.size()).sum();
        let live: u64 = segments.iter().map(|segment| segment.live()).sum();
        if size <= live * 2 + shared.config.segment_bytes * SLACK_SEGMENTS {
            return None;
        }
        let victim =
            segments.into_iter().filter(|segment| segment.id != active).min_by_key(|segment| segment.live())?;
        let mut todo = Vec::new();
        for stream in shared.streams.all() {
            let state = stream.state();
            let held = state.kept().filter(|(_, place)| place.segment == victim.id);
            todo.extend(held.map(|(seq, _)| (Arc::clone(&stream), seq)));
        }
        todo.reverse();
        Some(Self { victim, todo })
    }

    /// Whether nothing is left to move.
    pub(super) fn is_done(&self) -> bool {
        self.todo.is_empty()
    }

    /// The next message to move, with where it is now.
    pub(super) fn next(&mut self) -> Result<Option<(Arc<Stream>, Message, Place)>> {
        while let Some((stream, seq)) = self.todo.pop() {
            let place = stream.state().place(seq);
            if let Some(place) = place.filter(|place| place.segment == self.victim.id) {
                let read = DiskRead { id: stream.id, from: seq, places: vec![(place, Arc::clone(&self.victim))] };
                if let Some(message) = read.run()?.pop() {
                    return Ok(Some((stream, message, place)));
                }
            }
        }
        Ok(None)
    }
}
