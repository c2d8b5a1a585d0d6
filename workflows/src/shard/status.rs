//! What others may ask of a shard: a job's status, why a VM is as it is, counts for metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{JobId, Seq, TenantId, VmId};
use cellbus_bus::job::{Digest, JobKind};
use cellbus_directory::capacity::Histories;
use cellbus_directory::record::{DeadLetter, IntentKey};
use cellbus_directory::{Failure, JobRow, JobState, Pauses, Vm, VmSummary};

use serde::{Deserialize, Serialize};

use super::state::{Happened, VmEntry};
use super::{Change, Scale, Shard};
use crate::pack::PerMessage;

/// Jobs behind a VM's own that an explanation names.
const BEHIND_MAX: usize = 100;

impl Shard {
    /// A VM whose home this is.
    #[must_use]
    pub fn vm(&self, id: &VmId) -> Option<&Vm> {
        self.state.vms.get(id).map(|entry| &entry.vm)
    }

    /// The digest of a known job's body, also of one that is no longer listed: the same key with
    /// another digest is a conflict. Cheap.
    #[must_use]
    pub fn job_digest(&self, id: &JobId) -> Option<(Digest, JobState)> {
        match self.state.jobs.get(id) {
            Some(entry) => Some((entry.digest, entry.row.state)),
            None => self.state.keys.get(id).copied(),
        }
    }

    /// The job whose work is at the head of a VM's line.
    #[must_use]
    pub fn job_of(&self, vm: &VmId) -> Option<JobId> {
        self.state.vms.get(vm)?.head().filter(|work| work.for_a_job()).map(|work| work.job)
    }

    /// A job whose home this is.
    #[must_use]
    pub fn job(&self, id: &JobId) -> Option<JobStatus> {
        let entry = self.state.jobs.get(id)?;
        let mut row = entry.row.clone();
        let mut waits_for = String::new();
        if row.state.ended() && entry.ended_seq.is_none() {
            // Decided, and not yet durable.
            (row.state, row.outcome, row.ended_at) = (JobState::Running, None, None);
        } else if !row.state.ended() {
            self.progress(id, &mut row, &mut waits_for);
        }
        let seq = entry.ended_seq.unwrap_or_default();
        let vms = entry
            .vms
            .iter()
            .map(|(_, vm)| VmSummary { seq: if vm.seq == Seq::ZERO { seq } else { vm.seq }, ..vm.clone() })
            .collect();
        Some(JobStatus {
            row,
            digest: entry.digest,
            vms,
            vms_ended: entry.children_ended,
            waits_for,
            ended_seq: entry.ended_seq,
            extensions: entry.body.as_ref().map(|job| job.extensions.clone()).unwrap_or_default(),
        })
    }

    /// What a job brought along, kept until the event about its end is out.
    #[must_use]
    pub fn job_extensions(&self, id: &JobId) -> Option<&BTreeMap<String, String>> {
        Some(&self.state.jobs.get(id)?.body.as_ref()?.extensions)
    }

    /// Where a job is on its way, and the digest under its key, with nothing else: also of a job
    /// that is no longer listed while its key is remembered.
    #[must_use]
    pub fn job_state(&self, id: &JobId) -> Option<(JobState, Digest)> {
        let Some(entry) = self.state.jobs.get(id) else {
            return self.state.keys.get(id).map(|(digest, state)| (*state, *digest));
        };
        let state = match entry.row.state {
            ended if ended.ended() && entry.ended_seq.is_none() => JobState::Running,
            _ if entry.waiting => JobState::Waiting,
            state => state,
        };
        Some((state, entry.digest))
    }

    /// The type of a job, and when it was accepted, while it is listed.
    #[must_use]
    pub fn job_began(&self, id: &JobId) -> Option<(JobKind, WallMs)> {
        self.state.jobs.get(id).map(|entry| (entry.row.kind, entry.row.accepted_at))
    }

    /// When the work under way on a VM was accepted, if all that was done for it is its first call.
    #[must_use]
    pub fn first_call_of(&self, vm: &VmId) -> Option<WallMs> {
        let run = self.state.vms.get(vm)?.run.as_ref()?;
        let first = run.begun.len() == 1 && run.done.is_empty() && run.refusals.is_empty() && run.undoing.is_none();
        first.then_some(run.work.accepted_at)
    }

    /// How far a job has come whose VM lives here too, and what one waits for that has not set out.
    fn progress(&self, id: &JobId, row: &mut JobRow, waits_for: &mut String) {
        let Some(entry) = self.state.jobs.get(id) else { return };
        if entry.waiting {
            row.state = JobState::Waiting;
            if let Some(after) = entry.body.as_ref().and_then(|job| job.after) {
                *waits_for = format!("job {after}, named in `after`");
            }
            return;
        }
        if let Some(vm) = row.vm.and_then(|vm| self.state.vms.get(&vm)) {
            if let Some((state, why)) = self.work_state(vm, id) {
                (row.state, *waits_for) = (state, why);
            }
            return;
        }
        let intents = [IntentKey::Resolve(*id), IntentKey::Forward(*id), IntentKey::PassCancel(*id)];
        if let Some(attempt) = intents.iter().find_map(|intent| self.soft.attempts.get(intent)) {
            waits_for.clone_from(&attempt.detail);
        }
    }

