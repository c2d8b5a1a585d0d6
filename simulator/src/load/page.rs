//! A recording as one HTML page that needs nothing else: for people, beside the JSON for scripts.

use std::fmt::Write as _;

use super::recording::Recording;
use super::report::{LatencyMs, Tally};
use super::verdict::Outcome;
use crate::plot::{self, escaped};

mod charts;

/// How pages of ours look.
pub(crate) const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1c2430;--soft:#556070;--back:#fff;--card:#f5f7fa;--line:#dde3ea;--bad:#b3261e;--good:#1b6e3c;--dim:#8a6d00}\
@media(prefers-color-scheme:dark){:root{--text:#dfe5ec;--soft:#9fabb9;--back:#12161c;--card:#1a2028;--line:#313a46;--bad:#ff8a80;--good:#7fd6a2;--dim:#e6c65c}}\
*{box-sizing:border-box}\
body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;margin:2rem auto 4rem;max-width:60rem;padding:0 1.25rem;color:var(--text);background:var(--back)}\
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2.4rem 0 .5rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}\
.sub{color:var(--soft);margin:0 0 1rem}\
.verdict{margin:1rem 0;padding:.6rem .9rem;border-radius:.5rem;background:var(--card);border-left:.3rem solid var(--good)}.verdict.bad{border-color:var(--bad)}\
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.6rem,1fr));gap:.6rem;margin:1rem 0}\
.tiles div{background:var(--card);border-radius:.5rem;padding:.55rem .8rem}.tiles b{display:block;font-size:1.3rem;line-height:1.3;font-variant-numeric:tabular-nums}.tiles span{color:var(--soft);font-size:.82rem}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}\
th,td{padding:.3rem .7rem .3rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}thead th{color:var(--soft);font-weight:500;white-space:nowrap}\
tbody th{font-weight:500}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
td{overflow-wrap:anywhere}td.said{white-space:nowrap;width:1%}th.mark,td.mark{width:1%;white-space:nowrap;font-variant-numeric:tabular-nums}.bad{color:var(--bad)}.good{color:var(--good)}.dim{color:var(--dim)}p.note,small{color:var(--soft)}p.note{font-size:.9rem}";

/// Tenants in the table at the most.
const TENANTS_SHOWN: usize = 30;
/// Rows of what happened at the most.
const MARKS_SHOWN: usize = 60;

impl Recording {
    /// As a page of its own, under this title.
    #[must_use]
    pub fn html(&self, title: &str) -> String {
        let title = escaped(title);
        let mut page = format!(
            "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\
             <meta name=viewport content=\"width=device-width,initial-scale=1\"><title>{title}</title>\
             <style>{STYLE}{}</style></head><body>\n<h1>{title}</h1>\n",
            plot::style()
        );
        self.head(&mut page);
        self.tiles(&mut page);
        page.push_str("<h2>How it went</h2>\n");
        charts::all(self, &mut page);
        self.happened(&mut page);
        self.tables(&mut page);
        self.checks(&mut page);
        self.surroundings(&mut page);
        page.push_str("</body></html>\n");
        page
    }

    // Writing to a String cannot fail, here and below.

    fn head(&self, page: &mut String) {
        let about = &self.about;
        let version = about.versions.get("server").map(|version| format!(", version {version}")).unwrap_or_default();
        let report = &self.report;
        let fleet = format!(
            "{} hosts of {} managers, {} cells{version}",
            grouped(report.hosts),
            grouped(report.managers),
            report.cells_peak
        );
        let _ = writeln!(page, "<p class=sub>{} · {}</p>", escaped(&about.began_at), escaped(&fleet));
        if let Some(load) = about.configuration.get("load") {
            let _ = writeln!(page, "<p class=sub>Load: {}</p>", escaped(load));
        }
        let failed: Vec<&str> = report
            .checks
            .iter()
            .filter(|check| check.outcome == Outcome::Failed)
            .map(|check| check.name.as_str())
            .collect();
        let (class, words) = if report.interrupted {
            (" bad", "The run was broken off; this is what there was until then.".to_owned())
        } else if report.clean() {
            ("", "Everything went as asked, and everything is there once.".to_owned())
        } else if failed.is_empty() {
            (" bad", "Not everything could be checked: see below.".to_owned())
        } else {
            (" bad", format!("Not as it should be: {}.", failed.join("; ")))
        };
        let _ = writeln!(page, "<p class=\"verdict{class}\">{}</p>", escaped(&words));
    }

    fn tiles(&self, page: &mut String) {
        let report = &self.report;
        let latency = report.latency_ms;
        let tiles = [
            (grouped(report.jobs_submitted), "jobs acknowledged"),
            (format!("{:.0}", report.jobs_per_second), "jobs ended a second"),
            (charts::millis(latency.p50), "latency p50"),
            (charts::millis(latency.p99), "latency p99"),
            (charts::millis(latency.max), "the slowest job"),
            (grouped(report.in_flight_max), "jobs open at the most"),
            (grouped(report.lost), "lost"),
            (grouped(report.duplicates), "duplicated"),
            (grouped(report.lookups_per_second as u64), "look-ups a second"),
            (format!("{} MiB", grouped(report.rss_mib)), "server's memory at its peak"),
        ];
        page.push_str("<div class=tiles>");
        for (value, name) in tiles {
            let _ = write!(page, "<div><b>{value}</b><span>{name}</span></div>");
        }
        page.push_str("</div>\n");
    }

