//! After a run: is everything there that must be, once, and nothing else?

use std::collections::BTreeMap;
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::ids::VmId;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use super::books::{Expected, LABEL};
use super::report::Report;
use super::target::{Audited, Target, TargetError};
use super::{Options, Phase, Progress};

/// The most ids of one look-up.
const LOCATE_MAX: usize = 10_000;
/// Look-ups at once.
const LOOKERS: usize = 4;
/// How long a cluster that is not ready is asked again, and managers that cannot be read count as being
/// opened: many times a lease, on a machine that has little time for it too. As long may a directory, which
/// follows the logs by a moment, lack what was made.
const PATIENCE: Duration = Duration::from_secs(60);
const TRY_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Check<'a> {
    pub(super) target: &'a dyn Target,
    pub(super) options: &'a Options,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a CancellationToken,
    pub(super) env: &'a Env,
}

/// How the VMs that are listed differ from those that must be there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    listed: u64,
    missing: u64,
    unexpected: u64,
    duplicates: u64,
}

impl Check<'_> {
    /// Does them all, as far as the options ask for them; whether VMs were listed and the directory audited.
    pub(super) async fn all(&self, run: &str, expected: &Expected, report: &mut Report) -> (bool, bool) {
        let (mut listed, mut audited) = (false, false);
        self.progress.phase(Phase::Checking);
        match self.settled(run, expected).await {
            Ok(found) => {
                report.vms_missing = found.missing;
                report.lost += found.missing;
                report.vms_unexpected = found.unexpected;
                report.duplicates = found.duplicates;
                report.directory_entries = found.listed;
                listed = true;
            }
            Err(error) => report.unchecked.push(format!("the VMs could not be listed: {error}")),
        }
        if !self.options.lookups.is_zero() && !expected.there.is_empty() && !self.stop.is_cancelled() {
            self.progress.phase(Phase::LookingUp);
            match self.lookups(&expected.there).await {
                Ok(rate) => report.lookups_per_second = rate,
                Err(error) => report.unchecked.push(format!("look-ups failed: {error}")),
            }
        }
        if self.options.audit && !self.stop.is_cancelled() {
            self.progress.phase(Phase::Auditing);
            match self.audited().await {
                Ok(found) => {
                    report.directory_entries = found.vms;
                    report.directory_mismatches = found.mismatches + found.unread;
                    report.duplicates += found.duplicates;
                    audited = true;
                }
                Err(error) => report.unchecked.push(format!("the audit failed: {error}")),
            }
        }
        report.interrupted |= self.stop.is_cancelled();
        (listed, audited)
    }

    async fn settled(&self, run: &str, expected: &Expected) -> Result<Difference, TargetError> {
        let found = async || Ok(difference(expected, &self.listed(run).await?));
        self.patiently(found, |found| found.missing == 0 && found.unexpected == 0).await
    }

    /// Again while managers cannot be read: after the loss of a cell, others are still opening its.
    async fn audited(&self) -> Result<Audited, TargetError> {
        self.patiently(async || self.target.audit().await, |found| found.unread == 0).await
    }

    /// Asks until the answer is one to rest on, or there is no more patience.
    async fn patiently<T>(
        &self,
        ask: impl AsyncFn() -> Result<T, TargetError>,
        settled: impl Fn(&T) -> bool,
    ) -> Result<T, TargetError> {
        let (began, patience) = (self.env.mono(), self.options.patience.min(PATIENCE));
        loop {
            let answer = ask().await;
            let again = match &answer {
                Ok(found) => !settled(found),
                Err(error) => error.later,
            };
            if !again || self.stop.is_cancelled() || self.env.mono().since(began) > patience {
                return answer;
            }
            self.env.sleep(TRY_PAUSE).await;
        }
    }

    async fn listed(&self, run: &str) -> Result<Vec<(VmId, String)>, TargetError> {
        let mut vms = Vec::new();
        for (tenant, _) in self.options.tenants.iter() {
            let mut cursor = None;
            loop {
                let page = self.target.vms(tenant.as_str(), (LABEL, run), cursor.as_deref()).await?;
                vms.extend(page.vms);
                match page.next {
                    Some(next) => cursor = Some(next),
                    None => break,
                }
            }
        }
        Ok(vms)
    }

    async fn lookups(&self, vms: &[VmId]) -> Result<f64, TargetError> {
        let began = self.env.mono();
        let lookers = (0..LOOKERS).map(|looker| async move {
            let calls: Vec<&[VmId]> = vms.chunks(LOCATE_MAX).collect();
            let (mut found, mut call) = (0, looker);
            while self.env.mono().since(began) < self.options.lookups && !self.stop.is_cancelled() {
                let asked = calls[call % calls.len()];
                let located = self.patiently(async || self.target.locate(asked).await, |_| true).await?;
                if located < asked.len() {
                    return Err(TargetError {
                        detail: format!("{} of {} VMs were not found", asked.len() - located, asked.len()),
                        later: false,
                    });
                }
                found += located;
                call += 1;
            }
            Ok(found)
        });
        let found: usize = join_all(lookers).await.into_iter().sum::<Result<usize, TargetError>>()?;
        Ok(found as f64 / self.env.mono().since(began).as_secs_f64())
    }
}

fn difference(expected: &Expected, listed: &[(VmId, String)]) -> Difference {
    let mut seen: BTreeMap<VmId, u64> = BTreeMap::new();
    let mut names: BTreeMap<&str, u64> = BTreeMap::new();
    for (id, name) in listed {
        *seen.entry(*id).or_default() += 1;
        *names.entry(name).or_default() += 1;
    }
    let missing = expected.there.iter().filter(|vm| !seen.contains_key(vm)).count() as u64;
    let mut known: Vec<VmId> = expected.there.iter().chain(&expected.unclear).copied().collect();
    known.sort_unstable();
    let unexpected = seen.keys().filter(|vm| known.binary_search(vm).is_err()).count() as u64;
    // A name belongs to one VM of the run: another id under it was made twice.
    let duplicates = names.values().map(|count| count - 1).sum();
    Difference { listed: seen.len() as u64, missing, unexpected, duplicates }
}

#[cfg(test)]
mod tests;
