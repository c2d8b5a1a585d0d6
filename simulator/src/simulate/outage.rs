//! A host that loses its power, which no manager can be certain of: an operator says so, has it come back, and then
//! takes the word back.

use std::time::Duration;

use cellbus_bus::ids::{HostId, ManagerId};
use cellbus_cell::Gateway;
use rand::rngs::SmallRng;

use super::nemesis::{ANSWER_LIMIT, Nemesis, operator};
use crate::managers::Faults;

/// How often an operator gives an order before they go home.
const TRIES_MAX: u32 = 120;

impl Nemesis {
    pub(super) async fn lose_power_of_host(
        &self,
        rng: &mut SmallRng,
        manager: ManagerId,
        host: HostId,
        faults: &Faults,
    ) {
        self.say(|| format!("host {host} has lost its power, and does not answer"));
        // Its VMs run no more, whatever becomes of them.
        self.loosen(|at, of| at == manager && *of == host, "its host had lost its power");
        faults.cut_power_of_host(&host);
        self.while_(rng, 1.0, 10.0).await;
        let called = self.call_dead(rng, manager, &host, true).await;
        self.say(|| format!("host {host} is called dead: {called}"));
        self.while_(rng, 5.0, 30.0).await;
        // What was created there between the fault and now is not known to be off by whoever made it.
        self.loosen(|at, of| at == manager && *of == host, "its host had lost its power");
        faults.restore_host(&host);
        self.say(|| format!("host {host} has power again"));
        // Without that it would take no VMs for ever.
        let back = self.call_dead(rng, manager, &host, false).await;
        self.say(|| format!("host {host} is not called dead any more: {back}"));
    }

    async fn call_dead(&self, rng: &mut SmallRng, manager: ManagerId, host: &HostId, dead: bool) -> bool {
        for _ in 0..TRIES_MAX {
            // Once all is mended nobody has to be told that a host is dead.
            if dead && self.healing() {
                return false;
            }
            if let Some(cell) = self.cell(rng).and_then(|node| self.cells.get(node)) {
                let host = host.clone();
                let order = move |gateway: Gateway| async move {
                    match dead {
                        true => gateway.fence_host(manager, host, operator()).await.is_ok(),
                        false => gateway.unfence_host(manager, host, operator()).await.is_ok(),
                    }
                };
                if self.cells.ask(&self.env, &cell, ANSWER_LIMIT, order).await == Some(true) {
                    return true;
                }
            }
            self.env.sleep(Duration::from_secs(1)).await;
        }
        false
    }
}
