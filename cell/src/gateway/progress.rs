//! How far jobs are, found out when somebody looks.
//!
//! A job's home hears of its work on VMs of other shards only when that has ended: a report of every
//! step would cost each job another item from shard to shard and another record. What goes on in
//! between is known where the VM lives. So whoever shows a job that has not ended asks the homes of
//! its VMs, all that a cell has in one call; a home that does not answer leaves the row as the
//! directory has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::{JobId, VmId};
use cellbus_bus::job::JobKind;
use cellbus_directory::replica::JobFilter;
use cellbus_directory::{JobRow, JobState};
use cellbus_workflows::JobStatus;

use super::{Gateway, Page, Result};
use crate::peers::{Peer, Request, Response, WorkAnswer};

/// How long homes may take; they are asked all at once.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Of a job with more VMs, so many are asked how far they are. (All are asked whether they are parked.)
const CHILDREN_ASKED: u32 = 16;
/// Pages of the directory that are looked through for one page in a state that only homes know. What
/// is still missing then comes with the next page.
const PAGES_MAX: usize = 8;

impl Gateway {
    /// A page of jobs, by shard and id, as the directory has them, and the states of those that have
    /// not ended as the homes of their VMs do. A page may be short, or empty, and have a cursor.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the limit, or the cursor.
    pub async fn jobs(&self, filter: JobFilter, limit: usize, after: Option<&str>) -> Result<Page<JobRow>> {
        let wanted = filter.state;
        let asked = match wanted {
            None => filter,
            // These are as the directory says.
            Some(JobState::Queued | JobState::Succeeded | JobState::Failed | JobState::Cancelled) => filter,
            // In the directory they may have another state, though none that is an outcome.
            Some(JobState::Accepted | JobState::Waiting | JobState::Running | JobState::Parked) => {
                JobFilter { state: None, open: true, ..filter }
            }
        };
        let (mut pages, mut from) = (0, after.map(str::to_owned));
        loop {
            let page = self.directory().jobs(&asked, limit, from.as_deref()).await?;
            let (mut items, next) = (page.items, page.next);
            self.look_at(&mut items).await;
            items.retain(|row| wanted.is_none_or(|wanted| row.state == wanted));
            pages += 1;
            if !items.is_empty() || next.is_none() || pages == PAGES_MAX {
                return Ok(Page { items, next });
            }
            from = next;
        }
    }

    /// Fills in how far jobs are that have not ended.
    pub(super) async fn look_at_all(&self, statuses: impl IntoIterator<Item = &mut JobStatus>) {
        // The home of a job that makes its own VM is that VM's, and has said all.
        let open = |status: &&mut JobStatus| !status.row.state.ended() && !status.row.makes_its_own_vm();
        let mut open: Vec<&mut JobStatus> = statuses.into_iter().filter(open).collect();
        let mut rows: Vec<JobRow> = open.iter().map(|status| status.row.clone()).collect();
        let why = self.look_at(&mut rows).await;
        for ((status, row), why) in open.iter_mut().zip(rows).zip(why) {
            status.row = row;
            if !why.is_empty() {
                status.waits_for = why;
            }
        }
    }

    /// Fills in the states of those rows that have not ended; gives what each waits for, in words.
    async fn look_at(&self, rows: &mut [JobRow]) -> Vec<String> {
        let mut why = vec![String::new(); rows.len()];
        let open: Vec<usize> = (0..rows.len()).filter(|index| !rows[*index].state.ended()).collect();
        if open.is_empty() {
            return why;
        }
        let mut works: Vec<(usize, (VmId, JobId))> = Vec::new();
        for index in &open {
            let row = &rows[*index];
            let vms: Vec<VmId> = match row.vm {
                Some(vm) => vec![vm],
                None if row.kind == JobKind::Provision => {
                    (0..row.vms_total.min(CHILDREN_ASKED)).map(|child| row.id.vm(child)).collect()
                }
                None => Vec::new(),
            };
            works.extend(vms.into_iter().map(|vm| (*index, (vm, row.id))));
        }
        let parents = open.iter().any(|index| rows[*index].vms_total > 1);
        let (answers, parked) = futures::future::join(self.works(&works), async {
            if parents { self.parked_jobs().await } else { BTreeSet::new() }
        })
        .await;
        let mut of_row: BTreeMap<usize, Vec<WorkAnswer>> = BTreeMap::new();
        for ((index, _), answer) in works.iter().zip(answers) {
            of_row.entry(*index).or_default().extend(answer);
        }
        for index in open {
            let row = &mut rows[index];
            if parked.contains(&row.id) {
                row.state = JobState::Parked;
                "an operator: work on some of its VMs is parked".clone_into(&mut why[index]);
            } else if let Some(furthest) = of_row.remove(&index).and_then(|works| furthest(row, works)) {
                row.state = furthest.state;
                why[index] = furthest.waits_for;
            }
        }
        why
    }

    /// How far each of these works is, as the homes of the VMs know it.
    async fn works(&self, works: &[(usize, (VmId, JobId))]) -> Vec<Option<WorkAnswer>> {
        let process = &self.inner.process;
        let mut by_peer: BTreeMap<Arc<Peer>, Vec<usize>> = BTreeMap::new();
        for (at, (_, (vm, _))) in works.iter().enumerate() {
            if let Some(route) = process.routes.of(vm.shard(process.count)) {
                by_peer.entry(Arc::clone(&route.peer)).or_default().push(at);
            }
        }
        let asked = by_peer.into_iter().map(|(peer, places)| async move {
            let request = Request::Works(places.iter().map(|at| works[*at].1).collect());
            (process.env.timeout(ASK_LIMIT, self.ask(&peer, request)).await, places)
        });
        let mut found = vec![None; works.len()];
        for (answer, places) in futures::future::join_all(asked).await {
            let Some(Ok(Response::Works(answers))) = answer else { continue };
            for (at, answer) in places.into_iter().zip(answers) {
                found[at] = answer;
            }
        }
        found
    }

    /// Jobs with parked work, on whatever VM.
    async fn parked_jobs(&self) -> BTreeSet<JobId> {
        let asked = self.ask_all(Request::Parked);
        let Some(Ok(answers)) = self.inner.process.env.timeout(ASK_LIMIT, asked).await else { return BTreeSet::new() };
        let parked = answers.into_iter().filter_map(|(_, answer)| match answer {
            Some(Response::Parked(parked)) => Some(parked),
            Some(_) | None => None,
        });
        parked.flatten().map(|(job, _)| job).collect()
    }
}

/// How far a job is whose work on some VMs is so far.
fn furthest(row: &JobRow, works: Vec<WorkAnswer>) -> Option<WorkAnswer> {
    if row.vms_total == 1 {
        return works.into_iter().next();
    }
    // Some children have ended already: it is under way, whatever the others wait for.
    if row.state == JobState::Running {
        return None;
    }
    let rank = |state: JobState| match state {
        JobState::Running => 3,
        JobState::Parked => 2,
        JobState::Waiting => 1,
        JobState::Queued | JobState::Accepted | JobState::Succeeded | JobState::Failed | JobState::Cancelled => 0,
    };
    works.into_iter().filter(|work| rank(work.state) > 0).max_by_key(|work| rank(work.state))
}
