use super::*;
use crate::driver::Host;
use crate::front::circuit::Config as CircuitConfig;
use crate::front::hosts::OverCommit;
use crate::peers::AskNumber;
use cellbus_bus::ids::{Epoch, ShardCount};
use cellbus_bus::job::{Labels, Policy, Power, Size, StopMode};
use cellbus_directory::VmFacts;
use cellbus_directory::vm::{PowerState, Template};
use cellbus_directory::work::Step;
use cellbus_workflows::CreateSpec;

mod copies;
mod failover;
mod handed_over;
mod late;
mod pauses;
mod removals;
mod storage;

const NOW: Mono = Mono(Duration::from_secs(100));

fn name() -> ManagerName {
    "vc-1".parse().unwrap()
}
fn vm(i: u32) -> VmId {
    JobId::derive("acme", "/test", "desk").vm(i)
}
fn size(vcpus: u32) -> Size {
    Size { vcpus, memory_mib: 1024, disk_gib: 10 }
}
fn held(i: u32, host: &str) -> HeldVm {
    HeldVm {
        id: vm(i),
        facts: VmFacts { host: host.parse().unwrap(), power: PowerState::Running, size: size(1), snapshots: vec![] },
        tenant: "acme".parse().unwrap(),
        name: "web".parse().unwrap(),
        op: OpNumber(1),
        affinity: None,
        anti_affinity: None,
        datastore: None,
    }
}
fn host(name: &str) -> Host {
    Host {
        id: name.parse().unwrap(),
        vcpus: 4,
        memory_mib: 1 << 20,
        disk_gib: 1 << 20,
        labels: Labels::new(),
        usable: true,
    }
}

fn spec(vcpus: u32) -> Action {
    Action::Create(Arc::new(CreateSpec {
        tenant: "acme".parse().unwrap(),
        name: "web".parse().unwrap(),
        size: size(vcpus),
        template: Arc::new(Template {
            image: "x".into(),
            labels: Labels::new(),
            require: Labels::new(),
            policy: Policy::default(),
        }),
        power: Power::On,
        host: None,
        snapshots: Vec::new(),
        copy_of: None,
    }))
}

/// That of the front.
const SLICE: Epoch = Epoch(7);

struct Test {
    desk: Desk,
    asked: u64,
    peer: Arc<Peer>,
}

impl Test {
    /// Hosts of four vCPUs; two creates at once, eight operations in all, four in line.
    fn new(hosts: u32) -> Self {
        Self::with(hosts, Vec::new())
    }
    fn with(hosts: u32, tasks: Vec<RunningTask>) -> Self {
        let hosts = (0..hosts).map(|i| host(&format!("h{i}")));
        let inventory = Inventory { hosts: hosts.collect(), ..Inventory::default() };
        let limits = driver::Limits {
            operations_max: 8,
            creates_max: 2,
            relocations_max: 2,
            power_max: 8,
            snapshots_max: 2,
            revokes: true,
        };
        let holdings = Holdings::new(name(), OverCommit::default(), Vec::new(), &inventory);
        let circuit = Circuit::new(CircuitConfig::default());
        let removals = Removals::new(None);
        let mut desk = Desk::new(&name(), holdings, circuit, limits, removals, 4, tasks, Asks::new(SLICE));
        desk.gate = Gate::at(ManagerId::derive("vc-1"), NOW, &[]);
        let peer = Arc::new(Peer { cell: "cell-1".parse().unwrap(), address: "local:cell-1".into() });
        Self { desk, asked: 0, peer }
    }
    fn call(&mut self, i: u32, op: u64, action: Action) {
        self.call_under(1, i, op, action);
    }
    fn call_under(&mut self, epoch: u64, i: u32, op: u64, action: Action) {
        let asked = self.ask(epoch, i, op, action);
        self.deliver(asked);
    }
    fn withdraw(&mut self, i: u32, op: u64, action: Action) {
        let mut asked = self.ask(1, i, op, action);
        asked.call.withdraw = true;
        self.deliver(asked);
    }
    /// What the shard sends: each time another number.
    fn ask(&mut self, epoch: u64, i: u32, op: u64, action: Action) -> Asked {
        self.asked += 1;
        let call = Call {
            manager: ManagerId::derive("vc-1"),
            shard: ShardId::new(3, ShardCount::DEFAULT).unwrap(),
            shard_epoch: Epoch(epoch),
            vm: vm(i),
            job: JobId::derive("acme", "/test", "desk"),
            op: OpNumber(op),
            step: Step::Create,
            action,
            withdraw: false,
        };
        Asked { call, slice_epoch: SLICE, number: AskNumber(self.asked) }
    }
    fn deliver(&mut self, asked: Asked) {
        let peer = Arc::clone(&self.peer);
        self.desk.call(NOW, &peer, asked);
    }
    fn started(&mut self) -> Vec<Start> {
        std::mem::take(&mut self.desk.starts)
    }
    fn start(&mut self) -> Start {
        let mut starts = self.started();
        assert_eq!(starts.len(), 1, "{starts:?} {:?}", self.desk.replies);
        starts.remove(0)
    }
    fn end(&mut self, start: &Start, result: Result<Option<VmFacts>, Error>) {
        self.desk.ended(NOW, 0, start.ticket, start.op.vm, result);
    }
    fn succeed(&mut self, start: &Start) {
        self.end(start, Ok(Some(facts(start))));
    }
    fn answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.desk.replies).into_iter().map(|reply| reply.answered.answer).collect()
    }
    fn answer(&mut self) -> Answer {
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }
    fn used(&self) -> u64 {
        self.desk.holdings.hosts.all().iter().map(|host| host.used.vcpus).sum()
    }
}

