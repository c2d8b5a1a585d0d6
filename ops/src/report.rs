//! The report of `load` and `demo`: a table for people, or exactly one JSON object.

use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use cellbus_bus::Env;
use cellbus_simulator::load::{self, Counts, Phase, Report};

use crate::exit::{Error, Result};
use crate::output::{self, Format};
use crate::progress::Progress;

/// Prints it; fails if not everything went as asked, was checked, and was found right.
pub(crate) fn show(report: &Report, format: Format) -> Result<()> {
    match format {
        Format::Json => output::line(&serde_json::to_string(report).context("a report is plain data")?)?,
        Format::Table => output::text(&table(report))?,
    }
    if report.clean() { Ok(()) } else { Err(Error::Failed("not everything went as it should".to_owned())) }
}

fn table(report: &Report) -> String {
    let n = grouped;
    let rows = [
        ("fleet", format!("{} hosts of {} managers, {} cells", n(report.hosts), n(report.managers), report.cells_peak)),
        (
            "jobs",
            format!(
                "{} submitted, {} succeeded, {} failed, {} lost",
                n(report.jobs_submitted),
                n(report.jobs_succeeded),
                n(report.jobs_failed),
                n(report.jobs_lost)
            ),
        ),
        (
            "VMs",
            format!(
                "{} made, {} deleted; {} twice, {} missing, {} unexpected",
                n(report.vms_created),
                n(report.vms_deleted),
                n(report.duplicates),
                n(report.vms_missing),
                n(report.vms_unexpected)
            ),
        ),
        (
            "directory",
            format!(
                "{} VMs; {} differences between it and the managers",
                n(report.directory_entries),
                n(report.directory_mismatches)
            ),
        ),
        ("rate", format!("{} jobs a second over {:.1} s", n(report.jobs_per_second as u64), report.wall_seconds)),
        (
            "latency",
            format!(
                "p50 {:.0} ms, p90 {:.0} ms, p99 {:.0} ms, max {:.0} ms (from when a job was due to its outcome)",
                report.latency_ms.p50, report.latency_ms.p90, report.latency_ms.p99, report.latency_ms.max
            ),
        ),
        ("look-ups", format!("{} VMs located a second", n(report.lookups_per_second as u64))),
        ("memory", format!("{} MiB at the most", n(report.rss_mib))),
    ];
    let mut out = String::new();
    let scaled = report.cells_start.zip(report.cells_end).map(|(from, to)| {
        let peak = report.cells_peak;
        format!("{from} at first, {peak} at the most as the queue backed up, {to} after it had emptied")
    });
    let mut row = |head: &str, text: &str| {
        out.push_str(&format!("{head:<10} {text}\n"));
    };
    rows.iter().for_each(|(head, text)| row(head, text));
    if let Some(scaled) = scaled {
        row("cells", &scaled);
    }
    if report.late_ms.max > 0.0 {
        let late = report.late_ms;
        row("harness", &format!("sent jobs p99 {:.1} ms, at most {:.1} ms after they were due", late.p99, late.max));
    }
    if report.limit_reached_seconds > 0.0 {
        row(
            "",
            &format!(
                "{:.1} s long, jobs that were due waited as --in-flight {} was reached",
                report.limit_reached_seconds,
                n(report.in_flight_limit)
            ),
        );
    }
    for (count, what) in [
        (report.turned, "operations found no VM free and were sent as creates"),
        (report.jobs_refused, "jobs were refused"),
        (report.jobs_unfinished, "jobs had not ended"),
        (report.skipped, "jobs were not asked for, as the create that they needed had failed"),
    ] {
        if count > 0 {
            row("", &format!("{} {what}", n(count)));
        }
    }
    for (code, failures) in &report.failures {
        row("failed", &format!("{} with {code}: {}", n(failures.count), failures.first));
    }
    for check in &report.checks {
        match check.outcome {
            load::Outcome::Failed => row("CHECK", &format!("failed: {}: {}", check.name, check.found)),
            // What a soak passed is what it was for.
            load::Outcome::Passed if check.name.starts_with("soak") => {
                row("check", &format!("passed: {}: {}", check.name, check.found));
            }
            load::Outcome::NotDone if check.name.starts_with("soak") => {
                row("check", &format!("not done: {}: {}", check.name, check.found));
            }
            load::Outcome::Passed | load::Outcome::NotDone => {}
        }
    }
    for unchecked in &report.unchecked {
        row("unchecked", unchecked);
    }
    if report.interrupted {
        row("", "broken off before its end");
    }
    out
}

/// With a comma at every third digit.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Shows a run of the load harness as it goes.
pub(crate) struct Watched {
    env: Env,
    /// How many jobs there will be; zero if that is not known.
    total: u64,
    showing: Mutex<Option<(Progress, Counts)>>,
}

impl Watched {
    pub(crate) fn new(env: Env, total: u64) -> Self {
        Self { env, total, showing: Mutex::new(None) }
    }
    fn next(&self, progress: Option<Progress>) {
        let mut showing = self.showing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, counts)) = showing.take() {
            let result = if counts.acknowledged > 0 {
                format!("{} succeeded, {} failed", grouped(counts.succeeded), grouped(counts.failed))
            } else {
                "done".to_owned()
            };
            before.end(&self.env, &result);
        }
        *showing = progress.map(|progress| (progress, Counts::default()));
    }
    /// The run has ended.
    pub(crate) fn end(&self) {
        self.next(None);
    }
}

impl load::Progress for Watched {
    fn phase(&self, phase: Phase) {
        let (what, total) = match phase {
            Phase::Connecting => return,
            Phase::Running => ("jobs", self.total),
            Phase::Checking => ("listing VMs", 0),
            Phase::LookingUp => ("looking VMs up", 0),
            Phase::Auditing => ("auditing the directory", 0),
        };
        // The one before ends first, or its last line would come after the first of this one.
        self.next(None);
        self.next(Some(Progress::begin(&self.env, what, total)));
    }
    fn counts(&self, counts: &Counts, open: usize) {
        let mut showing = self.showing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((progress, last)) = showing.as_mut() {
            progress.at(&self.env, counts.succeeded + counts.failed);
            progress.also(&format!("{} open", grouped(open as u64)));
            last.clone_from(counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn what_went_wrong_is_in_the_table() {
        assert!(!table(&Report::default()).contains("refused"));
        let report = Report { jobs_refused: 3, unchecked: vec!["audit: away".to_owned()], ..Report::default() };
        let text = table(&report);
        let held = Report { limit_reached_seconds: 2.5, in_flight_limit: 1_000, turned: 4, ..Report::default() };
        let held = table(&held);
        assert!(held.contains("2.5 s long, jobs that were due waited as --in-flight 1,000 was reached"), "{held}");
        assert!(held.contains("4 operations found no VM free"), "{held}");
        assert!(text.contains("3 jobs were refused") && text.contains("audit: away"), "{text}");
    }
}
