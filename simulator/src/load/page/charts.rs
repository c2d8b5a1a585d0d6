//! The charts of a page.

use std::collections::BTreeMap;

use super::super::latencies::Latencies;
use super::super::marks::Mark;
use super::super::recording::Recording;
use super::super::series::Moment;
use crate::plot::{Axis, Chart, Ink, Line, Scale, short};

/// Types of jobs in one chart at the most: as many as there are inks, and one for all.
const TYPES_MAX: usize = Ink::ALL.len() - 1;
/// Neighbouring buckets that are one in the histogram: eight bars for each doubling.
const BUCKETS_OF_A_BAR: usize = 4;

/// A time, milliseconds, in words.
pub(super) fn millis(value: f64) -> String {
    match value {
        value if value >= 120_000.0 => format!("{} min", short(value / 60_000.0)),
        value if value >= 1_000.0 => format!("{} s", short(value / 1_000.0)),
        value if value > 0.0 && value < 1.0 => format!("{} µs", short(value * 1_000.0)),
        value => format!("{} ms", short(value)),
    }
}

/// Marks at one time are one, with a number.
pub(super) fn groups(marks: &[Mark]) -> Vec<(usize, f64, Vec<&str>)> {
    let mut groups: Vec<(usize, f64, Vec<&str>)> = Vec::new();
    for mark in marks {
        match groups.last_mut() {
            Some((_, at, whats)) if (mark.at_seconds - *at).abs() < 0.05 => whats.push(&mark.what),
            Some(_) | None => groups.push((groups.len() + 1, mark.at_seconds, vec![&mark.what])),
        }
    }
    groups
}

pub(super) fn all(recording: &Recording, page: &mut String) {
    let time = Time::of(recording);
    for chart in [
        rates(recording, &time),
        backlog(recording, &time),
        percentiles(recording, &time),
        cells(recording, &time),
        distribution(recording),
        histogram(recording),
        memory(recording, &time),
        harness(recording, &time),
    ] {
        page.push_str(&chart.figure());
    }
}

/// Time along the bottom, in a unit that fits.
struct Time {
    seconds: f64,
    axis: Axis,
    marks: Vec<(f64, usize)>,
}

impl Time {
    fn of(recording: &Recording) -> Self {
        let end = recording.series.timed().last().map_or(0.0, |(at, _)| at);
        let (seconds, label): (f64, fn(f64) -> String) = match end {
            end if end <= 240.0 => (1.0, |value| format!("{} s", short(value))),
            end if end <= 4.0 * 3_600.0 => (60.0, |value| format!("{} min", short(value))),
            _ => (3_600.0, |value| format!("{} h", short(value))),
        };
        let marks = groups(&recording.marks).iter().map(|(number, at, _)| (at / seconds, *number)).collect();
        Self { seconds, axis: Axis { scale: Scale::Even, label, from_zero: true }, marks }
    }
    fn line(&self, recording: &Recording, name: &str, ink: Ink, value: impl Fn(&Moment) -> Option<f64>) -> Line {
        let points = recording
            .series
            .timed()
            .map(|(at, moment)| (at / self.seconds, value(moment).unwrap_or(f64::NAN)))
            .collect();
        Line { name: name.to_owned(), ink, points, filled: false }
    }
    fn chart(&self, title: &str, note: &str, y: Axis, lines: Vec<Line>) -> Chart {
        let drawn = |line: &Line| line.points.iter().any(|(_, value)| value.is_finite() && *value != 0.0);
        let lines = lines.into_iter().filter(drawn).collect();
        Chart { title: title.to_owned(), note: note.to_owned(), x: self.axis, y, lines, marks: self.marks.clone() }
    }
}

const COUNT: Axis = Axis { scale: Scale::Even, label: short, from_zero: true };
const LATENCY: Axis = Axis { scale: Scale::Log, label: along, from_zero: false };

/// A time along an axis of tenfolds, milliseconds: never in minutes, of which ten are no round number.
pub(super) fn along(value: f64) -> String {
    if value >= 1_000.0 { format!("{} s", short(value / 1_000.0)) } else { millis(value) }
}

fn rates(recording: &Recording, time: &Time) -> Chart {
    let every = recording.series.every_seconds;
    // The run ends within the last moment: over its whole length a rate would seem to fall.
    let last = recording.series.moments.len().saturating_sub(1) as f64 * every;
    let line = |name, ink, of: fn(&Moment) -> u64| {
        let mut line = time.line(recording, name, ink, |moment| Some(of(moment) as f64 / every));
        if last > 0.0 && recording.report.wall_seconds < last + every {
            // Its place stays, so that all charts are as wide.
            line.points.last_mut().into_iter().for_each(|(_, rate)| *rate = f64::NAN);
        }
        line
    };
    let due = Line { filled: true, ..line("due", Ink::Slate, |moment| moment.due) };
    let lines = vec![
        due,
        line("succeeded", Ink::Blue, |moment| moment.succeeded),
        line("failed or refused", Ink::Red, |moment| moment.failed),
    ];
    time.chart("Arrivals and completions, jobs a second", "", COUNT, lines)
}

fn backlog(recording: &Recording, time: &Time) -> Chart {
    let open =
        time.line(recording, "due and without an outcome (harness)", Ink::Violet, |moment| Some(moment.open as f64));
    let server = |moment: &Moment| moment.server_jobs.map(|jobs| jobs as f64);
    let lines = vec![
        Line { filled: true, ..open },
        time.line(recording, "not ended (the server's count)", Ink::Orange, server),
    ];
    time.chart("Backlog, jobs", "", COUNT, lines)
}

