//! What an open intent asks for, made from the state whenever it is wanted: so that a reissued
//! effect is the same as the first.

use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::ids::{JobId, OpNumber, VmId};
use cellbus_bus::job::{Operation, Power, Request, Size, StopMode, Target};
use cellbus_directory::record::IntentKey;
use cellbus_directory::vm::PowerState;
use cellbus_directory::work::Task;
use cellbus_directory::{Step, Template, Vm, VmState, VmSummary, Work};

use super::Shard;
use super::jobs::cancel_outcome;
use crate::action::{Action, AdoptSpec, Call, CreateSpec};
use crate::event;
use crate::input::{Effect, EffectKind};
use crate::item::{ControlItem, JobItem};
use crate::view::ManagerNames;

impl Shard {
    /// The effect of an open intent; `None` if it has been closed in the meantime.
    pub(super) fn effect(&self, intent: &IntentKey, names: &ManagerNames) -> Option<Effect> {
        if !self.state.intents.contains(intent) {
            return None;
        }
        let what = match intent {
            IntentKey::Call(vm, op) => EffectKind::Call(self.call(*vm, *op)?),
            IntentKey::Watch(waiting) => {
                let job = self.state.jobs.get(waiting)?.body.as_ref()?.after?;
                self.tell(job, &ControlItem::Watch { job, waiting: *waiting })
            }
            IntentKey::Resolve(job) => {
                let job = self.state.jobs.get(job)?.body.as_ref()?;
                let Request::Operate(Target::Name(name), _) = &job.request else { return None };
                EffectKind::Resolve { tenant: job.tenant.clone(), name: name.clone() }
            }
            IntentKey::Forward(job) => self.forward(*job)?,
            IntentKey::PassCancel(job) => self.pass_cancel(*job)?,
            IntentKey::AnswerCancel(target, cancel) => {
                let outcome = match self.state.cancel_answers.get(&(*target, *cancel)) {
                    Some(outcome) => outcome.clone(),
                    None => cancel_outcome(*target, self.state.jobs.get(target).map(|entry| entry.row.state)),
                };
                self.tell(*cancel, &ControlItem::CancelAnswer { job: *cancel, target: *target, outcome })
            }
            IntentKey::TellWaiting(job, waiting) => {
                let succeeded = self.job_digest(job).map(|(_, state)| state == cellbus_directory::JobState::Succeeded);
                self.tell(*waiting, &ControlItem::PredecessorEnded { job: *waiting, predecessor: *job, succeeded })
            }
            IntentKey::Report(vm, job) => {
                let report = self.state.reports.get(&(*vm, *job))?;
                let vm = report.vm.clone().map(|vm| VmSummary { seq: self.soft.durable_seq, ..vm });
                let item = ControlItem::Report { job: *job, index: report.index, outcome: report.outcome.clone(), vm };
                self.tell(*job, &item)
            }
            IntentKey::OutcomeEvent(job) => {
                let entry = self.state.jobs.get(job)?;
                let vms: Vec<&VmSummary> = entry.vms.iter().map(|(_, vm)| vm).collect();
                EffectKind::Event(event::outcome(&entry.row, entry.body.as_deref()?, &vms, names))
            }
            IntentKey::AcceptedEvent(job) => {
                let entry = self.state.jobs.get(job)?;
                EffectKind::Event(event::accepted(&entry.row, entry.body.as_deref()?))
            }
            IntentKey::VmEvent(vm, op) => EffectKind::Event(event::vm_state(&self.state.vms.get(vm)?.vm, *op, names)),
        };
        Some(Effect { intent: intent.clone(), what })
    }

    fn tell(&self, job: JobId, item: &ControlItem) -> EffectKind {
        let queue = Queue { shard: job.shard(self.count), kind: QueueKind::Control };
        EffectKind::Publish(vec![(queue, vec![item.encode()])])
    }

    /// The job's work, to the queues of its VMs' shards, one message of many items a shard.
    fn forward(&self, id: JobId) -> Option<EffectKind> {
        let entry = self.state.jobs.get(&id)?;
        let job = entry.body.as_ref()?;
        let mut items: std::collections::BTreeMap<u16, (Queue, Vec<Bytes>)> = std::collections::BTreeMap::new();
        let mut add = |work: Work| {
            let queue = Queue { shard: work.vm.shard(self.count), kind: QueueKind::Jobs };
            let item = JobItem::Work(Arc::new(work)).encode();
            items.entry(queue.shard.index()).or_insert_with(|| (queue, Vec::new())).1.push(item);
        };
        match &job.request {
            Request::Provision(p) => {
                let template = Arc::new(Template::of(p));
                for index in 0..p.count {
                    add(Work {
                        vm: id.vm(index),
                        job: id,
                        index,
                        tenant: job.tenant.clone(),
                        accepted_at: entry.row.accepted_at,
                        deadline_at: job.deadline.map(|d| entry.row.accepted_at.after(d)),
                        task: Task::Create {
                            name: p.vm_name(index),
                            size: p.size,
                            template: Arc::clone(&template),
                            power: p.power,
                            only: entry.only,
                            of: p.count,
                        },
                    });
                }
            }
            Request::Operate(_, operation) => add(self.work_on(job, entry.row.vm?, operation)),
            Request::Cancel(_) => return None,
        }
        Some(EffectKind::Publish(items.into_values().collect()))
    }

