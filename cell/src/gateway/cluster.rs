//! The cluster as operators see it: cells, shards, managers, hosts, what waits.

use std::collections::BTreeMap;

use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::ids::{Epoch, HostId, ManagerId, ManagerName, Seq, ShardId};
use cellbus_bus::job::{Job, Request as JobRequest};
use cellbus_directory::{RefusalReason, Template};
use cellbus_workflows::Context;
use cellbus_workflows::placement::{Asked, Choice, RuledOut, choose, survey};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::{CellRow, DryRun, Error, Gateway, HostRow, ManagerRow, Page, QueueRow, Result, ShardRow, ShardState, What};
use crate::front::unknown_row;
use crate::peers::{Request, Response};

/// Shards whose queues the bus is asked about at once: one after the other, hundreds of them take seconds.
pub(crate) const DEPTHS_AT_ONCE: usize = 32;

impl Gateway {
    /// The live cells, by id.
    ///
    /// # Errors
    /// [`Error::BusAway`].
    pub async fn cells(&self) -> Result<Vec<CellRow>> {
        let (summaries, managers) =
            futures::future::join(self.ask_all(Request::Summary), self.ask_all(Request::Managers)).await;
        let managers: BTreeMap<_, _> = managers?.into_iter().map(|(member, answer)| (member.cell, answer)).collect();
        let rows = summaries?.into_iter().map(|(member, summary)| {
            let fronted = match managers.get(&member.cell) {
                Some(Some(Response::Managers(rows))) => rows.as_slice(),
                Some(_) | None => &[],
            };
            let (shards, reachable) = match &summary {
                Some(Response::Summary(summary)) => (summary.owned.len(), true),
                Some(_) | None => (0, false),
            };
            CellRow {
                id: member.cell,
                address: member.address,
                state: member.state,
                joined_at: member.joined_at,
                // Thousands at the most.
                shards: shards as u32,
                managers: fronted.len() as u32,
                running: fronted.iter().flat_map(|row| row.running.values()).sum(),
                waiting: fronted.iter().flat_map(|row| row.waiting.values()).sum(),
                reachable,
            }
        });
        let mut rows: Vec<CellRow> = rows.collect();
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(rows)
    }

    /// Every shard, in order.
    ///
    /// # Errors
    /// [`Error::BusAway`].
    pub async fn shards(&self) -> Result<Vec<ShardRow>> {
        let process = &self.inner.process;
        let mut rows: BTreeMap<ShardId, ShardRow> = BTreeMap::new();
        for (_, answer) in self.ask_all(Request::Shards).await? {
            let Some(Response::Shards(said)) = answer else { continue };
            for row in said {
                // While a shard moves two cells may speak of it: the one that has it open counts.
                let open = |row: &ShardRow| row.state == ShardState::Open;
                match rows.get(&row.shard) {
                    Some(known) if (open(known), known.epoch) >= (open(&row), row.epoch) => {}
                    Some(_) | None => {
                        rows.insert(row.shard, row);
                    }
                }
            }
        }
        let all = process.count.shards().map(|shard| {
            let row = rows.remove(&shard);
            async move {
                match row {
                    Some(row) => Ok(row),
                    None => self.unowned(shard).await,
                }
            }
        });
        futures::stream::iter(all).buffered(DEPTHS_AT_ONCE).try_collect().await
    }

    /// A shard that nobody speaks of.
    async fn unowned(&self, shard: ShardId) -> Result<ShardRow> {
        let process = &self.inner.process;
        let queue = |kind| Queue { shard, kind };
        // How far it has been read is in its log: what the bus still holds is the most there can be.
        let (jobs, control) = futures::try_join!(
            process.bus.depth(queue(QueueKind::Jobs), Seq::ZERO),
            process.bus.depth(queue(QueueKind::Control), Seq::ZERO)
        )?;
        Ok(ShardRow {
            shard,
            owner: None,
            epoch: process.routes.of(shard).map_or(Epoch::ZERO, |route| route.epoch),
            state: ShardState::Unowned,
            jobs_read: Seq::ZERO,
            control_read: Seq::ZERO,
            jobs_unread: jobs.messages,
            control_unread: control.messages,
            log_end: process.directory.applied(shard).unwrap_or_else(|| process.routes.end(shard)),
            tail_bytes: 0,
            vms: 0,
            jobs_open: 0,
            waiting: 0,
            running: 0,
            parked: 0,
        })
    }

