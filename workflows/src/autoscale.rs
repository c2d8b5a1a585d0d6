//! How many cells there should be: decided from readings alone, with no clock and no I/O.
//!
//! ```text
//!  readings, a second each ─▶ Signals: what arrives, what is done, what a cell does, what waits
//!                                │
//!                                ▼  ceil((arrival + backlog / drain target) / (cell rate × utilisation))
//!                             wanted ─▶ Windows ─▶ steps, bounds ─▶ Decision, with its reason and inputs
//!                                          ▲
//!                             Trial: more cells and less done ─▶ undone, and not tried again for a while
//! ```
//!
//! What it keeps to:
//! - what is not known is not zero: without a fresh and whole reading the size holds, and says so;
//! - backlog that waits for managers that are saturated or failing is not counted: more cells would
//!   not make it shorter;
//! - more cells are asked for when the formula has wanted them for the whole of a short window, fewer
//!   when nothing within a long one wanted as many; each in steps, with a pause after each;
//! - while the latency objective is missed the backlog is to be gone in half the drain target, and no
//!   cell leaves.
//!
//! What is kept here is soft. A controller that takes over begins from the last recorded decision,
//! and asks for no fewer cells before it has watched for a whole window itself.

use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::ShardCount;
use cellbus_directory::scale::{Decision, Direction, Inputs, Mode, REASON_CHARS_MAX, Settings};

mod signals;
mod trial;
mod windows;

pub use signals::{Reading, ShardReading};
use signals::{Signals, Sums};
use trial::Trial;
use windows::Windows;

/// How it decides, beside what operators set while it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// How much of what a cell can do is planned with: 0 to 1.
    pub target_utilisation: f64,
    /// Towards more cells.
    pub out: Pace,
    /// Towards fewer.
    pub r#in: Pace,
    /// Over how long rates are measured.
    pub rate_window: Duration,
    /// A reading older than this is none.
    pub stale_after: Duration,
    /// How long new cells have to show that they help.
    pub trial: Duration,
    /// How long a size that made things worse is not tried again.
    pub undo_hold: Duration,
}

/// How fast the size follows what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// For how long it must have been wanted.
    pub window: Duration,
    /// Cells at once.
    pub step_max: u32,
    /// From one step to the next.
    pub pause: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            target_utilisation: 0.8,
            out: Pace { window: Duration::from_secs(3), step_max: 4, pause: Duration::from_secs(5) },
            r#in: Pace { window: Duration::from_secs(120), step_max: 1, pause: Duration::from_secs(5) },
            rate_window: Duration::from_secs(5),
            stale_after: Duration::from_secs(5),
            trial: Duration::from_secs(20),
            undo_hold: Duration::from_secs(600),
        }
    }
}

/// The two clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For windows.
    pub mono: Mono,
    /// For the record.
    pub wall: WallMs,
}

/// The policy with what it remembers. Whoever runs it is the active controller.
#[derive(Clone, Debug)]
pub struct Policy {
    tuning: Tuning,
    size_max: u32,
    signals: Signals,
    windows: Windows,
    trial: Trial,
    /// How many cells there are to be; `None` before anything is known of it.
    desired: Option<u32>,
    changed: Option<Mono>,
    /// Since when what it decides by is not known, if it is not.
    unknown_since: Option<Mono>,
}

/// The most cells that a cluster of so many shards is made larger to by itself.
#[must_use]
pub fn size_max(count: ShardCount) -> u32 {
    u32::from(count.get() / 4).max(1)
}

