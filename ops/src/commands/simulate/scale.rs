//! `cellbus simulate --scale`.

use std::path::Path;

use anyhow::Context as _;
use cellbus_simulator::autoscale::{self, Compared, Plant, compare};
use clap::Args;

use super::plan::above_zero;
use crate::exit::{Error, Result};
use crate::output::{self, Format};
use crate::table;

/// Thresholds at the most: each is a line of the charts.
const THRESHOLDS_MAX: usize = 4;

#[derive(Debug, Args)]
#[command(next_help_heading = "With --scale")]
pub(super) struct Comparison {
    /// What KEDA is told to let wait for each cell; may be given more than once [default: 100 and 1000]
    #[arg(long, value_name = "N", value_parser = above_zero, requires = "scale")]
    threshold: Vec<f64>,
    /// What a cell does a second; the traces ask for up to 1,000 [default: 100]
    #[arg(long, value_name = "N", value_parser = above_zero, requires = "scale")]
    cell_rate: Option<f64>,
    /// Seconds that a cell takes to start [default: 2]
    #[arg(long, value_name = "SECONDS", value_parser = above_zero, requires = "scale")]
    start: Option<f64>,
}

impl Comparison {
    pub(super) fn run(self, report: Option<&Path>, format: Format) -> Result<()> {
        let thresholds = if self.threshold.is_empty() { vec![100.0, 1_000.0] } else { self.threshold };
        if thresholds.len() > THRESHOLDS_MAX {
            return Err(Error::Usage(format!("--threshold: at most {THRESHOLDS_MAX}")));
        }
        let usual = Plant::default();
        let plant = Plant {
            cell_rate: self.cell_rate.unwrap_or(usual.cell_rate),
            start_seconds: self.start.unwrap_or(usual.start_seconds),
            ..usual
        };
        let compared = compare(&plant, &thresholds);
        if let Some(path) = report {
            std::fs::write(path, autoscale::html(&plant, &compared))
                .with_context(|| format!("cannot write the report {}", path.display()))?;
        }
        match format {
            Format::Json => output::line(
                &serde_json::json!({
                    "cell_rate": plant.cell_rate,
                    "start_seconds": plant.start_seconds,
                    "traces": compared,
                })
                .to_string(),
            ),
            Format::Table => output::text(&shown(&compared)),
        }
    }
}

fn shown(compared: &[Compared]) -> String {
    let head = ["trace", "rule", "cell-seconds", "late, s", "turns", "cells at most", "left waiting"];
    let rows = compared.iter().flat_map(|of| {
        of.rules.iter().map(|played| {
            let outcome = &played.outcome;
            vec![
                of.trace.to_owned(),
                played.rule.clone(),
                format!("{:.0}", outcome.cell_seconds),
                format!("{:.0}", outcome.late_seconds),
                outcome.turns.len().to_string(),
                outcome.cells_max.to_string(),
                format!("{:.0}", outcome.backlog_end),
            ]
        })
    });
    table::grid(&std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect::<Vec<_>>())
}
