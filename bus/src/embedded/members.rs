//! Members: cells of this one process, so they are kept in memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::contract::Member;
use crate::env::Mono;
use crate::ids::CellId;

/// Who lives, and until when unless it beats again.
#[derive(Default)]
pub(super) struct Members {
    by_cell: Mutex<BTreeMap<CellId, (Member, Mono)>>,
}

impl Members {
    pub(super) fn beat(&self, member: Member, now: Mono, ttl: Duration) {
        let mut by_cell = self.by_cell.lock().unwrap_or_else(PoisonError::into_inner);
        by_cell.insert(member.cell.clone(), (member, now.after(ttl)));
    }
    pub(super) fn leave(&self, cell: &CellId) {
        self.by_cell.lock().unwrap_or_else(PoisonError::into_inner).remove(cell);
    }
    /// By cell id. Forgets the dead.
    pub(super) fn live(&self, now: Mono) -> Vec<Member> {
        let mut by_cell = self.by_cell.lock().unwrap_or_else(PoisonError::into_inner);
        by_cell.retain(|_, (_, until)| *until > now);
        by_cell.values().map(|(member, _)| member.clone()).collect()
    }
}
