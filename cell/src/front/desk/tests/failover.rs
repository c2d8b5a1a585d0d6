//! A VM is brought to another host only while the manager is certain that its own runs it no more.

use super::*;

impl Test {
    /// Whether its manager lets `h0` take VMs.
    fn usable(&mut self, usable: bool) {
        let nth = |i: u32| Host { usable: usable || i > 0, ..host(&format!("h{i}")) };
        let now = self.desk.holdings.now();
        let vms = vec![held(0, "h0")];
        self.desk.reread(&Inventory { hosts: (0..3).map(nth).collect(), vms, ..Inventory::default() }, now);
    }
    fn dead(&mut self, hosts: &[&str]) {
        self.desk.dead = hosts.iter().map(|host| host.parse().unwrap()).collect();
    }
    fn failover(&mut self, op: u64) {
        let mut asked = self.ask(1, 0, op, Action::Relocate("h2".parse().unwrap()));
        asked.call.step = Step::Failover;
        self.deliver(asked);
    }
}

#[test]
fn a_host_that_may_run_it_is_not_left_for_another() {
    let mut t = Test::new(3);
    t.usable(true);
    // Well; without an answer; said to be dead, and well; another one dead.
    for (op, usable, dead) in [(2, true, &[][..]), (3, false, &[]), (4, true, &["h0"]), (5, false, &["h1"])] {
        t.usable(usable);
        t.dead(dead);
        t.failover(op);
        assert!(not_begun(&t.answer()), "{usable} {dead:?}");
        assert!(t.started().is_empty());
    }
    t.usable(false);
    t.dead(&["h0"]);
    t.failover(6);
    let start = t.start();
    assert_eq!((start.op.number, start.op.host), (OpNumber(6), Some("h2".parse().unwrap())));
}

#[test]
fn what_came_of_a_try_without_an_answer_only_the_manager_can_say() {
    let mut t = Test::new(3);
    t.usable(false);
    t.dead(&["h0"]);
    t.failover(2);
    let start = t.start();
    t.end(&start, Err(Error::Unreachable { detail: "gone".into() }));
    t.answers();
    // It may have been brought over: then its host is another, and its own may be back.
    t.dead(&[]);
    t.failover(2);
    assert_eq!(t.start().op.number, OpNumber(2));
    // Another operation without an answer is no reason.
    let mut t = Test::new(3);
    t.usable(false);
    let mut asked = t.ask(1, 0, 2, Action::Stop(StopMode::Hard));
    asked.call.step = Step::Stop;
    t.deliver(asked);
    let start = t.start();
    t.end(&start, Err(Error::Unreachable { detail: "gone".into() }));
    t.answers();
    t.failover(3);
    assert!(not_begun(&t.answer()));
}
