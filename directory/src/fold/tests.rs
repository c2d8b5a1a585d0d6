use cellbus_bus::ids::{OpNumber, ShardCount, ShardId};
use proptest::prelude::*;

use super::*;
use crate::failure::{Failure, FailureCode};
use crate::job::JobState;
use crate::testing::{self, Ids};
use crate::vm::VmState;
use crate::work::{Step, StepResult};

fn shard() -> (ShardId, ShardCount) {
    let count = ShardCount::new(2).unwrap();
    (ShardId::new(1, count).unwrap(), count)
}

proptest! {
    /// Whoever starts from a snapshot ends with the same rows as whoever read the whole log.
    #[test]
    fn a_snapshot_and_the_tail_give_the_same_as_the_log(seeds in testing::seeds(), cut in any::<prop::sample::Index>()) {
        let (shard, count) = shard();
        let log = testing::log(&Ids::of(shard, count), &seeds);
        let mut whole = Tables::default();
        for (seq, entry) in &log {
            whole.apply(*seq, entry);
        }
        let (head, tail) = log.split_at(cut.index(log.len()));
        let mut first = Tables::default();
        for (seq, entry) in head {
            first.apply(*seq, entry);
        }
        let bytes = first.snapshot().encode();
        let mut second = Tables::of(ShardSnapshot::decode(&bytes).unwrap());
        prop_assert_eq!(&second, &first);
        for (seq, entry) in tail {
            second.apply(*seq, entry);
        }
        prop_assert_eq!(second, whole);
    }
}

fn opened(epoch: u64) -> Entry {
    entry(epoch, vec![Record::Opened { cell: "c".parse().unwrap(), address: String::new() }])
}
fn entry(epoch: u64, records: Vec<Record>) -> Entry {
    Entry { epoch: Epoch(epoch), prev: Seq::ZERO, at: WallMs(1), jobs: None, control: None, records }
}

#[test]
fn an_owner_that_was_replaced_writes_nothing_that_counts() {
    let mut fence = Fence::default();
    assert!(fence.admits(&opened(1)));
    assert!(fence.admits(&entry(1, Vec::new())));
    assert!(fence.admits(&opened(3)));
    assert!(!fence.admits(&entry(1, Vec::new())));
    assert!(!fence.admits(&opened(2)));
    assert!(!fence.admits(&opened(3)), "of two that claim one epoch the first has it");
    assert!(fence.admits(&entry(3, Vec::new())));
    assert_eq!(fence.epoch(), Epoch(3));
}

/// A provision for one VM, from acceptance to the end of its first call.
fn provision(result: Option<StepResult>, end: Option<Outcome>) -> (Tables, JobId) {
    let (shard, count) = shard();
    let ids = Ids::of(shard, count);
    // Record kind 0, job 0, one VM (b % 4 == 0), without `after` (c % 5 != 0).
    let log = testing::log(&ids, &[vec![[0, 0, 0, 1]]]);
    let mut tables = Tables::default();
    for (seq, entry) in &log {
        tables.apply(*seq, entry);
    }
    let job = *tables.jobs.keys().next().unwrap();
    let vm = job.vm(0);
    let mut records =
        vec![Record::StepBegun { vm, op: OpNumber(1), step: Step::Create, manager: testing::manager(0), host: None }];
    records.extend(result.map(|result| Record::StepEnded { vm, op: OpNumber(1), result }));
    if let Some(outcome) = end {
        records.push(Record::WorkEnded { vm, job, outcome: outcome.clone() });
        records.push(Record::JobEnded { job, outcome, vms: Vec::new() });
    }
    tables.apply(Seq(9), &entry(1, records));
    (tables, job)
}

#[test]
fn a_provision_is_running_while_its_vm_is_made() {
    let (tables, job) = provision(None, None);
    assert_eq!(tables.jobs[&job].state, JobState::Running);
    assert_eq!(tables.vms[&job.vm(0)].state(), VmState::Creating);
}

#[test]
fn a_vm_whose_provision_failed_was_never_made() {
    let failure = Failure::lasting(FailureCode::NoRoom, "no room");
    let refused = StepResult::Refused(crate::Refusal {
        manager: testing::manager(0),
        reason: crate::RefusalReason::NoRoom,
        detail: String::new(),
    });
    let (tables, job) = provision(Some(refused), Some(Outcome::Failed(failure)));
    assert_eq!(tables.jobs[&job].state, JobState::Failed);
    assert_eq!(tables.vms[&job.vm(0)].settled, VmState::Deleted);
    assert_eq!(tables.vms[&job.vm(0)].home, None);
}

#[test]
fn work_of_another_job_that_was_dropped_leaves_the_vm_alone() {
    let (mut tables, job) = provision(None, None);
    let vm = job.vm(0);
    let other = JobId::derive("acme", "/", "other");
    tables
        .apply(Seq(10), &entry(1, vec![Record::WorkDropped { vm, job: other, index: 0, outcome: Outcome::Cancelled }]));
    assert_eq!(tables.vms[&vm].settled, VmState::Creating);
}

#[test]
fn a_provision_that_waits_makes_its_vm_when_it_may_go_on() {
    let (shard, count) = shard();
    // c % 5 == 0: it has an `after`.
    let log = testing::log(&Ids::of(shard, count), &[vec![[0, 0, 0, 0]]]);
    let mut tables = Tables::default();
    for (seq, entry) in &log {
        tables.apply(*seq, entry);
    }
    let job = *tables.jobs.keys().next().unwrap();
    assert_eq!(tables.jobs[&job].state, JobState::Waiting);
    assert!(tables.vms.is_empty());
    let mut restored = Tables::of(tables.snapshot());
    assert_eq!(restored.jobs[&job].clone().ready(WallMs(7)).unwrap().id, job.vm(0));
    restored.jobs.get_mut(&job).unwrap().ended(&Outcome::Cancelled, WallMs(8));
    assert!(restored.jobs[&job].plan.is_none());
}
