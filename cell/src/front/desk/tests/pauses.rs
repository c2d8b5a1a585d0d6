//! What an operator has paused does not begin, is told so, and nothing that is under way is touched.

use super::*;
use crate::pauses::KNOWN_FOR;
use cellbus_directory::pause::{Paused, Scope};

const ALL: Scope = Scope { manager: None, paused: Paused::All };
const DESTRUCTIVE: Scope = Scope { manager: None, paused: Paused::Destructive };

impl Test {
    fn paused(&mut self, paused: &[Scope]) {
        self.desk.gate = Gate::at(ManagerId::derive("vc-1"), NOW, paused);
        self.desk.gate_changed(NOW);
    }
    fn step(&mut self, i: u32, op: u64, step: Step, action: Action) {
        let mut asked = self.ask(1, i, op, action);
        asked.call.step = step;
        self.deliver(asked);
    }
    fn is_told_that_it_is_paused(&mut self) {
        let answer = self.answer();
        assert_eq!(later(&answer), LaterReason::Paused, "{answer:?}");
        assert!(self.started().is_empty());
    }
}

#[test]
fn what_removes_something_waits_and_all_else_goes_on() {
    let mut t = Test::new(4);
    t.call(0, 1, spec(1));
    let start = t.start();
    t.succeed(&start);
    t.answers();
    t.paused(&[DESTRUCTIVE]);
    for (step, action) in [
        (Step::Delete, Action::Delete),
        (Step::UndoCreate, Action::Delete),
        (Step::Revert, Action::Revert("s".parse().unwrap())),
    ] {
        t.step(0, 2, step, action);
        t.is_told_that_it_is_paused();
    }
    t.step(0, 3, Step::Stop, Action::Stop(StopMode::Hard));
    let stop = t.start();
    t.succeed(&stop);
    t.answers();
    t.paused(&[]);
    t.step(0, 4, Step::Delete, Action::Delete);
    assert_eq!(t.start().op.number, OpNumber(4));
}

#[test]
fn knowledge_that_is_too_old_is_no_leave_to_remove() {
    let mut t = Test::new(4);
    let deliver = |t: &mut Test, at: Mono, op: u64, step, action| {
        let mut asked = t.ask(1, 7, op, action);
        asked.call.step = step;
        let peer = Arc::clone(&t.peer);
        t.desk.call(at, &peer, asked);
    };
    let late = Mono(NOW.0 + KNOWN_FOR + Duration::from_millis(1));
    deliver(&mut t, late, 1, Step::Delete, Action::Delete);
    t.is_told_that_it_is_paused();
    // What changes without removing goes by what was known last.
    deliver(&mut t, late, 2, Step::Create, spec(1));
    let start = t.start();
    t.succeed(&start);
    t.answers();
    deliver(&mut t, Mono(NOW.0 + KNOWN_FOR), 3, Step::Delete, Action::Delete);
    assert_eq!(t.start().op.number, OpNumber(3));
    // One that has never known begins nothing.
    let mut t = Test::new(4);
    t.desk.gate = Gate::new(ManagerId::derive("vc-1"));
    t.call(0, 1, spec(1));
    t.is_told_that_it_is_paused();
    t.step(0, 2, Step::Inspect, Action::Inspect);
    assert_eq!(t.start().op.action, Action::Inspect);
}

#[test]
fn those_in_line_are_sent_away_and_those_under_way_end() {
    let mut t = Test::new(4);
    // Two at once, the third in line.
    (0..3).for_each(|i| t.call(i, 1, spec(1)));
    let started = t.started();
    assert_eq!(started.len(), 2);
    t.paused(&[ALL]);
    t.is_told_that_it_is_paused();
    started.iter().for_each(|start| t.succeed(start));
    let answers = t.answers();
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Present(_))));
    // What knowledge grows too old for in line does not begin either.
    t.paused(&[]);
    (10..13).for_each(|i| t.call(i, 1, spec(1)));
    let started = t.started();
    let mut asked = t.ask(1, 0, 2, Action::Snapshot("s".parse().unwrap()));
    asked.call.step = Step::Snapshot;
    t.deliver(asked);
    t.started();
    assert_eq!(started.len(), 2);
}

#[test]
fn a_new_vm_goes_elsewhere_only_if_others_go_on_and_a_paused_call_can_be_withdrawn() {
    let mut t = Test::new(4);
    t.paused(&[Scope { manager: Some(ManagerId::derive("vc-1")), paused: Paused::All }]);
    t.call(0, 1, spec(1));
    assert!(not_begun(&t.answer()));
    t.paused(&[Scope { manager: Some(ManagerId::derive("vc-2")), paused: Paused::All }]);
    t.call(1, 1, spec(1));
    t.start();
    t.paused(&[ALL, Scope { manager: Some(ManagerId::derive("vc-1")), paused: Paused::All }]);
    t.call(2, 1, spec(1));
    t.is_told_that_it_is_paused();
    t.withdraw(2, 1, spec(1));
    assert!(not_begun(&t.answer()));
}

#[test]
fn at_a_manager_that_is_read_only_nothing_begins_that_changes_something() {
    let mut t = Test::new(4);
    t.call(0, 1, spec(1));
    let start = t.start();
    t.succeed(&start);
    // Two at once, the third in line.
    (1..4).for_each(|i| t.call(i, 1, spec(1)));
    let under_way = t.started();
    t.answers();
    t.desk.read_only = true;
    t.desk.gate_changed(NOW);
    let cordoned =
        |answer: &Answer| matches!(answer, Answer::Refused(refusal) if refusal.reason == RefusalReason::Cordoned);
    assert!(cordoned(&t.answer()), "the one in line goes elsewhere");
    under_way.iter().for_each(|start| t.succeed(start));
    assert!(t.answers().iter().all(|answer| matches!(answer, Answer::Present(_))), "what is under way ends");
    t.call(5, 1, spec(1));
    assert!(cordoned(&t.answer()), "and so does a new one");
    // One that is there already must not be made anywhere else.
    t.call(0, 2, spec(1));
    t.is_told_that_it_is_paused();
    for (op, step, action) in [
        (3, Step::Stop, Action::Stop(StopMode::Hard)),
        (4, Step::Delete, Action::Delete),
        (5, Step::DropSource, Action::Delete),
    ] {
        t.step(0, op, step, action);
        t.is_told_that_it_is_paused();
    }
    t.step(0, 6, Step::Inspect, Action::Inspect);
    let inspect = t.start();
    t.succeed(&inspect);
    t.answers();
    t.desk.read_only = false;
    t.desk.gate_changed(NOW);
    t.step(0, 7, Step::Stop, Action::Stop(StopMode::Hard));
    t.start();
}

#[test]
fn a_vm_that_is_there_is_not_made_elsewhere_while_its_manager_is_paused() {
    let mut t = Test::new(4);
    t.call(0, 1, spec(1));
    let start = t.start();
    t.succeed(&start);
    t.answers();
    t.paused(&[Scope { manager: Some(ManagerId::derive("vc-1")), paused: Paused::All }]);
    t.call(0, 2, spec(1));
    t.is_told_that_it_is_paused();
}
