//! Serving a shard that is open: inputs are decided on, appended, and carried out.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::contract::{Error as BusError, Message as BusMessage, Position, QueueKind, SnapshotId};
use cellbus_bus::env::{BoxFuture, panic_text};
use cellbus_bus::ids::{Epoch, OpNumber, Seq, VmId};
use cellbus_bus::job::Digest;
use cellbus_bus::{Mono, WallMs};
use cellbus_directory::record::IntentKey;
use cellbus_directory::replica::Stamp;
use cellbus_workflows::{Answer, Call, Effect, EffectAnswer, EffectKind, Input, Kept, Later, LaterReason};

use super::ask::{Ask, Once, Waiters};
use super::calls::Calls;
use super::company::Company;
use super::lost::Acknowledged;
use super::open::Open;
use super::permits::Held;
use super::poison::Poison;
use super::{Ended, Handle, Message, Next, Runner};
use crate::effects::Whose;
use crate::gateway::{ShardRow, ShardState};
use crate::gather::Gather;
use crate::metrics::work;
use crate::peers::{Asked, Decision, Handed, Peer, Post};

/// How often a runner looks for calls that were lost and for waiters that have gone.
const SWEEP: Duration = Duration::from_secs(1);
/// The first pause before an append that the bus refused is tried again; doubled each time.
const APPEND_AGAIN: Duration = Duration::from_millis(50);
/// The longest such pause.
const APPEND_AGAIN_MAX: Duration = Duration::from_secs(2);

/// What a runner keeps beside the shard itself while it serves it.
struct Serving {
    open: Open,
    handle: Handle,
    waiters: Waiters,
    calls: Calls,
    permits: Option<Held>,
    /// Inputs that have come and are not handed in yet.
    backlog: VecDeque<Input>,
    /// Inputs that go along with the next one.
    company: Company,
    /// Questions, which are answered when all that was decided before them is durable.
    asks: Vec<Ask>,
    kept: Kept,
    control_seen: bool,
    /// By queue: how far it had been read when it was opened, until something comes of it.
    began: [Option<(QueueKind, Seq)>; 2],
    timer: Option<(WallMs, BoxFuture<()>)>,
    sweep: BoxFuture<()>,
    /// When the last append began.
    appended: Mono,
    /// The version of the routes when calls were last looked at.
    routes_seen: u64,
}

/// What was waited for.
enum Woken {
    Mail,
    Control(cellbus_bus::Result<Vec<BusMessage>>),
    Jobs(cellbus_bus::Result<Vec<BusMessage>>),
    Timer,
    Company,
    Sweep,
}

impl Runner {
    /// Serves until the shard is let go, taken away, or must be opened again.
    pub(super) async fn serve(&mut self, open: Open) -> Next {
        let handle = Handle { shard: self.shard, mailbox: Arc::clone(&self.mailbox), row: Arc::clone(&self.row) };
        let kept = open.shard.managers_kept();
        let (jobs, control) = open.shard.positions();
        let mut serving = Serving {
            open,
            handle,
            waiters: Waiters::default(),
            calls: Calls::default(),
            permits: self.permits.as_ref().map(|permits| Held::none(Arc::clone(permits), self.shard)),
            backlog: VecDeque::new(),
            company: Company::default(),
            asks: Vec::new(),
            kept,
            control_seen: false,
            began: [Some((QueueKind::Jobs, jobs.seq)), Some((QueueKind::Control, control.seq))],
            timer: None,
            sweep: self.process.env.sleep(SWEEP),
            appended: Mono::default(),
            routes_seen: 0,
        };
        let next = loop {
            if let Some(next) = self.turn(&mut serving).await {
                break next;
            }
        };
        serving.asks.into_iter().for_each(Ask::not_open);
        serving.waiters.not_open();
        next
    }

