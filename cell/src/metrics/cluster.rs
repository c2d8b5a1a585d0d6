//! The cluster as the process that is asked sees it: read when metrics are, the same from every process.

use cellbus_bus::contract::MemberState;
use cellbus_directory::pause::{Pause, Paused, Scope};
use cellbus_directory::scale::Mode;
use cellbus_workflows::Health;
use prometheus::{Gauge, IntGauge, IntGaugeVec, Registry};

use super::described::{Described, register, signed};
use crate::gateway::{CellRow, ManagerRow, PausesShown, QueueRow, ScaleShown, ShardRow, ShardState};

const QUEUE_JOBS: Described = Described::gauge(
    "cellbus_queue_jobs",
    "jobs and pieces of work",
    &["stage"],
    "Jobs and work over all shards, by where they are: unread in queues (about, where large jobs put many in one message), control_unread (messages), waiting (accepted, not started; waiting_for_managers is a part of it), running (a call is under way), parked, open (jobs that have not ended)",
    "unread + waiting is the backlog. It is a reason to act when it will not drain in time: `cellbus queue`, `cellbus scale explain`",
)
.of_cluster();
const OLDEST_WAITING: Described = Described::gauge(
    "cellbus_queue_oldest_waiting_timestamp_seconds",
    "seconds since 1970",
    &[],
    "When the oldest work that has not started was accepted; 0 if there is none",
    "`time() - x` is its age; one job that is much older than the rest waits for something of its own: `cellbus job explain`",
)
.of_cluster();
const DEAD_LETTERS: Described = Described::gauge(
    "cellbus_dead_letters",
    "messages",
    &[],
    "Dead letters kept: messages that could not be taken",
    "`cellbus dead-letters list`, then retry or drop each",
)
.of_cluster();
const SHARDS_UNKNOWN: Described = Described::gauge(
    "cellbus_shards_unknown",
    "shards",
    &[],
    "Shards that could not be asked when this was read: what they hold is missing from the counts of queue and dead letters",
    "If it stays above 0: `cellbus shards`, `cellbus cells`",
)
.of_cluster();
const SHARDS: Described = Described::gauge(
    "cellbus_shards",
    "shards",
    &["state"],
    "Shards, by what their owner does with them: open (owned and served), unowned, opening, suspended, closing, failed",
    "Only open ones serve. Unowned and failed for longer than a lease: `cellbus shards`",
)
.of_cluster();
const TAIL: Described = Described::gauge(
    "cellbus_log_tail_bytes",
    "bytes",
    &[],
    "Bytes of log after the last snapshots, over all shards: what taking every shard over would replay",
    "To size takeovers; with many shards stuck, see the snapshots' errors in the cells' logs",
)
.of_cluster();
const TAIL_MAX: Described = Described::gauge(
    "cellbus_log_tail_max_bytes",
    "bytes",
    &[],
    "The same of the shard that has most",
    "Grows without end only where a shard cannot write snapshots: see `cellbus_snapshots_total`",
)
.of_cluster();
const MANAGERS: Described = Described::gauge(
    "cellbus_managers",
    "managers",
    &["health"],
    "Managers, by health: healthy, circuit_open (they fail), unknown (nobody fronts them, or they are being read)",
    "`cellbus managers` says which, and why",
)
.of_cluster();
const CELLS: Described = Described::gauge(
    "cellbus_cells",
    "cells",
    &[],
    "Live cells, those that are draining included",
    "Compare with cellbus_cells_desired",
)
.of_cluster();
const CELLS_DRAINING: Described = Described::gauge(
    "cellbus_cells_draining",
    "cells",
    &[],
    "Live cells that hand their shards over",
    "One that drains for minutes: `cellbus cells`, and its log",
)
.of_cluster();
const CELLS_SILENT: Described = Described::gauge(
    "cellbus_cells_silent",
    "cells",
    &[],
    "Live cells that did not answer when this was read",
    "A cell that beats and does not answer is overloaded or cut off from the others: see its log, and the network",
)
.of_cluster();
const CELLS_DESIRED: Described = Described::gauge(
    "cellbus_cells_desired",
    "cells",
    &[],
    "Cells that there are to be, as was decided last; what KEDA or a person acts on where the launcher is `none`",
    "`cellbus scale explain` says why",
)
.of_cluster();
const CELLS_MAX: Described = Described::gauge(
    "cellbus_cells_max",
    "cells",
    &[],
    "The most cells that the autoscaler may have, in mode auto",
    "If it is reached while a backlog stays: `cellbus scale auto --max`",
)
.of_cluster();
const SCALE_TROUBLE: Described = Described::gauge(
    "cellbus_scale_trouble",
    "0 or 1",
    &[],
    "1 while something keeps cells from coming or going, or the readings from being known, by the last decision",
    "`cellbus scale show` says what",
)
.of_cluster();
const SCALE_MODE: Described = Described::gauge(
    "cellbus_scale_mode",
    "0 or 1",
    &["mode"],
    "1 for the mode in force: auto, fixed, paused",
    "A cluster left in fixed or paused does not follow its load: `cellbus scale auto`",
)
.of_cluster();
const DRAIN_TARGET: Described = Described::gauge(
    "cellbus_scale_drain_target_seconds",
    "seconds",
    &[],
    "How long what waits may take to be gone, as set",
    "What CellbusBacklogWillNotDrain compares with",
)
.of_cluster();
const LATENCY_OBJECTIVE: Described = Described::gauge(
    "cellbus_scale_latency_objective_seconds",
    "seconds",
    &[],
    "Within which 99 of 100 jobs are to be started, as set",
    "The rules of the latency objective count jobs above 5 s, the default: change their `le` with it",
)
.of_cluster();
const PAUSES: Described = Described::gauge(
    "cellbus_pauses",
    "pauses",
    &["work", "at"],
    "Pauses in force, by what they stop (all, destructive) and where (cluster: at every manager, manager: at one)",
    "Work that is paused waits until somebody resumes it: `cellbus pauses` says who has ordered it, and why",
)
.of_cluster();
const PAUSES_AGE: Described = Described::gauge(
    "cellbus_pauses_known_age_seconds",
    "seconds",
    &[],
    "How old this process's knowledge of what is paused is; below 1 while all is well",
    "Above 5 no destructive operation begins at the managers that it fronts, paused or not: the bus does not say where the log of the cluster's shard ends, or it cannot be read",
);
const READ_FAILED: Described = Described::gauge(
    "cellbus_cluster_read_failed",
    "0 or 1",
    &["what"],
    "1 while this process cannot read this part of the cluster's state (queue, shards, managers, cells, scale, pauses): the metrics that come from it keep their last values",
    "The bus, or the owner of the part, does not answer: see cellbus_bus_silent_seconds and the log",
);

