//! The audit: the directory against what the managers hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{ManagerId, VmId};
use cellbus_directory::record::Operator;
use cellbus_directory::{PowerState, Step, Vm, VmFilter, VmState};
use cellbus_workflows::ControlItem;
use futures::stream::StreamExt as _;
use uuid::Uuid;

use super::repair::Repairable;
use super::{Audit, Error, Finding, Gateway, Result, What};
use crate::directory::Fresh;
use crate::driver::HeldVm;
use crate::peers::{Request, Response};

/// Audits that are kept.
const KEPT_MAX: usize = 16;
/// Findings that are shown.
const SHOWN_MAX: usize = 1_000;
/// Managers read at once.
const AT_ONCE: usize = 8;
/// VMs of a manager read from the directory at once.
const PAGE: usize = 1_000;

/// An audit, under way or done.
pub(super) struct Running {
    state: Mutex<State>,
}
pub(super) struct State {
    pub(super) audit: Audit,
    /// All findings, not only those that are shown.
    findings: Vec<Finding>,
    pub(super) repairable: Repairable,
    /// Managers that were compared, and whether nothing was found there.
    compared: BTreeMap<ManagerId, bool>,
    /// VMs that a manager holds, and the directory does not list there.
    found: BTreeMap<VmId, ManagerId>,
    /// VMs that the directory lists at a manager, which does not hold them.
    absent: BTreeSet<VmId>,
}

/// What a repair must know of a finding.
enum Fault {
    /// About a VM that is listed there.
    Listed(Finding),
    /// About one that is held there and not listed; what the directory knows of it.
    Unlisted(Box<HeldVm>, Option<Box<Vm>>),
}

/// What comparing one manager gave.
#[derive(Default)]
struct Compared {
    vms: u64,
    findings: Vec<Finding>,
    repairable: Vec<Fault>,
    /// Held there, and not listed there.
    found: Vec<VmId>,
    /// Listed there, and not held.
    absent: Vec<VmId>,
}

impl State {
    fn of(audit: Audit) -> Self {
        Self {
            audit,
            findings: Vec::new(),
            repairable: Repairable::default(),
            compared: BTreeMap::new(),
            found: BTreeMap::new(),
            absent: BTreeSet::new(),
        }
    }

    /// All managers were compared.
    fn end(&mut self, at: WallMs) {
        // What is missing at one manager and found at another has moved there.
        let moved = self.repairable.moved(&self.absent);
        let gone: BTreeSet<VmId> = moved.iter().map(|(vm, _)| *vm).collect();
        self.findings.retain(|finding| finding.kind != "missing" || !gone.contains(&finding.vm));
        for finding in self.findings.iter_mut().filter(|finding| moved.contains(&(finding.vm, finding.manager))) {
            "moved".clone_into(&mut finding.kind);
            finding.detail.push_str(", which does not have it");
        }
        let audit = &mut self.audit;
        audit.findings_total = self.findings.len() as u64;
        audit.findings = self.findings.iter().take(SHOWN_MAX).cloned().collect();
        for finding in &self.findings {
            *audit.kinds.entry(finding.kind.clone()).or_default() += 1;
        }
        audit.ended_at = Some(at);
    }

    /// VMs that were found where their homes do not know them to be: of which nobody knows, that are
    /// still to be made, or that are not where they are listed.
    fn to_be_told<'a>(&self, vm: impl Fn(&VmId) -> Option<&'a Vm>) -> Vec<(VmId, ManagerId)> {
        let untold = |id: &VmId, manager: &ManagerId| match vm(id) {
            None => true,
            Some(vm) if vm.is_deleted() => false,
            Some(vm) => match (&vm.home, &vm.doing) {
                (None, _) => true,
                (Some(_), Some(doing)) if doing.step == Step::Create => doing.manager != *manager,
                (Some(home), _) => home.manager != *manager && self.absent.contains(id),
            },
        };
        self.found.iter().filter(|(id, manager)| untold(id, manager)).map(|(id, manager)| (*id, *manager)).collect()
    }
}

