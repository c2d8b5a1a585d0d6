//! Whether the committer lets requests gather before it commits, or commits what there is at once.
//!
//! A commit costs the processors about the same for one request as for a hundred: a flush, a wake-up
//! of the committer, and one round of each shard that is answered. Where they are the limit, a
//! committer that goes at once makes many small commits and takes from the work itself. Commits that
//! begin at least [`GATHER`] apart are fewer and larger: 53 us of processor a provision in place of
//! 67 with 1,000 in flight, 61 in place of 87 with 64,000 (`benches/provision.rs`, two cores). This
//! is PostgreSQL's `commit_delay`, and like that it is wrong where a few writers wait for each other:
//! they would only wait longer.
//!
//! So it is measured, not configured: while many requests come at once, gathering is tried for a
//! moment, kept if more requests a second were then committed, and given up if not.

use std::time::Duration;

use crate::env::Mono;

/// From the beginning of a commit to that of the next, at least. Five of these are in a job's way.
const GATHER: Duration = Duration::from_millis(2);
/// For so long requests are counted before anything is changed.
const WINDOW: Duration = Duration::from_millis(200);
/// Requests in each commit, on average, from which on gathering is tried. PostgreSQL's
/// `commit_siblings` is 5.
const CROWD: f64 = 4.0;
/// So much faster it must be to be kept: less is noise.
const FASTER: f64 = 1.05;
/// It is kept for so long; then it is seen anew how fast it is without.
const KEPT: Duration = Duration::from_secs(10);
/// Until the next try after one that did not help, doubled each time up to the longest.
const NEXT_TRY: Duration = Duration::from_secs(2);
const NEXT_TRY_LONGEST: Duration = Duration::from_secs(64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    AtOnce,
    /// Gathers, to see whether it helps.
    Trying,
    Gathering {
        until: Mono,
    },
}

/// Watches how fast requests are committed, and says how far commits are to be apart.
pub(super) struct Gather {
    mode: Mode,
    window: Mono,
    requests: u64,
    commits: u64,
    /// Requests a second at once, as last measured.
    at_once: f64,
    try_at: Mono,
    next_try: Duration,
}

impl Gather {
    pub(super) fn new(now: Mono) -> Self {
        Self { mode: Mode::AtOnce, window: now, requests: 0, commits: 0, at_once: 0.0, try_at: now, next_try: NEXT_TRY }
    }

    /// How long after the beginning of the last commit the next may begin.
    pub(super) fn apart(&self) -> Duration {
        match self.mode {
            Mode::AtOnce => Duration::ZERO,
            Mode::Trying | Mode::Gathering { .. } => GATHER,
        }
    }

    /// So many requests have been committed together.
    pub(super) fn committed(&mut self, now: Mono, requests: usize) {
        self.requests += requests as u64;
        self.commits += 1;
        let elapsed = now.since(self.window);
        if elapsed < WINDOW {
            return;
        }
        let rate = self.requests as f64 / elapsed.as_secs_f64();
        let crowd = self.requests as f64 / self.commits as f64;
        (self.window, self.requests, self.commits) = (now, 0, 0);
        self.mode = match self.mode {
            Mode::AtOnce if crowd >= CROWD && now >= self.try_at => {
                self.at_once = rate;
                Mode::Trying
            }
            Mode::AtOnce => Mode::AtOnce,
            Mode::Trying if rate > self.at_once * FASTER => {
                self.next_try = NEXT_TRY;
                Mode::Gathering { until: now.after(KEPT) }
            }
            Mode::Trying => {
                self.try_at = now.after(self.next_try);
                self.next_try = (self.next_try * 2).min(NEXT_TRY_LONGEST);
                Mode::AtOnce
            }
            Mode::Gathering { until } if crowd >= CROWD && now < until => self.mode,
            Mode::Gathering { .. } => {
                self.try_at = now;
                Mode::AtOnce
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits for so long; gives requests a second, and for which share of the time it gathered.
    /// `commit` says how many requests a commit has and how long it takes, begun so far apart.
    fn run(seconds: u64, mut commit: impl FnMut(Duration) -> (usize, Duration)) -> (f64, f64) {
        let (mut now, mut requests, mut gathered) = (Mono(Duration::ZERO), 0, Duration::ZERO);
        let mut gather = Gather::new(now);
        while now.0 < Duration::from_secs(seconds) {
            let apart = gather.apart();
            let (count, takes) = commit(apart);
            let takes = takes.max(apart);
            if !apart.is_zero() {
                gathered += takes;
            }
            now = now.after(takes);
            requests += count;
            gather.committed(now, count);
        }
        (requests as f64 / now.0.as_secs_f64(), gathered.as_secs_f64() / now.0.as_secs_f64())
    }

    /// Both processors are busy: a commit takes 60 us of them, a request 10.
    #[test]
    fn busy_processors_let_requests_gather() {
        let busy = |apart: Duration| {
            let takes = apart.max(Duration::from_micros(160));
            (((takes.as_micros() as usize) - 60) / 10, takes)
        };
        let (rate, share) = run(60, busy);
        assert!(share > 0.9, "{share}");
        assert!(rate > 90_000.0, "{rate}");
    }

    /// So many writers, each of which waits for its answer before it asks again.
    #[test]
    fn writers_that_wait_for_their_answers_are_not_slowed() {
        for writers in [1, 3, 8, 20] {
            let waiting = |_: Duration| (writers, Duration::from_micros(160));
            let (rate, share) = run(60, waiting);
            let at_best = writers as f64 / 160e-6;
            assert!(share < 0.03 && rate > at_best * 0.97, "{writers}: {rate} of {at_best}, {share}");
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
            (count, takes)
        };
        assert!(run(60, steady).1 < 0.03);
    }

    #[test]
    fn it_ends_with_the_load() {
        let mut commits = 0;
        let (_, share) = run(120, |apart| {
            commits += 1;
            match commits {
                0..1_000 if apart.is_zero() => (10, Duration::from_micros(160)),
                0..1_000 => (150, Duration::from_millis(2)),
                _ => (1, Duration::from_millis(10)),
            }
        });
        assert!(share < 0.05, "{share}");
    }
}
