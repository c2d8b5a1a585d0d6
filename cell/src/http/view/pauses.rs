//! What operators have paused.

use cellbus_directory::pause::{Paused, Scope};
use serde::Serialize;
use utoipa::ToSchema;

use super::super::api::Api;
use super::{OperatorView, time};
use crate::gateway::PausesShown;
use crate::pauses::KNOWN_FOR;

/// One pause.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PauseView {
    /// The manager, by its name; null: all of them.
    manager: Option<String>,
    /// all or destructive.
    work: &'static str,
    /// Since when.
    at: String,
    /// Who has ordered it.
    by: OperatorView,
    /// Why; empty if nothing was said.
    reason: String,
}

/// All that is paused.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PausesView {
    /// What, those of the whole cluster first.
    items: Vec<PauseView>,
    /// How long ago that was all that was paused, as far as the process that was asked knows.
    known_ago_seconds: f64,
    /// No destructive operation in a pause's scope begins anywhere later than this after its order was answered.
    in_force_within_seconds: f64,
}
impl PausesView {
    pub(in crate::http) fn of(api: &dyn Api, shown: &PausesShown) -> Self {
        let items = shown.pauses.iter().map(|(Scope { manager, paused }, pause)| PauseView {
            manager: manager.map(|id| api.manager_name(&id).unwrap_or_else(|| id.to_string())),
            work: Paused::as_str(*paused),
            at: time(pause.at),
            by: pause.by.clone().into(),
            reason: pause.reason.clone(),
        });
        Self {
            items: items.collect(),
            known_ago_seconds: shown.known_ago.as_secs_f64(),
            in_force_within_seconds: KNOWN_FOR.as_secs_f64(),
        }
    }
}
