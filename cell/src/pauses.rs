//! What operators have paused, as this process knows it, and how old that knowledge is.
//!
//! ```text
//!  log of the cluster's shard ──▶ follow ──▶ Watch ──▶ Gate of each front ──▶ may this operation begin?
//!        └─ where does it end? ──▶ as of          └──▶ homes of VMs: do not begin what would wait
//! ```
//!
//! A pause is in force from the entry of that log which holds it. It is read from the log itself and
//! not asked of the shard's owner: the log cannot be out of date, and is there while nobody owns it.
//! Twice a second the bus is asked where the log ends; once all up to there has been read, all that
//! had been paused when it was asked is known. So there is a bound, on the clock of the process alone:
//! a destructive operation begins only while that is no longer than [`KNOWN_FOR`] ago. Whoever cannot
//! read the log does not know whether it may, and does not.
//!
//! What changes without removing anything goes by what was known last: a process that is cut off from
//! the bus loses its lease anyway. Only a process that has never read the log begins nothing at all,
//! unless that log cannot be read by anybody, which must not stop a whole cluster.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use cellbus_bus::contract::{Error as BusError, Message};
use cellbus_bus::env::Mono;
use cellbus_bus::ids::{ManagerId, Seq, ShardId};
use cellbus_directory::pause::{Paused, Scope};
use cellbus_directory::tail::newest_snapshot;
use cellbus_directory::{Entry, Fence, Pauses, StepKind};
use cellbus_workflows::{ManagerNames, pauses_in};

use crate::Process;

/// How old the knowledge of what is paused may be for a destructive operation to begin: the bound
/// within which every cell obeys a pause. Longer than the bus is away when one of its servers is
/// replaced, as a rule, and short enough for an emergency.
pub const KNOWN_FOR: Duration = Duration::from_secs(5);
/// How often it is looked where the log ends.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long reading up to there may take before reading begins anew.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// Pauses after the log could not be read: the first, doubled up to the longest.
const AGAIN_MIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(2);
/// Entries taken at a time.
const BATCH: usize = 256;

/// What is known.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Whether the log has been read to its end once.
    read: bool,
    pauses: Arc<Pauses>,
    /// Why the log cannot be read by this build, if so.
    unreadable: Option<String>,
}

/// What a process knows of what is paused.
#[derive(Debug, Default)]
pub struct Watch {
    known: ArcSwap<Known>,
    /// When all that was paused then was known, in milliseconds of this process's clock, plus one;
    /// zero: never.
    as_of_ms: AtomicU64,
}

impl Watch {
    /// What is paused, as far as it is known here.
    #[must_use]
    pub fn pauses(&self) -> Arc<Pauses> {
        Arc::clone(&self.known.load().pauses)
    }

    /// When this was all that was paused; `None`: it has never been known.
    #[must_use]
    pub fn as_of(&self) -> Option<Mono> {
        let plus_one = self.as_of_ms.load(Ordering::Acquire);
        plus_one.checked_sub(1).map(|ms| Mono(Duration::from_millis(ms)))
    }

    /// Brings what a front goes by up to date; whether more or less is paused than before.
    pub(crate) fn refresh(&self, gate: &mut Gate, names: &ManagerNames) -> bool {
        // In this order: what is known is never older than it is said to be.
        gate.as_of = self.as_of();
        let known = self.known.load_full();
        if gate.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &known)) {
            return false;
        }
        gate.learn(&known, names);
        gate.of = Some(known);
        true
    }

    fn learn(&self, pauses: &Pauses) {
        let known = self.known.load();
        if !known.read || known.unreadable.is_some() || *known.pauses != *pauses {
            self.known.store(Arc::new(Known { read: true, pauses: Arc::new(pauses.clone()), unreadable: None }));
        }
    }
    fn known_at(&self, asked: Mono) {
        let ms = u64::try_from(asked.0.as_millis()).unwrap_or(u64::MAX - 1);
        self.as_of_ms.fetch_max(ms + 1, Ordering::Release);
    }
    fn unreadable(&self, why: &str) {
        let known = self.known.load();
        if known.unreadable.as_deref() != Some(why) {
            tracing::error!(
                why,
                "what operators have paused cannot be read: destructive operations wait at the managers that are fronted here"
            );
            self.known.store(Arc::new(Known { unreadable: Some(why.to_owned()), ..known.as_ref().clone() }));
        }
    }
}

