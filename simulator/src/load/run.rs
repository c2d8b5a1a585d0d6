//! The loop that sends what is due and hears what has ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cellbus_bus::ids::JobId;
use cellbus_bus::{Env, Mono, Task};
use futures::future::join_all;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::books::{Books, Expected, Next, Prepared};
use super::marks::Marks;
use super::report::{Details, Exact, Report};
use super::target::{Ended, Heard, ManagerSeen, Refused, Sample, SubmitError, Target};
use super::workload::Workload;
use super::{Options, Pace, Progress, Usage};

/// Each item is a batch of events; a loop that is behind makes the stream wait.
const HEARD_MAX: usize = 256;
/// News of senders and of the other small tasks.
const NEWS_MAX: usize = 64;
const TICK: Duration = Duration::from_millis(100);
const SAMPLE_EVERY_TICKS: u64 = 10;
/// Managers are many, so that they are looked at less often.
const MANAGERS_EVERY_SAMPLES: u64 = 5;
/// Jobs asked after at once, once a second.
const ASKED_AT_ONCE: usize = 64;
/// How long the start waits for the stream of outcomes; without it, jobs are asked after.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);

/// What a run came to, before anything was checked.
pub(super) struct Played {
    pub(super) report: Report,
    pub(super) expected: Expected,
}

/// What the tasks of a run tell its loop.
enum News {
    Acknowledged(Vec<JobId>),
    Refused(JobId, String, String),
    /// A sender is free again.
    SenderFree,
    /// Asked after: those that have ended, and those that are not known.
    Asked(Vec<Ended>, Vec<JobId>),
    /// What the cluster is now; the managers only now and then. `None`: it did not say.
    Sampled(Option<Sample>, Option<Vec<ManagerSeen>>),
}

/// Tasks that end with the run.
struct Tasks(Vec<Task>);
impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(Task::abort);
    }
}

struct Run<'a> {
    books: Books,
    target: &'a Arc<dyn Target>,
    options: &'a Options,
    env: &'a Env,
    stop: &'a CancellationToken,
    news: mpsc::Sender<News>,
    began: Mono,
    /// Taken from the workload, and not yet handed to a sender.
    queue: VecDeque<Prepared>,
    senders_free: usize,
    asking: bool,
    sampling: bool,
    samples: u64,
    marks: Marks,
    /// How long jobs waited in the queue, from when they were due.
    late: Exact,
    /// The most jobs without an outcome at one time.
    open_max: usize,
    /// Since when jobs that are due are held up, as too many are without an outcome; and for how
    /// long they were before.
    held_since: Option<Mono>,
    held: Duration,
    /// What the harness had used when that was last looked at.
    used: (Mono, Usage),
    /// Acknowledged, and then not known: lost, unless their outcome is heard after all.
    unknown: std::collections::BTreeSet<JobId>,
    last_news: Mono,
    last_outcome: Mono,
    over: bool,
    not_before: Option<Duration>,
    cells_peak: u64,
    rss_mib: u64,
}

