//! Tasks of a vCenter: followed to their end, and found again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::ids::VmId;
use cellbus_cell::driver::RunningTask;
use tokio::sync::oneshot;

use crate::claims::identity;
use crate::note::Note;
use crate::session::Session;
use crate::soap::{Failure, Fault};
use crate::vim::{Object, Ref, Step, from};
use crate::xml::Element;

const TASK: &str = "Task";
/// Between two looks at the tasks that are followed: while the youngest is no older than so, so long.
const LOOKS: [(Duration, Duration); 3] = [
    (Duration::from_millis(250), Duration::from_millis(25)),
    (Duration::from_secs(2), Duration::from_millis(100)),
    (Duration::MAX, Duration::from_millis(300)),
];

pub(crate) fn properties() -> String {
    let names = ["info.state", "info.descriptionId", "info.entity", "info.queueTime", "info.error", "info.result"];
    crate::vim::properties(TASK, &names)
}

/// A task as it was read.
#[derive(Clone, Debug)]
pub(crate) struct TaskSeen {
    pub(crate) this: Ref,
    state: String,
    /// Such as `VirtualMachine.reset`.
    pub(crate) what: String,
    pub(crate) entity: Option<Ref>,
    pub(crate) queued: Option<jiff::Timestamp>,
    error: Option<Element>,
    result: Option<Ref>,
}

impl TaskSeen {
    pub(crate) fn of(object: &Object) -> Option<Self> {
        (object.this.kind == TASK).then(|| Self {
            this: object.this.clone(),
            state: object.text("info.state").to_owned(),
            what: object.text("info.descriptionId").to_owned(),
            entity: object.reference("info.entity"),
            queued: object.text("info.queueTime").parse().ok(),
            error: object.properties.get("info.error").cloned(),
            result: object.reference("info.result"),
        })
    }
    pub(crate) fn running(&self) -> bool {
        matches!(self.state.as_str(), "queued" | "running")
    }
    pub(crate) fn succeeded(&self) -> bool {
        self.state == "success"
    }
    /// Whether it makes a VM: which one, nothing of the task tells.
    fn makes(&self) -> bool {
        matches!(self.what.as_str(), "Folder.createVm" | "VirtualMachine.clone" | "VirtualMachine.cloneVm")
    }
}

/// Tasks that make VMs, begun by this session and not known to have ended.
#[derive(Debug, Default)]
pub(crate) struct Own(Mutex<BTreeMap<Ref, VmId>>);

impl Own {
    pub(crate) fn began(&self, task: &Ref, vm: VmId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(task.clone(), vm);
    }
    pub(crate) fn ended(&self, task: &Ref) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
    }
    /// Which VM it makes, if that is known.
    fn makes(&self, task: &Ref) -> Option<VmId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(task).copied()
    }
}

type Told = Result<TaskSeen, Failure>;

/// Tasks that are followed to their end.
#[derive(Default)]
pub(crate) struct Followed {
    tasks: Mutex<BTreeMap<Ref, (Mono, Vec<oneshot::Sender<Told>>)>>,
    /// Held by whoever looks at all of them.
    turn: tokio::sync::Mutex<()>,
}

/// That a task is followed: dropped, it is not looked at any more.
struct Following<'a> {
    followed: &'a Followed,
    task: Ref,
}
impl Drop for Following<'_> {
    fn drop(&mut self) {
        let mut tasks = self.followed.locked();
        if let Some((_, told)) = tasks.get_mut(&self.task) {
            told.retain(|told| !told.is_closed());
            if told.is_empty() {
                tasks.remove(&self.task);
            }
        }
    }
}

impl Followed {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<Ref, (Mono, Vec<oneshot::Sender<Told>>)>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn begin(&self, task: &Ref, now: Mono) -> (Following<'_>, oneshot::Receiver<Told>) {
        let (tell, told) = oneshot::channel();
        self.locked().entry(task.clone()).or_insert_with(|| (now, Vec::new())).1.push(tell);
        (Following { followed: self, task: task.clone() }, told)
    }
    /// All of them, and when the youngest began to be followed.
    fn now(&self) -> (Vec<Ref>, Option<Mono>) {
        let tasks = self.locked();
        (tasks.keys().cloned().collect(), tasks.values().map(|(began, _)| *began).max())
    }
    fn tell(&self, task: &Ref, what: Told) {
        for told in self.locked().remove(task).map(|(_, told)| told).unwrap_or_default() {
            // Whoever followed it may have gone.
            let _ = told.send(what.clone());
        }
    }
}

