//! How many cells there are to be: what operators set, who decides, what was decided.
//!
//! A controller that was overtaken may still send what it decided. Each that takes over gets a
//! higher term, and what names another term than the present one is void.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{ControllerId, Term};
use cellbus_directory::Record;
use cellbus_directory::record::Operator;
use cellbus_directory::scale::{DECISIONS_MAX, Decision, Leader, Mode, Settings};
use serde::{Deserialize, Serialize};

use super::Shard;
use crate::input::Context;

/// What an operator has set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleSet {
    /// What.
    pub settings: Settings,
    /// When.
    pub at: WallMs,
    /// Who.
    pub by: Operator,
}

/// What the cluster's shard keeps of its size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// What an operator has set, if one has.
    pub set: Option<ScaleSet>,
    /// Who decides.
    pub leader: Option<Leader>,
    /// How many decisions there have been: the number of the last.
    pub decided: u64,
    /// The last [`DECISIONS_MAX`], oldest first.
    pub decisions: VecDeque<Arc<Decision>>,
}

impl Scale {
    pub(super) fn set(&mut self, at: WallMs, settings: &Settings, by: &Operator) {
        self.set = Some(ScaleSet { settings: settings.clone(), at, by: by.clone() });
    }
    pub(super) fn led(&mut self, leader: &Leader) {
        self.leader = Some(leader.clone());
    }
    pub(super) fn decided(&mut self, decision: &Arc<Decision>) {
        if self.decisions.len() == DECISIONS_MAX {
            self.decisions.pop_front();
        }
        self.decided += 1;
        self.decisions.push_back(Arc::clone(decision));
    }
    /// The same with no more than `limit` decisions: the newest of those numbered below `before`.
    /// The number of the last of them is `decided` of the answer.
    #[must_use]
    pub fn newest(&self, limit: usize, before: Option<u64>) -> Self {
        let last = before.map_or(self.decided, |before| before.saturating_sub(1).min(self.decided));
        // Far fewer than fit a usize.
        let newer = (self.decided - last) as usize;
        let upto = self.decisions.len().saturating_sub(newer);
        let decisions = self.decisions.range(upto.saturating_sub(limit)..upto).cloned().collect();
        Self { set: self.set.clone(), leader: self.leader.clone(), decided: last, decisions }
    }
}

impl Shard {
    /// A controller would decide: it may if it does already, or nothing was heard of the one that
    /// does for `lease`.
    pub(super) fn would_lead(&mut self, ctx: &Context<'_>, controller: ControllerId, lease: Duration) {
        let term = match &self.state.scale.leader {
            Some(leader) if leader.controller == controller => {
                self.soft.leader_heard = ctx.now;
                return;
            }
            Some(_) if ctx.now.since(self.soft.leader_heard) < lease => return,
            Some(leader) => leader.term.next(),
            None => Term::ZERO.next(),
        };
        self.soft.leader_heard = ctx.now;
        self.record(ctx, Record::ScaleLed { leader: Leader { controller, term } });
    }

    pub(super) fn scale_decided(&mut self, ctx: &Context<'_>, by: &Leader, decision: Arc<Decision>) {
        if self.state.scale.leader.as_ref() != Some(by) {
            tracing::info!(controller = %by.controller, term = %by.term, "void: another controller decides");
            return;
        }
        self.soft.leader_heard = ctx.now;
        self.record(ctx, Record::ScaleDecided { term: by.term, decision });
    }
}

