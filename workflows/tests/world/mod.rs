//! A whole Cellbus in memory for tests of the state machine: shards with logs and queues, and
//! managers that do as they are told, or as the test's faults say. Everything is driven by one seed.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

mod backup;
mod rows;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::contract::{Event, Position, Queue, QueueKind};
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{CellId, HostId, JobId, ManagerId, OpNumber, Seq, ShardCount, ShardId, TenantId, VmId, VmName};
use cellbus_bus::job::{Digest, Job, Notify, Operation, Policy, Power, Provision, Request, Size, Target};
use cellbus_directory::record::{Entry, Record};
use cellbus_directory::vm::PowerState;
use cellbus_directory::{
    Failure, FailureCode, JobState, Pauses, Refusal, RefusalReason, ShardSnapshot, Step, StepKind, VmFacts,
};
use cellbus_workflows::pack::pack;
use cellbus_workflows::{
    Action, Answer, Call, CapacityView, ClassSummary, Context, ControlItem, Effect, EffectAnswer, EffectKind, Health,
    Input, JobItem, Later, LaterReason, Limits, ManagerNames, ManagerSummary, Shard,
};

/// What a manager does with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// As asked.
    Do,
    /// Does it, and the answer is lost.
    DoAndLose,
    /// Does nothing, and nobody knows.
    Lose,
    /// Fails for a lasting reason, having done nothing.
    Fail,
    /// Refuses: it never began.
    Refuse,
    /// Takes no calls.
    Closed,
}

/// A moment at which an owner may die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// What it has decided is not in the log yet.
    BeforeAppend,
    /// It is in the log, and nothing has followed from it.
    AfterAppend,
    /// An effect was carried out, and nobody has heard.
    AfterEffect,
}

/// One fault, at the so many-th of its kind from when it was set.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The owner dies.
    Crash(Moment, usize),
    /// A call meets this.
    Call(usize, Fate),
    /// A call is made twice, the second time late.
    Copy(usize),
    /// A publication or an event is carried out twice, and its answer lost.
    Repeat(usize),
}

#[derive(Clone, Debug)]
pub struct Held {
    pub facts: VmFacts,
    pub op: OpNumber,
}

/// Rounds by which what has no more faults must have come to rest: far more than any seed has needed.
const ROUNDS_TO_REST: usize = 20_000;

pub struct World {
    pub count: ShardCount,
    pub logs: Vec<Vec<Entry>>,
    /// What a restored shard began with, in the place of its first entry.
    pub bases: Vec<Option<ShardSnapshot>>,
    pub queues: BTreeMap<(u16, bool), Vec<Bytes>>,
    pub shards: Vec<Shard>,
    pub managers: BTreeMap<ManagerId, BTreeMap<VmId, Held>>,
    /// The highest op number that each manager has seen of each VM, deleted ones included.
    pub seen: BTreeMap<(ManagerId, VmId), OpNumber>,
    pub view: CapacityView,
    pub names: ManagerNames,
    /// What is paused, as far as homes of VMs know.
    pub pauses: Pauses,
    /// What is paused, as far as owners of managers know.
    pub stopped: Pauses,
    /// How many operations that remove something may still begin; `None`: any number.
    pub removals: Option<u32>,
    pub now: WallMs,
    pub events: BTreeMap<String, Event>,
    pub effects: VecDeque<(usize, Effect)>,
    /// Every call that reached a manager, in order.
    pub calls: Vec<(Step, VmId, OpNumber)>,
    /// A single fault.
    pub fault: Option<Fault>,
    /// Appends, calls and effects since the fault was set.
    pub counted: (usize, usize, usize),
    /// Copies of calls that are still on their way.
    pub copies: Vec<Call>,
    /// What the next calls of a step meet.
    pub fates: BTreeMap<Step, VecDeque<Fate>>,
    /// Chance, in 1/256, of each random fault.
    pub chaos: u8,
    pub random: u64,
    /// Creates that were refused: a copy of the call is refused too.
    pub refused: BTreeMap<(ManagerId, VmId, OpNumber), Answer>,
    pub violations: Vec<String>,
    pub limits: Limits,
}

