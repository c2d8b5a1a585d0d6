//! A cluster as a fluid: work comes in at a rate, cells take it out at theirs, in virtual time.
//!
//! New cells take a while to start. The same traces are played to whoever decides.

use std::collections::VecDeque;
use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, ShardCount, ShardId};
use cellbus_workflows::autoscale::{Reading, ShardReading};
use serde::Serialize;

/// Milliseconds of one step of the fluid.
const STEP_MS: u64 = 100;

/// What the cluster is like.
#[derive(Clone, Copy, Debug)]
pub struct Plant {
    /// What one cell does a second while there are few of them.
    pub cell_rate: f64,
    /// From when a cell is asked for until it works.
    pub start_seconds: f64,
    /// Work that one cell has under way at the most.
    pub in_flight_max: Option<u32>,
    /// What all of them together do a second at the most, by their number: `None`: no such bound.
    pub together_max: Option<fn(f64) -> f64>,
    /// Work that waits for managers, all the time.
    pub blocked: f64,
}

impl Default for Plant {
    fn default() -> Self {
        Self { cell_rate: 100.0, start_seconds: 2.0, in_flight_max: Some(50), together_max: None, blocked: 0.0 }
    }
}

/// Who decides.
pub trait Scaler {
    /// How many cells there are to be.
    fn decide(&mut self, at_ms: u64, reading: &Reading) -> u32;
}

/// What a trace came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Cells, each for each second that it was there, starting ones included.
    pub cell_seconds: f64,
    /// Seconds in which what was started had waited longer than the objective of 5 s.
    pub late_seconds: f64,
    /// When the size turned, in seconds: more after fewer, or fewer after more.
    pub turns: Vec<f64>,
    /// How often it changed.
    pub changes: u32,
    /// The most cells.
    pub cells_max: u32,
    /// When the first cell beyond those at the start worked.
    pub first_new_s: Option<f64>,
    /// The last moment with work that waited.
    pub last_backlog_s: f64,
    /// What waited at the end.
    pub backlog_end: f64,
    /// How many there were to be, second by second.
    #[serde(skip)]
    pub cells: Vec<u32>,
    /// What waited, second by second.
    #[serde(skip)]
    pub backlog: Vec<f64>,
}

/// Plays `arrival` (work a second, by the second) for so many seconds.
#[must_use]
pub fn play(plant: &Plant, start: u32, seconds: u64, arrival: impl Fn(f64) -> f64, scaler: &mut dyn Scaler) -> Outcome {
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
                starting.push_back(at_ms + (plant.start_seconds * 1_000.0) as u64);
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

/// What a controller reads then: all of it on one shard, the others idle.
#[must_use]
pub fn reading(
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
        ingress: Some(0),
        shards: count.shards().map(shard).collect(),
    }
}
