//! The changes of one manager that its owner has not heard of yet: a bounded ring with numbers, so
//! that a reader that lost an answer asks again from where it was.

use std::collections::VecDeque;

use cellbus_cell::driver::Change;

/// Enough for a second of a busy manager; a reader that is further behind reads the inventory again.
const KEPT_MAX: usize = 4_096;

/// How far a reader has heard.
pub(super) type Cursor = u64;

pub(super) struct Changes {
    kept: VecDeque<Change>,
    /// The number of the oldest one kept.
    first: Cursor,
}

impl Changes {
    /// `origin` differs from run to run, so that a cursor of an earlier run is seen to be one.
    pub(super) fn new(origin: u32) -> Self {
        Self { kept: VecDeque::new(), first: u64::from(origin) << 31 }
    }

    /// Where a reader begins that has just read the inventory.
    pub(super) fn end(&self) -> Cursor {
        self.first + self.kept.len() as u64
    }

    pub(super) fn push(&mut self, change: Change) {
        if self.kept.back() == Some(&change) && change == Change::Hosts {
            return;
        }
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
            self.first += 1;
        }
        self.kept.push_back(change);
    }

    /// What was kept is gone, and every reader is told that it missed something.
    pub(super) fn forget(&mut self) {
        self.first = self.end() + 1;
        self.kept.clear();
    }

    /// What came after `cursor`, and the cursor behind it. Forgets what came before it.
    pub(super) fn after(&mut self, cursor: Cursor) -> (Vec<Change>, Cursor) {
        let end = self.end();
        if !(self.first..=end).contains(&cursor) {
            return (vec![Change::Missed], end);
        }
        while self.first < cursor {
            self.kept.pop_front();
            self.first += 1;
        }
        (self.kept.iter().cloned().collect(), end)
    }
}

#[cfg(test)]
mod tests {
    use cellbus_bus::ids::JobId;

    use super::*;

    fn change(index: u32) -> Change {
        Change::Vm(JobId::derive("t", "s", "e").vm(index))
    }

    #[test]
    fn changes_are_kept_until_the_reader_has_gone_on() {
        let mut changes = Changes::new(3);
        let start = changes.end();
        changes.push(change(1));
        changes.push(change(2));
        let (heard, next) = changes.after(start);
        assert_eq!(heard, [change(1), change(2)]);
        assert_eq!(changes.after(start).0, heard, "an answer that was lost is given again");
        assert!(changes.after(next).0.is_empty());
        assert_eq!(changes.after(start).0, [Change::Missed], "the reader said that it has them");
    }

    #[test]
    fn a_reader_too_far_behind_is_told() {
        let mut changes = Changes::new(0);
        for index in 0..=u32::try_from(KEPT_MAX).unwrap() {
            changes.push(change(index));
        }
        let (heard, next) = changes.after(0);
        assert_eq!(heard, [Change::Missed]);
        assert!(changes.after(next).0.is_empty());
    }
}