pub(super) const ALL: &[Described] = &[
    QUEUE_JOBS,
    OLDEST_WAITING,
    DEAD_LETTERS,
    SHARDS_UNKNOWN,
    SHARDS,
    TAIL,
    TAIL_MAX,
    MANAGERS,
    CELLS,
    CELLS_DRAINING,
    CELLS_SILENT,
    CELLS_DESIRED,
    CELLS_MAX,
    SCALE_TROUBLE,
    SCALE_MODE,
    DRAIN_TARGET,
    LATENCY_OBJECTIVE,
    PAUSES,
    PAUSES_AGE,
    READ_FAILED,
];

pub(super) struct Cluster {
    queue_jobs: IntGaugeVec,
    oldest_waiting: IntGauge,
    dead_letters: IntGauge,
    shards_unknown: IntGauge,
    shards: IntGaugeVec,
    tail: IntGauge,
    tail_max: IntGauge,
    managers: IntGaugeVec,
    cells: IntGauge,
    cells_draining: IntGauge,
    cells_silent: IntGauge,
    cells_desired: IntGauge,
    cells_max: IntGauge,
    trouble: IntGauge,
    mode: IntGaugeVec,
    drain_target: Gauge,
    latency_objective: Gauge,
    pauses: IntGaugeVec,
    pauses_age: Gauge,
    read_failed: IntGaugeVec,
}

