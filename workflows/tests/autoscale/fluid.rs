//! A cluster as a fluid: work comes in at a rate, cells take it out at theirs, in virtual time.
//!
//! New cells take a while to start. The same traces are played to the policy and to KEDA's plain rule.

#![allow(dead_code, reason = "the test and the bench each use a part of it")]

use std::collections::VecDeque;
use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, ShardCount, ShardId};
use cellbus_directory::scale::{Mode, Settings};
use cellbus_workflows::autoscale::{Now, Policy, Reading, ShardReading, Tuning};

/// Milliseconds of one step of the fluid.
const STEP_MS: u64 = 100;
/// From when a cell is asked for until it works.
const START_MS: u64 = 2_000;

/// What the cluster is like.
#[derive(Clone, Debug)]
pub(crate) struct Plant {
    /// What one cell does a second while there are few of them.
    pub(crate) cell_rate: f64,
    /// Work that one cell has under way at the most.
    pub(crate) in_flight_max: Option<u32>,
    /// What all of them together do a second at the most, by their number: `None`: no such bound.
    pub(crate) together_max: Option<fn(f64) -> f64>,
    /// Work that waits for managers, all the time.
    pub(crate) blocked: f64,
}

impl Default for Plant {
    fn default() -> Self {
        Self { cell_rate: 100.0, in_flight_max: Some(50), together_max: None, blocked: 0.0 }
    }
}

/// Who decides.
pub(crate) trait Scaler {
    /// How many cells there are to be.
    fn decide(&mut self, at_ms: u64, reading: &Reading) -> u32;
}

/// The policy.
pub(crate) struct Ours {
    pub(crate) policy: Policy,
    pub(crate) settings: Settings,
    pub(crate) reasons: Vec<String>,
}

pub(crate) fn settings(min: u32, max: u32) -> Settings {
    Settings {
        mode: Mode::Auto,
        cells: min,
        min,
        max,
        drain_target: Duration::from_secs(60),
        latency_objective: Duration::from_secs(5),
    }
}

pub(crate) fn now(at_ms: u64) -> Now {
    Now { mono: Mono(Duration::from_millis(at_ms)), wall: WallMs(1_700_000_000_000 + at_ms) }
}

