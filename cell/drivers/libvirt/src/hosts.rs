//! The hosts of a manager: connections that are opened when they are needed, and calls on them, a
//! bounded number at once and off the async threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, HostId, ShortName, VmId};
use cellbus_bus::job::Labels;
use cellbus_cell::config::LibvirtHost;
use cellbus_cell::driver::{Change, Error, HeldVm};
use tokio::sync::Semaphore;
use uuid::Uuid;
use virt::connect::Connect;

use crate::adopted::Adopted;
use crate::calls;
use crate::changes::Changes;
use crate::errors::{self, Failure};
use crate::events::{self, Event, Sink};
use crate::fences::{Fenced, Fences};
use crate::room::{Room, Taken};

/// Calls of one manager under way at once. Each holds a thread.
const CALLS_MAX: usize = 32;
/// Calls on one host: libvirtd serves 5 of one connection at once by default. So a host that hangs does
/// not take the threads of the others.
const CALLS_OF_HOST_MAX: usize = 4;
/// A host that has not answered a call by then is taken to be away. What it was asked may still be done.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// A connection to which nothing comes back for five times so many seconds is closed.
const KEEP_ALIVE_SECONDS: i32 = 5;

/// One host.
pub(crate) struct Host {
    pub(crate) name: HostId,
    uri: String,
    pub(crate) out: bool,
    gear: Option<ShortName>,
    calls: Arc<Semaphore>,
    connection: Mutex<Option<Arc<Connect>>>,
    /// What is given out of it; `None` while nobody has counted, or when others changed it. Held while
    /// a domain is defined, so that two creates do not take the same room.
    pub(crate) taken: tokio::sync::Mutex<Option<Taken>>,
    stale: Arc<AtomicBool>,
    /// What it has, as last seen.
    pub(crate) room: Mutex<Option<Room>>,
    /// What was on it when a session last read it.
    pub(crate) seen: Mutex<Option<Seen>>,
    pub(crate) adopted: Arc<Adopted>,
    /// Held by whoever makes `adopted` true again.
    pub(crate) settling: tokio::sync::Mutex<()>,
    changes: Arc<Changes>,
}

/// What was on a host.
pub(crate) struct Seen {
    /// Which session has read it.
    pub(crate) epoch: Epoch,
    pub(crate) vms: BTreeMap<VmId, HeldVm>,
    /// Domains of others.
    pub(crate) foreign: BTreeSet<Uuid>,
    /// VMs that were sent there since.
    pub(crate) sent: BTreeSet<VmId>,
}

impl Host {
    pub(crate) fn new(host: &LibvirtHost, changes: Arc<Changes>) -> Self {
        Self {
            name: host.name.clone(),
            uri: host.uri.clone(),
            out: host.out,
            gear: host.gear.clone(),
            calls: Arc::new(Semaphore::new(CALLS_OF_HOST_MAX)),
            connection: Mutex::default(),
            taken: tokio::sync::Mutex::new(None),
            stale: Arc::new(AtomicBool::new(true)),
            room: Mutex::default(),
            seen: Mutex::default(),
            adopted: Arc::default(),
            settling: tokio::sync::Mutex::default(),
            changes,
        }
    }

    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }
    /// What jobs may ask of it.
    pub(crate) fn labels(&self) -> Labels {
        self.gear.iter().map(|gear| ("gear".to_owned(), gear.to_string())).collect()
    }

    /// Whether what is known to be given out may be wrong by now; asked, it is taken to be known.
    pub(crate) fn was_stale(&self) -> bool {
        self.stale.swap(false, Ordering::AcqRel)
    }
    pub(crate) fn make_stale(&self) {
        self.stale.store(true, Ordering::Release);
    }

    fn unreachable(&self, why: &str) -> Error {
        Error::Unreachable { detail: format!("host {}: {why}", self.name) }
    }

    /// The connection, opened if there is none or the last one broke. Blocks.
    pub(crate) fn connected(&self) -> Result<Arc<Connect>, Error> {
        let mut slot = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*slot {
            if open.is_alive().unwrap_or(false) {
                return Ok(Arc::clone(open));
            }
            *slot = None;
        }
        events::start_loop();
        let opened = Connect::open(Some(&self.uri)).map_err(|error| self.unreachable(error.message()))?;
        // The test driver has none.
        let _ = opened.set_keep_alive(KEEP_ALIVE_SECONDS, 5);
        let (changes, stale, adopted) = (Arc::clone(&self.changes), Arc::clone(&self.stale), Arc::clone(&self.adopted));
        let sink: Sink = Arc::new(move |event| match event {
            Event::Vm(vm) => changes.push(Change::Vm(vm)),
            Event::Other(domain) => match adopted.heard(domain) {
                Some(vm) => changes.push(Change::Vm(vm)),
                None => {
                    stale.store(true, Ordering::Release);
                    // It may be a VM that somebody moved here.
                    changes.stirred.notify_waiters();
                }
            },
            Event::Closed => {
                stale.store(true, Ordering::Release);
                adopted.forget();
                changes.push(Change::Missed);
            }
        });
        if let Err(error) = events::listen(&opened, &sink) {
            tracing::warn!(host = %self.name, error = error.message(), "changes on this host are not heard of");
        }
        // What happened before is not known.
        self.stale.store(true, Ordering::Release);
        self.adopted.forget();
        let opened = Arc::new(opened);
        *slot = Some(Arc::clone(&opened));
        Ok(opened)
    }
}

