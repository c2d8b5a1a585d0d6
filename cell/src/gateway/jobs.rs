//! Jobs: submitted, followed, called off.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::ids::{JobId, ShardId, TenantId};
use cellbus_bus::job::{Digest, Job, JobKind};
use cellbus_directory::record::{CancelledBy, Operator, ParkedDecision};
use cellbus_directory::{JobState, Vm, VmSummary};
use cellbus_workflows::{ControlItem, JobItem, JobStatus};

use super::{ASK_AGAIN, Error, Gateway, OWNER_LIMIT, Result, Submitted, What, confused};
use crate::directory::Fresh;
use crate::peers::{Decision, JobAnswer, Peer, Request, Response, Until};
use crate::spans::{Part, Span};

/// How long a submission waits for the homes of its jobs to decide.
const DECIDE_LIMIT: Duration = Duration::from_secs(5);
/// How long a wait for a job's end stays with one cell before it looks whether the owner is still
/// the same.
const WAIT_STEP: Duration = Duration::from_secs(10);
/// How long the directory may take to show what a job has done.
const SHOW_LIMIT: Duration = Duration::from_secs(5);
/// How long a cancel or a decision on parked work may take to show.
const CHANGE_LIMIT: Duration = Duration::from_secs(2);

impl Gateway {
    /// Puts the jobs on the queues of their homes in one durable step, then waits until each home
    /// has decided, and for operations until the job is in the order of its VM; a job whose home
    /// does not answer in time (5 s) is [`Submitted::Accepted`] as `queued`. One answer a job, in order.
    ///
    /// Dropping the call leaves the jobs submitted or not; submitting them again is safe.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::BusAway`]: nothing was taken. [`Error::NoAnswer`]: submit again.
    pub async fn submit(&self, jobs: Vec<Arc<Job>>) -> Result<Vec<Submitted>> {
        let process = &self.inner.process;
        process.bus.accepting()?;
        let began = process.env.mono();
        self.put_on_queues(&jobs).await?;
        let decided = self.decisions(&jobs).await;
        for job in jobs.iter().filter(|job| process.spans.want(&job.id)) {
            process.spans.learn(&job.id, &job.extensions);
            process.spans.end(Span {
                job: job.id,
                part: Part::Submit,
                ended: process.env.wall(),
                took: process.env.mono().since(began),
                failed: None,
                attributes: vec![("cellbus.tenant", job.tenant.to_string())],
            });
        }
        Ok(decided)
    }

    /// Puts jobs on the queues of their homes, in one step.
    ///
    /// # Errors
    /// The bus's: some may be there, unless it says that none is.
    pub(crate) async fn put_on_queues(&self, jobs: &[Arc<Job>]) -> cellbus_bus::Result<()> {
        let process = &self.inner.process;
        let mut by_shard: BTreeMap<ShardId, Vec<bytes::Bytes>> = BTreeMap::new();
        for job in jobs {
            by_shard.entry(job.id.shard(process.count)).or_default().push(JobItem::Job(Arc::clone(job)).encode());
        }
        let items = by_shard.into_iter().map(|(shard, items)| (Queue { shard, kind: QueueKind::Jobs }, items));
        process.bus.publish_all(items.collect()).await
    }

    /// What the home of a job that was handed to it, or is on its queue, makes of it, as [`Gateway::submit`]
    /// says it. `so_far`: what it has said already.
    pub(crate) async fn decision(&self, job: &Arc<Job>, so_far: &Decision) -> Submitted {
        match *so_far {
            Decision::Known { state, digest } if state != JobState::Queued => submitted(job, Some((state, digest))),
            Decision::Known { .. } | Decision::Unknown | Decision::NotMine => {
                submitted(job, self.decided(std::slice::from_ref(job)).await.pop().flatten())
            }
        }
    }

    async fn decisions(&self, jobs: &[Arc<Job>]) -> Vec<Submitted> {
        let decided = self.decided(jobs).await;
        jobs.iter().zip(decided).map(|(job, decided)| submitted(job, decided)).collect()
    }

