//! Means to make calls fail, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::ids::{HostId, VmId};
use cellbus_cell::driver::Error;

/// What goes wrong.
#[derive(Default)]
pub(crate) struct Trouble(Mutex<State>);

#[derive(Default)]
struct State {
    down: bool,
    /// Hosts that do not answer.
    silent: BTreeSet<HostId>,
    slow: Duration,
    fail: u32,
    /// Changes that are still done with an answer before one whose answer is lost.
    lose_after: Option<u32>,
    /// Changes that are still done before one that is never come back from.
    stand_still_after: Option<u64>,
    restarts: BTreeMap<VmId, u32>,
}

impl Trouble {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn slow(&self, by: Duration) {
        self.state().slow = by;
    }
    pub(crate) fn fail_next(&self) {
        self.state().fail = 1;
    }
    /// Of the changes to come, the answer of the one after so many is lost.
    pub(crate) fn lose_after(&self, changes: u32) {
        self.state().lose_after = Some(changes);
    }
    /// Whether that is still to come; it is not any more.
    pub(crate) fn lost_nothing(&self) -> bool {
        self.state().lose_after.take().is_some()
    }
    /// After so many changes more, nothing goes on, and the process says so.
    pub(crate) fn stand_still_after(&self, changes: u64) {
        self.state().stand_still_after = Some(changes);
    }
    pub(crate) fn down(&self) {
        self.state().down = true;
    }
    pub(crate) fn silence(&self, host: &HostId) {
        self.state().silent.insert(host.clone());
    }
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        *state = State { restarts: std::mem::take(&mut state.restarts), ..State::default() };
    }
    pub(crate) fn restarted(&self, vm: VmId) {
        *self.state().restarts.entry(vm).or_default() += 1;
    }
    pub(crate) fn restarts(&self, vm: VmId) -> u32 {
        self.state().restarts.get(&vm).copied().unwrap_or(0)
    }

    pub(crate) fn before_call(&self) -> Result<(), Error> {
        if self.state().down { Err(Error::Unreachable { detail: "down".to_owned() }) } else { Ok(()) }
    }
    pub(crate) fn before_call_of(&self, host: &HostId) -> Result<(), Error> {
        self.before_call()?;
        if self.state().silent.contains(host) {
            return Err(Error::Unreachable { detail: format!("host {host}: silent") });
        }
        Ok(())
    }
    pub(crate) async fn before_change(&self, env: &Env) -> Result<(), Error> {
        let began = env.mono();
        while env.mono().since(began) < self.state().slow {
            env.sleep(Duration::from_millis(5)).await;
        }
        let stands = match &mut self.state().stand_still_after {
            Some(0) => true,
            Some(more) => {
                *more -= 1;
                false
            }
            None => false,
        };
        if stands {
            println!("stands still");
            std::future::pending::<()>().await;
        }
        let mut state = self.state();
        if state.fail > 0 {
            state.fail -= 1;
            return Err(Error::Transient { detail: "told to fail".to_owned() });
        }
        Ok(())
    }
    pub(crate) fn after_change<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        let mut state = self.state();
        match state.lose_after {
            Some(0) => {
                state.lose_after = None;
                Err(Error::Unreachable { detail: "the answer was lost".to_owned() })
            }
            Some(more) => {
                state.lose_after = Some(more - 1);
                done
            }
            None => done,
        }
    }
}
