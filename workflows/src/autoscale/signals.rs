//! What readings come to: sums over the shards, and rates over the last few seconds.
//!
//! Everything is counted in pieces of work on one VM (an unread job counts as one). What is done is
//! counted by the shards' owners, each from when it opened the shard, so counters begin anew when
//! shards move. What arrives is what was done, plus what there is more of in the system.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, ShardCount, ShardId};
use cellbus_directory::scale::Rate;
use serde::{Deserialize, Serialize};

/// How much one more second changes what is believed of a cell's rate.
const CELL_RATE_SHARE: f64 = 0.2;
/// Below this share of what cells may have under way, their rate is not measured: too little is done
/// to tell.
const BUSY_SHARE_MIN: f64 = 0.05;
/// So much of a shard's waiting work waits for managers that its unread jobs are taken to as well.
const BLOCKED_PERCENT: u64 = 90;

/// What was read at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// When.
    pub at: Mono,
    /// Cells that take shards.
    pub cells_active: u32,
    /// Cells that hand theirs over.
    pub cells_draining: u32,
    /// How much one cell may have under way; `None` if nothing limits it.
    pub in_flight_max: Option<u32>,
    /// Calls that stand in line at managers which have all under way that they may.
    pub in_line: u64,
    /// Jobs that producers have put on the bus and no cell has taken from it; `None` if that is not known.
    pub ingress: Option<u64>,
    /// Each shard of which something recent is known.
    pub shards: Vec<ShardReading>,
}

/// What is known of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReading {
    /// Which.
    pub shard: ShardId,
    /// Under which epoch its owner counts.
    pub epoch: Epoch,
    /// Jobs that its owner has not read.
    pub unread: u64,
    /// Whether its owner reads no further, as too much waits.
    pub full: bool,
    /// Work accepted and not started.
    pub waiting: u64,
    /// Of that, what waits for managers.
    pub waiting_for_managers: u64,
    /// Work with a call under way.
    pub running: u64,
    /// Work that has ended since its owner opened it.
    pub ended: u64,
    /// When the oldest work that has not started was accepted.
    pub oldest_waiting_at: Option<WallMs>,
}

/// A reading, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) cells_active: u32,
    pub(super) cells_draining: u32,
    pub(super) unread: u64,
    pub(super) waiting: u64,
    pub(super) blocked: u64,
    pub(super) running: u64,
    pub(super) oldest_at: Option<WallMs>,
    pub(super) shards_unknown: u32,
}

/// Running totals at one moment: differences of two are what happened between.
#[derive(Clone, Copy, Debug)]
struct Totals {
    at: Mono,
    done: u64,
    in_system: u64,
    /// Work under way (that does not stand in line at a manager) times seconds.
    busy: f64,
    /// Active cells times seconds.
    cells: f64,
    /// Whether more waited than was started at once.
    backlog: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Signals {
    window: Duration,
    count: ShardCount,
    ended: BTreeMap<ShardId, (Epoch, u64)>,
    totals: VecDeque<Totals>,
    done: u64,
    in_flight_max: Option<u32>,
    cell_rate: Option<f64>,
}

impl Signals {
    pub(super) fn new(window: Duration, count: ShardCount) -> Self {
        Self {
            window,
            count,
            ended: BTreeMap::new(),
            totals: VecDeque::new(),
            done: 0,
            in_flight_max: None,
            cell_rate: None,
        }
    }

    /// Nothing was read for a while: rates are measured anew. What a cell does stays believed.
    pub(super) fn gap(&mut self) {
        self.totals.clear();
    }

