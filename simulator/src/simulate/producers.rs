//! Producers: they ask for VMs and for things to be done to them, wait for what they are told, ask
//! again when they are told nothing, and keep books.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::Bus as _;
use cellbus_bus::cloudevent::{self, Limits, TenantFrom, TenantRule, Tenants};
use cellbus_bus::env::Env;
use cellbus_bus::ids::{JobId, ManagerId, VmId};
use cellbus_bus::job::{Job as BusJob, Request, Size, Target};
use cellbus_cell::gateway::{self, Submitted};
use cellbus_directory::JobState;
use cellbus_workflows::{ON_HOST_FAILURE, RESTART};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::books::{Asked, Books, Job, Taken, Vm};
use super::bus::Client;
use super::cells::{Cells, Running};
use super::executor::Executor;
use super::history::History;
use crate::inventory::Inventory;

/// How long a producer waits for an answer to a submission.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
const TENANTS: [&str; 3] = ["acme", "globex", "initech"];

/// What producers do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Jobs a second of virtual time, over all producers.
    pub(super) jobs_per_second: f64,
    /// VMs that are asked for at the most.
    pub(super) vms_max: u64,
    /// Of 100 jobs, how many are provisions while there may be more.
    pub(super) provisions_percent: u32,
}

/// See the module.
pub(super) struct Producers {
    env: Env,
    executor: Arc<Executor>,
    pub(super) books: Arc<Books>,
    cells: Arc<Cells>,
    ingress: Arc<Client>,
    inventory: Inventory,
    history: Arc<History>,
    plan: Plan,
    rng: Mutex<SmallRng>,
    numbers: AtomicUsize,
    vms_asked: AtomicUsize,
    /// Submissions that are not answered yet.
    under_way: AtomicUsize,
    stopped: AtomicBool,
    quiet: AtomicBool,
}

/// A job to be submitted, and what it means.
struct Order {
    job: Arc<BusJob>,
    body: Bytes,
    asked: Asked,
    /// Whether its place among the jobs on its VM is to be known before the next one.
    vm: Option<VmId>,
}

