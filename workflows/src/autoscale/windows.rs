//! What was wanted of late: a change must have been wanted for a while.

use std::collections::VecDeque;
use std::time::Duration;

use cellbus_bus::Mono;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    out: Duration,
    r#in: Duration,
    /// When, and how many, oldest first; those that none of both windows reaches are dropped.
    wanted: VecDeque<(Mono, u32)>,
}

impl Windows {
    pub(super) fn new(out: Duration, r#in: Duration) -> Self {
        Self { out, r#in, wanted: VecDeque::new() }
    }
    /// What was wanted says nothing any more.
    pub(super) fn clear(&mut self) {
        self.wanted.clear();
    }
    pub(super) fn push(&mut self, now: Mono, wanted: u32) {
        self.wanted.push_back((now, wanted));
        let reach = self.out.max(self.r#in);
        // The last one beyond the reach stays: it says that the window is covered.
        while self.wanted.get(1).is_some_and(|(at, _)| now.since(*at) >= reach) {
            self.wanted.pop_front();
        }
    }
    fn within(&self, now: Mono, window: Duration) -> Option<impl Iterator<Item = u32> + '_> {
        let covered = self.wanted.front().is_some_and(|(at, _)| now.since(*at) >= window);
        covered.then(|| self.wanted.iter().filter(move |(at, _)| now.since(*at) <= window).map(|(_, wanted)| *wanted))
    }
    /// The least that was wanted within the window for more; `None` while it is not covered.
    pub(super) fn out(&self, now: Mono) -> Option<u32> {
        self.within(now, self.out)?.min()
    }
    /// The most that was wanted within the window for fewer; `None` while it is not covered.
    pub(super) fn r#in(&self, now: Mono) -> Option<u32> {
        self.within(now, self.r#in)?.max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_of_a_window_that_is_not_covered() {
        let at = |s| Mono(Duration::from_secs(s));
        let mut windows = Windows::new(Duration::from_secs(3), Duration::from_secs(60));
        for (s, wanted) in [(0, 9), (1, 7), (2, 8)] {
            windows.push(at(s), wanted);
            assert_eq!((windows.out(at(s)), windows.r#in(at(s))), (None, None));
        }
        windows.push(at(3), 5);
        assert_eq!(windows.out(at(3)), Some(5));
        (4..=60).for_each(|s| windows.push(at(s), 2));
        assert_eq!(windows.r#in(at(60)), Some(9));
        (61..=63).for_each(|s| windows.push(at(s), 2));
        assert_eq!(windows.r#in(at(63)), Some(5));
        (64..=70).for_each(|s| windows.push(at(s), 2));
        assert_eq!(windows.r#in(at(70)), Some(2));
        assert!(windows.wanted.len() <= 62);
    }
}
