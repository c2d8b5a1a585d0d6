//! The desk of a front: takes calls, decides what is asked of the manager, and makes answers of
//! what it says. Pure: the front around it runs the operations and sends the answers.
//!
//! What it keeps to:
//! - one operation a VM at a time; the same number joins it, a lower one is refused;
//! - an ask is taken once, and not after a newer one of its shard: see [`super::asks`];
//! - [`Answer::Refused`] and `Later(CircuitOpen | Busy)` are given only when the VM is certainly
//!   not there through this call: after a refusal callers go elsewhere;
//! - nothing begins that an operator has paused: see [`crate::pauses`];
//! - what a VM takes is reserved when its host is chosen, and given back only when the manager
//!   has said that nothing is there.

mod ended;
mod held;
mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::env::Mono;
use cellbus_bus::ids::{HostId, JobId, ManagerId, ManagerName, OpNumber, ShardId, VmId};
use cellbus_directory::{Refusal, RefusalReason, Step, StepKind};
use cellbus_workflows::{Action, Answer, Call, Later, LaterReason};

use super::asks::Asks;
use super::circuit::{Circuit, Verdict};
use super::died::is_dead;
use super::holdings::Holdings;
use super::hosts::Amount;
use super::limits::{Kind, Line, Slots};
use super::removals::Removals;
use crate::driver::{self, Error, HeldVm, Inventory, Op, RunningTask};
use crate::pauses::Gate;
use crate::peers::{Answered, Asked, Peer};
use held::handed_over;
use room::Extra;

/// Hosts tried for one create when hosts say that they have no room although we thought so.
const HOSTS_TRIED_MAX: u32 = 4;

/// An answer, and who gets it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reply {
    pub(super) to: Arc<Peer>,
    pub(super) shard: ShardId,
    pub(super) answered: Answered,
}

/// An operation to be carried out now.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Start {
    /// Names this try.
    pub(super) ticket: u64,
    /// For which job, and whose VM it is: for logs.
    pub(super) job: JobId,
    /// The shard that asked.
    pub(super) shard: ShardId,
    /// What is to be done.
    pub(super) op: Op,
    /// An earlier try may still run at the manager: "not there" and "no room" count only once no
    /// task on the VM is left.
    pub(super) ask_tasks: bool,
}

/// A call that is known and not answered.
#[derive(Debug)]
struct Pending {
    /// The last ask of it.
    asked: Asked,
    from: Arc<Peer>,
    since: Mono,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    ticket: u64,
    since: Mono,
    extra: Option<Extra>,
    hosts_tried: u32,
}

/// See the module.
pub(super) struct Desk {
    manager: ManagerId,
    pub(super) holdings: Holdings,
    pub(super) circuit: Circuit,
    pub(super) slots: Slots,
    removals: Removals,
    lines: [Line<VmId>; 5],
    line_max: usize,
    pending: BTreeMap<VmId, Pending>,
    adopted: BTreeMap<VmId, RunningTask>,
    /// VMs whose adopted task has ended, and that have not been read since: what it has done is not
    /// known yet.
    unread: BTreeSet<VmId>,
    asks: Asks,
    tickets: u64,
    /// To be sent.
    pub(super) replies: Vec<Reply>,
    /// To be carried out.
    pub(super) starts: Vec<Start>,
    /// VMs to be read again: an operation failed for good, after something may have been done.
    pub(super) unsure: Vec<VmId>,
    /// VMs of which a reading may be older than their end: they are read once more.
    pub(super) read_again: Vec<VmId>,
    /// Whether a host has refused a create for which it has room by what is known: that may be old.
    pub(super) outdated: bool,
    /// Whether a newer owner has opened the manager.
    pub(super) revoked: bool,
    /// Destructive operations that have begun, and that were put off by the limit, since this was last read.
    pub(super) removed: u64,
    pub(super) put_off: u64,
    /// What is paused. Whoever hands something in brings it up to date before.
    pub(super) gate: Gate,
    /// Whether the manager is about to be another owner's: nothing begins.
    pub(super) closed: bool,
    /// Whether the manager is looked at only: nothing begins that changes something. Whoever sets it calls
    /// [`Desk::gate_changed`].
    pub(super) read_only: bool,
    /// Hosts that were dead when the manager was last asked: what it says of them for certain.
    pub(super) dead: BTreeSet<HostId>,
}