impl Policy {
    /// That goes on from the size that was decided last, if any was.
    #[must_use]
    pub fn new(tuning: Tuning, count: ShardCount, desired: Option<u32>) -> Self {
        let windows = Windows::new(tuning.out.window, tuning.r#in.window);
        Self {
            size_max: size_max(count),
            signals: Signals::new(tuning.rate_window, count),
            windows,
            trial: Trial::new(tuning.trial, tuning.undo_hold),
            tuning,
            desired,
            changed: None,
            unknown_since: None,
        }
    }

    /// How many cells there are to be.
    #[must_use]
    pub fn desired(&self) -> Option<u32> {
        self.desired
    }

    /// How many there are to be by what was kept: a decision that was not kept counts for nothing.
    pub fn kept(&mut self, desired: Option<u32>) {
        self.desired = desired;
    }

    /// A new look: `reading` is the last that there is. Call it about once a second.
    pub fn decide(&mut self, now: Now, settings: &Settings, reading: Option<&Reading>) -> Decision {
        let (min, max) = self.bounds(settings);
        let mut inputs = inputs_of(settings, now, reading);
        let before = self.desired.unwrap_or_else(|| {
            // Nothing was decided before: as many as there are.
            reading.map_or(min, |reading| reading.cells_active.clamp(1, self.size_max))
        });
        let looked = self.look(now, settings, reading, &mut inputs);
        let trouble = self.unknown_for_long(now.mono, settings.mode, looked.as_ref().err());
        let (desired, direction, reason) = match looked {
            Err(unknown) => (before, Direction::Hold, format!("{before} cells, held: {unknown}")),
            Ok(sums) => match settings.mode {
                Mode::Paused => (before, Direction::Hold, format!("{before} cells, held: paused by an operator")),
                Mode::Fixed => fixed(before, settings.cells.clamp(1, self.size_max)),
                Mode::Auto => self.size(now, before, (min, max), &sums, &mut inputs),
            },
        };
        // An operator's word needs no reading.
        let (desired, direction, reason) = match (settings.mode, direction) {
            (Mode::Fixed, Direction::Hold) => fixed(before, settings.cells.clamp(1, self.size_max)),
            _ => (desired, direction, reason),
        };
        if desired != before {
            self.changed = Some(now.mono);
        }
        self.desired = Some(desired);
        let reason = reason.chars().take(REASON_CHARS_MAX).collect();
        Decision { at: now.wall, desired, before, direction, reason, trouble, inputs }
    }

    /// What to tell an operator: that shards move, or a process starts, is over before that.
    fn unknown_for_long(&mut self, now: Mono, mode: Mode, unknown: Option<&String>) -> Option<String> {
        let (Some(unknown), Mode::Auto) = (unknown, mode) else {
            self.unknown_since = None;
            return None;
        };
        let since = *self.unknown_since.get_or_insert(now);
        (now.since(since) >= self.tuning.stale_after).then(|| format!("the size is held: {unknown}"))
    }

    fn bounds(&self, settings: &Settings) -> (u32, u32) {
        let max = settings.max.clamp(1, self.size_max);
        (settings.min.clamp(1, max), max)
    }

    /// Takes the reading in; why nothing can be said, if so.
    fn look(
        &mut self,
        now: Now,
        settings: &Settings,
        reading: Option<&Reading>,
        inputs: &mut Inputs,
    ) -> Result<Sums, String> {
        let Some(reading) = reading else { return Err("nothing has been read yet".to_owned()) };
        let age = now.mono.since(reading.at);
        if age > self.tuning.stale_after {
            self.signals.gap();
            return Err(format!("the last reading is {:.0} s old", age.as_secs_f64()));
        }
        let sums = self.signals.take(reading);
        inputs.shards_unknown = sums.shards_unknown;
        (inputs.unread, inputs.waiting, inputs.blocked, inputs.running) =
            (sums.unread, sums.waiting, sums.blocked, sums.running);
        inputs.oldest = sums.oldest_at.map(|at| now.wall.since(at));
        (inputs.arrival, inputs.completion, inputs.cell_rate) = self.signals.rates();
        if sums.shards_unknown > 0 {
            return Err(format!("what {} shards hold is not known", sums.shards_unknown));
        }
        if reading.ingress.is_none() {
            return Err("how much waits on the bus that no cell has taken is not known".to_owned());
        }
        match settings.mode {
            Mode::Auto => {}
            // What windows remember must be of one mind.
            Mode::Fixed | Mode::Paused => self.windows.clear(),
        }
        Ok(sums)
    }

    /// [`Mode::Auto`], with a whole reading.
    fn size(
        &mut self,
        now: Now,
        before: u32,
        (min, max): (u32, u32),
        sums: &Sums,
        inputs: &mut Inputs,
    ) -> (u32, Direction, String) {
        let backlog = (sums.unread + sums.waiting).saturating_sub(sums.blocked);
        let busy = backlog > 0;
        if let Some(verdict) = self.trial.look(now.mono, sums.cells_active, inputs.completion, busy) {
            self.windows.clear();
            let back = verdict.back_to.clamp(min, max).min(before);
            let reason = format!(
                "{back} cells: with {before} of them {} was done, with {} it had been {}; not tried again for {:.0} s",
                verdict.after,
                verdict.back_to,
                verdict.before,
                self.tuning.undo_hold.as_secs_f64(),
            );
            return (back, Direction::Undo, reason);
        }
        let (wanted, mut why) = match self.wanted(backlog, inputs) {
            Ok(wanted) => wanted,
            Err(unknown) => {
                let held = before.clamp(min, max);
                return (held, turn(before, held), format!("{held} cells, held: {unknown}"));
            }
        };
        inputs.wanted = Some(wanted);
        let wanted = if wanted < before && missed(backlog, inputs) {
            why.push_str("; none leaves while jobs start too late");
            before
        } else {
            wanted
        };
        let ceiling = self.trial.ceiling(now.mono).map_or(max, |ceiling| ceiling.clamp(min, max));
        let bounded = wanted.clamp(min, ceiling);
        self.windows.push(now.mono, bounded);
        let desired = self.step(now.mono, before, (min, max), sums);
        if desired > before
            && let Some(rate) = inputs.completion
        {
            self.trial.begin(before, desired, rate, busy);
        }
        let mut reason = format!("{desired} cells: {why}");
        if wanted > max {
            reason.push_str(&format!("; {max} is the most"));
        } else if wanted > ceiling {
            reason.push_str(&format!("; more than {ceiling} has made things worse"));
        } else if wanted < min {
            reason.push_str(&format!("; {min} is the least"));
        }
        if desired > bounded {
            reason.push_str(&format!(
                "; {bounded} would do, and fewer come step by step once that has been so for {:.0} s",
                self.tuning.r#in.window.as_secs_f64()
            ));
        } else if desired < bounded {
            reason.push_str(&format!(
                "; {bounded} are wanted, and come step by step once that has been so for {:.0} s",
                self.tuning.out.window.as_secs_f64()
            ));
        }
        (desired, turn(before, desired), reason)
    }

    /// What the formula gives, and in words.
    fn wanted(&self, backlog: u64, inputs: &Inputs) -> Result<(u32, String), String> {
        let Some(arrival) = inputs.arrival else { return Err("what arrives is not known yet".to_owned()) };
        let waits = match inputs.blocked {
            0 => format!("{backlog} wait"),
            blocked => format!("{backlog} wait (and {blocked} for managers, which more cells would not help)"),
        };
        if backlog == 0 && arrival.0 == 0 {
            return Ok((0, format!("nothing arrives, {waits}")));
        }
        let Some(rate) = inputs.cell_rate.filter(|rate| rate.0 > 0) else {
            return Err(format!("{arrival} arrive, {waits}, and what a cell does is not known yet"));
        };
        let settings = &inputs.settings;
        let missed = missed(backlog, inputs);
        let drain = if missed {
            (settings.drain_target / 2).max(settings.latency_objective.min(settings.drain_target))
        } else {
            settings.drain_target
        };
        let drain = drain.max(Duration::from_secs(1)).as_secs_f64();
        let needed = arrival.get() + backlog as f64 / drain;
        let planned = rate.get() * self.tuning.target_utilisation.clamp(0.05, 1.0);
        let cells = needed / planned;
        let why = format!(
            "{arrival} arrive and {waits}, to be gone in {drain:.0} s{}; a cell does {rate}, of which {planned:.1}/s are planned with: {needed:.1} / {planned:.1} = {cells:.2}",
            if missed {
                format!(
                    " as the oldest has waited {:.1} s, over the objective of {:.0} s",
                    inputs.oldest.unwrap_or_default().as_secs_f64(),
                    settings.latency_objective.as_secs_f64(),
                )
            } else {
                String::new()
            },
        );
        // Saturating: more cells than there can be.
        Ok((cells.ceil() as u32, why))
    }

    /// From what is wanted to what is to be now.
    fn step(&self, now: Mono, before: u32, (min, max): (u32, u32), sums: &Sums) -> u32 {
        if before < min || before > max {
            // The bounds are an operator's: at once.
            return before.clamp(min, max);
        }
        let since = self.changed.map_or(Duration::MAX, |at| now.since(at));
        let Tuning { out, r#in, .. } = &self.tuning;
        if let Some(lowest) = self.windows.out(now).filter(|lowest| *lowest > before) {
            return if since >= out.pause { lowest.min(before + out.step_max.max(1)) } else { before };
        }
        if let Some(highest) = self.windows.r#in(now).filter(|highest| *highest < before) {
            // One after another: what leaves has handed its shards over before the next does.
            let settled = sums.cells_draining == 0 && sums.cells_active <= before;
            return if since >= r#in.pause && settled {
                highest.max(before.saturating_sub(r#in.step_max.max(1)))
            } else {
                before
            };
        }
        before
    }
}

/// Whether jobs start later than they are to.
fn missed(backlog: u64, inputs: &Inputs) -> bool {
    backlog > 0 && inputs.oldest.is_some_and(|oldest| oldest > inputs.settings.latency_objective)
}

fn fixed(before: u32, cells: u32) -> (u32, Direction, String) {
    (cells, turn(before, cells), format!("{cells} cells: fixed by an operator"))
}

fn turn(before: u32, desired: u32) -> Direction {
    match desired.cmp(&before) {
        std::cmp::Ordering::Less => Direction::In,
        std::cmp::Ordering::Equal => Direction::Hold,
        std::cmp::Ordering::Greater => Direction::Out,
    }
}

fn inputs_of(settings: &Settings, now: Now, reading: Option<&Reading>) -> Inputs {
    Inputs {
        settings: settings.clone(),
        age: reading.map(|reading| now.mono.since(reading.at)),
        cells_active: reading.map(|reading| reading.cells_active),
        cells_draining: reading.map(|reading| reading.cells_draining),
        unread: 0,
        waiting: 0,
        blocked: 0,
        running: 0,
        running_max: reading
            .and_then(|reading| Some(u64::from(reading.in_flight_max?) * u64::from(reading.cells_active))),
        oldest: None,
        arrival: None,
        completion: None,
        cell_rate: None,
        shards_unknown: 0,
        wanted: None,
    }
}
