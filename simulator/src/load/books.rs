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
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::latencies::Latencies;
use super::order::{Data, Order};
use super::report::{Exact, Failures, Tally};
use super::series::Series;
use super::target::How;
use super::tenants::Tenants;
use super::workload::{Planned, Task, Workload};
use super::{Options, Pace};

/// The label that every VM of a run carries, with the run's id.
pub(super) const LABEL: &str = "cellbus-load";
/// A VM with this many snapshots loses one instead of taking another.
const SNAPSHOTS_MAX: usize = 3;
/// Makes the stream of tenants another than that of operations.
const TURNS: u64 = 0x7465_6e61_6e74;

/// An event that is ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) job: JobId,
    pub(super) json: String,
    /// When it should have been sent, where its workload says that.
    pub(super) due: Option<Mono>,
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
    /// Operations for which no VM was free, sent as creates.
    pub turned: u64,
    /// VMs made.
    pub created: u64,
    /// VMs deleted again.
    pub deleted: u64,
}

pub(super) struct Books {
    run: String,
    tenants: Tenants,
    pace: Pace,
    source: String,
    managers: Vec<String>,
    /// Of what is done to which VM.
    rng: SmallRng,
    /// Of whose turn it is.
    turns: SmallRng,
    /// Whose the next job is, once that was drawn.
    turn: Option<usize>,
    work: Peekable<Workload>,
    began: Mono,
    vms: Vec<Vm>,
    /// How many were asked for: names are never used again, places in `vms` are.
    named: u64,
    /// Places of VMs that are gone and that nothing refers to.
    vacant: Vec<usize>,
    by_key: HashMap<Arc<str>, usize, FixedState>,
    /// For each tenant, VMs that operations may be done on: there, with no job under way.
    idle: Vec<Vec<usize>>,
    /// For each tenant, jobs under way after which a VM may become idle.
    stirring: Vec<u64>,
    open: HashMap<JobId, Job, FixedState>,
    /// Open jobs, oldest first.
    order: BTreeMap<u64, JobId>,
    pub(super) counts: Counts,
    pub(super) failures: BTreeMap<String, Failures>,
    pub(super) latencies: Exact,
    pub(super) series: Series,
    by_type: BTreeMap<&'static str, Tallied>,
    by_tenant: Vec<Tallied>,
}

/// What became of some of the jobs.
#[derive(Clone, Default)]
struct Tallied {
    succeeded: u64,
    failed: u64,
    latencies: Latencies,
}

struct Vm {
    id: VmId,
    tenant: usize,
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
    kind: &'static str,
    /// `None`: none of the run's.
    tenant: Option<usize>,
    acknowledged: Option<Mono>,
    effect: Effect,
}

