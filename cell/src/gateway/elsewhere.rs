//! Where the VMs of a manager would go, were it emptied now: one after the other, each with the room that
//! those before it take counted as taken.

use std::sync::Arc;

use cellbus_bus::ids::ManagerId;
use cellbus_directory::{Pauses, Vm};
use cellbus_workflows::placement::{Asked, Choice, choose, take_room};
use cellbus_workflows::{CapacityView, Context};

use super::Gateway;

/// All managers but one, with what is free at them.
pub(super) struct Elsewhere<'a> {
    gateway: &'a Gateway,
    view: CapacityView,
    pauses: Arc<Pauses>,
}

impl Gateway {
    /// Everywhere but at this manager.
    pub(super) fn elsewhere(&self, than: ManagerId) -> Elsewhere<'_> {
        let process = &self.inner.process;
        let mut view = process.board.view().as_ref().clone();
        view.managers.retain(|summary| summary.id != than);
        Elsewhere { gateway: self, view, pauses: process.pauses.pauses() }
    }
}

impl Elsewhere<'_> {
    /// A manager that would take the VM.
    ///
    /// # Errors
    /// Why none would, in words.
    pub(super) fn place(&mut self, vm: &Vm) -> Result<ManagerId, String> {
        let process = &self.gateway.inner.process;
        let asked = Asked {
            tenant: &vm.tenant,
            size: vm.size,
            template: &vm.template,
            only: None,
            refusals: &[],
            sibling: None,
            patient: false,
        };
        let context = Context {
            now: process.env.wall(),
            random: process.env.random_u64(),
            view: &self.view,
            names: &process.names,
            pauses: &self.pauses,
        };
        let chosen = match choose(&context, &asked, |_| true) {
            Choice::Manager(chosen) => chosen,
            Choice::Crowded => return Err("all managers with room are busy".to_owned()),
            Choice::Later(why) => return Err(why),
            Choice::Nowhere(failure) => return Err(failure.message),
        };
        take_room(&mut self.view, chosen, &asked);
        Ok(chosen)
    }
}
