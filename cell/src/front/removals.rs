//! How many destructive operations may begin at one manager in a time: a bucket of tokens that fills
//! evenly. Pure: time is an argument.

use std::time::Duration;

use cellbus_bus::env::Mono;

/// The longest that somebody who is put off is told to stay away.
const AWAY_MAX: Duration = Duration::from_secs(30);
/// The shortest: the limit is one of operations a minute, not of milliseconds.
const AWAY_MIN: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Removals {
    /// `None`: there is no limit.
    per_minute: Option<f64>,
    /// What is left of what may begin at once.
    tokens: f64,
    filled_at: Option<Mono>,
    /// Put off since the last one began.
    put_off: u32,
}

impl Removals {
    /// A new owner begins with one token, so that owners that change often add up to little.
    pub(super) fn new(per_minute: Option<f64>) -> Self {
        Self { per_minute, tokens: 1.0, filled_at: None, put_off: 0 }
    }

    /// What may begin at once after a quiet time: a tenth of a minute's.
    fn burst(per_minute: f64) -> f64 {
        (per_minute / 10.0).max(1.0)
    }

    fn fill(&mut self, now: Mono, per_minute: f64) {
        let since = self.filled_at.map_or(Duration::ZERO, |at| now.since(at));
        self.filled_at = Some(self.filled_at.map_or(now, |at| at.max(now)));
        self.tokens = (self.tokens + since.as_secs_f64() * per_minute / 60.0).min(Self::burst(per_minute));
    }

    /// How long to wait before one may begin; nothing if it may now.
    pub(super) fn wait(&mut self, now: Mono) -> Option<Duration> {
        let per_minute = self.per_minute?;
        self.fill(now, per_minute);
        if self.tokens >= 1.0 {
            return None;
        }
        // Those that were put off before come first, as a rule.
        let missing = 1.0 - self.tokens + f64::from(self.put_off);
        self.put_off = self.put_off.saturating_add(1);
        let wait = Duration::try_from_secs_f64(missing * 60.0 / per_minute).unwrap_or(AWAY_MAX);
        Some(wait.clamp(AWAY_MIN, AWAY_MAX))
    }

    /// One begins. Ask [`Removals::wait`] before.
    pub(super) fn begun(&mut self) {
        if self.per_minute.is_some() {
            self.tokens -= 1.0;
            self.put_off = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(Duration::from_millis(ms))
    }

    #[test]
    fn so_many_begin_in_a_minute_and_a_tenth_at_once_after_a_quiet_time() {
        let mut removals = Removals::new(Some(60.0));
        let mut begun = |from: u64, to: u64| {
            let mut count = 0;
            for ms in (from..to).step_by(10) {
                if removals.wait(at(ms)).is_none() {
                    removals.begun();
                    count += 1;
                }
            }
            count
        };
        assert_eq!(begun(0, 1), 1, "a new owner has one");
        assert_eq!(begun(10, 60_000), 59);
        // A quiet hour fills no more than the bucket.
        assert_eq!(begun(3_600_000, 3_600_001), 1);
        assert_eq!(begun(3_600_010, 3_660_000), 5 + 59);
    }

    #[test]
    fn those_that_are_put_off_are_spread_over_the_time_that_it_takes() {
        let mut removals = Removals::new(Some(60.0));
        assert_eq!(removals.wait(at(0)), None);
        removals.begun();
        let waits: Vec<u64> = (0..4).filter_map(|_| removals.wait(at(0))).map(|wait| wait.as_secs()).collect();
        assert_eq!(waits, [1, 2, 3, 4]);
        let last = (0..1_000).filter_map(|_| removals.wait(at(0))).last();
        assert_eq!(last, Some(AWAY_MAX));
        assert_eq!(removals.wait(at(1_000)), None);
        assert!(Removals::new(None).wait(at(0)).is_none());
        // Less than one a minute, and a clock that stands still or goes back, do no harm.
        let mut slow = Removals::new(Some(0.1));
        slow.begun();
        assert_eq!((slow.wait(at(10)), slow.wait(at(5))), (Some(AWAY_MAX), Some(AWAY_MAX)));
        assert_eq!(slow.wait(at(600_010)), None);
    }
}
