//! Hosts that operators call dead: the driver is told, with the VMs that the directory knows there.
//!
//! Of a vCenter, the vCenter knows what stood on such a host. Where the hosts are all that there is, nobody
//! but the directory does, and an owner that comes after the host died has never read it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::env::Mono;
use cellbus_bus::ids::HostId;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::done::Done;
use super::{Front, Work, said};
use crate::driver::{Error, FencedHost};

/// How often the driver is told again: the directory may have been behind, and VMs leave such a host.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// How soon again where it could not be told.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a host may take to show that it is alive.
const ALIVE_LIMIT: Duration = Duration::from_secs(20);

/// What the driver was told last.
#[derive(Default)]
pub(super) struct Fences {
    telling: bool,
    told_at: Option<Mono>,
    told: BTreeSet<HostId>,
}

impl Fences {
    /// As they are once the manager is open: it was told of these before, and is told again, as not every manager
    /// can be told before.
    pub(super) fn told(hosts: &BTreeSet<HostId>) -> Self {
        Self { telling: false, told_at: None, told: hosts.clone() }
    }
}

impl Front {
    /// Asks the driver whether an operator may call a host dead, and tells whoever asked, who may have gone. By
    /// itself: the manager may not be open, and that host why.
    pub(super) fn may_be_fenced(&self, host: HostId, back: oneshot::Sender<Result<(), String>>) {
        let (driver, env) = (Arc::clone(&self.driver), self.env.clone());
        self.env.spawn("may a host be called dead", async move {
            let answer = said(env.timeout(ALIVE_LIMIT, driver.may_be_fenced(&host)).await);
            let _ = back.send(answer.map_err(|error| match error {
                Error::Invalid { detail } => detail,
                other => other.to_string(),
            }));
        });
    }

    /// Tells the driver of all hosts that operators call dead. Without the directory it is not told: of VMs that it has
    /// not heard of it would say that they are nowhere.
    pub(super) fn telling_of_fences(&self) -> BoxFuture<'static, Result<(), Error>> {
        let manager = self.id();
        let hosts: Vec<HostId> = self.orders.fenced.iter().cloned().collect();
        let (driver, outside) = (Arc::clone(&self.driver), Arc::clone(&self.outside));
        Box::pin(async move {
            let mut fenced = Vec::new();
            for id in hosts {
                let vms = outside.listed(manager, Some(id.clone())).await;
                let vms =
                    vms.map_err(|detail| Error::Unreachable { detail: format!("what stood on {id}: {detail}") })?;
                fenced.push(FencedHost { id, vms });
            }
            driver.fenced(fenced).await
        })
    }

    /// Tells the driver, if that is due.
    pub(super) fn look_at_fences(&self, work: &mut Work, now: Mono) {
        let fences = &work.fences;
        let every = match (self.orders.fenced != fences.told, fences.told.is_empty()) {
            (true, _) => AGAIN,
            (false, false) => TELL_EVERY,
            (false, true) => return,
        };
        if fences.telling || fences.told_at.is_some_and(|at| now.since(at) < every) {
            return;
        }
        (work.fences.telling, work.fences.told_at) = (true, Some(now));
        let (hosts, telling) = (self.orders.fenced.clone(), self.telling_of_fences());
        let (env, limit) = (self.env.clone(), self.config.read_timeout);
        work.start(
            None,
            Box::pin(async move { Done::Fenced { hosts, result: said(env.timeout(limit, telling).await) } }),
        );
    }

    /// The driver was told.
    pub(super) fn fences_told(&self, work: &mut Work, hosts: BTreeSet<HostId>, result: Result<(), Error>) {
        work.fences.telling = false;
        match result {
            Ok(()) => {
                work.reread_wanted |= hosts != work.fences.told;
                work.fences.told = hosts;
            }
            Err(error) => {
                tracing::warn!(manager = %self.config.name, %error, "the driver could not be told which hosts are dead; trying again");
            }
        }
    }
}
