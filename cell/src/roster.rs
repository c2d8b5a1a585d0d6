//! Who is a member, as a process has heard it last, and how often that is worth asking.
//!
//! A list names every member, and every process asks for it: what a bus tells grows with the square of
//! their number. So the cells of a process and the process itself share what one of them has heard, and in
//! a large cluster it is asked for less often. Beats, on which leases stand, go on as they are.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cellbus_bus::contract::{Member, Result};
use cellbus_bus::{Bus, Env, Mono};

/// So many members are asked for as often as a cell beats; twice as many, half as often.
const LISTED_AT_EACH_BEAT: usize = 64;

/// See the module.
#[derive(Default)]
pub(crate) struct Roster {
    heard: ArcSwapOption<(Mono, Arc<Vec<Member>>)>,
}

impl Roster {
    /// Asks the bus.
    pub(crate) async fn ask(&self, bus: &Arc<dyn Bus>, env: &Env) -> Result<Arc<Vec<Member>>> {
        let members = Arc::new(bus.members().await?);
        self.heard.store(Some(Arc::new((env.mono(), Arc::clone(&members)))));
        Ok(members)
    }

    /// What was heard within this time; asks, if nothing was.
    pub(crate) async fn within(&self, age: Duration, bus: &Arc<dyn Bus>, env: &Env) -> Result<Arc<Vec<Member>>> {
        match self.heard.load_full() {
            Some(heard) if env.mono().since(heard.0) < age => Ok(Arc::clone(&heard.1)),
            Some(_) | None => self.ask(bus, env).await,
        }
    }

    /// How long to wait between two questions, where a small cluster would wait for `every`.
    pub(crate) fn every(&self, every: Duration) -> Duration {
        let members = self.heard.load().as_ref().map_or(0, |heard| heard.1.len());
        let times = members.div_ceil(LISTED_AT_EACH_BEAT).max(1);
        every.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX))
    }
}