impl Desk {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part of what a desk needs; a struct would be this list again"
    )]
    pub(super) fn new(
        name: &ManagerName,
        holdings: Holdings,
        circuit: Circuit,
        limits: driver::Limits,
        removals: Removals,
        line_max: usize,
        tasks: Vec<RunningTask>,
        asks: Asks,
    ) -> Self {
        Self {
            manager: ManagerId::derive(name.as_str()),
            holdings,
            circuit,
            slots: Slots::new(limits),
            removals,
            lines: Default::default(),
            line_max,
            pending: BTreeMap::new(),
            adopted: tasks.into_iter().map(|task| (task.vm, task)).collect(),
            unread: BTreeSet::new(),
            asks,
            tickets: 0,
            replies: Vec::new(),
            starts: Vec::new(),
            unsure: Vec::new(),
            read_again: Vec::new(),
            outdated: false,
            revoked: false,
            removed: 0,
            put_off: 0,
            gate: Gate::new(ManagerId::derive(name.as_str())),
            closed: false,
            read_only: false,
            dead: BTreeSet::new(),
        }
    }

    pub(super) fn waiting(&self, kind: Kind) -> u32 {
        self.lines[kind as usize].len() as u32
    }
    pub(super) fn waiting_total(&self) -> u32 {
        Kind::ALL.iter().map(|kind| self.waiting(*kind)).sum()
    }
    pub(super) fn adopted(&self) -> bool {
        !self.adopted.is_empty()
    }
    /// Whether what an adopted task has done to the VM is still to be read.
    pub(super) fn unread(&self, vm: &VmId) -> bool {
        self.unread.contains(vm)
    }
    pub(super) fn busy(&self, vm: &VmId) -> bool {
        self.pending.contains_key(vm) || self.adopted.contains_key(vm)
    }

    // ── calls ──

    /// A call has come in.
    pub(super) fn call(&mut self, now: Mono, from: &Arc<Peer>, asked: Asked) {
        if let Some(later) = self.unfit(&asked) {
            self.reply(from, &asked, Answer::Later(later));
            return;
        }
        if let Some(pending) = self.pending.get_mut(&asked.call.vm) {
            match asked.call.op.cmp(&pending.asked.call.op) {
                std::cmp::Ordering::Equal if asked.call.withdraw && pending.running.is_none() => {
                    // It stands in line: it leaves it.
                    self.pending.remove(&asked.call.vm);
                    let line = &mut self.lines[Kind::of(&asked.call.action) as usize];
                    line.remove(asked.call.shard, &asked.call.vm);
                    self.withdrawn(from, &asked);
                }
                std::cmp::Ordering::Equal => {
                    // It joins; whoever asked last is answered.
                    pending.from = Arc::clone(from);
                    pending.asked = asked;
                }
                std::cmp::Ordering::Less => {
                    self.later(from, &asked, LaterReason::StaleOwner, "a newer operation is under way", None)
                }
                std::cmp::Ordering::Greater => {
                    self.later(from, &asked, LaterReason::VmBusy, "an older operation is under way", None)
                }
            }
            return;
        }
        if asked.call.withdraw && self.never_begun(&asked.call) {
            self.withdrawn(from, &asked);
            return;
        }
        if self.closed {
            self.reply(from, &asked, handed_over());
            return;
        }
        if let Some(answer) = self.shut(now, &asked.call) {
            self.reply(from, &asked, answer);
            return;
        }
        if let Verdict::Wait(after, reason) = self.circuit.verdict(now) {
            self.circuit_open(from, &asked, after, &reason);
            return;
        }
        if self.circuit.verdict(now) == Verdict::Probe {
            self.circuit_open(from, &asked, Duration::from_millis(200), "a probe is due");
            return;
        }
        if let Some(answer) = self.at_limit(now, asked.call.step) {
            self.reply(from, &asked, answer);
            return;
        }
        let kind = Kind::of(&asked.call.action);
        let (vm, shard) = (asked.call.vm, asked.call.shard);
        let pending = Pending { asked, from: Arc::clone(from), since: now, running: None };
        if self.lines[kind as usize].is_empty() && self.slots.take(kind) {
            self.pending.insert(vm, pending);
            self.begin(now, vm, 0);
        } else if (self.waiting_total() as usize) < self.line_max {
            self.pending.insert(vm, pending);
            self.lines[kind as usize].push(shard, vm);
        } else {
            let reason =
                if self.touched_before(&pending.asked.call) { LaterReason::ManagerFailing } else { LaterReason::Busy };
            self.later(from, &pending.asked, reason, "its line is full", Some(Duration::from_secs(1)));
        }
    }

    /// Why a call is not to be looked at.
    fn unfit(&mut self, asked: &Asked) -> Option<Later> {
        let call = &asked.call;
        let later = |reason, detail: &str| Some(Later { reason, detail: detail.to_owned(), after: None });
        if self.revoked {
            return later(LaterReason::StaleOwner, "a newer owner has opened the manager");
        }
        if let Err(why) = self.asks.take(asked) {
            return Some(super::asks::stale(why));
        }
        if self.holdings.get(&call.vm).is_some_and(|held| call.op < held.op) {
            return later(LaterReason::StaleOwner, "a newer operation has been done on the VM");
        }
        match self.adopted.get(&call.vm).map(|task| task.number.cmp(&call.op)) {
            Some(std::cmp::Ordering::Greater) => later(LaterReason::StaleOwner, "a newer operation is under way"),
            Some(std::cmp::Ordering::Less) => later(LaterReason::VmBusy, "a task of an older operation still runs"),
            Some(std::cmp::Ordering::Equal) | None => None,
        }
    }

    /// Whether this very call, or an earlier one for the same thing, may have reached the manager.
    fn touched_before(&self, call: &Call) -> bool {
        self.adopted.contains_key(&call.vm)
            || self.unread.contains(&call.vm)
            || self.holdings.get(&call.vm).is_some_and(|held| held.unknown || held.op == call.op)
    }

    /// Whether the call has certainly not begun. An operation on a VM that is not here may have begun
    /// long ago (a delete that was done): only the manager knows.
    fn never_begun(&self, call: &Call) -> bool {
        let here = self.holdings.get(&call.vm).is_some();
        !self.touched_before(call) && here != matches!(call.action, Action::Create(_))
    }

    fn withdrawn(&mut self, from: &Arc<Peer>, asked: &Asked) {
        let refusal = self.refused(RefusalReason::NotBegun, "withdrawn before it was begun".to_owned());
        self.reply(from, asked, refusal);
    }

    fn circuit_open(&mut self, from: &Arc<Peer>, asked: &Asked, after: Duration, reason: &str) {
        if self.touched_before(&asked.call) {
            self.later(from, asked, LaterReason::ManagerFailing, reason, Some(after));
        } else if matches!(asked.call.action, Action::Create(_)) {
            // Nothing was asked of the manager, so the VM may go elsewhere at once.
            self.reply(from, asked, self.refused(RefusalReason::NotBegun, reason.to_owned()));
        } else {
            self.later(from, asked, LaterReason::CircuitOpen, reason, Some(after));
        }
    }

    fn later(&mut self, to: &Arc<Peer>, asked: &Asked, reason: LaterReason, detail: &str, after: Option<Duration>) {
        self.reply(to, asked, Answer::Later(Later { reason, detail: detail.to_owned(), after }));
    }

    fn reply(&mut self, to: &Arc<Peer>, asked: &Asked, answer: Answer) {
        let answered = asked.answered(answer);
        self.replies.push(Reply { to: Arc::clone(to), shard: asked.call.shard, answered });
    }

    /// Those in line get the slots that are free.
    pub(super) fn next_in_line(&mut self, now: Mono) {
        for kind in Kind::ALL {
            while !self.lines[kind as usize].is_empty() && self.slots.take(kind) {
                match self.lines[kind as usize].pop() {
                    Some(vm) if self.pending.contains_key(&vm) => self.begin(now, vm, 0),
                    Some(_) | None => self.slots.give_back(kind),
                }
            }
        }
    }

    /// A slot is taken: makes the operation of the call, or answers it at once and gives the slot back.
    fn begin(&mut self, now: Mono, vm: VmId, hosts_tried: u32) {
        let Some(pending) = self.pending.get(&vm) else { return };
        // What is known may have grown too old while it stood in line.
        if let Some(answer) = self.shut(now, &pending.asked.call) {
            return self.finish(vm, answer);
        }
        let step = pending.asked.call.step;
        if let Some(answer) = self.at_limit(now, step) {
            return self.finish(vm, answer);
        }
        let Some(pending) = self.pending.get(&vm) else { return };
        let (op, action) = (pending.asked.call.op, pending.asked.call.action.clone());
        let held = self.holdings.get(&vm);
        let earlier = self.adopted.contains_key(&vm) || self.unread.contains(&vm);
        // Its host may have come back since the inventory was read.
        let there = held.is_some_and(|held| held.seen.is_some());
        let doubted = earlier || held.is_some_and(|h| h.unknown);
        let ask_tasks = doubted
            && matches!(
                action,
                Action::Delete | Action::Inspect | Action::Create(_) | Action::Relocate(_) | Action::Resize(_)
            );
        let (place, extra) = match &action {
            Action::Create(spec) => match self.place_for(vm, spec, op) {
                Ok(place) => (Some(place), None),
                // It may be there already: then it has a host, whatever the others have room for.
                Err(refusal) if earlier || there => {
                    self.outdated |= there;
                    let what = if there { "its host is not known here yet" } else { "what was done for it before" };
                    let detail = format!("{what}: the manager is being read; {}", refusal.detail);
                    let after = Some(Duration::from_secs(1));
                    return self.finish(vm, Answer::Later(Later { reason: LaterReason::Opening, detail, after }));
                }
                Err(refusal) => return self.finish(vm, Answer::Refused(refusal)),
            },
            Action::Relocate(_) if step == Step::Failover && !self.nothing_runs(vm, op) => {
                let why = "the host that it is on may run it: the manager does not say that it is dead".to_owned();
                return self.finish(vm, self.refused(RefusalReason::NotBegun, why));
            }
            Action::Relocate(to) => match self.target_of(vm, to) {
                Ok(extra) => (extra.map(|extra| extra.place), extra),
                Err(answer) => return self.finish(vm, answer),
            },
            Action::Resize(size) => match self.growth_of(vm, &Amount::of(size)) {
                Ok(extra) => (None, extra),
                Err(answer) => return self.finish(vm, answer),
            },
            Action::Start
            | Action::Stop(_)
            | Action::Restart(_)
            | Action::Suspend
            | Action::Resume
            | Action::Snapshot(_)
            | Action::Revert(_)
            | Action::SnapshotDelete(_)
            | Action::Delete
            | Action::Inspect
            | Action::Adopt(_) => (None, None),
        };
        self.count(extra);
        let hosts = &self.holdings.hosts;
        let host = place.map(|place| hosts.host(place.host).id.clone());
        let host = if let Action::Relocate(to) = &action { Some(to.clone()) } else { host };
        let datastore = place.and_then(|place| place.store).map(|store| hosts.store_at(store).name.clone());
        self.holdings.begun(&vm, op);
        self.tickets += 1;
        let ticket = self.tickets;
        let Some(pending) = self.pending.get_mut(&vm) else { return };
        pending.running = Some(Running { ticket, since: now, extra, hosts_tried });
        let Call { job, shard, .. } = pending.asked.call;
        if step.kind() == StepKind::Removes {
            self.removals.begun();
            self.removed += 1;
        }
        self.starts.push(Start { ticket, job, shard, op: Op { vm, number: op, action, host, datastore }, ask_tasks });
    }

    fn refused(&self, reason: RefusalReason, detail: String) -> Answer {
        Answer::Refused(Refusal { manager: self.manager, reason, detail })
    }

    /// Whether the manager is certain that nothing runs the VM; or was, when this very operation was begun
    /// whose answer was lost: then only the manager can say what came of it.
    fn nothing_runs(&self, vm: VmId, op: OpNumber) -> bool {
        let Some(held) = self.holdings.get(&vm) else { return false };
        let begun = self.adopted.get(&vm).is_some_and(|task| task.number == op) || held.unknown && held.op == op;
        begun || held.host.is_some_and(|host| is_dead(self.holdings.hosts.host(host), &self.dead))
    }

    /// The circuit has opened: those in line are sent away.
    fn turn_away(&mut self, now: Mono) {
        let (after, reason) = match self.circuit.verdict(now) {
            Verdict::Wait(after, reason) => (after, reason),
            Verdict::Go | Verdict::Probe => (Duration::from_millis(200), String::new()),
        };
        for kind in Kind::ALL {
            for vm in self.lines[kind as usize].drain() {
                if let Some(pending) = self.pending.remove(&vm) {
                    self.circuit_open(&pending.from, &pending.asked, after, &reason);
                }
            }
        }
    }

    /// Operations that have gone on for `limit` are given up on: their outcome is unknown. Gives
    /// their tickets.
    pub(super) fn overdue(&mut self, now: Mono, random: u64, limit: Duration) -> Vec<u64> {
        let overdue: Vec<(VmId, u64)> = self
            .pending
            .iter()
            .filter_map(|(vm, pending)| pending.running.as_ref().map(|running| (*vm, running)))
            .filter(|(_, running)| now.since(running.since) >= limit)
            .map(|(vm, running)| (vm, running.ticket))
            .collect();
        for (vm, ticket) in &overdue {
            let error = Error::Unreachable { detail: format!("no answer in {} s", limit.as_secs()) };
            self.ended(now, random, *ticket, *vm, Err(error));
        }
        overdue.into_iter().map(|(_, ticket)| ticket).collect()
    }

    /// Calls that have been waiting or running for longer than `than`: their callers are told.
    pub(super) fn long(&self, now: Mono, than: Duration) -> Vec<(Arc<Peer>, ShardId, VmId, OpNumber)> {
        self.pending
            .values()
            .filter(|pending| now.since(pending.since) >= than)
            .map(|pending| {
                (Arc::clone(&pending.from), pending.asked.call.shard, pending.asked.call.vm, pending.asked.call.op)
            })
            .collect()
    }

    // ── what is seen at the manager ──

    /// These tasks still run there. Gives the adopted ones that do not any more.
    pub(super) fn tasks(&mut self, tasks: &[RunningTask]) -> Vec<VmId> {
        let still: BTreeSet<VmId> = tasks.iter().map(|task| task.vm).collect();
        let over: Vec<VmId> = self.adopted.keys().filter(|vm| !still.contains(vm)).copied().collect();
        over.iter().for_each(|vm| {
            self.adopted.remove(vm);
        });
        self.unread.extend(&over);
        over
    }

    /// The VM was read again, beginning when the count of changes was `began`. Whether that is news.
    pub(super) fn inspected(&mut self, vm: VmId, found: Option<&HeldVm>, began: u64) -> bool {
        if self.busy(&vm) || self.holdings.now() > began && self.holdings.get(&vm).is_some_and(|h| h.newer_than(began))
        {
            return false;
        }
        if found.is_some() && self.holdings.may_be_gone(&vm, began) {
            self.read_again.push(vm);
            return false;
        }
        self.unread.remove(&vm);
        match (found, self.holdings.get(&vm)) {
            (Some(found), _) => self.holdings.observe(found),
            // Not there: unless a try with no answer may yet bring it about.
            (None, Some(held)) if !held.unknown => {
                self.holdings.forget(&vm);
                true
            }
            (None, Some(_) | None) => false,
        }
    }

    /// VMs that the directory has otherwise, or does not list here, where it was asked when [`Holdings::now`] was `began`.
    /// What an operation is or was under way on since is told by that.
    pub(super) fn differ(&self, listed: &[HeldVm], began: u64) -> Vec<VmId> {
        let newer = |vm: &VmId| self.holdings.get(vm).is_some_and(|held| held.newer_than(began));
        self.holdings.differ(listed).into_iter().filter(|vm| !self.busy(vm) && !newer(vm)).collect()
    }

    /// The whole inventory was read again. Gives the VMs about which it holds news.
    pub(super) fn reread(&mut self, inventory: &Inventory, began: u64) -> Vec<VmId> {
        let extras = self.extras();
        let (pending, adopted) = (&self.pending, &self.adopted);
        let (news, again) =
            self.holdings.reread(inventory, began, |vm| pending.contains_key(vm) || adopted.contains_key(vm));
        self.count_again(extras);
        self.read_again.extend(again);
        news
    }
}

#[cfg(test)]
mod tests;
