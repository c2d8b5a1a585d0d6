//! How many cells there are to be.

use std::sync::Arc;
use std::time::Duration;

use cellbus_directory::scale::{Decision, Inputs, Mode, Rate};
use serde::Serialize;
use utoipa::ToSchema;

use super::operators::OperatorView;
use super::time;
use crate::gateway::ScaleShown;

/// How many cells there are to be.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ScaleView {
    /// auto, fixed or paused.
    mode: &'static str,
    /// How many there are to be. While nothing was decided: how many there are.
    cells: u32,
    /// How many there are, without those that are leaving.
    cells_active: u32,
    /// How many are leaving.
    cells_draining: u32,
    /// The least, in mode auto.
    min: u32,
    /// The most, in mode auto. A quarter of the shards bounds it too.
    max: u32,
    /// How long what waits may take to be gone.
    drain_target_seconds: f64,
    /// 99 of 100 jobs are to be started within this.
    latency_objective_seconds: f64,
    /// Why it is so, with the numbers.
    reason: String,
    /// What keeps cells from coming or going; null if nothing does.
    trouble: Option<String>,
    /// Which controller decides; null while none does.
    controller: Option<String>,
    /// When the last decision was kept.
    decided_at: Option<String>,
    /// When an operator has set this; null if it is as configured.
    set_at: Option<String>,
    /// Who.
    set_by: Option<OperatorView>,
}
impl From<ScaleShown> for ScaleView {
    fn from(shown: ScaleShown) -> Self {
        let last = shown.kept.decisions.back();
        let settings = &shown.settings;
        Self {
            mode: settings.mode.as_str(),
            // What an operator has just fixed is so, whatever was decided before.
            cells: match settings.mode {
                Mode::Fixed => settings.cells,
                Mode::Auto | Mode::Paused => last.map_or(shown.cells_active, |decision| decision.desired),
            },
            cells_active: shown.cells_active,
            cells_draining: shown.cells_draining,
            min: settings.min,
            max: settings.max,
            drain_target_seconds: settings.drain_target.as_secs_f64(),
            latency_objective_seconds: settings.latency_objective.as_secs_f64(),
            reason: last.map_or_else(|| "nothing was decided yet".to_owned(), |decision| decision.reason.clone()),
            trouble: last.and_then(|decision| decision.trouble.clone()),
            controller: shown.kept.leader.as_ref().map(|leader| leader.controller.to_string()),
            decided_at: last.map(|decision| time(decision.at)),
            set_at: shown.kept.set.as_ref().map(|set| time(set.at)),
            set_by: shown.kept.set.map(|set| set.by.into()),
        }
    }
}

/// One decision about how many cells there are to be.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DecisionView {
    /// Grows with each.
    number: u64,
    /// When.
    at: String,
    /// How many there are to be.
    desired: u32,
    /// How many there were to be before.
    before: u32,
    /// hold, out, in or undo.
    direction: &'static str,
    /// Why, with the numbers.
    reason: String,
    /// What keeps cells from coming or going; null if nothing does.
    trouble: Option<String>,
    /// All that it rests on.
    inputs: InputsView,
}

/// What a decision rests on. Null: not known, which is never taken for zero.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct InputsView {
    mode: &'static str,
    min: u32,
    max: u32,
    drain_target_seconds: f64,
    latency_objective_seconds: f64,
    /// How old the reading was.
    age_seconds: Option<f64>,
    cells_active: Option<u32>,
    cells_draining: Option<u32>,
    /// Jobs that no owner has read.
    unread: u64,
    /// Work accepted and not started.
    waiting: u64,
    /// Of both: what waits for managers, which more cells would not help.
    blocked: u64,
    /// Work under way.
    running: u64,
    /// How much may be under way in all active cells; null if nothing limits it.
    running_max: Option<u64>,
    /// How long the oldest work that has not started has waited.
    oldest_seconds: Option<f64>,
    /// Work a second that comes.
    arrival_per_second: Option<f64>,
    /// Work a second that is done.
    completion_per_second: Option<f64>,
    /// Work a second that one busy cell does.
    cell_rate_per_second: Option<f64>,
    /// Shards of which nothing recent is known.
    shards_unknown: u32,
    /// What the formula gave, before bounds, windows and steps.
    wanted: Option<u32>,
}
impl From<&Inputs> for InputsView {
    fn from(inputs: &Inputs) -> Self {
        let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
        let rate = |rate: Option<Rate>| rate.map(Rate::get);
        Self {
            mode: inputs.settings.mode.as_str(),
            min: inputs.settings.min,
            max: inputs.settings.max,
            drain_target_seconds: inputs.settings.drain_target.as_secs_f64(),
            latency_objective_seconds: inputs.settings.latency_objective.as_secs_f64(),
            age_seconds: seconds(inputs.age),
            cells_active: inputs.cells_active,
            cells_draining: inputs.cells_draining,
            unread: inputs.unread,
            waiting: inputs.waiting,
            blocked: inputs.blocked,
            running: inputs.running,
            running_max: inputs.running_max,
            oldest_seconds: seconds(inputs.oldest),
            arrival_per_second: rate(inputs.arrival),
            completion_per_second: rate(inputs.completion),
            cell_rate_per_second: rate(inputs.cell_rate),
            shards_unknown: inputs.shards_unknown,
            wanted: inputs.wanted,
        }
    }
}
impl DecisionView {
    pub(in crate::http) fn of(number: u64, decision: &Arc<Decision>) -> Self {
        Self {
            number,
            at: time(decision.at),
            desired: decision.desired,
            before: decision.before,
            direction: decision.direction.as_str(),
            reason: decision.reason.clone(),
            trouble: decision.trouble.clone(),
            inputs: InputsView::from(&decision.inputs),
        }
    }
}
