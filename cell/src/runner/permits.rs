//! How much work one cell has under way at once, over all its shards: `cell.in_flight_max`.
//!
//! A shard starts work only with a permit for each call. Permits that are given back go to the shard
//! that has waited longest, so that a shard with much to do does not starve the others; not one by one, but
//! some at a time, since what a shard begins together it appends together. What is under way already is never
//! held up: a shard that reopens with more calls than there are permits overdraws.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cellbus_bus::ids::ShardId;

use super::{Handle, Message};

/// Permits that one shard is given at a time while others wait.
const SHARE_MAX: i64 = 16;
/// A shard that wants more waits until a share of so many is free, but no more than this part of all permits:
/// what lies idle meanwhile is not missed. Nor does it wait long, as the others may all be under way at a
/// manager that hangs: [`Held::sweep`].
const IDLE_PART: i64 = 64;

/// The permits of one cell.
pub(crate) struct Permits {
    state: Mutex<State>,
}

struct State {
    /// Below zero while overdrawn.
    free: i64,
    /// How many one waits for that wants as many.
    share: i64,
    /// Shards that wait, in order, and how many permits each could use.
    line: VecDeque<ShardId>,
    waiting: BTreeMap<ShardId, (Handle, i64)>,
}

impl Permits {
    /// So many.
    #[must_use]
    pub(crate) fn new(max: u32) -> Arc<Self> {
        let (free, share) = (i64::from(max), (i64::from(max) / IDLE_PART).clamp(1, SHARE_MAX));
        let state = State { free, share, line: VecDeque::new(), waiting: BTreeMap::new() };
        Arc::new(Self { state: Mutex::new(state) })
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(super) fn give_back(&self, permits: i64) {
        let mut state = self.lock();
        state.free += permits;
        let share = state.share;
        state.hand_out(share);
    }
}

impl State {
    /// Gives what is free to those who wait, in turn; to each so many at the least, if it wants as many.
    fn hand_out(&mut self, share: i64) {
        while self.free > 0
            && let Some(shard) = self.line.front().copied()
        {
            let wants = self.waiting.get(&shard).map_or(0, |(_, wants)| *wants);
            if self.free < wants.min(share) {
                return;
            }
            self.line.pop_front();
            let Some((handle, wants)) = self.waiting.remove(&shard) else { continue };
            let given = wants.min(self.free).min(SHARE_MAX);
            // A shard that is closing, or has too much to do, does without.
            if handle.put(Message::Permits(given)).is_ok() {
                self.free -= given;
            }
        }
    }
}

/// What one shard holds of them. Dropped, they go back.
pub(super) struct Held {
    of: Arc<Permits>,
    shard: ShardId,
    held: i64,
    /// Of these, given since it was last evened out: its turn has come, and they are not passed on.
    fresh: i64,
}

impl Held {
    pub(super) fn none(of: Arc<Permits>, shard: ShardId) -> Self {
        Self { of, shard, held: 0, fresh: 0 }
    }

    /// Was given some.
    pub(super) fn given(&mut self, permits: i64) {
        self.held += permits;
        self.fresh += permits;
    }

    /// Evens out what is held with what the shard has under way, and asks for as many as it could
    /// use. Gives how many calls it may have under way.
    pub(super) fn settle(&mut self, handle: &Handle, in_flight: usize, ready: usize) -> usize {
        // Thousands at the most.
        let (used, ready) = (in_flight as i64, ready as i64);
        let mut state = self.of.lock();
        let spare = self.held - used;
        let kept = std::mem::take(&mut self.fresh).min(ready);
        if spare < 0 {
            self.held = used;
            state.free += spare;
        } else if spare > kept && (ready == 0 || !state.line.is_empty()) {
            // Others are waiting: what was given back here is theirs first.
            self.held = used + kept;
            state.free += spare - kept;
        }
        let wants = ready - (self.held - used);
        if wants > 0 && state.line.is_empty() && state.free > 0 {
            let taken = wants.min(state.free);
            state.free -= taken;
            self.held += taken;
        }
        let wants = ready - (self.held - used);
        if wants > 0 {
            if state.waiting.insert(self.shard, (handle.clone(), wants)).is_none() {
                state.line.push_back(self.shard);
            }
        } else if state.waiting.remove(&self.shard).is_some() {
            state.line.retain(|shard| *shard != self.shard);
        }
        let share = state.share;
        state.hand_out(share);
        drop(state);
        usize::try_from(self.held).unwrap_or(0)
    }