fn facts(start: &Start) -> VmFacts {
    let host = start.op.host.clone().unwrap_or_else(|| "h0".parse().unwrap());
    let size = match &start.op.action {
        Action::Create(spec) => spec.size,
        Action::Resize(size) => *size,
        _ => size(1),
    };
    VmFacts { host, power: PowerState::Running, size, snapshots: vec![] }
}
fn later(answer: &Answer) -> LaterReason {
    match answer {
        Answer::Later(later) => later.reason,
        other => panic!("{other:?}"),
    }
}
fn not_begun(answer: &Answer) -> bool {
    matches!(answer, Answer::Refused(refusal) if refusal.reason == RefusalReason::NotBegun)
}
fn unreachable() -> Error {
    Error::Unreachable { detail: "no answer".into() }
}

#[test]
fn a_create_is_placed_reserved_and_answered() {
    let mut t = Test::new(2);
    t.call(0, 1, spec(3));
    let start = t.start();
    assert_eq!(t.used(), 3, "reserved at choice");
    t.succeed(&start);
    assert!(matches!(t.answer(), Answer::Present(_)));
    t.call(1, 1, spec(3));
    assert_ne!(t.start().op.host, start.op.host);
    t.call(2, 1, spec(3));
    let Answer::Refused(refusal) = t.answer() else { panic!() };
    assert_eq!(refusal.reason, RefusalReason::NoRoom);
    assert_eq!(t.desk.slots.total(), 1, "a refusal gives its slot back");
}

#[test]
fn the_same_number_joins_and_a_lower_one_is_refused() {
    let mut t = Test::new(1);
    t.call(0, 5, spec(1));
    let start = t.start();
    t.call(0, 5, spec(1));
    assert!(t.started().is_empty() && t.answers().is_empty(), "it joins");
    t.call(0, 4, Action::Start);
    assert_eq!(later(&t.answer()), LaterReason::StaleOwner);
    t.call(0, 6, Action::Start);
    assert_eq!(later(&t.answer()), LaterReason::VmBusy);
    t.succeed(&start);
    assert!(matches!(t.answer(), Answer::Present(_)), "one answer, to whoever asked last");
    t.call(0, 4, Action::Start);
    assert_eq!(later(&t.answer()), LaterReason::StaleOwner);
    t.call(0, 5, spec(1));
    let again = t.start();
    assert_eq!(again.op.host, start.op.host, "asked again, it is the same host");
    t.succeed(&again);
    assert_eq!(t.used(), 1);
}

#[test]
fn an_older_epoch_of_the_shard_is_refused() {
    let mut t = Test::new(1);
    t.call_under(2, 0, 1, spec(1));
    let start = t.start();
    t.call_under(1, 1, 1, spec(1));
    assert_eq!(later(&t.answer()), LaterReason::StaleOwner);
    assert!(t.started().is_empty());
    t.call_under(3, 0, 1, spec(1));
    t.succeed(&start);
    assert!(matches!(t.answer(), Answer::Present(_)));
}

