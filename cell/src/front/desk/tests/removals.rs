//! More that removes something than may begin in a time waits, and holds up nothing else.

use super::*;

impl Test {
    fn limited(hosts: u32, per_minute: f64) -> Self {
        let mut test = Self::new(hosts);
        test.desk.removals = Removals::new(Some(per_minute));
        test
    }
    fn delete_at(&mut self, at: Mono, i: u32, op: u64) {
        let mut asked = self.ask(1, i, op, Action::Delete);
        asked.call.step = Step::Delete;
        let peer = Arc::clone(&self.peer);
        self.desk.call(at, &peer, asked);
    }
}

#[test]
fn deletes_beyond_the_limit_are_put_off_and_come_when_there_is_room_again() {
    let mut t = Test::limited(8, 60.0);
    t.delete_at(NOW, 0, 1);
    assert_eq!(t.start().op.action, Action::Delete);
    for i in 1..3 {
        t.delete_at(NOW, i, 1);
        match t.answer() {
            Answer::Later(later) => {
                assert_eq!((later.reason, later.after), (LaterReason::Limited, Some(Duration::from_secs(i.into()))));
            }
            other => panic!("{other:?}"),
        }
    }
    // What removes nothing is not held up, and does not count.
    t.call(7, 1, spec(1));
    assert_eq!(t.started().len(), 1);
    t.delete_at(Mono(NOW.0 + Duration::from_secs(1)), 1, 2);
    assert_eq!(t.start().op.number, OpNumber(2));
    assert_eq!((t.desk.removed, t.desk.put_off), (2, 2));
}

#[test]
fn the_limit_holds_for_those_that_stood_in_line_too() {
    let mut t = Test::limited(8, 600.0);
    // All eight slots are taken.
    for i in 0..8 {
        let mut asked = t.ask(1, i, 1, Action::Start);
        asked.call.step = Step::Start;
        t.deliver(asked);
    }
    let started = t.started();
    assert_eq!(started.len(), 8);
    t.delete_at(NOW, 10, 1);
    t.delete_at(NOW, 11, 1);
    assert!(t.answers().is_empty(), "both stand in line, as one may begin now");
    started.iter().for_each(|start| t.end(start, Ok(None)));
    assert_eq!(t.started().len(), 1);
    let later_ones = t.answers().iter().filter(|answer| matches!(answer, Answer::Later(_))).count();
    assert_eq!(later_ones, 1);
}