    /// Now and then: what is free is of use to whoever waits, however little it is.
    pub(super) fn sweep(&self) {
        self.of.lock().hand_out(1);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        if state.waiting.remove(&self.shard).is_some() {
            state.line.retain(|shard| *shard != self.shard);
        }
        drop(state);
        self.of.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::ShardState;
    use crate::mailbox::Mailbox;
    use crate::peers::Peer;
    use arc_swap::ArcSwap;
    use cellbus_bus::ids::ShardCount;

    fn shard(index: u16) -> (ShardId, Handle) {
        let id = ShardId::new(index, ShardCount::DEFAULT).unwrap();
        let me = Peer { cell: "cell-1".parse().unwrap(), address: String::new() };
        let row = Arc::new(ArcSwap::from_pointee(super::super::row_of(id, &me, ShardState::Open)));
        (id, Handle { shard: id, mailbox: Arc::new(Mailbox::new(16)), row })
    }

    fn given(handle: &Handle) -> i64 {
        let given = handle.mailbox.take().into_iter().map(|message| match message {
            Message::Permits(given) => given,
            _ => panic!("only permits are handed out"),
        });
        given.sum()
    }

    #[test]
    fn there_are_never_more_under_way_than_permits_and_each_shard_has_its_turn() {
        let permits = Permits::new(4);
        let ((one, a), (two, b)) = (shard(1), shard(2));
        let (mut first, mut second) = (Held::none(Arc::clone(&permits), one), Held::none(Arc::clone(&permits), two));
        assert_eq!(first.settle(&a, 0, 4), 4);
        assert_eq!(second.settle(&b, 0, 3), 0, "it waits");
        assert_eq!(given(&b), 0);
        // One call of the first has ended. It has more to do, but the second has waited longer.
        assert_eq!(first.settle(&a, 3, 97), 3);
        assert_eq!(given(&b), 1);
        second.given(1);
        assert_eq!(second.settle(&b, 0, 3), 1, "what it was given is not passed on");
        // It has done that; now the first waits before it.
        assert_eq!(second.settle(&b, 0, 2), 0);
        assert_eq!((given(&a), given(&b)), (1, 0));
        first.given(1);
        assert_eq!(first.settle(&a, 3, 0), 3);
        assert_eq!(given(&b), 1);
        second.given(1);
        assert_eq!(second.settle(&b, 1, 0), 1);
        drop(first);
        assert_eq!(permits.lock().free, 3);
        drop(second);
        assert_eq!(permits.lock().free, 4);
    }

    #[test]
    fn a_shard_with_much_to_do_is_given_some_at_a_time_and_one_with_little_what_there_is() {
        let permits = Permits::new(256);
        let ((one, a), (two, b), (three, c)) = (shard(1), shard(2), shard(3));
        let hold = |shard| Held::none(Arc::clone(&permits), shard);
        let (mut first, mut second, mut third) = (hold(one), hold(two), hold(three));
        assert_eq!(first.settle(&a, 0, 256), 256);
        assert_eq!((second.settle(&b, 0, 100), third.settle(&c, 0, 2)), (0, 0));
        for under_way in [255, 254, 253] {
            first.settle(&a, under_way, 0);
            assert_eq!(given(&b), 0, "{under_way} are under way");
        }
        first.settle(&a, 252, 0);
        assert_eq!((given(&b), given(&c)), (4, 0), "a 64th of all, to whoever has waited longest");
        first.settle(&a, 250, 0);
        assert_eq!(given(&c), 2, "all that it wants");
    }

    #[test]
    fn what_is_free_does_not_lie_idle_for_long() {
        let permits = Permits::new(1024);
        let ((one, a), (two, b), (three, c)) = (shard(1), shard(2), shard(3));
        let hold = |shard| Held::none(Arc::clone(&permits), shard);
        let (mut first, mut second, mut third) = (hold(one), hold(two), hold(three));
        assert_eq!(first.settle(&a, 0, 1024), 1024);
        assert_eq!((second.settle(&b, 0, 100), third.settle(&c, 0, 1)), (0, 0));
        first.settle(&a, 1014, 0);
        assert_eq!((given(&b), given(&c)), (0, 0));
        // All others are under way at a manager that hangs.
        third.sweep();
        assert_eq!((given(&b), given(&c)), (10, 0));
        second.given(10);
        assert_eq!(second.settle(&b, 10, 90), 10);
        first.settle(&a, 1013, 0);
        assert_eq!(given(&c), 1, "its turn");
        third.given(1);
        third.settle(&c, 1, 0);
        // Whoever is first in line wants nothing any more.
        let ((four, d), (five, e)) = (shard(4), shard(5));
        let (mut fourth, mut fifth) = (hold(four), hold(five));
        assert_eq!((fourth.settle(&d, 0, 100), fifth.settle(&e, 0, 2)), (0, 0));
        first.settle(&a, 1005, 0);
        assert_eq!((given(&b), given(&d), given(&e)), (0, 0, 0));
        second.settle(&b, 10, 0);
        fourth.settle(&d, 0, 0);
        assert_eq!(given(&e), 2);
    }

    #[test]
    fn what_is_under_way_already_is_not_held_up_and_counts() {
        let permits = Permits::new(2);
        let ((one, a), (two, b)) = (shard(1), shard(2));
        // It has come here with five calls open.
        let mut first = Held::none(Arc::clone(&permits), one);
        assert_eq!(first.settle(&a, 5, 10), 5);
        let mut second = Held::none(Arc::clone(&permits), two);
        assert_eq!(second.settle(&b, 0, 1), 0);
        for left in [4, 3, 2] {
            first.settle(&a, left, 0);
            assert_eq!(given(&b), 0, "{left} are under way, two may be");
        }
        first.settle(&a, 1, 0);
        assert_eq!(given(&b), 1);
    }
}