/// What one front goes by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate {
    manager: Option<ManagerId>,
    of: Option<Arc<Known>>,
    as_of: Option<Mono>,
    /// Why what changes something must not begin.
    changes: Option<String>,
    /// Why what removes something must not begin.
    removes: Option<String>,
    /// All work is paused at this manager alone.
    alone: bool,
}

impl Gate {
    /// Of a manager. Shut until it has been brought up to date.
    pub(crate) fn new(manager: ManagerId) -> Self {
        let gate = Self { manager: Some(manager), ..Self::default() };
        let why = "what operators have paused has not been read yet".to_owned();
        Self { changes: Some(why.clone()), removes: Some(why), ..gate }
    }

    /// As it is when all this was paused then, and nothing else.
    #[cfg(test)]
    pub(crate) fn at(manager: ManagerId, as_of: Mono, paused: &[Scope]) -> Self {
        let mut gate = Self { as_of: Some(as_of), ..Self::new(manager) };
        let pauses = Arc::new(tests::paused(paused));
        gate.learn(&Known { read: true, pauses, unreadable: None }, &ManagerNames::default());
        gate
    }

    fn learn(&mut self, known: &Known, names: &ManagerNames) {
        let why = |kind| {
            let (scope, pause) = known.pauses.holds(kind, self.manager)?;
            Some(pause.in_words(&scope, scope.manager.and_then(|id| names.name(&id)).map(|name| name.as_str())))
        };
        if !known.read && known.unreadable.is_none() {
            return;
        }
        (self.changes, self.removes) = (why(StepKind::Changes), why(StepKind::Removes));
        if let Some(error) = &known.unreadable {
            let unknown = || format!("whether it is paused cannot be read: {error}");
            self.removes.get_or_insert_with(unknown);
        }
        let all = |manager| known.pauses.get(&Scope { manager, paused: Paused::All }).is_some();
        self.alone = self.changes.is_some() && !all(None);
    }

    /// Why an operation of this kind must not begin now.
    pub(crate) fn shut(&self, now: Mono, kind: StepKind) -> Option<Cow<'_, str>> {
        match kind {
            StepKind::Reads => None,
            StepKind::Changes => self.changes.as_deref().map(Cow::Borrowed),
            StepKind::Removes => {
                let known = self.as_of.is_some_and(|at| now.since(at) <= KNOWN_FOR);
                let unknown = || (!known).then(|| self.unknown(now));
                self.removes.as_deref().map(Cow::Borrowed).or_else(unknown)
            }
        }
    }

    fn unknown(&self, now: Mono) -> Cow<'static, str> {
        let since = self.as_of.map_or(0, |at| now.since(at).as_secs());
        format!("whether destructive work is paused has not been known for {since} s: the bus does not say").into()
    }

    /// Whether new VMs may go elsewhere meanwhile.
    pub(crate) fn alone(&self) -> bool {
        self.alone
    }

    /// What is paused here, and why, for rows; `None`: nothing is.
    pub(crate) fn shown(&self) -> Option<(Paused, &str)> {
        let known = self.of.as_ref().is_some_and(|of| of.read);
        let all = self.changes.as_deref().map(|why| (Paused::All, why));
        all.or(self.removes.as_deref().map(|why| (Paused::Destructive, why))).filter(|_| known)
    }
}

/// Why reading was broken off.
enum Broken {
    /// To be begun anew.
    Again(String),
    /// Not to be read by this build.
    Unreadable(String),
}
impl From<BusError> for Broken {
    fn from(error: BusError) -> Self {
        Self::Again(error.to_string())
    }
}

