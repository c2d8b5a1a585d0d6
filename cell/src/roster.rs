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

#[cfg(test)]
mod tests {
    use cellbus_bus::contract::{MemberState, Role};
    use cellbus_bus::embedded::{Config, Embedded};
    use cellbus_bus::env::{self, WallMs};

    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    fn member(number: usize) -> Member {
        Member {
            cell: format!("cell-{number}").parse().unwrap(),
            role: Role::Cell,
            address: "local:x".to_owned(),
            state: MemberState::Active,
            joined_at: WallMs(1),
            beat: 0,
            build: cellbus_bus::format::Build::default(),
        }
    }

    #[tokio::test]
    async fn what_was_heard_is_not_asked_for_again_while_it_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let env = env::real(tokio::runtime::Handle::current());
        let bus: Arc<dyn Bus> =
            Embedded::open(Config { free_bytes_min: 0, ..Config::new(dir.path()) }, env.clone()).unwrap();
        let roster = Roster::default();
        bus.beat(member(1), LONG).await.unwrap();
        assert_eq!(roster.within(LONG, &bus, &env).await.unwrap().len(), 1, "nothing was heard yet");
        bus.beat(member(2), LONG).await.unwrap();
        assert_eq!(roster.within(LONG, &bus, &env).await.unwrap().len(), 1);
        assert_eq!(roster.within(Duration::ZERO, &bus, &env).await.unwrap().len(), 2, "that was too old");
        assert_eq!(roster.within(LONG, &bus, &env).await.unwrap().len(), 2);
    }

    #[test]
    fn many_members_are_asked_for_less_often() {
        let second = Duration::from_secs(1);
        for (members, seconds) in [(0, 1), (1, 1), (64, 1), (65, 2), (128, 2), (500, 8)] {
            let roster = Roster::default();
            let all = Arc::new((0..members).map(member).collect());
            roster.heard.store(Some(Arc::new((Mono(Duration::ZERO), all))));
            assert_eq!(roster.every(second), second * seconds, "{members}");
        }
    }
}
