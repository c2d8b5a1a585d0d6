//! The harness's own books: what it asked for, what it was told, and what must therefore be there.

use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::cloudevent::type_of;
use cellbus_bus::ids::{JobId, VmId};
use cellbus_bus::job::{JobKind, Size};
use cellbus_directory::vm::PowerState;
use foldhash::fast::FixedState;
use rand::Rng as _;
use rand::rngs::SmallRng;
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::report::{Failures, Latencies};
use super::target::How;
use super::workload::{Planned, Task, Workload};

/// The label that every VM of a run carries, with the run's id.
pub(super) const LABEL: &str = "cellbus-load";
/// A VM with this many snapshots loses one instead of taking another.
const SNAPSHOTS_MAX: usize = 3;

/// An event that is ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) job: JobId,
    pub(super) json: String,
}

/// What can be sent next.
#[derive(Debug)]
pub(super) enum Next {
    Send(Prepared),
    /// Nothing before this much time has passed.
    NotBefore(Duration),
    /// Nothing before a job has ended.
    Blocked,
    /// Nothing any more.
    Over,
}

/// Sums, for progress and report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs that were sent, acknowledged or not.
    pub sent: u64,
    /// Jobs that the cluster acknowledged.
    pub acknowledged: u64,
    /// Ended as asked.
    pub succeeded: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// Refused.
    pub refused: u64,
    /// Not asked for, as what they needed had failed.
    pub skipped: u64,
    /// VMs made.
    pub created: u64,
    /// VMs deleted again.
    pub deleted: u64,
}

pub(super) struct Books {
    run: String,
    tenant: String,
    source: String,
    managers: Vec<String>,
    rng: SmallRng,
    work: Peekable<Workload>,
    began: Mono,
    vms: Vec<Vm>,
    by_key: HashMap<Arc<str>, usize, FixedState>,
    /// VMs that operations may be done on: there, with no job under way.
    idle: Vec<usize>,
    /// Jobs under way after which a VM may become idle.
    stirring: u64,
    open: HashMap<JobId, Job, FixedState>,
    /// Open jobs, oldest first.
    order: BTreeMap<u64, JobId>,
    pub(super) counts: Counts,
    pub(super) failures: BTreeMap<String, Failures>,
    pub(super) latencies: Latencies,
}

struct Vm {
    id: VmId,
    state: State,
    power: PowerState,
    size: Size,
    pooled: bool,
    snapshots: SmallVec<[(u64, PowerState); 1]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its create has not ended.
    Creating,
    /// It must be there.
    There,
    /// A delete has not ended.
    Deleting,
    /// It must not be there.
    Gone,
    /// Something failed on it half way: it may be there or not.
    Unclear,
}

struct Job {
    number: u64,
    due: Mono,
    acknowledged: Option<Mono>,
    effect: Effect,
}

/// What follows when the job succeeds.
enum Effect {
    Create(usize),
    Delete(usize),
    Power(usize, PowerState),
    Grow(usize, u64),
    Snapshot(usize, u64),
    DropSnapshot(usize, u64),
    /// Nothing that the books keep.
    Nothing(usize),
    /// Somebody's own event: so many VMs, if it is a provision.
    Foreign(u64),
}

/// What must be there when all jobs have ended.
pub(super) struct Expected {
    pub(super) there: Vec<VmId>,
    /// Not known either way.
    pub(super) unclear: Vec<VmId>,
}

impl Books {
    pub(super) fn new(
        run: &str,
        tenant: &str,
        managers: Vec<String>,
        work: Workload,
        rng: SmallRng,
        began: Mono,
    ) -> Self {
        Self {
            run: run.to_owned(),
            tenant: tenant.to_owned(),
            source: format!("/cellbus/load/{run}"),
            managers,
            rng,
            work: work.peekable(),
            began,
            vms: Vec::new(),
            by_key: HashMap::with_hasher(FixedState::with_seed(0)),
            idle: Vec::new(),
            stirring: 0,
            open: HashMap::with_hasher(FixedState::with_seed(0)),
            order: BTreeMap::new(),
            counts: Counts::default(),
            failures: BTreeMap::new(),
            latencies: Latencies::new(),
        }
    }

