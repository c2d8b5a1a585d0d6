//! A report as one HTML page that needs nothing else: for people, beside the JSON for scripts.

use std::fmt::Write as _;

use super::report::Report;
use super::series::{Moment, Series};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:56rem;padding:0 1rem;\
color:#1c2430;background:#fff}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .75rem;\
text-align:left;border-bottom:1px solid #d8dee6}td.n{text-align:right;font-variant-numeric:tabular-nums}\
svg{width:100%;height:auto;border:1px solid #d8dee6}.bad{color:#b3261e}.good{color:#1b6e3c}\
@media(prefers-color-scheme:dark){body{color:#dfe5ec;background:#12161c}td,th,svg{border-color:#38414d}\
.bad{color:#ff8a80}.good{color:#7fd6a2}}";

/// Points of a curve at the most: more than a screen shows says nothing.
const POINTS_MAX: usize = 600;

impl Report {
    /// As a page of its own, under this title.
    #[must_use]
    pub fn html(&self, title: &str) -> String {
        let title = escaped(title);
        let verdict = if self.clean() {
            "<p class=good>Everything went as asked, and everything is there once.</p>"
        } else {
            "<p class=bad>Not everything went as asked: see below.</p>"
        };
        let mut page = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{verdict}"
        );
        self.table(&mut page);
        self.problems(&mut page);
        curve(&mut page, "Jobs ended a second", &self.details.series, |moment| (moment.succeeded + moment.failed) as f64);
        curve(&mut page, "Jobs under way", &self.details.series, |moment| moment.open as f64);
        page
    }

    fn table(&self, page: &mut String) {
        let latency = self.latency_ms;
        let rows = [
            ("Cluster", format!("{} hosts, {} managers, {} cells", self.hosts, self.managers, self.cells_peak)),
            ("Jobs acknowledged", self.jobs_submitted.to_string()),
            ("Jobs as asked", self.jobs_succeeded.to_string()),
            ("Jobs failed", self.jobs_failed.to_string()),
            ("Jobs refused", self.jobs_refused.to_string()),
            ("Jobs without an outcome", self.jobs_unfinished.to_string()),
            ("VMs made", self.vms_created.to_string()),
            ("VMs deleted", self.vms_deleted.to_string()),
            ("Lost", self.lost.to_string()),
            ("Duplicates", self.duplicates.to_string()),
            ("Unexpected VMs", self.vms_unexpected.to_string()),
            ("VMs in the directory", self.directory_entries.to_string()),
            ("Differences between directory and managers", self.directory_mismatches.to_string()),
            ("Time", format!("{:.1} s", self.wall_seconds)),
            ("Jobs a second", format!("{:.0}", self.jobs_per_second)),
            ("Latency p50", format!("{:.1} ms", latency.p50)),
            ("Latency p90", format!("{:.1} ms", latency.p90)),
            ("Latency p99", format!("{:.1} ms", latency.p99)),
            ("Latency, the slowest", format!("{:.1} ms", latency.max)),
            ("Look-ups a second", format!("{:.0}", self.lookups_per_second)),
            ("Memory of the server", format!("{} MiB", self.rss_mib)),
        ];
        page.push_str("<table>");
        for (name, value) in rows {
            // Writing to a String cannot fail.
            let _ = write!(page, "<tr><th scope=row>{name}<td class=n>{value}");
        }
        page.push_str("</table>");
    }

    fn problems(&self, page: &mut String) {
        if self.interrupted {
            page.push_str("<p class=bad>The run was broken off.</p>");
        }
        for unchecked in &self.unchecked {
            let _ = write!(page, "<p class=bad>{}</p>", escaped(unchecked));
        }
        if self.failures.is_empty() {
            return;
        }
        page.push_str("<h2>Failures</h2><table><tr><th>Code<th>Times<th>What the first said");
        for (code, failures) in &self.failures {
            let _ =
                write!(page, "<tr><td>{}<td class=n>{}<td>{}", escaped(code), failures.count, escaped(&failures.first));
        }
        page.push_str("</table>");
    }
}

fn curve(page: &mut String, name: &str, series: &Series, value: impl Fn(&Moment) -> f64) {
    let points: Vec<(f64, f64)> = series.timed().map(|(at, moment)| (at, value(moment))).collect();
    let (Some((end, _)), true) = (points.last(), points.len() > 1) else { return };
    let top = points.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let every = points.len().div_ceil(POINTS_MAX);
    let _ = write!(
        page,
        "<h2>{name}</h2><svg viewBox=\"0 0 600 160\" role=img aria-label=\"{name}, up to {top:.0}, over {end:.0} s\">\
         <polyline fill=none stroke=\"#2f6fde\" stroke-width=1.5 points=\"",
    );
    for (at, value) in points.iter().step_by(every) {
        let (x, y) = (at / end.max(0.001) * 600.0, 155.0 - value / top * 150.0);
        let _ = write!(page, "{x:.1},{y:.1} ");
    }
    let _ = write!(page, "\"/></svg><p>Top: {top:.0}. Over {end:.0} s.</p>");
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::report::{Details, Failures};
    use super::*;

    #[test]
    fn a_page_shows_what_was_found_and_nothing_of_it_as_markup() {
        let failures = [("no_room".to_owned(), Failures { count: 2, first: "<b>full</b>".to_owned() })].into();
        let moments = (0..1_000).map(|_| Moment { succeeded: 7, open: 3, ..Moment::default() }).collect();
        let series = Series { moments, ..Series::default() };
        let details = Details { series, ..Details::default() };
        let report = Report { jobs_submitted: 4_711, jobs_failed: 2, failures, details, ..Report::default() };
        let page = report.html("a & b");
        for part in ["a &amp; b", "<td class=n>4711", "&lt;b&gt;full", "no_room", "Jobs under way", "class=bad"] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(page.matches(',').count() < 3_000, "curves are thinned out");
        assert!(!page.contains("<b>"));
        assert!(Report::default().html("x").contains("class=good"));
    }
}
