//! What changed at a vCenter, from a property collector: it tells what is new since it was asked last.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellbus_bus::ids::VmId;
use cellbus_cell::driver::{Change, Irregular};
use tokio::sync::watch;

use crate::claims::Claims;
use crate::read::{DATASTORE, HOST, VM};
use crate::session::Session;
use crate::soap::Failure;
use crate::vim::{Ref, Step, filter, from, properties, returned};
use crate::xml::{Element, node, text};

/// How long the vCenter waits for something to tell. Short enough that a session that is over is noticed.
const WAIT_SECONDS: u64 = 5;
/// For the answer, beyond that.
const LIMIT: Duration = Duration::from_secs(60);
/// Objects in one answer.
const OBJECTS_MAX: usize = 500;

/// Listens for one connection.
#[derive(Default)]
pub(crate) struct Listener {
    state: Arc<Mutex<Listening>>,
    /// One wait at a time, which goes on when whoever asked does not.
    asking: tokio::sync::Mutex<Option<watch::Receiver<bool>>>,
}

#[derive(Default)]
struct Listening {
    at: Option<Position>,
    /// Which VMs are ours, by reference: one that is gone is told by that alone.
    claims: Claims,
    heard: Heard,
    failed: Option<Failure>,
}

/// What is to be told, each once.
#[derive(Default)]
struct Heard {
    hosts: bool,
    missed: bool,
    vms: BTreeSet<VmId>,
}

impl Heard {
    fn take(&mut self) -> Vec<Change> {
        let Self { hosts, missed, vms } = std::mem::take(self);
        let whole = [(missed, Change::Missed), (hosts, Change::Hosts)];
        let whole = whole.into_iter().filter_map(|(heard, change)| heard.then_some(change));
        whole.chain(vms.into_iter().map(Change::Vm)).collect()
    }
}

