//! The runner of a shard: the task in the cell that owns it.
//!
//! ```text
//!   open: snapshot + log ─▶ (the owner before lets go) ─▶ append Opened{epoch} ─▶ serve
//!
//!   serve:  control ─┐                                        ┌─▶ calls to fronts
//!    jobs, handed in ┼─▶ Shard::handle … ─▶ one append ─▶ durable ─┼─▶ queues, events
//!           answers ─┤      (many inputs)                     └─▶ those who wait
//!           timers ──┘
//! ```
//!
//! What it keeps to:
//! - an append carries all that was decided since the last, and how far the queues have been read;
//!   nothing is handed in while it is in flight, so what can be seen is always durable;
//! - effects go out only after their append, and only while the cell's lease is held;
//! - what the bus acknowledged and does not have any more is found at the next opening, and said;
//! - an append that is fenced ends the runner; one with unknown outcome, or a panic while an input
//!   is handled, has it open again by replay (the message that caused the panic is put aside);
//! - a shard that cannot be opened is reported with the reason and tried again; its cell lives on.

mod ask;
mod calls;
mod company;
mod lost;
mod open;
mod permits;
mod poison;
mod serve;
mod snapshot;
mod spans;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use cellbus_bus::ids::{Epoch, OpNumber, Seq, ShardId, VmId};
use cellbus_directory::record::IntentKey;
use cellbus_workflows::{Context, EffectAnswer, Kept, Limits};
use tokio::sync::oneshot;

use crate::effects::Effects;
use crate::gateway::{ShardRow, ShardState};
use crate::gather::Gather;
use crate::lease::Lease;
use crate::mailbox::Mailbox;
use crate::peers::{Answered, Decision, Handed, Peer};
use crate::process::Process;

pub(crate) use ask::{Ask, Once};
use lost::Acknowledged;
pub(crate) use open::{Elsewhere, LetGo};
pub(crate) use permits::Permits;
use poison::Poison;

/// Messages that wait for a runner. Answers come in batches, one of each front that has any;
/// questions one by one. Some thousands is more than a runner leaves lying about in a second.
const MAILBOX_MAX: usize = 16_384;

/// How shards are run.
#[derive(Clone, Debug)]
pub struct Config {
    /// What bounds the state machine; the defaults for the cluster's shards where it is `None`.
    pub limits: Option<Limits>,
    /// Bytes of log after the last snapshot below which no new one is made.
    pub snapshot_bytes_min: u64,
    /// Messages read from a queue at once.
    pub read_max: usize,
    /// How long an answer to a call is awaited without a sign of life before it is asked for again.
    pub call_silence: Duration,
    /// The first pause before a shard that could not be opened is tried again; doubled each time.
    pub reopen_first: Duration,
    /// The longest such pause.
    pub reopen_max: Duration,
}
impl Default for Config {
    fn default() -> Self {
        Self {
            limits: None,
            snapshot_bytes_min: 1 << 20,
            read_max: 512,
            call_silence: Duration::from_secs(15),
            reopen_first: Duration::from_millis(100),
            reopen_max: Duration::from_secs(10),
        }
    }
}

/// What a runner is told.
pub(crate) enum Message {
    /// Managers' owners have answered.
    Answers(Vec<Answered>),
    /// Calls that go on.
    StillRunning(Vec<(VmId, OpNumber)>),
    /// Effects were carried out, or not.
    Effects(Vec<(IntentKey, EffectAnswer)>),
    /// Somebody asks.
    Ask(Ask),
    /// Jobs past the queue, with their places among the answers.
    HandIn { jobs: Vec<(usize, Handed)>, answers: Arc<Gather<Decision>> },
    /// So many more calls may be under way.
    Permits(i64),
    /// Finish what is in flight and let the shard go; the sender is told when it is.
    Release(oneshot::Sender<()>),
    /// A manager refuses what comes under this epoch of the shard: it knows a newer one.
    Revoked(Epoch),
}

/// A way to a runner.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) shard: ShardId,
    mailbox: Arc<Mailbox<Message>>,
    row: Arc<ArcSwap<ShardRow>>,
}

impl Handle {
    /// # Errors
    /// When too much waits already: the message is given back.
    pub(crate) fn put(&self, message: Message) -> Result<(), Message> {
        self.mailbox.put(message).map_err(|full| full.0)
    }
    pub(crate) fn row(&self) -> Arc<ShardRow> {
        self.row.load_full()
    }
}