    /// The state of a job's work on a VM whose home is here, and what it waits for; `None` if there is
    /// no such work any more.
    #[must_use]
    pub fn work_on_vm(&self, vm: &VmId, job: &JobId) -> Option<(JobState, String)> {
        self.work_state(self.state.vms.get(vm)?, job)
    }

    fn work_state(&self, entry: &VmEntry, job: &JobId) -> Option<(JobState, String)> {
        let head = entry.head()?;
        let parked = entry.run.as_ref().and_then(|run| run.parked.as_ref());
        if head.job != *job {
            let ahead = entry.line.iter().any(|w| w.job == *job);
            let mut why = format!("job {} on the same VM", head.job);
            // Said here too: after a restore that job may long have ended for whoever asks after it.
            if let Some(failure) = parked {
                why.push_str(&format!(", which is parked and waits for an operator: {failure}"));
            }
            return ahead.then_some((JobState::Accepted, why));
        }
        if let Some(failure) = parked {
            return Some((JobState::Parked, format!("an operator: {failure}")));
        }
        let why = self.waits_for(entry);
        let state = match (&entry.run, why.is_empty()) {
            (Some(_), true) => JobState::Running,
            (Some(_) | None, false) => JobState::Waiting,
            (None, true) => JobState::Accepted,
        };
        Some((state, why))
    }

    fn waits_for(&self, entry: &VmEntry) -> String {
        let attempt = entry.vm.doing.as_ref().and_then(|d| self.soft.attempts.get(&IntentKey::Call(entry.vm.id, d.op)));
        if let Some(attempt) = attempt.filter(|a| a.next_at.is_some()) {
            return attempt.detail.clone();
        }
        self.soft.places.get(&entry.vm.id).map(|(_, why)| why.clone()).unwrap_or_default()
    }

    /// What `GET /v1/explain` says of a VM: its workflow, what it waits for, its next retry, its history.
    #[must_use]
    pub fn explain_vm(&self, id: &VmId) -> Option<VmExplanation> {
        let entry = self.state.vms.get(id)?;
        let call = entry.vm.doing.as_ref().map(|d| IntentKey::Call(*id, d.op));
        let attempt = call.and_then(|call| self.soft.attempts.get(&call));
        let waiting = entry.line.iter().map(|work| work.job).skip(usize::from(entry.run.is_none()));
        let place = self.soft.timers.iter().find(|(_, t)| matches!(t, super::state::Timer::Place(vm) if vm == id));
        Some(VmExplanation {
            vm: entry.vm.clone(),
            job: entry.head().filter(|work| work.for_a_job()).map(|work| work.job),
            parked: entry.run.as_ref().and_then(|run| run.parked.clone()),
            undoing: entry.run.as_ref().is_some_and(|run| run.undoing.is_some()),
            attempts: attempt.map_or(0, |a| a.count),
            waits_for: self.waits_for(entry),
            next_retry_at: attempt.and_then(|a| a.next_at).or(place.map(|(at, _)| *at)),
            behind: waiting.clone().take(BEHIND_MAX).collect(),
            behind_total: waiting.count(),
            history: entry.history.iter().map(|(at, what)| (*at, in_words(*what))).collect(),
        })
    }

    /// How many items a message of the `jobs` queue has, about.
    #[must_use]
    pub fn jobs_per_message(&self) -> PerMessage {
        self.soft.jobs_per_message
    }

