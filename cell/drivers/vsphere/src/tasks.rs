//! Tasks of a vCenter: followed to their end, and found again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cellbus_bus::ids::VmId;
use cellbus_cell::driver::RunningTask;

use crate::note::Note;
use crate::session::Session;
use crate::soap::{Failure, Fault};
use crate::vim::{Object, Ref, Step, from};
use crate::xml::Element;

const TASK: &str = "Task";
/// Between two looks at a task: from the first to the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

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

impl Session {
    /// Follows a task to its end; gives the object that it made, if it made one.
    ///
    /// # Errors
    /// The fault that it ended with, among others.
    pub(crate) async fn follow(&self, task: &Ref) -> Result<Option<Ref>, Failure> {
        let mut pause = LOOKS.0;
        loop {
            let seen = self.retrieve(&[properties(), from(task, true, &[])]).await?;
            let Some(seen) = seen.iter().find_map(TaskSeen::of) else {
                return Err(Failure::NoAnswer("the vCenter has forgotten a task".to_owned()));
            };
            if seen.succeeded() {
                return Ok(seen.result);
            }
            if !seen.running() {
                let error = seen.error.unwrap_or_default();
                let fault = error.child("fault").cloned().unwrap_or_default();
                return Err(Failure::Fault(Fault::of(&fault, error.text_of("localizedMessage"))));
            }
            self.env().sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    /// Begins a task and follows it to its end.
    pub(crate) async fn carry_out(&self, method: &str, this: &Ref, parts: &[String]) -> Result<Option<Ref>, Failure> {
        let task = self.begin(method, this, parts).await?;
        self.follow(&task).await
    }

    async fn running_tasks(&self) -> Result<Vec<TaskSeen>, Failure> {
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
            let Some(vm) = self.look(&entity, &["name", "config.annotation"]).await? else { continue };
            let Ok(id) = vm.text("name").parse::<VmId>() else { continue };
            let note = Note::read(vm.text("config.annotation"));
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
