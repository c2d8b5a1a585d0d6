//! A job on its way through a shard, in the log: at level trace, one line for each record that has
//! become durable and each effect that goes out, in a span that names shard, job and VM. Other levels
//! pay for one look at a flag.

use std::collections::BTreeMap;
use std::fmt::Display;

use cellbus_bus::ids::{JobId, ManagerId, Seq, ShardId, VmId};
use cellbus_directory::Record;
use cellbus_directory::record::IntentKey;
use cellbus_workflows::{Effect, EffectKind, Shard};
use tracing::field::{DisplayValue, display};

use crate::spans::TRACEPARENT;

/// Whether any of this is wanted.
pub(super) fn wanted() -> bool {
    tracing::enabled!(tracing::Level::TRACE)
}

/// These records are durable, as the entry with this sequence.
pub(super) fn appended(id: ShardId, shard: &Shard, seq: Seq, records: &[Record]) {
    let mut abouts: Vec<About> = records.iter().map(of_record).collect();
    // What is said of a VM is said for the work at the head of its line at that point: the next to
    // end among these records, or else the one that is there now.
    let mut ends: BTreeMap<VmId, JobId> = BTreeMap::new();
    for (record, about) in records.iter().zip(&mut abouts).rev() {
        if let Record::WorkEnded { vm, job, .. } = record {
            ends.insert(*vm, *job);
        }
        about.job = about.job.or_else(|| about.vm.and_then(|vm| ends.get(&vm).copied()));
    }
    for about in abouts {
        let _in = about.span(id, shard).entered();
        tracing::trace!(record = about.what, %seq, manager = shown(about.manager), "appended");
    }
}

/// These effects go out.
pub(super) fn carried_out(id: ShardId, shard: &Shard, effects: &[Effect]) {
    for effect in effects {
        let about = of_effect(effect);
        let _in = about.span(id, shard).entered();
        match &effect.what {
            EffectKind::Call(call) => {
                tracing::trace!(effect = about.what, op = call.op.0, step = ?call.step, manager = %call.manager, "goes out");
            }
            EffectKind::Publish(_) | EffectKind::Resolve { .. } | EffectKind::Event(_) => {
                tracing::trace!(effect = about.what, "goes out");
            }
        }
    }
}

/// What a record or an effect is about.
struct About {
    what: &'static str,
    job: Option<JobId>,
    vm: Option<VmId>,
    manager: Option<ManagerId>,
}

impl About {
    fn nothing(what: &'static str) -> Self {
        Self { what, job: None, vm: None, manager: None }
    }
    fn job(what: &'static str, job: JobId) -> Self {
        Self { job: Some(job), ..Self::nothing(what) }
    }
    fn vm(what: &'static str, vm: VmId) -> Self {
        Self { vm: Some(vm), ..Self::nothing(what) }
    }
    fn work(what: &'static str, vm: VmId, job: JobId) -> Self {
        Self { vm: Some(vm), ..Self::job(what, job) }
    }
    fn manager(what: &'static str, manager: ManagerId) -> Self {
        Self { manager: Some(manager), ..Self::nothing(what) }
    }

    fn span(&self, id: ShardId, shard: &Shard) -> tracing::Span {
        let job = self.job.or_else(|| self.vm.and_then(|vm| shard.job_of(&vm)));
        // Known at the job's home alone. Elsewhere the job's id joins the lines.
        let status = job.and_then(|job| shard.job(&job));
        let traceparent = status.as_ref().and_then(|status| status.extensions.get(TRACEPARENT));
        tracing::trace_span!("shard", shard = %id, job = shown(job), vm = shown(self.vm), traceparent)
    }
}

fn shown<T: Display>(value: Option<T>) -> Option<DisplayValue<T>> {
    value.map(display)
}