fn percentiles(recording: &Recording, time: &Time) -> Chart {
    let line = |name, ink, part: f64| time.line(recording, name, ink, move |moment: &Moment| moment.latency.at(part));
    let lines = vec![
        line("slowest", Ink::Slate, 1.0),
        line("p99", Ink::Red, 0.99),
        line("p90", Ink::Orange, 0.9),
        line("p50", Ink::Blue, 0.5),
    ];
    let note = "From when a job was due to its outcome; of the jobs that were due at that time.";
    time.chart("Latency over time", note, LATENCY, lines)
}

fn cells(recording: &Recording, time: &Time) -> Chart {
    let cells = time.line(recording, "cells", Ink::Teal, |moment| moment.cells.map(|cells| cells as f64));
    // As many until the next look: a step, not a slope.
    let mut points: Vec<(f64, f64)> = Vec::new();
    for (at, count) in cells.points.iter().filter(|(_, count)| count.is_finite()) {
        if let Some((_, before)) = points.last() {
            points.push((*at, *before));
        }
        points.push((*at, *count));
    }
    points.extend(cells.points.last().map(|(at, _)| (*at, f64::NAN)));
    time.chart("Cells", "", COUNT, vec![Line { points, filled: true, ..cells }])
}

/// The part that is not exceeded against how long it took, on an axis on which each further nine is as long.
fn distribution(recording: &Recording) -> Chart {
    let points = |latencies: &Latencies| {
        let count = latencies.count() as f64;
        let (mut seen, mut points) = (0.0, Vec::new());
        for (until, jobs) in latencies.buckets() {
            if points.is_empty() {
                points.push((0.0, until));
            }
            seen += jobs as f64;
            // The last of n jobs stands for one part of n: nothing is known beyond it.
            points.push(((count / (count - seen).max(1.0)).log10(), until));
        }
        points
    };
    let mut types: Vec<(&String, &Latencies)> = recording.latency_by_type.iter().collect();
    types.sort_by_key(|(_, latencies)| std::cmp::Reverse(latencies.count()));
    types.truncate(TYPES_MAX);
    // Their inks do not depend on how many there are of each.
    types.sort_by_key(|(name, _)| *name);
    let inks = Ink::ALL.iter().filter(|ink| **ink != Ink::Slate);
    let mut lines: Vec<Line> = types
        .iter()
        .zip(inks)
        .map(|((name, latencies), ink)| Line {
            name: (*name).clone(),
            ink: *ink,
            points: points(latencies),
            filled: false,
        })
        .collect();
    if lines.len() != 1 {
        let all = points(&recording.latencies());
        lines.push(Line { name: "all".to_owned(), ink: Ink::Slate, points: all, filled: false });
    }
    fn nines(value: f64) -> String {
        match value {
            0.0 => "0 %".to_owned(),
            whole if (whole - whole.round()).abs() < 1e-9 => {
                let digits = (whole.round() as usize).saturating_sub(2);
                format!("{:.digits$} %", 100.0 - 100.0 / 10_f64.powf(whole))
            }
            _ => String::new(),
        }
    }
    Chart {
        title: "Latency by type of job".to_owned(),
        note: "So many of the jobs took at most so long; each nine of the bottom is as wide as the one before."
            .to_owned(),
        x: Axis { scale: Scale::Even, label: nines, from_zero: true },
        y: LATENCY,
        lines,
        marks: Vec::new(),
    }
}

fn histogram(recording: &Recording) -> Chart {
    let mut bars: BTreeMap<i64, u64> = BTreeMap::new();
    let per_doubling = 32.0 / BUCKETS_OF_A_BAR as f64;
    for (until, jobs) in recording.latencies().buckets() {
        *bars.entry((until.log2() * per_doubling).ceil() as i64).or_default() += jobs;
    }
    let (Some(first), Some(last)) =
        (bars.first_key_value().map(|(bar, _)| *bar), bars.last_key_value().map(|(bar, _)| *bar))
    else {
        return Chart {
            title: String::new(),
            note: String::new(),
            x: LATENCY,
            y: COUNT,
            lines: Vec::new(),
            marks: Vec::new(),
        };
    };
    let at = |bar: i64| (bar as f64 / per_doubling).exp2();
    let steps = (first..=last).flat_map(|bar| {
        let jobs = bars.get(&bar).copied().unwrap_or_default() as f64;
        [(at(bar - 1), jobs), (at(bar), jobs)]
    });
    let points = std::iter::once((at(first - 1), 0.0)).chain(steps).chain([(at(last), 0.0)]).collect();
    Chart {
        title: "Latency of all jobs, as a distribution".to_owned(),
        note: "Jobs whose latency is within each step; eight steps for each doubling.".to_owned(),
        x: LATENCY,
        y: COUNT,
        lines: vec![Line { name: "jobs".to_owned(), ink: Ink::Blue, points, filled: true }],
        marks: Vec::new(),
    }
}

fn memory(recording: &Recording, time: &Time) -> Chart {
    let lines = vec![
        time.line(recording, "server", Ink::Green, |moment| moment.server_rss_mib),
        time.line(recording, "harness", Ink::Gold, |moment| moment.own_rss_mib),
    ];
    let y = Axis { label: |value| format!("{} MiB", short(value)), ..COUNT };
    time.chart("Memory", "", y, lines)
}

fn harness(recording: &Recording, time: &Time) -> Chart {
    // What is shorter than this is no delay but a turn of the loop, and zero has no place on the axis.
    const LEAST_MS: f64 = 0.1;
    let late = |moment: &Moment| (moment.sent > 0).then(|| moment.late_ms.max(LEAST_MS));
    let lines = vec![time.line(recording, "the latest job of each moment", Ink::Pink, late)];
    let note = "How long jobs waited in the harness after they were due: while this is small, what is measured is the cluster.";
    time.chart("The harness itself", note, LATENCY, lines)
}