#[test]
fn after_no_answer_the_same_host_is_asked_again_and_nothing_is_refused() {
    let mut t = Test::new(3);
    t.call(0, 1, spec(4));
    let first = t.start();
    t.end(&first, Err(unreachable()));
    assert_eq!(later(&t.answer()), LaterReason::ManagerFailing);
    assert_eq!(t.used(), 4, "it may be there");
    t.call(0, 1, spec(4));
    let second = t.start();
    assert_eq!(second.op.host, first.op.host);
    // A late answer to the first try is not an answer to the second.
    t.end(&first, Ok(None));
    assert!(t.answers().is_empty());
    // That there is no room there is definite: another host, and the room is given back.
    t.end(&second, Err(Error::NoRoom { detail: "full".into() }));
    let third = t.start();
    assert_ne!(third.op.host, first.op.host);
    assert_eq!(t.used(), 4);
    t.succeed(&third);
    assert!(matches!(t.answer(), Answer::Present(_)));
}

#[test]
fn hosts_that_say_they_are_full_are_not_asked_for_ever() {
    let mut t = Test::new(10);
    t.call(0, 1, spec(1));
    let mut tried = std::collections::BTreeSet::new();
    while let Some(start) = t.started().pop() {
        assert!(tried.insert(start.op.host.clone()), "each host once");
        t.end(&start, Err(Error::NoRoom { detail: "full".into() }));
    }
    assert_eq!(tried.len(), HOSTS_TRIED_MAX as usize);
    assert!(matches!(t.answer(), Answer::Refused(_)));
    assert_eq!(t.used(), 0);
    assert_eq!(t.desk.slots.total(), 0);
}

#[test]
fn an_open_circuit_says_so_only_of_what_was_never_begun() {
    let mut t = Test::new(4);
    for i in 0..5 {
        t.call(i, 1, spec(1));
        let start = t.start();
        t.end(&start, Err(unreachable()));
    }
    assert_eq!(t.answers().len(), 5);
    t.call(9, 1, spec(1));
    assert!(not_begun(&t.answer()), "its caller may go elsewhere");
    t.call(9, 1, Action::Start);
    assert_eq!(later(&t.answer()), LaterReason::CircuitOpen);
    t.call(0, 1, spec(1));
    assert_eq!(later(&t.answer()), LaterReason::ManagerFailing, "its caller must stay");
    assert!(t.started().is_empty());
}

#[test]
fn what_waits_in_line_goes_in_turn_and_is_sent_away_when_the_circuit_opens() {
    let mut t = Test::new(10);
    (0..7).for_each(|i| t.call(i, 1, spec(1)));
    let starts = t.started();
    assert_eq!(starts.len(), 2, "two creates at once");
    assert_eq!(later(&t.answer()), LaterReason::Busy, "four wait, and the line is full");
    t.succeed(&starts[0]);
    assert!(matches!(t.answer(), Answer::Present(_)));
    assert_eq!(t.start().op.vm, vm(2));
    // An operation of another kind does not wait behind creates.
    t.call(0, 2, Action::Stop(StopMode::Hard));
    assert_eq!(t.start().op.action, Action::Stop(StopMode::Hard));
    let mut answers = Vec::new();
    for i in 20..25 {
        t.call(i, 1, Action::Start);
        let start = t.started().pop().unwrap();
        t.end(&start, Err(unreachable()));
        answers.extend(t.answers());
    }
    let sent_away = answers.iter().filter(|answer| not_begun(answer)).count();
    assert_eq!(sent_away, 3, "those in line were never begun");
}

#[test]
fn what_is_not_wanted_any_more_and_has_not_begun_never_begins() {
    let mut t = Test::new(4);
    t.call(1, 1, spec(1));
    let made = t.start();
    t.succeed(&made);
    for i in 10..15 {
        t.call(i, 1, spec(1));
        let start = t.start();
        t.end(&start, Err(unreachable()));
    }
    t.answers();
    // Not begun: refused, though the manager's circuit is open.
    t.withdraw(1, 2, Action::Stop(StopMode::Hard));
    assert!(not_begun(&t.answer()));
    t.withdraw(2, 1, spec(1));
    assert!(not_begun(&t.answer()));
    // It may have been done by an owner before, or was begun here: only the manager knows.
    t.withdraw(3, 2, Action::Delete);
    assert_eq!(later(&t.answer()), LaterReason::CircuitOpen);
    t.withdraw(1, 1, spec(1));
    assert_eq!(later(&t.answer()), LaterReason::ManagerFailing);
}