    /// Jobs that have not ended.
    pub(super) fn open(&self) -> usize {
        self.order.len()
    }

    /// Acknowledged before `before` and not ended, oldest first.
    pub(super) fn overdue(&self, before: Mono, count: usize) -> Vec<JobId> {
        let overdue = |id: &&JobId| self.open.get(id).and_then(|job| job.acknowledged).is_some_and(|at| at <= before);
        self.order.values().filter(overdue).take(count).copied().collect()
    }

    /// Takes the next task that may be sent. Tasks go strictly in their order: one that must wait
    /// holds up all that come after it.
    pub(super) fn next(&mut self, now: Mono) -> Next {
        loop {
            let Some(planned) = self.work.peek() else { return Next::Over };
            let due = match planned.due {
                None => now,
                Some(after) => self.began.after(after),
            };
            if due > now {
                return Next::NotBefore(due.since(now));
            }
            match &planned.task {
                Task::Delete { key } => match self.by_key.get(key).map(|vm| self.vms[*vm].state) {
                    Some(State::Creating) => return Next::Blocked,
                    Some(State::There) => {}
                    Some(State::Deleting | State::Gone | State::Unclear) | None => {
                        self.counts.skipped += 1;
                        self.work.next();
                        continue;
                    }
                },
                Task::Operate(_) if self.idle.is_empty() && self.stirring > 0 => return Next::Blocked,
                Task::Operate(_) | Task::Create { .. } | Task::Event(_) => {}
            }
            let Some(Planned { task, .. }) = self.work.next() else { return Next::Over };
            if let Some(prepared) = self.prepare(task, due) {
                return Next::Send(prepared);
            }
        }
    }

    fn prepare(&mut self, task: Task, due: Mono) -> Option<Prepared> {
        let number = self.counts.sent;
        let (effect, event) = match task {
            Task::Create { key, size } => self.create(key, size),
            Task::Delete { key } => {
                let vm = *self.by_key.get(&key)?;
                self.delete(vm)
            }
            Task::Operate(kind) => match self.idle.len() {
                0 => self.create(None, Size { vcpus: 1, memory_mib: 2048, disk_gib: 20 }),
                idle => {
                    let chosen = self.rng.random_range(0..idle);
                    let vm = self.idle.swap_remove(chosen);
                    self.operate(vm, kind)
                }
            },
            Task::Event(event) => return self.foreign(event, due),
        };
        let id = format!("{}-{number}", self.run);
        let job = JobId::derive(&self.tenant, &self.source, &id);
        if let Effect::Create(vm) = effect {
            self.vms[vm].id = job.vm(0);
        }
        let (kind, subject, data) = event;
        let mut json = json!({
            "specversion": "1.0", "id": id, "source": self.source, "type": type_of(kind), "tenant": self.tenant,
            "datacontenttype": "application/json", "data": data,
        });
        if let Some(subject) = subject {
            json["subject"] = json!(subject.to_string());
        }
        Some(self.opened(job, due, effect, json.to_string()))
    }

    fn opened(&mut self, job: JobId, due: Mono, effect: Effect, json: String) -> Prepared {
        let number = self.counts.sent;
        self.counts.sent += 1;
        self.stirring += u64::from(self.stirs(&effect));
        self.order.insert(number, job);
        self.open.insert(job, Job { number, due, acknowledged: None, effect });
        Prepared { job, json }
    }

    fn stirs(&self, effect: &Effect) -> bool {
        effect.vm().is_some_and(|vm| self.vms[vm].pooled)
    }