impl Cluster {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            queue_jobs: register(registry, QUEUE_JOBS.int_gauges())?,
            oldest_waiting: register(registry, OLDEST_WAITING.int_gauge())?,
            dead_letters: register(registry, DEAD_LETTERS.int_gauge())?,
            shards_unknown: register(registry, SHARDS_UNKNOWN.int_gauge())?,
            shards: register(registry, SHARDS.int_gauges())?,
            tail: register(registry, TAIL.int_gauge())?,
            tail_max: register(registry, TAIL_MAX.int_gauge())?,
            managers: register(registry, MANAGERS.int_gauges())?,
            cells: register(registry, CELLS.int_gauge())?,
            cells_draining: register(registry, CELLS_DRAINING.int_gauge())?,
            cells_silent: register(registry, CELLS_SILENT.int_gauge())?,
            cells_desired: register(registry, CELLS_DESIRED.int_gauge())?,
            cells_max: register(registry, CELLS_MAX.int_gauge())?,
            trouble: register(registry, SCALE_TROUBLE.int_gauge())?,
            mode: register(registry, SCALE_MODE.int_gauges())?,
            drain_target: register(registry, DRAIN_TARGET.float_gauge())?,
            latency_objective: register(registry, LATENCY_OBJECTIVE.float_gauge())?,
            pauses: register(registry, PAUSES.int_gauges())?,
            pauses_age: register(registry, PAUSES_AGE.float_gauge())?,
            read_failed: register(registry, READ_FAILED.int_gauges())?,
        })
    }

    /// Whether a part could be read.
    pub(super) fn read<T>(&self, what: &str, read: crate::gateway::Result<T>) -> Option<T> {
        self.read_failed.with_label_values(&[what]).set(i64::from(read.is_err()));
        read.inspect_err(|error| tracing::debug!(what, %error, "not read for metrics")).ok()
    }

    pub(super) fn queue(&self, queue: &QueueRow) {
        for (stage, count) in [
            ("unread", queue.unread),
            ("control_unread", queue.control_unread),
            ("waiting", queue.waiting),
            ("waiting_for_managers", queue.waiting_for_managers),
            ("running", queue.running),
            ("parked", queue.parked),
            ("open", queue.jobs_open),
        ] {
            self.queue_jobs.with_label_values(&[stage]).set(signed(count));
        }
        self.dead_letters.set(signed(queue.dead_letters));
        self.shards_unknown.set(i64::from(queue.shards_unknown));
        self.oldest_waiting.set(queue.oldest_waiting_at.map_or(0, |at| signed(at.0 / 1_000)));
    }

    pub(super) fn shards(&self, rows: &[ShardRow]) {
        let is = |name: &str, state: &ShardState| {
            name == match state {
                ShardState::Unowned => "unowned",
                ShardState::Opening => "opening",
                ShardState::Open => "open",
                ShardState::Suspended => "suspended",
                ShardState::Closing => "closing",
                ShardState::Failed { .. } => "failed",
            }
        };
        for name in ["unowned", "opening", "open", "suspended", "closing", "failed"] {
            let count = rows.iter().filter(|row| is(name, &row.state)).count();
            self.shards.with_label_values(&[name]).set(signed(count as u64));
        }
        self.tail.set(signed(rows.iter().map(|row| row.tail_bytes).sum()));
        self.tail_max.set(signed(rows.iter().map(|row| row.tail_bytes).max().unwrap_or_default()));
    }

    pub(super) fn managers(&self, rows: &[ManagerRow]) {
        for (health, name) in
            [(Health::Unknown, "unknown"), (Health::Healthy, "healthy"), (Health::CircuitOpen, "circuit_open")]
        {
            let count = rows.iter().filter(|row| row.health == health).count();
            self.managers.with_label_values(&[name]).set(signed(count as u64));
        }
    }

    pub(super) fn cells(&self, rows: &[CellRow]) {
        let count = |which: fn(&CellRow) -> bool| signed(rows.iter().filter(|row| which(row)).count() as u64);
        self.cells.set(count(|_| true));
        self.cells_draining.set(count(|row| row.state == MemberState::Draining));
        self.cells_silent.set(count(|row| !row.reachable));
    }

    pub(super) fn pauses(&self, shown: &PausesShown) {
        self.pauses_age.set(shown.known_ago.as_secs_f64());
        for work in [Paused::All, Paused::Destructive] {
            for (at, one) in [("cluster", false), ("manager", true)] {
                let such = |(scope, _): &(&Scope, &Pause)| scope.paused == work && scope.manager.is_some() == one;
                let count = shown.pauses.iter().filter(such).count();
                self.pauses.with_label_values(&[work.as_str(), at]).set(signed(count as u64));
            }
        }
    }

    pub(super) fn scale(&self, scale: &ScaleShown) {
        let last = scale.kept.decisions.back();
        self.cells_desired.set(i64::from(last.map_or(scale.cells_active, |last| last.desired)));
        self.trouble.set(i64::from(last.is_some_and(|last| last.trouble.is_some())));
        let settings = &scale.settings;
        self.cells_max.set(i64::from(settings.max));
        self.drain_target.set(settings.drain_target.as_secs_f64());
        self.latency_objective.set(settings.latency_objective.as_secs_f64());
        for mode in [Mode::Auto, Mode::Fixed, Mode::Paused] {
            self.mode.with_label_values(&[mode.as_str()]).set(i64::from(mode == settings.mode));
        }
    }
}