#[expect(clippy::too_many_arguments, reason = "all of a run's surroundings, handed on once")]
pub(super) async fn play(
    workload: Workload,
    target: &Arc<dyn Target>,
    options: &Options,
    run: &str,
    managers: Vec<String>,
    progress: &Arc<dyn Progress>,
    stop: &CancellationToken,
    env: &Env,
) -> Played {
    let (heard_in, mut heard) = mpsc::channel(HEARD_MAX);
    let (news_in, mut news) = mpsc::channel(NEWS_MAX);
    let last_id = Arc::new(Mutex::new(None));
    let _tasks = Tasks(vec![listen(Arc::clone(target), heard_in, Arc::clone(&last_id), env)]);
    // With the stream of outcomes open first, none is missed. Without it, jobs are asked after.
    let _ = env
        .timeout(CONNECT_PATIENCE, async { while !matches!(heard.recv().await, Some(Heard::Connected) | None) {} })
        .await;

    let began = env.mono();
    let mut run = Run {
        books: Books::new(run, options, managers, workload, began),
        target,
        options,
        env,
        stop,
        news: news_in,
        began,
        queue: VecDeque::new(),
        senders_free: options.senders.max(1),
        asking: false,
        sampling: false,
        samples: 0,
        marks: Marks::default(),
        late: Exact::new(),
        open_max: 0,
        held_since: None,
        held: Duration::ZERO,
        used: (began, (options.usage)()),
        unknown: Default::default(),
        last_news: began,
        last_outcome: began,
        over: false,
        not_before: None,
        cells_peak: 0,
        rss_mib: 0,
    };
    let (mut ticks, mut tick) = (0_u64, env.sleep(TICK));
    while !run.finished() {
        run.fill();
        run.send();
        if run.finished() {
            break;
        }
        let due = run.not_before.filter(|_| run.may_take());
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(item) = heard.recv() => {
                run.hear(item, &last_id);
                while let Ok(more) = heard.try_recv() {
                    run.hear(more, &last_id);
                }
            }
            Some(item) = news.recv() => run.learn(item),
            () = env.sleep(due.unwrap_or(TICK)), if due.is_some() => {}
            () = &mut tick => {
                tick = env.sleep(TICK);
                ticks += 1;
                progress.counts(&run.books.counts, run.books.open());
                run.note(ticks.is_multiple_of(SAMPLE_EVERY_TICKS));
                if ticks.is_multiple_of(SAMPLE_EVERY_TICKS) {
                    run.ask();
                    run.sample();
                }
                if run.books.open() == 0 {
                    // A lull of the workload is no silence of the cluster.
                    run.last_news = run.env.mono();
                }
                if run.env.mono().since(run.last_news) > options.patience {
                    tracing::warn!(open = run.books.open(), "no job has ended for too long; the run ends");
                    break;
                }
            }
        }
    }
    progress.counts(&run.books.counts, run.books.open());
    run.played()
}