    /// What the homes have made of jobs; `None` for those that have not decided in time.
    async fn decided(&self, jobs: &[Arc<Job>]) -> Vec<Option<(JobState, Digest)>> {
        let process = &self.inner.process;
        let mut decided = vec![None; jobs.len()];
        let mut open: Vec<usize> = (0..jobs.len()).collect();
        let began = process.env.mono();
        while !open.is_empty() {
            let left = DECIDE_LIMIT.saturating_sub(process.env.mono().since(began));
            if left.is_zero() {
                break;
            }
            let mut by_peer: BTreeMap<Arc<Peer>, Vec<usize>> = BTreeMap::new();
            for index in &open {
                if let Some(route) = process.routes.of(jobs[*index].id.shard(process.count)) {
                    by_peer.entry(Arc::clone(&route.peer)).or_default().push(*index);
                }
            }
            let asked = by_peer.into_iter().map(|(peer, indices)| async move {
                let ids = indices.iter().map(|index| jobs[*index].id).collect();
                (self.ask(&peer, Request::Decided { ids, limit: left }).await, indices)
            });
            for (answer, indices) in futures::future::join_all(asked).await {
                let Ok(Response::Decided(answers)) = answer else { continue };
                for (index, answer) in indices.into_iter().zip(answers) {
                    if let Decision::Known { state, digest } = answer {
                        decided[index] = Some((state, digest));
                    }
                }
            }
            open.retain(|index| decided[*index].is_none());
            if !open.is_empty() {
                process.env.sleep(ASK_AGAIN).await;
            }
        }
        decided
    }

    /// A job as its home knows it, or as the directory does while the home is away. Of a job that
    /// has succeeded, the VMs are in the directory, as this process asks it, before this returns.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotReady`] while the directory is not complete and the home away.
    pub async fn job(&self, id: JobId) -> Result<JobStatus> {
        match self.ask_job(id, Until::Now, Duration::ZERO).await {
            Ok(Some(status)) => {
                let mut shown = [status];
                self.shown(&mut shown).await?;
                self.look_at_all(&mut shown).await;
                let [status] = shown;
                Ok(status)
            }
            Ok(None) => Err(Error::NotFound { what: What::Job, id: id.to_string() }),
            Err(error) => match self.job_from_directory(id).await {
                Some(status) => Ok(status),
                None => Err(error),
            },
        }
    }

    /// [`Gateway::job`], once it has ended, or as it is when `limit` has passed: look at `row.state`.
    ///
    /// # Errors
    /// As [`Gateway::job`].
    pub async fn wait_job(&self, id: JobId, limit: Duration) -> Result<JobStatus> {
        let process = &self.inner.process;
        let began = process.env.mono();
        loop {
            let left = limit.saturating_sub(process.env.mono().since(began));
            if left.is_zero() {
                return self.job(id).await;
            }
            match self.ask_job(id, Until::Ended, left.min(WAIT_STEP)).await {
                Ok(Some(status)) if status.row.state.ended() => {
                    let mut shown = [status];
                    self.shown(&mut shown).await?;
                    let [status] = shown;
                    return Ok(status);
                }
                // Not so far yet, or its home has just moved.
                Ok(Some(_)) | Err(Error::ShardAway { .. } | Error::NotReady { .. }) => {}
                Ok(None) => return Err(Error::NotFound { what: What::Job, id: id.to_string() }),
                Err(error) => return Err(error),
            }
        }
    }

    /// [`Gateway::wait_job`] for many at once, in order; `None` for those that are not known.
    ///
    /// # Errors
    /// As [`Gateway::job`].
    pub async fn wait_jobs(&self, ids: &[JobId], limit: Duration) -> Result<Vec<Option<JobStatus>>> {
        let process = &self.inner.process;
        let mut found: Vec<Option<JobStatus>> = vec![None; ids.len()];
        let mut open: Vec<usize> = (0..ids.len()).collect();
        let began = process.env.mono();
        loop {
            let left = limit.saturating_sub(process.env.mono().since(began));
            let mut by_peer: BTreeMap<Arc<Peer>, Vec<usize>> = BTreeMap::new();
            for index in &open {
                if let Some(route) = process.routes.of(ids[*index].shard(process.count)) {
                    by_peer.entry(Arc::clone(&route.peer)).or_default().push(*index);
                }
            }
            let until = if left.is_zero() { Until::Now } else { Until::Ended };
            let asked = by_peer.into_iter().map(|(peer, indices)| async move {
                let ids = indices.iter().map(|index| ids[*index]).collect();
                (self.ask(&peer, Request::Jobs { ids, until, limit: left.min(WAIT_STEP) }).await, indices)
            });
            for (answer, indices) in futures::future::join_all(asked).await {
                let Ok(Response::Jobs(answers)) = answer else { continue };
                for (index, answer) in indices.into_iter().zip(answers) {
                    if let JobAnswer::Known(status) = answer {
                        found[index] = Some(*status);
                    }
                }
            }
            open.retain(|index| found[*index].as_ref().is_none_or(|status| !status.row.state.ended()));
            if open.is_empty() || left.is_zero() {
                break;
            }
            process.env.sleep(ASK_AGAIN.min(left)).await;
        }
        let (places, mut known): (Vec<usize>, Vec<JobStatus>) =
            found.into_iter().enumerate().filter_map(|(at, status)| Some((at, status?))).unzip();
        self.shown(&mut known).await?;
        self.look_at_all(&mut known).await;
        let mut all = vec![None; ids.len()];
        for (at, status) in places.into_iter().zip(known) {
            all[at] = Some(status);
        }
        Ok(all)
    }

