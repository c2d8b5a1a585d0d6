//! The emergency stop: what operators have paused, as records.
//!
//! All of it is kept on the shard of the cluster's own key, the pause of one manager too: whoever
//! reads that one log to its end knows all that is paused, and how old that knowledge is. A pause is
//! named by its [`Scope`]; each is lifted by itself.

use std::collections::BTreeMap;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::ManagerId;
use serde::{Deserialize, Serialize};

use crate::record::{Operator, Record};
use crate::work::{Step, StepKind};

/// Characters of a reason that are kept.
pub const REASON_CHARS_MAX: usize = 300;

/// Which operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Paused {
    /// All that change something: [`StepKind::Changes`] and [`StepKind::Removes`].
    All,
    /// Those that remove something: [`StepKind::Removes`].
    Destructive,
}
impl Paused {
    /// As in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Destructive => "destructive",
        }
    }
    /// Whether it holds such a step back.
    #[must_use]
    pub const fn holds(self, kind: StepKind) -> bool {
        match (self, kind) {
            (_, StepKind::Reads) | (Self::Destructive, StepKind::Changes) => false,
            (_, StepKind::Removes) | (Self::All, StepKind::Changes) => true,
        }
    }
}

/// How far a pause reaches, which names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    /// At which manager; `None`: at all of them.
    pub manager: Option<ManagerId>,
    /// Which operations.
    pub paused: Paused,
}
impl Scope {
    /// For people; `name` is that of its manager, where it is known.
    #[must_use]
    pub fn in_words(&self, name: Option<&str>) -> String {
        let what = match self.paused {
            Paused::All => "all work",
            Paused::Destructive => "destructive work",
        };
        match (self.manager, name) {
            (Some(_), Some(name)) => format!("{what} at manager {name}"),
            (Some(manager), None) => format!("{what} at manager {manager}"),
            (None, _) => what.to_owned(),
        }
    }
}

/// A pause that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Since when.
    pub at: WallMs,
    /// Who has ordered it.
    pub by: Operator,
    /// Why, in the operator's words; empty if nothing was said.
    pub reason: String,
}
impl Pause {
    /// For people: what, who, since when, why; `name` is that of the scope's manager.
    #[must_use]
    pub fn in_words(&self, scope: &Scope, name: Option<&str>) -> String {
        let mut words = format!("{} paused by {} since {}", scope.in_words(name), self.by.who, self.at.rfc3339());
        if !self.reason.is_empty() {
            words.push_str(": ");
            words.push_str(&self.reason);
        }
        words
    }
}

/// All that is paused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pauses(BTreeMap<Scope, Pause>);

impl Pauses {
    /// What a record of the cluster's shard changes.
    pub fn apply(&mut self, at: WallMs, record: &Record) {
        if let Record::Paused { scope, reason, by } = record {
            self.0.insert(*scope, Pause { at, by: by.clone(), reason: reason.clone() });
        } else if let Record::Resumed { scope, .. } = record {
            self.0.remove(scope);
        }
    }
    /// Puts those of another cluster's state with these.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
    /// The pause of exactly this scope.
    #[must_use]
    pub fn get(&self, scope: &Scope) -> Option<&Pause> {
        self.0.get(scope)
    }
    /// In the order of their scopes: those of the whole cluster first.
    pub fn iter(&self) -> impl Iterator<Item = (&Scope, &Pause)> {
        self.0.iter()
    }
    /// Whether nothing is paused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// What holds such operations back at this manager (`None`: at every one), the widest first.
    #[must_use]
    pub fn holds(&self, kind: StepKind, manager: Option<ManagerId>) -> Option<(Scope, &Pause)> {
        if self.0.is_empty() {
            return None;
        }
        let of = |manager, paused: Paused| {
            let scope = Scope { manager, paused };
            paused.holds(kind).then(|| self.0.get(&scope)).flatten().map(|pause| (scope, pause))
        };
        let at = |manager| of(manager, Paused::All).or_else(|| of(manager, Paused::Destructive));
        at(None).or_else(|| manager.and_then(|manager| at(Some(manager))))
    }
    /// [`Pauses::holds`] for one step.
    #[must_use]
    pub fn hold(&self, step: Step, manager: Option<ManagerId>) -> Option<(Scope, &Pause)> {
        self.holds(step.kind(), manager)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by() -> Operator {
        Operator { who: "ada".to_owned(), from: "127.0.0.1".to_owned() }
    }
    fn scope(manager: Option<&str>, paused: Paused) -> Scope {
        Scope { manager: manager.map(ManagerId::derive), paused }
    }
    fn pause(pauses: &mut Pauses, scope: Scope) {
        pauses.apply(WallMs(1_700_000_000_000), &Record::Paused { scope, reason: "why".to_owned(), by: by() });
    }

    #[test]
    fn each_pause_holds_what_it_names_and_is_lifted_by_itself() {
        let mut pauses = Pauses::default();
        let (all, one) = (scope(None, Paused::Destructive), scope(Some("vc-1"), Paused::All));
        pause(&mut pauses, all);
        pause(&mut pauses, one);
        let at = |name: &str| Some(ManagerId::derive(name));
        let hold = |pauses: &Pauses, step, manager| pauses.hold(step, manager).map(|(scope, _)| scope);
        assert_eq!(hold(&pauses, Step::Delete, at("vc-2")), Some(all));
        assert_eq!(hold(&pauses, Step::Delete, at("vc-1")), Some(all), "the widest is named");
        assert_eq!(hold(&pauses, Step::Create, at("vc-1")), Some(one));
        assert_eq!(hold(&pauses, Step::Create, at("vc-2")), None);
        assert_eq!(hold(&pauses, Step::Create, None), None, "another manager may be chosen");
        assert_eq!(hold(&pauses, Step::Inspect, at("vc-1")), None, "what only reads goes on");
        pauses.apply(WallMs(2), &Record::Resumed { scope: all, by: by() });
        assert_eq!(hold(&pauses, Step::Delete, at("vc-1")), Some(one));
        assert_eq!(hold(&pauses, Step::Delete, at("vc-2")), None);
        let words = pauses.get(&one).unwrap().in_words(&one, Some("vc-1"));
        assert!(words.starts_with("all work at manager vc-1 paused by ada since 2023-"), "{words}");
        assert!(words.ends_with("Z: why"), "{words}");
    }

    #[test]
    fn what_cannot_be_taken_back_is_destructive() {
        let removes: Vec<&str> =
            Step::ALL.iter().filter(|step| step.kind() == StepKind::Removes).map(|step| step.as_str()).collect();
        assert_eq!(
            removes,
            ["undo-create", "revert", "snapshot-delete", "drop-source", "undo-copy", "delete", "drop-stray"]
        );
    }

    /// What is written today must be read for ever: these bytes never change.
    #[test]
    fn the_bytes_of_the_records_are_pinned() {
        let hex = |record: Record| -> String {
            cellbus_bus::codec::encode(&record).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let paused = Record::Paused { scope: scope(None, Paused::Destructive), reason: "r".to_owned(), by: by() };
        let resumed = Record::Resumed { scope: scope(Some("vc-1"), Paused::All), by: by() };
        assert_eq!([hex(paused), hex(resumed)], PINNED);
    }
    const PINNED: [&str; 2] = [
        "01270001017203616461093132372e302e302e31",
        "012801105c8dde815a5b5830ba87a42e6d7496000003616461093132372e302e302e31",
    ];
}
