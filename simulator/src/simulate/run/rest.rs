//! The end of a run: has everything come to rest, and do directories, managers and books agree then?

use std::collections::BTreeSet;
use std::time::Duration;

use cellbus_bus::ids::{JobId, ManagerId, VmId};
use cellbus_cell::gateway::Repairs;
use cellbus_directory::JobState;
use cellbus_directory::record::Operator;

use super::super::{books, checks};
use super::{ANSWER_LIMIT, Sabotage, VIOLATIONS_MAX, World};

/// How long an audit's repairs may take to show before there is another.
const AUDIT_AGAIN: Duration = Duration::from_secs(30);

impl World {
    /// Time is up: who has not come to rest, and what they say of it.
    pub(super) async fn not_at_rest(&self) {
        let cells = self.cells.all();
        for cell in &cells {
            if let Err(error) = cell.gateway.ready() {
                self.violated(format!("{} is not ready: {error}", cell.id), vec![cell.id.to_string()]);
            }
            for (shard, end) in self.bus.ends() {
                let applied = cell.replica.applied(shard);
                if applied < end {
                    let said = format!("{}: the directory has read shard {shard} to {applied} of {end}", cell.id);
                    self.violated(said, vec![cell.id.to_string()]);
                }
            }
            for (shard, why) in cell.tail.failed() {
                self.violated(format!("{}: the directory has given shard {shard} up: {why}", cell.id), Vec::new());
            }
        }
        if self.bus.ingress_open() > 0 {
            self.violated(format!("{} messages of ingress were never taken", self.bus.ingress_open()), Vec::new());
        }
        let open = self.producers.books.pages().open().clone();
        for job in open.into_iter().take(VIOLATIONS_MAX) {
            let mut about = vec![job.to_string()];
            let said = match cells.first() {
                Some(cell) => {
                    let ask = move |gateway: cellbus_cell::Gateway| async move { gateway.job(job).await };
                    match self.cells.ask(&self.env, cell, ANSWER_LIMIT, ask).await {
                        Some(Ok(status)) => {
                            about.extend(status.row.vm.map(|vm| vm.to_string()));
                            format!("{} and waits for {:?}", status.row.state, status.waits_for)
                        }
                        Some(Err(error)) => error.to_string(),
                        None => "no answer".to_owned(),
                    }
                }
                None => "there is no cell".to_owned(),
            };
            let asked = self.producers.books.pages().jobs.get(&job).map(|job| job.asked.clone());
            self.violated(format!("job {job} ({asked:?}) has not ended in time: {said}"), about);
        }
        if !self.producers.at_rest() {
            self.violated("a submission has not been answered in time".to_owned(), Vec::new());
        }
    }

    /// All jobs have ended: directories, managers and books must agree, soon.
    pub(super) async fn in_the_end(&self) {
        let patience = Duration::from_secs(120);
        let began = self.env.mono();
        let (mut audited, mut last_audit) = (false, began);
        loop {
            let truth = self.fleet.truth();
            let mut found = {
                let pages = self.producers.books.pages();
                let mut found = checks::jobs(&pages);
                // What a backup brought back is removed by hand when an audit has shown it.
                let left = |vm: &books::Vm| vm.restored && !audited;
                found.extend(checks::truth_against_books(&truth, &pages, left));
                found
            };
            let loose = |vm: &VmId| {
                let pages = self.producers.books.pages();
                let known = pages.vms.get(vm);
                !audited && known.is_none_or(|known| known.loose.is_some())
            };
            for cell in self.cells.all() {
                let whose = cell.id.as_str();
                found.extend(checks::directory_against_truth(whose, &cell.replica, &truth, loose));
            }
            if found.is_empty() && audited {
                break;
            }
            if found.is_empty() || self.env.mono().since(began) > patience && !audited {
                if !found.is_empty() {
                    found.into_iter().for_each(|(what, about)| self.violated(what, about));
                    return;
                }
                // What was changed behind our back may have been missed while a cell was dying: that
                // is what audits are for.
                self.audit().await;
                (audited, last_audit) = (true, self.env.mono());
                self.env.sleep(Duration::from_secs(5)).await;
                continue;
            }
            if self.env.mono().since(began) > patience * 2 {
                found.into_iter().for_each(|(what, about)| self.violated(what, about));
                return;
            }
            if audited && self.env.mono().since(last_audit) > AUDIT_AGAIN {
                // A manager that did not answer in time was left out.
                last_audit = self.env.mono();
                self.audit().await;
            }
            self.env.sleep(Duration::from_secs(2)).await;
        }

        self.look();
        let replayed = checks::replays(&self.bus, self.config.shards, &self.limits);
        replayed.into_iter().for_each(|(what, about)| self.violated(what, about));
        let decided = self.nemesis.scaling.in_the_log();
        decided.into_iter().for_each(|(what, about)| self.violated(what, about));
        // With keys forgotten at once, jobs are too, and are not listed.
        if self.config.sabotage != Some(Sabotage::ForgetDedupe) {
            self.ask_after_jobs().await;
        }
    }