pub fn tenant(name: &str) -> TenantId {
    name.parse().expect("a tenant")
}

pub fn job(id: &str, request: Request) -> Arc<Job> {
    job_of("acme", id, request)
}

pub fn job_of(owner: &str, id: &str, request: Request) -> Arc<Job> {
    Arc::new(Job {
        id: JobId::derive(owner, "/test", id),
        tenant: tenant(owner),
        source: "/test".to_owned(),
        event_id: id.to_owned(),
        digest: Digest::of(format!("{request:?}").as_bytes()),
        after: None,
        notify: Notify::Outcome,
        deadline: None,
        extensions: BTreeMap::new(),
        request,
    })
}

pub fn provision(name: &str, count: u32) -> Provision {
    Provision {
        name: name.parse().expect("a name"),
        count,
        size: Size { vcpus: 2, memory_mib: 1024, disk_gib: 10 },
        image: "debian-12".to_owned(),
        labels: BTreeMap::new(),
        require: BTreeMap::new(),
        policy: Policy::default(),
        power: Power::On,
    }
}

pub fn operate(vm: VmId, operation: Operation) -> Request {
    Request::Operate(Target::Id(vm), operation)
}

impl World {
    pub fn new(shards: u16, managers: usize) -> Self {
        let count = ShardCount::new(shards).expect("a count");
        let names = ManagerNames::new((0..managers).map(|n| format!("m{n}").parse().expect("a name")));
        let view = CapacityView {
            managers: names
                .iter()
                .map(|(name, id)| ManagerSummary {
                    id: *id,
                    name: name.to_string(),
                    health: Health::Healthy,
                    cordoned: false,
                    classes: vec![ClassSummary {
                        labels: BTreeMap::from([("gear".to_owned(), "g1".to_owned())]),
                        hosts: 4,
                        hosts_open: 4,
                        vcpus_total: 4000,
                        vcpus_free: 4000,
                        memory_mib_total: 4_000_000,
                        memory_mib_free: 4_000_000,
                        disk_gib_total: 400_000,
                        disk_gib_free: 400_000,
                        vcpus_free_max: 1000,
                        memory_mib_free_max: 1_000_000,
                        disk_gib_free_max: 100_000,
                    }],
                    running: 0,
                    waiting: 0,
                    running_max: 640,
                })
                .collect(),
            version: 1,
        };
        let limits = Limits::for_shards(count);
        let mut world = Self {
            count,
            logs: vec![Vec::new(); shards.into()],
            bases: vec![None; shards.into()],
            queues: BTreeMap::new(),
            shards: count.shards().map(|id| Shard::new(id, count, limits.clone())).collect(),
            managers: names.iter().map(|(_, id)| (*id, BTreeMap::new())).collect(),
            seen: BTreeMap::new(),
            view,
            names,
            pauses: Pauses::default(),
            stopped: Pauses::default(),
            removals: None,
            now: WallMs(1_700_000_000_000),
            events: BTreeMap::new(),
            effects: VecDeque::new(),
            calls: Vec::new(),
            fault: None,
            counted: (0, 0, 0),
            copies: Vec::new(),
            fates: BTreeMap::new(),
            chaos: 0,
            random: 1,
            refused: BTreeMap::new(),
            violations: Vec::new(),
            limits,
        };
        for index in 0..world.shards.len() {
            world.open(index);
        }
        world
    }

    pub fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.random;
        (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 7
    }

    fn chance(&mut self) -> bool {
        self.chaos > 0 && self.chance_of(self.chaos)
    }
    /// In 256.
    fn chance_of(&mut self, of: u8) -> bool {
        (self.next_random() % 256) < u64::from(of)
    }