/// What the log has given so far.
#[derive(Default)]
struct Read {
    seq: Seq,
    fence: Fence,
    pauses: Pauses,
}

impl Read {
    fn take(&mut self, process: &Process, message: &Message) -> Result<(), Broken> {
        let entry = process.build().formats.admit(&message.body).and_then(|()| Entry::decode(&message.body));
        let entry = entry.map_err(|error| Broken::Unreadable(format!("entry {} of its log: {error}", message.seq)))?;
        let before = self.seq;
        self.seq = message.seq;
        if self.fence.admits(&entry) {
            if entry.prev != before {
                return Err(Broken::Again(format!("entry {} follows {}, not {before}", message.seq, entry.prev)));
            }
            entry.records.iter().for_each(|record| self.pauses.apply(entry.at, record));
        }
        Ok(())
    }
}

/// Keeps the process's [`Watch`] up to date for as long as it is polled.
pub(crate) async fn follow(process: &Process) -> Infallible {
    let mut again = AGAIN_MIN;
    loop {
        let before = process.pauses.as_of();
        match read(process).await {
            Ok(never) => match never {},
            Err(Broken::Again(why)) => tracing::debug!(why, "what is paused is read anew"),
            Err(Broken::Unreadable(why)) => process.pauses.unreadable(&why),
        }
        if process.pauses.as_of() > before {
            again = AGAIN_MIN;
        }
        process.env.sleep(again).await;
        again = (again * 2).min(AGAIN_MAX);
    }
}

/// Reads the log from its newest snapshot on, and then whatever comes.
async fn read(process: &Process) -> Result<Infallible, Broken> {
    let (env, bus, watch) = (&process.env, process.bus.as_ref(), &process.pauses);
    let shard = ShardId::of_cluster(process.count);
    let mut read = Read::default();
    if let Some(snapshot) = newest_snapshot(bus, process.build().formats, shard).await? {
        let pauses = pauses_in(&snapshot).map_err(|error| Broken::Unreadable(format!("its snapshot: {error}")))?;
        read = Read { seq: snapshot.seq, fence: Fence::at(snapshot.epoch), pauses };
    }
    let mut reader = bus.read_log(shard, read.seq).await?;
    let mut look = env.sleep(Duration::ZERO);
    // What had been written when it was asked, and is not all read yet.
    let mut asked: Option<(Mono, Seq)> = None;
    // Before it has been read to an end once, a pause that is known already may be still to come.
    let mut caught_up = false;
    loop {
        tokio::select! {
            biased;
            () = &mut look => {
                look = env.sleep(LOOK_EVERY);
                match asked {
                    Some((at, _)) if env.mono().since(at) < READ_LIMIT => {}
                    Some((_, end)) => return Err(Broken::Again(format!("entry {end} does not come"))),
                    None => {
                        let at = env.mono();
                        asked = Some((at, bus.log_end(shard).await?));
                    }
                }
            }
            messages = reader.next(BATCH) => {
                for message in messages? {
                    read.take(process, &message)?;
                }
            }
        }
        let as_of = match asked {
            Some((at, end)) if read.seq >= end => Some((at, end)),
            Some(_) | None => None,
        };
        if let Some((_, end)) = as_of
            && end < read.seq
            && look_back(process, shard, read.seq).await?
        {
            return Err(Broken::Again("the bus has lost what was read".to_owned()));
        }
        caught_up |= as_of.is_some();
        if caught_up {
            watch.learn(&read.pauses);
        }
        if let Some((at, _)) = as_of {
            watch.known_at(at);
            asked = None;
        }
    }
}

/// Whether the log ends before what was read of it. (What is read may be newer than the end that was
/// asked for a moment before.)
async fn look_back(process: &Process, shard: ShardId, read: Seq) -> Result<bool, Broken> {
    Ok(process.bus.log_end(shard).await? < read)
}

#[cfg(test)]
mod tests;
