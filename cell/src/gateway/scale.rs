//! How many cells there are to be: what operators set, what was decided, and what it rests on.

use std::collections::BTreeMap;
use std::time::Duration;

use cellbus_bus::contract::{Member, MemberState};
use cellbus_bus::ids::{CellId, ShardId};
use cellbus_directory::record::Operator;
use cellbus_directory::scale::{Decision, Mode, Settings};
use cellbus_workflows::autoscale::{ShardReading, size_max};
use cellbus_workflows::{ControlItem, Scale};

use super::{Error, Gateway, Result};
use crate::peers::{Peer, Request, Response};

/// How long a change is waited for until it can be read back.
const SET_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks.
const SET_POLL: Duration = Duration::from_millis(20);
/// The longest drain target and latency objective.
const TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The shortest.
const TIME_MIN: Duration = Duration::from_millis(100);

/// What an operator changes; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScaleChange {
    /// Who says how many.
    pub mode: Option<Mode>,
    /// How many, in mode fixed.
    pub cells: Option<u32>,
    /// The least, in mode auto.
    pub min: Option<u32>,
    /// The most, in mode auto.
    pub max: Option<u32>,
    /// How long what waits may take to be gone.
    pub drain_target: Option<Duration>,
    /// 99 of 100 jobs are to be started within this.
    pub latency_objective: Option<Duration>,
}

/// The cluster's size as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleShown {
    /// What is in force: set by an operator, or configured.
    pub settings: Settings,
    /// What is kept of it, with the last decision.
    pub kept: Scale,
    /// Cells that take shards.
    pub cells_active: u32,
    /// Cells that hand theirs over.
    pub cells_draining: u32,
}

/// What one look over all cells gives.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadRead {
    pub(crate) cells_active: u32,
    pub(crate) cells_draining: u32,
    pub(crate) members: Vec<Member>,
    pub(crate) in_line: u64,
    pub(crate) in_flight_max: Option<u32>,
    pub(crate) shards: BTreeMap<ShardId, ShardReading>,
}

impl Gateway {
    /// What the cluster's shard keeps of its size, with up to `limit` decisions, of those numbered
    /// below `before`.
    ///
    /// # Errors
    /// [`Error::ShardAway`].
    pub async fn scale(&self, limit: usize, before: Option<u64>) -> Result<Scale> {
        let shard = ShardId::of_cluster(self.inner.process.count);
        match self.ask_owner(shard, Request::Scale { limit, before }).await? {
            Response::Scale(scale) => Ok(*scale),
            _ => Err(super::confused()),
        }
    }

    /// As it is shown; `configured` is in force while no operator has set anything.
    ///
    /// # Errors
    /// [`Error::ShardAway`], [`Error::BusAway`].
    pub async fn scale_shown(&self, configured: &Settings) -> Result<ScaleShown> {
        let kept = self.scale(1, None).await?;
        let cells = self.live_cells().await?;
        let count = |state| cells.iter().filter(|member| member.state == state).count() as u32;
        let settings = kept.set.as_ref().map_or_else(|| configured.clone(), |set| set.settings.clone());
        Ok(ScaleShown {
            settings,
            kept,
            cells_active: count(MemberState::Active),
            cells_draining: count(MemberState::Draining),
        })
    }

    /// Changes what an operator sets. Durable and readable on return; in force within a second.
    ///
    /// # Errors
    /// [`Error::Invalid`] `invalid_scale`; as [`Gateway::submit`].
    pub async fn set_scale(&self, configured: &Settings, change: &ScaleChange, by: Operator) -> Result<ScaleShown> {
        let shown = self.scale_shown(configured).await?;
        let settings = self.changed_settings(&shown, change)?;
        let set = shown.kept.set.map(|set| set.at);
        let item = ControlItem::ScaleSet { settings: settings.clone(), by };
        let process = &self.inner.process;
        self.control(ShardId::of_cluster(process.count), item).await?;
        let began = process.env.mono();
        loop {
            let shown = self.scale_shown(configured).await?;
            let done = shown.settings == settings && shown.kept.set.as_ref().map(|set| set.at) >= set;
            // It is durable in any case; somebody else may have set something else since.
            if done || process.env.mono().since(began) > SET_LIMIT {
                return Ok(shown);
            }
            process.env.sleep(SET_POLL).await;
        }
    }