    /// The shard as its log gives it.
    fn replayed(&self, index: usize) -> Shard {
        let id = ShardId::new(u16::try_from(index).expect("small"), self.count).expect("a shard");
        let base = self.bases[index].clone();
        let skipped = usize::from(base.is_some());
        let mut shard = match base {
            Some(base) => Shard::restore(id, self.count, self.limits.clone(), base).expect("restores"),
            None => Shard::new(id, self.count, self.limits.clone()),
        };
        for (n, entry) in self.logs[index].iter().enumerate().skip(skipped) {
            shard.apply(Seq(n as u64 + 1), entry);
        }
        shard
    }

    /// Throws the shard's memory away and opens it again from its log.
    pub fn open(&mut self, index: usize) {
        let mut shard = self.replayed(index);
        let (jobs, control) = shard.positions();
        let entry = Entry {
            epoch: shard.epoch().next(),
            prev: Seq(self.logs[index].len() as u64),
            at: self.now,
            jobs: Some(jobs),
            control: Some(control),
            records: vec![Record::Opened {
                cell: "c1".parse::<CellId>().expect("a cell"),
                address: "local:c1".to_owned(),
            }],
        };
        self.logs[index].push(entry.clone());
        shard.apply(Seq(self.logs[index].len() as u64), &entry);
        self.effects.retain(|(of, _)| *of != index);
        let random = self.next_random();
        shard.opened(&Context { now: self.now, random, view: &self.view, names: &self.names, pauses: &self.pauses });
        self.shards[index] = shard;
    }

    pub fn submit(&mut self, job: &Arc<Job>) {
        let shard = job.id.shard(self.count);
        if self.chaos > 0 && self.chance_of(128) && self.hand_in(job) {
            return;
        }
        self.publish(Queue { shard, kind: QueueKind::Jobs }, JobItem::Job(Arc::clone(job)).encode());
    }

    /// Hands a job to its home past its queue; whether it is in the log there. The owner may die first,
    /// or die with it in the log and nobody told.
    fn hand_in(&mut self, job: &Arc<Job>) -> bool {
        let index = usize::from(job.id.shard(self.count).index());
        self.handle(index, Input::Handed { job: Arc::clone(job), bytes: 512 });
        if self.chance() {
            self.open(index);
        }
        self.append(index);
        self.home(job.id).job(&job.id).is_some() && !self.chance()
    }

    pub fn work(&mut self, work: &cellbus_directory::Work) {
        let queue = Queue { shard: work.vm.shard(self.count), kind: QueueKind::Jobs };
        self.publish(queue, JobItem::Work(Arc::new(work.clone())).encode());
    }

    pub fn control(&mut self, shard: ShardId, item: &ControlItem) {
        self.publish(Queue { shard, kind: QueueKind::Control }, item.encode());
    }

    fn publish(&mut self, queue: Queue, body: Bytes) {
        self.queues.entry((queue.shard.index(), queue.kind == QueueKind::Jobs)).or_default().push(body);
    }

    pub fn handle(&mut self, index: usize, input: Input) {
        let random = self.next_random();
        let ctx = Context { now: self.now, random, view: &self.view, names: &self.names, pauses: &self.pauses };
        self.shards[index].handle(&ctx, input);
    }

    fn feed(&mut self, index: usize, jobs: bool) -> bool {
        if jobs && !self.shards[index].wants_jobs() {
            return false;
        }
        let (jobs_at, control_at) = self.shards[index].positions();
        let read = if jobs { jobs_at } else { control_at }.seq.0 as usize;
        let shard = u16::try_from(index).expect("small");
        let Some(body) = self.queues.get(&(shard, jobs)).and_then(|q| q.get(read)).cloned() else { return false };
        let at = Position { seq: Seq(read as u64 + 1), digest: Digest::of(&body) };
        self.handle(index, if jobs { Input::Jobs { at, body } } else { Input::Control { at, body } });
        true
    }

