//! Signed in and not in use yet: what has to hold of a vCenter before anything is asked of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellbus_bus::ids::{Epoch, ManagerName};
use cellbus_bus::secret::Secret;
use cellbus_bus::{Env, Mono};
use cellbus_cell::config::{Password, Vsphere};
use cellbus_cell::driver::Error;
use sha2::{Digest as _, Sha256};

use crate::soap::{Client, Failure};
use crate::vim::{LIMIT, Object, Ref, Step, from, properties};
use crate::xml::{Element, text};

/// What folders that hold an epoch are named by.
const EPOCH: &str = "cellbus-epoch-";
/// And the one that holds the newest mark.
const MARK: &str = "cellbus-mark-";
/// Bytes of a file with a password.
const PASSWORD_BYTES_MAX: usize = 4_096;

/// How long a password that was refused is not tried again: a vCenter locks accounts out after a few
/// wrong ones within three minutes.
const REFUSED: Duration = Duration::from_secs(90);

/// What a process remembers of a vCenter over its connections to it.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The epoch that it was opened under last.
    pub(crate) opened: Option<Epoch>,
    /// The newest mark that was left there, by this process or as its shard says.
    pub(crate) mark: Option<u64>,
    /// The digest of a password that was refused, and when.
    refused: Option<([u8; 32], Mono)>,
}

/// Who signs in, for which manager.
pub(crate) struct Who {
    pub(crate) vsphere: Vsphere,
    pub(crate) manager: ManagerName,
    /// What tells the sessions of this manager from those of others at the same vCenter.
    identity: String,
    memory: Arc<Mutex<Memory>>,
}

impl Who {
    pub(crate) fn new(vsphere: &Vsphere, manager: &ManagerName, memory: Arc<Mutex<Memory>>) -> Self {
        let datacenter = vsphere.datacenter.as_deref().unwrap_or("");
        let digest = Sha256::digest(format!("{datacenter}/{}/{manager}", vsphere.folder).as_bytes());
        let identity = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { vsphere: vsphere.clone(), manager: manager.clone(), identity, memory }
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the vCenter shows of a session under this epoch.
    pub(crate) fn agent(&self, epoch: Epoch) -> String {
        format!("cellbus/{} ({}; {})", env!("CARGO_PKG_VERSION"), self.identity, epoch.0)
    }
    fn epoch_of(&self, agent: &str) -> Option<Epoch> {
        let (_, rest) = agent.strip_prefix("cellbus/")?.split_once(" (")?;
        let (of, epoch) = rest.strip_suffix(')')?.split_once("; ")?;
        (of == self.identity).then(|| epoch.parse().ok().map(Epoch))?
    }

    /// The vCenter answers, and does not hold what it held: nothing may be concluded from what is not there.
    fn older(&self, missing: &[String]) -> Failure {
        Failure::NoAnswer(format!(
            "{} came back without what was left there: it is empty, or older than it was, and nothing is done to it; \
             the folder {} with {} in it says that it is to be taken as it is now",
            self.manager,
            self.vsphere.folder,
            missing.join(" and ")
        ))
    }

    /// Whether the vCenter holds everything that this process, or the manager's shard, knows to have been
    /// left there. `epoch`: the one that it must hold at the least.
    pub(crate) fn holds(&self, left: &Left, epoch: Option<Epoch>) -> Result<(), Failure> {
        let mark = self.memory().mark;
        let epoch = epoch.filter(|epoch| left.newest() < Some(*epoch)).map(|epoch| format!("{EPOCH}{epoch}"));
        let mark = mark.filter(|mark| left.mark() < Some(*mark)).map(|mark| format!("{MARK}{mark}"));
        let missing: Vec<String> = epoch.into_iter().chain(mark).collect();
        if missing.is_empty() { Ok(()) } else { Err(self.older(&missing)) }
    }

    async fn password(&self, env: &Env) -> Result<Secret, String> {
        let file = match &self.vsphere.password {
            Password::File(file) => file,
            Password::Variable(name) => {
                let set = std::env::var(name).ok().filter(|password| !password.is_empty());
                return set.map(Secret::new).ok_or_else(|| format!("vsphere.password_env: there is nothing in {name}"));
            }
        };
        let (disk, path) = (env.disk(), file.clone());
        let read = env.blocking("password", move || disk.read(&path)).await;
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

/// The parts of a vCenter that are asked.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) collector: Ref,
    pub(crate) views: Ref,
    pub(crate) search: Ref,
    pub(crate) tasks: Ref,
    sessions: Ref,
    root: Ref,
}

/// Where Cellbus is at home in it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) datacenter: Ref,
    pub(crate) vm_folder: Ref,
    pub(crate) folder: Ref,
}

/// What was left in Cellbus's folder.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Epochs, each with its folder.
    epochs: Vec<(Epoch, Ref)>,
    /// Marks, likewise: one, as a rule.
    marks: Vec<(u64, Ref)>,
}