impl Producers {
    #[expect(clippy::too_many_arguments, reason = "each is another part of the simulated world")]
    pub(super) fn new(
        env: Env,
        executor: Arc<Executor>,
        cells: Arc<Cells>,
        ingress: Arc<Client>,
        inventory: Inventory,
        history: Arc<History>,
        plan: Plan,
        seed: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            env,
            executor,
            books: Arc::default(),
            cells,
            ingress,
            inventory,
            history,
            plan,
            rng: Mutex::new(SmallRng::seed_from_u64(seed ^ 0x9d0d)),
            numbers: AtomicUsize::new(0),
            vms_asked: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
        })
    }

    fn rng(&self) -> MutexGuard<'_, SmallRng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No new jobs. What was submitted is still followed.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
    /// Whether every submission has been answered.
    pub(super) fn at_rest(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) == 0
    }

    /// Whether nothing new is asked for at present.
    pub(super) fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Relaxed);
    }

    /// Submits jobs until it is stopped.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let pause = -(1.0 - self.rng().random::<f64>()).ln() / self.plan.jobs_per_second;
            self.env.sleep(Duration::from_secs_f64(pause.min(60.0))).await;
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            if self.quiet.load(Ordering::Relaxed) {
                continue;
            }
            if let Some(order) = self.next_order() {
                self.submit(order);
            }
        }
    }

    /// Hears outcomes for ever.
    pub(super) async fn listen(self: Arc<Self>) {
        let mut reader = loop {
            match self.ingress.read_events(None).await {
                Ok(reader) => break reader,
                Err(_) => self.env.sleep(Duration::from_millis(100)).await,
            }
        };
        let mut heard = None;
        loop {
            match reader.next(1_024).await {
                Ok(events) => {
                    for placed in events {
                        heard = Some(placed.seq);
                        self.history.add(self.executor.now(), || {
                            format!("event {}", String::from_utf8_lossy(&placed.event.body))
                        });
                        self.books.event(&placed.event.body);
                    }
                }
                Err(_) => {
                    self.env.sleep(Duration::from_millis(100)).await;
                    // From the beginning, if nothing was heard yet.
                    let after = heard.unwrap_or(cellbus_bus::ids::Seq::ZERO);
                    if let Ok(again) = self.ingress.read_events(Some(after)).await {
                        reader = again;
                    }
                }
            }
        }
    }

    // ── what is asked for ──

    fn next_order(&self) -> Option<Order> {
        let percent = self.rng().random_range(0..100_u32);
        let more = (self.vms_asked.load(Ordering::Relaxed) as u64) < self.plan.vms_max;
        if more && percent < self.plan.provisions_percent {
            return self.provision();
        }
        if percent >= 96 {
            return self.cancel();
        }
        match self.pick_vm() {
            Some(vm) => self.operate(vm),
            None if more => self.provision(),
            None => None,
        }
    }

    fn number(&self) -> usize {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn provision(&self) -> Option<Order> {
        let number = self.number();
        let (data, size, on, count, tenant, deadline) = {
            let mut rng = self.rng();
            let count = if rng.random_bool(0.12) { rng.random_range(2..6_u32) } else { 1 };
            let size = Size {
                vcpus: rng.random_range(1..5),
                memory_mib: 1_024 * rng.random_range(1..9_u64),
                disk_gib: rng.random_range(10..60),
            };
            let on = rng.random_bool(0.85);
            let app = rng.random_range(0..5);
            let mut labels = json!({"app": format!("a{app}")});
            if app < 2 {
                labels[ON_HOST_FAILURE] = json!(RESTART);
            }
            let mut data = json!({
                "name": format!("vm-{number}"), "count": count, "vcpus": size.vcpus, "memory_mib": size.memory_mib,
                "disk_gib": size.disk_gib, "image": "debian-12", "power": if on { "on" } else { "off" },
                "labels": labels,
            });
            if rng.random_bool(0.2) {
                data["require"] = json!({"gear": format!("g{}", rng.random_range(1..4))});
            }
            match rng.random_range(0..12) {
                0 => data["policy"] = json!({"pack": "host"}),
                1 => data["policy"] = json!({"spread": "manager"}),
                2 => data["policy"] = json!({"affinity": format!("near-{number}")}),
                3 => data["policy"] = json!({"anti_affinity": format!("apart-{number}")}),
                _ => {}
            }
            let deadline = rng.random_bool(0.05);
            if deadline {
                data["deadline_seconds"] = json!(rng.random_range(1..40));
            }
            let tenant = TENANTS.choose(&mut *rng).copied().unwrap_or("acme");
            (data, size, on, count, tenant, deadline)
        };
        let _ = deadline;
        self.vms_asked.fetch_add(count as usize, Ordering::Relaxed);
        self.order(tenant, number, "provision", None, data, Asked::Provision { size, on }, None)
    }

    /// A VM on which no job is in an unknown place, most often one of the last.
    fn pick_vm(&self) -> Option<VmId> {
        let pages = self.books.pages();
        let vms = pages.vms.len();
        if vms == 0 {
            return None;
        }
        let mut rng = self.rng();
        for _ in 0..8 {
            // Ids are hashes: a random one and what comes after it is as good as any.
            let from = VmId::from_uuid(uuid::Uuid::from_u128(rng.random()));
            let found = pages.vms.range(from..).next().or_else(|| pages.vms.iter().next());
            if let Some((id, vm)) = found
                && !vm.unplaced
            {
                return Some(*id);
            }
        }
        None
    }

    fn operate(&self, vm: VmId) -> Option<Order> {
        let number = self.number();
        let (tenant, name) = {
            let pages = self.books.pages();
            let known = pages.vms.get(&vm)?;
            (known.tenant.to_string(), known.name.clone())
        };
        let (kind, data, asked, by_name) = {
            let mut rng = self.rng();
            let snapshot = format!("s{}", rng.random_range(0..3));
            let manager = self.inventory.managers.choose(&mut *rng)?;
            let host = manager.hosts.choose(&mut *rng)?.id.to_string();
            let (kind, data, asked) = match rng.random_range(0..100) {
                0..12 => ("start", json!({}), Asked::Start),
                12..24 => {
                    ("stop", json!({"mode": if rng.random_bool(0.5) { "hard" } else { "graceful" }}), Asked::Stop)
                }
                24..32 => ("restart", json!({"mode": "hard"}), Asked::Restart),
                32..38 => ("suspend", json!({}), Asked::Suspend),
                38..44 => ("resume", json!({}), Asked::Resume),
                44..52 => {
                    let (vcpus, memory) = (rng.random_range(1..7_u32), 1_024 * rng.random_range(1..13_u64));
                    let asked = Asked::Resize { vcpus: Some(vcpus), memory_mib: Some(memory), disk_gib: None };
                    ("resize", json!({"vcpus": vcpus, "memory_mib": memory}), asked)
                }
                52..60 => ("snapshot", json!({"snapshot": snapshot}), Asked::Snapshot(snapshot)),
                60..64 => ("revert", json!({"snapshot": snapshot}), Asked::Revert(snapshot)),
                64..67 => ("snapshot-delete", json!({"snapshot": snapshot}), Asked::SnapshotDelete(snapshot)),
                67..74 => ("migrate", json!({"host": host}), Asked::MigrateHost(host)),
                74..86 => {
                    let asked = Asked::MigrateManager(ManagerId::derive(manager.name.as_str()));
                    ("migrate", json!({"manager": manager.name.as_str()}), asked)
                }
                _ => ("delete", json!({}), Asked::Delete),
            };
            (kind, data, asked, rng.random_bool(0.1))
        };
        let subject = if by_name { name } else { vm.to_string() };
        self.order(&tenant, number, kind, Some(subject), data, asked, Some(vm))
    }

    fn cancel(&self) -> Option<Order> {
        let number = self.number();
        let (job, tenant) = {
            let pages = self.books.pages();
            let job = pages.some_open(&mut self.rng())?;
            (job, pages.jobs.get(&job)?.placed.as_ref()?.to_string())
        };
        self.order(&tenant, number, "cancel", Some(job.to_string()), json!({}), Asked::Cancel, None)
    }

    #[expect(clippy::too_many_arguments, reason = "each is another attribute of the event")]
    fn order(
        &self,
        tenant: &str,
        number: usize,
        kind: &str,
        subject: Option<String>,
        data: Value,
        asked: Asked,
        vm: Option<VmId>,
    ) -> Option<Order> {
        let mut event = json!({
            "specversion": "1.0", "id": format!("j{number}"), "source": "/simulated", "tenant": tenant,
            "type": format!("io.cellbus.job.{kind}.v1"), "datacontenttype": "application/json", "data": data,
        });
        if let Some(subject) = subject {
            event["subject"] = Value::String(subject);
        }
        if self.rng().random_bool(0.04) {
            let before = {
                let pages = self.books.pages();
                pages.some_open(&mut self.rng())
            };
            if let Some(before) = before {
                event["after"] = Value::String(before.to_string());
            }
        }
        let body = Bytes::from(event.to_string());
        let rule = TenantRule { from: TenantFrom::Attribute, known: &Tenants::Any };
        match cloudevent::parse_structured(&body, rule, &Limits::default()) {
            Ok(job) => Some(Order { job: Arc::new(job), body, asked, vm }),
            Err(rejection) => {
                let said = format!("the simulated producer wrote what is refused: {} {body:?}", rejection.message);
                self.books.pages().violations.push((said, Vec::new()));
                None
            }
        }
    }

    // ── how it is submitted ──

    fn submit(self: &Arc<Self>, order: Order) {
        let id = order.job.id;
        {
            let mut pages = self.books.pages();
            let kind = order.job.request.kind();
            let count = match &order.job.request {
                Request::Provision(provision) => provision.count,
                Request::Operate(..) | Request::Cancel(_) => 1,
            };
            let (asked, taken) = (order.asked.clone(), Taken::Unknown);
            let placed = matches!(order.job.request, Request::Provision(_)).then(|| order.job.tenant.clone());
            let job = Job { kind, asked, count, taken, ended: Default::default(), placed };
            pages.jobs.insert(id, job);
            if let Request::Provision(provision) = &order.job.request {
                for index in 0..provision.count {
                    let vm = Vm {
                        tenant: order.job.tenant.clone(),
                        name: provision.vm_name(index).to_string(),
                        job: id,
                        jobs: vec![id],
                        unplaced: true,
                        loose: None,
                        restored: false,
                    };
                    pages.vms.insert(id.vm(index), vm);
                }
            }
            if let Some(vm) = order.vm.and_then(|vm| pages.vms.get_mut(&vm)) {
                vm.unplaced = true;
            }
        }
        self.history.add(self.executor.now(), || {
            let about = match &order.job.request {
                Request::Provision(_) => String::new(),
                Request::Operate(Target::Id(vm), _) => format!(" on {vm}"),
                Request::Operate(Target::Name(name), _) => format!(" on {name} ({:?})", order.vm),
                Request::Cancel(job) => format!(" of {job}"),
            };
            format!("producer submits {id} {:?}{about} {}", order.asked, String::from_utf8_lossy(&order.body))
        });
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let this = Arc::clone(self);
        self.env.spawn("a producer", async move {
            this.follow(order).await;
            this.under_way.fetch_sub(1, Ordering::Relaxed);
        });
    }

    async fn follow(&self, order: Order) {
        let id = order.job.id;
        let (by_ingress, impatient, twice, clashes) = {
            let mut rng = self.rng();
            (rng.random_bool(0.2), rng.random_bool(0.02), rng.random_bool(0.06), rng.random_bool(0.03))
        };
        let taken = if by_ingress {
            self.by_ingress(&order, impatient).await
        } else {
            self.by_gateway(&order.job, impatient).await
        };
        self.history.add(self.executor.now(), || format!("producer hears of {id}: {taken:?}"));
        self.books.pages().taken(id, taken.clone());
        if taken == Taken::Accepted {
            self.placed(&order).await;
        } else {
            self.loosen(&order, "a submission was given up on");
        }
        if twice {
            // The same again is the same job.
            let again = self.by_gateway(&order.job, true).await;
            if taken == Taken::Accepted && matches!(again, Taken::Refused(_)) {
                let said = format!("job {id} was accepted, and the same again was answered {again:?}");
                self.books.pages().violations.push((said, vec![id.to_string()]));
            }
        }
        // Where it was seen that its home knows it: of two that come at once, either may be the first.
        let known = order.vm.is_some() || matches!(order.job.request, Request::Provision(_));
        if clashes && known && taken == Taken::Accepted {
            let mut other = BusJob::clone(&order.job);
            other.digest = cellbus_bus::job::Digest::of(b"something else");
            let answer = self.submit_once(&Arc::new(other)).await;
            // One that is only queued may still be refused, which its home has not had time to say.
            if let Some(Ok(Submitted::Accepted { state, .. })) = answer
                && state != JobState::Queued
            {
                let said = format!("job {id} was accepted again with other data");
                self.books.pages().violations.push((said, vec![id.to_string()]));
            }
        }
    }

    fn some_cell(&self) -> Option<Running> {
        let cells = self.cells.all();
        cells.choose(&mut *self.rng()).cloned()
    }

    async fn submit_once(&self, job: &Arc<BusJob>) -> Option<gateway::Result<Submitted>> {
        let cell = self.some_cell()?;
        let jobs = vec![Arc::clone(job)];
        let submit = move |gateway: cellbus_cell::Gateway| async move { gateway.submit(jobs).await };
        match self.cells.ask(&self.env, &cell, ANSWER_LIMIT, submit).await? {
            Ok(answers) => answers.into_iter().next().map(Ok),
            Err(error) => Some(Err(error)),
        }
    }

    /// Submits until there is an answer; one who is impatient asks once.
    async fn by_gateway(&self, job: &Arc<BusJob>, impatient: bool) -> Taken {
        loop {
            match self.submit_once(job).await {
                // Not decided in time: the answer is that it will be.
                Some(Ok(Submitted::Accepted { .. })) => return Taken::Accepted,
                Some(Ok(Submitted::Conflict { .. })) => return Taken::Refused("job_conflict".to_owned()),
                Some(Ok(Submitted::Refused { code, .. })) => return Taken::Refused(code),
                Some(Err(error)) if !error.retryable() => return Taken::Refused(error.code().to_owned()),
                Some(Err(_)) | None => {}
            }
            if impatient {
                return Taken::Unknown;
            }
            self.pause().await;
        }
    }

    async fn by_ingress(&self, order: &Order, impatient: bool) -> Taken {
        loop {
            let sent = self.ingress.ingress_publish(order.job.tenant.as_str(), Vec::new(), order.body.clone()).await;
            match sent {
                Ok(()) => return Taken::Accepted,
                Err(_) if impatient => return Taken::Unknown,
                Err(_) => self.pause().await,
            }
        }
    }

    async fn pause(&self) {
        let pause = self.rng().random_range(100..2_000);
        self.env.sleep(Duration::from_millis(pause)).await;
    }

    /// Waits until the job is in the order of its VM, and notes its place.
    async fn placed(&self, order: &Order) {
        let id = order.job.id;
        let provisions = matches!(order.job.request, Request::Provision(_));
        if order.vm.is_none() && !provisions {
            return;
        }
        loop {
            if let Some(cell) = self.some_cell() {
                let ask = move |gateway: cellbus_cell::Gateway| async move { gateway.job(id).await };
                // By ingress it may not have come to its home yet, which is then an error.
                if let Some(Ok(status)) = self.cells.ask(&self.env, &cell, ANSWER_LIMIT, ask).await {
                    let waits = order.job.after.is_some() && status.row.state == JobState::Waiting;
                    if status.row.state != JobState::Queued && !waits {
                        break;
                    }
                }
            }
            self.pause().await;
        }
        let mut pages = self.books.pages();
        if let Some(vm) = order.vm.and_then(|vm| pages.vms.get_mut(&vm)) {
            vm.jobs.push(id);
            vm.unplaced = false;
            let tenant = vm.tenant.clone();
            if let Some(job) = pages.jobs.get_mut(&id) {
                job.placed = Some(tenant);
            }
        }
        if let Request::Provision(provision) = &order.job.request {
            for index in 0..provision.count {
                if let Some(vm) = pages.vms.get_mut(&id.vm(index)) {
                    vm.unplaced = false;
                }
            }
        }
    }

    fn loosen(&self, order: &Order, why: &'static str) {
        let mut pages = self.books.pages();
        let vms: Vec<VmId> = match &order.job.request {
            Request::Provision(provision) => (0..provision.count).map(|index| order.job.id.vm(index)).collect(),
            Request::Operate(..) => order.vm.into_iter().collect(),
            Request::Cancel(_) => Vec::new(),
        };
        for vm in vms {
            if let Some(vm) = pages.vms.get_mut(&vm) {
                vm.loose = Some(why);
                vm.unplaced = false;
            }
        }
    }

    /// Submits a start of each of these VMs, all at once.
    pub(super) fn start_all(self: &Arc<Self>, vms: &[VmId]) {
        for vm in vms {
            let tenant = {
                let pages = self.books.pages();
                pages.vms.get(vm).filter(|known| !known.unplaced).map(|known| known.tenant.to_string())
            };
            let Some(tenant) = tenant else { continue };
            let number = self.number();
            let order = self.order(&tenant, number, "start", Some(vm.to_string()), json!({}), Asked::Start, Some(*vm));
            if let Some(order) = order {
                self.submit(order);
            }
        }
    }

    /// A job that was acknowledged and has not ended, for whoever wants to call one off.
    pub(super) fn some_open_job(&self) -> Option<JobId> {
        let pages = self.books.pages();
        pages.some_open(&mut self.rng())
    }
}
