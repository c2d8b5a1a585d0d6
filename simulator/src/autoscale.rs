//! The autoscaling policy against KEDA's plain rule, on the same traces, in a fluid model.
//!
//! ```text
//!  trace ─▶ fluid: what waits, what runs ─▶ a reading a second ─▶ policy | ceil(lag / threshold)
//!             ▲                                                        │
//!             └────────────── cells, some seconds later ◀──────────────┘
//! ```
//!
//! Cells at work are a number here: what a real scale-out costs, and that none of it loses a job, is for
//! the simulated cluster ([`crate::simulate`]) and for tests with real processes.

mod fluid;
mod page;
mod rules;

use serde::Serialize;

pub use fluid::{Outcome, Plant, Scaler, play, reading};
pub use page::html;
pub use rules::{Keda, Ours, now, settings};

/// The fewest and the most cells that a rule may ask for.
const SIZES: (u32, u32) = (1, 32);

/// Work that comes.
#[derive(Clone, Copy, Debug)]
pub struct Arrivals {
    /// What it is like.
    pub name: &'static str,
    /// How long it is.
    pub seconds: u64,
    /// What comes a second, by the second.
    pub per_second: fn(f64) -> f64,
}

/// One that each cell can do 100 a second of: from idle to five times that, there and back, a day, a burst.
pub const USUAL: [Arrivals; 4] = [
    Arrivals { name: "step to 5 times", seconds: 900, per_second: |at| if at < 60.0 { 5.0 } else { 500.0 } },
    Arrivals {
        name: "square wave, 2 min",
        seconds: 1_800,
        per_second: |at| if ((at / 60.0) as u64).is_multiple_of(2) { 20.0 } else { 450.0 },
    },
    Arrivals {
        name: "a day in 2 h",
        seconds: 7_200,
        per_second: |at| 250.0 - 230.0 * (at / 7_200.0 * std::f64::consts::TAU).cos(),
    },
    Arrivals {
        name: "burst of 1 min",
        seconds: 1_800,
        per_second: |at| if (60.0..120.0).contains(&at) { 1_000.0 } else { 10.0 },
    },
];

/// What a rule made of a trace.
#[derive(Clone, Debug, Serialize)]
pub struct Played {
    /// `cellbus`, or `keda lag/N`.
    pub rule: String,
    /// What it came to.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A trace, and what each rule made of it.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The trace.
    pub trace: &'static str,
    /// How long it is.
    pub seconds: u64,
    /// The policy first, then KEDA's rule with each threshold.
    pub rules: Vec<Played>,
    #[serde(skip)]
    per_second: fn(f64) -> f64,
}

/// Plays the usual traces to the policy, and to KEDA's rule with each of these thresholds.
#[must_use]
pub fn compare(plant: &Plant, thresholds: &[f64]) -> Vec<Compared> {
    let (min, max) = SIZES;
    let all = USUAL.iter().map(|arrivals| {
        let Arrivals { name, seconds, per_second } = *arrivals;
        let played = |rule: String, scaler: &mut dyn Scaler| Played {
            rule,
            outcome: play(plant, min, seconds, per_second, scaler),
        };
        let ours = played("cellbus".to_owned(), &mut Ours::new(min, max));
        let theirs = thresholds
            .iter()
            .map(|threshold| played(format!("keda lag/{threshold}"), &mut Keda::new(*threshold, min, max)));
        Compared { trace: name, seconds, rules: std::iter::once(ours).chain(theirs).collect(), per_second }
    });
    all.collect()
}