/// All hosts of a manager.
pub(crate) struct Hosts {
    pub(crate) all: Vec<Arc<Host>>,
    pub(crate) env: Env,
    calls: Arc<Semaphore>,
    #[cfg(test)]
    pub(crate) trouble: crate::tests::trouble::Trouble,
}

impl Hosts {
    pub(crate) fn new(hosts: &[LibvirtHost], changes: &Arc<Changes>, env: Env) -> Self {
        Self {
            all: hosts.iter().map(|host| Arc::new(Host::new(host, Arc::clone(changes)))).collect(),
            env,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            #[cfg(test)]
            trouble: crate::tests::trouble::Trouble::default(),
        }
    }
    /// Those that are asked: not those that are out, nor those that are called dead.
    pub(crate) fn asked(&self, fenced: &Fenced) -> Vec<&Arc<Host>> {
        self.all.iter().filter(|host| !host.out && !fenced.has(&host.name)).collect()
    }
    /// The host that is to have a VM.
    ///
    /// # Errors
    /// [`Error::NoRoom`] if there is no such host, or it is called dead.
    pub(crate) fn by_name(&self, fenced: &Fenced, name: &HostId) -> Result<&Arc<Host>, Error> {
        let no_room = |detail| Error::NoRoom { detail };
        if fenced.has(name) {
            return Err(no_room(format!("host {name} is called dead")));
        }
        let host = self.all.iter().find(|host| !host.out && host.name == *name);
        host.ok_or_else(|| no_room(format!("there is no host {name}")))
    }

    /// Carries `work` out with a connection to the host, on a thread of its own. A call that is dropped
    /// goes on.
    ///
    /// # Errors
    /// [`Error::Unreachable`] for want of a connection or an answer, else what `work` says.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        host: &Arc<Host>,
        work: impl FnOnce(&Arc<Connect>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        #[cfg(test)]
        self.trouble.before_call_of(&host.name)?;
        // The host's first: whoever waits for it takes nothing from others.
        let permits = (Arc::clone(&host.calls).acquire_owned().await, Arc::clone(&self.calls).acquire_owned().await);
        let (Ok(_), Ok(_)) = &permits else { return Err(host.unreachable("the driver is shutting down")) };
        let on = Arc::clone(host);
        let called = self.env.blocking("libvirt call", move || {
            // Held by the thread, so that one that hangs counts until it is back.
            let _permits = permits;
            let connection = on.connected()?;
            work(&connection).map_err(|failure| errors::of(on.name.as_str(), failure))
        });
        match self.env.timeout(CALL_LIMIT, called).await {
            Some(Some(answer)) => answer,
            Some(None) => Err(host.unreachable("the driver is shutting down")),
            None => Err(host.unreachable("no answer in time")),
        }
    }
    /// A call that changes something. Just before it, the host is asked whether the session of this
    /// epoch still owns it.
    ///
    /// # Errors
    /// [`Error::Revoked`], else as [`Hosts::call`].
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        host: &Arc<Host>,
        session: &Session,
        work: impl FnOnce(&Arc<Connect>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        #[cfg(test)]
        self.trouble.before_change(&self.env).await?;
        let owner = session.owner.clone();
        let done = self
            .call(host, move |connection| {
                calls::own(connection, owner)?;
                work(connection)
            })
            .await;
        #[cfg(test)]
        let done = self.trouble.after_change(done);
        done
    }
}

/// One owner's time with the manager.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) epoch: Epoch,
    pub(crate) owner: calls::Ownership,
    /// What it was told of hosts that are dead.
    pub(crate) fences: Arc<Fences>,
    /// Whether it only looks, and changes nothing that nobody asked for.
    pub(crate) looks: bool,
}
