//! How full the lanes of logs and queues are, as far as this process has looked.
//!
//! Owners ask after each append, and the server is asked in the background: about once a second for
//! a lane that grows or is nearly full, now and then for the others. What owners append is counted in
//! between, what others publish is not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::env::Mono;

use super::layout::{Family, Track};
use super::{Shared, answer};

/// A lane that is so full is looked at, and trimmed, once a second.
pub(super) const NARROW: f64 = 0.75;
/// Between two looks at a lane at the least.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks at a lane of which not much is known to have changed.
const LOOK_IDLE: Duration = Duration::from_secs(30);
/// A lane is looked at when this process has appended such a part of its room.
const GROWN: u64 = 256;

#[derive(Default)]
pub(super) struct Rooms {
    lanes: Mutex<BTreeMap<(Family, u16), Room>>,
}

#[derive(Clone, Copy, Default)]
struct Room {
    looked_at: Option<Mono>,
    /// Bytes that are in use, and that there are. `None`: no limit, or nothing is known.
    seen: Option<(u64, u64)>,
    /// Bytes that this process has appended since.
    appended: u64,
}

impl Room {
    fn fullness(self) -> Option<f64> {
        let (used, max) = self.seen?;
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        Some(used.saturating_add(self.appended) as f64 / max as f64)
    }
    fn is_due(self, now: Mono) -> bool {
        let Some(looked_at) = self.looked_at else { return true };
        let since = now.since(looked_at);
        let moving = self.seen.is_some_and(|(_, max)| self.appended >= max / GROWN);
        let narrow = self.fullness().is_some_and(|fullness| fullness >= NARROW);
        since >= LOOK_IDLE || (since >= LOOK && (moving || narrow))
    }
}

impl Rooms {
    fn lanes(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Family, u16), Room>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// So many bytes more are in the lane.
    pub(super) fn appended(&self, family: Family, lane: u16, bytes: usize) {
        self.lanes().entry((family, lane)).or_default().appended += bytes as u64;
    }
    /// Whether the lane has little room left.
    pub(super) fn is_narrow(&self, family: Family, lane: u16) -> bool {
        self.lanes().get(&(family, lane)).and_then(|room| room.fullness()).is_some_and(|fullness| fullness >= NARROW)
    }
    /// Whether any lane has.
    pub(super) fn any_is_narrow(&self) -> bool {
        self.lanes().values().any(|room| room.fullness().is_some_and(|fullness| fullness >= NARROW))
    }
}

impl Shared {
    /// What is known of the track's lane; it is looked at beside if it is time to.
    pub(super) fn fullness(self: &Arc<Self>, track: Track) -> Option<f64> {
        let lane = (track.family, self.layout.lane(track.shard));
        let now = self.env.mono();
        let mut lanes = self.rooms.lanes();
        let room = lanes.entry(lane).or_default();
        let fullness = room.fullness();
        if room.is_due(now) {
            room.looked_at = Some(now);
            let shared = Arc::clone(self);
            self.env.spawn("nats room", async move { shared.look(track).await });
        }
        fullness
    }

    async fn look(&self, track: Track) {
        let (family, lane) = (track.family, self.layout.lane(track.shard));
        let asked = match self.connected() {
            Ok(()) => {
                let info = self.lane(track).get_info().await;
                info.map_err(|error| answer::unavailable("ask for a stream", &error))
            }
            Err(error) => Err(error),
        };
        match asked {
            Ok(info) => {
                let max = u64::try_from(info.config.max_bytes).ok().filter(|max| *max > 0);
                let room = Room { seen: max.map(|max| (info.state.bytes, max)), ..Room::default() };
                let looked_at = Some(self.env.mono());
                self.rooms.lanes().insert((family, lane), Room { looked_at, ..room });
            }
            Err(error) => {
                tracing::debug!(?family, lane, %error, "what room the lane has is not known now");
                return;
            }
        }
        // Owners that wait for room trim nothing themselves.
        if self.rooms.is_narrow(family, lane)
            && let Err(error) = self.round().await
        {
            tracing::debug!(?family, lane, %error, "a lane with little room was not trimmed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_looked_at_when_it_may_have_filled() {
        let at = |secs| Mono(Duration::from_secs(secs));
        let room = Room::default();
        assert!(room.is_due(at(0)), "nothing is known yet");
        let room = Room { looked_at: Some(at(10)), ..room };
        assert!(!room.is_due(at(12)) && room.is_due(at(40)), "no limit: now and then");
        let room = Room { seen: Some((100, 1000)), appended: 1, ..room };
        assert!(!room.is_due(at(12)), "it has hardly grown");
        let room = Room { appended: 10, ..room };
        assert!(!room.is_due(at(10)) && room.is_due(at(11)), "it has grown");
        let room = Room { seen: Some((800, 1000)), appended: 0, ..room };
        assert!(room.is_due(at(11)), "it is nearly full");
        assert_eq!(Room { appended: 100, ..room }.fullness(), Some(0.9));
    }
}
