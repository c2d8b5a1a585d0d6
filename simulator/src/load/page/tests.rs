use std::time::Duration;

use super::super::marks::Mark;
use super::super::report::{Details, Failures, Report};
use super::super::series::Series;
use super::super::verdict;
use super::super::{About, Latencies};
use super::*;

fn recording() -> Recording {
    let mut series = Series::default();
    let mut latency = Latencies::default();
    for second in 0..100 {
        let moment = series.at(Duration::from_secs(second));
        (moment.due, moment.succeeded, moment.open, moment.cells) = (20, 18, second, Some(2 + second / 50));
        (moment.sent, moment.late_ms, moment.server_rss_mib) = (20, 1.5, Some(100.0));
        for job in 0..20 {
            moment.latency.add(Duration::from_millis(10 + job * second));
            latency.add(Duration::from_millis(10 + job * second));
        }
    }
    let marks = [(30.0, "cell <c1> left"), (30.0, "cell c2 left"), (60.5, "manager m is failing")]
        .map(|(at_seconds, what)| Mark { at_seconds, what: what.to_owned() });
    let failures = [("no_room".to_owned(), Failures { count: 2, first: "<b>full</b>".to_owned() })].into();
    let tally = Tally { succeeded: 2_000, failed: 2, ..Tally::default() };
    let latency_by_type = [("provision".to_owned(), latency.clone()), ("stop".to_owned(), latency)].into();
    let details = Details { series, marks: marks.to_vec(), latency_by_type, ..Details::default() };
    let mut report = Report {
        jobs_submitted: 4_711,
        jobs_failed: 2,
        failures,
        by_type: [("provision".to_owned(), tally)].into(),
        by_tenant: [("acme".to_owned(), tally), ("globex".to_owned(), tally)].into(),
        details,
        ..Report::default()
    };
    report.checks = verdict::checks(&report, true, true);
    let configuration = [("load".to_owned(), "20 a second".to_owned()), ("rate".to_owned(), "20".to_owned())].into();
    Recording::new(report, About { configuration, ..About::default() })
}

#[test]
fn a_page_shows_what_was_found_and_nothing_of_it_as_markup() {
    let page = recording().html("a & b");
    for part in [
        "a &amp; b",
        "4\u{202f}711",
        "&lt;b&gt;full",
        "no_room",
        "cell &lt;c1&gt; left; cell c2 left",
        "Arrivals and completions",
        "Backlog",
        "Latency over time",
        "Latency by type of job",
        "as a distribution",
        "globex",
        "Not as it should be: every job went as asked.",
        "20 a second",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert!(!page.contains("<b>full") && !page.contains("<c1>"));
    assert!(Recording::default().html("x").contains("everything is there once"));
}

#[test]
fn a_page_needs_nothing_else_and_is_small() {
    let page = recording().html("x");
    for outside in ["src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    // Namespaces are names.
    assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
    assert!(page.len() < 400_000, "{}", page.len());
}

#[test]
fn marks_at_one_time_are_one() {
    let recording = recording();
    let groups = charts::groups(&recording.marks);
    assert_eq!(
        groups.iter().map(|(number, at, whats)| (*number, *at, whats.len())).collect::<Vec<_>>(),
        [(1, 30.0, 2), (2, 60.5, 1)]
    );
    assert_eq!(
        [0.25, 1.0, 999.0, 1_500.0, 180_000.0].map(charts::millis),
        ["250 µs", "1 ms", "999 ms", "1.5 s", "3 min"]
    );
    assert_eq!([500.0, 1e6].map(charts::along), ["500 ms", "1000 s"]);
}