    fn create(&mut self, key: Option<Arc<str>>, size: Size) -> (Effect, (JobKind, Option<VmId>, Value)) {
        let vm = self.vms.len();
        let mut labels = json!({ LABEL: self.run });
        if let Some(key) = &key {
            labels["trace"] = json!(key.chars().take(255).collect::<String>());
        }
        // Unique to the run, so that a name that is there twice is a VM that was made twice.
        let data = json!({
            "name": format!("vm-{}-{vm}", self.run), "vcpus": size.vcpus, "memory_mib": size.memory_mib,
            "disk_gib": size.disk_gib, "image": if key.is_some() { "trace" } else { "debian-12" }, "labels": labels,
        });
        let pooled = key.is_none();
        if let Some(key) = key {
            self.by_key.insert(key, vm);
        }
        let id = VmId::from_uuid(uuid::Uuid::nil());
        self.vms.push(Vm {
            id,
            state: State::Creating,
            power: PowerState::Running,
            size,
            pooled,
            snapshots: SmallVec::new(),
        });
        (Effect::Create(vm), (JobKind::Provision, None, data))
    }

    fn delete(&mut self, vm: usize) -> (Effect, (JobKind, Option<VmId>, Value)) {
        self.vms[vm].state = State::Deleting;
        (Effect::Delete(vm), (JobKind::Delete, Some(self.vms[vm].id), json!({})))
    }

    /// What was drawn, or what is legal for this VM in its place.
    fn operate(&mut self, vm: usize, drawn: JobKind) -> (Effect, (JobKind, Option<VmId>, Value)) {
        use PowerState::{Running, Stopped, Suspended};
        let number = self.counts.sent;
        let (id, power, disk_gib) = (self.vms[vm].id, self.vms[vm].power, self.vms[vm].size.disk_gib);
        let oldest = self.vms[vm].snapshots.first().copied();
        let full = self.vms[vm].snapshots.len() >= SNAPSHOTS_MAX;
        let with = |effect, kind, data| (effect, (kind, Some(id), data));
        let snapshot = |number: u64| json!({ "snapshot": format!("s{number}") });
        match (drawn, power, oldest) {
            (JobKind::Delete, ..) => self.delete(vm),
            (JobKind::Stop, ..) => with(Effect::Power(vm, Stopped), JobKind::Stop, json!({})),
            (JobKind::Suspend, Running, _) => with(Effect::Power(vm, Suspended), JobKind::Suspend, json!({})),
            (JobKind::Restart, Running, _) => with(Effect::Nothing(vm), JobKind::Restart, json!({})),
            // Neither its shape nor its manager changes while its memory lies on disk.
            (
                JobKind::Resume | JobKind::Suspend | JobKind::Restart | JobKind::Resize | JobKind::Migrate,
                Suspended,
                _,
            )
            | (JobKind::Resume, Running, _) => with(Effect::Power(vm, Running), JobKind::Resume, json!({})),
            (JobKind::Start, ..) | (JobKind::Resume | JobKind::Suspend | JobKind::Restart, Stopped, _) => {
                with(Effect::Power(vm, Running), JobKind::Start, json!({}))
            }
            (JobKind::Resize, ..) => {
                let disk_gib = disk_gib + 1;
                with(Effect::Grow(vm, disk_gib), JobKind::Resize, json!({ "disk_gib": disk_gib }))
            }
            (JobKind::Revert, _, Some((taken, then))) => {
                with(Effect::Power(vm, then), JobKind::Revert, snapshot(taken))
            }
            (JobKind::SnapshotDelete, _, Some((taken, _))) => {
                with(Effect::DropSnapshot(vm, taken), JobKind::SnapshotDelete, snapshot(taken))
            }
            (JobKind::Snapshot, _, Some((taken, _))) if full => {
                with(Effect::DropSnapshot(vm, taken), JobKind::SnapshotDelete, snapshot(taken))
            }
            (JobKind::Migrate, ..) if !self.managers.is_empty() => {
                let to = &self.managers[self.rng.random_range(0..self.managers.len())];
                with(Effect::Nothing(vm), JobKind::Migrate, json!({ "manager": to }))
            }
            (
                JobKind::Snapshot
                | JobKind::Revert
                | JobKind::SnapshotDelete
                | JobKind::Migrate
                | JobKind::Provision
                | JobKind::Cancel,
                _,
                Some(_) | None,
            ) => with(Effect::Snapshot(vm, number), JobKind::Snapshot, snapshot(number)),
        }
    }

