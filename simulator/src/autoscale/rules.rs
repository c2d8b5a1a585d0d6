//! Who decides: the policy, and the plain rule that it is held against.

use std::collections::VecDeque;
use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::ShardCount;
use cellbus_directory::scale::{Mode, Settings};
use cellbus_workflows::autoscale::{Now, Policy, Reading, Tuning};

use super::fluid::Scaler;

/// The policy.
pub struct Ours {
    policy: Policy,
    settings: Settings,
    /// Why it changed the size, each time.
    pub reasons: Vec<String>,
}

/// The defaults, within these sizes.
#[must_use]
pub fn settings(min: u32, max: u32) -> Settings {
    Settings {
        mode: Mode::Auto,
        cells: min,
        min,
        max,
        drain_target: Duration::from_secs(60),
        latency_objective: Duration::from_secs(5),
    }
}

/// So long after the beginning.
#[must_use]
pub fn now(at_ms: u64) -> Now {
    Now { mono: Mono(Duration::from_millis(at_ms)), wall: WallMs(1_700_000_000_000 + at_ms) }
}

impl Ours {
    /// As it is by default.
    #[must_use]
    pub fn new(min: u32, max: u32) -> Self {
        Self::tuned(min, max, Tuning::default())
    }
    /// With other settings.
    #[must_use]
    pub fn tuned(min: u32, max: u32, tuning: Tuning) -> Self {
        let policy = Policy::new(tuning, ShardCount::DEFAULT, Some(min));
        Self { policy, settings: settings(min, max), reasons: Vec::new() }
    }
}

impl Scaler for Ours {
    fn decide(&mut self, at_ms: u64, reading: &Reading) -> u32 {
        let decision = self.policy.decide(now(at_ms), &self.settings, Some(reading));
        if decision.desired != decision.before {
            self.reasons.push(format!("{:.0} s: {}", at_ms as f64 / 1_000.0, decision.reason));
        }
        decision.desired
    }
}

/// KEDA's plain rule: `ceil(lag / threshold)`, looked at every 30 s. It goes up at once; it goes down
/// once nothing within the cool-down of 300 s wanted as many (KEDA leaves this to the Kubernetes
/// autoscaler, whose stabilisation window is 300 s).
pub struct Keda {
    threshold: f64,
    min: u32,
    max: u32,
    current: u32,
    wanted: VecDeque<(u64, u32)>,
}

impl Keda {
    /// With `threshold` pieces of work that may wait for each cell.
    #[must_use]
    pub fn new(threshold: f64, min: u32, max: u32) -> Self {
        Self { threshold, min, max, current: min, wanted: VecDeque::new() }
    }
}

impl Scaler for Keda {
    fn decide(&mut self, at_ms: u64, reading: &Reading) -> u32 {
        if !at_ms.is_multiple_of(30_000) {
            return self.current;
        }
        let lag: u64 = reading.shards.iter().map(|shard| shard.unread + shard.waiting).sum();
        let wanted = ((lag as f64 / self.threshold).ceil() as u32).clamp(self.min, self.max);
        self.wanted.push_back((at_ms, wanted));
        while self.wanted.front().is_some_and(|(at, _)| at_ms - at > 300_000) {
            self.wanted.pop_front();
        }
        let most = self.wanted.iter().map(|(_, wanted)| *wanted).max().unwrap_or(wanted);
        self.current = most;
        self.current
    }
}
