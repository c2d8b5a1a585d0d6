//! Calls to managers' owners that have not been answered.
//!
//! A post may be lost, and so may the cell that it went to; a call of which nothing has been heard
//! for a while, or whose manager has another owner by now, is handed back to the state machine as
//! unanswered, which makes it again. Only the answer to the last ask of a call counts: the manager's
//! owner may yet carry out one that was sent after the ask that it refused.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::ids::{Epoch, ManagerId, OpNumber, VmId};
use cellbus_directory::Step;
use foldhash::fast::FixedState;

use crate::peers::AskNumber;

/// See the module.
#[derive(Default)]
pub(super) struct Calls {
    out: HashMap<VmId, Out, FixedState>,
    /// In the order sent; entries that were answered or heard of since are skipped.
    order: VecDeque<(Mono, VmId, OpNumber)>,
    /// How many asks were sent.
    asks: u64,
}

#[derive(Clone, Copy)]
struct Out {
    op: OpNumber,
    ask: AskNumber,
    step: Step,
    began: Mono,
    heard: Mono,
    manager: ManagerId,
    epoch: Epoch,
}

impl Calls {
    /// A call is sent to the owner of its manager under this epoch. Gives the number of the ask.
    pub(super) fn sent(
        &mut self,
        now: Mono,
        vm: VmId,
        op: OpNumber,
        step: Step,
        manager: ManagerId,
        epoch: Epoch,
    ) -> AskNumber {
        self.asks += 1;
        let ask = AskNumber(self.asks);
        self.out.insert(vm, Out { op, ask, step, began: now, heard: now, manager, epoch });
        self.order.push_back((now, vm, op));
        ask
    }
    /// It goes on.
    pub(super) fn heard(&mut self, now: Mono, vm: VmId, op: OpNumber) {
        if let Some(out) = self.out.get_mut(&vm)
            && out.op == op
        {
            out.heard = now;
            self.order.push_back((now, vm, op));
        }
    }
    /// An ask was answered: of which step, and when it was sent, if it was the last one of its call.
    pub(super) fn answered(&mut self, vm: VmId, op: OpNumber, ask: AskNumber) -> Option<(Step, Mono)> {
        let last = self.out.get(&vm).filter(|out| out.op == op && out.ask == ask).map(|out| (out.step, out.began));
        if last.is_some() {
            self.out.remove(&vm);
        }
        // What is over at the front is dropped as it comes, so that the order stays short.
        while let Some((at, vm, op)) = self.order.front().copied()
            && !self.current(at, vm, op)
        {
            self.order.pop_front();
        }
        last
    }
    fn current(&self, at: Mono, vm: VmId, op: OpNumber) -> bool {
        self.out.get(&vm).is_some_and(|out| out.op == op && out.heard == at)
    }
    /// Takes out those of which nothing was heard for so long.
    pub(super) fn silent(&mut self, now: Mono, silence: Duration) -> Vec<(VmId, OpNumber)> {
        let mut silent = Vec::new();
        while let Some((at, vm, op)) = self.order.front().copied() {
            if now.since(at) < silence {
                break;
            }
            self.order.pop_front();
            if self.current(at, vm, op) {
                self.out.remove(&vm);
                silent.push((vm, op));
            }
        }
        silent
    }
    /// Takes out those whose manager has another owner, or epoch, than when they were sent.
    pub(super) fn orphaned(&mut self, epoch_of: impl Fn(&ManagerId) -> Option<Epoch>) -> Vec<(VmId, OpNumber)> {
        let mut orphaned = Vec::new();
        for (at, vm, op) in std::mem::take(&mut self.order) {
            if !self.current(at, vm, op) {
                continue;
            }
            if self.out.get(&vm).is_some_and(|out| epoch_of(&out.manager) != Some(out.epoch)) {
                self.out.remove(&vm);
                orphaned.push((vm, op));
            } else {
                self.order.push_back((at, vm, op));
            }
        }
        orphaned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellbus_bus::ids::JobId;

    #[test]
    fn only_those_not_heard_of_are_silent() {
        let vm = |i: u32| JobId::derive("a", "b", "c").vm(i);
        let at = |s| Mono(Duration::from_secs(s));
        let (one, limit) = (OpNumber(1), Duration::from_secs(30));
        let manager = ManagerId::derive("vc-1");
        let mut calls = Calls::default();
        let asks: Vec<_> = (0..4).map(|i| calls.sent(at(0), vm(i), one, Step::Create, manager, Epoch(3))).collect();
        assert_eq!(calls.answered(vm(0), one, asks[0]), Some((Step::Create, at(0))));
        calls.heard(at(20), vm(1), one);
        assert_eq!(calls.answered(vm(2), OpNumber(7), asks[2]), None);
        assert_eq!(calls.orphaned(|_| Some(Epoch(3))), []);
        assert_eq!(calls.silent(at(29), limit), []);
        assert_eq!(calls.silent(at(30), limit), [(vm(2), one), (vm(3), one)]);
        assert_eq!(calls.silent(at(49), limit), []);
        assert_eq!(calls.orphaned(|_| Some(Epoch(4))), [(vm(1), one)]);
        assert_eq!(calls.silent(at(50), limit), []);
        assert!(calls.out.is_empty() && calls.order.is_empty());
    }

    #[test]
    fn only_the_answer_to_the_last_ask_counts() {
        let (vm, one) = (JobId::derive("a", "b", "c").vm(0), OpNumber(1));
        let (now, manager) = (Mono(Duration::ZERO), ManagerId::derive("vc-1"));
        let mut calls = Calls::default();
        let first = calls.sent(now, vm, one, Step::Create, manager, Epoch(3));
        let again = calls.sent(now, vm, one, Step::Create, manager, Epoch(3));
        assert!(again > first);
        assert_eq!(calls.answered(vm, one, first), None, "the second may yet be carried out");
        assert!(calls.answered(vm, one, again).is_some());
        assert_eq!(calls.answered(vm, one, again), None, "and once only");
    }
}
