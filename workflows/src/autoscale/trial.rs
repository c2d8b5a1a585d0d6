//! Whether more cells have helped: if less is done with them while as much waits, they go again.
//!
//! More cells do not help when something else is short: the processors of one machine, the broker,
//! a manager's own limits. Each then does less, which looks like a need for more.

use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_directory::scale::Rate;

/// Done with more cells, by what was done before: below this they made things worse. What is done
/// varies by some percent from one look to the next.
const WORSE_PERCENT: u64 = 80;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    length: Duration,
    hold: Duration,
    running: Option<Running>,
    /// No more than so many, until then.
    ceiling: Option<(u32, Mono)>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    from: u32,
    to: u32,
    before: Rate,
    /// Since when all of them are there and had more to do than they could.
    since: Option<Mono>,
    /// The best that was done since.
    best: Rate,
}

/// More cells made things worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) back_to: u32,
    pub(super) before: Rate,
    pub(super) after: Rate,
}

impl Trial {
    pub(super) fn new(length: Duration, hold: Duration) -> Self {
        Self { length, hold, running: None, ceiling: None }
    }

    /// More cells were asked for. `busy`: those that there are had more to do than they could, so
    /// that what they did says what they can do.
    pub(super) fn begin(&mut self, from: u32, to: u32, before: Rate, busy: bool) {
        if !busy || before.0 == 0 {
            self.running = None;
            return;
        }
        // Several steps in a row are judged by what was done before the first.
        let (from, before) = self.running.map_or((from, before), |running| (running.from, running.before));
        self.running = Some(Running { from, to, before, since: None, best: Rate::default() });
    }

    /// A new look; the verdict if it is a bad one.
    pub(super) fn look(&mut self, now: Mono, cells: u32, done: Option<Rate>, busy: bool) -> Option<Verdict> {
        let running = self.running.as_mut()?;
        if !busy {
            // What waited is gone: they have helped, or were not needed.
            self.running = None;
            return None;
        }
        if cells < running.to {
            running.since = None;
            return None;
        }
        let since = *running.since.get_or_insert(now);
        // What is done right after a change is that of shards that move.
        if now.since(since) >= self.length / 2
            && let Some(done) = done
        {
            running.best = running.best.max(done);
        }
        if now.since(since) < self.length {
            return None;
        }
        let Running { from, before, best, .. } = *running;
        self.running = None;
        if u128::from(best.0) * 100 >= u128::from(before.0) * u128::from(WORSE_PERCENT) {
            return None;
        }
        self.ceiling = Some((from, now.after(self.hold)));
        Some(Verdict { back_to: from, before, after: best })
    }

    /// The most that is tried for now.
    pub(super) fn ceiling(&self, now: Mono) -> Option<u32> {
        self.ceiling.filter(|(_, until)| now < *until).map(|(ceiling, _)| ceiling)
    }
}
