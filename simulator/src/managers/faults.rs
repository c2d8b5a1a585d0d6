//! Faults of a simulated manager, put in by hand: errors, hangs, lost answers, and changes that
//! nobody told Cellbus of.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cellbus_bus::ids::{Epoch, HostId, VmId};
use cellbus_bus::job::Size;
use cellbus_cell::driver::{Change, Error, HeldVm, Op};
use cellbus_directory::vm::PowerState;
use rand::Rng as _;
use rand::rngs::SmallRng;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::holdings::{HostState, Image, PutBack};
use super::manager::{Manager, Outcome};
use super::record;

/// Operations that wait in one hanging manager although their callers have gone: beyond it a call
/// that is given up has no effect later.
const LEFT_HANGING_MAX: u32 = 4_096;

/// What can go wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails in a way that may pass; nothing is done.
    Transient,
    /// It fails for good. Half of the creates leave a VM behind, powered off.
    Permanent,
    /// It is done, and the answer is lost: [`Error::Unreachable`].
    AnswerLost,
}

impl Fault {
    const ALL: [Self; 3] = [Self::Transient, Self::Permanent, Self::AnswerLost];
}

/// What a manager is made to suffer at present.
#[derive(Default)]
pub(super) struct Trouble {
    down: bool,
    hanging: bool,
    left_hanging: u32,
    slow: Duration,
    /// By [`Fault`], how likely: 0 to 1.
    rates: [f64; 3],
    /// By [`Fault`], for how many of the next operations.
    next: [u32; 3],
}

impl Trouble {
    fn any(&self) -> bool {
        self.down
            || self.hanging
            || !self.slow.is_zero()
            || self.rates.iter().any(|rate| *rate > 0.0)
            || self.next.iter().any(|next| *next > 0)
    }
    pub(super) fn hanging(&self) -> bool {
        self.hanging
    }
    pub(super) fn slow(&self) -> Duration {
        self.slow
    }
    pub(super) fn reachable(&self) -> Result<(), Error> {
        if self.down { Err(Error::Unreachable { detail: "the simulated manager is down".to_owned() }) } else { Ok(()) }
    }
    /// Readings fail too, and as often; they do not count as one of the next operations.
    pub(super) fn of_a_reading(&mut self, rng: &mut SmallRng) -> Result<(), Error> {
        let rate = self.rates[Fault::Transient as usize];
        if rate > 0.0 && rng.random_bool(rate) { Err(transient()) } else { Ok(()) }
    }
    fn of_an_operation(&mut self, rng: &mut SmallRng) -> Option<Fault> {
        Fault::ALL.into_iter().find(|fault| {
            let (next, rate) = (&mut self.next[*fault as usize], self.rates[*fault as usize]);
            if *next > 0 {
                *next -= 1;
                return true;
            }
            rate > 0.0 && rng.random_bool(rate)
        })
    }
}

fn transient() -> Error {
    Error::Transient { detail: "a simulated error that passes".to_owned() }
}

impl Manager {
    /// Carries an operation out, through whatever trouble there is.
    pub(crate) async fn perform(self: &Arc<Self>, session: Option<Epoch>, op: &Op) -> Outcome {
        if !self.troubled.load(Ordering::Acquire) {
            let outcome = self.carry_out(session, op).await;
            return self.answer(outcome).await;
        }
        let detached = {
            let mut state = self.state();
            state.trouble.reachable()?;
            let detach = state.trouble.hanging && state.trouble.left_hanging < LEFT_HANGING_MAX;
            state.trouble.left_hanging += u32::from(detach);
            detach
        };
        if !detached {
            return self.perform_troubled(session, op).await;
        }
        // What was sent to a hanging manager may be done much later, when its caller has long gone.
        let (send, receive) = oneshot::channel();
        let (manager, op) = (Arc::clone(self), op.clone());
        self.env.spawn("simulated manager hangs", async move {
            let outcome = manager.perform_troubled(session, &op).await;
            manager.state().trouble.left_hanging -= 1;
            // Nobody hears it where the caller gave up; its next owner is told to look.
            if send.send(outcome).is_err() {
                let mut state = manager.state();
                manager.changed_behind(&mut state, Change::Vm(op.vm));
            }
        });
        receive.await.unwrap_or_else(|_| Err(Error::Unreachable { detail: "the task was abandoned".to_owned() }))
    }

