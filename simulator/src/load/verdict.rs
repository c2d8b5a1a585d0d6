//! What is checked at the end of a run, and what came of it.

use serde::{Deserialize, Serialize};

use super::report::Report;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is as it must be.
    Passed,
    /// It is not.
    Failed,
    /// It could not be told, or was left out.
    NotDone,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What must be.
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
    /// What was found, with the limit that it was held against.
    pub found: String,
}

impl Check {
    /// Passed if `ok`.
    pub(super) fn of(name: &str, ok: bool, found: String) -> Self {
        Self { name: name.to_owned(), outcome: if ok { Outcome::Passed } else { Outcome::Failed }, found }
    }
    /// Not done, for this reason.
    pub(super) fn not_done(name: &str, why: &str) -> Self {
        Self { name: name.to_owned(), outcome: Outcome::NotDone, found: why.to_owned() }
    }
}

/// What every run is held against.
pub(super) fn checks(report: &Report, audited: bool, checked: bool) -> Vec<Check> {
    let asked = report.jobs_failed + report.jobs_refused + report.skipped;
    let ended = "every acknowledged job has an outcome";
    let found = format!(
        "{} acknowledged; {} not known any more, {} had not ended",
        report.jobs_submitted, report.jobs_lost, report.jobs_unfinished
    );
    let mut checks = vec![
        Check::of(
            "every job went as asked",
            asked == 0,
            format!(
                "{} failed, {} refused, {} could not be asked for",
                report.jobs_failed, report.jobs_refused, report.skipped
            ),
        ),
        // What was broken off had no time to end.
        if report.interrupted && report.jobs_lost == 0 && report.jobs_unfinished > 0 {
            Check::not_done(ended, &found)
        } else {
            Check::of(ended, report.jobs_lost + report.jobs_unfinished == 0, found)
        },
    ];
    let names = ["every VM that was made is there", "no VM is there twice", "directory and managers agree"];
    if checked {
        checks.push(Check::of(
            names[0],
            report.vms_missing + report.vms_unexpected == 0,
            format!("{} missing, {} unexpected", report.vms_missing, report.vms_unexpected),
        ));
        checks.push(Check::of(names[1], report.duplicates == 0, format!("{} twice", report.duplicates)));
    } else {
        checks.extend(names[..2].iter().map(|name| Check::not_done(name, "the VMs were not listed")));
    }
    checks.push(if audited {
        let found = format!("{} differences in {} VMs", report.directory_mismatches, report.directory_entries);
        Check::of(names[2], report.directory_mismatches == 0, found)
    } else {
        Check::not_done(names[2], "there was no audit")
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_fails_for_its_own_reason() {
        let failed = |report: Report| {
            let found = checks(&report, true, true);
            found.iter().map(|check| check.outcome == Outcome::Failed).collect::<Vec<_>>()
        };
        let none = Report::default;
        assert_eq!(failed(none()), [false; 5]);
        assert_eq!(failed(Report { jobs_refused: 1, ..none() }), [true, false, false, false, false]);
        assert_eq!(failed(Report { jobs_lost: 1, ..none() }), [false, true, false, false, false]);
        assert_eq!(failed(Report { vms_missing: 1, ..none() }), [false, false, true, false, false]);
        assert_eq!(failed(Report { duplicates: 1, ..none() }), [false, false, false, true, false]);
        assert_eq!(failed(Report { directory_mismatches: 1, ..none() }), [false, false, false, false, true]);
        assert_eq!(failed(Report { jobs_unfinished: 1, ..none() }), [false, true, false, false, false]);
        let broken_off = checks(&Report { jobs_unfinished: 1, interrupted: true, ..none() }, true, true);
        assert_eq!(broken_off[1].outcome, Outcome::NotDone);
        let left_out = checks(&none(), false, false);
        assert!(left_out[2..].iter().all(|check| check.outcome == Outcome::NotDone));
    }
}