    fn happened(&self, page: &mut String) {
        if self.marks.is_empty() {
            return;
        }
        page.push_str("<h2>What happened meanwhile</h2>\n<div class=scroll><table><thead><tr><th class=mark>Mark<th class=mark>At<th>What</thead><tbody>");
        let groups = charts::groups(&self.marks);
        for (number, at, whats) in groups.iter().take(MARKS_SHOWN) {
            let shown: Vec<&str> = whats.iter().take(8).copied().collect();
            let more = if whats.len() > 8 { format!("; and {} more", whats.len() - 8) } else { String::new() };
            let words = escaped(&shown.join("; "));
            let _ = write!(page, "<tr><td class=mark>{number}<td class=mark>{at:.1} s<td>{words}{more}");
        }
        page.push_str("</table></div>\n");
        let left_out = groups.len().saturating_sub(MARKS_SHOWN) as u64 + self.marks_dropped;
        if left_out > 0 {
            let _ = writeln!(page, "<p class=note>{left_out} more are not listed.</p>");
        }
    }

    fn tables(&self, page: &mut String) {
        let report = &self.report;
        page.push_str("<h2>By type of job</h2>\n");
        tallies(
            page,
            "Type",
            report.by_type.iter(),
            Some(("all", report.jobs_succeeded, report.jobs_failed, report.latency_ms)),
        );
        if report.by_tenant.len() > 1 {
            page.push_str("<h2>By tenant</h2>\n");
            let mut tenants: Vec<(&String, &Tally)> = report.by_tenant.iter().collect();
            tenants.sort_by_key(|(_, tally)| std::cmp::Reverse(tally.succeeded + tally.failed));
            tallies(page, "Tenant", tenants.iter().copied().take(TENANTS_SHOWN), None);
            if tenants.len() > TENANTS_SHOWN {
                let _ = writeln!(page, "<p class=note>The busiest {TENANTS_SHOWN} of {}.</p>", tenants.len());
            }
        }
        if !report.failures.is_empty() {
            page.push_str("<h2>Failures</h2>\n<div class=scroll><table><thead><tr><th>Code<th class=n>Times<th>What the first said</thead><tbody>");
            for (code, failures) in &report.failures {
                let (code, first) = (escaped(code), escaped(&failures.first));
                let _ = write!(page, "<tr><th scope=row>{code}<td class=n>{}<td>{first}", grouped(failures.count));
            }
            page.push_str("</table></div>\n");
        }
    }

    fn checks(&self, page: &mut String) {
        page.push_str("<h2>Checks</h2>\n<div class=scroll><table><tbody>");
        for check in &self.report.checks {
            let (class, said) = match check.outcome {
                Outcome::Passed => ("good", "passed"),
                Outcome::Failed => ("bad", "failed"),
                Outcome::NotDone => ("dim", "not done"),
            };
            let (name, found) = (escaped(&check.name), escaped(&check.found));
            let _ = write!(page, "<tr><td class=\"said {class}\">{said}<th scope=row>{name}<td>{found}");
        }
        page.push_str("</table></div>\n");
        for unchecked in &self.report.unchecked {
            let _ = writeln!(page, "<p class=bad>{}</p>", escaped(unchecked));
        }
        if self.report.limit_reached_seconds > 0.0 {
            let _ = writeln!(
                page,
                "<p class=bad>For {:.1} s jobs that were due were held up here, as {} had no outcome.</p>",
                self.report.limit_reached_seconds,
                grouped(self.report.in_flight_limit)
            );
        }
    }

    fn surroundings(&self, page: &mut String) {
        let about = &self.about;
        for (title, rows) in [
            ("Configuration", &about.configuration),
            ("Versions", &about.versions),
            ("The harness's machine", &about.machine),
        ] {
            if rows.is_empty() {
                continue;
            }
            let _ = write!(page, "<h2>{title}</h2>\n<div class=scroll><table><tbody>");
            for (name, value) in rows {
                let _ = write!(page, "<tr><th scope=row>{}<td>{}", escaped(name), escaped(value));
            }
            page.push_str("</table></div>\n");
        }
    }
}

fn tallies<'a>(
    page: &mut String,
    what: &str,
    rows: impl Iterator<Item = (&'a String, &'a Tally)>,
    sum: Option<(&str, u64, u64, LatencyMs)>,
) {
    let _ = write!(
        page,
        "<div class=scroll><table><thead><tr><th>{what}<th class=n>Succeeded<th class=n>Failed<th class=n>p50<th class=n>p90\
         <th class=n>p99<th class=n>Slowest</thead><tbody>"
    );
    let rows = rows.map(|(name, tally)| (name.as_str(), tally.succeeded, tally.failed, tally.latency_ms)).chain(sum);
    for (name, succeeded, failed, latency) in rows {
        let bad = if failed > 0 { " bad" } else { "" };
        let name = escaped(name);
        let _ = write!(
            page,
            "<tr><th scope=row>{name}<td class=n>{}<td class=\"n{bad}\">{}",
            grouped(succeeded),
            grouped(failed)
        );
        for value in [latency.p50, latency.p90, latency.p99, latency.max] {
            let _ = write!(page, "<td class=n>{}", charts::millis(value));
        }
    }
    page.push_str("</table></div>\n");
}

/// With a thin space at every third digit.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests;
