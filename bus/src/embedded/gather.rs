//! Whether the committer lets requests gather before it commits, or commits what there is at once.
//!
//! A commit costs the processors about the same for one request as for a hundred: a flush, a wake-up
//! of the committer, and one round of each shard that is answered. Where they are the limit, a
//! committer that goes at once makes many small commits and takes from the work itself. Commits that
//! begin at least [`GATHER`] apart are fewer and larger. This is PostgreSQL's `commit_delay`, and like
//! that it is wrong where a few writers wait for each other: they would only wait longer.
//!
//! So it is not configured: requests gather while the processors have no time to spare, and no longer.
//! (To look at how many requests a second are committed with it and without, and to keep what is faster,
//! was tried first: loads have their own ups and downs, which are larger than what is sought.)

use std::time::Duration;

use crate::env::Mono;

/// From the beginning of a commit to that of the next, at least. Five of these are in a job's way.
const GATHER: Duration = Duration::from_millis(3);
/// How often it is looked at.
const WINDOW: Duration = Duration::from_millis(100);
/// Requests in each commit, on average, from which on gathering may be worth it. Few, as under a heavy load
/// each request carries what many jobs wrote.
const CROWD: f64 = 1.5;
/// As many must come together while they gather, or there is nothing to be saved.
const GATHERED: f64 = 3.0;
/// The share of the processors' time from which on they are the limit.
const BUSY: f64 = 0.85;
/// The share below which writers wait for commits more than for processors.
const IDLE: f64 = 0.75;
/// Until gathering begins anew after it ended, doubled each time that it did not last, up to the longest.
const NEXT: Duration = Duration::from_secs(1);
const NEXT_LONGEST: Duration = Duration::from_secs(64);
/// What lasted so long was right.
const LASTED: Duration = Duration::from_secs(2);

/// Watches how busy the processors are, and says how far commits are to be apart.
pub(super) struct Gather {
    /// Since when requests gather, if they do.
    gathers: Option<Mono>,
    window: Mono,
    /// As the processors stood when the window began.
    busy: Duration,
    requests: u64,
    commits: u64,
    not_before: Mono,
    next: Duration,
}

impl Gather {
    /// `busy` is what [`Clock::busy`](crate::env::Clock::busy) says.
    pub(super) fn new(now: Mono, busy: Duration) -> Self {
        Self { gathers: None, window: now, busy, requests: 0, commits: 0, not_before: now, next: NEXT }
    }

    /// How long after the beginning of the last commit the next may begin.
    pub(super) fn apart(&self) -> Duration {
        if self.gathers.is_some() { GATHER } else { Duration::ZERO }
    }

    /// So many requests have been committed together. `busy` is asked once a window.
    pub(super) fn committed(&mut self, now: Mono, requests: usize, busy: impl FnOnce() -> Duration) {
        self.requests += requests as u64;
        self.commits += 1;
        let elapsed = now.since(self.window);
        if elapsed < WINDOW {
            return;
        }
        let busy = busy();
        let share = busy.saturating_sub(self.busy).as_secs_f64() / elapsed.as_secs_f64();
        let crowd = self.requests as f64 / self.commits as f64;
        (self.window, self.busy, self.requests, self.commits) = (now, busy, 0, 0);
        match self.gathers {
            None if crowd >= CROWD && share >= BUSY && now >= self.not_before => self.gathers = Some(now),
            Some(since) if crowd < GATHERED || share < IDLE => {
                self.gathers = None;
                self.next = if now.since(since) < LASTED { (self.next * 2).min(NEXT_LONGEST) } else { NEXT };
                self.not_before = now.after(self.next);
            }
            None | Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits for so long; gives requests a second, and for which share of the time it gathered. `commit`
    /// says how many requests a commit has, how long it takes, and which share of the processors is busy
    /// with it, begun so far apart.
    fn run(seconds: u64, mut commit: impl FnMut(Duration) -> (usize, Duration, f64)) -> (f64, f64) {
        let (mut now, mut requests, mut gathered) = (Mono(Duration::ZERO), 0, Duration::ZERO);
        let mut busy = Duration::ZERO;
        let mut gather = Gather::new(now, busy);
        while now.0 < Duration::from_secs(seconds) {
            let apart = gather.apart();
            let (count, takes, share) = commit(apart);
            let takes = takes.max(apart);
            if !apart.is_zero() {
                gathered += takes;
            }
            now = now.after(takes);
            busy += takes.mul_f64(share);
            requests += count;
            gather.committed(now, count, || busy);
        }
        (requests as f64 / now.0.as_secs_f64(), gathered.as_secs_f64() / now.0.as_secs_f64())
    }

    /// Both processors are busy: a commit takes 60 us of them, a request 10.
    #[test]
    fn busy_processors_let_requests_gather() {
        let busy = |apart: Duration| {
            let takes = apart.max(Duration::from_micros(160));
            (((takes.as_micros() as usize) - 60) / 10, takes, 0.97)
        };
        let (rate, share) = run(60, busy);
        assert!(share > 0.99, "{share}");
        assert!(rate > 95_000.0, "{rate}");
    }

    /// So many writers, each of which waits for its answer before it asks again. They keep the processors busy
    /// until they have to wait.
    #[test]
    fn writers_that_wait_for_their_answers_are_not_slowed() {
        for writers in [1, 3, 8, 20] {
            let waiting = |apart: Duration| {
                let takes = Duration::from_micros(160);
                (writers, takes, if apart.is_zero() { 0.95 } else { 0.1 })
            };
            let (rate, share) = run(60, waiting);
            let at_best = writers as f64 / 160e-6;
            assert!(share < 0.02 && rate > at_best * 0.98, "{writers}: {rate} of {at_best}, {share}");
        }
    }

    /// As many requests come whatever the committer does.
    #[test]
    fn a_steady_load_that_is_kept_up_with_is_answered_at_once() {
        let mut due = 0.0;
        let steady = |apart: Duration| {
            let takes = apart.max(Duration::from_micros(200));
            due += takes.as_secs_f64() * 40_000.0;
            let count = due as usize;
            due -= count as f64;
            (count, takes, 0.5)
        };
        assert!(run(60, steady).1 < f64::EPSILON);
    }

    #[test]
    fn it_ends_with_the_load() {
        let mut commits = 0;
        let (_, share) = run(120, |apart| {
            commits += 1;
            match commits {
                0..1_000 => (10, apart.max(Duration::from_micros(160)), 0.97),
                _ => (1, Duration::from_millis(10), 0.05),
            }
        });
        assert!(share < 0.05, "{share}");
    }

    #[test]
    fn where_nothing_is_known_of_the_processors_nothing_gathers() {
        let (_, share) = run(10, |_| (100, Duration::from_micros(160), 0.0));
        assert!(share < f64::EPSILON, "{share}");
    }
}
