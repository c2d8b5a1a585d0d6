//! Launchers that start no cell themselves and tell somebody else how many there are to be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::{Env, Mono};

use super::pace::{Backoff, Heeds, Pace};
use super::{Launcher, Wanted};

/// Between two tries after failures.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };

/// Somebody else who starts cells.
#[async_trait]
pub(super) trait Ask: Send + Sync {
    /// The launcher's name in the configuration.
    fn name(&self) -> &'static str;
    /// How long until it is told again, if nothing changes.
    fn every(&self) -> Duration;
    /// Tells it once what is wanted, within a time limit of its own; `again` if that is what it was
    /// told before, with success. What there is to be said about it for an operator, or why it failed.
    /// It is called anew after a failure, and dropped when the launcher is stopped.
    async fn ask(&self, wanted: &Wanted, again: bool) -> Result<Option<String>, String>;
    /// After a failure: for how long whoever was asked does not want to be asked again.
    fn rest(&self) -> Duration {
        Duration::ZERO
    }
}

/// Tells the newest, one call at a time: at once when it changes, now and then when it does not, and
/// after a failure again, with growing pauses.
pub struct Asking {
    inner: Arc<Inner>,
}

struct Inner {
    ask: Box<dyn Ask>,
    pace: Pace,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    wanted: Option<Wanted>,
    trouble: Option<String>,
}

impl Asking {
    pub(super) fn start(env: Env, ask: Box<dyn Ask>) -> Arc<Self> {
        let inner = Arc::new(Inner { ask, pace: Pace::new(env), state: Mutex::default() });
        let running = Arc::clone(&inner);
        inner.pace.env.spawn("asking for cells", async move { running.run().await });
        Arc::new(Self { inner })
    }
}

#[async_trait]
impl Launcher for Asking {
    fn name(&self) -> &'static str {
        self.inner.ask.name()
    }
    fn want(&self, wanted: Wanted) {
        let desired = wanted.desired;
        let before = self.inner.state().wanted.replace(wanted);
        if before.is_none_or(|before| before.desired != desired) {
            self.inner.pace.changed();
        }
    }
    fn trouble(&self) -> Option<String> {
        self.inner.state().trouble.clone()
    }
    async fn stop(&self) {
        self.inner.pace.stop.cancel();
    }
}

impl Drop for Asking {
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
        let Pace { env, stop, .. } = &self.pace;
        let mut told: Option<(u32, Mono)> = None;
        let mut failures = 0;
        while !stop.is_cancelled() {
            let wanted = self.state().wanted.clone();
            let again = |wanted: &Wanted| told.is_some_and(|(last, _)| last == wanted.desired);
            let rest = told.map_or(Duration::ZERO, |(_, at)| self.ask.every().saturating_sub(env.mono().since(at)));
            let Some(wanted) = wanted.filter(|wanted| !again(wanted) || rest.is_zero()) else {
                let rest = if rest.is_zero() { self.ask.every() } else { rest };
                self.pace.pause(rest, Heeds::Changes).await;
                continue;
            };
            let asked = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                asked = self.ask.ask(&wanted, again(&wanted)) => asked,
            };
            match asked {
                Ok(trouble) => {
                    (told, failures) = (Some((wanted.desired, env.mono())), 0);
                    self.state().trouble = trouble;
                }
                Err(trouble) => {
                    let (launcher, desired) = (self.ask.name(), wanted.desired);
                    tracing::warn!(launcher, desired, trouble, "cells could not be asked for; trying again");
                    (told, failures) = (None, failures + 1);
                    self.state().trouble = Some(trouble);
                    let pause = BACKOFF.after(failures).max(self.ask.rest().min(BACKOFF.longest));
                    self.pace.pause(pause, Heeds::OnlyStop).await;
                }
            }
        }
    }
}
