use super::*;

fn handed_over(answer: &Answer) -> bool {
    matches!(answer, Answer::Later(Later { reason: LaterReason::NoOwner, after: Some(_), .. }))
}

#[test]
fn one_that_is_handed_over_finishes_what_it_has_begun_and_begins_nothing() {
    let mut t = Test::new(4);
    (0..3).for_each(|i| t.call(i, 1, spec(1)));
    let starts = t.started();
    assert_eq!(starts.len(), 2, "two creates at once");
    t.desk.close();
    assert!(handed_over(&t.answer()), "what stood in line goes to the next owner");
    t.call(3, 1, spec(1));
    assert!(handed_over(&t.answer()) && t.started().is_empty());
    // What is under way may be asked for again: its answer is on its way.
    t.call_under(2, 0, 1, spec(1));
    assert_eq!(t.answers(), []);
    assert!(t.desk.under_way() && !t.desk.idle());
    starts.iter().for_each(|start| t.succeed(start));
    assert!(t.answers().iter().all(|answer| matches!(answer, Answer::Present(_))));
    assert!(t.desk.idle() && t.started().is_empty());
    // It was not handed over after all.
    t.desk.closed = false;
    t.call_under(2, 3, 1, spec(1));
    t.start();
}

#[test]
fn one_with_a_call_of_unknown_outcome_is_not_idle() {
    let mut t = Test::new(1);
    t.call(0, 1, spec(1));
    let start = t.start();
    t.desk.close();
    t.end(&start, Err(Error::Unreachable { detail: "no answer".into() }));
    assert!(!t.desk.under_way() && !t.desk.idle(), "it may be made yet");
    let task = RunningTask { vm: vm(9), number: OpNumber(1), host: None };
    assert!(!Test::with(1, vec![task]).desk.idle(), "a task of an older session");
    assert!(Test::new(1).desk.idle());
}