    /// A cancel goes to where the work is: for a cancel job, to its target's home; for any other, to
    /// the homes of its VMs.
    fn pass_cancel(&self, id: JobId) -> Option<EffectKind> {
        let entry = self.state.jobs.get(&id)?;
        let job = entry.body.as_ref()?;
        let cancel = |vm: VmId, index: u32| {
            let queue = Queue { shard: vm.shard(self.count), kind: QueueKind::Control };
            (queue, vec![ControlItem::CancelWork { vm, job: id, index }.encode()])
        };
        let items = match &job.request {
            Request::Cancel(target) => {
                let by = cellbus_directory::record::CancelledBy::Job(id);
                let item = ControlItem::Cancel { job: *target, tenant: Some(job.tenant.clone()), by };
                return Some(self.tell(*target, &item));
            }
            Request::Provision(p) => (0..p.count).map(|index| cancel(id.vm(index), index)).collect(),
            Request::Operate(..) => vec![cancel(entry.row.vm?, 0)],
        };
        Some(EffectKind::Publish(items))
    }

    fn call(&self, vm: VmId, op: OpNumber) -> Option<Call> {
        let entry = self.state.vms.get(&vm)?;
        let doing = entry.vm.doing.as_ref().filter(|doing| doing.op == op)?;
        let work = &entry.run.as_ref()?.work;
        Some(Call {
            manager: doing.manager,
            shard: self.id,
            shard_epoch: self.state.epoch,
            vm,
            job: if work.for_a_job() { work.job } else { JobId::from_uuid(uuid::Uuid::nil()) },
            op,
            step: doing.step,
            action: action(doing.step, &entry.vm, &work.task)?,
            withdraw: self.soft.attempts.get(&IntentKey::Call(vm, op)).is_some_and(|attempt| attempt.withdraw),
        })
    }
}

/// What a step asks of the manager. `None` only if the step does not fit the work, which no record says.
fn action(step: Step, vm: &Vm, task: &Task) -> Option<Action> {
    let operation = match task {
        Task::Operate(operation) => Some(operation),
        Task::Create { .. }
        | Task::Inspect
        | Task::Failover { .. }
        | Task::Adopt(_)
        | Task::Rehome { .. }
        | Task::DropStray { .. } => None,
    };
    Some(match step {
        Step::Create => {
            let Task::Create { power, .. } = task else { return None };
            Action::Create(Arc::new(spec(vm, *power, None)))
        }
        Step::Copy => {
            let power = match vm.settled {
                VmState::Running => PowerState::Running,
                VmState::Suspended => PowerState::Suspended,
                VmState::Creating
                | VmState::Stopped
                | VmState::Migrating
                | VmState::Deleting
                | VmState::Deleted
                | VmState::Lost
                | VmState::Unknown => PowerState::Stopped,
            };
            Action::Create(Arc::new(spec(vm, Power::Off, Some(power))))
        }
        Step::UndoCreate | Step::UndoCopy | Step::DropSource | Step::DropStray | Step::Delete => Action::Delete,
        Step::Start | Step::StartCopy | Step::UndoQuiesce => Action::Start,
        Step::Quiesce => Action::Stop(StopMode::Graceful),
        Step::Stop => match operation? {
            // A suspended guest cannot be asked.
            Operation::Stop(_) if vm.settled == VmState::Suspended => Action::Stop(StopMode::Hard),
            Operation::Stop(mode) => Action::Stop(*mode),
            _ => return None,
        },
        Step::Restart => match operation? {
            Operation::Restart(mode) => Action::Restart(*mode),
            _ => return None,
        },
        Step::Suspend => Action::Suspend,
        Step::Resume => Action::Resume,
        Step::Resize => match operation? {
            Operation::Resize { vcpus, memory_mib, disk_gib } => Action::Resize(Size {
                vcpus: vcpus.unwrap_or(vm.size.vcpus),
                memory_mib: memory_mib.unwrap_or(vm.size.memory_mib),
                disk_gib: disk_gib.unwrap_or(vm.size.disk_gib),
            }),
            _ => return None,
        },
        Step::Snapshot => match operation? {
            Operation::Snapshot(name) => Action::Snapshot(name.clone()),
            _ => return None,
        },
        Step::Revert => match operation? {
            Operation::Revert(name) => Action::Revert(name.clone()),
            _ => return None,
        },
        Step::SnapshotDelete => match operation? {
            Operation::SnapshotDelete(name) => Action::SnapshotDelete(name.clone()),
            _ => return None,
        },
        Step::Relocate => match operation? {
            Operation::Migrate(cellbus_bus::job::MigrateTo::Host(host)) => Action::Relocate(host.clone()),
            _ => return None,
        },
        Step::Failover => {
            let Task::Failover { to, .. } = task else { return None };
            Action::Relocate(to.clone())
        }
        Step::Inspect | Step::CheckCopy | Step::CheckSource | Step::CheckStray | Step::CheckHome => Action::Inspect,
        Step::Adopt => {
            let Task::Adopt(adoption) = task else { return None };
            let (tenant, name, foreign) = (vm.tenant.clone(), vm.name.clone(), adoption.foreign.clone());
            Action::Adopt(Arc::new(AdoptSpec { tenant, name, foreign }))
        }
    })
}

fn spec(vm: &Vm, power: Power, copy_of: Option<PowerState>) -> CreateSpec {
    CreateSpec {
        tenant: vm.tenant.clone(),
        name: vm.name.clone(),
        size: vm.size,
        template: Arc::clone(&vm.template),
        power,
        host: None,
        snapshots: if copy_of.is_some() { vm.snapshots.clone() } else { Vec::new() },
        copy_of,
    }
}
