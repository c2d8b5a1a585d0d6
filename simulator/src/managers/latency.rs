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
}

impl Latency {
    /// As on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fast => "fast",
            Self::Realistic => "realistic",
        }
    }

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
            Self::Fast | Self::Realistic => Limits {
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
                | Action::Delete => (0.020, 0.4),
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
                Action::Resize(_) => (3.0, 0.4),
                Action::Snapshot(_) => (5.0, 0.5),
                Action::Revert(_) => (6.0, 0.5),
                Action::SnapshotDelete(_) => (10.0, 0.8),
                Action::Relocate(_) => (40.0, 0.6),
                Action::Delete => (3.0, 0.5),
                Action::Inspect => (0.05, 0.4),
            },
        };
        lognormal(median_seconds, sigma, rng)
    }

    /// How long it takes to say something that is known: a session, a VM, the running tasks.
    pub(super) fn of_read(self, rng: &mut SmallRng) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fast => lognormal(0.002, 0.4, rng),
            Self::Realistic => lognormal(0.05, 0.4, rng),
        }
    }

    /// How long it takes to list everything.
    pub(super) fn of_inventory(self, rng: &mut SmallRng) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fast => lognormal(0.010, 0.4, rng),
            Self::Realistic => lognormal(1.5, 0.4, rng),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no latency.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a latency is none, fast or realistic")]
pub struct UnknownLatency;

impl FromStr for Latency {
    type Err = UnknownLatency;
    fn from_str(text: &str) -> Result<Self, UnknownLatency> {
        [Self::None, Self::Fast, Self::Realistic]
            .into_iter()
            .find(|latency| latency.as_str() == text)
            .ok_or(UnknownLatency)
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
        assert_eq!("slow".parse::<Latency>(), Err(UnknownLatency));
    }
}