    async fn perform_troubled(self: &Arc<Self>, session: Option<Epoch>, op: &Op) -> Outcome {
        self.healed().await?;
        let (fault, half) = {
            let mut guard = self.state();
            let state = &mut *guard;
            let fault = state.trouble.of_an_operation(&mut state.rng);
            let half = fault == Some(Fault::Permanent) && state.rng.random_bool(0.5);
            self.look_for_trouble(&state.trouble);
            (fault, half)
        };
        match fault {
            None => {
                let outcome = self.carry_out(session, op).await;
                self.answer(outcome).await
            }
            Some(Fault::Transient) => Err(transient()),
            Some(Fault::Permanent) => {
                let detail = "a simulated error that lasts";
                if half {
                    self.half_make(session, op, detail);
                }
                Err(Error::Permanent { detail: detail.to_owned() })
            }
            Some(Fault::AnswerLost) => {
                // Whatever it was; the caller is not to know.
                let _ = self.carry_out(session, op).await;
                Err(Error::Unreachable { detail: "the simulated manager's answer was lost".to_owned() })
            }
        }
    }

    /// An answer leaves a manager that neither hangs nor is down.
    async fn answer(&self, outcome: Outcome) -> Outcome {
        if self.troubled.load(Ordering::Acquire) {
            self.healed().await?;
        }
        outcome
    }

    fn look_for_trouble(&self, trouble: &Trouble) {
        self.troubled.store(trouble.any(), Ordering::Release);
    }
}

/// What a manager held at one moment.
pub struct Backup(Image);

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backup")
    }
}

/// The faults of one manager. Each takes effect at once, also on calls under way.
#[derive(Clone)]
pub struct Faults {
    pub(super) manager: Arc<Manager>,
}

impl Faults {
    fn set(&self, change: impl FnOnce(&mut Trouble)) {
        {
            let mut state = self.manager.state();
            change(&mut state.trouble);
            self.manager.look_for_trouble(&state.trouble);
        }
        self.manager.stirred.notify_waiters();
    }

    /// Each operation meets this fault with this probability, 0 to 1; readings meet
    /// [`Fault::Transient`] too.
    pub fn rate(&self, fault: Fault, probability: f64) {
        let probability = if probability.is_finite() { probability.clamp(0.0, 1.0) } else { 0.0 };
        self.set(|trouble| trouble.rates[fault as usize] = probability);
    }
    /// The next so many operations meet this fault.
    pub fn next(&self, fault: Fault, operations: u32) {
        self.set(|trouble| trouble.next[fault as usize] = operations);
    }
    /// Nothing is answered any more, until [`Faults::heal`]. What was asked meanwhile is done then,
    /// whether or not anybody still waits for it.
    pub fn hang(&self) {
        self.set(|trouble| trouble.hanging = true);
    }
    /// Cannot be reached, until [`Faults::heal`]. Tasks that run go on.
    pub fn down(&self) {
        self.set(|trouble| trouble.down = true);
    }
    /// Every operation takes this much longer; readings do not.
    pub fn slow(&self, by: Duration) {
        self.set(|trouble| trouble.slow = by);
    }
    /// Ends every fault.
    pub fn heal(&self) {
        self.set(|trouble| *trouble = Trouble { left_hanging: trouble.left_hanging, ..Trouble::default() });
    }

    // ── behind Cellbus's back; `false` where there is no such VM or host ──

