//! Two runs side by side: what got better, what got worse, and what may be chance.
//!
//! Seconds of a run differ from each other, and neighbours are alike: a slow second is seldom alone. So the
//! spread is taken from the run itself, by a bootstrap over blocks of neighbouring moments: a run as long as
//! each of the two is put together again and again from blocks drawn from it with replacement, and the change
//! from one to the other is looked at each time. What lies between the 2.5th and the 97.5th of 100 of these
//! changes is the spread. A change is called better or worse only where all of the spread is on one side.

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

use super::latencies::Latencies;
use super::recording::Recording;

/// As many as give the ends of a spread to about a tenth of its width.
const RESAMPLES: usize = 1_000;
/// With fewer moments than this nothing can be said of how they differ.
const MOMENTS_MIN: usize = 10;
/// What the buckets of latencies cannot tell apart is no change.
const RESOLUTION: f64 = 0.023;

/// What two runs come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// One row for each thing that was measured.
    pub rows: Vec<Row>,
    /// What was not the same in what was asked for, and so may explain the rest.
    pub differences: Vec<String>,
    /// What makes either hard to trust.
    pub warnings: Vec<String>,
    /// How the spread was found.
    pub method: String,
}

/// One thing that was measured in both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What.
    pub what: String,
    /// In the first run.
    pub a: f64,
    /// In the second.
    pub b: f64,
    /// From the first to the second: 0.1 is a tenth more. `None` where the first has none of it.
    pub change: Option<f64>,
    /// Between what the change lies, by how much moments differ; `None` where that cannot be told.
    pub spread: Option<(f64, f64)>,
    /// What it means.
    pub verdict: Verdict,
}

/// What a change means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The second run did better.
    Better,
    /// The second run did worse.
    Worse,
    /// The same, or a difference that chance explains.
    NoClearDifference,
    /// One number each, or too short a run: no spread to hold it against.
    Unknown,
}

#[derive(Clone, Copy)]
enum Good {
    High,
    Low,
}

impl Good {
    fn verdict(self, low: f64, high: f64) -> Verdict {
        match self {
            Self::High if low > 0.0 => Verdict::Better,
            Self::Low if high < 0.0 => Verdict::Better,
            Self::High if high < 0.0 => Verdict::Worse,
            Self::Low if low > 0.0 => Verdict::Worse,
            Self::High | Self::Low => Verdict::NoClearDifference,
        }
    }
}

/// What is measured of some moments of a run.
#[derive(Clone, Copy)]
struct Measured {
    ended: f64,
    p50: f64,
    p90: f64,
    p99: f64,
}