    /// Appends what the shard has decided. `false` if there was nothing.
    pub fn append(&mut self, index: usize) -> bool {
        let Some(batch) = self.shards[index].take_batch() else { return false };
        let n = self.counted.0;
        self.counted.0 += 1;
        if self.crashes(Moment::BeforeAppend, n) {
            self.open(index);
            return true;
        }
        let mut entry = batch.entry;
        entry.prev = Seq(self.logs[index].len() as u64);
        // What is written is what is read.
        let entry = Entry::decode(&entry.encode()).expect("an entry reads back");
        self.logs[index].push(entry);
        if self.chance() || self.crashes(Moment::AfterAppend, n) {
            // The owner dies between the append and its effects.
            self.open(index);
            return true;
        }
        let released = self.shards[index].appended(Seq(self.logs[index].len() as u64), &self.names);
        self.effects.extend(released.effects.into_iter().map(|effect| (index, effect)));
        true
    }

    fn retries(&mut self, index: usize) {
        let effects = self.shards[index].take_retries(&self.names);
        self.effects.extend(effects.into_iter().map(|effect| (index, effect)));
    }

    fn carry_out(&mut self, index: usize, effect: Effect) {
        let n = self.counted.2;
        self.counted.2 += 1;
        let repeated = matches!(self.fault, Some(Fault::Repeat(at)) if at == n);
        let answer = match effect.what {
            EffectKind::Call(call) => {
                let nth = self.counted.1;
                self.counted.1 += 1;
                if let Some(Fault::Call(at, fate)) = self.fault
                    && at == nth
                {
                    self.fates.entry(call.step).or_default().push_front(fate);
                }
                if matches!(self.fault, Some(Fault::Copy(at)) if at == nth) {
                    self.copies.push(call.clone());
                }
                let answer = self.call(&call);
                if self.chance() {
                    // The call is made twice, as after a reissue; the copy may come late.
                    if self.chance_of(128) {
                        self.copies.push(call);
                    } else {
                        let again = self.call(&call);
                        drop(again);
                    }
                }
                EffectAnswer::Call(answer)
            }
            EffectKind::Publish(items) => {
                let twice = self.chance() || repeated;
                for (queue, bodies) in items {
                    for body in pack(queue.kind, bodies) {
                        if twice {
                            self.publish(queue, body.clone());
                        }
                        self.publish(queue, body);
                    }
                }
                if self.chance() || repeated {
                    EffectAnswer::Failed { detail: "no answer".to_owned() }
                } else {
                    EffectAnswer::Published
                }
            }
            EffectKind::Resolve { tenant, name } => EffectAnswer::Resolved(self.by_name(&tenant, &name)),
            EffectKind::Event(event) => {
                if let Some(first) = self.events.get(&event.id) {
                    assert_eq!(first.body, event.body, "an event sent again is the same event");
                }
                self.events.insert(event.id.clone(), event);
                if repeated { EffectAnswer::Failed { detail: "no answer".to_owned() } } else { EffectAnswer::Published }
            }
        };
        if self.chance() || self.crashes(Moment::AfterEffect, n) {
            self.open(index);
        } else {
            self.handle(index, Input::Answered { intent: effect.intent, answer });
        }
    }

    fn crashes(&self, moment: Moment, n: usize) -> bool {
        matches!(self.fault, Some(Fault::Crash(then, at)) if then == moment && at == n)
    }

