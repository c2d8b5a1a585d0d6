//! How far apart the appends of a shard begin: while jobs wait longer for a cell than they take, and while
//! many calls of the shard are under way.
//!
//! An append costs the bus and the processors about the same for one job as for fifty. A shard that appends what it
//! has as soon as it can makes many small ones, and with many shards these are what a cluster spends most on. While more
//! jobs wait in the ingress than the cells get done that wait is most of what a job takes; appends that begin some time
//! apart carry more of them, so more get done, and less wait. So they are a small part of that wait apart, and not at all while
//! nothing waits: a job that comes then is slowed by nothing.
//!
//! The answers to many calls come from many managers, one after the other. So while many are under way appends are
//! apart, too, by a small time for each: long enough that some come together, and so short that a shard can take
//! in thousands of answers a second. Where few are under way none waits.
//!
//! (PostgreSQL's `commit_delay` is the same for one log; the embedded bus has its own,
//! `bus/src/embedded/gather.rs`.)

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cellbus_bus::{Env, Mono};

/// The part of the wait in the ingress that appends are apart.
const PART: u32 = 10;
/// The most: a shard's share of a cluster's work in this time is an append's worth.
const MOST: Duration = Duration::from_millis(100);
/// From so many calls under way on their answers come together.
const CALLS_MIN: usize = 16;
/// For each of them appends are so far apart: 4,000 answers a second.
const EACH_CALL: Duration = Duration::from_micros(250);
/// The most for calls: little beside what any hypervisor takes for one.
const CALLS_MOST: Duration = Duration::from_millis(20);
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

    /// Lets more come together for a shard's next append, where the last one began then and so many of its calls
    /// are under way. Cancel safe.
    pub(crate) async fn gather(&self, env: &Env, appended: Mono, calls: usize) {
        let now = env.mono();
        let left = self.apart(now).max(for_calls(calls)).saturating_sub(now.since(appended));
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

fn for_calls(calls: usize) -> Duration {
    match u32::try_from(calls) {
        Ok(some) if calls >= CALLS_MIN => EACH_CALL.saturating_mul(some).min(CALLS_MOST),
        Ok(_) => Duration::ZERO,
        Err(_) => CALLS_MOST,
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
        pace.gather(&env, now, 0).await;
        let waited = env.mono().since(now);
        assert!(waited >= MOST.mul_f64(0.95), "{waited:?}");
        // Long after the last one, and where nothing waits, it begins at once.
        assert!(pace.gather(&env, began, 1_000).now_or_never().is_some());
        assert!(Pace::default().gather(&env, env.mono(), CALLS_MIN - 1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn answers_of_many_calls_come_together_where_nothing_waits() {
        let (env, pace) = (real(Handle::current()), Pace::default());
        let now = env.mono();
        pace.gather(&env, now, 40).await;
        let waited = env.mono().since(now);
        assert!(waited >= Duration::from_millis(10), "{waited:?}");
    }

    #[test]
    fn a_shard_takes_in_thousands_of_answers_a_second_however_many_calls_it_has() {
        assert_eq!(for_calls(CALLS_MIN - 1), Duration::ZERO);
        assert_eq!(for_calls(CALLS_MIN), Duration::from_millis(4));
        for calls in [CALLS_MIN, 40, 640, 100_000] {
            assert!(calls as f64 / for_calls(calls).as_secs_f64() >= 4_000.0, "{calls}");
        }
    }
}