    /// Counts for metrics, `queue` and autoscaling.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let soft = &self.soft;
        let mut by_tenant: BTreeMap<TenantId, usize> = BTreeMap::new();
        let mut oldest: Option<WallMs> = None;
        for line in std::iter::once(&soft.ready).chain([&soft.crowded]).chain(soft.behind.values()) {
            for (tenant, vm, len) in line.heads() {
                *by_tenant.entry(tenant.clone()).or_default() += len;
                let at = self.state.vms.get(vm).and_then(|e| e.head()).map(|w| w.accepted_at);
                oldest = oldest.into_iter().chain(at).min();
            }
        }
        let behind: usize = soft.behind.values().map(super::fair::FairQueue::len).sum();
        let retrying =
            soft.attempts.iter().filter(|(k, a)| matches!(k, IntentKey::Call(..)) && a.next_at.is_some()).count();
        Stats {
            vms: soft.vms_live,
            jobs_open: soft.jobs_open,
            waiting: soft.admitted.len().saturating_sub(soft.slots_total),
            running: soft.slots_total,
            parked: self.state.parked.len(),
            oldest_waiting_at: oldest,
            waiting_for_managers: behind + soft.crowded.len() + soft.places.len() + retrying,
            intents: self.state.intents.len(),
            dead_letters: self.state.dead_letters.len(),
            ended: soft.ended_counts.clone(),
            work_ended: soft.work_ended,
            full: !self.wants_jobs(),
            jobs_per_message: self.jobs_per_message(),
            waiting_by_tenant: by_tenant,
        }
    }

    /// Dead letters that are kept here, oldest first.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<Arc<DeadLetter>> {
        let mut letters: Vec<_> = self.state.dead_letters.values().cloned().collect();
        letters.sort_by_key(|letter| (letter.at, letter.id));
        letters
    }

    /// Changes made by operators and kept here, oldest first.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        self.state.changes.iter().cloned().collect()
    }

    /// How many cells there are to be, and why; kept on the cluster's shard.
    #[must_use]
    pub fn scale(&self) -> &Scale {
        &self.state.scale
    }

    /// What operators have paused; kept on the cluster's shard.
    #[must_use]
    pub fn pauses(&self) -> &Pauses {
        &self.state.pauses
    }

    /// How much room there was; kept on the cluster's shard.
    #[must_use]
    pub fn capacity(&self) -> Histories {
        Histories { room: self.state.capacity.clone(), disk: self.state.disk.clone() }
    }

    /// VMs with parked work.
    pub fn parked(&self) -> impl Iterator<Item = &VmId> {
        self.state.parked.iter()
    }

    /// Parked work: of which job, on which VM.
    pub fn parked_work(&self) -> impl Iterator<Item = (JobId, VmId)> {
        self.state.parked.iter().filter_map(|vm| Some((self.state.vms.get(vm)?.head()?.job, *vm)))
    }

    /// How many effects are open.
    #[must_use]
    pub fn open_intents(&self) -> usize {
        self.state.intents.len()
    }
}

fn in_words(what: Happened) -> String {
    match what {
        Happened::Accepted(kind) => format!("{kind} accepted"),
        Happened::Called(step) => format!("{} called", step.as_str()),
        Happened::Done(step) => format!("{} done", step.as_str()),
        Happened::Refused(step) => format!("{} refused", step.as_str()),
        Happened::Failed(step) => format!("{} failed", step.as_str()),
        Happened::Moved => "moved: the copy is now the VM".to_owned(),
        Happened::Undoing => "being undone".to_owned(),
        Happened::Parked => "parked: an operator must decide".to_owned(),
        Happened::Unparked => "an operator decided".to_owned(),
        Happened::Ended(state) => format!("ended: {state}"),
    }
}

/// What is known of a job at its home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its row.
    pub row: JobRow,
    /// Of its body: the same key with another digest is a conflict.
    pub digest: Digest,
    /// Its VMs, the first 100, as far as they are known.
    pub vms: Vec<VmSummary>,
    /// Children that have ended.
    pub vms_ended: u32,
    /// What it waits for, in words; empty if for nothing.
    pub waits_for: String,
    /// The entry of this shard's log with which it ended. A job is shown as ended only once a
    /// directory has read so far; until the entry is durable the row says `running`.
    pub ended_seq: Option<Seq>,
    /// CloudEvents extensions of the job.
    pub extensions: BTreeMap<String, String>,
}

/// What a shard knows of why a VM is as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmExplanation {
    /// Its record.
    pub vm: Vm,
    /// The job whose work is under way.
    pub job: Option<JobId>,
    /// Whether that work is parked.
    pub parked: Option<Failure>,
    /// Whether it is being undone.
    pub undoing: bool,
    /// Calls made for the present step, this one included.
    pub attempts: u32,
    /// What it waits for, in words.
    pub waits_for: String,
    /// When it is tried next.
    pub next_retry_at: Option<WallMs>,
    /// The first hundred jobs that wait behind it.
    pub behind: Vec<JobId>,
    /// How many wait behind it.
    pub behind_total: usize,
    /// What has happened to it, oldest first, the last 32: when, and what in words.
    pub history: Vec<(WallMs, String)>,
}

/// Counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// VMs that are not tombstones.
    pub vms: usize,
    /// Jobs not ended.
    pub jobs_open: usize,
    /// Work admitted and not started.
    pub waiting: usize,
    /// Work with a call under way.
    pub running: usize,
    /// Parked work.
    pub parked: usize,
    /// When the oldest work that has not started was accepted.
    pub oldest_waiting_at: Option<WallMs>,
    /// Work that waits because its manager is saturated, failing or not known.
    pub waiting_for_managers: usize,
    /// Open intents.
    pub intents: usize,
    /// Dead letters kept.
    pub dead_letters: usize,
    /// Jobs that have ended here since the shard was opened, by type and state.
    pub ended: BTreeMap<(JobKind, JobState), u64>,
    /// Work of each tenant that is not started.
    pub waiting_by_tenant: BTreeMap<TenantId, usize>,
    /// Work that has ended since the shard was opened.
    pub work_ended: u64,
    /// Whether the `jobs` queue is not read on, as too much waits.
    pub full: bool,
    /// What a message of the `jobs` queue holds.
    pub jobs_per_message: PerMessage,
}
