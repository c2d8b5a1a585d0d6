//! Logs for tests: any sequence of small numbers is one, so that proptest can shrink it.
//!
//! The records need not make sense together. A fold must not care, and rows of two ways to fold
//! the same log must be equal whatever the log says.

use std::sync::Arc;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{Epoch, HostId, JobId, ManagerId, OpNumber, Seq, ShardCount, ShardId, VmId};
use cellbus_bus::job::{Digest, Job, Labels, Notify, Operation, Policy, Power, Provision, Request, Size, Target};
use proptest::prelude::*;

use crate::failure::{Failure, FailureCode, Refusal, RefusalReason};
use crate::record::{Entry, Operator, ParkedDecision, Record, VmSummary};
use crate::vm::{PowerState, Template, VmFacts, VmState};
use crate::work::{Adoption, Outcome, Step, StepResult, Task, Work};

/// What one record is made from.
pub(crate) type Seed = [u8; 4];

const JOBS: u8 = 12;
const VMS: u8 = 16;
const STEPS: [Step; 25] = [
    Step::Create,
    Step::UndoCreate,
    Step::Start,
    Step::Stop,
    Step::Restart,
    Step::Suspend,
    Step::Resume,
    Step::Resize,
    Step::Snapshot,
    Step::Revert,
    Step::SnapshotDelete,
    Step::Relocate,
    Step::Failover,
    Step::Quiesce,
    Step::Copy,
    Step::StartCopy,
    Step::DropSource,
    Step::UndoCopy,
    Step::UndoQuiesce,
    Step::Delete,
    Step::Inspect,
    Step::Adopt,
    Step::CheckStray,
    Step::CheckHome,
    Step::DropStray,
];

/// The ids of a shard's jobs and VMs: job k of the shard, found by trying.
pub(crate) struct Ids {
    jobs: Vec<JobId>,
    vms: Vec<VmId>,
}

impl Ids {
    pub(crate) fn of(shard: ShardId, count: ShardCount) -> Self {
        let mut jobs = Vec::new();
        let mut vms = Vec::new();
        for n in 0_u32.. {
            let job = JobId::derive("acme", "/tests", &n.to_string());
            if job.shard(count) == shard && jobs.len() < usize::from(JOBS) {
                jobs.push(job);
                vms.push(job.vm(0));
            }
            let child = job.vm(1);
            if child.shard(count) == shard && vms.len() >= usize::from(JOBS) && vms.len() < usize::from(VMS) {
                vms.push(child);
            }
            if vms.len() == usize::from(VMS) {
                break;
            }
        }
        Self { jobs, vms }
    }
    fn job(&self, n: u8) -> JobId {
        self.jobs[usize::from(n % JOBS)]
    }
    fn vm(&self, n: u8) -> VmId {
        self.vms[usize::from(n % VMS)]
    }
}

pub(crate) fn manager(n: u8) -> ManagerId {
    ManagerId::derive(&format!("m{}", n % 3))
}
pub(crate) fn host(n: u8) -> HostId {
    format!("h{}", n % 4).parse().unwrap()
}

fn size(n: u8) -> Size {
    // Some shapes are larger than a compact row holds.
    if n % 7 == 6 {
        Size { vcpus: 1, memory_mib: 1 << 40, disk_gib: 1 << 41 }
    } else {
        Size { vcpus: u32::from(n % 5) + 1, memory_mib: 1024 * u64::from(n), disk_gib: u64::from(n) }
    }
}

fn labels(n: u8) -> Labels {
    Labels::from([("app".to_owned(), format!("a{}", n % 3))])
}

fn template(n: u8) -> Arc<Template> {
    Arc::new(Template {
        image: format!("img{}", n % 2),
        labels: labels(n),
        require: Labels::new(),
        policy: Policy::default(),
    })
}

fn name(n: u8) -> String {
    if n % 4 == 3 { format!("a-name-that-does-not-fit-into-a-row-{}", n % 5) } else { format!("vm-{}", n % 6) }
}

fn tenant(n: u8) -> cellbus_bus::ids::TenantId {
    format!("t{}", n % 3).parse().unwrap()
}

fn job(ids: &Ids, a: u8, b: u8, c: u8) -> Job {
    let request = match b % 4 {
        0 | 1 => Request::Provision(Provision {
            name: name(c).parse().unwrap(),
            count: if b.is_multiple_of(4) { 1 } else { 3 },
            size: size(c),
            image: format!("img{}", c % 2),
            labels: labels(c),
            require: Labels::new(),
            policy: Policy::default(),
            power: Power::On,
        }),
        2 => Request::Operate(Target::Id(ids.vm(c)), Operation::Start),
        _ => Request::Operate(Target::Name(name(c).parse().unwrap()), Operation::Delete),
    };
    Job {
        id: ids.job(a),
        tenant: tenant(c),
        source: format!("/source/{}", c % 4),
        event_id: if a.is_multiple_of(2) { format!("e{a}") } else { format!("a-long-event-id-0000-0000-{a}") },
        digest: Digest::default(),
        after: c.is_multiple_of(5).then(|| ids.job(b)),
        notify: Notify::Outcome,
        deadline: None,
        extensions: std::collections::BTreeMap::new(),
        request,
    }
}

fn outcome(n: u8) -> Outcome {
    match n % 3 {
        0 => Outcome::Succeeded,
        1 => Outcome::Failed(Failure::lasting(FailureCode::NoRoom, "no room").at(Step::Create)),
        _ => Outcome::Cancelled,
    }
}