    fn by_name(&self, tenant: &TenantId, name: &VmName) -> Vec<VmId> {
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(
                shard
                    .snapshot(Seq::ZERO)
                    .vms
                    .iter()
                    .filter(|vm| vm.tenant == *tenant && vm.name == *name && !vm.is_deleted())
                    .map(|vm| vm.id),
            );
        }
        found.truncate(2);
        found
    }

    /// The manager and the cell that fronts it, as one.
    fn call(&mut self, call: &Call) -> Answer {
        let key = (call.manager, call.vm, call.op);
        if let Some(answer) = self.refused.get(&key) {
            return answer.clone();
        }
        let answer = self.first_call(call);
        if matches!(answer, Answer::Refused(_)) {
            self.refused.insert(key, answer.clone());
        }
        answer
    }

    fn first_call(&mut self, call: &Call) -> Answer {
        let fate = self.fates.get_mut(&call.step).and_then(VecDeque::pop_front).unwrap_or(Fate::Do);
        let fate = if fate == Fate::Do && self.chance() {
            [Fate::DoAndLose, Fate::Lose, Fate::Closed][(self.next_random() % 3) as usize]
        } else {
            fate
        };
        // Not wanted any more, and certainly not begun: then it never will be, nor a copy of it.
        let in_reach = !matches!(fate, Fate::DoAndLose | Fate::Lose);
        let held = self.managers.get(&call.manager).is_some_and(|m| m.contains_key(&call.vm));
        if call.withdraw && in_reach && !self.began(call) && held != matches!(call.action, Action::Create(_)) {
            return Answer::Refused(Refusal {
                manager: call.manager,
                reason: RefusalReason::NotBegun,
                detail: "withdrawn".to_owned(),
            });
        }
        let later = |reason| Answer::Later(Later { reason, detail: "test".to_owned(), after: None });
        if self.stopped.hold(call.step, Some(call.manager)).is_some() {
            return later(LaterReason::Paused);
        }
        if let Some(left) = self.removals.as_mut().filter(|_| call.step.kind() == StepKind::Removes) {
            if *left == 0 {
                return later(LaterReason::Limited);
            }
            *left -= 1;
        }
        match fate {
            Fate::Do => self.perform(call),
            Fate::DoAndLose => {
                self.perform(call);
                later(LaterReason::ManagerFailing)
            }
            Fate::Lose => later(LaterReason::ManagerFailing),
            Fate::Fail => Answer::Failed(Failure::lasting(FailureCode::ManagerFailed, "broken")),
            Fate::Refuse => Answer::Refused(Refusal {
                manager: call.manager,
                reason: RefusalReason::NoRoom,
                detail: "4 hosts looked at, 4 full".to_owned(),
            }),
            Fate::Closed if matches!(call.action, Action::Create(_)) && !self.began(call) => Answer::Refused(Refusal {
                manager: call.manager,
                reason: RefusalReason::NotBegun,
                detail: "the circuit is open".to_owned(),
            }),
            Fate::Closed => later(LaterReason::CircuitOpen),
        }
    }

    /// Whether the manager has seen this very operation: then it is not refused any more.
    fn began(&self, call: &Call) -> bool {
        self.seen.get(&(call.manager, call.vm)).is_some_and(|last| *last >= call.op)
    }

    fn perform(&mut self, call: &Call) -> Answer {
        self.calls.push((call.step, call.vm, call.op));
        let held = self.managers.get(&call.manager).and_then(|m| m.get(&call.vm)).cloned();
        let last = self.seen.get(&(call.manager, call.vm)).copied().unwrap_or_default();
        if matches!(call.action, Action::Inspect) {
            return held.map_or(Answer::Absent, |h| Answer::Present(h.facts));
        }
        if call.op < last {
            return Answer::Later(Later { reason: LaterReason::StaleOwner, detail: "older".to_owned(), after: None });
        }
        if call.op == last {
            return held.map_or(Answer::Absent, |h| Answer::Present(h.facts));
        }
        self.seen.insert((call.manager, call.vm), call.op);
        let host: HostId = format!("{}-h1", call.manager.uuid().simple()).parse().expect("a host");
        let facts = match (&call.action, held.map(|h| h.facts)) {
            (Action::Create(spec), None) => Some(VmFacts {
                host,
                power: if spec.power == Power::On { PowerState::Running } else { PowerState::Stopped },
                size: spec.size,
                snapshots: spec.snapshots.clone(),
            }),
            // Made before the restore, for a job that nobody remembered: it is adopted.
            (Action::Create(_), Some(facts)) if self.bases.iter().any(Option::is_some) => Some(facts),
            (Action::Create(_), Some(facts)) => {
                self.violations.push(format!("VM {} was made twice", call.vm));
                Some(facts)
            }
            (Action::Delete, _) => None,
            (_, None) => {
                return Answer::Absent;
            }
            // Nothing ran it any more.
            (action, Some(facts)) if call.step == Step::Failover => {
                Some(VmFacts { power: PowerState::Stopped, ..change(action, facts) })
            }
            (action, Some(facts)) => Some(change(action, facts)),
        };
        let manager = self.managers.get_mut(&call.manager).expect("a manager");
        match facts {
            Some(facts) => {
                manager.insert(call.vm, Held { facts: facts.clone(), op: call.op });
                let copies: Vec<_> = self.managers.values().filter_map(|m| m.get(&call.vm)).collect();
                if copies.iter().filter(|h| h.facts.power == PowerState::Running).count() > 1 {
                    self.violations.push(format!("two copies of VM {} run", call.vm));
                }
                Answer::Present(facts)
            }
            None => {
                manager.remove(&call.vm);
                Answer::Absent
            }
        }
    }

    /// Runs until nothing is left to do, letting time pass when only time helps.
    pub fn settle(&mut self) {
        assert!(
            self.rest(ROUNDS_TO_REST),
            "it does not come to rest; {} calls so far, the last {:?}",
            self.calls.len(),
            self.calls.last()
        );
    }

    /// Runs for so many rounds at most; whether it has come to rest.
    pub fn rest(&mut self, rounds: usize) -> bool {
        for _ in 0..rounds {
            if self.step() {
                continue;
            }
            let Some(wake) = self.shards.iter().filter(|s| busy(s)).filter_map(Shard::next_wake).min() else {
                return true;
            };
            self.now = self.now.max(wake);
            for index in 0..self.shards.len() {
                self.handle(index, Input::Tick);
            }
        }
        false
    }

    /// One round; `false` if nothing could be done without time passing.
    pub fn step(&mut self) -> bool {
        let mut done = false;
        for index in 0..self.shards.len() {
            for jobs in [false, true] {
                for _ in 0..8 {
                    done |= self.feed(index, jobs);
                }
            }
            self.retries(index);
            done |= self.append(index);
        }
        for _ in 0..self.effects.len().min(64) {
            if self.effects.is_empty() {
                break;
            }
            let at = if self.chaos > 0 { (self.next_random() % self.effects.len() as u64) as usize } else { 0 };
            let Some((index, effect)) = self.effects.remove(at) else { break };
            self.carry_out(index, effect);
            if self.chaos > 0 && self.chance_of(64) {
                self.append(index);
            }
            if !self.copies.is_empty() && (self.chaos == 0 || self.chance()) {
                let late = self.copies.swap_remove(0);
                let nobody_waits = self.call(&late);
                drop(nobody_waits);
            }
            done = true;
        }
        done
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        for index in 0..self.shards.len() {
            self.handle(index, Input::Tick);
        }
    }

    pub fn state(&self, job: JobId) -> JobState {
        self.home(job).job(&job).expect("a job accepted is never unknown").row.state
    }

    pub fn home(&self, job: JobId) -> &Shard {
        &self.shards[usize::from(job.shard(self.count).index())]
    }

    pub fn vm(&self, vm: VmId) -> &cellbus_directory::Vm {
        self.shards[usize::from(vm.shard(self.count).index())].vm(&vm).expect("a VM")
    }

    /// Submits, settles, and gives the failure's code if it failed.
    pub fn run(&mut self, job: &Arc<Job>) -> Result<(), FailureCode> {
        self.submit(job);
        self.settle();
        match self.home(job.id).job(&job.id).expect("known").row.outcome {
            Some(cellbus_directory::Outcome::Succeeded) => Ok(()),
            Some(cellbus_directory::Outcome::Failed(failure)) => Err(failure.code),
            other => panic!("{other:?}"),
        }
    }

    /// What must hold once everything has come to rest.
    pub fn check(&self) {
        assert_eq!(self.violations, Vec::<String>::new());
        let mut copies: BTreeMap<VmId, Vec<ManagerId>> = BTreeMap::new();
        for (manager, vms) in &self.managers {
            for vm in vms.keys() {
                copies.entry(*vm).or_default().push(*manager);
            }
        }
        for (index, shard) in self.shards.iter().enumerate() {
            assert_eq!(shard.open_intents(), 0, "shard {index} has open intents");
            // Replay gives the same state.
            let replayed = self.replayed(index);
            assert!(shard.same_state(&replayed), "shard {index}: the replayed state differs");
            // So does a snapshot.
            let snapshot =
                cellbus_directory::ShardSnapshot::decode(&shard.snapshot(Seq(9)).encode()).expect("reads back");
            let restored = Shard::restore(shard.id(), self.count, self.limits.clone(), snapshot).expect("restores");
            assert!(shard.same_state(&restored), "shard {index}: the restored state differs");
            for row in shard.snapshot(Seq(9)).jobs {
                assert!(row.state.ended(), "job {} of shard {index} is {}", row.event_id, row.state);
                let id = format!("{}/{}", row.id, row.state);
                assert!(self.events.contains_key(&id), "no outcome event {id}");
            }
            for vm in shard.snapshot(Seq(9)).vms {
                let held = copies.remove(&vm.id).unwrap_or_default();
                // After a restore: deleted since the backup, for a job that nobody remembered.
                let lost = self.bases[index].is_some() && vm.settled == cellbus_directory::VmState::Lost;
                let expected: Vec<ManagerId> = vm.home.iter().filter(|_| !lost).map(|home| home.manager).collect();
                assert_eq!(held, expected, "VM {} is {} and its record says {:?}", vm.name, vm.settled, vm.home);
                if let [manager] = held[..] {
                    let facts = &self.managers[&manager][&vm.id].facts;
                    let settled = match facts.power {
                        PowerState::Running => cellbus_directory::VmState::Running,
                        PowerState::Stopped => cellbus_directory::VmState::Stopped,
                        PowerState::Suspended => cellbus_directory::VmState::Suspended,
                    };
                    assert_eq!((vm.settled, vm.size), (settled, facts.size), "VM {}", vm.name);
                }
            }
        }
        assert!(copies.is_empty(), "orphans: {copies:?}");
        rows::check(&self.shards, &self.logs, &self.bases, self.count, &self.limits);
        let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
        for (job, what) in self.events.keys().filter_map(|id| id.split_once('/')) {
            *outcomes.entry(job).or_default() += usize::from(what != "accepted" && !what.starts_with("state/"));
        }
        for shard in &self.shards {
            for row in shard.snapshot(Seq(9)).jobs {
                assert_eq!(outcomes.get(&*row.id.to_string()), Some(&1), "one outcome for job {}", row.event_id);
            }
        }
    }
}

fn busy(shard: &Shard) -> bool {
    let stats = shard.stats();
    stats.jobs_open > 0 || shard.open_intents() > 0 || stats.waiting > stats.parked
}

fn change(action: &Action, mut facts: VmFacts) -> VmFacts {
    match action {
        Action::Start | Action::Resume | Action::Restart(_) => facts.power = PowerState::Running,
        Action::Stop(_) => facts.power = PowerState::Stopped,
        Action::Suspend => facts.power = PowerState::Suspended,
        Action::Resize(size) => facts.size = *size,
        Action::Snapshot(name) => facts.snapshots.push(name.clone()),
        Action::SnapshotDelete(name) => facts.snapshots.retain(|s| s != name),
        Action::Relocate(host) => facts.host = host.clone(),
        Action::Revert(_) | Action::Create(_) | Action::Delete | Action::Inspect | Action::Adopt(_) => {}
    }
    facts
}