    /// Somebody changes a VM's power.
    pub fn set_power(&self, vm: VmId, power: PowerState) -> bool {
        let mut state = self.manager.state();
        let done = state.holdings.set_power(vm, power);
        if done {
            self.manager.put_vm(&mut state, vm);
            self.manager.changed_behind(&mut state, Change::Vm(vm));
        }
        done
    }
    /// Somebody moves a VM to another host, whether or not it has room.
    pub fn move_vm(&self, vm: VmId, to: &HostId) -> bool {
        let mut state = self.manager.state();
        let done = state.holdings.move_vm(vm, to);
        if done {
            self.manager.put_vm(&mut state, vm);
            self.manager.changed_behind(&mut state, Change::Vm(vm));
        }
        done
    }
    /// Somebody deletes a VM.
    pub fn delete_vm(&self, vm: VmId) -> bool {
        let mut state = self.manager.state();
        let done = state.holdings.delete_vm(vm);
        if done {
            self.manager.removed_behind(&mut state, vm);
        }
        done
    }
    /// Somebody makes a VM of their own on a host, which then has that much less room.
    pub fn create_foreign(&self, host: &HostId, size: Size) -> bool {
        let (high, low) = (self.manager.env.random_u64(), self.manager.env.random_u64());
        let id = Uuid::from_u64_pair(high, low);
        let mut state = self.manager.state();
        let Some(write) =
            state.holdings.add_foreign(id, host, size).map(|foreign| record::foreign(self.manager.id, id, foreign))
        else {
            return false;
        };
        self.manager.put(&mut state, write);
        self.manager.changed_behind(&mut state, Change::Hosts);
        true
    }
    /// What stands here of one of our VMs.
    #[must_use]
    pub fn held(&self, vm: VmId) -> Option<HeldVm> {
        let state = self.manager.state();
        state.holdings.vm(&vm).map(|found| state.holdings.held(vm, found))
    }
    /// Somebody puts a VM with one of our ids here, whether or not there is room: registered here after it
    /// was at another manager, restored from elsewhere, or cloned with its annotation.
    pub fn plant(&self, vm: &HeldVm) -> bool {
        let mut state = self.manager.state();
        let there = state.holdings.vm(&vm.id).is_some();
        let done = state.holdings.plant(vm);
        if done {
            if !there {
                self.manager.planted(vm.id);
            }
            self.manager.put_vm(&mut state, vm.id);
            self.manager.changed_behind(&mut state, Change::Vm(vm.id));
        }
        done
    }
    /// A host dies, and its VMs with it.
    pub fn lose_host(&self, host: &HostId) -> bool {
        let done = self.set_host(host, HostState::Lost);
        if done {
            let mut state = self.manager.state();
            for vm in state.holdings.vms_on(host) {
                state.holdings.delete_vm(vm);
                self.manager.removed_behind(&mut state, vm);
            }
        }
        done
    }
    /// A host takes no new VMs and keeps those it has.
    pub fn maintain_host(&self, host: &HostId) -> bool {
        self.set_host(host, HostState::Maintenance)
    }
    /// A backup of the manager: what it holds of our VMs now.
    #[must_use]
    pub fn backup(&self) -> Backup {
        Backup(self.manager.state().holdings.image())
    }
    /// The manager comes back from a backup: VMs that were made since are gone, deleted ones there
    /// again, all others as they were; tasks under way are forgotten. Sessions and hosts stay.
    pub fn restore(&self, backup: &Backup) -> PutBack {
        self.manager.put_back(&backup.0)
    }
    /// A host does not answer any more: what runs on it may run on.
    pub fn silence_host(&self, host: &HostId) -> bool {
        self.set_host(host, HostState::Silent)
    }
    /// A host is off, and nobody knows: it does not answer, and what ran on it runs nowhere.
    pub fn cut_power_of_host(&self, host: &HostId) -> bool {
        self.set_host(host, HostState::Dark)
    }
    /// A host is off for certain: what ran on it runs nowhere, and can be brought to another.
    pub fn fence_host(&self, host: &HostId) -> bool {
        self.set_host(host, HostState::Dead)
    }
    /// A lost host comes back, empty; one that was off, with its VMs off; one in maintenance or without an
    /// answer takes VMs again.
    pub fn restore_host(&self, host: &HostId) -> bool {
        let was_off = {
            let holdings = &self.manager.state().holdings;
            holdings.dead_hosts().contains(host) || !holdings.dark(std::slice::from_ref(host)).is_empty()
        };
        let done = self.set_host(host, HostState::Up);
        if was_off {
            let mut state = self.manager.state();
            for vm in state.holdings.vms_on(host) {
                state.holdings.set_power(vm, PowerState::Stopped);
                self.manager.put_vm(&mut state, vm);
                self.manager.changed_behind(&mut state, Change::Vm(vm));
            }
        }
        done
    }

    fn set_host(&self, host: &HostId, to: HostState) -> bool {
        let mut state = self.manager.state();
        let done = state.holdings.set_host(host, to);
        if done {
            self.manager.put(&mut state, record::host(self.manager.id, host, to));
            self.manager.changed_behind(&mut state, Change::Hosts);
        }
        done
    }
}
