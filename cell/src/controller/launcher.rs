//! Who starts cells and has them leave.

use cellbus_bus::contract::{Member, MemberState};
use cellbus_bus::ids::CellId;

use async_trait::async_trait;

mod asking;
pub mod command;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod pace;
mod process;

pub use asking::Asking;
pub use process::ProcessLauncher;

/// What there is to be, and what there is.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Cells that there are to be.
    pub desired: u32,
    /// The live cells, as they were seen last.
    pub members: Vec<Member>,
}

/// Brings the number of cells to what is wanted.
///
/// It is told about once a second, by the one controller that decides, what is wanted now; never what
/// has changed. An implementer MUST make the same of the same, whether it is told once or a hundred
/// times, start again what has died, and have cells leave one after another, each drained. What it
/// cannot do it tries again, with growing pauses.
#[async_trait]
pub trait Launcher: Send + Sync {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;
    /// This many are wanted now. Does not block.
    fn want(&self, wanted: Wanted);
    /// What keeps it from that, in words for an operator; `None` if nothing does.
    fn trouble(&self) -> Option<String>;
    /// Nothing is wanted any more: its controller ends, and with it what cannot live without it.
    /// Cancel safe.
    async fn stop(&self) {}
}

/// Starts nothing: what is decided is shown, and a person or another autoscaler acts on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Advise;

#[async_trait]
impl Launcher for Advise {
    fn name(&self) -> &'static str {
        "none"
    }
    fn want(&self, _: Wanted) {}
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// The cell that should leave next: the youngest that `own` says may, unless one is leaving already
/// or there are not too many.
#[must_use]
pub fn leaves_next(wanted: &Wanted, own: impl Fn(&CellId) -> bool) -> Option<&CellId> {
    let state = |state| wanted.members.iter().filter(move |member| member.state == state);
    if state(MemberState::Draining).next().is_some() || state(MemberState::Active).count() <= wanted.desired as usize {
        return None;
    }
    state(MemberState::Active).filter(|m| own(&m.cell)).max_by_key(|m| (m.joined_at, &m.cell)).map(|m| &m.cell)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellbus_bus::WallMs;
    use cellbus_bus::contract::Role;

    fn member(id: &str, state: MemberState, joined: u64) -> Member {
        Member {
            cell: id.parse().unwrap(),
            role: Role::Cell,
            address: String::new(),
            state,
            joined_at: WallMs(joined),
            beat: 0,
            build: cellbus_bus::format::Build::current(),
        }
    }

    #[test]
    fn cells_leave_one_after_another_the_youngest_first() {
        use MemberState::{Active, Draining};
        let mut wanted = Wanted {
            desired: 1,
            members: vec![member("a", Active, 1), member("c", Active, 3), member("b", Active, 2)],
        };
        assert_eq!(leaves_next(&wanted, |_| true).unwrap().as_str(), "c");
        assert_eq!(leaves_next(&wanted, |id| id.as_str() != "c").unwrap().as_str(), "b");
        wanted.members[1].state = Draining;
        assert_eq!(leaves_next(&wanted, |_| true), None, "one is leaving");
        wanted.members.remove(1);
        wanted.desired = 2;
        assert_eq!(leaves_next(&wanted, |_| true), None, "there are as many as there should be");
    }
}