fn result(a: u8, b: u8) -> StepResult {
    match a % 6 {
        0..=2 => StepResult::Present(VmFacts {
            host: host(b),
            power: [PowerState::Running, PowerState::Stopped, PowerState::Suspended][usize::from(b % 3)],
            size: size(b),
            snapshots: (0..b % 3).map(|n| format!("s{n}").parse().unwrap()).collect(),
        }),
        3 => StepResult::Absent,
        4 => StepResult::Refused(Refusal { manager: manager(b), reason: RefusalReason::NoRoom, detail: String::new() }),
        _ => StepResult::Failed(Failure::lasting(FailureCode::ManagerFailed, "failed")),
    }
}

/// The record that these numbers stand for. `op` counts the calls, so that they match their ends.
fn record(ids: &Ids, seed: Seed, op: &mut u64) -> Record {
    let [kind, a, b, c] = seed;
    let by = || Operator { who: "test".to_owned(), from: "here".to_owned() };
    match kind % 24 {
        0..=2 => Record::JobAccepted { job: Arc::new(job(ids, a, b, c)) },
        3 => Record::JobForwarded { job: ids.job(a) },
        4 => Record::JobResolved { job: ids.job(a), vm: ids.vm(b) },
        5 => Record::ChildEnded { job: ids.job(a), index: u32::from(b), outcome: outcome(c), vm: None },
        6 => Record::JobEnded {
            job: ids.job(a),
            outcome: outcome(b),
            vms: vec![VmSummary {
                id: ids.vm(c),
                name: name(c).parse().unwrap(),
                home: None,
                state: VmState::Running,
                seq: Seq(u64::from(c)),
            }],
        },
        7 => Record::JobsRetired { jobs: vec![ids.job(a)] },
        9 if c % 3 == 0 => Record::WorkAdmitted {
            work: Arc::new(Work {
                vm: ids.vm(a),
                job: JobId::from_uuid(uuid::Uuid::nil()),
                index: 0,
                tenant: tenant(b),
                accepted_at: WallMs(5),
                deadline_at: None,
                task: Task::Adopt(Arc::new(Adoption {
                    name: name(b).parse().unwrap(),
                    size: size(c),
                    template: template(b),
                    manager: manager(b),
                    foreign: None,
                    op: OpNumber(u64::from(b)),
                })),
            }),
        },
        8 | 9 => Record::WorkAdmitted {
            work: Arc::new(Work {
                vm: ids.vm(a),
                job: ids.job(b),
                index: 1,
                tenant: tenant(c),
                accepted_at: WallMs(5),
                deadline_at: None,
                task: Task::Create {
                    name: name(c).parse().unwrap(),
                    size: size(c),
                    template: template(c),
                    power: Power::On,
                    only: None,
                    of: 1,
                },
            }),
        },
        10..=13 => {
            *op += 1;
            // Beside single steps, many creates, which give VMs a place.
            let step = if c % 2 == 0 { Step::Create } else { STEPS[usize::from(b) % STEPS.len()] };
            Record::StepBegun { vm: ids.vm(a), op: OpNumber(*op), step, manager: manager(b), host: None }
        }
        14..=17 => {
            Record::StepEnded { vm: ids.vm(a), op: OpNumber(op.saturating_sub(u64::from(c % 3))), result: result(b, c) }
        }
        18 => Record::Moved { vm: ids.vm(a) },
        19 => Record::Parked { vm: ids.vm(a), failure: Failure::lasting(FailureCode::ManagerFailed, "failed") },
        20 => Record::Unparked {
            vm: ids.vm(a),
            decision: if b % 2 == 0 { ParkedDecision::Retry } else { ParkedDecision::Abandon },
            by: by(),
        },
        21 => Record::WorkEnded { vm: ids.vm(a), job: ids.job(b), outcome: outcome(c) },
        22 => Record::VmsForgotten { vms: vec![ids.vm(a)] },
        _ => match b % 2 {
            0 => Record::ManagerCordoned { manager: manager(a), cordoned: c % 2 == 0, by: by() },
            _ => Record::HostCordoned { manager: manager(a), host: host(b), cordoned: c % 2 == 0, by: by() },
        },
    }
}

/// A log: entries with their sequences, which have holes in their numbers (as on a shared stream).
pub(crate) fn log(ids: &Ids, seeds: &[Vec<Seed>]) -> Vec<(Seq, Entry)> {
    let mut op = 0;
    let mut prev = Seq::ZERO;
    let mut epoch = 1;
    let mut out = Vec::new();
    for (n, records) in seeds.iter().enumerate() {
        let first = records.first().copied().unwrap_or_default();
        let opens = n == 0 || first[0] == 255;
        let stale = !opens && first[0] == 254;
        if opens && n > 0 {
            epoch += 1;
        }
        let mut made: Vec<Record> = records.iter().map(|seed| record(ids, *seed, &mut op)).collect();
        if opens {
            made.insert(0, Record::Opened { cell: "c1".parse().unwrap(), address: "local:c1".to_owned() });
        }
        let seq = Seq(prev.0 + 1 + u64::from(first[3] % 3));
        let entry = Entry {
            epoch: Epoch(if stale { epoch - 1 } else { epoch }),
            prev,
            at: WallMs(1_700_000_000_000 + 1_000 * n as u64 + u64::from(first[2])),
            jobs: None,
            control: None,
            records: made,
        };
        out.push((seq, entry));
        prev = seq;
    }
    out
}

/// Any log.
pub(crate) fn seeds() -> impl Strategy<Value = Vec<Vec<Seed>>> {
    prop::collection::vec(prop::collection::vec(any::<Seed>(), 1..4), 1..120)
}
