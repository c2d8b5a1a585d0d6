//! When a launcher looks again: upon a change, after a while, never once it is stopped.

use std::time::Duration;

use cellbus_bus::Env;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What wakes the loop of a launcher.
pub(super) struct Pace {
    pub(super) env: Env,
    pub(super) stop: CancellationToken,
    changed: Notify,
}

/// What ends a pause before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heeds {
    /// A change of what is wanted.
    Changes,
    /// Only that the launcher is stopped: a failure waits its pause out, whatever is wanted meanwhile.
    OnlyStop,
}

impl Pace {
    pub(super) fn new(env: Env) -> Self {
        Self { env, stop: CancellationToken::new(), changed: Notify::new() }
    }

    /// Something else is wanted.
    pub(super) fn changed(&self) {
        self.changed.notify_one();
    }

    /// Waits for `at_most`. Cancel safe.
    pub(super) async fn pause(&self, at_most: Duration, heeds: Heeds) {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = self.changed.notified(), if heeds == Heeds::Changes => {}
            () = self.env.sleep(at_most) => {}
        }
    }
}

/// Pauses that grow from failure to failure: each twice the one before, up to a longest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl Backoff {
    /// How long to wait after this many failures in a row.
    pub(super) fn after(self, failures: u32) -> Duration {
        self.first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(60) };
        let seconds: Vec<f64> = [1, 2, 3, 7, 8, 1_000].map(|n| backoff.after(n).as_secs_f64()).into();
        assert_eq!(seconds, [0.5, 1.0, 2.0, 32.0, 60.0, 60.0]);
    }
}
