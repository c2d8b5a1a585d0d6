//! A session of one owner: renewed when it has lapsed, over when a newer owner has opened the manager.
//!
//! The epoch is held by the vCenter as an empty folder `cellbus-epoch-<n>` in Cellbus's own folder: a
//! name can be taken once, so whichever owner looks after having made its own sees every newer one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, ManagerName, VmId};
use cellbus_cell::config::Vsphere;

use crate::signing::{Content, Left, Memory, Place, SignedIn, Who, left_in, left_of, mark_name};
use crate::soap::{Client, Failure};
use crate::tasks::Followed;
use crate::vim::{LIMIT, Ref};
use crate::xml::{Element, text};

#[derive(Clone)]
struct Opened {
    epoch: Epoch,
    /// For looking at it alone: nothing was left there, and nothing may be changed.
    looks: bool,
    content: Arc<Content>,
    place: Arc<Place>,
}

/// A session.
pub(crate) struct Session {
    client: Client,
    who: Who,
    opened: Mutex<Option<Opened>>,
    /// Sign-ins, one at a time; the count tells whether somebody else has just done it.
    signing_in: tokio::sync::Mutex<()>,
    signed_in: AtomicU64,
    revoked: AtomicBool,
    told: AtomicBool,
    followed: Followed,
    adopted: Adopted,
}

/// VMs that were adopted, as far as this session has seen them: where each stands, and its instance UUID.
/// Neither that nor its name tells its id, so it cannot be searched for. What was seen once stays.
#[derive(Default)]
pub(crate) struct Adopted(Mutex<BTreeMap<VmId, (Ref, String)>>);

impl Adopted {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<VmId, (Ref, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn stands(&self, vm: VmId, at: &Ref, uuid: &str) {
        self.locked().insert(vm, (at.clone(), uuid.to_owned()));
    }
    pub(crate) fn of(&self, vm: &VmId) -> Option<(Ref, String)> {
        self.locked().get(vm).cloned()
    }
}

impl Session {
    /// # Errors
    /// When there can be no client.
    pub(crate) fn new(
        vsphere: &Vsphere,
        manager: &ManagerName,
        tls: rustls::ClientConfig,
        epoch: Epoch,
        memory: Arc<Mutex<Memory>>,
        env: Env,
    ) -> Result<Self, String> {
        let who = Who::new(vsphere, manager, memory);
        Ok(Self {
            client: Client::new(&vsphere.address, tls, &who.agent(epoch), env)?,
            who,
            opened: Mutex::default(),
            signing_in: tokio::sync::Mutex::default(),
            signed_in: AtomicU64::new(0),
            revoked: AtomicBool::new(false),
            told: AtomicBool::new(false),
            followed: Followed::default(),
            adopted: Adopted::default(),
        })
    }