impl Left {
    fn of(folders: Vec<Object>) -> Self {
        let number = |name: &str, kind| name.strip_prefix(kind)?.parse::<u64>().ok();
        let mut left = Self::default();
        for folder in folders {
            if let Some(epoch) = number(folder.text("name"), EPOCH) {
                left.epochs.push((Epoch(epoch), folder.this));
            } else if let Some(mark) = number(folder.text("name"), MARK) {
                left.marks.push((mark, folder.this));
            }
        }
        left
    }
    /// The newest epoch.
    pub(crate) fn newest(&self) -> Option<Epoch> {
        self.epochs.iter().map(|(epoch, _)| *epoch).max()
    }
    fn mark(&self) -> Option<u64> {
        self.marks.iter().map(|(mark, _)| *mark).max()
    }
    /// The newest mark, with its folder.
    pub(crate) fn marked(&self) -> Option<&(u64, Ref)> {
        self.marks.iter().max()
    }
}

/// Names, and what the folder itself is asked for.
pub(crate) fn left_in(folder: &Ref) -> [String; 2] {
    let step = Step { kind: "Folder", path: "childEntity", then: &[] };
    [properties("Folder", &["name"]), from(folder, true, &[step])]
}

pub(crate) fn left_of(answered: Result<Vec<Object>, Failure>) -> Result<Left, Failure> {
    match answered {
        // The folder itself is gone, and everything with it.
        Err(Failure::Fault(fault)) if fault.kind == "ManagedObjectNotFound" => Ok(Left::default()),
        answered => Ok(Left::of(answered?)),
    }
}

/// A mark's folder by name.
pub(crate) fn mark_name(mark: u64) -> String {
    format!("{MARK}{mark}")
}

/// Signed in, beside whatever session others use.
pub(crate) struct SignedIn<'a> {
    pub(crate) client: Client,
    pub(crate) content: Content,
    who: &'a Who,
}

fn not_yet(detail: String) -> Failure {
    Failure::Refused(Error::Transient { detail })
}