#[test]
fn what_is_not_wanted_any_more_leaves_the_line_and_what_runs_goes_on() {
    let mut t = Test::new(4);
    for i in 0..4 {
        t.call(i, 1, spec(1));
    }
    let running = t.started();
    assert_eq!(running.len(), 2, "two creates at once");
    t.withdraw(2, 1, spec(1));
    assert!(not_begun(&t.answer()));
    t.withdraw(0, 1, spec(1));
    assert_eq!(t.answers(), [], "it has begun, and is waited for");
    running.iter().for_each(|start| t.succeed(start));
    t.desk.next_in_line(NOW);
    assert_eq!(t.start().op.vm, vm(3));
    assert_eq!(t.answers().len(), 2);
}

#[test]
fn a_hung_operation_is_given_up_on_and_its_late_answer_ignored() {
    let mut t = Test::new(1);
    t.call(0, 1, spec(1));
    let start = t.start();
    let limit = Duration::from_secs(60);
    assert!(t.desk.overdue(NOW.after(Duration::from_secs(59)), 0, limit).is_empty());
    assert_eq!(t.desk.overdue(NOW.after(limit), 0, limit), [start.ticket]);
    assert_eq!(later(&t.answer()), LaterReason::ManagerFailing);
    t.succeed(&start);
    assert!(t.answers().is_empty());
    assert_eq!((t.desk.slots.total(), t.used()), (0, 1));
}

#[test]
fn not_there_after_an_unknown_outcome_is_asked_of_the_tasks_too() {
    let mut t = Test::new(1);
    t.call(0, 1, spec(1));
    let start = t.start();
    assert!(!start.ask_tasks);
    t.end(&start, Err(unreachable()));
    t.answer();
    t.call(0, 2, Action::Delete);
    let start = t.start();
    assert!(start.ask_tasks);
    t.end(&start, Ok(None));
    assert_eq!(t.answer(), Answer::Absent);
    assert_eq!(t.used(), 0);
}

#[test]
fn a_try_that_is_turned_away_says_nothing_of_an_earlier_one() {
    let task = RunningTask { vm: vm(0), number: OpNumber(1), host: Some("h1".parse().unwrap()) };
    let failing = || Error::Transient { detail: "try again".into() };
    let mut t = Test::with(2, vec![task]);
    // An older owner's task goes on, though the manager turned this try away.
    t.call(0, 1, spec(1));
    let start = t.start();
    assert!(start.ask_tasks, "no room is believed only when no task is left");
    t.end(&start, Err(failing()));
    assert_eq!(later(&t.answer()), LaterReason::ManagerFailing);
    assert!(t.desk.adopted());
    t.withdraw(0, 1, spec(1));
    assert_eq!(t.answers(), [], "not taken for never begun: it is asked of the manager");
    let start = t.start();
    t.succeed(&start);
    assert!(matches!(t.answer(), Answer::Present(_)));

    // So does a try of this owner of which nothing was heard.
    t.call(1, 1, spec(1));
    for error in [unreachable(), failing(), Error::Busy { detail: "many".into() }] {
        let start = t.start();
        t.end(&start, Err(error));
        assert_eq!(later(&t.answer()), LaterReason::ManagerFailing);
        t.call(1, 1, spec(1));
    }
    t.withdraw(1, 1, spec(1));
    let start = t.start();
    t.succeed(&start);
    assert!(matches!(t.answer(), Answer::Present(_)));
}

#[test]
fn a_vm_is_read_again_when_an_operation_on_it_failed_for_good() {
    let mut t = Test::new(1);
    t.call(0, 1, spec(1));
    let start = t.start();
    t.succeed(&start);
    assert!(t.desk.unsure.is_empty());
    for (op, error) in
        [(2, Error::Permanent { detail: "half done".into() }), (3, Error::Invalid { detail: "it is suspended".into() })]
    {
        t.answers();
        t.call(0, op, Action::Suspend);
        let start = t.start();
        t.end(&start, Err(error));
        assert_eq!(std::mem::take(&mut t.desk.unsure), [vm(0)]);
    }
}

#[test]
fn tasks_of_an_older_session_are_adopted() {
    let task = RunningTask { vm: vm(0), number: OpNumber(3), host: Some("h1".parse().unwrap()) };
    let mut t = Test::with(2, vec![task]);
    t.call(0, 2, spec(1));
    assert_eq!(later(&t.answer()), LaterReason::StaleOwner);
    t.call(0, 4, Action::Delete);
    assert_eq!(later(&t.answer()), LaterReason::VmBusy);
    t.call(0, 3, spec(1));
    let start = t.start();
    assert_eq!(start.op.host.as_ref().unwrap().as_str(), "h1", "where it was sent");
    t.succeed(&start);
    assert!(matches!(t.answer(), Answer::Present(_)));
    assert!(!t.desk.adopted());
}

