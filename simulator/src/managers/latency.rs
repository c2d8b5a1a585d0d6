//! How long a simulated manager takes: lognormal, as measured task times of real ones look.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use cellbus_bus::job::StopMode;
use cellbus_cell::driver::Limits;
use cellbus_workflows::Action;
use rand::Rng as _;
use rand::rngs::SmallRng;

/// A draw is never longer than this many medians: a tail without end only makes runs differ.
const TAIL_MEDIANS_MAX: f64 = 20.0;

/// How long operations take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Latency {
    /// Nothing but the flush to disk.
    None,
    /// A median of 20 ms for every operation.
    #[default]
    Fast,
    /// As a busy vCenter: half a minute for a create, seconds for power.
    Realistic,
    /// This median for every operation; readings as in `Fast`.
    Median(Duration),
}

/// The longest median that may be asked for.
const MEDIAN_MS_MAX: u64 = 600_000;

impl Latency {
    /// How many operations of each kind a manager takes at once, unless its configuration says.
    #[must_use]
    pub fn limits(self) -> Limits {
        match self {
            // Nothing runs for long enough to be counted.
            Self::None => Limits {
                operations_max: 100_000,
                creates_max: 100_000,
                relocations_max: 100_000,
                power_max: 100_000,
                snapshots_max: 100_000,
                revokes: true,
            },
            // What one vCenter takes before its own queue fills, over a hundred hosts.
            Self::Fast | Self::Realistic | Self::Median(_) => Limits {
                operations_max: 256,
                creates_max: 128,
                relocations_max: 32,
                power_max: 128,
                snapshots_max: 64,
                revokes: true,
            },
        }
    }

    /// How long this action takes, this time.
    pub(super) fn of(self, action: &Action, rng: &mut SmallRng) -> Duration {
        let (median_seconds, sigma) = match self {
            Self::None => return Duration::ZERO,
            Self::Fast => match action {
                Action::Inspect => (0.002, 0.4),
                Action::Create(_)
                | Action::Start
                | Action::Stop(_)
                | Action::Restart(_)
                | Action::Suspend
                | Action::Resume
                | Action::Resize(_)
                | Action::Snapshot(_)
                | Action::Revert(_)
                | Action::SnapshotDelete(_)
                | Action::Relocate(_)
                | Action::Delete
                | Action::Adopt(_) => (0.020, 0.4),
            },
            Self::Realistic => match action {
                Action::Create(_) => (25.0, 0.5),
                Action::Start => (4.0, 0.4),
                Action::Stop(StopMode::Graceful) => (12.0, 0.6),
                Action::Stop(StopMode::Hard) => (2.0, 0.4),
                Action::Restart(StopMode::Graceful) => (20.0, 0.6),
                Action::Restart(StopMode::Hard) => (3.0, 0.4),
                Action::Suspend => (8.0, 0.5),
                Action::Resume => (5.0, 0.4),
                Action::Resize(_) | Action::Adopt(_) => (3.0, 0.4),
                Action::Snapshot(_) => (5.0, 0.5),
                Action::Revert(_) => (6.0, 0.5),
                Action::SnapshotDelete(_) => (10.0, 0.8),
                Action::Relocate(_) => (40.0, 0.6),
                Action::Delete => (3.0, 0.5),
                Action::Inspect => (0.05, 0.4),
            },
            Self::Median(_) if *action == Action::Inspect => (0.002, 0.4),
            Self::Median(median) => (median.as_secs_f64(), 0.4),
        };
        lognormal(median_seconds, sigma, rng)
    }

    /// How long it takes to say something that is known: a session, a VM, the running tasks.
    pub(super) fn of_read(self, rng: &mut SmallRng) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fast | Self::Median(_) => lognormal(0.002, 0.4, rng),
            Self::Realistic => lognormal(0.05, 0.4, rng),
        }
    }

    /// How long it takes to list everything.
    pub(super) fn of_inventory(self, rng: &mut SmallRng) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fast | Self::Median(_) => lognormal(0.010, 0.4, rng),
            Self::Realistic => lognormal(1.5, 0.4, rng),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Fast => f.write_str("fast"),
            Self::Realistic => f.write_str("realistic"),
            Self::Median(median) => write!(f, "{}ms", median.as_millis()),
        }
    }
}

/// The text names no latency.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a latency is none, fast, realistic, or a median such as 500ms, up to {MEDIAN_MS_MAX}ms")]
pub struct UnknownLatency;

impl FromStr for Latency {
    type Err = UnknownLatency;
    fn from_str(text: &str) -> Result<Self, UnknownLatency> {
        match text {
            "none" => Ok(Self::None),
            "fast" => Ok(Self::Fast),
            "realistic" => Ok(Self::Realistic),
            _ => {
                let median = text.strip_suffix("ms").and_then(|number| number.parse().ok());
                let median = median.filter(|ms| (1..=MEDIAN_MS_MAX).contains(ms)).ok_or(UnknownLatency)?;
                Ok(Self::Median(Duration::from_millis(median)))
            }
        }
    }
}

fn lognormal(median_seconds: f64, sigma: f64, rng: &mut SmallRng) -> Duration {
    // Box and Muller: 1 - u keeps the logarithm away from zero.
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    Duration::from_secs_f64(median_seconds * (sigma * normal).exp().min(TAIL_MEDIANS_MAX))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn half_of_all_draws_are_below_the_median() {
        let mut rng = SmallRng::seed_from_u64(7);
        let draws: Vec<f64> = (0..10_000).map(|_| Latency::Fast.of(&Action::Start, &mut rng).as_secs_f64()).collect();
        let below = draws.iter().filter(|seconds| **seconds < 0.020).count();
        assert!((4_700..5_300).contains(&below), "{below} of 10,000 below 20 ms");
        assert!(draws.iter().all(|seconds| *seconds > 0.0 && *seconds <= 0.4));
        assert_eq!(Latency::None.of(&Action::Start, &mut rng), Duration::ZERO);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        assert_eq!("realistic".parse(), Ok(Latency::Realistic));
        assert_eq!("500ms".parse(), Ok(Latency::Median(Duration::from_millis(500))));
        for wrong in ["slow", "ms", "0ms", "-1ms", "600001ms", "1s"] {
            assert_eq!(wrong.parse::<Latency>(), Err(UnknownLatency), "{wrong}");
        }
        for name in ["none", "fast", "realistic", "500ms"] {
            assert_eq!(name.parse::<Latency>().map(|latency| latency.to_string()).as_deref(), Ok(name));
        }
    }
}
