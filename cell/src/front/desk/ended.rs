//! What has come of an operation, and what its caller is told.

use std::time::Duration;

use cellbus_bus::env::Mono;
use cellbus_bus::ids::VmId;
use cellbus_directory::{Failure, FailureCode, RefusalReason, VmFacts};
use cellbus_workflows::{Action, Answer, Later, LaterReason};

use super::super::hosts::Groups;
use super::super::limits::Kind;
use super::{Desk, HOSTS_TRIED_MAX};
use crate::driver::Error;

impl Desk {
    /// The call is answered, and its slot free.
    pub(super) fn finish(&mut self, vm: VmId, answer: Answer) {
        let Some(pending) = self.pending.remove(&vm) else { return };
        self.slots.give_back(Kind::of(&pending.asked.call.action));
        self.reply(&pending.from, &pending.asked, answer);
    }

    /// An operation has ended.
    pub(in crate::front) fn ended(
        &mut self,
        now: Mono,
        random: u64,
        ticket: u64,
        vm: VmId,
        result: Result<Option<VmFacts>, Error>,
    ) {
        let Some(pending) = self.pending.get_mut(&vm) else { return };
        if pending.running.as_ref().is_none_or(|running| running.ticket != ticket) {
            // It was given up on, and another try is under way.
            return;
        }
        let Some(running) = pending.running.take() else { return };
        let op = pending.asked.call.op;
        let action = pending.asked.call.action.clone();
        if let Some(extra) = running.extra {
            self.holdings.hosts.give_back(extra.place.host, extra.amount, &Groups::default());
            self.holdings.hosts.lift(extra.place.store, extra.gib, false);
        }
        // Of a try that was turned away before it came to the task of an earlier one, that task
        // hears nothing: it goes on.
        if !result.as_ref().is_err_and(turned_away) {
            self.adopted.remove(&vm);
            self.unread.remove(&vm);
        }
        match &result {
            Ok(_) => self.circuit.well(),
            Err(error) if error.ill() => {
                if self.circuit.ill(now, random, &error.to_string()) {
                    self.turn_away(now);
                }
            }
            Err(Error::Busy { .. } | Error::Revoked) => {}
            Err(_) => self.circuit.well(),
        }
        let answer = match result {
            Ok(Some(facts)) => {
                if let (Action::Relocate(_), Some(extra)) = (&action, running.extra) {
                    self.holdings.moved_to(&vm, extra.place.store);
                }
                let stood = matches!(action, Action::Adopt(_)) && self.holdings.get(&vm).is_none();
                self.holdings.facts(vm, &facts, op, stood);
                Answer::Present(facts)
            }
            Ok(None) => {
                self.holdings.forget(&vm);
                Answer::Absent
            }
            Err(error) => match self.failed(vm, &action, error, running.hosts_tried) {
                Some(answer) => answer,
                None => {
                    self.begin(now, vm, running.hosts_tried + 1);
                    return self.next_in_line(now);
                }
            },
        };
        self.finish(vm, answer);
        self.next_in_line(now);
    }

    /// What an error means to the caller; `None`: another host is tried.
    fn failed(&mut self, vm: VmId, action: &Action, error: Error, hosts_tried: u32) -> Option<Answer> {
        let creates = matches!(action, Action::Create(_));
        let later = |reason, detail: String, after| Some(Answer::Later(Later { reason, detail, after }));
        // An error that says that nothing was done says so of this try alone.
        let earlier = self.adopted.contains_key(&vm) || self.unread.contains(&vm);
        let doubted = earlier || self.holdings.get(&vm).is_some_and(|held| held.unknown);
        if doubted && turned_away(&error) {
            self.holdings.doubtful(&vm);
            let after = matches!(error, Error::Busy { .. }).then_some(Duration::from_millis(500));
            return later(LaterReason::ManagerFailing, error.to_string(), after);
        }
        // Reserved for a create, and not seen there: nothing is left of it.
        let give_up = |desk: &mut Self| {
            if creates && desk.holdings.get(&vm).is_some_and(|held| held.seen.is_none()) {
                desk.holdings.forget(&vm);
            }
        };
        match error {
            Error::Revoked => {
                self.revoked = true;
                self.holdings.doubtful(&vm);
                later(LaterReason::StaleOwner, "a newer owner has opened the manager".to_owned(), None)
            }
            Error::Unreachable { detail } => {
                self.holdings.doubtful(&vm);
                later(LaterReason::ManagerFailing, detail, None)
            }
            Error::Transient { detail } => {
                give_up(self);
                later(LaterReason::ManagerFailing, detail, None)
            }
            Error::Busy { detail } => {
                give_up(self);
                later(LaterReason::Busy, detail, Some(Duration::from_millis(500)))
            }
            Error::NoRoom { detail } => {
                if let Some(host) = self.holdings.get(&vm).and_then(|held| held.host)
                    && creates
                {
                    self.holdings.hosts.doubt(host);
                    self.outdated = true;
                }
                give_up(self);
                if creates && hosts_tried + 1 < HOSTS_TRIED_MAX {
                    return None;
                }
                Some(self.refused(RefusalReason::NoRoom, detail))
            }
            Error::NotFound => {
                self.holdings.forget(&vm);
                Some(Answer::Absent)
            }
            Error::Invalid { detail } => {
                give_up(self);
                // It may be in another state than we think.
                self.unsure.push(vm);
                let code = match action {
                    Action::Snapshot(_) => FailureCode::SnapshotExists,
                    Action::Revert(_) | Action::SnapshotDelete(_) => FailureCode::SnapshotNotFound,
                    Action::Relocate(_) => FailureCode::HostNotFound,
                    Action::Create(_)
                    | Action::Start
                    | Action::Stop(_)
                    | Action::Restart(_)
                    | Action::Suspend
                    | Action::Resume
                    | Action::Resize(_)
                    | Action::Delete
                    | Action::Inspect
                    | Action::Adopt(_) => FailureCode::ManagerRefused,
                };
                Some(Answer::Failed(Failure::lasting(code, detail)))
            }
            Error::Permanent { detail } => {
                // Something may have been done, by this try or an earlier one whose answer was
                // lost: what is undone next will tell, and where nothing is, reading it.
                self.holdings.doubtful(&vm);
                self.unsure.push(vm);
                Some(Answer::Failed(Failure::lasting(FailureCode::ManagerFailed, detail)))
            }
            Error::Superseded { asked, last } => {
                self.holdings.begun(&vm, last);
                later(LaterReason::StaleOwner, format!("operation {asked} is older than {last}"), None)
            }
        }
    }
}

/// Whether an error says no more than that this try came to nothing: what an earlier try of the
/// same operation began may still go on.
fn turned_away(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::Transient { .. } | Error::Busy { .. } => true,
        // In doubt, the manager's tasks were asked for before this was believed.
        Error::NoRoom { .. }
        | Error::Revoked
        | Error::NotFound
        | Error::Invalid { .. }
        | Error::Permanent { .. }
        | Error::Superseded { .. } => false,
    }
}