#[test]
fn what_an_adopted_task_has_done_is_read_before_it_is_told() {
    let task = RunningTask { vm: vm(0), number: OpNumber(1), host: Some("h1".parse().unwrap()) };
    let mut t = Test::with(2, vec![task]);
    assert_eq!(t.desk.tasks(&[]), [vm(0)], "it has ended, and its VM is to be read");
    t.withdraw(0, 1, spec(1));
    assert_eq!(t.answers(), [], "not taken for never begun");
    let start = t.start();
    t.succeed(&start);
    assert!(matches!(t.answer(), Answer::Present(_)));

    let task = RunningTask { vm: vm(1), number: OpNumber(1), host: Some("h1".parse().unwrap()) };
    let mut t = Test::with(2, vec![task]);
    assert_eq!(t.desk.tasks(&[]), [vm(1)]);
    t.desk.holdings.hosts.set_cordons(&[None]);
    t.call(1, 1, spec(1));
    assert_eq!(later(&t.answer()), LaterReason::Opening, "no host takes it, and it may have one");
    t.desk.inspected(vm(1), None, 0);
    t.withdraw(1, 1, spec(1));
    assert!(not_begun(&t.answer()), "it has been read, and came to nothing");
}

#[test]
fn what_moves_while_the_manager_is_read_again_is_counted_where_its_host_is_then() {
    for left in [&["h0", "h2"][..], &["h0"][..]] {
        let mut t = Test::new(3);
        t.call(0, 1, spec(1));
        let start = t.start();
        assert_eq!(start.op.host.as_ref().unwrap().as_str(), "h0");
        t.succeed(&start);
        t.answers();
        t.call(0, 2, Action::Relocate("h2".parse().unwrap()));
        let start = t.start();
        // Its target is at another place of the list now, or gone.
        let inventory = Inventory { hosts: left.iter().map(|name| host(name)).collect(), ..Inventory::default() };
        t.desk.reread(&inventory, t.desk.holdings.now());
        let vms = |t: &Test| t.desk.holdings.hosts.all().iter().map(|host| host.vms).collect::<Vec<_>>();
        assert_eq!(vms(&t), if left.len() == 2 { vec![1, 1] } else { vec![1] });
        t.end(&start, Err(Error::NoRoom { detail: "gone".into() }));
        assert_eq!(vms(&t), if left.len() == 2 { vec![1, 0] } else { vec![1] });
    }
}

#[test]
fn a_move_and_a_growth_hold_their_room_while_they_go_on() {
    let mut t = Test::new(2);
    t.call(0, 1, spec(3));
    let start = t.start();
    t.succeed(&start);
    t.answer();
    t.call(0, 2, Action::Relocate("h1".parse().unwrap()));
    let moving = t.start();
    assert_eq!(t.used(), 6, "on both while it moves");
    t.end(&moving, Ok(Some(VmFacts { size: size(3), ..facts(&moving) })));
    assert!(matches!(t.answer(), Answer::Present(_)));
    assert_eq!(t.desk.holdings.hosts.all()[1].used.vcpus, 3);
    assert_eq!(t.used(), 3);
    t.call(0, 3, Action::Resize(size(5)));
    assert!(matches!(t.answer(), Answer::Refused(_)));
    t.call(0, 4, Action::Relocate("h9".parse().unwrap()));
    assert!(matches!(t.answer(), Answer::Failed(_)));
}

#[test]
fn reading_the_inventory_again_finds_what_changed_and_leaves_alone_what_moves() {
    let mut t = Test::new(2);
    for i in 0..3 {
        t.call(i, 1, spec(1));
        let start = t.start();
        t.succeed(&start);
    }
    let began = t.desk.holdings.now();
    // VM 0 was moved, VM 1 is as it was, VM 2 is being stopped, VM 7 is new.
    t.call(2, 2, Action::Stop(StopMode::Hard));
    let inventory = Inventory {
        hosts: vec![host("h0"), host("h1")],
        vms: vec![held(0, "h1"), held(1, "h1"), held(7, "h0")],
        ..Inventory::default()
    };
    let mut news = t.desk.reread(&inventory, began);
    news.sort();
    let mut wanted = vec![vm(0), vm(7)];
    wanted.sort();
    assert_eq!(news, wanted);
    assert_eq!(t.used(), 4);
    // Read before it was touched: it says nothing.
    assert!(!t.desk.inspected(vm(0), None, 0));
    assert!(t.desk.inspected(vm(0), None, t.desk.holdings.now()));
    assert_eq!(t.used(), 3);
}