    /// Somebody's own event; the key by which its job is known is taken from it.
    fn foreign(&mut self, event: Value, due: Mono) -> Option<Prepared> {
        let text = |name: &str| event.get(name).and_then(Value::as_str);
        let tenant = text("tenant").unwrap_or(&self.tenant);
        let (Some(source), Some(id)) = (text("source"), text("id")) else {
            self.refused_unsent("not_a_job", "an event needs a source and an id");
            return None;
        };
        let job = JobId::derive(tenant, source, id);
        if self.open.contains_key(&job) {
            self.refused_unsent("job_twice", "the same job is under way already");
            return None;
        }
        let provision = text("type") == Some(type_of(JobKind::Provision).as_str());
        let count = event.get("data").and_then(|data| data.get("count")).and_then(Value::as_u64).unwrap_or(1);
        let mut event = event;
        if event.get("tenant").is_none() {
            event["tenant"] = json!(self.tenant);
        }
        let effect = Effect::Foreign(if provision { count } else { 0 });
        Some(self.opened(job, due, effect, event.to_string()))
    }

    fn refused_unsent(&mut self, code: &str, words: &str) {
        self.counts.refused += 1;
        self.fail(code, words);
    }

    fn fail(&mut self, code: &str, words: &str) {
        let seen = self.failures.entry(code.to_owned()).or_default();
        if seen.count == 0 {
            words.clone_into(&mut seen.first);
        }
        seen.count += 1;
    }

    /// The cluster has acknowledged these.
    pub(super) fn acknowledged(&mut self, jobs: &[JobId], at: Mono) {
        self.counts.acknowledged += jobs.len() as u64;
        for job in jobs {
            // One that has ended before its acknowledgement arrived is not open any more.
            if let Some(job) = self.open.get_mut(job) {
                job.acknowledged = Some(at);
            }
        }
    }

    /// The cluster does not take this one.
    pub(super) fn refused(&mut self, job: JobId, code: &str, words: &str) {
        let Some(job) = self.close(job) else { return };
        self.counts.refused += 1;
        self.fail(code, words);
        if let Some(vm) = job.effect.vm() {
            let vm = &mut self.vms[vm];
            vm.state = match job.effect {
                Effect::Create(_) => State::Gone,
                Effect::Delete(_)
                | Effect::Power(..)
                | Effect::Grow(..)
                | Effect::Snapshot(..)
                | Effect::DropSnapshot(..)
                | Effect::Nothing(_)
                | Effect::Foreign(_) => State::There,
            };
        }
    }

    fn close(&mut self, job: JobId) -> Option<Job> {
        let job = self.open.remove(&job)?;
        self.order.remove(&job.number);
        self.stirring -= u64::from(self.stirs(&job.effect));
        Some(job)
    }

    /// A job has ended; `false` if it is none of this run's, or had ended before.
    pub(super) fn ended(&mut self, job: JobId, how: &How, at: Mono) -> bool {
        let Some(job) = self.close(job) else { return false };
        self.latencies.add(at.since(job.due));
        match how {
            How::Succeeded => {
                self.counts.succeeded += 1;
                self.happened(&job.effect);
            }
            How::Failed(code, words) => {
                self.counts.failed += 1;
                self.fail(code, words);
                self.failed_on(&job.effect);
            }
            How::Cancelled => {
                self.counts.failed += 1;
                self.fail("cancelled", "somebody called it off");
                self.failed_on(&job.effect);
            }
        }
        true
    }