/// What is told of [`Measured`]: how it is called, whether more is better, where it is.
type Quantity = (&'static str, Good, fn(&Measured) -> f64);
const QUANTITIES: [Quantity; 4] = [
    ("jobs ended a second", Good::High, |of| of.ended),
    ("latency p50, ms", Good::Low, |of| of.p50),
    ("latency p90, ms", Good::Low, |of| of.p90),
    ("latency p99, ms", Good::Low, |of| of.p99),
];

/// Compares the second with the first. The same runs give the same answer.
#[must_use]
pub fn compare(a: &Recording, b: &Recording) -> Comparison {
    let mut rows = Vec::new();
    let samples = [a, b].map(Sampled::of);
    let [whole_a, whole_b] = [&samples[0], &samples[1]].map(Sampled::whole);
    let enough = samples.iter().all(|sampled| sampled.moments.len() >= MOMENTS_MIN);
    let resampled: Vec<[Measured; 2]> = if enough {
        // The same draws whatever is compared, so that an answer can be had again.
        let mut rng = SmallRng::seed_from_u64(1);
        (0..RESAMPLES).map(|_| [samples[0].drawn(&mut rng), samples[1].drawn(&mut rng)]).collect()
    } else {
        Vec::new()
    };
    let same_load = a.about.configuration.get("load") == b.about.configuration.get("load");
    for (what, good, of) in QUANTITIES {
        let changes = resampled.iter().filter_map(|[a, b]| change(of(a), of(b)));
        let (from, to) = (of(&whole_a), of(&whole_b));
        let spread = middle(changes.collect());
        let changed = change(from, to);
        let verdict = match (good, spread, changed) {
            // Less was done because less was asked for, or more.
            (Good::High, ..) if !same_load => Verdict::Unknown,
            (_, Some((low, high)), Some(changed)) if changed.abs() > RESOLUTION => good.verdict(low, high),
            (_, Some(_), Some(_)) => Verdict::NoClearDifference,
            (_, None, _) | (_, _, None) => Verdict::Unknown,
        };
        rows.push(Row { what: what.to_owned(), a: from, b: to, change: changed, spread, verdict });
    }
    rows.extend(single(a, b));
    Comparison {
        rows,
        differences: differences(a, b),
        warnings: warnings(a, b),
        method: format!(
            "spread: 95 % of {RESAMPLES} changes between runs put together from blocks of neighbouring moments of each \
             (a bootstrap); counts of what went wrong are compared as they are"
        ),
    }
}

/// What has one number in each run.
fn single(a: &Recording, b: &Recording) -> Vec<Row> {
    let [of_a, of_b] = [&a.report, &b.report];
    let row = |what: &str, from: f64, to: f64, verdict| Row {
        what: what.to_owned(),
        a: from,
        b: to,
        change: change(from, to),
        spread: None,
        verdict,
    };
    let mut rows = Vec::new();
    for (kind, tally) in &of_a.by_type {
        let Some(other) = of_b.by_type.get(kind) else { continue };
        for (part, from, to) in
            [("p50", tally.latency_ms.p50, other.latency_ms.p50), ("p99", tally.latency_ms.p99, other.latency_ms.p99)]
        {
            rows.push(row(&format!("{kind}, latency {part}, ms"), from, to, Verdict::Unknown));
        }
    }
    rows.push(row("look-ups a second", of_a.lookups_per_second, of_b.lookups_per_second, Verdict::Unknown));
    rows.push(row("server's memory at its peak, MiB", of_a.rss_mib as f64, of_b.rss_mib as f64, Verdict::Unknown));
    // None of these may happen, so that chance is no excuse.
    for (what, from, to) in [
        ("jobs failed or refused", of_a.jobs_failed + of_a.jobs_refused, of_b.jobs_failed + of_b.jobs_refused),
        ("lost", of_a.lost, of_b.lost),
        ("duplicates", of_a.duplicates, of_b.duplicates),
        ("differences found by the audit", of_a.directory_mismatches, of_b.directory_mismatches),
    ] {
        let verdict = match to.cmp(&from) {
            std::cmp::Ordering::Less => Verdict::Better,
            std::cmp::Ordering::Equal => Verdict::NoClearDifference,
            std::cmp::Ordering::Greater => Verdict::Worse,
        };
        rows.push(row(what, from as f64, to as f64, verdict));
    }
    rows
}

fn differences(a: &Recording, b: &Recording) -> Vec<String> {
    let mut differences = Vec::new();
    let parts = [
        (&a.about.configuration, &b.about.configuration),
        (&a.about.versions, &b.about.versions),
        (&a.about.machine, &b.about.machine),
    ];
    for (of_a, of_b) in parts {
        let names: std::collections::BTreeSet<&String> = of_a.keys().chain(of_b.keys()).collect();
        for name in names {
            let [from, to] = [of_a, of_b].map(|of| of.get(name).map_or("-", String::as_str));
            if from != to && name != "server" {
                differences.push(format!("{name}: {from}; then {to}"));
            }
        }
    }
    let [of_a, of_b] = [&a.report, &b.report];
    for (what, from, to) in [
        ("hosts", of_a.hosts, of_b.hosts),
        ("managers", of_a.managers, of_b.managers),
        ("cells at the most", of_a.cells_peak, of_b.cells_peak),
    ] {
        if from != to {
            differences.push(format!("{what}: {from}; then {to}"));
        }
    }
    differences
}

fn warnings(a: &Recording, b: &Recording) -> Vec<String> {
    let mut warnings = Vec::new();
    for (which, of) in [("the first run", a), ("the second run", b)] {
        let report = &of.report;
        if report.interrupted {
            warnings.push(format!("{which} was broken off"));
        }
        if report.limit_reached_seconds > 0.0 {
            warnings
                .push(format!("{which} held jobs up for {:.1} s, as too many were open", report.limit_reached_seconds));
        }
        if report.latency_ms.p50 > 0.0 && report.late_ms.p99 > report.latency_ms.p50 {
            let late = report.late_ms.p99;
            warnings.push(format!(
                "the harness was late in {which} (p99 {late:.1} ms): its latencies are its own, in part"
            ));
        }
        if of.series.moments.len() < MOMENTS_MIN {
            warnings.push(format!("{which} has fewer than {MOMENTS_MIN} moments: no spread can be told"));
        }
    }
    warnings
}

/// From the one to the other, as a part of the one.
fn change(from: f64, to: f64) -> Option<f64> {
    (from > 0.0 && to.is_finite()).then(|| to / from - 1.0)
}

/// Between what 95 of 100 lie.
fn middle(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values.get(((values.len() as f64 * part) as usize).min(values.len().saturating_sub(1)));
    Some((*at(0.025)?, *at(0.975)?))
}

/// Moments of a run: seconds, jobs that ended, latencies.
struct Sampled {
    moments: Vec<(f64, Latencies)>,
    every: f64,
    block: usize,
}

impl Sampled {
    fn of(recording: &Recording) -> Self {
        let mut moments: Vec<(f64, Latencies)> = recording
            .series
            .moments
            .iter()
            .map(|moment| ((moment.succeeded + moment.failed) as f64, moment.latency.clone()))
            .collect();
        // The last is cut short by the end of the run.
        if moments.len() > 1 {
            moments.pop();
        }
        // The usual length of a block, which grows with the third root of how many there are.
        let block = (moments.len() as f64).cbrt().ceil().max(1.0) as usize;
        Self { moments, every: recording.series.every_seconds.max(f64::MIN_POSITIVE), block }
    }
    fn whole(&self) -> Measured {
        self.measured(0..self.moments.len())
    }
    /// A run of the same length, of blocks of this one. Blocks go on at the start where they meet the end,
    /// so that every moment is as likely.
    fn drawn(&self, rng: &mut SmallRng) -> Measured {
        let length = self.moments.len();
        let blocks = length.div_ceil(self.block);
        let starts: Vec<usize> = (0..blocks).map(|_| rng.random_range(0..length)).collect();
        let all = starts.into_iter().flat_map(|start| (start..start + self.block).map(move |at| at % length));
        self.measured(all.take(length))
    }
    fn measured(&self, which: impl Iterator<Item = usize>) -> Measured {
        let (mut ended, mut moments, mut latencies) = (0.0, 0.0, Counted::default());
        for (of, latency) in which.map(|at| &self.moments[at]) {
            ended += of;
            moments += 1.0;
            latencies.add(latency);
        }
        let [p50, p90, p99] = latencies.at([0.5, 0.9, 0.99]);
        Measured { ended: if moments > 0.0 { ended / moments / self.every } else { 0.0 }, p50, p90, p99 }
    }
}

/// Sums of many latencies, one place for each bucket: they are added up a million times.
#[derive(Default)]
struct Counted(Vec<u64>);

impl Counted {
    fn add(&mut self, latencies: &Latencies) {
        for (bucket, jobs) in latencies.pairs() {
            let bucket = usize::from(*bucket);
            if self.0.len() <= bucket {
                self.0.resize(bucket + 1, 0);
            }
            self.0[bucket] += jobs;
        }
    }
    /// NaN where there are none.
    fn at(&self, parts: [f64; 3]) -> [f64; 3] {
        let count: u64 = self.0.iter().sum();
        parts.map(|part| {
            let wanted = (count as f64 * part).ceil().max(1.0);
            let mut seen = 0;
            let bucket = self.0.iter().position(|jobs| {
                seen += jobs;
                seen as f64 >= wanted
            });
            bucket.map_or(f64::NAN, |bucket| Latencies::middle_of(bucket as u16))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::report::{LatencyMs, Report, Tally};
    use super::super::series::Series;
    use super::*;

    /// A run of noisy seconds, whose latencies are about so many milliseconds.
    fn run(seed: u64, millis: f64, seconds: u64) -> Recording {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut series = Series::default();
        for second in 0..seconds {
            let slow = rng.random_range(0.8..1.25);
            let moment = series.at(Duration::from_secs(second));
            (moment.due, moment.succeeded) = (50, rng.random_range(45..55));
            for _ in 0..50 {
                moment.latency.add(Duration::from_secs_f64(millis * slow * rng.random_range(0.5..2.0) / 1e3));
            }
        }
        let tally =
            Tally { succeeded: 1, latency_ms: LatencyMs { p50: millis, ..LatencyMs::default() }, ..Tally::default() };
        let by_type = [("stop".to_owned(), tally)].into();
        Recording { report: Report { by_type, ..Report::default() }, series, ..Recording::default() }
    }
    fn verdicts(comparison: &Comparison) -> Vec<Verdict> {
        comparison.rows.iter().take(4).map(|row| row.verdict).collect()
    }

    #[test]
    fn what_changed_is_told_from_chance() {
        use Verdict::{Better, NoClearDifference, Unknown, Worse};
        let base = run(1, 20.0, 120);
        for seed in 2..8 {
            let same = compare(&base, &run(seed, 20.0, 120));
            assert_eq!(verdicts(&same), [NoClearDifference; 4], "{same:?}");
        }
        assert_eq!(verdicts(&compare(&base, &run(2, 26.0, 120))), [NoClearDifference, Worse, Worse, Worse]);
        assert_eq!(verdicts(&compare(&base, &run(2, 15.0, 120))), [NoClearDifference, Better, Better, Better]);
        let short = compare(&base, &run(2, 26.0, 5));
        assert_eq!(verdicts(&short), [Unknown; 4]);
        assert!(short.warnings[0].contains("fewer than 10 moments"), "{short:?}");
        assert_eq!(compare(&base, &run(2, 26.0, 120)), compare(&base, &run(2, 26.0, 120)), "no chance of its own");
    }

    #[test]
    fn a_spread_holds_the_change_and_is_wider_for_shorter_runs() {
        let width = |seconds| {
            let comparison = compare(&run(1, 20.0, seconds), &run(2, 22.0, seconds));
            let row = &comparison.rows[1];
            let (low, high) = row.spread.unwrap();
            assert!(low <= row.change.unwrap() && row.change.unwrap() <= high, "{row:?}");
            high - low
        };
        assert!(width(20) > 1.5 * width(400));
    }

    #[test]
    fn what_went_wrong_is_worse_and_other_loads_are_told() {
        let mut wrong = run(1, 20.0, 60);
        (wrong.report.lost, wrong.report.interrupted, wrong.report.hosts) = (1, true, 9);
        wrong.about.configuration.insert("load".to_owned(), "5".to_owned());
        wrong.series.moments.iter_mut().for_each(|moment| moment.succeeded /= 2);
        let comparison = compare(&run(1, 20.0, 60), &wrong);
        let lost = comparison.rows.iter().find(|row| row.what == "lost").unwrap();
        assert_eq!((lost.verdict, lost.change), (Verdict::Worse, None));
        assert_eq!(comparison.rows[0].verdict, Verdict::Unknown, "half as much was done, of another load");
        assert_eq!(comparison.differences, ["load: -; then 5", "hosts: 0; then 9"]);
        assert_eq!(comparison.warnings, ["the second run was broken off"]);
        let stop = comparison.rows.iter().find(|row| row.what == "stop, latency p50, ms").unwrap();
        assert_eq!((stop.a, stop.verdict), (20.0, Verdict::Unknown));
        // Nothing at all is compared too.
        assert!(compare(&Recording::default(), &Recording::default()).rows.iter().all(|row| row.change.is_none()));
    }
}
