//! The clocks of one node, which may run faster or slower than the world's, and whose wall clock
//! may jump.

/// When every run begins, for wall clocks: 2026-01-01T00:00:00Z.
const BEGAN_MS: u64 = 1_767_225_600_000;
const MILLION: i128 = 1_000_000;

/// See the module. All times are nanoseconds unless they say otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// The world's time when the rate was set last, and what the clock showed then.
    since: u64,
    shown: u64,
    /// How much faster than the world's, in millionths.
    faster_ppm: i64,
    /// How far the wall clock is off.
    wall_off_ms: i64,
}

impl Clock {
    fn rate(&self) -> i128 {
        MILLION + i128::from(self.faster_ppm)
    }
    /// What the monotonic clock shows.
    pub(super) fn mono(&self, now: u64) -> u64 {
        if self.faster_ppm == 0 {
            return self.shown + (now - self.since);
        }
        let passed = i128::from(now - self.since) * self.rate() / MILLION;
        self.shown.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }
    /// When it will show this, in the world's time, if its rate stays.
    pub(super) fn world_time_of(&self, mono: u64) -> u64 {
        let left = mono.saturating_sub(self.shown);
        if self.faster_ppm == 0 {
            return self.since.saturating_add(left);
        }
        // Rounded up, so that the clock has certainly come there.
        let takes = (i128::from(left) * MILLION + self.rate() - 1) / self.rate();
        self.since.saturating_add(u64::try_from(takes).unwrap_or(u64::MAX))
    }
    /// What the wall clock shows.
    pub(super) fn wall_ms(&self, now: u64) -> u64 {
        (BEGAN_MS + self.mono(now) / 1_000_000).saturating_add_signed(self.wall_off_ms)
    }
    /// From now on it runs at another rate.
    pub(super) fn run_faster_ppm(&mut self, now: u64, ppm: i64) {
        self.shown = self.mono(now);
        self.since = now;
        self.faster_ppm = ppm.clamp(-900_000, 9_000_000);
    }
    /// The wall clock is set.
    pub(super) fn set_wall_off_ms(&mut self, off: i64) {
        self.wall_off_ms = off;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_never_goes_back_whatever_its_rate() {
        let mut clock = Clock::default();
        let mut last = 0;
        for (step, ppm) in [(1_000, 0), (2_000, 200_000), (3_000, -300_000), (4_000, 17)] {
            let now = step * 1_000_003;
            assert!(clock.mono(now) >= last);
            clock.run_faster_ppm(now, ppm);
            last = clock.mono(now);
            for ahead in [1, 999, 123_456_789] {
                let at = clock.world_time_of(last + ahead);
                assert!(clock.mono(at) >= last + ahead, "a timer that is set for then finds it come");
                assert!(clock.mono(at - 1) <= last + ahead);
            }
        }
        clock.set_wall_off_ms(-5_000);
        assert!(clock.wall_ms(5_000_000_000) < Clock::default().wall_ms(5_000_000_000));
    }
}
