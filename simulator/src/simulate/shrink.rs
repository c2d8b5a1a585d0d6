//! Finds a smaller run that fails too: fewer kinds of faults, fewer VMs and jobs, less time, a
//! smaller cluster.
//!
//! A smaller run of the same seed is another run, so that what fails in it may be something else;
//! it is told what did.

use std::time::Duration;

use super::faults::FaultKind;
use super::run::{Config, Report, run};

/// A smaller failing run.
#[derive(Clone, Debug, PartialEq)]
pub struct Shrunk {
    /// How it is made.
    pub config: Config,
    /// What becomes of it.
    pub report: Report,
    /// Runs that it took to find it.
    pub tries: u32,
}

/// The smallest failing run that is found by leaving out one thing after another, in at most
/// `tries_max` runs. `None` if the run does not fail. `progress` hears of each smaller one.
pub fn shrink(config: &Config, tries_max: u32, mut progress: impl FnMut(&Config)) -> Option<Shrunk> {
    let report = run(config);
    if report.good() {
        return None;
    }
    let mut best = Shrunk { config: config.clone(), report, tries: 1 };
    loop {
        let mut smaller = None;
        for candidate in candidates(&best.config) {
            if best.tries >= tries_max {
                return Some(best);
            }
            best.tries += 1;
            let report = run(&candidate);
            if !report.good() {
                smaller = Some((candidate, report));
                break;
            }
        }
        let Some((config, report)) = smaller else { return Some(best) };
        progress(&config);
        best = Shrunk { config, report, tries: best.tries };
    }
}

/// Runs that are a little smaller, the most promising first.
fn candidates(config: &Config) -> Vec<Config> {
    let mut candidates = Vec::new();
    let kinds: Vec<FaultKind> = config.faults.kinds().collect();
    // Half of the kinds at once, then each alone.
    if kinds.len() > 3 {
        for half in [&kinds[..kinds.len() / 2], &kinds[kinds.len() / 2..]] {
            let faults = half.iter().fold(config.faults.clone(), |faults, kind| faults.with(*kind, 0.0));
            candidates.push(Config { faults, ..config.clone() });
        }
    }
    for kind in kinds {
        candidates.push(Config { faults: config.faults.clone().with(kind, 0.0), ..config.clone() });
    }
    if config.duration > Duration::from_secs(5) {
        candidates.push(Config { duration: config.duration / 2, ..config.clone() });
        candidates.push(Config { duration: config.duration * 4 / 5, ..config.clone() });
    }
    if config.vms > 1 {
        candidates.push(Config { vms: config.vms / 2, ..config.clone() });
    }
    if config.cells > 1 {
        candidates.push(Config { cells: config.cells - 1, ..config.clone() });
    }
    if config.managers > 1 {
        let managers = config.managers - 1;
        candidates.push(Config { managers, hosts: config.hosts.max(managers), ..config.clone() });
    }
    candidates
}
