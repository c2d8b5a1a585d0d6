//! What operators have paused: kept on the cluster's shard, and heeded by all.
//!
//! The shard that keeps the pauses only records them. That nothing begins which is paused is seen to
//! by the owner of each manager, since nobody else talks to it. Homes of VMs heed them too: work is
//! not begun in vain, waits at the head of its line with the reason in words, and holds no slot.

use std::time::Duration;

use cellbus_bus::codec;
use cellbus_bus::ids::{ManagerId, VmId};
use cellbus_directory::pause::Scope;
use cellbus_directory::record::Operator;
use cellbus_directory::{Pauses, Record, ShardSnapshot, Step};

use super::Shard;
use super::state::{Machine, Timer};
use crate::action::{Later, LaterReason};
use crate::input::Context;

/// How often it is looked whether what is paused is still so, while work waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is paused according to a snapshot of the cluster's shard.
///
/// # Errors
/// When its machine part is damaged or written by a newer build.
pub fn pauses_in(snapshot: &ShardSnapshot) -> Result<Pauses, codec::Error> {
    let (_, added) = Machine::decode(&snapshot.machine)?;
    Ok(added.pauses)
}

impl Shard {
    /// An operator stops work. What is paused already stays as it was ordered first.
    pub(super) fn pause(&mut self, ctx: &Context<'_>, scope: Scope, reason: String, by: Operator) {
        if self.state.pauses.get(&scope).is_none() {
            self.record(ctx, Record::Paused { scope, reason, by });
        }
    }

    /// An operator lets it go on.
    pub(super) fn resume(&mut self, ctx: &Context<'_>, scope: Scope, by: Operator) {
        if self.state.pauses.get(&scope).is_some() {
            self.record(ctx, Record::Resumed { scope, by });
        }
    }

    /// Why a step may not be begun at this manager (`None`: at any), if an operator has paused it.
    pub(super) fn paused(&mut self, ctx: &Context<'_>, step: Step, manager: Option<ManagerId>) -> Option<String> {
        let (scope, pause) = ctx.pauses.hold(step, manager)?;
        let name = scope.manager.and_then(|manager| ctx.names.name(&manager));
        self.look_later(ctx);
        Some(pause.in_words(&scope, name.map(|name| name.as_str())))
    }

    /// The owner of the manager has not begun the call, as it is paused: it is asked again when what is
    /// paused has changed. `false`: nothing of that is known here yet.
    pub(super) fn pause_call(&mut self, ctx: &Context<'_>, vm: VmId, later: &Later) -> bool {
        if later.reason != LaterReason::Paused {
            return false;
        }
        let Some(doing) = self.state.vms.get(&vm).and_then(|entry| entry.vm.doing.clone()) else { return false };
        match self.paused(ctx, doing.step, Some(doing.manager)) {
            Some(why) => {
                self.hold_back(vm, why);
                true
            }
            None => false,
        }
    }

    /// A place is looked for again and again; at once when a manager is no longer paused.
    pub(super) fn wait_for_managers(&mut self, ctx: &Context<'_>, vm: VmId) {
        if !ctx.pauses.is_empty() {
            self.look_later(ctx);
            self.soft.held.insert(vm);
        }
    }

    fn look_later(&mut self, ctx: &Context<'_>) {
        if self.soft.held.is_empty() {
            self.soft.paused.clone_from(ctx.pauses);
        }
        // What is held back for something else already may wait for other pauses: that is found out then.
        if !std::mem::replace(&mut self.soft.pauses_watched, true) {
            self.soft.timers.insert((ctx.now.after(LOOK_EVERY), Timer::Pauses));
        }
    }

    /// Work that a pause has held back goes on once that is over.
    pub(super) fn look_at_pauses(&mut self, ctx: &Context<'_>) {
        self.soft.pauses_watched = false;
        if self.soft.held.is_empty() {
            return;
        }
        if self.soft.paused != *ctx.pauses {
            let held = std::mem::take(&mut self.soft.held);
            self.soft.paused.clone_from(ctx.pauses);
            for vm in held {
                self.look_again(ctx, vm);
            }
        }
        self.look_later(ctx);
    }
}