    fn happened(&mut self, effect: &Effect) {
        let Some(index) = effect.vm() else {
            if let Effect::Foreign(vms) = effect {
                self.counts.created += vms;
            }
            return;
        };
        let vm = &mut self.vms[index];
        match effect {
            Effect::Create(_) => {
                vm.state = State::There;
                self.counts.created += 1;
            }
            Effect::Delete(_) => {
                vm.state = State::Gone;
                self.counts.deleted += 1;
            }
            Effect::Power(_, power) => vm.power = *power,
            Effect::Grow(_, disk_gib) => vm.size.disk_gib = *disk_gib,
            Effect::Snapshot(_, number) => vm.snapshots.push((*number, vm.power)),
            Effect::DropSnapshot(_, number) => vm.snapshots.retain(|(taken, _)| taken != number),
            Effect::Nothing(_) | Effect::Foreign(_) => {}
        }
        if vm.pooled && vm.state == State::There {
            self.idle.push(index);
        }
    }

    fn failed_on(&mut self, effect: &Effect) {
        if let Some(vm) = effect.vm() {
            self.vms[vm].state = match effect {
                // A provision that fails leaves nothing.
                Effect::Create(_) => State::Gone,
                Effect::Delete(_) => State::Unclear,
                Effect::Power(..)
                | Effect::Grow(..)
                | Effect::Snapshot(..)
                | Effect::DropSnapshot(..)
                | Effect::Nothing(_)
                | Effect::Foreign(_) => State::There,
            };
        }
    }

    /// What must be there, by what was acknowledged and has ended.
    pub(super) fn expected(&self) -> Expected {
        let of = |wanted: &[State]| self.vms.iter().filter(|vm| wanted.contains(&vm.state)).map(|vm| vm.id).collect();
        Expected { there: of(&[State::There]), unclear: of(&[State::Unclear, State::Creating, State::Deleting]) }
    }
}