    /// What the API says of jobs is what their events said.
    async fn ask_after_jobs(&self) {
        let Some(cell) = self.cells.all().into_iter().next() else { return };
        let jobs: Vec<(JobId, Vec<books::Ended>)> = {
            let pages = self.producers.books.pages();
            pages.jobs.iter().take(300).map(|(id, job)| (*id, job.ended.iter().cloned().collect())).collect()
        };
        for (id, ended) in jobs {
            let ask = move |gateway: cellbus_cell::Gateway| async move { gateway.job(id).await };
            let state = match self.cells.ask(&self.env, &cell, ANSWER_LIMIT, ask).await {
                Some(Ok(status)) => Some(status.row.state),
                Some(Err(_)) | None => None,
            };
            let same = match ended.first() {
                None => true,
                Some(books::Ended::Succeeded) => state == Some(JobState::Succeeded),
                Some(books::Ended::Failed(_)) => state == Some(JobState::Failed),
                Some(books::Ended::Cancelled) => state == Some(JobState::Cancelled),
            };
            if !same {
                self.violated(format!("job {id} is {state:?}, and its event said {ended:?}"), vec![id.to_string()]);
            }
        }
    }

    async fn audit(&self) {
        let Some(cell) = self.cells.all().into_iter().next() else { return };
        let env = cell.env.clone();
        let ask = move |gateway: cellbus_cell::Gateway| async move {
            let by = || Operator { who: "simulated operator".to_owned(), from: "simulation".to_owned() };
            let id = gateway.audit_start(by()).await.ok()?;
            while gateway.audit(id).is_ok_and(|audit| audit.ended_at.is_none()) {
                env.sleep(Duration::from_millis(100)).await;
            }
            // Its effect is looked at afterwards.
            let _ = gateway.audit_repair(id, &Repairs::default(), by()).await;
            gateway.audit(id).ok()
        };
        let audit = self.cells.ask(&self.env, &cell, Duration::from_secs(120), ask).await.flatten();
        let Some(audit) = audit else { return };
        let elsewhere = audit.findings.iter().filter(|found| matches!(found.kind.as_str(), "unknown" | "duplicate"));
        let shown: BTreeSet<(VmId, ManagerId)> = elsewhere.map(|found| (found.vm, found.manager)).collect();
        self.remove_by_hand(&shown);
    }

    /// An operator removes the copies that backups brought back and that an audit has shown.
    fn remove_by_hand(&self, shown: &BTreeSet<(VmId, ManagerId)>) {
        let pages = self.producers.books.pages();
        for (vm, manager) in shown.iter().filter(|(vm, _)| pages.vms.get(vm).is_some_and(|known| known.restored)) {
            if let Some(faults) = self.fleet.faults(*manager) {
                self.history.add(self.executor.now(), || format!("*VM {vm} is removed by hand from manager {manager}"));
                faults.delete_vm(*vm);
            }
        }
    }
}