/// What is known of a job when it is opened.
struct Opened {
    id: JobId,
    due: Mono,
    kind: &'static str,
    tenant: Option<usize>,
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
    pub(super) fn new(run: &str, options: &Options, managers: Vec<String>, work: Workload, began: Mono) -> Self {
        let tenants = options.tenants.count();
        Self {
            run: run.to_owned(),
            tenants: options.tenants.clone(),
            pace: options.pace,
            source: format!("/cellbus/load/{run}"),
            managers,
            rng: SmallRng::seed_from_u64(options.seed),
            turns: SmallRng::seed_from_u64(options.seed ^ TURNS),
            turn: None,
            work: work.peekable(),
            began,
            vms: Vec::new(),
            named: 0,
            vacant: Vec::new(),
            by_key: HashMap::with_hasher(FixedState::with_seed(0)),
            idle: vec![Vec::new(); tenants],
            stirring: vec![0; tenants],
            open: HashMap::with_hasher(FixedState::with_seed(0)),
            order: BTreeMap::new(),
            counts: Counts::default(),
            failures: BTreeMap::new(),
            latencies: Exact::new(),
            series: Series::default(),
            by_type: BTreeMap::new(),
            by_tenant: vec![Tallied::default(); tenants],
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
                Task::Operate(_) => {
                    let tenant = *self.turn.get_or_insert_with(|| self.tenants.draw(&mut self.turns));
                    if self.idle[tenant].is_empty() && self.stirring[tenant] > 0 {
                        match self.pace {
                            Pace::InOrder => return Next::Blocked,
                            // A clock that waited for the cluster would not show how slow it is.
                            Pace::OnTime => self.counts.turned += 1,
                        }
                    }
                }
                Task::Create { .. } | Task::Event(_) => {}
            }
            let Some(Planned { task, due: planned }) = self.work.next() else { return Next::Over };
            if let Some(prepared) = self.prepare(task, due, now) {
                return Next::Send(Prepared { due: planned.map(|_| due), ..prepared });
            }
        }
    }

    /// Whether something is due that has not been taken.
    pub(super) fn behind(&mut self, now: Mono) -> bool {
        let began = self.began;
        self.work.peek().and_then(|planned| planned.due).is_some_and(|due| began.after(due) <= now)
    }

    /// A job is handed to a connection, at last.
    pub(super) fn sent(&mut self, now: Mono, late: Duration) {
        let moment = self.series.at(now.since(self.began));
        moment.sent += 1;
        moment.late_ms = moment.late_ms.max(late.as_secs_f64() * 1e3);
    }

    fn prepare(&mut self, task: Task, due: Mono, now: Mono) -> Option<Prepared> {
        let number = self.counts.sent;
        let (effect, event) = match task {
            Task::Create { key, size } => {
                let tenant = self.turn();
                self.create(tenant, key, size)
            }
            Task::Delete { key } => {
                let vm = *self.by_key.get(&key)?;
                self.delete(vm)
            }
            Task::Operate(kind) => {
                let tenant = self.turn();
                match self.idle[tenant].len() {
                    0 => self.create(tenant, None, Size { vcpus: 1, memory_mib: 2048, disk_gib: 20 }),
                    idle => {
                        let chosen = self.rng.random_range(0..idle);
                        let vm = self.idle[tenant].swap_remove(chosen);
                        self.operate(vm, kind)
                    }
                }
            }
            Task::Event(event) => return self.foreign(event, due, now),
        };
        let id = format!("{}-{number}", self.run);
        let tenant = effect.vm().map_or(0, |vm| self.vms[vm].tenant);
        let job = JobId::derive(self.tenants.name(tenant), &self.source, &id);
        if let Effect::Create(vm) = effect {
            self.vms[vm].id = job.vm(0);
        }
        let (kind, subject, data) = event;
        let order = Order { id: &id, source: &self.source, tenant: self.tenants.name(tenant), kind, subject, data };
        let event = order.event();
        let job = Opened { id: job, due, kind: kind.as_str(), tenant: Some(tenant), effect };
        Some(self.opened(job, event, now))
    }

    /// Whose job it is.
    fn turn(&mut self) -> usize {
        self.turn.take().unwrap_or_else(|| self.tenants.draw(&mut self.turns))
    }

    fn opened(&mut self, job: Opened, json: String, now: Mono) -> Prepared {
        let Opened { id, due, kind, tenant, effect } = job;
        let number = self.counts.sent;
        self.counts.sent += 1;
        if let Some(tenant) = self.stirs(&effect) {
            self.stirring[tenant] += 1;
        }
        self.order.insert(number, id);
        self.open.insert(id, Job { number, due, kind, tenant, acknowledged: None, effect });
        self.series.at(due.since(self.began)).due += 1;
        let open = self.open() as u64;
        let moment = self.series.at(now.since(self.began));
        moment.open = moment.open.max(open);
        Prepared { job: id, json, due: None }
    }

    /// The tenant for whom a VM may become idle when this has ended.
    fn stirs(&self, effect: &Effect) -> Option<usize> {
        effect.vm().filter(|vm| self.vms[*vm].pooled).map(|vm| self.vms[vm].tenant)
    }

    fn create(&mut self, tenant: usize, key: Option<Arc<str>>, size: Size) -> (Effect, (JobKind, Option<VmId>, Data)) {
        let number = self.named;
        self.named += 1;
        let mut labels = BTreeMap::from([(LABEL, self.run.clone())]);
        if let Some(key) = &key {
            labels.insert("trace", key.chars().take(255).collect());
        }
        // Unique to the run, so that a name that is there twice is a VM that was made twice.
        let name = format!("vm-{}-{number}", self.run);
        let image = if key.is_some() { "trace" } else { "debian-12" };
        let data = Data::Provision { name, size, image, labels };
        let made = Vm {
            id: VmId::from_uuid(uuid::Uuid::nil()),
            tenant,
            state: State::Creating,
            power: PowerState::Running,
            size,
            pooled: key.is_none(),
            snapshots: SmallVec::new(),
        };
        let vm = match self.vacant.pop() {
            Some(vm) => {
                self.vms[vm] = made;
                vm
            }
            None => {
                self.vms.push(made);
                self.vms.len() - 1
            }
        };
        if let Some(key) = key {
            self.by_key.insert(key, vm);
        }
        (Effect::Create(vm), (JobKind::Provision, None, data))
    }

    fn delete(&mut self, vm: usize) -> (Effect, (JobKind, Option<VmId>, Data)) {
        self.vms[vm].state = State::Deleting;
        (Effect::Delete(vm), (JobKind::Delete, Some(self.vms[vm].id), Data::Nothing {}))
    }

    /// What was drawn, or what is legal for this VM in its place.
    fn operate(&mut self, vm: usize, drawn: JobKind) -> (Effect, (JobKind, Option<VmId>, Data)) {
        use PowerState::{Running, Stopped, Suspended};
        let number = self.counts.sent;
        let (id, power, disk_gib) = (self.vms[vm].id, self.vms[vm].power, self.vms[vm].size.disk_gib);
        let oldest = self.vms[vm].snapshots.first().copied();
        let full = self.vms[vm].snapshots.len() >= SNAPSHOTS_MAX;
        let with = |effect, kind, data| (effect, (kind, Some(id), data));
        let snapshot = |number: u64| Data::Snapshot { snapshot: format!("s{number}") };
        match (drawn, power, oldest) {
            (JobKind::Delete, ..) => self.delete(vm),
            (JobKind::Stop, ..) => with(Effect::Power(vm, Stopped), JobKind::Stop, Data::Nothing {}),
            (JobKind::Suspend, Running, _) => with(Effect::Power(vm, Suspended), JobKind::Suspend, Data::Nothing {}),
            (JobKind::Restart, Running, _) => with(Effect::Nothing(vm), JobKind::Restart, Data::Nothing {}),
            // Neither its shape nor its manager changes while its memory lies on disk.
            (
                JobKind::Resume | JobKind::Suspend | JobKind::Restart | JobKind::Resize | JobKind::Migrate,
                Suspended,
                _,
            )
            | (JobKind::Resume, Running, _) => with(Effect::Power(vm, Running), JobKind::Resume, Data::Nothing {}),
            (JobKind::Start, ..) | (JobKind::Resume | JobKind::Suspend | JobKind::Restart, Stopped, _) => {
                with(Effect::Power(vm, Running), JobKind::Start, Data::Nothing {})
            }
            (JobKind::Resize, ..) => {
                let disk_gib = disk_gib + 1;
                with(Effect::Grow(vm, disk_gib), JobKind::Resize, Data::Resize { disk_gib })
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
                with(Effect::Nothing(vm), JobKind::Migrate, Data::Migrate { manager: to.clone() })
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
    fn foreign(&mut self, event: Value, due: Mono, now: Mono) -> Option<Prepared> {
        let text = |name: &str| event.get(name).and_then(Value::as_str);
        let tenant = text("tenant").unwrap_or(self.tenants.name(0));
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
        let known = JobKind::ALL.iter().find(|kind| text("type") == Some(type_of(**kind).as_str()));
        let kind = known.map_or("other", |kind| kind.as_str());
        let whose = (0..self.tenants.count()).find(|known| self.tenants.name(*known) == tenant);
        let count = event.get("data").and_then(|data| data.get("count")).and_then(Value::as_u64).unwrap_or(1);
        let mut event = event;
        if event.get("tenant").is_none() {
            event["tenant"] = json!(self.tenants.name(0));
        }
        let effect = Effect::Foreign(if provision { count } else { 0 });
        let job = Opened { id: job, due, kind, tenant: whose, effect };
        Some(self.opened(job, event.to_string(), now))
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
        self.series.at(at.since(self.began)).acknowledged += jobs.len() as u64;
        self.counts.acknowledged += jobs.len() as u64;
        for job in jobs {
            // One that has ended before its acknowledgement arrived is not open any more.
            if let Some(job) = self.open.get_mut(job) {
                job.acknowledged = Some(at);
            }
        }
    }

    /// The cluster does not take this one.
    pub(super) fn refused(&mut self, job: JobId, code: &str, words: &str, at: Mono) {
        let Some(job) = self.close(job) else { return };
        self.counts.refused += 1;
        self.series.at(at.since(self.began)).failed += 1;
        self.fail(code, words);
        if let Some(vm) = job.effect.vm() {
            let state = match job.effect {
                Effect::Create(_) => State::Gone,
                Effect::Delete(_)
                | Effect::Power(..)
                | Effect::Grow(..)
                | Effect::Snapshot(..)
                | Effect::DropSnapshot(..)
                | Effect::Nothing(_)
                | Effect::Foreign(_) => State::There,
            };
            self.is_now(vm, state);
        }
    }

    fn is_now(&mut self, vm: usize, state: State) {
        self.vms[vm].state = state;
        if state == State::Gone && self.vms[vm].pooled {
            // Nobody will ask for it again, and a long run makes many.
            self.vacant.push(vm);
        }
    }

    fn close(&mut self, job: JobId) -> Option<Job> {
        let job = self.open.remove(&job)?;
        self.order.remove(&job.number);
        if let Some(tenant) = self.stirs(&job.effect) {
            self.stirring[tenant] -= 1;
        }
        Some(job)
    }

    /// A job has ended; `false` if it is none of this run's, or had ended before.
    pub(super) fn ended(&mut self, job: JobId, how: &How, at: Mono) -> bool {
        let Some(job) = self.close(job) else { return false };
        let latency = at.since(job.due);
        self.latencies.add(latency);
        let good = matches!(how, How::Succeeded);
        let tallied = [Some(self.by_type.entry(job.kind).or_default()), job.tenant.map(|of| &mut self.by_tenant[of])];
        for tallied in tallied.into_iter().flatten() {
            *if good { &mut tallied.succeeded } else { &mut tallied.failed } += 1;
            tallied.latencies.add(latency);
        }
        self.series.at(job.due.since(self.began)).latency.add(latency);
        let moment = self.series.at(at.since(self.began));
        *if good { &mut moment.succeeded } else { &mut moment.failed } += 1;
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
        match effect {
            Effect::Create(_) => self.counts.created += 1,
            Effect::Delete(_) => {
                self.counts.deleted += 1;
                self.is_now(index, State::Gone);
                return;
            }
            Effect::Power(..)
            | Effect::Grow(..)
            | Effect::Snapshot(..)
            | Effect::DropSnapshot(..)
            | Effect::Nothing(_)
            | Effect::Foreign(_) => {}
        }
        let vm = &mut self.vms[index];
        match effect {
            Effect::Create(_) => vm.state = State::There,
            Effect::Power(_, power) => vm.power = *power,
            Effect::Grow(_, disk_gib) => vm.size.disk_gib = *disk_gib,
            Effect::Snapshot(_, number) => vm.snapshots.push((*number, vm.power)),
            Effect::DropSnapshot(_, number) => vm.snapshots.retain(|(taken, _)| taken != number),
            Effect::Delete(_) | Effect::Nothing(_) | Effect::Foreign(_) => {}
        }
        if vm.pooled && vm.state == State::There {
            self.idle[vm.tenant].push(index);
        }
    }

    fn failed_on(&mut self, effect: &Effect) {
        if let Some(vm) = effect.vm() {
            let state = match effect {
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
            self.is_now(vm, state);
        }
    }

    /// What became of the jobs of each type.
    pub(super) fn by_type(&self) -> BTreeMap<String, Tally> {
        self.by_type.iter().map(|(kind, tallied)| ((*kind).to_owned(), tallied.tally())).collect()
    }
    /// How long the jobs of each type took.
    pub(super) fn latency_by_type(&self) -> BTreeMap<String, Latencies> {
        self.by_type.iter().map(|(kind, tallied)| ((*kind).to_owned(), tallied.latencies.clone())).collect()
    }
    /// What became of the jobs of each tenant.
    pub(super) fn by_tenant(&self) -> BTreeMap<String, Tally> {
        let named = |(of, tallied): (usize, &Tallied)| (self.tenants.name(of).to_owned(), tallied.tally());
        self.by_tenant.iter().enumerate().map(named).collect()
    }

    /// What must be there, by what was acknowledged and has ended.
    pub(super) fn expected(&self) -> Expected {
        let of = |wanted: &[State]| self.vms.iter().filter(|vm| wanted.contains(&vm.state)).map(|vm| vm.id).collect();
        Expected { there: of(&[State::There]), unclear: of(&[State::Unclear, State::Creating, State::Deleting]) }
    }
}

impl Tallied {
    fn tally(&self) -> Tally {
        Tally { succeeded: self.succeeded, failed: self.failed, latency_ms: (&self.latencies).into() }
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
mod tests;
