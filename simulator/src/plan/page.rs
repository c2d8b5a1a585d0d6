//! A plan as one HTML page: what each part needs from 1,000 to 5,000,000 hosts, what gives way
//! first, and where the model and the runs agree and part.

use std::fmt::Write as _;

use super::runs::Ran;
use super::{Assumptions, Fleet, Plan, plan};
use crate::plot::{self, Axis, Chart, Ink, Line, Scale, escaped, short};

/// Fleets that the curves are drawn through.
const POINTS: [u64; 12] =
    [1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000];

const LOG: Axis = Axis { scale: Scale::Log, label: short, from_zero: false };
const EVEN: Axis = Axis { scale: Scale::Even, label: short, from_zero: true };

fn seconds(value: f64) -> String {
    format!("{} s", short(value))
}

/// The page. `runs` may be empty.
#[must_use]
pub fn html(assumed: &Assumptions, runs: &[Ran]) -> String {
    let plans: Vec<Plan> = POINTS.iter().map(|hosts| plan(Fleet::of(*hosts), assumed)).collect();
    let mut page = format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\"><title>A plan for Cellbus</title>\
         <style>{}{}</style></head><body>\n<h1>A plan for Cellbus</h1>\n\
         <p class=sub>On {}: 20 VMs a host; at the busiest, a third of all VMs is started within ten minutes.</p>\n",
        crate::load::PAGE_STYLE,
        plot::style(),
        escaped(assumed.bus.as_str()),
    );
    page.push_str("<h2>What it needs</h2>\n");
    for chart in [parts(&plans), memory(&plans), times(&plans)] {
        page.push_str(&chart.figure());
    }
    page.push_str("<h2>What gives way first</h2>\n");
    page.push_str(&limits(&plans).figure());
    if !runs.is_empty() {
        page.push_str("<h2>Where the model and the runs agree, and part</h2>\n");
        for chart in against(runs) {
            page.push_str(&chart.figure());
        }
    }
    page.push_str("<h2>Taken for given</h2>\n<div class=scroll><table><thead><tr><th>Name<th class=n>Value<th>What, and where it comes from</thead><tbody>\n");
    // Writing to a String cannot fail.
    for (name, value, what) in assumed.each() {
        let _ = writeln!(page, "<tr><th>{name}<td class=n>{}<td>{}", short(value), escaped(what));
    }
    page.push_str("</tbody></table></div>\n</body></html>\n");
    page
}

fn line(name: &str, ink: Ink, points: impl Iterator<Item = (f64, f64)>) -> Line {
    Line { name: name.to_owned(), ink, points: points.collect(), filled: false }
}

fn curve<'a>(name: &str, ink: Ink, plans: &'a [Plan], value: impl Fn(&'a Plan) -> f64) -> Line {
    line(name, ink, plans.iter().map(|plan| (plan.fleet.hosts as f64, value(plan))))
}

fn chart(title: &str, note: &str, y: Axis, lines: Vec<Line>) -> Chart {
    Chart { title: title.to_owned(), note: note.to_owned(), x: LOG, y, lines, marks: Vec::new() }
}

fn parts(plans: &[Plan]) -> Chart {
    let lines = vec![
        curve("managers", Ink::Slate, plans, |p| p.managers as f64),
        curve("shards", Ink::Violet, plans, |p| p.shards as f64),
        curve("cells", Ink::Blue, plans, |p| p.cells as f64),
        curve("directory replicas", Ink::Orange, plans, |p| p.replicas as f64),
    ];
    chart("Parts, by hosts", "Both axes are divided by tenfolds.", LOG, lines)
}

fn memory(plans: &[Plan]) -> Chart {
    let lines = vec![
        curve("a cell", Ink::Blue, plans, |p| p.cell_memory_mib as f64 / 1024.0),
        curve("a replica of the directory", Ink::Orange, plans, |p| p.replica_memory_mib as f64 / 1024.0),
    ];
    chart(
        "Memory of one, GiB, by hosts",
        "Cells are added before one of them is full; a replica holds everything.",
        LOG,
        lines,
    )
}

fn times(plans: &[Plan]) -> Chart {
    let axis = Axis { label: seconds, ..LOG };
    let lines = vec![
        curve("takeover of a cell's shards", Ink::Blue, plans, |p| p.takeover_seconds),
        curve("a replica from its checkpoint", Ink::Green, plans, |p| p.checkpoint_seconds),
        curve("a replica from nothing", Ink::Orange, plans, |p| p.replay_seconds),
    ];
    chart("How long it takes, by hosts", "", axis, lines)
}