fn of_record(record: &Record) -> About {
    match record {
        Record::Opened { .. } => About::nothing("opened"),
        Record::JobAccepted { job } => About::job("job_accepted", job.id),
        Record::JobReady { job, .. } => About::job("job_ready", *job),
        Record::Watched { job, .. } => About::job("watched", *job),
        Record::WatchGivenUp { job, .. } => About::job("watch_given_up", *job),
        Record::JobResolved { job, vm } => About::work("job_resolved", *vm, *job),
        Record::JobForwarded { job } => About::job("job_forwarded", *job),
        Record::ChildEnded { job, .. } => About::job("child_ended", *job),
        Record::JobCancelAsked { job, .. } => About::job("job_cancel_asked", *job),
        Record::CancelAnswered { job, .. } => About::job("cancel_answered", *job),
        Record::JobEnded { job, .. } => About::job("job_ended", *job),
        Record::JobsRetired { .. } => About::nothing("jobs_retired"),
        Record::JobsForgotten { .. } => About::nothing("jobs_forgotten"),
        Record::WorkAdmitted { work } => About::work("work_admitted", work.vm, work.job),
        Record::StepBegun { vm, manager, .. } => About { manager: Some(*manager), ..About::vm("step_begun", *vm) },
        Record::StepEnded { vm, .. } => About::vm("step_ended", *vm),
        Record::Moved { vm } => About::vm("moved", *vm),
        Record::MovedBack { vm, .. } => About::vm("moved_back", *vm),
        Record::Undoing { vm, .. } => About::vm("undoing", *vm),
        Record::Parked { vm, .. } => About::vm("parked", *vm),
        Record::Unparked { vm, .. } => About::vm("unparked", *vm),
        Record::WorkEnded { vm, job, .. } => About::work("work_ended", *vm, *job),
        Record::WorkCancelAsked { vm, job } => About::work("work_cancel_asked", *vm, *job),
        Record::WorkDropped { vm, job, .. } => About::work("work_dropped", *vm, *job),
        Record::WorkReported { vm, job } => About::work("work_reported", *vm, *job),
        Record::WorksForgotten { .. } => About::nothing("works_forgotten"),
        Record::VmsForgotten { .. } => About::nothing("vms_forgotten"),
        Record::ManagerCordoned { manager, .. } => About::manager("manager_cordoned", *manager),
        Record::HostCordoned { manager, .. } => About::manager("host_cordoned", *manager),
        Record::IntentClosed { intent } => About { what: "intent_closed", ..of_intent(intent) },
        Record::DeadLettered { .. } => About::nothing("dead_lettered"),
        Record::DeadLetterDropped { .. } => About::nothing("dead_letter_dropped"),
        Record::Changed { .. } => About::nothing("changed"),
        Record::Snapshot { .. } => About::nothing("snapshot"),
        Record::ScaleSet { .. } => About::nothing("scale_set"),
        Record::ScaleLed { .. } => About::nothing("scale_led"),
        Record::ScaleDecided { .. } => About::nothing("scale_decided"),
        Record::VmFound { vm, manager } => About { manager: Some(*manager), ..About::vm("vm_found", *vm) },
        Record::ManagersAudited { .. } => About::nothing("managers_audited"),
        Record::Paused { .. } => About::nothing("paused"),
        Record::Resumed { .. } => About::nothing("resumed"),
        Record::CapacitySampled { .. } => About::nothing("capacity_sampled"),
        Record::ManagerModeSet { manager, .. } => About::manager("manager_mode_set", *manager),
        Record::DiskSampled { .. } => About::nothing("disk_sampled"),
        Record::ManagerMarked { manager, .. } => About::manager("manager_marked", *manager),
        Record::HostFenced { manager, .. } => About::manager("host_fenced", *manager),
    }
}

fn of_effect(effect: &Effect) -> About {
    let about = of_intent(&effect.intent);
    match &effect.what {
        EffectKind::Call(call) => About { job: Some(call.job).filter(|job| !job.uuid().is_nil()), ..about },
        EffectKind::Publish(_) | EffectKind::Resolve { .. } | EffectKind::Event(_) => about,
    }
}

fn of_intent(intent: &IntentKey) -> About {
    match intent {
        IntentKey::Watch(job) => About::job("watch", *job),
        IntentKey::Resolve(job) => About::job("resolve", *job),
        IntentKey::Forward(job) => About::job("forward", *job),
        IntentKey::PassCancel(job) => About::job("pass_cancel", *job),
        IntentKey::AnswerCancel(job, _) => About::job("answer_cancel", *job),
        IntentKey::TellWaiting(job, _) => About::job("tell_waiting", *job),
        IntentKey::OutcomeEvent(job) => About::job("outcome_event", *job),
        IntentKey::AcceptedEvent(job) => About::job("accepted_event", *job),
        IntentKey::Call(vm, _) => About::vm("call", *vm),
        IntentKey::Report(vm, job) => About::work("report", *vm, *job),
        IntentKey::VmEvent(vm, _) => About::vm("vm_event", *vm),
    }
}