    /// Takes a reading in. The same one again changes nothing.
    pub(super) fn take(&mut self, reading: &Reading) -> Sums {
        let sums = self.sum(reading);
        if self.totals.back().is_some_and(|last| reading.at <= last.at) {
            return sums;
        }
        if sums.shards_unknown > 0 || reading.ingress.is_none() {
            // What it lacks would look like work that is done.
            self.gap();
            return sums;
        }
        for shard in &reading.shards {
            let before = self.ended.insert(shard.shard, (shard.epoch, shard.ended));
            self.done += match before {
                Some((epoch, before)) if epoch == shard.epoch => shard.ended.saturating_sub(before),
                // It was opened anew since.
                Some(_) => shard.ended,
                None => 0,
            };
        }
        self.in_flight_max = reading.in_flight_max;
        let in_line = reading.in_line.min(sums.running);
        let (busy, cells) = self.totals.back().map_or((0.0, 0.0), |last| {
            let seconds = reading.at.since(last.at).as_secs_f64();
            ((sums.running - in_line) as f64 * seconds + last.busy, f64::from(sums.cells_active) * seconds + last.cells)
        });
        self.totals.push_back(Totals {
            at: reading.at,
            done: self.done,
            in_system: sums.unread + sums.waiting + sums.running,
            busy,
            cells,
            backlog: sums.unread + sums.waiting > sums.blocked,
        });
        while self.totals.get(1).is_some_and(|second| reading.at.since(second.at) >= self.window) {
            self.totals.pop_front();
        }
        self.measure();
        sums
    }

    fn sum(&self, reading: &Reading) -> Sums {
        let mut sums = Sums {
            cells_active: reading.cells_active,
            cells_draining: reading.cells_draining,
            shards_unknown: u32::from(self.count.get())
                .saturating_sub(u32::try_from(reading.shards.len()).unwrap_or(u32::MAX)),
            ..Sums::default()
        };
        for shard in &reading.shards {
            let blocked = shard.waiting_for_managers.min(shard.waiting);
            sums.unread += shard.unread;
            sums.waiting += shard.waiting;
            sums.blocked += blocked;
            if shard.full && blocked * 100 >= shard.waiting * BLOCKED_PERCENT {
                sums.blocked += shard.unread;
            }
            sums.running += shard.running;
            sums.oldest_at = sums.oldest_at.into_iter().chain(shard.oldest_waiting_at).min();
        }
        let ingress = reading.ingress.unwrap_or_default();
        // What nobody has taken waits for what all the rest waits for.
        if sums.blocked > 0 && sums.blocked * 100 >= (sums.unread + sums.waiting) * BLOCKED_PERCENT {
            sums.blocked += ingress;
        }
        sums.unread += ingress;
        // Cells that have all under way that they may, most of it in line at managers: what waits
        // behind it waits for these managers too.
        if let Some(max) = reading.in_flight_max {
            let slots = u64::from(max) * u64::from(reading.cells_active);
            let in_line = reading.in_line.min(sums.running);
            if sums.running * 10 >= slots * 9 && in_line * 2 >= sums.running && sums.running > 0 {
                sums.blocked = sums.unread + sums.waiting;
            }
        }
        sums
    }

    fn span(&self) -> Option<(Totals, Totals, f64)> {
        let (first, last) = (*self.totals.front()?, *self.totals.back()?);
        let seconds = last.at.since(first.at).as_secs_f64();
        // Half a window says enough.
        (seconds > 0.0 && seconds * 2.0 >= self.window.as_secs_f64()).then_some((first, last, seconds))
    }

    /// What a busy cell does: by how long a piece of work is under way where it is limited how many
    /// may be, else by what was done while more waited.
    fn measure(&mut self) {
        let Some((first, last, _)) = self.span() else { return };
        let done = (last.done - first.done) as f64;
        let (busy, cells) = (last.busy - first.busy, last.cells - first.cells);
        let measured = match self.in_flight_max {
            Some(max) if busy >= BUSY_SHARE_MIN * f64::from(max) * cells => done * f64::from(max) / busy,
            None if self.totals.iter().all(|totals| totals.backlog) && cells > 0.0 => done / cells,
            Some(_) | None => return,
        };
        if measured > 0.0 {
            self.cell_rate = Some(match self.cell_rate {
                Some(before) => before + (measured - before) * CELL_RATE_SHARE,
                None => measured,
            });
        }
    }

    /// What arrives, what is done, what a busy cell does.
    pub(super) fn rates(&self) -> (Option<Rate>, Option<Rate>, Option<Rate>) {
        let cell = self.cell_rate.map(Rate::per_second);
        let Some((first, last, seconds)) = self.span() else { return (None, None, cell) };
        let done = (last.done - first.done) as f64;
        let arrived = done + last.in_system as f64 - first.in_system as f64;
        (Some(Rate::per_second(arrived / seconds)), Some(Rate::per_second(done / seconds)), cell)
    }
}
