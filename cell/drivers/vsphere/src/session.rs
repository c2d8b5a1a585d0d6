//! A session of one owner: signed in, renewed when it has lapsed, over when a newer owner has opened
//! the manager.
//!
//! The epoch is held by the vCenter as an empty folder `cellbus-epoch-<n>` in Cellbus's own folder: a
//! name can be taken once, so whichever owner looks after having made its own sees every newer one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, ManagerName};
use cellbus_bus::secret::Secret;
use cellbus_cell::config::{Password, Vsphere};
use sha2::{Digest as _, Sha256};

use crate::soap::{Client, Failure};
use crate::vim::{LIMIT, Ref, Step, from, properties};
use crate::xml::{Element, text};

/// What folders that hold an epoch are named by.
const MARK: &str = "cellbus-epoch-";
/// Bytes of a file with a password.
const PASSWORD_BYTES_MAX: usize = 4_096;

/// The parts of a vCenter that are asked.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) collector: Ref,
    pub(crate) views: Ref,
    pub(crate) search: Ref,
    pub(crate) tasks: Ref,
    sessions: Ref,
}

/// Where Cellbus is at home in it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) datacenter: Ref,
    pub(crate) vm_folder: Ref,
    pub(crate) folder: Ref,
}

#[derive(Clone)]
struct Opened {
    epoch: Epoch,
    content: Arc<Content>,
    place: Arc<Place>,
}

/// A session.
pub(crate) struct Session {
    client: Client,
    vsphere: Vsphere,
    manager: ManagerName,
    identity: String,
    opened: Mutex<Option<Opened>>,
    /// Sign-ins, one at a time; the count tells whether somebody else has just done it.
    signing_in: tokio::sync::Mutex<()>,
    signed_in: AtomicU64,
    revoked: AtomicBool,
}

impl Session {
    /// # Errors
    /// When there can be no client.
    pub(crate) fn new(
        vsphere: &Vsphere,
        manager: &ManagerName,
        tls: rustls::ClientConfig,
        epoch: Epoch,
        env: Env,
    ) -> Result<Self, String> {
        let identity = identity(vsphere, manager);
        let agent = agent(&identity, epoch);
        Ok(Self {
            client: Client::new(&vsphere.address, tls, &agent, env)?,
            vsphere: vsphere.clone(),
            manager: manager.clone(),
            identity,
            opened: Mutex::default(),
            signing_in: tokio::sync::Mutex::default(),
            signed_in: AtomicU64::new(0),
            revoked: AtomicBool::new(false),
        })
    }

