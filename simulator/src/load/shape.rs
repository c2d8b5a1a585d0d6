//! How many jobs are due by when: the curve that an open loop follows, whatever the cluster does.
//!
//! A [`Shape`] is a rate over time, given by its integral: how many jobs are due from the start to a
//! moment. [`super::arrivals`] turns that around into the moments themselves.

use std::f64::consts::TAU;
use std::time::Duration;

/// What a rate does over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Profile {
    /// It stays at `low`.
    Constant,
    /// From `low` to `high` in so many equal steps of equal length.
    Step {
        /// How many levels, the first and the last among them; at least 2.
        steps: u32,
    },
    /// From `low` to `high` in a straight line.
    Ramp,
    /// A square wave: each period begins at `high` and goes on at `low`.
    Burst {
        /// From burst to burst.
        period: Duration,
        /// The part of a period that is a burst, above 0 and below 1.
        duty: f64,
    },
    /// A wave from `low` (at its start) over `high` (half a period later) back to `low`.
    Daily {
        /// How long a day is.
        period: Duration,
    },
}

/// A rate over time, for so long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    profile: Profile,
    low: f64,
    high: f64,
    seconds: f64,
}

/// Why there is no such shape.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// A rate out of bounds.
    #[error("a rate of {0} jobs a second: it must be from 0 to 1000000")]
    Rate(f64),
    /// Nothing would ever be due.
    #[error("no job would ever be due: at least one of the rates must be above 0")]
    Nothing,
    /// Steps out of bounds.
    #[error("{0} steps: there must be from 2 to 10000")]
    Steps(u32),
    /// A part of a period that is none.
    #[error("bursts of {0} of a period: it must be above 0 and below 1")]
    Duty(f64),
    /// A length of time out of bounds.
    #[error("{0:?}: it must be from 1 millisecond to 10 years")]
    Length(Duration),
}

impl Invalid {
    /// The same words give the same shape.
    #[must_use]
    pub fn retryable(&self) -> bool {
        false
    }
}

const RATE_MAX: f64 = 1e6;
const STEPS_MAX: u32 = 10_000;
const LENGTH: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(10 * 366 * 24 * 3_600);

impl Shape {
    /// A shape between two rates (jobs a second). [`Profile::Constant`] stays at `low`.
    ///
    /// # Errors
    /// [`Invalid`] says what is out of bounds.
    pub fn new(profile: Profile, low: f64, high: f64, duration: Duration) -> Result<Self, Invalid> {
        let high = if profile == Profile::Constant { low } else { high };
        for rate in [low, high] {
            if !(0.0..=RATE_MAX).contains(&rate) {
                return Err(Invalid::Rate(rate));
            }
        }
        if low.max(high) <= 0.0 {
            return Err(Invalid::Nothing);
        }
        let within = |length: Duration| if LENGTH.contains(&length) { Ok(()) } else { Err(Invalid::Length(length)) };
        within(duration)?;
        match profile {
            Profile::Step { steps } if !(2..=STEPS_MAX).contains(&steps) => return Err(Invalid::Steps(steps)),
            Profile::Burst { period, duty } => {
                within(period)?;
                if !(duty > 0.0 && duty < 1.0) {
                    return Err(Invalid::Duty(duty));
                }
            }
            Profile::Daily { period } => within(period)?,
            Profile::Constant | Profile::Step { .. } | Profile::Ramp => {}
        }
        Ok(Self { profile, low, high, seconds: duration.as_secs_f64() })
    }

    /// For how long, seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// How many jobs are due from the start to `at` seconds. It never falls.
    #[must_use]
    pub fn due_by(&self, at: f64) -> f64 {
        let (low, high, at) = (self.low, self.high, at.clamp(0.0, self.seconds));
        match self.profile {
            Profile::Constant => low * at,
            Profile::Ramp => low * at + (high - low) * at * at / (2.0 * self.seconds),
            Profile::Step { steps } => {
                let (length, rise) = (self.seconds / f64::from(steps), (high - low) / f64::from(steps - 1));
                // The steps that are over, then a part of the one that is not.
                let over = (at / length).floor().min(f64::from(steps - 1));
                let before = length * (over * low + rise * over * (over - 1.0) / 2.0);
                before + (at - over * length) * (low + over * rise)
            }
            Profile::Burst { period, duty } => {
                let period = period.as_secs_f64();
                let (over, into) = ((at / period).floor(), at % period);
                let (burst, each) = (period * duty, period * (duty * high + (1.0 - duty) * low));
                over * each + into.min(burst) * high + (into - burst).max(0.0) * low
            }
            Profile::Daily { period } => {
                let (period, swing) = (period.as_secs_f64(), (high - low) / 2.0);
                (low + swing) * at - swing * period / TAU * (TAU * at / period).sin()
            }
        }
    }

