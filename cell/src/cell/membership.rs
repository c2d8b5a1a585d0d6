//! Who lives, what this cell should own, and its lease.
//!
//! A cell beats; who has not beaten for a lease is gone. Each cell computes from the live members
//! what it should own, and runs those shards. Runners do the rest: they ask the owner before to
//! let go, or take over from one that is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::contract::{Member, MemberState, Role};
use cellbus_bus::ids::{CellId, ShardCount};
use tokio_util::sync::CancellationToken;

use super::Inner;
use crate::gateway::ShardState;
use crate::ownership::Assignment;
use crate::peers::Peer;
use crate::process::Process;
use crate::runner;

/// How long a cell that leaves waits for others to take its shards before it closes them itself.
const HAND_OVER: Duration = Duration::from_secs(20);

/// The members as this cell saw them last.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) assignment: Assignment,
    /// Those that live, draining ones included.
    pub(super) live: BTreeMap<CellId, Peer>,
    /// Those that take shards.
    active: Vec<CellId>,
    /// Before this, nothing is taken over from owners that are not among the members: the bus was
    /// away, and they may not have had a chance to beat.
    pub(super) takeover_from: Mono,
}

impl View {
    pub(super) fn nothing(count: ShardCount) -> Self {
        Self {
            assignment: Assignment::over(count, &[]),
            live: BTreeMap::new(),
            active: Vec::new(),
            takeover_from: Mono(Duration::MAX),
        }
    }
}

impl Inner {
    /// Beats, and keeps the runners to what this cell should own, until it has drained or is killed.
    pub(super) async fn member(inner: &Arc<Self>, stop: CancellationToken) {
        let env = inner.process.env.clone();
        let began = env.mono();
        let joined_at = env.wall();
        // Two may be lost before the lease runs out.
        let every = inner.config.beat.min(inner.config.lease / 3);
        let mut beat = 0;
        let mut bus_was_away = false;
        let mut takeover_from = began.after(inner.config.settle);
        let mut gathered = false;
        let mut draining_since: Option<Mono> = None;
        // When the members were looked at last; `None`: they are to be looked at now.
        let mut looked: Option<Mono> = None;
        loop {
            if stop.is_cancelled() || inner.process.outdated().is_some() {
                inner.draining.store(true, Ordering::Release);
            }
            if inner.killed.load(Ordering::Acquire) {
                return;
            }
            let draining = inner.draining.load(Ordering::Acquire);
            let member = Member {
                cell: inner.me.cell.clone(),
                role: Role::Cell,
                address: inner.me.address.clone(),
                state: if draining { MemberState::Draining } else { MemberState::Active },
                joined_at,
                beat,
                build: inner.process.build().clone(),
            };
            beat += 1;
            if draining || !gathered || bus_was_away {
                looked = None;
            }
            let done = match inner.beat(member).await {
                Ok(()) if inner.looks(looked, every) => inner.cells().await.map(Some),
                Ok(()) => Ok(None),
                Err(reason) => Err(reason),
            };
            match done {
                Ok(Some(members)) => {
                    let now = env.mono();
                    looked = Some(now);
                    if std::mem::take(&mut bus_was_away) {
                        takeover_from = now.after(inner.config.lease);
                    }
                    gathered = gathered || inner.gathered(&members, now.since(began));
                    if gathered {
                        inner.look_at(members, takeover_from);
                        Self::reconcile(inner);
                    }
                }
                // They are as they were.
                Ok(None) => Self::reconcile(inner),
                Err(reason) => {
                    tracing::warn!(cell = %inner.me.cell, reason, "no beat: the bus does not answer");
                    bus_was_away = true;
                }
            }
            if draining {
                let since = *draining_since.get_or_insert_with(|| env.mono());
                if inner.let_all_go(env.mono().since(since)) {
                    break;
                }
            }
            // While it leaves, and while others gather, it looks more often.
            let pause = if draining || !gathered { every.min(Duration::from_millis(100)) } else { every };
            tokio::select! {
                biased;
                () = inner.poke.notified() => looked = None,
                () = stop.cancelled(), if !draining => {}
                () = env.sleep(pause) => {}
            }
        }
        let goodbye = inner.process.bus.leave(&inner.me.cell);
        if !matches!(env.timeout(inner.config.lease, goodbye).await, Some(Ok(()))) {
            tracing::info!(cell = %inner.me.cell, "could not say goodbye: the others wait for the lease to run out");
        }
    }