fn limits(plans: &[Plan]) -> Chart {
    let inks = [("managers", Ink::Slate), ("bus", Ink::Red), ("directory", Ink::Orange), ("cells", Ink::Blue)];
    let of = |plan: &Plan, name: &str| {
        plan.limits.iter().find(|limit| limit.of == name).map_or(f64::NAN, |limit| limit.jobs_per_second)
    };
    let mut lines: Vec<Line> = inks.iter().map(|(name, ink)| curve(name, *ink, plans, |p| of(p, name))).collect();
    lines.push(curve("asked for", Ink::Green, plans, |p| p.fleet.jobs_per_second));
    chart(
        "Jobs a second that each part carries, by hosts",
        "Where the green line is above another, that part is too small.",
        LOG,
        lines,
    )
}

fn against(runs: &[Ran]) -> Vec<Chart> {
    let runs_by = |value: fn(&Ran) -> f64| {
        // At the most hosts: how it goes with VMs.
        let hosts = runs.iter().map(|ran| ran.hosts).max().unwrap_or_default();
        runs.iter().filter(move |ran| ran.hosts == hosts).map(move |ran| (ran.vms as f64, value(ran)))
    };
    let by_hosts = |value: fn(&Ran) -> f64| {
        let vms = runs.iter().map(|ran| ran.vms).min().unwrap_or_default();
        runs.iter().filter(move |ran| ran.vms == vms).map(move |ran| (ran.hosts as f64, value(ran)))
    };
    let both = |title: &str, note: &str, x: Axis, y: Axis, run: Vec<(f64, f64)>, model: Vec<(f64, f64)>| Chart {
        title: title.to_owned(),
        note: note.to_owned(),
        x,
        y,
        lines: vec![line("runs", Ink::Orange, run.into_iter()), line("model", Ink::Blue, model.into_iter())],
        marks: Vec::new(),
    };
    let micros = Axis { label: |value| format!("{} µs", short(value)), ..EVEN };
    let wide = Axis { from_zero: false, ..EVEN };
    vec![
        both(
            "CPU of a job, by hosts",
            "The runs have the load harness and the simulated managers in them.",
            LOG,
            micros,
            by_hosts(|r| r.job_cpu_us).collect(),
            by_hosts(|r| r.job_cpu_us_planned).collect(),
        ),
        both(
            "CPU of a job, by VMs",
            "",
            wide,
            micros,
            runs_by(|r| r.job_cpu_us).collect(),
            runs_by(|r| r.job_cpu_us_planned).collect(),
        ),
        both(
            "Memory for each VM, bytes, by VMs",
            "The runs have the simulated managers in them, and what is taken once, which weighs on few VMs.",
            wide,
            EVEN,
            runs_by(|r| r.vm_bytes).collect(),
            runs_by(|r| r.vm_bytes_planned).collect(),
        ),
        both(
            "Takeover, by VMs",
            "One of four cells is killed.",
            wide,
            Axis { label: seconds, ..EVEN },
            runs_by(|r| r.takeover_seconds).collect(),
            runs_by(|r| r.takeover_seconds_planned).collect(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::Bus;
    use super::*;

    #[test]
    fn the_page_has_every_assumption_and_the_runs_only_where_there_are_some() {
        let assumed = Assumptions::of(Bus::Nats3);
        let page = html(&assumed, &[]);
        assert!(assumed.each().iter().all(|(name, ..)| page.contains(name)));
        assert!(page.contains("nats-3") && !page.contains("agree, and part"));
        let ran = Ran {
            hosts: 1_000,
            vms: 20_000,
            jobs_per_second: 1.0,
            job_cpu_us: 60.0,
            job_cpu_us_planned: 46.0,
            vm_bytes: 3_000.0,
            vm_bytes_planned: 2_600.0,
            takeover_seconds: 3.3,
            takeover_seconds_planned: 3.2,
        };
        let page = html(&assumed, &[ran, Ran { vms: 40_000, ..ran }]);
        assert!(
            page.contains("agree, and part") && page.matches("<figure>").count() == 8,
            "{}",
            page.matches("<figure>").count()
        );
    }
}
