//! What a cell answers to others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::ids::{JobId, ManagerId, ShardId};
use cellbus_workflows::autoscale::ShardReading;
use futures::stream::StreamExt as _;
use tokio::sync::oneshot;

use super::Inner;
use crate::front;
use crate::gateway::{DEPTHS_AT_ONCE, ManagerRow, ShardRow, ShardState};
use crate::gather::Gather;
use crate::peers::{Decision, Handed, JobAnswer, Load, Request, Response, Summary, VmAnswer};
use crate::runner::{self, Ask};
use crate::spans::Context as TraceContext;

/// How long a shard may take to answer a question that it can answer at once.
const SHARD_LIMIT: Duration = Duration::from_secs(2);
/// How long a front may take to answer without asking its manager.
const FRONT_LIMIT: Duration = Duration::from_secs(2);
/// How long a shard that is let go waits for what is under way at its managers: with what follows, a
/// planned move is to take less than two seconds.
const FINISH_LIMIT: Duration = Duration::from_secs(1);
/// How long a manager may take to be read.
const MANAGER_LIMIT: Duration = Duration::from_secs(60);

impl Inner {
    pub(super) async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Jobs { ids, until, limit } => {
                let answers = Arc::new(Gather::new(ids.len()));
                let make = |items| Ask::Jobs { items, until, answers: Arc::clone(&answers) };
                self.ask_by_shard(ids.iter().map(|id| id.shard(self.process.count)).zip(ids.iter().copied()), make);
                self.process.env.timeout(limit, answers.full()).await;
                // Those for which the time ran out are shown as they are.
                let late: Vec<_> = answers.take();
                let mut answers = self.as_they_are(&ids, late).await;
                self.tell_unread(&ids, &mut answers).await;
                Response::Jobs(answers)
            }
            Request::Decided { ids, limit } => {
                let answers = Arc::new(Gather::new(ids.len()));
                let make = |items| Ask::Decided { items, once: runner::Once::Decided, answers: Arc::clone(&answers) };
                self.ask_by_shard(ids.iter().map(|id| id.shard(self.process.count)).zip(ids.iter().copied()), make);
                self.process.env.timeout(limit, answers.full()).await;
                Response::Decided(
                    answers.take().into_iter().map(|answer| answer.unwrap_or(Decision::Unknown)).collect(),
                )
            }
            Request::HandIn { jobs, limit } => Response::Decided(self.handed_in(jobs, limit).await),
            Request::Vms(ids) => {
                let answers = Arc::new(Gather::new(ids.len()));
                let make = |items| Ask::Vms { items, answers: Arc::clone(&answers) };
                self.ask_by_shard(ids.iter().map(|id| id.shard(self.process.count)).zip(ids.iter().copied()), make);
                self.process.env.timeout(SHARD_LIMIT, answers.full()).await;
                Response::Vms(answers.take().into_iter().map(|answer| answer.unwrap_or(VmAnswer::NotMine)).collect())
            }
            Request::Works(works) => {
                let answers = Arc::new(Gather::new(works.len()));
                let make = |items| Ask::Works { items, answers: Arc::clone(&answers) };
                self.ask_by_shard(works.iter().map(|(vm, _)| vm.shard(self.process.count)).zip(works.clone()), make);
                self.process.env.timeout(SHARD_LIMIT, answers.full()).await;
                Response::Works(answers.take().into_iter().map(Option::flatten).collect())
            }
            Request::Parked => {
                Response::Parked(self.ask_all(Ask::Parked).await.into_iter().flat_map(|(_, parked)| parked).collect())
            }
            Request::Explain(vm) => {
                let Some(runner) = self.runner(vm.shard(self.process.count)) else { return Response::NotMine };
                let (back, answer) = oneshot::channel();
                if runner.put(runner::Message::Ask(Ask::Explain(vm, back))).is_err() {
                    return busy();
                }
                match self.process.env.timeout(SHARD_LIMIT, answer).await {
                    Some(Ok(explained)) => Response::Explained(explained),
                    Some(Err(_)) | None => Response::Failed { detail: "the shard is not open".to_owned() },
                }
            }
            Request::Shards => Response::Shards(self.shard_rows().await),
            Request::Managers => Response::Managers(self.manager_rows()),
            Request::Stats => Response::Stats(self.ask_all(Ask::Stats).await),
            Request::Summary => Response::Summary(self.summary()),
            Request::Load => Response::Load(self.load().await),
            Request::Scale { limit, before } => {
                self.ask_cluster(|back| Ask::Scale { limit, before, back }, Response::Scale).await
            }
            Request::Capacity => self.ask_cluster(Ask::Capacity, Response::Capacity).await,
            Request::Hosts(manager) => {
                let (back, answer) = oneshot::channel();
                self.ask_front(&manager, front::Message::Hosts(back), FRONT_LIMIT, answer, |rows| {
                    Ok(Response::Hosts(rows))
                })
                .await
            }
            Request::Live { manager, vm } => {
                let (back, answer) = oneshot::channel();
                let message = front::Message::Live(vm, back);
                self.ask_front(&manager, message, MANAGER_LIMIT, answer, |held| Ok(Response::Live(held?.map(Box::new))))
                    .await
            }
            Request::Inventory(manager) => {
                let (back, answer) = oneshot::channel();
                let message = front::Message::Inventory(back);
                let made = |inventory: Result<_, String>| Ok(Response::Inventory(Box::new(inventory?)));
                self.ask_front(&manager, message, MANAGER_LIMIT, answer, made).await
            }
            Request::Foreign(manager) => {
                let (back, answer) = oneshot::channel();
                let message = front::Message::Foreign(back);
                let made = |foreign: Result<_, String>| Ok(Response::Foreign(foreign?));
                self.ask_front(&manager, message, MANAGER_LIMIT, answer, made).await
            }
            Request::MayBeFenced { manager, host } => {
                let (back, answer) = oneshot::channel();
                let message = front::Message::MayBeFenced(host, back);
                let made = |answer| Ok(Response::MayBeFenced(answer));
                self.ask_front(&manager, message, MANAGER_LIMIT, answer, made).await
            }
            Request::DeadLetters => {
                let letters = self.ask_all(Ask::DeadLetters).await;
                let with_shard =
                    letters.into_iter().flat_map(|(shard, kept)| kept.into_iter().map(move |letter| (shard, letter)));
                Response::DeadLetters(with_shard.collect())
            }
            Request::Changes => Response::Changes(
                self.ask_all(Ask::Changes).await.into_iter().flat_map(|(_, changes)| changes).collect(),
            ),
            Request::Traces(jobs) => Response::Traces(self.traces(&jobs).await),
            Request::Drain(by) => {
                tracing::info!(cell = %self.me.cell, who = by.who, from = by.from, "asked to drain");
                self.draining.store(true, Ordering::Release);
                self.poke.notify_one();
                Response::Draining
            }
            Request::Release { shard, to } => self.release(shard, &to).await,
            // A cell is no directory.
            Request::Directory(_) => Response::NotMine,
        }
    }

    /// Hands jobs to their homes past their queues; gives what each has made of it once that is durable.
    async fn handed_in(&self, jobs: Vec<Handed>, limit: Duration) -> Vec<Decision> {
        let answers = Arc::new(Gather::new(jobs.len()));
        let mut by_shard: BTreeMap<ShardId, Vec<_>> = BTreeMap::new();
        for (index, handed) in jobs.into_iter().enumerate() {
            by_shard.entry(handed.job.id.shard(self.process.count)).or_default().push((index, handed));
        }
        for (shard, jobs) in by_shard {
            let message = runner::Message::HandIn { jobs, answers: Arc::clone(&answers) };
            let refused = match self.runner(shard) {
                Some(runner) => runner.put(message).err(),
                None => Some(message),
            };
            if let Some(runner::Message::HandIn { jobs, answers }) = refused {
                runner::not_taken(&jobs, &answers);
            }
        }
        self.process.env.timeout(limit, answers.full()).await;
        answers.take().into_iter().map(|answer| answer.unwrap_or(Decision::Unknown)).collect()
    }

    /// Which traces jobs belong to: what is remembered here, and of the others what their homes have on
    /// record, as they have of all jobs that were accepted elsewhere before.
    async fn traces(&self, jobs: &[JobId]) -> Vec<Option<Option<TraceContext>>> {
        let remembered: Vec<_> = jobs.iter().map(|job| self.process.spans.trace(job)).collect();
        let others: Vec<JobId> =
            jobs.iter().zip(&remembered).filter(|(_, trace)| trace.is_none()).map(|(job, _)| *job).collect();
        if others.is_empty() {
            return remembered;
        }
        let answers = Arc::new(Gather::new(others.len()));
        let make = |items| Ask::Traces { items, answers: Arc::clone(&answers) };
        self.ask_by_shard(others.iter().map(|job| job.shard(self.process.count)).zip(others.iter().copied()), make);
        self.process.env.timeout(SHARD_LIMIT, answers.full()).await;
        let mut recorded = answers.take().into_iter();
        remembered.into_iter().map(|trace| trace.or_else(|| recorded.next().flatten().flatten())).collect()
    }

    fn ask_by_shard<I>(&self, items: impl Iterator<Item = (ShardId, I)>, make: impl Fn(Vec<(usize, I)>) -> Ask) {
        let mut by_shard: BTreeMap<ShardId, Vec<(usize, I)>> = BTreeMap::new();
        for (index, (shard, item)) in items.enumerate() {
            by_shard.entry(shard).or_default().push((index, item));
        }
        for (shard, items) in by_shard {
            let ask = make(items);
            match self.runner(shard) {
                Some(runner) => {
                    if let Err(runner::Message::Ask(ask)) = runner.put(runner::Message::Ask(ask)) {
                        ask.not_open();
                    }
                }
                None => ask.not_open(),
            }
        }
    }

    /// Fills in those that were waited for in vain.
    async fn as_they_are(&self, ids: &[JobId], answers: Vec<Option<JobAnswer>>) -> Vec<JobAnswer> {
        let late: Vec<_> = answers.iter().zip(ids).filter(|(answer, _)| answer.is_none()).map(|(_, id)| *id).collect();
        if late.is_empty() {
            return answers.into_iter().flatten().collect();
        }
        let now = Arc::new(Gather::new(late.len()));
        let make = |items| Ask::Jobs { items, until: crate::peers::Until::Now, answers: Arc::clone(&now) };
        self.ask_by_shard(late.iter().map(|id| id.shard(self.process.count)).zip(late.iter().copied()), make);
        self.process.env.timeout(SHARD_LIMIT, now.full()).await;
        let mut now = now.take().into_iter();
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| now.next().flatten().unwrap_or(JobAnswer::NotMine)))
            .collect()
    }

    /// A job that is not known is unknown for good only once its home has read its whole queue.
    async fn tell_unread(&self, ids: &[JobId], answers: &mut [JobAnswer]) {
        for (id, answer) in ids.iter().zip(answers) {
            let JobAnswer::Unknown { read } = *answer else { continue };
            let queue = Queue { shard: id.shard(self.process.count), kind: QueueKind::Jobs };
            let depth = self.process.bus.depth(queue, read).await;
            if depth.is_ok_and(|depth| depth.messages > 0) {
                *answer = JobAnswer::Unread;
            }
        }
    }

    /// Asks every shard that is open here; those that do not answer in time are left out.
    async fn ask_all<T>(&self, make: impl Fn(usize, Arc<Gather<T>>) -> Ask) -> Vec<(ShardId, T)> {
        let open: Vec<Arc<runner::Handle>> = self
            .runners
            .iter()
            .filter_map(arc_swap::ArcSwapOption::load_full)
            .filter(|runner| runner.row().state == ShardState::Open)
            .collect();
        let answers = Arc::new(Gather::new(open.len()));
        for (index, runner) in open.iter().enumerate() {
            // One that is too busy is left out.
            let _ = runner.put(runner::Message::Ask(make(index, Arc::clone(&answers))));
        }
        self.process.env.timeout(SHARD_LIMIT, answers.full()).await;
        let answers = answers.take();
        open.iter().zip(answers).filter_map(|(runner, answer)| Some((runner.shard, answer?))).collect()
    }

    /// Asks the cluster's shard, if it is open here.
    async fn ask_cluster<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<T>) -> Ask,
        made: impl FnOnce(T) -> Response,
    ) -> Response {
        let Some(runner) = self.runner(ShardId::of_cluster(self.process.count)) else { return Response::NotMine };
        let (back, answer) = oneshot::channel();
        if runner.put(runner::Message::Ask(ask(back))).is_err() {
            return busy();
        }
        match self.process.env.timeout(SHARD_LIMIT, answer).await {
            Some(Ok(answer)) => made(answer),
            Some(Err(_)) | None => Response::Failed { detail: "the shard is not open".to_owned() },
        }
    }

    async fn ask_front<T>(
        &self,
        manager: &ManagerId,
        message: front::Message,
        limit: Duration,
        answer: oneshot::Receiver<T>,
        made: impl FnOnce(T) -> Result<Response, String>,
    ) -> Response {
        let Some(front) = self.fronts.load().get(manager).cloned() else { return Response::NotMine };
        if front.put(message).is_err() {
            return busy();
        }
        match self.process.env.timeout(limit, answer).await {
            Some(Ok(answer)) => made(answer).unwrap_or_else(|detail| Response::Failed { detail }),
            Some(Err(_)) => Response::Failed { detail: "its owner is opening it".to_owned() },
            None => Response::Failed { detail: "no answer in time".to_owned() },
        }
    }

    async fn shard_rows(&self) -> Vec<ShardRow> {
        let stats: BTreeMap<_, _> = self.ask_all(Ask::Stats).await.into_iter().collect();
        let run = self.runners.iter().filter_map(arc_swap::ArcSwapOption::load_full).map(|runner| async move {
            let row = runner.row().as_ref().clone();
            let queue = |kind| Queue { shard: row.shard, kind };
            let bus = &self.process.bus;
            let depths = futures::future::join(
                bus.depth(queue(QueueKind::Jobs), row.jobs_read),
                bus.depth(queue(QueueKind::Control), row.control_read),
            );
            let depths = depths.await;
            (row, depths)
        });
        let read: Vec<_> = futures::stream::iter(run).buffered(DEPTHS_AT_ONCE).collect().await;
        let mut rows = Vec::with_capacity(read.len());
        for (mut row, (jobs, control)) in read {
            // A bus that does not answer shows as nothing unread; its own state is shown elsewhere.
            (row.jobs_unread, row.control_unread) =
                (jobs.unwrap_or_default().messages, control.unwrap_or_default().messages);
            if let Some(stats) = stats.get(&row.shard) {
                row.jobs_unread = stats.jobs_per_message.items(row.jobs_unread);
                row.vms = stats.vms as u64;
                row.jobs_open = stats.jobs_open as u64;
                row.waiting = stats.waiting as u64;
                row.running = stats.running as u64;
                row.parked = stats.parked as u64;
            }
            rows.push(row);
        }
        rows
    }

    pub(super) fn manager_rows(&self) -> Vec<ManagerRow> {
        self.fronts.load().values().map(front::Handle::row).collect()
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for runner in self.runners.iter().filter_map(arc_swap::ArcSwapOption::load_full) {
            let row = runner.row();
            match row.state {
                ShardState::Open => summary.owned.push((row.shard, row.epoch, row.log_end)),
                ShardState::Failed { .. } => summary.failed.push(row.shard),
                ShardState::Unowned | ShardState::Opening | ShardState::Suspended | ShardState::Closing => {}
            }
        }
        let fronts = self.fronts.load();
        summary.managers =
            self.process.board.said().into_iter().filter(|(_, said)| fronts.contains_key(&said.id)).collect();
        summary
    }

    /// What the autoscaler goes by. A shard that cannot be read whole is left out: it is unknown then.
    async fn load(&self) -> Load {
        let stats = self.ask_all(Ask::Stats).await;
        let read = stats.into_iter().map(|(shard, stats)| async move {
            let row = self.runner(shard)?.row();
            let queue = Queue { shard, kind: QueueKind::Jobs };
            let unread = self.process.bus.depth(queue, row.jobs_read).await.ok()?;
            Some(ShardReading {
                shard,
                epoch: row.epoch,
                unread: stats.jobs_per_message.items(unread.messages),
                full: stats.full,
                waiting: stats.waiting as u64,
                waiting_for_managers: stats.waiting_for_managers as u64,
                running: stats.running as u64,
                ended: stats.work_ended,
                oldest_waiting_at: stats.oldest_waiting_at,
            })
        });
        let read: Vec<_> = futures::stream::iter(read).buffered(DEPTHS_AT_ONCE).collect().await;
        let shards = read.into_iter().flatten().collect();
        let in_line = self.manager_rows().iter().flat_map(|row| row.waiting.values()).map(|n| u64::from(*n)).sum();
        Load { shards, in_line, in_flight_max: self.config.in_flight_max }
    }

    /// Has the fronts of the shard's managers finish what they have begun, as far as that does not take long:
    /// what goes on at the manager then, the next owner adopts. Whether nothing of ours is under way at them.
    async fn finish(&self, shard: ShardId) -> bool {
        let fronts = self.fronts.load();
        let of_shard = fronts.iter().filter(|(manager, _)| manager.shard(self.process.count) == shard);
        let finished = of_shard.map(|(_, front)| {
            let (told, finished) = oneshot::channel();
            // One that takes nothing in is not waited for.
            let put = front.put(front::Message::Finish(told));
            async move { put.is_ok() && finished.await.unwrap_or(false) }
        });
        let all = futures::future::join_all(finished.collect::<Vec<_>>());
        drop(fronts);
        let all = self.process.env.timeout(FINISH_LIMIT, all).await;
        all.is_some_and(|idle| idle.into_iter().all(|idle| idle))
    }

    /// Lets a shard go if it should be the asker's, once what is in flight is finished.
    async fn release(&self, shard: ShardId, to: &cellbus_bus::ids::CellId) -> Response {
        let Some(runner) = self.runner(shard) else { return Response::NotMine };
        let view = self.view.load_full();
        let mine = view.assignment.owner(shard) == Some(&self.me.cell) && !self.draining.load(Ordering::Acquire);
        if mine {
            return Response::Keeps;
        }
        tracing::debug!(cell = %self.me.cell, %shard, %to, "shard is handed over");
        let idle = self.finish(shard).await;
        let (told, released) = oneshot::channel();
        if runner.put(runner::Message::Release(told)).is_err() {
            return busy();
        }
        match self.process.env.timeout(super::RELEASE_LIMIT, released).await {
            // A dropped sender: the runner has ended meanwhile.
            Some(Ok(()) | Err(_)) if idle => Response::ReleasedIdle,
            Some(Ok(()) | Err(_)) => Response::Released,
            None => Response::Failed { detail: "it has not let go yet".to_owned() },
        }
    }
}

fn busy() -> Response {
    Response::Failed { detail: "too much waits already".to_owned() }
}