    /// One beat.
    async fn beat(&self, member: Member) -> Result<(), String> {
        let env = &self.process.env;
        let (began, lease) = (env.mono(), self.config.lease);
        let beat = env.timeout(lease, self.process.bus.beat(member, lease)).await;
        beat.ok_or("no answer in time")?.map_err(|error| error.to_string())?;
        // A tenth less than others count, for clocks that do not run alike.
        self.lease.renew(began.after(lease / 10 * 9));
        Ok(())
    }

    /// Whether it is time to look who is there; a cluster with many looks at some beats only. What a look
    /// later than that makes a takeover later, by no more than two thirds of a lease.
    fn looks(&self, looked: Option<Mono>, every: Duration) -> bool {
        let Some(looked) = looked else { return true };
        let pause = self.process.roster.every(every).min(self.config.lease / 3).max(every);
        // The beat that comes nearest.
        self.process.env.mono().since(looked) + every / 2 >= pause
    }

    /// The cells that live.
    async fn cells(&self) -> Result<Vec<Member>, String> {
        let Process { env, bus, roster, .. } = &self.process;
        let members = env.timeout(self.config.lease, roster.ask(bus, env)).await;
        let members = members.ok_or("no answer in time")?.map_err(|error| error.to_string())?;
        Ok(members.iter().filter(|member| member.role == Role::Cell).cloned().collect())
    }

    /// Whether as many cells are there as are waited for at the start, or the wait is over.
    fn gathered(&self, members: &[Member], since: Duration) -> bool {
        let (wanted, at_most) = self.config.gather;
        members.len() >= wanted || since >= at_most
    }

    fn look_at(&self, members: Vec<Member>, takeover_from: Mono) {
        let active: Vec<CellId> = members
            .iter()
            .filter(|m| m.state == MemberState::Active && self.process.keeps_up(m))
            .map(|m| m.cell.clone())
            .collect();
        let live = members.into_iter().map(|m| (m.cell.clone(), Peer { cell: m.cell, address: m.address })).collect();
        let before = self.view.load();
        let assignment = if before.active == active {
            before.assignment.clone()
        } else {
            tracing::debug!(cell = %self.me.cell, members = active.len(), "members have changed");
            Assignment::over(self.process.count, &active)
        };
        self.view.store(Arc::new(View { assignment, live, active, takeover_from }));
    }

    /// Runs what should be owned here. What should not is let go when its new owner asks.
    fn reconcile(inner: &Arc<Self>) {
        if inner.draining.load(Ordering::Acquire) || !inner.lease.held(inner.process.env.mono()) {
            return;
        }
        let view = inner.view.load_full();
        for shard in inner.process.count.shards().filter(|shard| view.assignment.owner(*shard) == Some(&inner.me.cell))
        {
            inner.start_runner(shard);
        }
    }

    /// Leaving: whether nothing is run here any more. Without others to take the shards, or when
    /// they take too long, they are closed.
    fn let_all_go(&self, since: Duration) -> bool {
        let alone = self.view.load().active.iter().all(|cell| *cell == self.me.cell);
        for runner in self.runners.iter().filter_map(arc_swap::ArcSwapOption::load_full) {
            // One that could not be opened here is not asked for by those who can.
            if alone || since > HAND_OVER || matches!(runner.row().state, ShardState::Failed { .. }) {
                let (told, _) = tokio::sync::oneshot::channel();
                // One whose mailbox is full is told again in a moment.
                let _ = runner.put(runner::Message::Release(told));
            }
        }
        self.runners_count() == 0
    }

    /// Stops the fronts when the lease runs out, whatever the beats do. Runners see it by themselves.
    pub(super) async fn watch_lease(&self) {
        let env = &self.process.env;
        loop {
            let left = self.lease.left(env.mono());
            if left > Duration::ZERO {
                env.sleep(left).await;
                continue;
            }
            let fronts: Vec<_> = self.fronts.load().keys().copied().collect();
            if !fronts.is_empty() {
                tracing::warn!(cell = %self.me.cell, "the lease has run out: nothing is done until it is held again");
                self.lease.lapse();
                for manager in fronts {
                    runner::Home::closed(self, manager.shard(self.process.count));
                }
            }
            self.lease.renewed().await;
        }
    }
}