    /// A job from its home; `None` if its home has read all of its queue and does not know it.
    async fn ask_job(&self, id: JobId, until: Until, limit: Duration) -> Result<Option<JobStatus>> {
        let process = &self.inner.process;
        let shard = id.shard(process.count);
        let began = process.env.mono();
        loop {
            let reason = match self.ask_owner(shard, Request::Jobs { ids: vec![id], until, limit }).await? {
                Response::Jobs(answers) => match answers.into_iter().next() {
                    Some(JobAnswer::Known(status)) => return Ok(Some(*status)),
                    Some(JobAnswer::Unknown { .. }) => return Ok(None),
                    Some(JobAnswer::Unread) => "the job's home has not read its queue to the end yet",
                    Some(JobAnswer::NotMine) | None => "the job's home is moving",
                },
                _ => return Err(confused()),
            };
            if process.env.mono().since(began) >= limit.max(OWNER_LIMIT) {
                return Err(Error::NotReady { reason: reason.to_owned() });
            }
            process.env.sleep(ASK_AGAIN).await;
        }
    }

    /// Waits until the directory shows what ended jobs have done: a VM is listed and located before its
    /// job's success is shown.
    async fn shown(&self, statuses: &mut [JobStatus]) -> Result<()> {
        let process = &self.inner.process;
        let succeeded: Vec<usize> =
            (0..statuses.len()).filter(|at| statuses[*at].row.state == JobState::Succeeded).collect();
        if succeeded.is_empty() {
            return Ok(());
        }
        let entries = |at: &usize| {
            let status = &statuses[*at];
            let ended = status.ended_seq.map(|seq| (status.row.id.shard(process.count), seq));
            let vms = status.vms.iter().map(|vm| (vm.id.shard(process.count), vm.seq));
            ended.into_iter().chain(vms).collect()
        };
        // The outcome names the first hundred: for the others all logs are read to their ends.
        let named_all = |at: &usize| statuses[*at].row.vms_total as usize <= statuses[*at].vms.len();
        let fresh = if succeeded.iter().all(named_all) { Fresh::AsItIs } else { Fresh::CaughtUp };
        let shown = match self.directory().shows(succeeded.iter().map(entries).collect(), fresh, SHOW_LIMIT).await {
            Ok(shown) => shown,
            // While no process of the directory answers, no list can lack what they have made.
            Err(Error::NotReady { .. }) if self.replica().is_none() => return Ok(()),
            Err(error) => return Err(error),
        };
        for (at, shown) in succeeded.into_iter().zip(shown) {
            if !shown {
                // It has succeeded; that may not be shown before the VMs are.
                let status = &mut statuses[at];
                status.row.state = JobState::Running;
                (status.row.outcome, status.row.ended_at) = (None, None);
                status.waits_for = "the directory, which is reading the log".to_owned();
            }
        }
        Ok(())
    }

    /// A job as the directory knows it, while its home is away.
    async fn job_from_directory(&self, id: JobId) -> Option<JobStatus> {
        let row = self.directory().job(id).await.ok().flatten()?;
        let vms = match (row.kind, row.vm) {
            (JobKind::Provision, _) => (0..row.vms_total.min(100)).map(|k| id.vm(k)).collect(),
            (_, Some(vm)) => vec![vm],
            (_, None) => Vec::new(),
        };
        let vms = self.directory().vms(vms).await.ok()?.iter().flatten().map(summary).collect();
        Some(JobStatus {
            row,
            digest: Digest::default(),
            vms,
            vms_ended: 0,
            waits_for: "its home, which is away; shown as the directory knows it".to_owned(),
            ended_seq: None,
            extensions: BTreeMap::new(),
        })
    }