    /// Every configured manager, in the order of their names.
    ///
    /// # Errors
    /// [`Error::BusAway`].
    pub async fn managers(&self) -> Result<Vec<ManagerRow>> {
        let mut said: BTreeMap<ManagerId, ManagerRow> = BTreeMap::new();
        for (_, answer) in self.ask_all(Request::Managers).await? {
            let Some(Response::Managers(rows)) = answer else { continue };
            for row in rows {
                if said.get(&row.id).is_none_or(|known| known.epoch <= row.epoch) {
                    said.insert(row.id, row);
                }
            }
        }
        let rows = self.inner.process.names.iter().map(|(name, id)| match said.remove(id) {
            Some(row) => row,
            None => unknown_row(name, None, Epoch::ZERO, "nobody fronts it at the moment"),
        });
        Ok(rows.collect())
    }

    /// The hosts of one manager, or of all, a page at a time; `after` is the `next` of the page before.
    ///
    /// # Errors
    /// [`Error::BusAway`], [`Error::NotFound`], [`Error::Invalid`] `invalid_cursor`.
    pub async fn hosts(&self, manager: Option<ManagerId>, after: Option<&str>, limit: usize) -> Result<Page<HostRow>> {
        let names = &self.inner.process.names;
        if let Some(manager) = manager
            && names.name(&manager).is_none()
        {
            return Err(Error::NotFound { what: What::Manager, id: manager.to_string() });
        }
        let after = match after {
            None => None,
            Some(text) => match text.split_once('/') {
                Some((manager, host)) => Some((manager.to_owned(), host.to_owned())),
                None => {
                    return Err(Error::Invalid {
                        code: "invalid_cursor",
                        message: "the cursor is not one of this list".to_owned(),
                    });
                }
            },
        };
        let from = |name: &ManagerName| after.as_ref().is_none_or(|(manager, _)| name.as_str() >= manager.as_str());
        let mut page = Page { items: Vec::new(), next: None };
        for (name, id) in names.iter().filter(|(name, id)| manager.is_none_or(|only| only == **id) && from(name)) {
            // A manager that nobody fronts, or that is being opened, has no rows now.
            for row in self.hosts_of(id).await.unwrap_or_default() {
                let seen = after
                    .as_ref()
                    .is_some_and(|(manager, host)| name.as_str() == manager && row.id.as_str() <= host.as_str());
                if seen {
                    continue;
                }
                if page.items.len() == limit {
                    page.next = page.items.last().map(|last: &HostRow| format!("{}/{}", last.manager_name, last.id));
                    return Ok(page);
                }
                page.items.push(row);
            }
        }
        Ok(page)
    }

    /// The hosts of a manager, from its owner.
    pub(super) async fn hosts_of(&self, manager: &ManagerId) -> Result<Vec<HostRow>> {
        let away = |reason: String| Error::ManagerAway { reason };
        let Some(route) = self.inner.process.routes.of_manager(manager) else {
            return Err(away("nobody fronts it at the moment".to_owned()));
        };
        match self.ask(&route.peer, Request::Hosts(*manager)).await.map_err(away)? {
            Response::Hosts(rows) => Ok(rows),
            Response::Failed { detail } => Err(away(detail)),
            _ => Err(away("it is being handed over".to_owned())),
        }
    }

    /// What waits.
    ///
    /// # Errors
    /// [`Error::BusAway`].
    pub async fn queue(&self) -> Result<QueueRow> {
        let (stats, shards) = futures::future::join(self.ask_all(Request::Stats), self.shards()).await;
        let mut row = QueueRow::default();
        let mut heard = 0;
        for (_, answer) in stats? {
            let Some(Response::Stats(stats)) = answer else { continue };
            for (_, stats) in stats {
                heard += 1;
                row.waiting += stats.waiting as u64;
                row.waiting_for_managers += stats.waiting_for_managers as u64;
                row.running += stats.running as u64;
                row.parked += stats.parked as u64;
                row.jobs_open += stats.jobs_open as u64;
                row.dead_letters += stats.dead_letters as u64;
                row.oldest_waiting_at = match (row.oldest_waiting_at, stats.oldest_waiting_at) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                for (tenant, waiting) in stats.waiting_by_tenant {
                    *row.waiting_by_tenant.entry(tenant).or_default() += waiting as u64;
                }
            }
        }
        for shard in shards? {
            // Of a shard that nobody has open it is not known how far it was read.
            if shard.state != ShardState::Unowned {
                row.unread += shard.jobs_unread;
                row.control_unread += shard.control_unread;
            }
        }
        row.shards_unknown = u32::from(self.inner.process.count.get()).saturating_sub(heard);
        Ok(row)
    }