    /// One round: hand in what has come, append what was decided, carry out what follows; then
    /// wait for more.
    async fn turn(&mut self, serving: &mut Serving) -> Option<Next> {
        if !self.releasing.is_empty() {
            return Some(self.let_go(serving).await);
        }
        if (!self.lease.held(self.process.env.mono()) || self.lease.lapses() != self.lapses)
            && let Some(next) = self.suspended(serving).await
        {
            return Some(next);
        }
        if self.revoked.take().is_some_and(|epoch| epoch == serving.open.shard.epoch())
            && let Some(next) = self.claim_again(serving).await
        {
            return Some(next);
        }
        if let Some(next) = self.hand_in(serving) {
            return Some(next);
        }
        if serving.may_start_more()
            && let Some(next) = self.hand_in(serving)
        {
            return Some(next);
        }
        let retries = serving.open.shard.take_retries(&self.process.names);
        self.carry_out(serving, retries);
        if let Some(next) = self.append(serving, None).await {
            return Some(next);
        }
        self.look_for_room();
        if self.snapshot_is_due(&serving.open)
            && let Some(id) = self.snapshot(&mut serving.open).await
            && let Some(next) = self.append(serving, Some(id)).await
        {
            return Some(next);
        }
        for ask in std::mem::take(&mut serving.asks) {
            serving.waiters.ask(&serving.open.shard, ask);
        }
        self.tell_kept(serving);
        self.show_progress(serving);
        if serving.backlog.is_empty() {
            if let Some(next) = self.wait(serving).await {
                return Some(next);
            }
        } else {
            self.mail(serving);
        }
        None
    }

    /// Lets the shard go. What waits for company goes into the log before, so that its next owner does not tell it
    /// again; whatever else has come is read or asked for again there.
    async fn let_go(&mut self, serving: &mut Serving) -> Next {
        serving.backlog = serving.company.take().into();
        while !serving.backlog.is_empty() && self.lease.held(self.process.env.mono()) {
            if let Some(next) = self.hand_in(serving) {
                return next;
            }
            if let Some(next) = self.append(serving, None).await {
                return next;
            }
        }
        Next::Ended(Ended::Released)
    }

    // ── waiting ──