    pub(crate) fn env(&self) -> &Env {
        self.client.env()
    }
    pub(crate) fn followed(&self) -> &Followed {
        &self.followed
    }
    pub(crate) fn adopted(&self) -> &Adopted {
        &self.adopted
    }
    fn opened(&self) -> Result<Opened, Failure> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Failure::Revoked)
    }
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.opened().ok().map(|opened| opened.epoch)
    }
    /// Whether it was opened under this epoch, and for that at the least.
    pub(crate) fn opened_as(&self, epoch: Epoch, looks: bool) -> bool {
        self.opened().is_ok_and(|opened| opened.epoch == epoch && (looks || !opened.looks))
    }
    /// What changes something is not for a session that looks.
    pub(crate) fn may_change(&self) -> Result<(), Failure> {
        if self.opened()?.looks { Err(Failure::Revoked) } else { Ok(()) }
    }
    /// Another has taken its place.
    pub(crate) fn end(&self) {
        self.revoked.store(true, Ordering::Release);
    }
    pub(crate) fn content(&self) -> Result<Arc<Content>, Failure> {
        Ok(self.opened()?.content)
    }
    pub(crate) fn place(&self) -> Result<Arc<Place>, Failure> {
        Ok(self.opened()?.place)
    }

    /// A call. Where the session has lapsed it is renewed once, if no newer owner has opened the manager.
    pub(crate) async fn call(&self, method: &str, this: &Ref, parts: &[String]) -> Result<Element, Failure> {
        self.call_within(method, this, parts, LIMIT).await
    }

    pub(crate) async fn call_within(
        &self,
        method: &str,
        this: &Ref,
        parts: &[String],
        limit: Duration,
    ) -> Result<Element, Failure> {
        if self.revoked.load(Ordering::Acquire) {
            return Err(Failure::Revoked);
        }
        let before = self.signed_in.load(Ordering::Acquire);
        match self.client.call(method, this, parts, limit).await {
            Err(Failure::Fault(fault)) if fault.kind == "NotAuthenticated" => {
                self.renew(before).await?;
                self.client.call(method, this, parts, limit).await
            }
            answered => answered,
        }
    }

    async fn renew(&self, before: u64) -> Result<(), Failure> {
        let _one = self.signing_in.lock().await;
        let opened = self.opened()?;
        if self.signed_in.load(Ordering::Acquire) != before {
            return Ok(());
        }
        // Beside the session that others use: until it is known to be the vCenter that was opened, nobody
        // may read from it what is not there.
        let signed_in = SignedIn::new(self.client.signed_out(), &self.who).await?;
        let held = match signed_in.left(&opened.place.folder).await {
            Ok(left) if left.newest() > Some(opened.epoch) => Err(Failure::Revoked),
            Ok(left) => self.holds(&left, Some(opened.epoch).filter(|_| !opened.looks)),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = held {
            signed_in.leave().await;
            return Err(self.over(failure));
        }
        self.client.adopt(&signed_in.client);
        self.signed_in.fetch_add(1, Ordering::AcqRel);
        tracing::info!(manager = %self.who.manager, "the session was over, and is renewed");
        Ok(())
    }

    /// Takes the vCenter over under this epoch, ending older sessions of this manager's owners. It must
    /// hold an epoch at least as new as the last one that this process opened it under, and the newest mark
    /// that the manager's shard knows of. To look at it, as long as nobody has ever opened it to use it, it
    /// is enough to sign in.
    pub(crate) async fn open(&self, epoch: Epoch, looks: bool) -> Result<(), Failure> {
        let _one = self.signing_in.lock().await;
        if self.revoked.load(Ordering::Acquire) {
            return Err(Failure::Revoked);
        }
        let signed_in = SignedIn::new(self.client.signed_out(), &self.who).await?;
        let opening = async {
            let place = signed_in.place(looks).await?;
            let left = signed_in.left(&place.folder).await?;
            if left.newest() > Some(epoch) {
                return Err(Failure::Revoked);
            }
            let last = self.who.memory().opened;
            self.holds(&left, last)?;
            let looks = looks && left.newest().is_none();
            if !looks {
                signed_in.own(&place.folder, epoch).await?;
                signed_in.end_others(epoch).await?;
            }
            Ok((place, looks))
        };
        match opening.await {
            Ok((place, looks)) => {
                self.client.adopt(&signed_in.client);
                if !looks {
                    self.who.memory().opened = Some(epoch);
                }
                let opened = Opened { epoch, looks, content: Arc::new(signed_in.content), place: Arc::new(place) };
                *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
                self.signed_in.fetch_add(1, Ordering::AcqRel);
                Ok(())
            }
            Err(failure) => {
                signed_in.leave().await;
                Err(self.over(failure))
            }
        }
    }

    /// The vCenter must hold what was left there. That it does not is said once to whoever watches the log,
    /// and to every caller.
    fn holds(&self, left: &Left, epoch: Option<Epoch>) -> Result<(), Failure> {
        let held = self.who.holds(left, epoch);
        if let Err(failure) = &held
            && !self.told.swap(true, Ordering::AcqRel)
        {
            tracing::error!(manager = %self.who.manager, "{failure}");
        }
        held
    }

    /// Leaves a mark, newer than any that is there or was left before. The folder of the last is given
    /// another name, so that there is one at any time; an answer that was lost is found out by looking again.
    pub(crate) async fn mark(&self) -> Result<u64, Failure> {
        self.may_change()?;
        let folder = self.place()?.folder.clone();
        let left = left_of(self.retrieve(&left_in(&folder)).await)?;
        if left.newest() > self.epoch() {
            return Err(self.over(Failure::Revoked));
        }
        self.holds(&left, self.epoch())?;
        let last = left.marked();
        let mark = last.map_or(0, |(mark, _)| *mark) + 1;
        match last {
            Some((_, last)) => {
                self.carry_out("Rename_Task", last, &[text("newName", mark_name(mark))]).await?;
            }
            None => drop(self.call("CreateFolder", &folder, &[text("name", mark_name(mark))]).await?),
        }
        self.who.memory().mark = Some(mark);
        Ok(mark)
    }

    /// Remembers that a newer owner has opened the manager.
    fn over(&self, failure: Failure) -> Failure {
        if matches!(failure, Failure::Revoked) {
            self.revoked.store(true, Ordering::Release);
        }
        failure
    }
}