impl<'a> SignedIn<'a> {
    pub(crate) async fn new(client: Client, who: &'a Who) -> Result<Self, Failure> {
        let password = who.password(client.env()).await.map_err(not_yet)?;
        let service = Ref::new("ServiceInstance", "ServiceInstance");
        let answer = client.call("RetrieveServiceContent", &service, &[], LIMIT).await?;
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
            root: part("rootFolder")?,
        };
        let digest: [u8; 32] = Sha256::digest(password.expose().as_bytes()).into();
        let (now, refused) = (client.env().mono(), who.memory().refused);
        if refused.is_some_and(|(refused, at)| refused == digest && now.since(at) < REFUSED) {
            let detail = "the password was refused (InvalidLogin) a moment ago, and is not tried again yet".to_owned();
            return Err(not_yet(detail));
        }
        let parts = [text("userName", &who.vsphere.user), text("password", password.expose())];
        let answer = client.call("Login", &content.sessions, &parts, LIMIT).await;
        let wrong = matches!(&answer, Err(Failure::Fault(fault)) if fault.kind == "InvalidLogin");
        who.memory().refused = wrong.then_some((digest, now));
        answer?;
        Ok(Self { client, content, who })
    }

    /// Best effort: what is not ended lapses by itself.
    pub(crate) async fn leave(&self) {
        let _ = self.call("Logout", &self.content.sessions, &[]).await;
    }

    async fn call(&self, method: &str, this: &Ref, parts: &[String]) -> Result<Element, Failure> {
        self.client.call(method, this, parts, LIMIT).await
    }

    async fn look(&self, parts: &[String]) -> Result<Vec<Object>, Failure> {
        let filter = crate::vim::filter("specSet", parts);
        let answer = self.call("RetrievePropertiesEx", &self.content.collector, &[filter, "<options/>".into()]).await?;
        Ok(crate::vim::objects(&answer))
    }

    /// The datacenter and the folder that are configured. A manager that is looked at alone need not have the
    /// folder yet: the one that it will lie in stands for it, in which nothing is found that is Cellbus's.
    pub(crate) async fn place(&self, looks: bool) -> Result<Place, Failure> {
        let vsphere = &self.who.vsphere;
        let step = Step { kind: "Folder", path: "childEntity", then: &["Folder.childEntity"] };
        let mut there = self
            .look(&[properties("Datacenter", &["name", "vmFolder"]), from(&self.content.root, true, &[step])])
            .await?;
        if let Some(wanted) = &vsphere.datacenter {
            there.retain(|datacenter| datacenter.text("name") == wanted);
        }
        let [datacenter] = there.as_slice() else {
            let many = there.len();
            return Err(not_yet(match &vsphere.datacenter {
                Some(name) => format!("there are {many} datacenters named {name}, not one (vsphere.datacenter)"),
                None => format!("there are {many} datacenters: say in vsphere.datacenter which"),
            }));
        };
        let vm_folder = datacenter.reference("vmFolder");
        let vm_folder = vm_folder.ok_or_else(|| Failure::NoAnswer("the datacenter has no VM folder".to_owned()))?;
        let parts = [vm_folder.xml("entity"), text("name", &vsphere.folder)];
        let found = self.call("FindChild", &self.content.search, &parts).await?;
        let folder = found.child("returnval").and_then(Ref::of).filter(|found| found.kind == "Folder");
        let folder = folder.or_else(|| looks.then(|| vm_folder.clone()));
        let folder = folder.ok_or_else(|| {
            not_yet(format!(
                "the folder {} is not there: make it if this manager is new; if it is not, its vCenter has lost what it \
                 held, and nothing is done to it",
                vsphere.folder
            ))
        })?;
        Ok(Place { datacenter: datacenter.this.clone(), vm_folder, folder })
    }

    /// What was left in Cellbus's folder.
    pub(crate) async fn left(&self, folder: &Ref) -> Result<Left, Failure> {
        left_of(self.look(&left_in(folder)).await)
    }

    /// Writes down that this epoch has the manager, and drops older ones.
    pub(crate) async fn own(&self, folder: &Ref, epoch: Epoch) -> Result<(), Failure> {
        match self.call("CreateFolder", folder, &[text("name", format!("{EPOCH}{}", epoch.0))]).await {
            Ok(_) => {}
            Err(Failure::Fault(fault)) if fault.kind == "DuplicateName" => {}
            Err(Failure::Fault(fault)) if fault.kind == "NoPermission" => {
                let (user, folder) = (&self.who.vsphere.user, &self.who.vsphere.folder);
                return Err(Failure::Refused(Error::Permanent {
                    detail: format!(
                        "{user} may not write into the folder {folder} who owns the manager ({fault}): give it the role \
                         for managers that are used, or have the manager read-only before it is used at all"
                    ),
                }));
            }
            Err(failure) => return Err(failure),
        }
        let epochs = self.left(folder).await?.epochs;
        // Of two who do this at once, the later one to look sees both.
        if epochs.iter().any(|(other, _)| *other > epoch) {
            return Err(Failure::Revoked);
        }
        for (_, older) in epochs.iter().filter(|(older, _)| *older < epoch) {
            // Whatever somebody put into it is taken off the inventory at worst, never deleted. Where a
            // vCenter does not do that, it stays: it is only untidy.
            let _ = self.call("UnregisterAndDestroy_Task", older, &[]).await;
        }
        Ok(())
    }

    /// Ends the sessions of this manager's older owners. A newer one means that this one is over.
    pub(crate) async fn end_others(&self, epoch: Epoch) -> Result<(), Failure> {
        let (sessions, names) = (&self.content.sessions, ["sessionList", "currentSession"]);
        let there = self.look(&[properties("SessionManager", &names), from(sessions, true, &[])]).await?;
        let list = there.first().and_then(|manager| manager.properties.get("sessionList"));
        let Some(list) = list else {
            // It takes a privilege to see them; whoever lacks it relies on the epoch alone.
            tracing::warn!(manager = %self.who.manager, "older sessions cannot be seen, and are not ended (Sessions.TerminateSession)");
            return Ok(());
        };
        let own = there.first().and_then(|manager| manager.properties.get("currentSession"));
        let own = own.map_or("", |own| own.text_of("key"));
        let mut others = Vec::new();
        for session in &list.children {
            let Some(theirs) = self.who.epoch_of(session.text_of("userAgent")) else { continue };
            if theirs > epoch {
                return Err(Failure::Revoked);
            }
            if session.text_of("key") != own {
                others.push(session.text_of("key"));
            }
        }
        for key in others {
            match self.call("TerminateSession", sessions, &[text("sessionId", key)]).await {
                Ok(_) => {}
                // It has ended by itself.
                Err(Failure::Fault(fault)) if fault.kind == "NotFound" => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_told_apart_by_manager_and_epoch() {
        let who = |identity: &str| Who {
            vsphere: Vsphere {
                address: String::new(),
                trust: cellbus_cell::config::Trust::Thumbprint([0; 32]),
                user: String::new(),
                password: Password::Variable(String::new()),
                datacenter: None,
                folder: String::new(),
                datastore: None,
                network: None,
                templates: None,
                linked_clones: false,
            },
            manager: "m".parse().unwrap(),
            identity: identity.to_owned(),
            memory: Arc::default(),
        };
        assert_eq!(who("ab").epoch_of(&who("ab").agent(Epoch(7))), Some(Epoch(7)));
        assert_eq!(who("cd").epoch_of(&who("ab").agent(Epoch(7))), None);
        for other in ["", "cellbus/1", "cellbus/1 (ab; x)", "govc/0.51", "cellbus/1 (ab; 7"] {
            assert_eq!(who("ab").epoch_of(other), None, "{other}");
        }
    }
}
