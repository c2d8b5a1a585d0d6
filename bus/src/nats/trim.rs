//! Trimming: many shards share a lane, and a lane is cheaply trimmed only as a whole.
//!
//! ```text
//!  trim(shard, through) ─▶ floor of its track, in the bucket of state
//!  a round, now and then, in every process: the lowest floor of a lane ─▶ all below it is dropped
//! ```
//!
//! A floor says that nothing below it will be read again and is at most the sequence of the track's
//! last message, so the last one is always kept, and with it the fence. The floors that a round goes
//! by are those of the round before: whoever reads has had the time in between to see that it is
//! behind ([`super::reader::QueueReader`]). While a lane has little room rounds come every two
//! seconds ([`super::room`]). A track that lies still, or whose shard is stuck, pins
//! its lane. When much has piled up above the pin, each process drops that of its own shards track by
//! track, which costs the server some ten milliseconds each.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;

use crate::contract::{Error, Result};
use crate::env::Mono;
use crate::ids::Seq;

use super::layout::{Family, Track};
use super::{Shared, answer, kept, publish};

/// So many sequences of a lane must lie between its pin and a track's floor before that track is
/// trimmed by itself.
const PINNED_MIN: u64 = 200_000;
/// The same while the lane has little room.
const PINNED_MIN_NARROW: u64 = 100;
/// Between two rounds at the most while a lane has little room.
const EVERY_NARROW: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Trims {
    state: Mutex<State>,
    /// One round at a time.
    round: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Floors that this process has raised: of its own shards.
    own: BTreeMap<Track, u64>,
    /// Up to where tracks have been trimmed by themselves.
    dropped: BTreeMap<Track, u64>,
    /// The floors that the next round goes by, and when they were read.
    before: Option<(Mono, BTreeMap<String, u64>)>,
}

impl Trims {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Below this sequence a track may have lost messages, as its leader says. One to begin with.
    pub(super) async fn floor(&self, track: Track) -> Result<u64> {
        let subject = self.layout.state_subject(&self.layout.floor_key(track));
        let found = kept::last(&self.state_stream, &subject).await?;
        Ok(found.and_then(|found| parse(&found.body)).unwrap_or(1))
    }

    /// Says that nothing of the track up to and with `through` will be read again.
    pub(super) async fn trim(&self, track: Track, through: Seq) -> Result<()> {
        self.connected()?;
        if let Some(last) = kept::last(self.lane(track), &self.layout.subject(track)).await? {
            let floor = through.0.saturating_add(1).min(last.seq);
            let known = self.trims.state().own.get(&track).copied().unwrap_or(1);
            if floor > known && floor > self.floor(track).await? {
                let subject = self.layout.state_subject(&self.layout.floor_key(track));
                self.publish_one(subject, publish::message(floor.to_string().into())).await.map_err(
                    |error| match error {
                        // Asked for again later, as all trims are.
                        Error::Unknown { reason } | Error::Full { reason } => Error::Unavailable { reason },
                        other => other,
                    },
                )?;
                self.trims.state().own.insert(track, floor);
            }
        }
        self.round().await
    }

    /// One round, if it is time for one and no other is under way.
    pub(super) async fn round(&self) -> Result<()> {
        let every = self.config.trim_every;
        let every = if self.rooms.any_is_narrow() { every.min(EVERY_NARROW) } else { every };
        let Ok(_alone) = self.trims.round.try_lock() else { return Ok(()) };
        let due = match &self.trims.state().before {
            Some((read_at, _)) => self.env.mono().since(*read_at) >= every,
            None => true,
        };
        if !due {
            return Ok(());
        }
        let read_at = self.env.mono();
        let read = self.floors().await?;
        let floors = if every.is_zero() {
            read
        } else {
            let before = self.trims.state().before.replace((read_at, read));
            match before {
                Some((_, floors)) => floors,
                None => return Ok(()),
            }
        };
        for family in Family::ALL {
            for lane in 0..self.layout.lanes {
                self.trim_lane(family, lane, &floors).await?;
            }
        }
        Ok(())
    }

    /// All floors, by key.
    async fn floors(&self) -> Result<BTreeMap<String, u64>> {
        let prefix = self.layout.state_subject("");
        let bucket = self.layout.state();
        let mut floors = BTreeMap::new();
        for family in Family::ALL {
            for lane in 0..self.layout.lanes {
                for latest in self.latest(&bucket, self.layout.floors_of(family, lane)).await? {
                    if let (Some(key), Some(floor)) = (latest.subject.strip_prefix(&prefix), parse(&latest.body)) {
                        floors.insert(key.to_owned(), floor);
                    }
                }
            }
        }
        Ok(floors)
    }

    async fn trim_lane(&self, family: Family, lane: u16, floors: &BTreeMap<String, u64>) -> Result<()> {
        let doing = "trim a lane";
        let Some(stream) = self.lanes.get(&(family, lane)) else { return Ok(()) };
        let subjects = stream.info_with_subjects(self.layout.lane_subjects(family, lane)).await;
        let mut subjects = subjects.map_err(|error| answer::unavailable(doing, &error))?;
        let first = subjects.info.state.first_sequence;
        let mut lowest: Option<u64> = None;
        while let Some(subject) = subjects.next().await {
            let (subject, _) = subject.map_err(|error| answer::unavailable(doing, &error))?;
            let floor = match self.layout.track_named(&subject, family) {
                Some(track) => floors.get(&self.layout.floor_key(track)).copied().unwrap_or(1),
                None => 1,
            };
            lowest = Some(lowest.map_or(floor, |lowest| lowest.min(floor)));
        }
        let Some(lowest) = lowest else { return Ok(()) };
        if lowest > first {
            let purged = stream.purge().sequence(lowest).await.map_err(|error| answer::unavailable(doing, &error))?;
            tracing::debug!(?family, lane, lowest, dropped = purged.purged, "trimmed a lane");
        }
        self.trim_above_pin(family, lane, lowest, floors).await
    }

    /// Drops track by track what this process's shards no longer need and a pin holds.
    async fn trim_above_pin(
        &self,
        family: Family,
        lane: u16,
        lowest: u64,
        floors: &BTreeMap<String, u64>,
    ) -> Result<()> {
        let Some(stream) = self.lanes.get(&(family, lane)) else { return Ok(()) };
        let own: Vec<Track> = self.trims.state().own.keys().copied().collect();
        for track in own.into_iter().filter(|track| track.family == family && self.layout.lane(track.shard) == lane) {
            let Some(floor) = floors.get(&self.layout.floor_key(track)).copied() else { continue };
            let dropped = self.trims.state().dropped.get(&track).copied().unwrap_or(0).max(lowest);
            if floor < dropped.saturating_add(self.pinned_min(family, lane)) {
                continue;
            }
            let subject = self.layout.subject(track);
            let purged = stream.purge().filter(subject.as_str()).sequence(floor).await;
            let purged = purged.map_err(|error| answer::unavailable("trim a track", &error))?;
            tracing::debug!(subject, floor, dropped = purged.purged, "trimmed a track of a lane that is pinned");
            self.trims.state().dropped.insert(track, floor);
        }
        Ok(())
    }

    /// With rounds at every trim (tests), every track is trimmed at once.
    fn pinned_min(&self, family: Family, lane: u16) -> u64 {
        match () {
            () if self.config.trim_every.is_zero() => 1,
            () if self.rooms.is_narrow(family, lane) => PINNED_MIN_NARROW,
            () => PINNED_MIN,
        }
    }
}

fn parse(body: &[u8]) -> Option<u64> {
    std::str::from_utf8(body).ok()?.parse().ok()
}