    /// Waits for something to do, and takes in all that is there by then.
    async fn wait(&mut self, serving: &mut Serving) -> Option<Next> {
        let read_max = self.config.read_max;
        let env = &self.process.env;
        match serving.open.shard.next_wake() {
            None => serving.timer = None,
            Some(at) if serving.timer.as_ref().is_some_and(|(set, _)| *set == at) => {}
            Some(at) => serving.timer = Some((at, env.sleep(at.since(env.wall())))),
        }
        let wants_jobs = serving.open.shard.wants_jobs() && self.has_room();
        // The bound of what is accepted is one of items.
        let jobs_max = serving.open.shard.jobs_per_message().messages(read_max);
        let woken = {
            let Serving { open, timer, company, sweep, .. } = serving;
            let timed = async {
                match timer {
                    Some((_, sleep)) => sleep.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.mailbox.ready() => Woken::Mail,
                messages = open.control.next(read_max) => Woken::Control(messages),
                messages = open.jobs.next(jobs_max), if wants_jobs => Woken::Jobs(messages),
                () = timed => Woken::Timer,
                () = company.due() => Woken::Company,
                () = &mut *sweep => Woken::Sweep,
            }
        };
        self.process.pace.gather(env, serving.appended, serving.open.shard.in_flight()).await;
        let mut control = None;
        let mut jobs = None;
        match woken {
            Woken::Mail => {}
            Woken::Control(messages) => control = Some(messages),
            Woken::Jobs(messages) => jobs = Some(messages),
            Woken::Timer => {
                serving.timer = None;
                serving.backlog.push_back(Input::Tick);
            }
            Woken::Company => serving.backlog.extend(serving.company.take()),
            Woken::Sweep => self.sweep(serving),
        }
        self.mail(serving);
        // What else is there goes into the same append.
        if control.is_none()
            && let std::task::Poll::Ready(messages) = futures::poll!(serving.open.control.next(read_max))
        {
            control = Some(messages);
        }
        if jobs.is_none()
            && wants_jobs
            && let std::task::Poll::Ready(messages) = futures::poll!(serving.open.jobs.next(jobs_max))
        {
            jobs = Some(messages);
        }
        for (kind, messages) in [(QueueKind::Control, control), (QueueKind::Jobs, jobs)] {
            match messages {
                None => {}
                Some(Ok(messages)) => {
                    if let Some(first) = messages.first() {
                        self.look_for_queue_loss(serving, kind, first.seq);
                    }
                    for message in &messages {
                        let what = || format!("item {} of its {kind:?} queue", message.seq);
                        if let Err(failure) = self.admit(&message.body, what) {
                            return Some(Next::Reopen(failure));
                        }
                    }
                    serving.read(kind, messages);
                }
                Some(Err(error)) => return Some(Next::Reopen(format!("{kind:?} queue: {error}").into())),
            }
        }
        None
    }

    fn mail(&mut self, serving: &mut Serving) {
        let now = self.process.env.mono();
        for message in self.mailbox.take() {
            match message {
                Message::Answers(answers) => {
                    let epoch = serving.open.shard.epoch();
                    for answered in answers {
                        // One to an older ask says nothing: the newer one may be carried out yet.
                        if answered.shard_epoch == epoch
                            && let Some((step, sent)) = serving.calls.answered(answered.vm, answered.op, answered.ask)
                        {
                            if !matches!(answered.answer, Answer::Later(_)) {
                                self.process.work.stepped(step, now.since(sent));
                                super::spans::stepped(
                                    &self.process,
                                    &serving.open.shard,
                                    &answered,
                                    step,
                                    now.since(sent),
                                );
                            }
                            serving.backlog.push_back(called(answered.vm, answered.op, answered.answer));
                        }
                    }
                }
                Message::StillRunning(calls) => calls.into_iter().for_each(|(vm, op)| serving.calls.heard(now, vm, op)),
                Message::Effects(answers) => {
                    for (intent, _) in answers.iter().filter(|(_, answer)| matches!(answer, EffectAnswer::Published)) {
                        super::spans::told(&self.process, &serving.open.shard, intent);
                    }
                    for (intent, answer) in answers {
                        serving.backlog.extend(serving.company.keep(&self.process.env, intent, answer));
                    }
                }
                Message::Ask(ask) => serving.asks.push(ask),
                Message::HandIn { jobs, answers } => self.handed_in(serving, jobs, answers),
                Message::Permits(given) => {
                    if let Some(permits) = &mut serving.permits {
                        permits.given(given);
                    }
                }
                Message::Release(told) => self.releasing.push(told),
                Message::Revoked(epoch) => self.revoked = Some(epoch),
            }
        }
    }

    /// Takes jobs past the queue, under the same bounds. They are lost if the shard must be opened again;
    /// whoever has handed them in hears that, as with any question, and puts them on the queue.
    fn handed_in(&self, serving: &mut Serving, jobs: Vec<(usize, Handed)>, answers: Arc<Gather<Decision>>) {
        if !(serving.open.shard.wants_jobs() && self.has_room()) {
            super::not_taken(&jobs, &answers);
            return;
        }
        let items = jobs.iter().map(|(index, handed)| (*index, handed.job.id)).collect();
        serving.asks.push(Ask::Decided { items, once: Once::Known, answers });
        let inputs = jobs.into_iter().map(|(_, Handed { job, bytes })| Input::Handed { job, bytes: bytes as usize });
        serving.backlog.extend(inputs);
    }

    /// The first messages of a queue after it was opened must come after those that were read.
    fn look_for_queue_loss(&self, serving: &mut Serving, kind: QueueKind, first: Seq) {
        let began = serving.began.iter_mut().find(|began| began.is_some_and(|(of, _)| of == kind));
        if let Some((_, read)) = began.and_then(Option::take)
            && first <= read
        {
            self.queue_lost(kind, read, first);
        }
    }

    fn sweep(&self, serving: &mut Serving) {
        serving.sweep = self.process.env.sleep(SWEEP);
        serving.waiters.sweep();
        if let Some(permits) = &serving.permits {
            permits.sweep();
        }
        let again = |detail: String| {
            move |(vm, op)| {
                let after = Some(Duration::ZERO);
                called(
                    vm,
                    op,
                    Answer::Later(Later { reason: LaterReason::CellUnreachable, detail: detail.clone(), after }),
                )
            }
        };
        let silent = serving.calls.silent(self.process.env.mono(), self.config.call_silence);
        let detail = format!("nothing was heard of the call for {} s", self.config.call_silence.as_secs());
        serving.backlog.extend(silent.into_iter().map(again(detail)));
        let version = self.process.routes.version();
        if version != serving.routes_seen {
            serving.routes_seen = version;
            let routes = &self.process.routes;
            let orphaned = serving.calls.orphaned(|manager| routes.of_manager(manager).map(|route| route.epoch));
            serving.backlog.extend(orphaned.into_iter().map(again("its manager has another owner now".to_owned())));
        }
    }

    /// The lease has run out: nothing is done until it is held again. If nobody has opened the
    /// shard meanwhile it goes on where it was, under the next epoch.
    async fn suspended(&mut self, serving: &mut Serving) -> Option<Next> {
        tracing::warn!(shard = %self.shard, "the lease has run out: shard suspended");
        self.show(ShardState::Suspended);
        self.home.closed(self.shard);
        while !self.lease.held(self.process.env.mono()) {
            let mailbox = Arc::clone(&self.mailbox);
            let lease = Arc::clone(&self.lease);
            let again = self.process.env.sleep(Duration::from_millis(100));
            tokio::select! {
                biased;
                () = mailbox.ready() => {
                    self.mail(serving);
                    std::mem::take(&mut serving.asks).into_iter().for_each(Ask::not_open);
                    if !self.releasing.is_empty() {
                        return Some(Next::Ended(Ended::Released));
                    }
                }
                () = lease.renewed() => {}
                () = again => {}
            }
        }
        self.claim_again(serving).await
    }

    /// Claims the shard once more, under the next epoch, where it stands.
    async fn claim_again(&mut self, serving: &mut Serving) -> Option<Next> {
        match self.claim(&mut serving.open.shard, &mut serving.open.end).await {
            Ok(()) => {
                self.announce(&serving.open.shard, serving.open.end);
                None
            }
            Err(BusError::Fenced { found, .. }) => {
                self.fenced(found);
                Some(Next::Ended(Ended::Fenced))
            }
            Err(error) => Some(Next::Reopen(format!("it could not go on: {error}").into())),
        }
    }

    // ── deciding ──

    /// Hands in what has come, as far as one append may carry it.
    fn hand_in(&mut self, serving: &mut Serving) -> Option<Next> {
        if serving.backlog.is_empty() {
            return None;
        }
        serving.backlog.extend(serving.company.take());
        let (view, pauses) = (self.process.board.view(), self.process.pauses.pauses());
        while !serving.open.shard.batch_full()
            && let Some(input) = serving.backlog.pop_front()
        {
            let context = super::context(&self.process, &view, &pauses);
            let place = match &input {
                Input::Jobs { at, body } => Some((QueueKind::Jobs, *at, body.clone())),
                Input::Control { at, body } => {
                    serving.control_seen = true;
                    Some((QueueKind::Control, *at, body.clone()))
                }
                Input::Handed { .. } | Input::Answered { .. } | Input::Tick => None,
            };
            let shard = &mut serving.open.shard;
            if let Some((kind, at, message)) = &place
                && let Some(mut poison) = self.poison.take_if(|poison| poison.is_at(*kind, at.seq))
            {
                let each = |item, aside: Option<&str>| match aside {
                    Some(reason) => {
                        tracing::error!(shard = %self.shard, queue = ?kind, seq = %at.seq, reason, "message put aside");
                        shard.dead_letter(&context, *at, *kind == QueueKind::Control, item, reason);
                    }
                    None => shard.handle(&context, from_queue(*kind, *at, item)),
                };
                if let Err(panic) = poison.hand_in(message, each) {
                    self.poison = Some(poison);
                    return Some(self.panicked(None, panic.as_ref()));
                }
                // Into the log with it before another message panics: only one is known at a time.
                break;
            }
            // The shard is thrown away and read again if this panics.
            let handled = catch_unwind(AssertUnwindSafe(|| shard.handle(&context, input)));
            if let Err(panic) = handled {
                return Some(self.panicked(place, panic.as_ref()));
            }
        }
        None
    }

    fn panicked(
        &mut self,
        place: Option<(QueueKind, Position, bytes::Bytes)>,
        panic: &(dyn std::any::Any + Send),
    ) -> Next {
        let why = panic_text(panic);
        let reason = super::panic_reason(why);
        tracing::error!(shard = %self.shard, reason, "fault in the state machine");
        self.process.env.panicked("shard", why);
        // Without a message to blame it may not come again; if it does, the pauses between the tries grow.
        if let Some((queue, at, message)) = place {
            self.poison = Some(Poison::new(queue, at.seq, &message, reason.clone()));
        }
        Next::Reopen(reason.into())
    }

    // ── appending ──

    /// Appends what was decided, and carries out what follows. `noted`: the snapshot that it names.
    async fn append(&mut self, serving: &mut Serving, noted: Option<SnapshotId>) -> Option<Next> {
        let mut batch = serving.open.shard.take_batch()?;
        batch.entry.prev = serving.open.end;
        let body = batch.entry.encode_as(self.process.format());
        let stamp = Stamp::of(&batch.entry);
        let decided = work::Decided::of(&serving.open.shard, &batch.entry);
        let ended = super::spans::ended(&self.process, &batch.entry.records);
        let count = batch.entry.records.len();
        let traced = super::trace::wanted().then(|| std::mem::take(&mut batch.entry.records));
        drop(batch);
        let bytes = body.len() as u64;
        let mut pause = APPEND_AGAIN;
        let figures = Arc::clone(&self.process.work);
        let seq = loop {
            let began = self.process.env.mono();
            serving.appended = began;
            match self.process.bus.append(self.shard, serving.open.end, body.clone()).await {
                Ok(seq) => {
                    figures.appended(count, bytes, self.process.env.mono().since(began));
                    break seq;
                }
                Err(BusError::Fenced { found, .. }) => {
                    self.fenced(found);
                    tracing::info!(shard = %self.shard, %found, "another owner has written: shard given up");
                    return Some(Next::Ended(Ended::Fenced));
                }
                Err(error @ (BusError::Full { .. } | BusError::Unavailable { .. })) => {
                    figures.append_refused();
                    // Nothing was written. The cell may lose its lease meanwhile; then it reads again.
                    if !self.lease.held(self.process.env.mono()) {
                        return Some(Next::Reopen(error.to_string().into()));
                    }
                    tracing::warn!(shard = %self.shard, %error, "append refused; trying again");
                    self.look_for_room();
                    self.process.env.sleep(pause).await;
                    pause = (pause * 2).min(APPEND_AGAIN_MAX);
                }
                Err(error) => return Some(Next::Reopen(error.to_string().into())),
            }
        };
        figures.decided(&decided);
        serving.open.end = seq;
        self.acknowledged = Some(Acknowledged { seq, stamp });
        serving.open.tail_bytes += bytes;
        if let Some(records) = traced {
            super::trace::appended(self.shard, &serving.open.shard, seq, &records);
        }
        let released = serving.open.shard.appended(seq, &self.process.names);
        super::spans::jobs(&self.process, &serving.open.shard, ended);
        if let Some(id) = noted {
            self.trim(&mut serving.open, id).await;
        }
        self.carry_out(serving, released.effects);
        serving.waiters.touched(&serving.open.shard, &released.touched);
        None
    }

    // ── carrying out ──

    fn carry_out(&self, serving: &mut Serving, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        let now = self.process.env.mono();
        if !self.lease.held(now) {
            // They stay open, and are handed out again when the shard goes on.
            return;
        }
        if super::trace::wanted() {
            super::trace::carried_out(self.shard, &serving.open.shard, &effects);
        }
        let mut calls: BTreeMap<Option<Arc<Peer>>, Vec<(Call, Epoch)>> = BTreeMap::new();
        for Effect { intent, what } in effects {
            let whose = |intent| Whose { runner: serving.handle.clone(), intent };
            match what {
                EffectKind::Call(call) => {
                    let route = self.process.routes.of_manager(&call.manager);
                    let epoch = route.as_ref().map(|route| route.epoch).unwrap_or_default();
                    calls.entry(route.map(|route| Arc::clone(&route.peer))).or_default().push((call, epoch));
                }
                EffectKind::Publish(items) => self.effects.publish(whose(intent), items),
                EffectKind::Event(event) => self.effects.event(whose(intent), event),
                EffectKind::Resolve { tenant, name } => self.effects.resolve(whose(intent), tenant, name),
            }
        }
        for (peer, calls) in calls {
            let asked: Vec<Asked> = calls
                .into_iter()
                .map(|(call, slice_epoch)| {
                    let number = serving.calls.sent(now, call.vm, call.op, call.step, call.manager, slice_epoch);
                    Asked { call, slice_epoch, number }
                })
                .collect();
            let sent: Vec<_> = asked.iter().map(|asked| (asked.call.vm, asked.call.op, asked.number)).collect();
            let refused = match &peer {
                None => Some("nobody fronts its manager at the moment".to_owned()),
                Some(peer) => {
                    let post = Post::Calls { from: Arc::clone(&self.me), calls: asked };
                    let posted = self.process.peers.post(peer, post);
                    posted.err().map(|error| error.to_string())
                }
            };
            let Some(detail) = refused else { continue };
            for (vm, op, number) in sent {
                serving.calls.answered(vm, op, number);
                let later = Later { reason: LaterReason::NoOwner, detail: detail.clone(), after: None };
                serving.backlog.push_back(called(vm, op, Answer::Later(later)));
            }
        }
    }

    fn tell_kept(&self, serving: &mut Serving) {
        if std::mem::take(&mut serving.control_seen) {
            let kept = serving.open.shard.managers_kept();
            if kept != serving.kept {
                self.home.kept(self.shard, &kept);
                serving.kept = kept;
            }
        }
    }

    fn show_progress(&self, serving: &Serving) {
        let before = self.row.load();
        let (jobs, control) = serving.open.shard.positions();
        if before.log_end == serving.open.end && before.state == ShardState::Open {
            return;
        }
        self.row.store(Arc::new(ShardRow {
            epoch: serving.open.shard.epoch(),
            state: ShardState::Open,
            jobs_read: jobs.seq,
            control_read: control.seq,
            log_end: serving.open.end,
            tail_bytes: serving.open.tail_bytes,
            ..before.as_ref().clone()
        }));
    }
}

impl Serving {
    /// Where the cell's work is bounded: takes and gives back permits; whether there is a reason to
    /// hand in something that starts more.
    fn may_start_more(&mut self) -> bool {
        let Some(permits) = &mut self.permits else { return false };
        let shard = &mut self.open.shard;
        let (in_flight, ready) = (shard.in_flight(), shard.ready());
        let allowed = permits.settle(&self.handle, in_flight, ready);
        shard.allow(allowed);
        let more = ready > 0 && allowed > in_flight && self.backlog.is_empty();
        if more {
            self.backlog.push_back(Input::Tick);
        }
        more
    }

    /// Messages of a queue become inputs. One of them may have been put aside.
    fn read(&mut self, kind: QueueKind, messages: Vec<BusMessage>) {
        self.backlog.extend(messages.into_iter().map(|message| {
            let at = Position { seq: message.seq, digest: Digest::of(&message.body) };
            from_queue(kind, at, message.body)
        }));
    }
}

fn from_queue(kind: QueueKind, at: Position, body: bytes::Bytes) -> Input {
    match kind {
        QueueKind::Jobs => Input::Jobs { at, body },
        QueueKind::Control => Input::Control { at, body },
    }
}

fn called(vm: VmId, op: OpNumber, answer: Answer) -> Input {
    Input::Answered { intent: IntentKey::Call(vm, op), answer: EffectAnswer::Call(answer) }
}