/// What a runner needs of its cell.
pub(crate) trait Home: Send + Sync {
    /// The shard is open under this epoch: the managers of its ids are fronted from now on.
    /// `idle`: nothing of ours is under way at them, as the owner before has said.
    fn opened(&self, shard: ShardId, epoch: Epoch, kept: &Kept, idle: bool);
    /// What operators have said of the managers of its ids has changed.
    fn kept(&self, shard: ShardId, kept: &Kept);
    /// Nobody acts for the shard here any more.
    fn closed(&self, shard: ShardId);
}

/// Why a runner has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked to let go, or the shard should be owned by another cell.
    Released,
    /// Another owner has opened the shard.
    Fenced,
}

/// What goes on after a while of serving.
enum Next {
    Ended(Ended),
    /// Open again by replay.
    Reopen(Failure),
}

/// Why a shard is not open.
struct Failure {
    /// In words.
    reason: String,
    /// It holds what this build does not know: a newer one must take it.
    unreadable: bool,
}
impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self { reason, unreadable: false }
    }
}

/// A runner, to be run.
pub(crate) struct Runner {
    shard: ShardId,
    config: Config,
    limits: Limits,
    process: Process,
    me: Arc<Peer>,
    lease: Arc<Lease>,
    home: Arc<dyn Home>,
    effects: Arc<Effects>,
    elsewhere: Arc<dyn Elsewhere>,
    /// What bounds the work of its cell, if anything does.
    permits: Option<Arc<Permits>>,
    mailbox: Arc<Mailbox<Message>>,
    row: Arc<ArcSwap<ShardRow>>,
    /// Who is told that the shard was let go.
    releasing: Vec<oneshot::Sender<()>>,
    poison: Option<Poison>,
    /// How often the lease had run out when the shard was claimed.
    lapses: u64,
    /// The last entry that the bus acknowledged here.
    acknowledged: Option<Acknowledged>,
    /// The epoch under which a manager has refused this owner.
    revoked: Option<Epoch>,
    /// How much room its log has left, as far as it has looked.
    room: snapshot::Room,
    /// The same of its queues: what has been read stays there until the next snapshot.
    queue_room: snapshot::Room,
    /// Whether the owner before has said that nothing is under way at the shard's managers.
    idle: bool,
}