    /// What results from a change, if it makes sense.
    fn changed_settings(&self, shown: &ScaleShown, change: &ScaleChange) -> Result<Settings> {
        let invalid = |message: String| Err(Error::Invalid { code: "invalid_scale", message });
        let was = &shown.settings;
        let settings = Settings {
            mode: change.mode.unwrap_or(was.mode),
            cells: change.cells.unwrap_or(was.cells),
            min: change.min.unwrap_or(was.min),
            max: change.max.unwrap_or(was.max),
            drain_target: change.drain_target.unwrap_or(was.drain_target),
            latency_objective: change.latency_objective.unwrap_or(was.latency_objective),
        };
        let most = size_max(self.inner.process.count);
        for (name, value) in [("cells", settings.cells), ("min", settings.min), ("max", settings.max)] {
            if !(1..=most).contains(&value) {
                return invalid(format!("{name} is {value}; it may be 1 to {most}, a quarter of the shards"));
            }
        }
        if settings.min > settings.max {
            return invalid(format!("min is {} and max {}: the least is above the most", settings.min, settings.max));
        }
        if change.mode == Some(Mode::Fixed) && change.cells.is_none() {
            return invalid("mode fixed needs `cells`, how many there are to be".to_owned());
        }
        for (name, value) in
            [("drain_target", settings.drain_target), ("latency_objective", settings.latency_objective)]
        {
            if !(TIME_MIN..=TIME_MAX).contains(&value) {
                return invalid(format!("{name} is {:.3} s; it may be 0.1 to 86400", value.as_secs_f64()));
            }
        }
        Ok(settings)
    }

    /// One look at what all cells have to do. Shards that nobody speaks of are missing.
    ///
    /// # Errors
    /// [`Error::BusAway`].
    pub(crate) async fn read_load(&self) -> Result<LoadRead> {
        let mut read = LoadRead::default();
        for (member, answer) in self.ask_all(Request::Load).await? {
            match member.state {
                MemberState::Active => read.cells_active += 1,
                MemberState::Draining => read.cells_draining += 1,
            }
            read.members.push(member);
            let Some(Response::Load(load)) = answer else { continue };
            read.in_line += load.in_line;
            read.in_flight_max = read.in_flight_max.max(load.in_flight_max);
            for shard in load.shards {
                // While a shard moves two cells may speak of it.
                let newer = read.shards.get(&shard.shard).is_none_or(|known| known.epoch < shard.epoch);
                if newer {
                    read.shards.insert(shard.shard, shard);
                }
            }
        }
        Ok(read)
    }

    /// Has a cell hand its shards over and leave, as a controller has decided.
    ///
    /// # Errors
    /// Why it could not be asked.
    pub async fn retire_cell(&self, cell: &CellId, controller: &str) -> Result<(), String> {
        let cells = self.live_cells().await.map_err(|error| error.to_string())?;
        let Some(member) = cells.into_iter().find(|member| member.cell == *cell) else { return Ok(()) };
        let peer = Peer { cell: member.cell, address: member.address };
        let by = Operator { who: format!("controller {controller}"), from: "autoscaling".to_owned() };
        match self.ask(&peer, Request::Drain(by)).await? {
            Response::Draining => Ok(()),
            _ => Err(super::confused().to_string()),
        }
    }

    /// Puts a decision on the cluster's queue and waits until it can be read back; `false` if it is
    /// void, as another controller decides by now.
    ///
    /// # Errors
    /// As [`Gateway::submit`]; when it could not be read back in time it may yet come.
    pub(crate) async fn record_decision(
        &self,
        leader: &cellbus_directory::scale::Leader,
        decision: std::sync::Arc<Decision>,
    ) -> Result<bool> {
        let process = &self.inner.process;
        let shard = ShardId::of_cluster(process.count);
        let decided = self.scale(0, None).await?.decided;
        let item = ControlItem::ScaleDecided { leader: leader.clone(), decision: std::sync::Arc::clone(&decision) };
        self.control(shard, item).await?;
        let began = process.env.mono();
        loop {
            let kept = self.scale(1, None).await?;
            if kept.decided > decided && kept.decisions.back().is_some_and(|last| **last == *decision) {
                return Ok(true);
            }
            if kept.leader.as_ref() != Some(leader) {
                return Ok(false);
            }
            if process.env.mono().since(began) > SET_LIMIT {
                let reason = "a decision was not read back in time".to_owned();
                return Err(Error::ShardAway { shard, reason });
            }
            process.env.sleep(SET_POLL).await;
        }
    }
}
