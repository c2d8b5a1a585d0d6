//! What happened, in words, for a run that is to be explained. Off while runs are only checked: a
//! failed one is made again with it, which the seed allows.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Lines that are kept: the last ones.
const LINES_MAX: usize = 1_000_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct History {
    lines: Option<Mutex<Vec<(u64, String)>>>,
}

impl History {
    /// One that keeps what it is told.
    pub(super) fn kept() -> Self {
        Self { lines: Some(Mutex::default()) }
    }
    /// Something happened; `what` is asked only if it is kept.
    pub(super) fn add(&self, at: u64, what: impl FnOnce() -> String) {
        if let Some(lines) = &self.lines {
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() >= LINES_MAX {
                // Half of it goes at once, so that this costs next to nothing.
                lines.drain(..LINES_MAX / 2);
            }
            lines.push((at, what()));
        }
    }
    /// The last lines, whatever they are about.
    pub(super) fn last(&self, count: usize) -> Vec<String> {
        let Some(lines) = &self.lines else { return Vec::new() };
        let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = lines.iter().skip(lines.len().saturating_sub(count));
        shown.map(|(at, line)| format!("{:>12.6} {line}", Duration::from_nanos(*at).as_secs_f64())).collect()
    }
    /// The lines that name one of `objects`, and those that are about everything (marked with `*`).
    pub(super) fn about(&self, objects: &[String]) -> Vec<String> {
        let Some(lines) = &self.lines else { return Vec::new() };
        let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |line: &str| line.starts_with('*') || objects.iter().any(|object| line.contains(object.as_str()));
        lines
            .iter()
            .filter(|(_, line)| wanted(line))
            .map(|(at, line)| format!("{:>12.6} {}", Duration::from_nanos(*at).as_secs_f64(), narrowed(line, objects)))
            .collect()
    }
}

/// Of an append of many records, those that name what is looked for.
fn narrowed(line: &str, objects: &[String]) -> String {
    let Some((head, records)) = line.split_once(": ").filter(|(head, _)| head.contains(" appends ")) else {
        return line.to_owned();
    };
    let named: Vec<&str> =
        records.split(" | ").filter(|record| objects.iter().any(|object| record.contains(object.as_str()))).collect();
    format!("{head}: {}", named.join(" | "))
}