#[derive(Clone)]
struct Position {
    collector: Ref,
    version: String,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Listener {
    /// Begins anew: what changes from now on is told.
    pub(crate) async fn begin(&self, session: &Arc<Session>) -> Result<(), Failure> {
        let state = begin(session).await?;
        *locked(&self.state) = state;
        Ok(())
    }

    /// VMs whose id is not beyond doubt.
    pub(crate) fn irregular(&self) -> Irregular {
        locked(&self.state).claims.irregular()
    }

    /// Waits for changes. What was heard for a caller that has gone is given to the next.
    pub(crate) async fn changes(&self, session: &Arc<Session>) -> Result<Vec<Change>, Failure> {
        loop {
            let mut asking = self.asking.lock().await;
            {
                let mut state = locked(&self.state);
                let heard = state.heard.take();
                if !heard.is_empty() {
                    return Ok(heard);
                }
                if let Some(failure) = state.failed.take() {
                    return Err(failure);
                }
            }
            let mut ended = match asking.take() {
                Some(ended) => ended,
                None => {
                    let (send, ended) = watch::channel(false);
                    let (session, state) = (Arc::clone(session), Arc::clone(&self.state));
                    session.env().clone().spawn("vsphere changes", async move {
                        listen(&session, &state).await;
                        // Nobody may wait.
                        let _ = send.send(true);
                    });
                    ended
                }
            };
            *asking = Some(ended.clone());
            // An error: its task is gone, which ends the wait as well.
            let _ = ended.wait_for(|ended| *ended).await;
            *asking = None;
        }
    }
}

/// One wait, whose outcome is left in `state`.
async fn listen(session: &Arc<Session>, state: &Mutex<Listening>) {
    let at = locked(state).at.clone();
    let outcome = match at {
        Some(at) => wait(session, &at).await,
        // The last one came to nothing: what was told meanwhile is missed.
        None => match begin(session).await {
            Ok(anew) => {
                *locked(state) = Listening { heard: Heard { missed: true, ..Heard::default() }, ..anew };
                return;
            }
            Err(failure) => Err(failure),
        },
    };
    let mut state = locked(state);
    match outcome {
        Ok(None) => {}
        Ok(Some((version, updates))) => {
            if let Some(at) = &mut state.at {
                at.version = version;
            }
            for update in &updates {
                state.take(session, update);
            }
        }
        Err(failure) => {
            state.at = None;
            // A session that was renewed has another collector.
            let renewed = matches!(&failure, Failure::Fault(fault) if fault.kind == "ManagedObjectNotFound");
            if !renewed {
                state.failed = Some(failure);
            }
        }
    }
}

/// A collector of its own, since waiting would hold up other questions, with what there is now read.
async fn begin(session: &Arc<Session>) -> Result<Listening, Failure> {
    let collector = session.call("CreatePropertyCollector", &session.content()?.collector, &[]).await?;
    let collector = returned(&collector)?;
    let view = session.view(&session.place()?.datacenter, &[HOST, DATASTORE, VM]).await?;
    let vm = [
        "name",
        "config.annotation",
        "config.changeVersion",
        "config.instanceUuid",
        "config.template",
        "config.hardware.numCPU",
        "config.hardware.memoryMB",
        "config.files.vmPathName",
        "runtime.powerState",
        "runtime.host",
        "snapshot",
    ];
    let host = ["runtime.connectionState", "runtime.inMaintenanceMode", "datastore", "network"];
    // What is free changes all the time: each operation looks at that itself.
    let datastore = ["summary.accessible", "summary.maintenanceMode", "summary.capacity"];
    let step = Step { kind: "ContainerView", path: "view", then: &[] };
    let parts =
        [properties(VM, &vm), properties(HOST, &host), properties(DATASTORE, &datastore), from(&view, false, &[step])];
    session.call("CreateFilter", &collector, &[filter("spec", &parts), text("partialUpdates", "false")]).await?;
    let mut state = Listening::default();
    let mut at = Position { collector, version: String::new() };
    loop {
        let Some((version, updates)) = wait_for(session, &at, 0).await? else { break };
        at.version = version;
        let truncated = updates.truncated;
        updates.objects.iter().for_each(|update| state.take(session, update));
        if !truncated {
            break;
        }
    }
    state.heard = Heard::default();
    state.at = Some(at);
    Ok(state)
}

struct Updates {
    objects: Vec<Element>,
    truncated: bool,
}

async fn wait(session: &Session, at: &Position) -> Result<Option<(String, Vec<Element>)>, Failure> {
    let updates = wait_for(session, at, WAIT_SECONDS).await?;
    Ok(updates.map(|(version, updates)| (version, updates.objects)))
}

async fn wait_for(session: &Session, at: &Position, seconds: u64) -> Result<Option<(String, Updates)>, Failure> {
    let options = node(
        "options",
        &[text("maxWaitSeconds", seconds.to_string()), text("maxObjectUpdates", OBJECTS_MAX.to_string())],
    );
    let parts = [text("version", &at.version), options];
    let limit = LIMIT + Duration::from_secs(seconds);
    let answer = session.call_within("WaitForUpdatesEx", &at.collector, &parts, limit).await?;
    let Some(set) = answer.child("returnval") else { return Ok(None) };
    let objects = set.all("filterSet").flat_map(|set| set.all("objectSet")).cloned().collect();
    let truncated = set.text_of("truncated") == "true";
    Ok(Some((set.text_of("version").to_owned(), Updates { objects, truncated })))
}

impl Listening {
    fn take(&mut self, session: &Session, update: &Element) {
        let Some(object) = update.child("obj").and_then(Ref::of) else { return };
        if object.kind == HOST || object.kind == DATASTORE {
            self.heard.hosts = true;
            return;
        }
        self.heard.vms.extend(self.claims.id(&object));
        if update.text_of("kind") == "leave" {
            self.claims.gone(&object);
            return;
        }
        let news = update.all("changeSet").map(|change| (change.text_of("name"), change.text_of("val")));
        self.claims.heard(&object, news);
        if let Some((vm, uuid)) = self.claims.adopted(&object) {
            session.adopted().stands(vm, &object, uuid);
        }
        // Under the name that it has now, too.
        self.heard.vms.extend(self.claims.id(&object));
    }
}
