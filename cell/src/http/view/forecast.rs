//! When room runs out.

use cellbus_workflows::forecast::Outlook;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::api::Api;
use super::time;
use crate::gateway::{ForecastRow, RoomOf};

/// What is foretold of one resource somewhere.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OutlookView {
    /// cluster, gear or manager.
    of: &'static str,
    /// Which gear (empty: hosts without one) or manager; null for the cluster.
    name: Option<String>,
    /// vcpus, memory_mib or disk_gib.
    resource: &'static str,
    /// What was free at the last sample, an hour ago at the most; null if there is none.
    free: Option<u64>,
    /// How much there is in all, over-commit counted.
    total: u64,
    /// By how much it falls in a day; below 0 it grows; null where that cannot be told.
    falls_per_day: Option<f64>,
    /// unknown, out, runs_out or lasts (for a year).
    outlook: &'static str,
    /// When nothing is left, by a straight line; null unless it runs out.
    runs_out_at: Option<String>,
    /// At the earliest, as far as the line is sure (about 95 of 100).
    earliest_at: Option<String>,
    /// At the latest; null while it runs out: perhaps not within a year.
    latest_at: Option<String>,
    /// Why it is unknown; empty if it is not.
    why: String,
    /// Samples that it rests on.
    samples: usize,
    /// From the first of them to the last.
    history_hours: f64,
}

/// When room runs out.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ForecastView {
    /// The cluster, then gears, then managers; each resource of each.
    items: Vec<OutlookView>,
}

impl ForecastView {
    pub(in crate::http) fn of(api: &dyn Api, rows: Vec<ForecastRow>) -> Self {
        let view = |row: ForecastRow| {
            let (of, name) = match row.of {
                RoomOf::Cluster => ("cluster", None),
                RoomOf::Gear(gear) => ("gear", Some(gear)),
                RoomOf::Manager(id) => ("manager", Some(api.manager_name(&id).unwrap_or_else(|| id.to_string()))),
            };
            let (outlook, [at, earliest, latest], why) = match row.forecast.outlook {
                Outlook::Unknown(why) => ("unknown", [None; 3], why),
                Outlook::Out => ("out", [None; 3], String::new()),
                Outlook::RunsOut { at, earliest, latest } => {
                    ("runs_out", [Some(at), Some(earliest), latest], String::new())
                }
                Outlook::Lasts { earliest } => ("lasts", [None, earliest, None], String::new()),
            };
            OutlookView {
                of,
                name,
                resource: row.resource,
                free: row.forecast.free,
                total: row.total,
                falls_per_day: row.forecast.falls_per_day.map(|falls| (falls * 1_000.0).round() / 1_000.0),
                outlook,
                runs_out_at: at.map(time),
                earliest_at: earliest.map(time),
                latest_at: latest.map(time),
                why,
                samples: row.forecast.samples,
                history_hours: row.forecast.history.as_secs_f64() / 3_600.0,
            }
        };
        Self { items: rows.into_iter().map(view).collect() }
    }
}
