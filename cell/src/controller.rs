//! The autoscaling controller: reads what there is to do, has the policy decide, and has a launcher
//! bring cells and take them away.
//!
//! ```text
//!  cells ── Load, a second ──▶ Policy (pure) ──▶ decision ──▶ queue of shard("cluster")
//!                                                               │ kept only if its term is the present one
//!                            Launcher ◀── what is kept ◀────────┘
//! ```
//!
//! Any number may run; one decides. Which one is a record on the cluster's shard, with a term that
//! grows with each that takes over: what a controller of an older term decides is void, and one acts
//! only on what it has read back (decision 0007). So a controller that is killed at any moment leaves
//! either nothing or a whole decision, and the next goes on from the last that was kept.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use cellbus_bus::Mono;
use cellbus_bus::contract::Role;
use cellbus_bus::ids::{CellId, ControllerId, ShardId};
use cellbus_directory::scale::{Decision, Leader, Mode, Settings};
use cellbus_workflows::autoscale::{Now, Policy, Tuning};
use cellbus_workflows::{ControlItem, Scale};
use tokio_util::sync::CancellationToken;

use crate::Gateway;

pub mod launcher;
mod readings;

pub use launcher::{Launcher, Wanted};
use readings::Readings;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Between two looks while it waits to be the one that decides.
const STANDBY: Duration = Duration::from_millis(200);
/// A decision is kept at least so often, changed or not.
const RECORD_EVERY: Duration = Duration::from_secs(60);
/// What a launcher fails with is kept when it changes, but not more often than this.
const TROUBLE_EVERY: Duration = Duration::from_secs(10);
/// How long what is kept is waited for.
const KEPT_LIMIT: Duration = Duration::from_secs(5);
/// Characters of what a launcher fails with that are kept.
const TROUBLE_CHARS_MAX: usize = 300;

/// How a controller is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which incarnation it is: never used before.
    pub id: ControllerId,
    /// Under which name its process is among the members; `None` if it is not.
    pub member: Option<CellId>,
    /// In force until an operator sets something.
    pub configured: Settings,
    /// How the policy decides.
    pub tuning: Tuning,
    /// How long the one that decides may be silent before this one takes over; zero where no other
    /// process can be alive.
    pub lease: Duration,
}

/// A controller, to be run.
pub struct Service {
    config: Config,
    gateway: Gateway,
    launcher: Arc<dyn Launcher>,
    shown: Arc<ArcSwap<Status>>,
}

/// A way to a controller.
#[derive(Clone, Debug)]
pub struct Handle {
    shown: Arc<ArcSwap<Status>>,
}

/// What a controller is doing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Whether it is the one that decides.
    pub leads: bool,
    /// What it decided last, kept or not.
    pub decision: Option<Decision>,
}

impl Handle {
    /// What it is doing.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.shown.load_full()
    }
}

/// What the one that decides remembers.
struct Acting {
    leader: Leader,
    policy: Policy,
    /// When a decision was kept last, and what the launcher failed with then.
    recorded: Option<(Mono, Option<String>)>,
    renewed: Mono,
}

impl Service {
    /// A controller of this process. Nothing runs yet.
    #[must_use]
    pub fn new(config: Config, gateway: Gateway, launcher: Arc<dyn Launcher>) -> (Self, Handle) {
        let shown = Arc::new(ArcSwap::from_pointee(Status::default()));
        (Self { config, gateway, launcher, shown: Arc::clone(&shown) }, Handle { shown })
    }