    /// When the `count`th job (any number, from 0) is due, seconds, not before `after`; `None` when
    /// that is beyond the end.
    pub(super) fn time_of(&self, count: f64, after: f64) -> Option<f64> {
        // Sums of rates are inexact far behind the point.
        const NEGLIGIBLE: f64 = 1e-9;
        if count > self.due_by(self.seconds) - NEGLIGIBLE {
            return None;
        }
        // The curve never falls, so that halving finds the place; where it is flat, its end, as
        // nothing is due while the rate is 0.
        let (mut before, mut behind) = (after, self.seconds);
        const HALVINGS: u32 = 60;
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(before, behind);
            if self.due_by(middle) > count { behind = middle } else { before = middle }
        }
        Some(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn shape(profile: Profile, low: f64, high: f64) -> Shape {
        Shape::new(profile, low, high, 10 * MINUTE).unwrap()
    }
    /// Jobs due in the second that begins at `at`.
    fn rate(shape: &Shape, at: f64) -> f64 {
        shape.due_by(at + 1.0) - shape.due_by(at)
    }

    #[test]
    fn each_shape_has_its_rates() {
        let near = |got: f64, wanted: f64| assert!((got - wanted).abs() < 0.2, "{got} is not {wanted}");
        let constant = shape(Profile::Constant, 7.0, 99.0);
        near(rate(&constant, 0.0), 7.0);
        near(rate(&constant, 500.0), 7.0);
        let step = shape(Profile::Step { steps: 4 }, 10.0, 40.0);
        for (at, wanted) in [(0.0, 10.0), (148.0, 10.0), (151.0, 20.0), (449.0 - 0.5, 30.0), (599.0, 40.0)] {
            near(rate(&step, at), wanted);
        }
        let ramp = shape(Profile::Ramp, 100.0, 0.0);
        for (at, wanted) in [(0.0, 100.0), (299.5, 50.0), (599.0, 0.0)] {
            near(rate(&ramp, at), wanted);
        }
        let burst = shape(Profile::Burst { period: MINUTE, duty: 0.25 }, 1.0, 50.0);
        for (at, wanted) in [(0.0, 50.0), (14.0, 50.0), (15.0, 1.0), (59.0, 1.0), (540.0, 50.0)] {
            near(rate(&burst, at), wanted);
        }
        let daily = shape(Profile::Daily { period: 5 * MINUTE }, 10.0, 90.0);
        for (at, wanted) in [(0.0, 10.0), (149.5, 90.0), (299.5, 10.0), (74.5, 50.0)] {
            near(rate(&daily, at), wanted);
        }
        for shape in [constant, step, ramp, burst, daily] {
            let mut last = 0.0;
            for tenth in 0..=6_010 {
                let due = shape.due_by(f64::from(tenth) / 10.0);
                // It never falls, and nowhere does it rise faster than the higher rate.
                let rise = due - last;
                let most = shape.low.max(shape.high) * 0.1001;
                assert!((0.0..=most).contains(&rise), "{shape:?} rises by {rise} at {tenth}");
                last = due;
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |profile, low, high, duration| Shape::new(profile, low, high, duration).unwrap_err();
        assert_eq!(refused(Profile::Ramp, -1.0, 5.0, MINUTE), Invalid::Rate(-1.0));
        assert!(matches!(refused(Profile::Constant, f64::NAN, 5.0, MINUTE), Invalid::Rate(_)));
        assert_eq!(refused(Profile::Ramp, 0.0, 1e7, MINUTE), Invalid::Rate(1e7));
        assert_eq!(refused(Profile::Constant, 0.0, 5.0, MINUTE), Invalid::Nothing);
        assert_eq!(refused(Profile::Step { steps: 1 }, 1.0, 5.0, MINUTE), Invalid::Steps(1));
        assert_eq!(refused(Profile::Burst { period: MINUTE, duty: 1.0 }, 1.0, 5.0, MINUTE), Invalid::Duty(1.0));
        assert_eq!(
            refused(Profile::Daily { period: Duration::ZERO }, 1.0, 5.0, MINUTE),
            Invalid::Length(Duration::ZERO)
        );
        assert_eq!(refused(Profile::Ramp, 1.0, 5.0, Duration::MAX), Invalid::Length(Duration::MAX));
    }
}
