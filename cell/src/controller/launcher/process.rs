//! Cells as children of the controller, each a process of its own.

use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::contract::{Member, MemberState, Role};
use cellbus_bus::{Env, Mono, WallMs};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::pace::{Backoff, Heeds, Pace};
use super::{Launcher, Wanted};

/// How often children are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// After children have died.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(60) };
/// A child that has run so long has not died at once.
const SOUND: Duration = Duration::from_secs(60);
/// How long a child may take to hand its shards over before it is killed, which loses nothing either.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// See the module. A child is asked to leave with SIGTERM, upon which a cell drains.
///
/// Cells that were there before it was first told what is wanted count too: after a controller was
/// killed, its children live on, and the next one starts so many fewer. It cannot have them leave, as
/// they are nobody's children any more, and says so when they are too many. What is started by other
/// means later comes on top.
pub struct ProcessLauncher {
    inner: Arc<Inner>,
}

struct Inner {
    pace: Pace,
    command: Vec<String>,
    state: Mutex<State>,
    stopped: CancellationToken,
}

#[derive(Default)]
struct State {
    wanted: Option<Split>,
    /// When it was first told what is wanted.
    told: Option<WallMs>,
    trouble: Option<String>,
    running: usize,
}

/// What is wanted of it, and what is there without it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Split {
    children: usize,
    /// Cells that are others' and too many.
    surplus: usize,
}

struct Running {
    child: Child,
    since: Mono,
    leaving: Option<Mono>,
}

/// The children, and when the next may be started.
#[derive(Default)]
struct Children {
    running: Vec<Running>,
    deaths: u32,
    not_before: Option<Mono>,
}

impl ProcessLauncher {
    /// That starts `command`, a program and its arguments, once for each cell.
    #[must_use]
    pub fn start(env: Env, command: Vec<String>) -> Arc<Self> {
        let inner = Arc::new(Inner {
            pace: Pace::new(env),
            command,
            state: Mutex::default(),
            stopped: CancellationToken::new(),
        });
        let running = Arc::clone(&inner);
        inner.pace.env.spawn("cells as children", async move { running.run().await });
        Arc::new(Self { inner })
    }
    /// Children that run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.inner.state().running
    }
}

#[async_trait]
impl Launcher for ProcessLauncher {
    fn name(&self) -> &'static str {
        "process"
    }
    fn want(&self, wanted: Wanted) {
        let mut state = self.inner.state();
        let told = *state.told.get_or_insert_with(|| self.inner.pace.env.wall());
        let others = |member: &&Member| {
            member.role == Role::Cell && member.state == MemberState::Active && member.joined_at < told
        };
        let (desired, others) = (wanted.desired as usize, wanted.members.iter().filter(others).count());
        let split = Split { children: desired.saturating_sub(others), surplus: others.saturating_sub(desired) };
        if state.wanted.replace(split) != Some(split) {
            self.inner.pace.changed();
        }
    }
    fn trouble(&self) -> Option<String> {
        let state = self.inner.state();
        let surplus = state.wanted.map_or(0, |wanted| wanted.surplus);
        let surplus = (surplus > 0).then(|| {
            format!("too many cells by {surplus}, started by somebody else: have them leave with `cellbus cells drain`")
        });
        state.trouble.clone().or(surplus)
    }
    async fn stop(&self) {
        self.inner.pace.stop.cancel();
        self.inner.stopped.cancelled().await;
    }
}

impl Drop for ProcessLauncher {
    fn drop(&mut self) {
        self.inner.pace.stop.cancel();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self) {
        let mut children = Children::default();
        while !self.pace.stop.is_cancelled() {
            self.reap(&mut children);
            let wanted = self.state().wanted;
            if let Some(Split { children: desired, .. }) = wanted {
                self.towards(&mut children, desired);
            }
            self.state().running = children.running.len();
            self.pace.pause(LOOK, Heeds::Changes).await;
        }
        let began = self.pace.env.mono();
        children.running.iter_mut().for_each(|running| leave(running, began));
        while !children.running.is_empty() {
            self.reap(&mut children);
            self.pace.env.sleep(LOOK).await;
        }
        self.state().running = 0;
        self.stopped.cancel();
    }

    /// Takes out those that have ended, and kills those that take too long to leave.
    fn reap(&self, children: &mut Children) {
        let now = self.pace.env.mono();
        let mut died = None;
        children.running.retain_mut(|running| {
            if running.leaving.is_some_and(|since| now.since(since) > DRAIN_MAX) {
                tracing::warn!(pid = running.child.id(), "a cell that should have left is killed");
                // One that has ended meanwhile is seen below.
                let _ = running.child.start_kill();
            }
            let ended = match running.child.try_wait() {
                Ok(None) => return true,
                Ok(Some(status)) => status.to_string(),
                Err(error) => error.to_string(),
            };
            if running.leaving.is_none() {
                died = Some((ended, now.since(running.since)));
            }
            false
        });
        if let Some((ended, lived)) = died {
            children.deaths = if lived >= SOUND { 1 } else { children.deaths + 1 };
            self.put_off(children, format!("a cell ended with {ended} after {:.1} s", lived.as_secs_f64()));
        }
    }

    fn put_off(&self, children: &mut Children, trouble: String) {
        let pause = BACKOFF.after(children.deaths);
        children.not_before = Some(self.pace.env.mono().after(pause));
        tracing::warn!(trouble, pause_seconds = pause.as_secs_f64(), "a cell is started again after a while");
        self.state().trouble = Some(trouble);
    }

    fn towards(&self, children: &mut Children, desired: usize) {
        let now = self.pace.env.mono();
        let staying = children.running.iter().filter(|running| running.leaving.is_none()).count();
        let leaving = children.running.len() > staying;
        if staying > desired
            && !leaving
            && let Some(youngest) = children.running.iter_mut().max_by_key(|running| running.since)
        {
            leave(youngest, now);
        }
        for _ in staying..desired {
            if children.not_before.is_some_and(|at| now < at) {
                return;
            }
            match self.spawn() {
                Ok(child) => children.running.push(Running { child, since: now, leaving: None }),
                Err(trouble) => {
                    children.deaths += 1;
                    return self.put_off(children, trouble);
                }
            }
        }
        // All there, and none has died for a while.
        let sound = children.running.iter().all(|running| now.since(running.since) >= BACKOFF.first);
        if sound && staying >= desired && children.not_before.is_none_or(|at| now >= at) {
            self.state().trouble = None;
        }
    }

    fn spawn(&self) -> Result<Child, String> {
        let (program, arguments) = self.command.split_first().ok_or("there is no command that starts a cell")?;
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // What it logs goes where ours goes.
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{program} cannot be started: {error}"))
    }
}

fn leave(running: &mut Running, now: Mono) {
    running.leaving.get_or_insert(now);
    let pid = running.child.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid {
        // One that has ended meanwhile is reaped.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}
