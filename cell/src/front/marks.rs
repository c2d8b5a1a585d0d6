//! When a mark is left at a manager: at first, and then now and again while something changes there. One
//! that comes back without the newest is older than it was, whoever owns it by then. Pure.

use std::time::Duration;

use cellbus_bus::env::Mono;

use crate::driver::Error;

/// Between two marks: what of a manager's loss is not noticed. Each is a task of the manager and a record
/// of its shard.
const EVERY: Duration = Duration::from_secs(5 * 60);
/// When one could not be left.
const AGAIN: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub(super) struct Marks {
    /// `None`: the manager takes none.
    next_at: Option<Mono>,
    /// One is being left.
    under_way: bool,
    /// Whether something was done there since the last.
    changed: bool,
}

impl Default for Marks {
    fn default() -> Self {
        // A new owner leaves one at once: the one before may have had no time for it.
        Self { next_at: Some(Mono::default()), under_way: false, changed: true }
    }
}

impl Marks {
    /// Whether one is to be left now; it is then taken to be under way.
    pub(super) fn due(&mut self, now: Mono) -> bool {
        let due = !self.under_way && self.changed && self.next_at.is_some_and(|at| at <= now);
        if due {
            (self.under_way, self.changed) = (true, false);
        }
        due
    }

    /// An operation was tried.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// What became of it; gives the mark that was left.
    pub(super) fn left(&mut self, now: Mono, result: Result<Option<u64>, Error>) -> Option<u64> {
        self.under_way = false;
        match result {
            Ok(mark) => {
                self.next_at = mark.map(|_| now.after(EVERY));
                mark
            }
            Err(_) => {
                (self.changed, self.next_at) = (true, Some(now.after(AGAIN)));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    #[test]
    fn one_is_left_at_first_and_then_only_after_changes() {
        let mut marks = Marks::default();
        assert!(marks.due(at(1)));
        assert!(!marks.due(at(1)), "it is under way");
        assert_eq!(marks.left(at(2), Ok(Some(7))), Some(7));
        assert!(!marks.due(at(100_000)), "nothing was done there");
        marks.changed();
        assert!(!marks.due(at(301)) && marks.due(at(302)));
        // What changes while it is left is not covered by it.
        marks.changed();
        assert_eq!(marks.left(at(303), Err(Error::Revoked)), None);
        assert!(!marks.due(at(304)) && marks.due(at(318)));
        assert_eq!(marks.left(at(319), Ok(None)), None);
        marks.changed();
        assert!(!marks.due(at(1_000_000)), "it takes none");
    }
}
