//! Many runs, each on a thread of its own, several at once. A run is one thread and shares nothing
//! with another, so that it is the same run whatever goes on beside it.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError, mpsc};

use super::run::{Config, Report, run};

/// Makes these runs, `at_once` of them at a time, and hands over each with what became of it, in
/// the order of `configs` however long each takes.
pub fn run_many(
    configs: impl Iterator<Item = Config> + Send,
    at_once: NonZero<usize>,
    mut each: impl FnMut(Config, Report),
) {
    let configs = Mutex::new(configs.enumerate());
    let next = || configs.lock().unwrap_or_else(PoisonError::into_inner).next();
    // One that is done waits for nobody but those before it: at most a few, as all began in order.
    let (done, ended) = mpsc::sync_channel(at_once.get());
    #[expect(clippy::disallowed_methods, reason = "each thread is a world of its own, and is waited for")]
    std::thread::scope(|scope| {
        for _ in 0..at_once.get() {
            let (done, next) = (done.clone(), &next);
            scope.spawn(move || {
                while let Some((place, config)) = next() {
                    let report = run(&config);
                    if done.send((place, config, report)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let (mut early, mut due) = (BTreeMap::new(), 0);
        for (place, config, report) in ended {
            early.insert(place, (config, report));
            while let Some((config, report)) = early.remove(&due) {
                due += 1;
                each(config, report);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn runs_beside_each_other_are_the_same_runs_in_order() {
        let config = |seed| Config { duration: Duration::from_secs(5), ..Config::small(seed) };
        let alone: Vec<Report> = (0..5).map(|seed| run(&config(seed))).collect();
        let mut together = Vec::new();
        let three = NonZero::new(3).unwrap();
        run_many((0..5).map(config), three, |config, report| {
            assert_eq!(config.seed, report.seed);
            together.push(report);
        });
        assert_eq!(together, alone);
    }
}