impl Running {
    /// What it has found.
    ///
    /// # Errors
    /// [`Error::Conflict`] `audit_running`.
    pub(super) fn ended(&self) -> Result<std::sync::MutexGuard<'_, State>> {
        let state = self.lock();
        if state.audit.ended_at.is_some() { Ok(state) } else { Err(still_running()) }
    }
    /// So many repairs more were asked for.
    pub(super) fn repaired(&self, vms: u64) {
        self.lock().audit.repairs += vms;
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gateway {
    /// Begins to compare the directory with every manager, in the background.
    ///
    /// # Errors
    /// [`Error::NotReady`]; [`Error::TooMany`] while one runs.
    pub async fn audit_start(&self, by: Operator) -> Result<Uuid> {
        self.ready()?;
        let process = &self.inner.process;
        // Unique is all that it need be; ids of jobs and VMs are never made of chance.
        let id = Uuid::from_u64_pair(process.env.random_u64(), process.env.random_u64());
        let managers: Vec<ManagerId> = process.names.iter().map(|(_, id)| *id).collect();
        let audit = Audit {
            id,
            started_at: process.env.wall(),
            ended_at: None,
            managers_done: 0,
            managers_total: u32::try_from(managers.len()).unwrap_or(u32::MAX),
            unreachable: Vec::new(),
            vms: 0,
            findings_total: 0,
            findings: Vec::new(),
            kinds: BTreeMap::new(),
            repairs: 0,
        };
        let running = Arc::new(Running { state: Mutex::new(State::of(audit)) });
        {
            let mut audits = self.inner.audits.lock().unwrap_or_else(PoisonError::into_inner);
            if audits.iter().any(|audit| audit.lock().audit.ended_at.is_none()) {
                return Err(Error::TooMany { what: "an audit is running; wait for its end".to_owned() });
            }
            if audits.len() == KEPT_MAX {
                audits.pop_front();
            }
            audits.push_back(Arc::clone(&running));
        }
        self.note_change(by, format!("start audit {id}")).await?;
        let this = self.clone();
        process.env.spawn("audit", async move { this.audit_all(&running, managers).await });
        Ok(id)
    }

    async fn audit_all(&self, running: &Running, managers: Vec<ManagerId>) {
        let process = &self.inner.process;
        futures::stream::iter(managers).for_each_concurrent(AT_ONCE, |manager| self.audit_one(running, manager)).await;
        let clean = {
            let state = running.lock();
            state.compared.iter().filter(|(_, clean)| **clean).map(|(manager, _)| *manager).collect()
        };
        if let Err(error) = self.tell_audited(running, clean).await {
            // What waits for an audit after a restore waits for the next one.
            tracing::warn!(%error, "the shards were not told of an audit");
        }
        running.lock().end(process.env.wall());
    }

    /// Tells the homes of VMs what was found where, and then all shards which managers were read, and
    /// at which something may be removed: after a restore they hold work back until they hear of it,
    /// and take no notice otherwise.
    async fn tell_audited(&self, running: &Running, cleared: Vec<ManagerId>) -> Result<()> {
        let process = &self.inner.process;
        let control = |shard| Queue { shard, kind: QueueKind::Control };
        let (found, read) = {
            let state = running.lock();
            let read: Vec<ManagerId> = state.compared.keys().copied().collect();
            (state.found.keys().copied().collect::<Vec<_>>(), read)
        };
        let mut known = BTreeMap::new();
        for some in found.chunks(PAGE) {
            known.extend(some.iter().copied().zip(self.directory().vms(some.to_vec()).await?));
        }
        let found = running.lock().to_be_told(|vm| known.get(vm)?.as_ref());
        for some in found.chunks(PAGE) {
            let item = |(vm, manager): &(VmId, ManagerId)| {
                let item = ControlItem::Found { vm: *vm, manager: *manager };
                (control(vm.shard(process.count)), vec![item.encode()])
            };
            process.bus.publish_all(some.iter().map(item).collect()).await?;
        }
        if read.is_empty() {
            return Ok(());
        }
        let item = ControlItem::Audited { read, cleared }.encode();
        let items = process.count.shards().map(|shard| (control(shard), vec![item.clone()]));
        Ok(process.bus.publish_all(items.collect()).await?)
    }

    /// A person has seen what an audit found: work that waits for an audit since a restore goes on at
    /// every manager that this one has compared.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] `audit_running`; as [`Gateway::submit`].
    pub async fn audit_accept(&self, id: Uuid, by: Operator) -> Result<Audit> {
        let running = self.find_audit(id)?;
        let managers: Vec<ManagerId> = {
            let state = running.ended()?;
            state.compared.keys().copied().collect()
        };
        self.note_change(by, format!("accept what audit {id} found at {} managers", managers.len())).await?;
        self.tell_audited(&running, managers).await?;
        self.audit(id)
    }

    /// Compares one manager with the directory.
    async fn audit_one(&self, running: &Running, manager: ManagerId) {
        let compared = self.compared(manager).await;
        let mut state = running.lock();
        state.audit.managers_done += 1;
        let compared = match compared {
            Ok(compared) => compared,
            Err(reason) => {
                tracing::warn!(%manager, reason, "a manager was left out of an audit");
                state.audit.unreachable.push(manager);
                return;
            }
        };
        state.audit.vms += compared.vms;
        state.audit.findings_total += compared.findings.len() as u64;
        for fault in compared.repairable {
            match fault {
                Fault::Listed(finding) => state.repairable.listed(&finding),
                Fault::Unlisted(held, known) => state.repairable.unlisted(manager, &held, known.as_deref()),
            }
        }
        state.compared.insert(manager, compared.findings.is_empty());
        state.found.extend(compared.found.into_iter().map(|vm| (vm, manager)));
        state.absent.extend(compared.absent);
        let room = SHOWN_MAX.saturating_sub(state.audit.findings.len());
        state.audit.findings.extend(compared.findings.iter().take(room).cloned());
        state.findings.extend(compared.findings);
    }

    /// What a manager holds against what the directory lists there; or why that cannot be said.
    async fn compared(&self, manager: ManagerId) -> Result<Compared, String> {
        let route = self.inner.process.routes.of_manager(&manager).ok_or("nobody fronts it")?;
        let inventory = match self.ask(&route.peer, Request::Inventory(manager)).await? {
            Response::Inventory(inventory) => inventory,
            Response::Failed { detail } => return Err(detail),
            _ => return Err("its owner is changing".to_owned()),
        };
        let mut held: BTreeMap<VmId, HeldVm> = inventory.vms.into_iter().map(|vm| (vm.id, vm)).collect();
        // What was done between the two readings is not a difference: the directory is read after
        // it has caught up with the moment of the inventory, and what moved since is left out.
        let mut compared = Compared::default();
        let filter = VmFilter { manager: Some(manager), ..VmFilter::default() };
        let mut from = None;
        loop {
            let page = self.directory().list(&filter, PAGE, from.as_deref(), Fresh::CaughtUp).await;
            let page = page.map_err(|error| error.to_string())?;
            for vm in page.items {
                compared.vms += 1;
                let there = held.remove(&vm.id);
                compared.absent.extend(there.is_none().then_some(vm.id));
                if let Some(finding) = compare(manager, &vm, there.as_ref()) {
                    compared.repairable.push(Fault::Listed(finding.clone()));
                    compared.findings.push(finding);
                }
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        let unlisted: Vec<(VmId, HeldVm)> = held.into_iter().collect();
        for some in unlisted.chunks(PAGE) {
            let known = self.directory().vms(some.iter().map(|(id, _)| *id).collect()).await;
            let known = known.map_err(|error| error.to_string())?;
            for ((id, there), known) in some.iter().zip(known) {
                compared.vms += 1;
                compared.found.push(*id);
                if let Some(finding) = unlisted_at(manager, *id, there, known.as_ref()) {
                    compared.findings.push(finding);
                    compared.repairable.push(Fault::Unlisted(Box::new(there.clone()), known.map(Box::new)));
                }
            }
        }
        Ok(compared)
    }

    /// How far an audit is, and what it has found. The last 16 are kept, in memory.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn audit(&self, id: Uuid) -> Result<Audit> {
        self.find_audit(id).map(|running| running.lock().audit.clone())
    }

    pub(super) fn find_audit(&self, id: Uuid) -> Result<Arc<Running>> {
        let audits = self.inner.audits.lock().unwrap_or_else(PoisonError::into_inner);
        let found = audits.iter().find(|running| running.lock().audit.id == id).cloned();
        found.ok_or_else(|| Error::NotFound { what: What::Audit, id: id.to_string() })
    }
}

/// A VM that the manager holds, and the directory does not list there.
fn unlisted_at(manager: ManagerId, id: VmId, there: &HeldVm, known: Option<&Vm>) -> Option<Finding> {
    let finding = |kind: &str, detail: String| Some(Finding { vm: id, manager, kind: kind.to_owned(), detail });
    match known {
        None => finding("unknown", format!("on host {}, and the directory does not know it", there.facts.host)),
        // A step under way explains it: it is on its way there, or off.
        Some(vm) if vm.doing.is_some() || vm.other.as_ref().is_some_and(|other| other.manager == manager) => None,
        Some(vm) if vm.is_deleted() => {
            finding("unknown", format!("on host {}, although it was deleted", there.facts.host))
        }
        Some(vm) => match &vm.home {
            Some(home) if home.manager != manager => finding(
                "duplicate",
                format!("on host {}, and in the directory at manager {}", there.facts.host, home.manager),
            ),
            // It has come there since the list was read.
            Some(_) => None,
            None => finding("unknown", format!("on host {}, and nowhere in the directory", there.facts.host)),
        },
    }
}

fn still_running() -> Error {
    Error::Conflict { code: "audit_running", message: "the audit still runs: wait for its end".to_owned() }
}

/// A VM that the directory lists at the manager, against what the manager says of it.
fn compare(manager: ManagerId, vm: &Vm, there: Option<&HeldVm>) -> Option<Finding> {
    // While a step is under way either may be ahead.
    if vm.doing.is_some() {
        return None;
    }
    let finding = |kind: &str, detail: String| Some(Finding { vm: vm.id, manager, kind: kind.to_owned(), detail });
    let Some(there) = there else {
        return match vm.settled {
            VmState::Lost | VmState::Deleted | VmState::Creating => None,
            VmState::Running
            | VmState::Stopped
            | VmState::Suspended
            | VmState::Migrating
            | VmState::Deleting
            | VmState::Unknown => finding("missing", "the manager does not have it".to_owned()),
        };
    };
    let host = vm.home.as_ref().and_then(|home| home.host.as_ref());
    if host != Some(&there.facts.host) {
        let listed = host.map_or_else(|| "no host".to_owned(), ToString::to_string);
        return finding("host", format!("on host {}, in the directory on {listed}", there.facts.host));
    }
    let power = match there.facts.power {
        PowerState::Running => VmState::Running,
        PowerState::Stopped => VmState::Stopped,
        PowerState::Suspended => VmState::Suspended,
    };
    if power != vm.settled {
        return finding("power", format!("{power}, in the directory {}", vm.settled));
    }
    if there.facts.size != vm.size {
        return finding("size", format!("{:?}, in the directory {:?}", there.facts.size, vm.size));
    }
    if there.facts.snapshots != vm.snapshots {
        let (held, listed) = (there.facts.snapshots.len(), vm.snapshots.len());
        return finding("snapshots", format!("{held} that are not the {listed} in the directory"));
    }
    None
}