    /// Runs until it is stopped, and has the launcher end what it has started.
    pub async fn run(self, stop: CancellationToken) {
        let env = self.gateway.process().env.clone();
        let mut acting = None;
        let mut readings = Readings::new(self.config.tuning.stale_after);
        loop {
            let pause = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                pause = self.turn(&mut acting, &mut readings) => pause,
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = env.sleep(pause) => {}
            }
        }
        self.launcher.stop().await;
    }

    /// One look; how long until the next.
    async fn turn(&self, acting: &mut Option<Acting>, readings: &mut Readings) -> Duration {
        let env = &self.gateway.process().env;
        let kept = match env.timeout(KEPT_LIMIT, self.gateway.scale(1, None)).await {
            Some(Ok(kept)) => kept,
            unread => {
                if let Some(Err(error)) = unread {
                    tracing::debug!(%error, "how many cells there are to be cannot be read: the size holds");
                }
                self.begin().await;
                return EVERY;
            }
        };
        let Some(acting) = self.leads(acting, &kept).await else {
            self.shown.store(Arc::new(Status::default()));
            return STANDBY;
        };
        if let Err(error) = readings.read(&self.gateway).await {
            tracing::debug!(%error, "what there is to do could not be read");
        }
        let reading = readings.last();
        let settings = kept.set.as_ref().map_or(&self.config.configured, |set| &set.settings);
        let last = kept.decisions.back();
        // What was decided and not kept counts for nothing.
        acting.policy.kept(last.map(|decision| decision.desired));
        let now = Now { mono: env.mono(), wall: env.wall() };
        let mut decision = acting.policy.decide(now, settings, reading);
        let trouble = self.launcher.trouble().or(decision.trouble);
        decision.trouble = trouble.map(|trouble| trouble.chars().take(TROUBLE_CHARS_MAX).collect::<String>());
        self.shown.store(Arc::new(Status { leads: true, decision: Some(decision.clone()) }));

        let changed = last.is_none_or(|last| last.desired != decision.desired || last.inputs.settings != *settings);
        let due = acting.recorded.as_ref().is_none_or(|(at, trouble)| {
            let since = now.mono.since(*at);
            since >= RECORD_EVERY || (since >= TROUBLE_EVERY && *trouble != decision.trouble)
        });
        let mut desired = last.map(|last| last.desired);
        if changed || due {
            if decision.desired != decision.before {
                tracing::info!(desired = decision.desired, before = decision.before, reason = decision.reason, "cells");
            }
            match self.gateway.record_decision(&acting.leader, Arc::new(decision.clone())).await {
                Ok(true) => {
                    acting.recorded = Some((now.mono, decision.trouble));
                    acting.renewed = now.mono;
                    desired = Some(decision.desired);
                }
                // Another decides: the next look says so.
                Ok(false) => return STANDBY,
                Err(error) => tracing::warn!(%error, "a decision may not have been kept: the size holds"),
            }
        }
        if let Some(desired) = desired {
            self.launcher.want(Wanted { desired, members: readings.members() });
        }
        EVERY
    }

    /// Without any cell nobody keeps who decides, and there will be none until somebody acts. Then the
    /// controller that has been there longest asks for the fewest.
    async fn begin(&self) {
        let Some(member) = &self.config.member else { return };
        let Ok(members) = self.gateway.process().bus.members().await else { return };
        let of = |role| members.iter().filter(move |member| member.role == role);
        let first = of(Role::Controller).min_by_key(|controller| (controller.joined_at, &controller.cell));
        if of(Role::Cell).next().is_some() || first.is_none_or(|first| first.cell != *member) {
            return;
        }
        let settings = &self.config.configured;
        let desired = match settings.mode {
            Mode::Auto => settings.min.max(1),
            Mode::Fixed => settings.cells,
            // The size is an operator's to change, and none at all is a size.
            Mode::Paused => return,
        };
        tracing::info!(desired, "there is no cell: a first decision without any");
        self.launcher.want(Wanted { desired, members });
    }

    /// What it remembers if it is the one that decides; else it says that it would.
    async fn leads<'a>(&self, acting: &'a mut Option<Acting>, kept: &Scale) -> Option<&'a mut Acting> {
        let now = self.gateway.process().env.mono();
        let leader = kept.leader.as_ref().filter(|leader| leader.controller == self.config.id);
        let Some(leader) = leader else {
            *acting = None;
            self.would_lead().await;
            return None;
        };
        if acting.as_ref().is_some_and(|known| known.leader != *leader) {
            *acting = None;
        }
        let acting = acting.get_or_insert_with(|| {
            let desired = kept.decisions.back().map(|decision| decision.desired);
            let count = self.gateway.process().shard_count();
            let policy = Policy::new(self.config.tuning.clone(), count, desired);
            tracing::info!(controller = %self.config.id, term = %leader.term, "decides how many cells there are");
            Acting { leader: leader.clone(), policy, recorded: None, renewed: now }
        });
        if self.config.lease > Duration::ZERO && now.since(acting.renewed) >= self.config.lease / 3 {
            acting.renewed = now;
            self.would_lead().await;
        }
        Some(acting)
    }

    async fn would_lead(&self) {
        let item = ControlItem::ScaleLead { controller: self.config.id.clone(), lease: self.config.lease };
        let shard = ShardId::of_cluster(self.gateway.process().shard_count());
        if let Err(error) = self.gateway.control(shard, item).await {
            tracing::debug!(%error, "could not say that it would decide");
        }
    }
}