    pub(crate) fn env(&self) -> &Env {
        self.client.env()
    }
    fn opened(&self) -> Result<Opened, Failure> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Failure::Revoked)
    }
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.opened().ok().map(|opened| opened.epoch)
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
        tracing::info!(manager = %self.manager, "the session is over; signing in again");
        let content = self.sign_in().await?;
        let epochs = self.epochs(&content, &opened.place.folder).await?;
        match epochs.iter().map(|(epoch, _)| *epoch).max() {
            Some(newest) if newest > opened.epoch => {
                self.leave(&content).await;
                self.revoked.store(true, Ordering::Release);
                return Err(Failure::Revoked);
            }
            Some(newest) if newest == opened.epoch => {}
            Some(_) | None => {
                self.leave(&content).await;
                return Err(older(&self.manager, opened.epoch));
            }
        }
        self.signed_in.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Takes the vCenter over under this epoch, ending older sessions of this manager's owners. It must
    /// hold an epoch at least as new as the `last` one that this process opened it under.
    pub(crate) async fn open(&self, epoch: Epoch, last: Option<Epoch>) -> Result<(), Failure> {
        let _one = self.signing_in.lock().await;
        if self.revoked.load(Ordering::Acquire) {
            return Err(Failure::Revoked);
        }
        let content = self.sign_in().await?;
        let opening = async {
            let place = self.find_place(&content).await?;
            let newest = |epochs: &[(Epoch, Ref)]| epochs.iter().map(|(epoch, _)| *epoch).max();
            let held = newest(&self.epochs(&content, &place.folder).await?);
            if held > Some(epoch) {
                return Err(Failure::Revoked);
            }
            if let Some(last) = last.filter(|last| held < Some(*last)) {
                return Err(older(&self.manager, last));
            }
            let name = format!("{MARK}{}", epoch.0);
            match self.raw("CreateFolder", &place.folder, &[text("name", name)]).await {
                Ok(_) => {}
                Err(Failure::Fault(fault)) if fault.kind == "DuplicateName" => {}
                Err(failure) => return Err(failure),
            }
            let epochs = self.epochs(&content, &place.folder).await?;
            if newest(&epochs) > Some(epoch) {
                return Err(Failure::Revoked);
            }
            self.end_others(&content, epoch).await?;
            for (_, mark) in epochs.iter().filter(|(older, _)| *older < epoch) {
                // Whatever somebody put into it is taken off the inventory at worst, never deleted. Where a
                // vCenter does not do that, it stays: it is only untidy.
                let _ = self.raw("UnregisterAndDestroy_Task", mark, &[]).await;
            }
            Ok(place)
        };
        match opening.await {
            Ok(place) => {
                let opened = Opened { epoch, content: Arc::new(content), place: Arc::new(place) };
                *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
                self.signed_in.fetch_add(1, Ordering::AcqRel);
                Ok(())
            }
            Err(failure) => {
                self.leave(&content).await;
                if matches!(failure, Failure::Revoked) {
                    self.revoked.store(true, Ordering::Release);
                }
                Err(failure)
            }
        }
    }

    // ── steps, none of which renews ──

    async fn raw(&self, method: &str, this: &Ref, parts: &[String]) -> Result<Element, Failure> {
        self.client.call(method, this, parts, LIMIT).await
    }

    async fn sign_in(&self) -> Result<Content, Failure> {
        let password = self
            .password()
            .await
            .map_err(|detail| Failure::Refused(cellbus_cell::driver::Error::Transient { detail }))?;
        self.client.forget();
        let root = Ref::new("ServiceInstance", "ServiceInstance");
        let answer = self.raw("RetrieveServiceContent", &root, &[]).await?;
        let content = answer.child("returnval");
        let part = |name: &str| {
            let found = content.and_then(|content| content.child(name)).and_then(Ref::of);
            found.ok_or_else(|| Failure::NoAnswer(format!("this is no vCenter: it has no {name}")))
        };
        let content = Content {
            collector: part("propertyCollector")?,
            views: part("viewManager")?,
            search: part("searchIndex")?,
            tasks: part("taskManager")?,
            sessions: part("sessionManager")?,
        };
        let parts = [text("userName", &self.vsphere.user), text("password", password.expose())];
        self.raw("Login", &content.sessions, &parts).await?;
        Ok(content)
    }

    /// Best effort: what is not ended lapses by itself.
    async fn leave(&self, content: &Content) {
        let _ = self.raw("Logout", &content.sessions, &[]).await;
        self.client.forget();
    }

    async fn password(&self) -> Result<Secret, String> {
        match &self.vsphere.password {
            Password::Variable(name) => match std::env::var(name) {
                Ok(password) if !password.is_empty() => Ok(Secret::new(password)),
                Ok(_) | Err(_) => Err(format!("vsphere.password_env: there is nothing in {name}")),
            },
            Password::File(file) => {
                let (disk, path) = (self.env().disk(), file.clone());
                let read = self.env().blocking("password", move || disk.read(&path)).await;
                let wrong = |why: &str| format!("vsphere.password_file: {}: {why}", file.display());
                let text = match read {
                    Some(Ok(Some(text))) if text.len() <= PASSWORD_BYTES_MAX => text,
                    Some(Ok(Some(_))) => return Err(wrong("it is too long for a password")),
                    Some(Ok(None)) => return Err(wrong("there is no such file")),
                    Some(Err(error)) => return Err(wrong(&error.to_string())),
                    None => return Err(wrong("it could not be read")),
                };
                let password = std::str::from_utf8(&text).map_err(|_| wrong("it is not UTF-8"))?;
                Ok(Secret::new(password.trim_end_matches(['\r', '\n'])))
            }
        }
    }

    async fn look_raw(&self, content: &Content, parts: &[String]) -> Result<Vec<crate::vim::Object>, Failure> {
        let filter = crate::vim::filter("specSet", parts);
        let options = "<options/>".to_owned();
        let answer = self.raw("RetrievePropertiesEx", &content.collector, &[filter, options]).await?;
        Ok(crate::vim::objects(&answer))
    }

    async fn find_place(&self, content: &Content) -> Result<Place, Failure> {
        let root = Ref::new("ServiceInstance", "ServiceInstance");
        let answer = self.raw("RetrieveServiceContent", &root, &[]).await?;
        let folder = answer.child("returnval").and_then(|content| content.child("rootFolder")).and_then(Ref::of);
        let folder = folder.ok_or_else(|| Failure::NoAnswer("there is no root folder".to_owned()))?;
        let step = Step { kind: "Folder", path: "childEntity", then: &["Folder.childEntity"] };
        let parts = [properties("Datacenter", &["name", "vmFolder"]), from(&folder, true, &[step])];
        let mut there = self.look_raw(content, &parts).await?;
        if let Some(wanted) = &self.vsphere.datacenter {
            there.retain(|datacenter| datacenter.text("name") == wanted);
        }
        let [datacenter] = there.as_slice() else {
            let many = there.len();
            let detail = match &self.vsphere.datacenter {
                Some(name) => format!("there are {many} datacenters named {name}, not one (vsphere.datacenter)"),
                None => format!("there are {many} datacenters: say in vsphere.datacenter which"),
            };
            return Err(Failure::Refused(cellbus_cell::driver::Error::Transient { detail }));
        };
        let vm_folder = datacenter.reference("vmFolder");
        let vm_folder = vm_folder.ok_or_else(|| Failure::NoAnswer("the datacenter has no VM folder".to_owned()))?;
        let parts = [vm_folder.xml("entity"), text("name", &self.vsphere.folder)];
        let found = self.raw("FindChild", &content.search, &parts).await?;
        let Some(folder) = found.child("returnval").and_then(Ref::of).filter(|found| found.kind == "Folder") else {
            return Err(Failure::Refused(cellbus_cell::driver::Error::Transient {
                detail: format!(
                    "the folder {} is not there: make it if this manager is new; if it is not, its vCenter has lost \
                     what it held, and nothing is done to it",
                    self.vsphere.folder
                ),
            }));
        };
        Ok(Place { datacenter: datacenter.this.clone(), vm_folder, folder })
    }

    /// The epochs that the vCenter holds, each with its folder.
    async fn epochs(&self, content: &Content, folder: &Ref) -> Result<Vec<(Epoch, Ref)>, Failure> {
        let step = Step { kind: "Folder", path: "childEntity", then: &[] };
        let parts = [properties("Folder", &["name"]), from(folder, true, &[step])];
        let there = match self.look_raw(content, &parts).await {
            // The folder itself is gone, and every epoch with it.
            Err(Failure::Fault(fault)) if fault.kind == "ManagedObjectNotFound" => Vec::new(),
            answered => answered?,
        };
        let epoch = |name: &str| name.strip_prefix(MARK)?.parse().ok().map(Epoch);
        Ok(there.into_iter().filter_map(|object| Some((epoch(object.text("name"))?, object.this))).collect())
    }

    /// Ends the sessions of this manager's older owners. A newer one means that this one is over.
    async fn end_others(&self, content: &Content, epoch: Epoch) -> Result<(), Failure> {
        let names = ["sessionList", "currentSession"];
        let parts = [properties("SessionManager", &names), from(&content.sessions, true, &[])];
        let there = self.look_raw(content, &parts).await?;
        let Some(manager) = there.first() else { return Ok(()) };
        let own = manager.properties.get("currentSession").map_or("", |own| own.text_of("key")).to_owned();
        let Some(list) = manager.properties.get("sessionList") else {
            // It takes a privilege to see them; those who lack it rely on the epoch alone.
            tracing::warn!(manager = %self.manager, "other sessions cannot be seen: older ones are not ended (Sessions.TerminateSession)");
            return Ok(());
        };
        let mut others = Vec::new();
        for session in &list.children {
            let Some(theirs) = epoch_of(&self.identity, session.text_of("userAgent")) else { continue };
            if theirs > epoch {
                return Err(Failure::Revoked);
            }
            if session.text_of("key") != own {
                others.push(session.text_of("key").to_owned());
            }
        }
        for key in others {
            match self.raw("TerminateSession", &content.sessions, &[text("sessionId", key)]).await {
                Ok(_) => {}
                // It has ended by itself.
                Err(Failure::Fault(fault)) if fault.kind == "NotFound" => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}

/// The vCenter answers, and does not hold what it held: nothing may be concluded from what is not there.
fn older(manager: &ManagerName, epoch: Epoch) -> Failure {
    Failure::NoAnswer(format!(
        "{manager} came back without the epoch {epoch} that it was opened under: it is empty, or older than it was, and \
         nothing is done to it; a folder {MARK}{epoch} in Cellbus's own says that it is to be taken as it is now"
    ))
}

/// What tells the sessions of one manager from those of others at the same vCenter.
fn identity(vsphere: &Vsphere, manager: &ManagerName) -> String {
    let datacenter = vsphere.datacenter.as_deref().unwrap_or("");
    let digest = Sha256::digest(format!("{datacenter}/{}/{manager}", vsphere.folder).as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
fn agent(identity: &str, epoch: Epoch) -> String {
    format!("cellbus/{} ({identity}; {})", env!("CARGO_PKG_VERSION"), epoch.0)
}
fn epoch_of(identity: &str, agent: &str) -> Option<Epoch> {
    let (_, rest) = agent.strip_prefix("cellbus/")?.split_once(" (")?;
    let (of, epoch) = rest.strip_suffix(')')?.split_once("; ")?;
    (of == identity).then(|| epoch.parse().ok().map(Epoch))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_told_apart_by_manager_and_epoch() {
        assert_eq!(epoch_of("ab", &agent("ab", Epoch(7))), Some(Epoch(7)));
        assert_eq!(epoch_of("cd", &agent("ab", Epoch(7))), None);
        for other in ["", "cellbus/1", "cellbus/1 (ab; x)", "govc/0.51", "cellbus/1 (ab; 7"] {
            assert_eq!(epoch_of("ab", other), None, "{other}");
        }
    }
}
