//! How far apart the appends of a shard begin while jobs wait longer for a cell than they take.
//!
//! An append costs the bus and the processors about the same for one job as for fifty. A shard that appends what it
//! has as soon as it can makes many small ones, and with many shards these are what a cluster spends most on. While more
//! jobs wait in the ingress than the cells get done that wait is most of what a job takes; appends that begin some time
//! apart carry more of them, so more get done, and less wait. So they are a small part of that wait apart, and not at all while
//! nothing waits: a job that comes then is slowed by nothing. (PostgreSQL's `commit_delay` is the same for one
//! log; the embedded bus has its own, `bus/src/embedded/gather.rs`.)

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cellbus_bus::{Env, Mono};

/// The part of the wait in the ingress that appends are apart.
const PART: u32 = 10;
/// The most: a shard's share of a cluster's work in this time is an append's worth.
const MOST: Duration = Duration::from_millis(100);
/// How often it is looked at.
const WINDOW: Duration = Duration::from_millis(100);
/// What was found is forgotten after so long without a job.
const FORGOTTEN_AFTER: Duration = Duration::from_millis(500);

/// Watches what waits, and says how far apart appends are to be.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    apart: Duration,
    /// Since when jobs are counted, and how many were taken since.
    window: Mono,
    taken: u64,
    /// The fewest that were seen to wait since.
    waiting: Option<u64>,
    /// When the last were taken.
    last: Mono,
}

impl Pace {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many jobs were taken from the ingress, and so many waited behind them.
    pub(crate) fn took(&self, now: Mono, jobs: u64, waiting: u64) {
        let mut state = self.state();
        state.taken += jobs;
        state.waiting = Some(state.waiting.map_or(waiting, |fewest| fewest.min(waiting)));
        state.last = now;
        let elapsed = now.since(state.window);
        if elapsed < WINDOW {
            return;
        }
        // The time that this cell would need for them. With several it is less: then they are further apart than this says.
        let waited = elapsed.mul_f64(state.waiting.unwrap_or_default() as f64 / state.taken.max(1) as f64);
        let target = (waited / PART).min(MOST);
        // Half of the way there, as what waits goes up and down.
        let apart = (state.apart + target) / 2;
        *state = State {
            apart: if apart < Duration::from_millis(1) { Duration::ZERO } else { apart },
            window: now,
            taken: 0,
            waiting: None,
            last: now,
        };
    }

    /// Lets more come together for a shard's next append, where the last one began then. Cancel safe.
    pub(crate) async fn gather(&self, env: &Env, appended: Mono) {
        let now = env.mono();
        let left = self.apart(now).saturating_sub(now.since(appended));
        if !left.is_zero() {
            env.sleep(left).await;
        }
    }

    /// How long after the beginning of an append the shard's next may begin.
    fn apart(&self, now: Mono) -> Duration {
        let state = self.state();
        if now.since(state.last) < FORGOTTEN_AFTER { state.apart } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use cellbus_bus::env::real;
    use futures::FutureExt as _;
    use tokio::runtime::Handle;

    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(Duration::from_millis(ms))
    }

    /// Takes so many jobs each 10 ms until this time, from that one on, with so many waiting.
    fn take(pace: &Pace, from: u64, until: u64, jobs: u64, waiting: u64) {
        for ms in (from..until).step_by(10) {
            pace.took(at(ms), jobs, waiting);
        }
    }

    #[test]
    fn where_nothing_waits_an_append_begins_at_once() {
        let pace = Pace::default();
        take(&pace, 1_000, 5_000, 100, 0);
        assert_eq!(pace.apart(at(5_000)), Duration::ZERO);
        // A few that have just come are nobody's wait.
        take(&pace, 5_000, 6_000, 100, 20);
        assert_eq!(pace.apart(at(6_000)), Duration::ZERO);
    }

    #[test]
    fn it_is_a_part_of_what_jobs_wait() {
        let pace = Pace::default();
        // 10,000 a second with 4,000 waiting: 400 ms.
        take(&pace, 1_000, 3_000, 100, 4_000);
        let apart = pace.apart(at(3_000)).as_millis();
        assert!((38..=41).contains(&apart), "{apart} ms");
        take(&pace, 3_000, 5_000, 100, 1_000_000);
        let apart = pace.apart(at(5_000));
        assert!(apart <= MOST && apart > MOST.mul_f64(0.99), "{apart:?}");
    }

    #[test]
    fn it_ends_with_what_waits() {
        let pace = Pace::default();
        take(&pace, 1_000, 3_000, 100, 1_000_000);
        take(&pace, 3_000, 4_500, 100, 0);
        assert_eq!(pace.apart(at(4_500)), Duration::ZERO);
        // And with the jobs.
        take(&pace, 5_000, 7_000, 100, 1_000_000);
        assert!(pace.apart(at(7_000)) > Duration::ZERO);
        assert_eq!(pace.apart(at(7_600)), Duration::ZERO);
    }

    #[tokio::test]
    async fn an_append_waits_for_what_is_left_since_the_last_one_began() {
        let (env, pace) = (real(Handle::current()), Pace::default());
        let began = env.mono();
        // As if for two seconds, of which this is the end.
        for back in (0..2_000).rev().step_by(10) {
            pace.took(Mono(began.0 + Duration::from_secs(2) - Duration::from_millis(back)), 1, 1_000_000);
        }
        let now = env.mono();
        pace.gather(&env, now).await;
        let waited = env.mono().since(now);
        assert!(waited >= MOST.mul_f64(0.95), "{waited:?}");
        // Long after the last one, and where nothing waits, it begins at once.
        assert!(pace.gather(&env, began).now_or_never().is_some());
        assert!(Pace::default().gather(&env, env.mono()).now_or_never().is_some());
    }
}
