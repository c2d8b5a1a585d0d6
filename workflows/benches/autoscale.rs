//! The policy against KEDA's plain rule (`ceil(lag / threshold)`, looked at every 30 s, cooled down for
//! 300 s) on the same traces, in a fluid model: `cargo bench -p cellbus-workflows --bench autoscale`.

#[path = "../tests/autoscale/fluid.rs"]
mod fluid;

use fluid::{Keda, Ours, Outcome, Plant, play};

/// A trace: its name, how long it is in seconds, and what comes a second.
type Trace = (&'static str, u64, fn(f64) -> f64);

const TRACES: [Trace; 4] = [
    ("step to 5 times", 900, |at| if at < 60.0 { 5.0 } else { 500.0 }),
    ("square wave, 2 min", 1_800, |at| if ((at / 60.0) as u64).is_multiple_of(2) { 20.0 } else { 450.0 }),
    ("a day in 2 h", 7_200, |at| 250.0 - 230.0 * (at / 7_200.0 * std::f64::consts::TAU).cos()),
    ("burst of 1 min, then quiet", 1_800, |at| if (60.0..120.0).contains(&at) { 1_000.0 } else { 10.0 }),
];

/// What KEDA is told to let wait for each cell: little is quick and dear, much is slow and cheap.
const THRESHOLDS: [f64; 2] = [100.0, 1_000.0];

fn main() {
    println!(
        "{:<28} {:<18} {:>12} {:>8} {:>8} {:>10} {:>9}",
        "trace", "rule", "cell-seconds", "late s", "turns", "cells max", "left"
    );
    for (name, seconds, arrival) in TRACES {
        let row = |rule: &str, outcome: &Outcome| {
            println!(
                "{name:<28} {rule:<18} {:>12.0} {:>8.1} {:>8} {:>10} {:>9.0}",
                outcome.cell_seconds,
                outcome.late_seconds,
                outcome.turns.len(),
                outcome.cells_max,
                outcome.backlog_end
            );
        };
        let plant = Plant::default();
        row("cellbus", &play(&plant, 1, seconds, arrival, &mut Ours::new(1, 32)));
        for threshold in THRESHOLDS {
            let outcome = play(&plant, 1, seconds, arrival, &mut Keda::new(threshold, 1, 32));
            row(&format!("lag / {threshold:.0}"), &outcome);
        }
    }
}