impl Run<'_> {
    fn finished(&self) -> bool {
        self.over && self.queue.is_empty() && self.books.open() == 0
    }
    fn may_take(&self) -> bool {
        // Whatever its pace, a queue is behind a call to the cluster that takes long. Kept in order,
        // it need not be longer than the next call; else it holds what has become due meanwhile.
        let queue_max = match self.options.pace {
            Pace::InOrder => self.options.batch_max,
            Pace::OnTime => self.options.in_flight,
        };
        !self.over && self.queue.len() < queue_max && self.books.open() < self.options.in_flight
    }

    /// Takes all that may be sent now into the queue.
    fn fill(&mut self) {
        self.not_before = None;
        while self.may_take() {
            match self.books.next(self.env.mono()) {
                Next::Send(prepared) => self.queue.push_back(prepared),
                Next::NotBefore(wait) => {
                    self.not_before = Some(wait);
                    break;
                }
                Next::Blocked => break,
                Next::Over => self.over = true,
            }
        }
        self.open_max = self.open_max.max(self.books.open());
        let now = self.env.mono();
        let held = self.books.open() >= self.options.in_flight && self.books.behind(now);
        if let Some(since) = self.held_since {
            self.held += now.since(since);
        }
        self.held_since = held.then_some(now);
    }

    /// Sends what is in the queue, as far as senders are free.
    fn send(&mut self) {
        while !self.queue.is_empty() && self.senders_free > 0 {
            self.senders_free -= 1;
            let sender = Sender {
                target: Arc::clone(self.target),
                news: self.news.clone(),
                stop: self.stop.clone(),
                env: self.env.clone(),
            };
            let size = self.queue.len().min(self.options.batch_max);
            let batch: Vec<Prepared> = self.queue.drain(..size).collect();
            let now = self.env.mono();
            for prepared in &batch {
                let late = prepared.due.map(|due| now.since(due));
                if let Some(late) = late {
                    self.late.add(late);
                }
                self.books.sent(now, late.unwrap_or_default());
            }
            self.env.spawn("load: send", sender.send(batch));
        }
    }

    fn hear(&mut self, item: Heard, last_id: &Mutex<Option<String>>) {
        match item {
            Heard::Connected => {}
            Heard::At(id) => *last_id.lock().unwrap_or_else(PoisonError::into_inner) = Some(id),
            Heard::Ended(ended) => self.ended(&ended),
            Heard::Refused(job, code, words) => self.books.refused(job, &code, &words, self.env.mono()),
        }
    }

    fn ended(&mut self, ended: &[Ended]) {
        let now = self.env.mono();
        for one in ended {
            if self.books.ended(one.job, &one.how, now) {
                (self.last_news, self.last_outcome) = (now, now);
                self.unknown.remove(&one.job);
            }
        }
    }

    fn learn(&mut self, news: News) {
        match news {
            News::Acknowledged(jobs) => {
                self.last_news = self.env.mono();
                self.books.acknowledged(&jobs, self.last_news);
            }
            News::Refused(job, code, words) => self.books.refused(job, &code, &words, self.env.mono()),
            News::SenderFree => self.senders_free += 1,
            News::Asked(ended, unknown) => {
                self.asking = false;
                self.unknown.extend(unknown);
                self.ended(&ended);
            }
            News::Sampled(sample, managers) => {
                self.sampling = false;
                let since = self.env.mono().since(self.began);
                if let Some(managers) = managers {
                    self.marks.managers(since.as_secs_f64(), &managers);
                }
                if let Some(sample) = sample {
                    let cells = sample.cells.len() as u64;
                    self.cells_peak = self.cells_peak.max(cells);
                    self.rss_mib = self.rss_mib.max(sample.rss_mib);
                    self.marks.cells(since.as_secs_f64(), &sample.cells);
                    let moment = self.books.series.at(since);
                    moment.cells = Some(cells);
                    moment.server_rss_mib = sample.rss_now_mib;
                    moment.server_jobs = sample.jobs_open;
                }
            }
        }
    }

    /// Notes what is not counted where it happens: how much there is now, and what this costs.
    fn note(&mut self, cost: bool) {
        let now = self.env.mono();
        let open = self.books.open() as u64;
        let moment = self.books.series.at(now.since(self.began));
        moment.open = moment.open.max(open);
        // At the very end a moment may be too short to tell a share from.
        if !cost || now == self.used.0 {
            return;
        }
        let usage = (self.options.usage)();
        let (then, before) = std::mem::replace(&mut self.used, (now, usage));
        if usage.rss_mib > 0.0 {
            let cpu = usage.cpu.saturating_sub(before.cpu).as_secs_f64() / now.since(then).as_secs_f64();
            moment.own_cpu = Some(cpu);
            moment.own_rss_mib = Some(usage.rss_mib);
        }
    }

    /// Asks after jobs of which nothing was heard for long.
    fn ask(&mut self) {
        let Some(before) = self.env.mono().0.checked_sub(self.options.ask_after) else { return };
        if self.asking {
            return;
        }
        let jobs = self.books.overdue(Mono(before), ASKED_AT_ONCE);
        if jobs.is_empty() {
            return;
        }
        self.asking = true;
        let (target, news) = (Arc::clone(self.target), self.news.clone());
        self.env.spawn("load: ask", async move {
            let views = join_all(jobs.iter().map(|job| target.job(*job))).await;
            let (mut ended, mut unknown) = (Vec::new(), Vec::new());
            for (job, view) in jobs.into_iter().zip(views) {
                match view {
                    Ok(Some(view)) => ended.extend(view.ended.map(|how| Ended { job, how })),
                    Ok(None) => unknown.push(job),
                    // It is asked after again.
                    Err(_) => {}
                }
            }
            // The run may be over.
            let _ = news.send(News::Asked(ended, unknown)).await;
        });
    }

    fn sample(&mut self) {
        if self.sampling {
            return;
        }
        self.sampling = true;
        let with_managers = self.samples.is_multiple_of(MANAGERS_EVERY_SAMPLES);
        self.samples += 1;
        let (target, news) = (Arc::clone(self.target), self.news.clone());
        self.env.spawn("load: sample", async move {
            let sample = target.sample().await.ok();
            let managers = if with_managers { target.managers().await.ok() } else { None };
            // The run may be over.
            let _ = news.send(News::Sampled(sample, managers)).await;
        });
    }

    fn played(mut self) -> Played {
        self.note(false);
        let began = self.began;
        let interrupted = self.stop.is_cancelled();
        let (open, counts) = (self.books.open() as u64, &self.books.counts);
        let wall = self.last_outcome.since(began).as_secs_f64();
        let lost = self.unknown.len() as u64;
        let ended = counts.succeeded + counts.failed;
        let report = Report {
            cells_peak: self.cells_peak,
            jobs_submitted: counts.acknowledged.max(ended),
            jobs_succeeded: counts.succeeded,
            jobs_failed: counts.failed,
            vms_created: counts.created,
            lost,
            wall_seconds: wall,
            jobs_per_second: if wall > 0.0 { ended as f64 / wall } else { 0.0 },
            latency_ms: self.books.latencies.millis(),
            rss_mib: self.rss_mib,
            vms_deleted: counts.deleted,
            jobs_refused: counts.refused,
            jobs_unfinished: open.saturating_sub(lost),
            jobs_lost: lost,
            skipped: counts.skipped,
            turned: counts.turned,
            late_ms: self.late.millis(),
            in_flight_max: self.open_max as u64,
            in_flight_limit: self.options.in_flight as u64,
            limit_reached_seconds: self.held.as_secs_f64(),
            by_type: self.books.by_type(),
            by_tenant: self.books.by_tenant(),
            failures: self.books.failures.clone(),
            interrupted,
            details: Details {
                series: std::mem::take(&mut self.books.series),
                latency_by_type: self.books.latency_by_type(),
                marks: std::mem::take(&mut self.marks.all),
                marks_dropped: self.marks.dropped,
            },
            ..Report::default()
        };
        Played { report, expected: self.books.expected() }
    }
}