impl Runner {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part of its cell; a struct would be this list again"
    )]
    pub(crate) fn new(
        shard: ShardId,
        config: Config,
        process: Process,
        me: Arc<Peer>,
        lease: Arc<Lease>,
        home: Arc<dyn Home>,
        effects: Arc<Effects>,
        elsewhere: Arc<dyn Elsewhere>,
        permits: Option<Arc<Permits>>,
    ) -> (Self, Handle) {
        let mailbox = Arc::new(Mailbox::new(MAILBOX_MAX));
        let row = Arc::new(ArcSwap::from_pointee(row_of(shard, &me, ShardState::Opening)));
        let handle = Handle { shard, mailbox: Arc::clone(&mailbox), row: Arc::clone(&row) };
        let limits = config.limits.clone().unwrap_or_else(|| Limits::for_shards(process.count));
        let runner = Self {
            shard,
            config,
            limits,
            process,
            me,
            lease,
            home,
            effects,
            elsewhere,
            permits,
            mailbox,
            row,
            releasing: Vec::new(),
            poison: None,
            lapses: 0,
            acknowledged: None,
            revoked: None,
            room: snapshot::Room::default(),
            queue_room: snapshot::Room::default(),
            idle: false,
        };
        (runner, handle)
    }

    /// Runs until the shard is another cell's.
    pub(crate) async fn run(mut self) -> Ended {
        let (mut attempts, mut said) = (0, false);
        let ended = loop {
            let began = self.process.env.mono();
            let Failure { reason, unreadable } = match self.once().await {
                Ok(ended) => break ended,
                Err(failure) => failure,
            };
            // One that has served for a while starts counting anew.
            let served = self.process.env.mono().since(began) > self.config.reopen_max;
            attempts = if served { 1 } else { attempts + 1 };
            self.process.routes.set_unreadable(self.shard, unreadable);
            if unreadable {
                // Said once: nothing changes until a newer build has it, and every look finds the same.
                if !std::mem::replace(&mut said, true) {
                    tracing::error!(shard = %self.shard, reason, "shard is left to a newer build; nothing of it is changed");
                }
            } else if attempts > 1 {
                tracing::error!(shard = %self.shard, reason, attempts, "shard does not stay open; trying again");
            } else {
                tracing::warn!(shard = %self.shard, reason, "shard is opened again by replay");
            }
            self.show(ShardState::Failed { reason, attempts });
            self.process.routes.failed(self.shard);
            let pause =
                self.config.reopen_first.saturating_mul(1 << (attempts - 1).min(16)).min(self.config.reopen_max);
            if self.pause(pause).await.is_some() {
                break Ended::Released;
            }
        };
        tracing::debug!(shard = %self.shard, ?ended, "runner ends");
        self.process.routes.set_unreadable(self.shard, false);
        // Whoever asks from now on is turned away at the door.
        for message in self.mailbox.close() {
            self.refuse(message);
        }
        for told in self.releasing.drain(..) {
            // Whoever asked may have gone.
            let _ = told.send(());
        }
        ended
    }

    /// Opens the shard and serves it; why it must be opened again, if it must.
    async fn once(&mut self) -> Result<Ended, Failure> {
        // A panic while a log is replayed (a record that this build cannot digest) is the shard's
        // misfortune, not its cell's.
        let env = self.process.env.clone();
        let served = env.caught("shard", async {
            match self.open().await? {
                Some(open) => Ok(self.serve(open).await),
                None => Ok(Next::Ended(Ended::Released)),
            }
        });
        let served = served.await;
        self.home.closed(self.shard);
        match served {
            Ok(Ok(Next::Ended(ended))) => Ok(ended),
            Ok(Ok(Next::Reopen(reason)) | Err(reason)) => Err(reason),
            Err(why) => Err(panic_reason(&why).into()),
        }
    }

    /// Waits, and turns away who asks meanwhile. `Some` when the shard is to be let go.
    async fn pause(&mut self, pause: Duration) -> Option<()> {
        let mut over = self.process.env.sleep(pause);
        let mailbox = Arc::clone(&self.mailbox);
        loop {
            tokio::select! {
                biased;
                () = mailbox.ready() => {
                    if self.turn_away() {
                        return Some(());
                    }
                }
                () = &mut over => return None,
            }
        }
    }

    /// Answers those who ask while the shard is not open; whether it is to be let go.
    fn turn_away(&mut self) -> bool {
        for message in self.mailbox.take() {
            self.refuse(message);
        }
        !self.releasing.is_empty()
    }

    fn refuse(&mut self, message: Message) {
        match message {
            // Who carries them out does so again when the shard is open.
            Message::Answers(_) | Message::StillRunning(_) | Message::Effects(_) | Message::Revoked(_) => {}
            Message::Ask(ask) => ask.not_open(),
            Message::HandIn { jobs, answers } => not_taken(&jobs, &answers),
            Message::Permits(given) => {
                if let Some(permits) = &self.permits {
                    permits.give_back(given);
                }
            }
            Message::Release(told) => self.releasing.push(told),
        }
    }

    fn show(&self, state: ShardState) {
        let before = self.row.load();
        self.row.store(Arc::new(ShardRow { state, ..before.as_ref().clone() }));
    }
}

/// Jobs that were handed in are not taken: they go by the queue.
pub(crate) fn not_taken(jobs: &[(usize, Handed)], answers: &Gather<Decision>) {
    jobs.iter().for_each(|(index, _)| answers.fill(*index, Decision::NotMine));
}

fn panic_reason(why: &str) -> String {
    format!("the state machine panicked: {why}")
}

/// Everything that a decision may depend on beside state and input.
fn context<'a>(
    process: &'a Process,
    view: &'a cellbus_workflows::CapacityView,
    pauses: &'a cellbus_directory::Pauses,
) -> Context<'a> {
    Context { now: process.env.wall(), random: process.env.random_u64(), view, names: &process.names, pauses }
}

fn row_of(shard: ShardId, me: &Peer, state: ShardState) -> ShardRow {
    ShardRow {
        shard,
        owner: Some(me.cell.clone()),
        epoch: Epoch::ZERO,
        state,
        jobs_read: Seq::ZERO,
        control_read: Seq::ZERO,
        jobs_unread: 0,
        control_unread: 0,
        log_end: Seq::ZERO,
        tail_bytes: 0,
        vms: 0,
        jobs_open: 0,
        waiting: 0,
        running: 0,
        parked: 0,
    }
}
