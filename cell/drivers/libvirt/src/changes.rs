//! What happened on the hosts and was not told yet: a bounded ring, from which each session reads on
//! where it was.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use cellbus_cell::driver::Change;
use tokio::sync::Notify;

/// Enough for a second of busy hosts; a session that is further behind reads the inventory again.
const KEPT_MAX: usize = 4_096;

#[derive(Default)]
pub(crate) struct Changes {
    kept: Mutex<Kept>,
    /// Something was pushed, or a session ended.
    pub(crate) stirred: Notify,
}

#[derive(Default)]
struct Kept {
    changes: VecDeque<Change>,
    /// The number of the oldest one kept.
    first: u64,
}

impl Changes {
    pub(crate) fn push(&self, change: Change) {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.changes.back() == Some(&change) && change == Change::Hosts {
                return;
            }
            if kept.changes.len() == KEPT_MAX {
                kept.changes.pop_front();
                kept.first += 1;
            }
            kept.changes.push_back(change);
        }
        self.stirred.notify_waiters();
    }
    /// Where a session begins that reads the inventory next.
    pub(crate) fn end(&self) -> u64 {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.first + kept.changes.len() as u64
    }
    /// What came after `cursor`, and the cursor behind it.
    pub(crate) fn after(&self, cursor: u64) -> (Vec<Change>, u64) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let end = kept.first + kept.changes.len() as u64;
        if cursor < kept.first {
            return (vec![Change::Missed], end);
        }
        let skip = usize::try_from(cursor - kept.first).unwrap_or(usize::MAX);
        (kept.changes.iter().skip(skip).cloned().collect(), end)
    }
}

#[cfg(test)]
mod tests {
    use cellbus_bus::ids::JobId;

    use super::*;

    #[test]
    fn a_session_too_far_behind_is_told() {
        let changes = Changes::default();
        let start = changes.end();
        for index in 0..=u32::try_from(KEPT_MAX).unwrap() {
            changes.push(Change::Vm(JobId::derive("t", "s", "e").vm(index)));
            if index == 1 {
                assert_eq!(changes.after(start).0.len(), 2);
            }
        }
        let (heard, next) = changes.after(start);
        assert_eq!(heard, [Change::Missed]);
        assert!(changes.after(next).0.is_empty());
    }
}