    /// The VMs of a job from its child number `from` on, and the number to go on from.
    ///
    /// # Errors
    /// As [`Gateway::job`].
    pub async fn job_vms(&self, id: JobId, from: u32, limit: usize) -> Result<(Vec<VmSummary>, Option<u32>)> {
        let status = self.job(id).await?;
        let total = status.row.vms_total;
        // A page has a thousand rows at the most, so the sum stays far below the limit of the type.
        let until = total.min(from.saturating_add(u32::try_from(limit).unwrap_or(u32::MAX)));
        let next = (until < total).then_some(until);
        if status.row.kind != JobKind::Provision {
            let vms = status.vms.into_iter().skip(from as usize).take(limit).collect();
            return Ok((vms, next));
        }
        let ids: Vec<_> = (from..until).map(|k| id.vm(k)).collect();
        let mut vms = Vec::with_capacity(ids.len());
        let mut missing = Vec::new();
        // A directory that gives no answer knows none of them.
        let known = self.directory().vms(ids.clone()).await.unwrap_or_default();
        for (index, vm) in ids.into_iter().enumerate() {
            match known.get(index).and_then(Option::as_ref) {
                Some(known) => vms.push(summary(known)),
                None => missing.push(vm),
            }
        }
        // Those that are not made yet have no row anywhere; homes may know more than the directory.
        vms.extend(self.vms_from_homes(&missing).await.iter().map(summary));
        Ok((vms, next))
    }

    /// Calls a job off in an operator's name; gives it as it is a moment later.
    ///
    /// # Errors
    /// As [`Gateway::job`]; [`Error::Conflict`] `not_cancellable` when it has ended.
    pub async fn cancel_job(&self, id: JobId, tenant: Option<TenantId>, by: Operator) -> Result<JobStatus> {
        let status = self.job(id).await?;
        if tenant.as_ref().is_some_and(|tenant| *tenant != status.row.tenant) {
            return Err(Error::NotFound { what: What::Job, id: id.to_string() });
        }
        if status.row.state.ended() {
            let message = format!("job {id} has {} already", status.row.state);
            return Err(Error::Conflict { code: "not_cancellable", message });
        }
        let item = ControlItem::Cancel { job: id, tenant, by: CancelledBy::Operator(by) };
        self.control(id.shard(self.inner.process.count), item).await?;
        self.wait_job(id, CHANGE_LIMIT).await
    }

    /// Retries or abandons the parked work of a job.
    ///
    /// # Errors
    /// As [`Gateway::job`]; [`Error::Conflict`] `not_parked`.
    pub async fn unpark_job(&self, id: JobId, decision: ParkedDecision, by: Operator) -> Result<JobStatus> {
        let process = &self.inner.process;
        let status = self.job(id).await?;
        let children = if status.row.kind == JobKind::Provision { status.row.vms_total } else { 0 };
        let vms: Vec<_> = match status.row.vm {
            Some(vm) => vec![vm],
            None => (0..children).map(|child| id.vm(child)).collect(),
        };
        // Where parked work is, the homes of the VMs know; the others do nothing.
        let mut parked = status.row.state == JobState::Parked;
        for vm in &vms {
            if parked || vms.len() > 100 {
                break;
            }
            let explained = self.explain_vm(*vm).await;
            parked = explained.is_ok_and(|e| e.vm.is_some_and(|vm| vm.parked.is_some() && vm.job == Some(id)));
        }
        if !parked && vms.len() <= 100 {
            let message = format!("job {id} is {}, not parked", status.row.state);
            return Err(Error::Conflict { code: "not_parked", message });
        }
        let items = vms
            .into_iter()
            .map(|vm| {
                let item = ControlItem::Unpark { vm, job: id, decision, by: by.clone() };
                (Queue { shard: vm.shard(process.count), kind: QueueKind::Control }, vec![item.encode()])
            })
            .collect();
        process.bus.publish_all(items).await?;
        self.wait_job(id, CHANGE_LIMIT).await
    }
}

/// What a producer is told of a job of which this has been decided.
fn submitted(job: &Job, decided: Option<(JobState, Digest)>) -> Submitted {
    match decided {
        Some((_, digest)) if digest != job.digest => Submitted::Conflict { job: job.id },
        Some((state, _)) => Submitted::Accepted { job: job.id, state },
        None => Submitted::Accepted { job: job.id, state: JobState::Queued },
    }
}

/// What an outcome says of a VM.
fn summary(vm: &Vm) -> VmSummary {
    VmSummary {
        id: vm.id,
        name: vm.name.clone(),
        home: vm.home.clone(),
        state: vm.state(),
        seq: cellbus_bus::ids::Seq::ZERO,
    }
}