/// Sends one batch until each job of it is acknowledged or refused.
struct Sender {
    target: Arc<dyn Target>,
    news: mpsc::Sender<News>,
    stop: CancellationToken,
    env: Env,
}

impl Sender {
    async fn send(self, batch: Vec<Prepared>) {
        let (mut jobs, mut events): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|prepared| (prepared.job, prepared.json)).unzip();
        let mut backoff = BACKOFF_FIRST;
        while !jobs.is_empty() && !self.stop.is_cancelled() {
            match self.target.submit(&events).await {
                Ok(refused) => {
                    self.refused(&mut jobs, &mut events, refused).await;
                    self.tell(News::Acknowledged(std::mem::take(&mut jobs))).await;
                }
                Err(SubmitError::Later { after, detail }) => {
                    tracing::debug!(%detail, jobs = jobs.len(), "not taken for now");
                    let pause = self.env.sleep(after.unwrap_or(backoff));
                    backoff = (backoff * 2).min(BACKOFF_LONGEST);
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => {}
                        () = pause => {}
                    }
                }
                Err(SubmitError::Refused(refused)) => self.refused(&mut jobs, &mut events, refused).await,
            }
        }
        self.tell(News::SenderFree).await;
    }

    /// Takes out what is refused.
    async fn refused(&self, jobs: &mut Vec<JobId>, events: &mut Vec<String>, mut refused: Vec<Refused>) {
        // From the last, so that the places of the others stay what they are.
        refused.sort_by_key(|refused| std::cmp::Reverse(refused.index));
        refused.dedup_by_key(|refused| refused.index);
        for Refused { index, code, words } in refused {
            if index < jobs.len() {
                events.remove(index);
                self.tell(News::Refused(jobs.remove(index), code, words)).await;
            }
        }
    }

    /// The run may be over.
    async fn tell(&self, news: News) {
        let _ = self.news.send(news).await;
    }
}

/// Keeps a stream of outcomes open, and goes on where it broke.
fn listen(target: Arc<dyn Target>, heard: mpsc::Sender<Heard>, last_id: Arc<Mutex<Option<String>>>, env: &Env) -> Task {
    let pauses = env.clone();
    env.spawn("load: listen", async move {
        while !heard.is_closed() {
            let after = last_id.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Err(error) = target.listen(after.as_deref(), &heard).await {
                tracing::debug!(%error, "the stream of outcomes ended");
            }
            pauses.sleep(BACKOFF_FIRST * 4).await;
        }
    })
}