impl Effect {
    fn vm(&self) -> Option<usize> {
        match self {
            Self::Create(vm)
            | Self::Delete(vm)
            | Self::Power(vm, _)
            | Self::Grow(vm, _)
            | Self::Snapshot(vm, _)
            | Self::DropSnapshot(vm, _)
            | Self::Nothing(vm) => Some(*vm),
            Self::Foreign(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::super::workload;
    use super::*;
    use crate::trace::Trace;

    fn books(work: Workload) -> Books {
        Books::new("r1", "acme", vec!["sim-0000".to_owned()], work, SmallRng::seed_from_u64(1), Mono::default())
    }
    fn take(books: &mut Books) -> (JobId, Value) {
        match books.next(Mono::default()) {
            Next::Send(prepared) => (prepared.job, serde_json::from_str(&prepared.json).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_delete_waits_for_its_create_and_holds_up_what_follows() {
        let csv = "vmid,cpu,memory,time,type\na,1,1,0,0\na,1,1,1,1\nb,1,1,2,0\nc,1,1,2,0\nc,1,1,3,1\n";
        let mut books = books(workload::trace(Trace::read(csv.as_bytes()).unwrap(), workload::Speedup::Max));
        let (create, event) = take(&mut books);
        assert_eq!(event["data"]["labels"], json!({"cellbus-load": "r1", "trace": "a"}));
        assert_eq!(event["data"]["memory_mib"], 1024);
        assert!(matches!(books.next(Mono::default()), Next::Blocked));
        assert!(books.ended(create, &How::Succeeded, Mono::default()));
        assert!(!books.ended(create, &How::Succeeded, Mono::default()), "an outcome may come twice and counts once");
        let (delete, event) = take(&mut books);
        assert_eq!(
            (event["type"].as_str(), event["subject"].as_str()),
            (Some("io.cellbus.job.delete.v1"), Some(create.to_string().as_str()))
        );
        let (_, b) = take(&mut books);
        assert_eq!(b["data"]["labels"]["trace"], "b", "a delete holds up nothing once it is sent");
        let (c, _) = take(&mut books);
        books.ended(delete, &How::Succeeded, Mono::default());
        books.ended(c, &How::Failed("no_room".to_owned(), "full".to_owned()), Mono::default());
        assert!(matches!(books.next(Mono::default()), Next::Over), "the delete of what was never made is left out");
        assert_eq!(
            books.counts,
            Counts { sent: 4, succeeded: 2, failed: 1, skipped: 1, created: 1, deleted: 1, ..Counts::default() }
        );
        assert_eq!(books.failures["no_room"], Failures { count: 1, first: "full".to_owned() });
    }

    #[test]
    fn operations_are_legal_for_the_vm_they_meet() {
        let mix: workload::Mix =
            "start=1,stop=1,restart=1,suspend=1,resume=1,snapshot=1,revert=1,snapshot-delete=1,resize=1,migrate=1"
                .parse()
                .unwrap();
        let mut books = books(workload::operations(2_000, &mix, 3));
        let (mut power, mut snapshots, mut disk) = ("running", Vec::new(), 20);
        let mut kinds = std::collections::BTreeSet::new();
        for turn in 0..2_000 {
            let (job, event) = take(&mut books);
            let kind = event["type"]
                .as_str()
                .unwrap()
                .trim_start_matches("io.cellbus.job.")
                .trim_end_matches(".v1")
                .to_owned();
            let snapshot = event["data"]["snapshot"].as_str().map(str::to_owned);
            match kind.as_str() {
                "provision" => assert_eq!(turn, 0),
                "start" | "resume" => {
                    assert!(kind == "start" || power != "stopped");
                    power = "running";
                }
                "stop" => power = "stopped",
                "restart" => assert_eq!(power, "running"),
                "suspend" => {
                    assert_eq!(power, "running");
                    power = "suspended";
                }
                "snapshot" => snapshots.push((snapshot.unwrap(), power)),
                "revert" => power = snapshots.iter().find(|(name, _)| Some(name) == snapshot.as_ref()).unwrap().1,
                "snapshot-delete" => snapshots.retain(|(name, _)| Some(name) != snapshot.as_ref()),
                "resize" => {
                    assert_ne!(power, "suspended");
                    assert!(event["data"]["disk_gib"].as_u64().unwrap() > disk);
                    disk = event["data"]["disk_gib"].as_u64().unwrap();
                }
                "migrate" => {
                    assert_ne!(power, "suspended");
                    assert_eq!(event["data"]["manager"], "sim-0000");
                }
                other => panic!("{other}"),
            }
            kinds.insert(kind);
            assert!(turn == 1_999 || matches!(books.next(Mono::default()), Next::Blocked), "one VM has one job");
            assert!(books.ended(job, &How::Succeeded, Mono::default()));
        }
        assert_eq!(kinds.len(), 11, "{kinds:?}");
        assert_eq!(books.expected().there.len(), 1);
    }

    #[test]
    fn what_is_acknowledged_and_has_no_outcome_is_overdue() {
        let mut books = books(workload::provisions(3, 1));
        let jobs: Vec<_> = (0..3).map(|_| take(&mut books).0).collect();
        let at = |seconds| Mono(Duration::from_secs(seconds));
        books.acknowledged(&jobs[..1], at(5));
        books.acknowledged(&jobs[1..], at(9));
        assert_eq!(books.overdue(at(8), 10), jobs[..1]);
        books.ended(jobs[0], &How::Succeeded, at(9));
        books.refused(jobs[1], "unknown_tenant", "no");
        assert_eq!(books.overdue(at(10), 10), jobs[2..]);
        assert_eq!((books.open(), books.expected().there.len(), books.expected().unclear.len()), (1, 1, 1));
    }

    #[test]
    fn events_of_others_are_known_by_their_key() {
        let event = json!({"id": "7", "source": "/mine", "type": "io.cellbus.job.provision.v1", "data": {"count": 3}});
        let all = vec![event.clone(), event, json!({"id": "8"})];
        let mut books = books(Box::new(all.into_iter().map(|event| Planned { due: None, task: Task::Event(event) })));
        let (job, sent) = take(&mut books);
        assert_eq!((job, &sent["tenant"]), (JobId::derive("acme", "/mine", "7"), &json!("acme")));
        assert!(matches!(books.next(Mono::default()), Next::Over));
        assert_eq!(books.counts.refused, 2);
        books.ended(job, &How::Succeeded, Mono::default());
        assert_eq!(books.counts.created, 3);
    }
}