/// For the list of what operators have changed.
pub(super) fn in_words(settings: &Settings) -> String {
    let Settings { mode, cells, min, max, drain_target, latency_objective } = settings;
    match mode {
        Mode::Auto => format!(
            "scale: auto, {min} to {max} cells, what waits gone in {:.1} s, started within {:.1} s",
            drain_target.as_secs_f64(),
            latency_objective.as_secs_f64(),
        ),
        Mode::Fixed => format!("scale: fixed, {cells} cells"),
        Mode::Paused => "scale: paused".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Input;
    use crate::view::{CapacityView, ManagerNames};
    use crate::{ControlItem, Limits};
    use bytes::Bytes;
    use cellbus_bus::contract::Position;
    use cellbus_bus::ids::{Seq, ShardCount, ShardId};
    use cellbus_bus::job::Digest;
    use cellbus_directory::scale::{Direction, Inputs};

    const LEASE: Duration = Duration::from_secs(10);

    fn settings(cells: u32) -> Settings {
        let time = Duration::from_secs(60);
        Settings { mode: Mode::Fixed, cells, min: 1, max: 8, drain_target: time, latency_objective: time }
    }

    fn decision(desired: u32) -> Arc<Decision> {
        let inputs = Inputs {
            settings: settings(1),
            age: None,
            cells_active: None,
            cells_draining: None,
            unread: 0,
            waiting: 0,
            blocked: 0,
            running: 0,
            running_max: None,
            oldest: None,
            arrival: None,
            completion: None,
            cell_rate: None,
            shards_unknown: 0,
            wanted: None,
        };
        let (at, direction, reason) = (WallMs(u64::from(desired)), Direction::Out, "why".to_owned());
        Arc::new(Decision { at, desired, before: 1, direction, reason, trouble: None, inputs })
    }

    struct World {
        shard: Shard,
        now: WallMs,
        seq: u64,
    }
    impl World {
        fn new() -> Self {
            let count = ShardCount::DEFAULT;
            let shard = Shard::new(ShardId::of_cluster(count), count, Limits::for_shards(count));
            let mut world = Self { shard, now: WallMs(1_000_000), seq: 0 };
            world.opened();
            world
        }
        fn with(&mut self, act: impl FnOnce(&mut Shard, &Context<'_>)) {
            let (view, names) = (CapacityView::default(), ManagerNames::default());
            let pauses = cellbus_directory::Pauses::default();
            act(&mut self.shard, &Context { now: self.now, random: 1, view: &view, names: &names, pauses: &pauses });
            // What was decided is durable at once.
            if self.shard.take_batch().is_some() {
                self.seq += 1;
                self.shard.appended(Seq(self.seq), &names);
            }
        }
        fn opened(&mut self) {
            self.with(|shard, ctx| shard.opened(ctx));
        }
        fn says(&mut self, item: &ControlItem) {
            let body = item.encode();
            let at = Position { seq: self.shard.positions().1.seq.next(), digest: Digest::of(&body) };
            self.with(|shard, ctx| shard.handle(ctx, Input::Control { at, body }));
        }
        fn lead(&mut self, controller: &str) {
            self.says(&ControlItem::ScaleLead { controller: controller.parse().unwrap(), lease: LEASE });
        }
        fn decide(&mut self, controller: &str, term: u64, desired: u32) {
            let leader = Leader { controller: controller.parse().unwrap(), term: Term(term) };
            self.says(&ControlItem::ScaleDecided { leader, decision: decision(desired) });
        }
        fn leader(&self) -> (String, u64) {
            let leader = self.shard.scale().leader.clone().unwrap();
            (leader.controller.to_string(), leader.term.0)
        }
        fn desired(&self) -> Option<u32> {
            self.shard.scale().decisions.back().map(|decision| decision.desired)
        }
    }

    #[test]
    fn one_decides_and_what_an_older_one_decides_is_void() {
        let mut world = World::new();
        world.decide("a", 1, 9);
        assert_eq!(world.desired(), None, "nobody may decide yet");
        world.lead("a");
        world.lead("b");
        assert_eq!(world.leader(), ("a".to_owned(), 1));
        world.decide("a", 1, 3);
        // It is heard of by what it decides too.
        world.now = world.now.after(LEASE - Duration::from_secs(1));
        world.decide("a", 1, 4);
        world.now = world.now.after(LEASE - Duration::from_secs(1));
        world.lead("b");
        assert_eq!(world.leader().0, "a");
        // Killed in mid-decision: what it had sent comes after another has taken over.
        world.now = world.now.after(LEASE);
        world.lead("b");
        assert_eq!(world.leader(), ("b".to_owned(), 2));
        world.decide("a", 1, 99);
        world.decide("a", 2, 99);
        assert_eq!(world.desired(), Some(4));
        world.decide("b", 2, 5);
        assert_eq!(world.desired(), Some(5));
        // The owner of the shard changes: the one that decides has a whole lease to be heard of.
        world.now = world.now.after(LEASE * 5);
        world.opened();
        world.lead("a");
        assert_eq!(world.leader().0, "b");
        world.now = world.now.after(LEASE);
        world.lead("a");
        assert_eq!(world.leader(), ("a".to_owned(), 3));
    }

    #[test]
    fn the_last_thousand_are_kept_and_survive_a_snapshot() {
        let mut world = World::new();
        world.lead("a");
        (1..=1_100).for_each(|desired| world.decide("a", 1, desired));
        let by = Operator { who: "anonymous".to_owned(), from: "127.0.0.1".to_owned() };
        world.says(&ControlItem::ScaleSet { settings: settings(7), by: by.clone() });
        let scale = world.shard.scale();
        assert_eq!((scale.decided, scale.decisions.len()), (1_100, DECISIONS_MAX));
        assert_eq!(
            world.shard.changes().last().map(|change| (change.what.as_str(), &change.by)),
            Some(("scale: fixed, 7 cells", &by))
        );
        let page = scale.newest(2, None);
        assert_eq!(page.decisions.iter().map(|decision| decision.desired).collect::<Vec<_>>(), [1_099, 1_100]);
        let page = scale.newest(2, Some(1_099));
        assert_eq!((page.decided, page.decisions[1].desired), (1_098, 1_098));
        assert_eq!(scale.newest(10, Some(102)).decisions.len(), 1, "only 101 is left of those");
        assert!(scale.newest(10, Some(5)).decisions.is_empty() && scale.newest(0, None).decisions.is_empty());

        let snapshot = world.shard.snapshot(Seq(world.seq));
        let (id, count) = (world.shard.id(), ShardCount::DEFAULT);
        let restored = Shard::restore(id, count, Limits::for_shards(count), snapshot.clone()).unwrap();
        assert!(restored.same_state(&world.shard));
        assert_eq!(restored.scale(), world.shard.scale());

        // One that was written before there was a size to keep.
        let (machine, ..) = super::super::state::Machine::decode(&snapshot.machine).unwrap();
        let old = Bytes::from(cellbus_bus::codec::encode(&machine));
        let before = cellbus_directory::ShardSnapshot { machine: old, ..snapshot };
        let restored = Shard::restore(id, count, Limits::for_shards(count), before).unwrap();
        assert_eq!(restored.scale(), &Scale::default());
    }
}
