//! Calls that must not begin now: what an operator has paused, and what is above the limit.

use std::time::Duration;

use cellbus_bus::env::Mono;
use cellbus_bus::ids::VmId;
use cellbus_directory::{RefusalReason, Step, StepKind};
use cellbus_workflows::{Action, Answer, Call, Later, LaterReason};

use super::{Desk, Kind, Pending};
use crate::front::asks::Asks;

/// When a call that came as its manager was handed over is made again, of the next owner.
const HANDED_OVER: Duration = Duration::from_millis(100);

/// When a call of a manager that is read-only is made again: an operator enables it once, and not soon.
const READ_ONLY: Duration = Duration::from_secs(2);

/// What it is answered. It has not begun.
pub(super) fn handed_over() -> Answer {
    let detail = "the manager is being handed over to another cell".to_owned();
    Answer::Later(Later { reason: LaterReason::NoOwner, detail, after: Some(HANDED_OVER) })
}

impl Desk {
    /// What a call is answered that must not begin, as an operator has paused it.
    pub(super) fn shut(&self, now: Mono, call: &Call) -> Option<Answer> {
        // Nothing was asked of the manager for it, and nothing of it is there: it may go elsewhere.
        let elsewhere = matches!(call.action, Action::Create(_))
            && !self.touched_before(call)
            && self.holdings.get(&call.vm).is_none();
        if self.read_only && call.step.kind() != StepKind::Reads {
            let why = "the manager is read-only: nothing is changed there until an operator enables it".to_owned();
            return Some(if elsewhere {
                self.refused(RefusalReason::Cordoned, why)
            } else {
                let (reason, after) = (LaterReason::Paused, Some(READ_ONLY));
                Answer::Later(Later { reason, detail: why, after })
            });
        }
        let why = self.gate.shut(now, call.step.kind())?;
        if self.gate.alone() && elsewhere {
            return Some(self.refused(RefusalReason::NotBegun, why.into_owned()));
        }
        let (reason, after) = (LaterReason::Paused, Some(Duration::from_secs(1)));
        Some(Answer::Later(Later { reason, detail: why.into_owned(), after }))
    }

    /// What a call is answered that must not begin yet, as too many that remove something have.
    pub(super) fn at_limit(&mut self, now: Mono, step: Step) -> Option<Answer> {
        if step.kind() != StepKind::Removes {
            return None;
        }
        let after = self.removals.wait(now)?;
        self.put_off += 1;
        let detail = "as many destructive operations have begun at the manager as may in a minute".to_owned();
        Some(Answer::Later(Later { reason: LaterReason::Limited, detail, after: Some(after) }))
    }

    /// Nothing begins any more: those in line are sent away.
    pub(in crate::front) fn close(&mut self) {
        self.closed = true;
        for kind in Kind::ALL {
            for vm in self.lines[kind as usize].drain() {
                if let Some(pending) = self.pending.remove(&vm) {
                    self.reply(&pending.from, &pending.asked, handed_over());
                }
            }
        }
    }

    /// The manager, which was only looked at, is about to be opened: whoever waits is sent away. Gives which asks
    /// were counted.
    pub(in crate::front) fn leave_off(&mut self) -> Asks {
        for (_, pending) in std::mem::take(&mut self.pending) {
            let detail = "the manager is being opened".to_owned();
            let later = Later { reason: LaterReason::Opening, detail, after: Some(HANDED_OVER) };
            self.reply(&pending.from, &pending.asked, Answer::Later(later));
        }
        let none = Asks::new(self.asks.slice_epoch());
        std::mem::replace(&mut self.asks, none)
    }

    /// Whether calls have begun and not ended.
    pub(in crate::front) fn under_way(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether nothing of ours is under way at the manager for certain, begun here or before.
    pub(in crate::front) fn idle(&self) -> bool {
        !self.under_way()
            && !self.revoked
            && self.adopted.is_empty()
            && self.unread.is_empty()
            && !self.holdings.doubts()
    }

    /// More or less is paused than before: those in line for what is paused now are sent away.
    pub(in crate::front) fn gate_changed(&mut self, now: Mono) {
        let shut = |(vm, pending): (&VmId, &Pending)| {
            let answer = pending.running.is_none().then(|| self.shut(now, &pending.asked.call)).flatten()?;
            Some((*vm, answer))
        };
        let shut: Vec<(VmId, Answer)> = self.pending.iter().filter_map(shut).collect();
        for (vm, answer) in shut {
            if let Some(pending) = self.pending.remove(&vm) {
                let line = &mut self.lines[Kind::of(&pending.asked.call.action) as usize];
                line.remove(pending.asked.call.shard, &vm);
                self.reply(&pending.from, &pending.asked, answer);
            }
        }
    }
}