impl Session {
    /// Follows a task to its end; gives the object that it made, if it made one.
    ///
    /// All tasks that are followed are looked at in one question: whoever has the turn asks for all, and
    /// tells the others.
    ///
    /// # Errors
    /// The fault that it ended with, among others.
    pub(crate) async fn follow(&self, task: &Ref) -> Result<Option<Ref>, Failure> {
        let followed = self.followed();
        // Dropped in the reverse order: what is told to nobody any more is not asked for.
        let (_following, mut told) = followed.begin(task, self.env().mono());
        let seen = loop {
            tokio::select! {
                biased;
                told = &mut told => {
                    break told.unwrap_or_else(|_| Err(Failure::NoAnswer("a task is followed no more".to_owned())))?;
                }
                _turn = followed.turn.lock() => {
                    let pause = self.look_at_tasks(followed).await;
                    if let Ok(told) = told.try_recv() {
                        break told?;
                    }
                    self.env().sleep(pause).await;
                }
            }
        };
        if seen.succeeded() {
            return Ok(seen.result);
        }
        let error = seen.error.unwrap_or_default();
        let fault = error.child("fault").cloned().unwrap_or_default();
        Err(Failure::Fault(Fault::of(&fault, error.text_of("localizedMessage"))))
    }

    /// Looks at all tasks that are followed, and tells of those that have ended; gives how long to wait
    /// before the next look.
    async fn look_at_tasks(&self, followed: &Followed) -> Duration {
        let (tasks, youngest) = followed.now();
        let seen = match self.see(&tasks).await {
            // One of them is gone: which, each by itself tells.
            Err(Failure::Fault(fault)) if fault.kind == "ManagedObjectNotFound" && tasks.len() > 1 => {
                let mut seen = Vec::new();
                for task in &tasks {
                    match self.see(std::slice::from_ref(task)).await {
                        Ok(one) => seen.extend(one),
                        Err(failure) => followed.tell(task, Err(failure)),
                    }
                }
                Ok(seen)
            }
            // An answer that was lost says nothing of the tasks: another look does.
            Err(Failure::NoAnswer(_)) => self.see(&tasks).await,
            seen => seen,
        };
        match seen {
            Ok(seen) => {
                let known: BTreeSet<&Ref> = seen.iter().map(|task| &task.this).collect();
                for task in tasks.iter().filter(|task| !known.contains(task)) {
                    followed.tell(task, Err(Failure::NoAnswer("the vCenter has forgotten a task".to_owned())));
                }
                for task in seen.iter().filter(|task| !task.running()) {
                    followed.tell(&task.this, Ok(task.clone()));
                }
            }
            Err(failure) => tasks.iter().for_each(|task| followed.tell(task, Err(failure.clone()))),
        }
        let age = youngest.map_or(Duration::MAX, |began| self.env().mono().since(began));
        LOOKS.iter().find(|(up_to, _)| age <= *up_to).map_or(LOOKS[2].1, |(_, pause)| *pause)
    }

    async fn see(&self, tasks: &[Ref]) -> Result<Vec<TaskSeen>, Failure> {
        let objects = tasks.iter().map(|task| from(task, true, &[]));
        let seen = self.retrieve(&std::iter::once(properties()).chain(objects).collect::<Vec<_>>()).await?;
        Ok(seen.iter().filter_map(TaskSeen::of).collect())
    }

    /// Begins a task and follows it to its end.
    pub(crate) async fn carry_out(&self, method: &str, this: &Ref, parts: &[String]) -> Result<Option<Ref>, Failure> {
        let task = self.begin(method, this, parts).await?;
        self.follow(&task).await
    }

    pub(crate) async fn running_tasks(&self) -> Result<Vec<TaskSeen>, Failure> {
        let step = Step { kind: "TaskManager", path: "recentTask", then: &[] };
        let tasks = self.content()?.tasks.clone();
        let objects = self.retrieve(&[properties(), from(&tasks, false, &[step])]).await?;
        Ok(objects.iter().filter_map(TaskSeen::of).filter(TaskSeen::running).collect())
    }

    /// Operations that run on VMs of ours.
    pub(crate) async fn tasks(&self) -> Result<Vec<RunningTask>, Failure> {
        let mut found = Vec::new();
        let mut looked = BTreeSet::new();
        for task in self.running_tasks().await? {
            let Some(entity) = task.entity.filter(|entity| entity.kind == crate::read::VM) else { continue };
            if !looked.insert(entity.clone()) {
                continue;
            }
            let Some(vm) = self.look(&entity, &["name", "config.instanceUuid", "config.annotation"]).await? else {
                continue;
            };
            let note = Note::read(vm.text("config.annotation"));
            let Some(id) = identity(vm.text("name"), vm.text("config.instanceUuid"), note.as_ref()) else { continue };
            let Some(number) = Self::number_of(note.as_ref()) else { continue };
            found.push(RunningTask { vm: id, number, host: None });
        }
        found.sort_by_key(|task| task.vm);
        Ok(found)
    }

    /// Whether nothing may yet make this VM, which is not there now. Tasks do not say which VM they make:
    /// those that this session did not begin may make any.
    pub(crate) async fn none_being_made(&self, vm: VmId, own: &Own) -> Result<(), Failure> {
        let folder = self.place()?.folder.clone();
        let makes = |task: &TaskSeen| {
            task.makes()
                && own.makes(&task.this).is_none_or(|made| made == vm)
                && (task.what != "Folder.createVm" || task.entity.as_ref() == Some(&folder))
        };
        if self.running_tasks().await?.iter().any(makes) {
            return Err(Failure::NoAnswer("a task of an earlier try may still make this VM".to_owned()));
        }
        Ok(())
    }
}
