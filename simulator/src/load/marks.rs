//! What happened to the cluster while it was under load: told by comparing what it was with what it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::target::{CellSeen, ManagerSeen};

/// Marks at the most: a plot with more shows nothing.
const MARKS_MAX: usize = 400;

/// Something that happened at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// When it was seen, from the start.
    pub at_seconds: f64,
    /// What, in words.
    pub what: String,
}

/// What was seen last, and what has happened since the start.
#[derive(Debug, Default)]
pub(super) struct Marks {
    cells: Option<BTreeMap<String, String>>,
    managers: Option<BTreeMap<String, String>>,
    pub(super) all: Vec<Mark>,
    /// Not kept, being too many.
    pub(super) dropped: u64,
}

impl Marks {
    /// The cells, as they are now.
    pub(super) fn cells(&mut self, at_seconds: f64, cells: &[CellSeen]) {
        let now: BTreeMap<_, _> = cells.iter().map(|cell| (cell.id.clone(), cell.state.clone())).collect();
        if let Some(before) = self.cells.replace(now.clone()) {
            let said = |cell: &str, was: Option<&str>, is: Option<&str>| match (was, is) {
                (None, Some(_)) => format!("cell {cell} came"),
                (_, None) => format!("cell {cell} left"),
                (Some(_), Some(is)) => format!("cell {cell} is {is}"),
            };
            self.changes(at_seconds, &before, &now, said);
        }
    }
    /// The managers, as they are now.
    pub(super) fn managers(&mut self, at_seconds: f64, managers: &[ManagerSeen]) {
        let now: BTreeMap<_, _> = managers
            .iter()
            .map(|manager| {
                let circuit = match manager.circuit.as_deref() {
                    Some("closed") => "in order",
                    Some("open") => "failing: its circuit is open",
                    Some("half_open") => "being tried: its circuit is half open",
                    Some(_) | None => "without a cell",
                };
                (manager.name.clone(), format!("{circuit}{}", if manager.cordoned { ", cordoned" } else { "" }))
            })
            .collect();
        if let Some(before) = self.managers.replace(now.clone()) {
            let said = |manager: &str, was: Option<&str>, is: Option<&str>| match (was, is) {
                (None, Some(_)) => format!("manager {manager} was added"),
                (_, None) => format!("manager {manager} was removed"),
                (Some(_), Some(is)) => format!("manager {manager} is {is}"),
            };
            self.changes(at_seconds, &before, &now, said);
        }
    }

    fn changes(
        &mut self,
        at_seconds: f64,
        before: &BTreeMap<String, String>,
        now: &BTreeMap<String, String>,
        said: impl Fn(&str, Option<&str>, Option<&str>) -> String,
    ) {
        let names: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        for name in names {
            let (was, is) = (before.get(name).map(String::as_str), now.get(name).map(String::as_str));
            if was == is {
                continue;
            }
            if self.all.len() < MARKS_MAX {
                self.all.push(Mark { at_seconds, what: said(name, was, is) });
            } else {
                self.dropped += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_said_and_what_was_there_is_not() {
        let cell = |id: &str, state: &str| CellSeen { id: id.to_owned(), state: state.to_owned() };
        let manager = |name: &str, circuit: Option<&str>, cordoned| ManagerSeen {
            name: name.to_owned(),
            circuit: circuit.map(str::to_owned),
            cordoned,
        };
        let mut marks = Marks::default();
        marks.cells(1.0, &[cell("a", "active"), cell("b", "active"), cell("c", "active")]);
        marks.managers(1.0, &[manager("m", Some("closed"), false), manager("n", None, false)]);
        assert_eq!(marks.all, []);
        marks.cells(2.0, &[cell("a", "active"), cell("b", "draining"), cell("d", "active")]);
        marks.managers(3.0, &[manager("m", Some("open"), false), manager("n", Some("closed"), true)]);
        let said: Vec<_> = marks.all.iter().map(|mark| (mark.at_seconds, mark.what.as_str())).collect();
        assert_eq!(
            said,
            [
                (2.0, "cell b is draining"),
                (2.0, "cell c left"),
                (2.0, "cell d came"),
                (3.0, "manager m is failing: its circuit is open"),
                (3.0, "manager n is in order, cordoned"),
            ]
        );
        let many = |n: usize| (0..n).map(|n| cell(&n.to_string(), "active")).collect::<Vec<_>>();
        marks.cells(4.0, &many(1_000));
        assert_eq!((marks.all.len(), marks.dropped), (MARKS_MAX, 1_003 - (MARKS_MAX as u64 - 5)));
    }
}