impl Ours {
    pub(crate) fn new(min: u32, max: u32) -> Self {
        Self::tuned(min, max, Tuning::default())
    }
    pub(crate) fn tuned(min: u32, max: u32, tuning: Tuning) -> Self {
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
pub(crate) struct Keda {
    pub(crate) threshold: f64,
    pub(crate) min: u32,
    pub(crate) max: u32,
    current: u32,
    wanted: VecDeque<(u64, u32)>,
}

impl Keda {
    pub(crate) fn new(threshold: f64, min: u32, max: u32) -> Self {
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

/// What a trace came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Cells, each for each second that it was there, starting ones included.
    pub(crate) cell_seconds: f64,
    /// Seconds in which what was started had waited longer than the objective of 5 s.
    pub(crate) late_seconds: f64,
    /// How often the size turned: more after fewer, or fewer after more.
    pub(crate) turns: Vec<f64>,
    /// How often it changed.
    pub(crate) changes: u32,
    /// The most cells.
    pub(crate) cells_max: u32,
    /// When the first cell beyond those at the start worked.
    pub(crate) first_new_s: Option<f64>,
    /// The last moment with work that waited.
    pub(crate) last_backlog_s: f64,
    /// What waited at the end.
    pub(crate) backlog_end: f64,
    /// How many there were to be, second by second.
    pub(crate) cells: Vec<u32>,
    /// What waited, second by second.
    pub(crate) backlog: Vec<f64>,
}

/// Plays `arrival` (work a second, by the second) for so many seconds.
pub(crate) fn play(
    plant: &Plant,
    start: u32,
    seconds: u64,
    arrival: impl Fn(f64) -> f64,
    scaler: &mut dyn Scaler,
) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut desired, mut direction) = (start, 0_i8);
    // Cells that work, and those that start, with when they will.
    let (mut working, mut starting) = (start, VecDeque::<u64>::new());
    let (mut waiting, mut done) = (0.0_f64, 0.0_f64);
    // What has come and waits, in the order it came: when, and how much.
    let mut line: VecDeque<(u64, f64)> = VecDeque::new();
    let step = STEP_MS as f64 / 1_000.0;
    for at_ms in (0..seconds * 1_000).step_by(STEP_MS as usize) {
        let at = at_ms as f64 / 1_000.0;
        while starting.front().is_some_and(|ready| *ready <= at_ms) {
            starting.pop_front();
            working += 1;
            if working > start {
                outcome.first_new_s.get_or_insert(at);
            }
        }
        let comes = arrival(at) * step;
        line.push_back((at_ms, comes));
        waiting += comes;
        let cells = f64::from(working);
        let capacity = cells * plant.cell_rate;
        let capacity = plant.together_max.map_or(capacity, |most| capacity.min(most(cells)));
        let takes = (capacity * step).min(waiting);
        let running = match plant.in_flight_max {
            Some(max) => f64::from(max) * cells * (takes / (capacity * step)).clamp(0.0, 1.0),
            None => takes,
        };
        waiting -= takes;
        done += takes;
        let mut left = takes;
        let mut late = false;
        while left > 1e-9
            && let Some((came, amount)) = line.front_mut()
        {
            late |= at_ms - *came > 5_000;
            let part = amount.min(left);
            *amount -= part;
            left -= part;
            if *amount <= 1e-9 {
                line.pop_front();
            }
        }
        outcome.cell_seconds += (cells + starting.len() as f64) * step;
        if late {
            outcome.late_seconds += step;
        }
        if waiting > 1.0 {
            outcome.last_backlog_s = at;
        }
        if at_ms % 1_000 == 0 {
            outcome.cells.push(desired);
            outcome.backlog.push(waiting);
            let oldest = line.front().filter(|_| waiting > 1.0).map(|(came, _)| WallMs(1_700_000_000_000 + came));
            let reading = reading(at_ms, working, plant, waiting, running, done, oldest);
            let wants = scaler.decide(at_ms, &reading);
            if wants != desired {
                let turn = if wants > desired { 1 } else { -1 };
                if direction != 0 && turn != direction {
                    outcome.turns.push(at);
                }
                direction = turn;
                outcome.changes += 1;
            }
            while working + (starting.len() as u32) < wants {
                starting.push_back(at_ms + START_MS);
            }
            while working + (starting.len() as u32) > wants {
                if starting.pop_back().is_none() {
                    working -= 1;
                }
            }
            desired = wants;
            outcome.cells_max = outcome.cells_max.max(desired);
        }
    }
    outcome.backlog_end = waiting;
    outcome
}

/// All of it on one shard, the others idle.
pub(crate) fn reading(
    at_ms: u64,
    cells: u32,
    plant: &Plant,
    waiting: f64,
    running: f64,
    done: f64,
    oldest: Option<WallMs>,
) -> Reading {
    let count = ShardCount::DEFAULT;
    let shard = |shard: ShardId| {
        let all = if shard.index() == 0 { 1.0 } else { 0.0 };
        ShardReading {
            shard,
            epoch: Epoch(1),
            unread: 0,
            full: false,
            waiting: ((waiting + plant.blocked) * all).round() as u64,
            waiting_for_managers: (plant.blocked * all).round() as u64,
            running: (running * all).round() as u64,
            ended: (done * all).round() as u64,
            oldest_waiting_at: oldest.filter(|_| all > 0.0),
        }
    };
    Reading {
        at: Mono(Duration::from_millis(at_ms)),
        cells_active: cells,
        cells_draining: 0,
        in_flight_max: plant.in_flight_max,
        in_line: 0,
        shards: count.shards().map(shard).collect(),
    }
}
