//! Copies of asks that come late: what they ask for may have been done elsewhere, or undone.

use super::*;

impl Test {
    /// A copy of an ask comes: it is not carried out, and its shard is told nothing that would send
    /// the workflow elsewhere.
    fn copy_is_not_taken(&mut self, asked: &Asked) {
        self.deliver(asked.clone());
        assert!(self.started().is_empty(), "a copy is carried out");
        assert_eq!(later(&self.answer()), LaterReason::StaleOwner);
    }
}

#[test]
fn a_copy_of_a_create_that_never_began_is_not_carried_out() {
    let mut t = Test::new(4);
    for i in 0..5 {
        t.call(i, 1, spec(1));
        let start = t.start();
        t.end(&start, Err(unreachable()));
    }
    t.answers();
    let asked = t.ask(1, 9, 1, spec(1));
    t.deliver(asked.clone());
    assert!(not_begun(&t.answer()), "it goes to another manager");
    t.desk.circuit.probe_succeeded();
    t.copy_is_not_taken(&asked);
    // Placed here once more by its shard, under the next number, it is.
    t.call(9, 2, spec(1));
    assert_eq!(t.start().op.number, OpNumber(2));
}

#[test]
fn a_copy_of_a_create_for_which_there_was_no_room_is_not_carried_out() {
    let mut t = Test::new(1);
    t.call(0, 1, spec(4));
    let first = t.start();
    t.succeed(&first);
    t.answer();
    let asked = t.ask(1, 1, 1, spec(4));
    t.deliver(asked.clone());
    assert!(matches!(t.answer(), Answer::Refused(_)));
    t.call(0, 2, Action::Delete);
    let delete = t.start();
    t.end(&delete, Ok(None));
    assert_eq!(t.answer(), Answer::Absent);
    t.copy_is_not_taken(&asked);
    assert_eq!(t.used(), 0);
}

#[test]
fn a_copy_of_a_create_whose_vm_was_deleted_since_is_not_carried_out() {
    let mut t = Test::new(1);
    let asked = t.ask(1, 0, 1, spec(1));
    t.deliver(asked.clone());
    let create = t.start();
    t.succeed(&create);
    t.call(0, 2, Action::Delete);
    let delete = t.start();
    t.end(&delete, Ok(None));
    t.answers();
    t.copy_is_not_taken(&asked);
}

#[test]
fn a_copy_of_what_was_put_off_is_not_carried_out() {
    let mut t = Test::new(10);
    (0..6).for_each(|i| t.call(i, 1, spec(1)));
    let starts = t.started();
    let asked = t.ask(1, 6, 1, spec(1));
    t.deliver(asked.clone());
    assert_eq!(later(&t.answer()), LaterReason::Busy, "the line is full: it may be given up now");
    starts.iter().for_each(|start| t.succeed(start));
    t.answers();
    t.started();
    t.copy_is_not_taken(&asked);
}

#[test]
fn a_copy_of_what_was_withdrawn_is_not_carried_out() {
    let mut t = Test::new(10);
    let first = t.ask(1, 0, 1, spec(1));
    t.withdraw(0, 1, spec(1));
    assert!(not_begun(&t.answer()));
    t.copy_is_not_taken(&first);
}

#[test]
fn a_copy_of_what_came_while_the_manager_was_opened_is_not_carried_out() {
    let mut t = Test::new(1);
    let asked = t.ask(1, 0, 1, spec(1));
    let opening = Later { reason: LaterReason::Opening, detail: "its owner is opening it".into(), after: None };
    assert_eq!(t.desk.asks.put_off(&asked, opening.clone()).answer, Answer::Later(opening.clone()));
    assert_eq!(later(&t.desk.asks.put_off(&asked, opening).answer), LaterReason::StaleOwner);
    t.copy_is_not_taken(&asked);
}

#[test]
fn an_ask_overtaken_on_its_way_is_asked_again() {
    let mut t = Test::new(1);
    let slow = t.ask(1, 0, 1, spec(1));
    t.call(1, 1, spec(1));
    t.start();
    t.copy_is_not_taken(&slow);
    // What its shard makes of that: it asks again.
    t.call(0, 1, spec(1));
    let start = t.start();
    t.succeed(&start);
    assert!(matches!(t.answer(), Answer::Present(_)));
}

#[test]
fn an_ask_of_another_owner_of_the_manager_is_not_taken() {
    let mut t = Test::new(1);
    for slice in [SLICE.0 - 1, SLICE.0 + 1] {
        let asked = Asked { slice_epoch: Epoch(slice), ..t.ask(1, 0, 1, spec(1)) };
        t.copy_is_not_taken(&asked);
    }
    t.call(0, 1, spec(1));
    t.start();
}

#[test]
fn a_new_owner_of_the_shard_numbers_its_asks_from_the_start() {
    let mut t = Test::new(1);
    let old = t.ask(1, 0, 1, spec(1));
    t.deliver(old.clone());
    let start = t.start();
    t.end(&start, Err(Error::Busy { detail: "busy".into() }));
    t.answer();
    let asked = Asked { number: AskNumber(1), ..t.ask(2, 0, 1, spec(1)) };
    t.deliver(asked);
    t.start();
    t.copy_is_not_taken(&old);
}

#[test]
fn whoever_asked_last_is_answered_by_the_number_of_that_ask() {
    let mut t = Test::new(1);
    t.call(0, 1, spec(1));
    let start = t.start();
    t.call(0, 1, spec(1));
    t.succeed(&start);
    let reply = t.desk.replies.pop().expect("an answer");
    assert_eq!((reply.answered.ask, reply.answered.shard_epoch), (AskNumber(2), Epoch(1)));
}