    /// The manager that an operator means: its id or its configured name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn find_manager(&self, text: &str) -> Result<ManagerId> {
        let names = &self.inner.process.names;
        let by_name = text.parse().ok().and_then(|name| names.id(&name));
        let by_id = || text.parse().ok().filter(|id| names.name(id).is_some());
        by_name.or_else(by_id).ok_or_else(|| Error::NotFound { what: What::Manager, id: text.to_owned() })
    }

    /// The host that an operator means: `manager/host`, or a host's name where only one manager has it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub async fn find_host(&self, text: &str) -> Result<(ManagerId, HostId)> {
        let not_found = || Error::NotFound { what: What::Host, id: text.to_owned() };
        if let Some((manager, host)) = text.split_once('/') {
            let manager = self.find_manager(manager)?;
            let host: HostId = host.parse().map_err(|_| not_found())?;
            let there = self.hosts_of(&manager).await?.iter().any(|row| row.id == host);
            return if there { Ok((manager, host)) } else { Err(not_found()) };
        }
        let host: HostId = text.parse().map_err(|_| not_found())?;
        let ids: Vec<ManagerId> = self.inner.process.names.iter().map(|(_, id)| *id).collect();
        let rows = futures::future::join_all(ids.iter().map(|id| self.hosts_of(id))).await;
        let mut found = ids
            .iter()
            .zip(&rows)
            .filter(|(_, rows)| rows.as_ref().is_ok_and(|rows| rows.iter().any(|row| row.id == host)));
        match (found.next(), found.next()) {
            (Some((manager, _)), None) => Ok((*manager, host)),
            (Some(_), Some(_)) => Err(Error::Ambiguous { what: What::Host, name: text.to_owned() }),
            (None, _) => match rows.into_iter().find_map(Result::err) {
                // It may be one of theirs.
                Some(error) => Err(error),
                None => Err(not_found()),
            },
        }
    }

    /// Where a provision would go, were it submitted now. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] `not_a_provision`.
    pub fn dry_run(&self, job: &Job) -> Result<DryRun> {
        let JobRequest::Provision(provision) = &job.request else {
            let message = "only a provision can be tried without being done".to_owned();
            return Err(Error::Invalid { code: "not_a_provision", message });
        };
        let process = &self.inner.process;
        let (view, pauses) = (process.board.view(), process.pauses.pauses());
        let template = Template::of(provision);
        let asked = Asked {
            tenant: &job.tenant,
            size: provision.size,
            template: &template,
            only: None,
            refusals: &[],
            sibling: None,
            patient: false,
        };
        let mut detail = String::new();
        let mut pick = || {
            let context = Context {
                now: process.env.wall(),
                random: process.env.random_u64(),
                view: &view,
                names: &process.names,
                pauses: &pauses,
            };
            match choose(&context, &asked, |_| true) {
                Choice::Manager(manager) => Some(manager),
                Choice::Crowded => None,
                Choice::Later(why) => {
                    detail = why;
                    None
                }
                Choice::Nowhere(failure) => {
                    detail = failure.message;
                    None
                }
            }
        };
        let managers = (0..provision.count.min(100)).map(|_| pick()).collect();
        let context =
            Context { now: process.env.wall(), random: 0, view: &view, names: &process.names, pauses: &pauses };
        let survey = survey(&context, &asked);
        let mut ruled_out: BTreeMap<RefusalReason, u32> = BTreeMap::new();
        for (why, count) in survey.ruled_out {
            let reason = match why {
                RuledOut::Cordoned => RefusalReason::Cordoned,
                RuledOut::CircuitOpen | RuledOut::Unknown | RuledOut::Paused => RefusalReason::NotBegun,
                RuledOut::NoMatch | RuledOut::NotAsked => RefusalReason::NoMatch,
                RuledOut::NoRoom | RuledOut::Refused => RefusalReason::NoRoom,
            };
            *ruled_out.entry(reason).or_default() += u32::try_from(count).unwrap_or(u32::MAX);
        }
        if detail.is_empty() {
            detail = format!("{} of {} managers would do", survey.candidates.len(), survey.managers);
        }
        Ok(DryRun { managers, looked_at: u32::try_from(survey.managers).unwrap_or(u32::MAX), ruled_out, detail })
    }
}
